-- KEYS[1] the record. ARGV: head that must still be there, new record, ms, channel, message.
-- Answers 1: stored; 0: the head was gone, nothing stored.
local head = redis.pcall('GETRANGE', KEYS[1], 0, 20)
if type(head) ~= 'string' or string.sub(head, 1, 20) ~= ARGV[1] then
  return 0
end
local lease = string.byte(head, 4) == 3
local stored = redis.pcall('SET', KEYS[1], ARGV[2], 'PX', ARGV[3])
if stored.err and lease then
  -- For instance out of memory: there is no value, and the lease must not keep others waiting.
  redis.call('DEL', KEYS[1])
end
if lease and string.byte(head, 21) ~= 0 then
  redis.pcall('PUBLISH', ARGV[4], ARGV[5])
end
if stored.err then
  return stored
end
return 1
