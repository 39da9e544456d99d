-- KEYS[1] the stream, KEYS[2] the state. ARGV: partitions, how long the stream may be, the record,
-- channel, message. Answers {0, id}: accepted; {1, length}: full; {2, partitions}: others have this
-- number of partitions.
redis.call('HSETNX', KEYS[2], 'partitions', ARGV[1])
local partitions = redis.call('HGET', KEYS[2], 'partitions')
if partitions ~= ARGV[1] then
  return {2, partitions}
end
-- Applied entries are deleted, so the length is the number of unapplied ones.
local length = redis.call('XLEN', KEYS[1])
if length >= tonumber(ARGV[2]) then
  return {1, length}
end
local id = redis.call('XADD', KEYS[1], '*', 'w', ARGV[3])
if length == 0 then
  -- A busy worker reads again anyway. If the message is lost, an idle one reads a third of a lease
  -- later.
  redis.pcall('PUBLISH', ARGV[4], ARGV[5])
end
return {0, id}
