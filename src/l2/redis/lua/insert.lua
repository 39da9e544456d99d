-- KEYS[1] the record. ARGV: new record, ms, channel, message.
local stored = redis.pcall('SET', KEYS[1], ARGV[1], 'PX', ARGV[2])
if stored.err then
  -- The old value must not stay in the place of the new one.
  redis.call('DEL', KEYS[1])
end
redis.call('PUBLISH', ARGV[3], ARGV[4])
if stored.err then
  return stored
end
return 1
