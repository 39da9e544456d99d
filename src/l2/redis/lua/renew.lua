-- KEYS[1] the record. ARGV: head that must still be there, ms.
local head = redis.pcall('GETRANGE', KEYS[1], 0, 19)
if head ~= ARGV[1] then
  return 0
end
return redis.call('PEXPIRE', KEYS[1], ARGV[2])
