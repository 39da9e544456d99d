-- KEYS[1] the record, or a claim. KEYS[2] with a claim: the record that is refreshed. ARGV: head
-- that must still be there, ms.
local head = redis.pcall('GETRANGE', KEYS[1], 0, 19)
if head ~= ARGV[1] then
  return 0
end
if KEYS[2] then
  local left = redis.call('PTTL', KEYS[2])
  if left >= 0 and left < tonumber(ARGV[2]) then
    redis.call('PEXPIRE', KEYS[2], ARGV[2])
  end
end
return redis.call('PEXPIRE', KEYS[1], ARGV[2])
