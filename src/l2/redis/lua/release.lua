-- KEYS[1] the record. ARGV: head that must still be there, channel, message.
local head = redis.pcall('GETRANGE', KEYS[1], 0, 20)
if type(head) ~= 'string' or string.sub(head, 1, 20) ~= ARGV[1] then
  return 0
end
redis.call('DEL', KEYS[1])
if string.byte(head, 21) ~= 0 then
  redis.pcall('PUBLISH', ARGV[2], ARGV[3])
end
return 1
