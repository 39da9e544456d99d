-- KEYS[1] the record. KEYS[2] the claim to refresh it. ARGV: new state, channel, message. A lease
-- and the claim are dropped, because their loads may have begun before. A hold-off stays.
local head = redis.pcall('GETRANGE', KEYS[1], 0, 3)
if head == 'TG\1\1' or head == 'TG\1\2' then
  redis.call('SETRANGE', KEYS[1], 20, ARGV[1])
elseif head ~= 'TG\1\5' then
  redis.call('DEL', KEYS[1])
end
redis.call('DEL', KEYS[2])
redis.call('PUBLISH', ARGV[2], ARGV[3])
return 1
