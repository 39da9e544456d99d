-- KEYS[1] the record. KEYS[2] the claim to refresh it. ARGV: channel, message, and with a hold-off
-- its record and ms. Publishes also if the key held nothing, because a load may be running. The
-- removal comes first, in the same script, so no process receives the message too early.
redis.call('DEL', KEYS[1], KEYS[2])
if ARGV[3] then
  redis.pcall('SET', KEYS[1], ARGV[3], 'PX', ARGV[4])
end
redis.call('PUBLISH', ARGV[1], ARGV[2])
return 1
