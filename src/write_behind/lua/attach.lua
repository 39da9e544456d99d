-- KEYS[1] the state of partition 0. ARGV: the caller's number of partitions. Answers the stored
-- number.
redis.call('HSETNX', KEYS[1], 'partitions', ARGV[1])
return redis.call('HGET', KEYS[1], 'partitions')
