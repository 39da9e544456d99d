-- KEYS[1] the record. ARGV: channel, message. Says so also where there was nothing: a load may be
-- running. After the removal, in one script: nobody hears of it too early.
redis.call('DEL', KEYS[1])
redis.call('PUBLISH', ARGV[1], ARGV[2])
return 1
