-- KEYS[1] the stream, KEYS[2] the dead letters. ARGV: id of the letter, how long the stream may be,
-- channel, message.
-- Answers {0, id}: accepted again; {1, length}: full; {2}: there is no such letter.
local found = redis.call('XRANGE', KEYS[2], ARGV[1], ARGV[1])[1]
if not found then
  return {2}
end
local length = redis.call('XLEN', KEYS[1])
if length >= tonumber(ARGV[2]) then
  return {1, length}
end
-- After id, error and attempts come the fields of the entry.
local fields, was = found[2], found[2][2]
local entry = {}
for at = 7, #fields, 2 do
  if fields[at] == 'was' then
    was = fields[at + 1]
  else
    entry[#entry + 1] = fields[at]
    entry[#entry + 1] = fields[at + 1]
  end
end
entry[#entry + 1] = 'was'
entry[#entry + 1] = was
local id = redis.call('XADD', KEYS[1], '*', unpack(entry))
redis.call('XDEL', KEYS[2], ARGV[1])
if length == 0 then
  redis.pcall('PUBLISH', ARGV[3], ARGV[4])
end
return {0, id}
