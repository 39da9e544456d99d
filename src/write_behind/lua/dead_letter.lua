-- KEYS[1] the stream, KEYS[2] the lease, KEYS[3] the dead letters. ARGV: token, lease ms, id,
-- error, attempts, how many dead letters are kept. Answers {0}: the lease is not the caller's,
-- nothing was done; {1, dropped}.
if redis.call('GET', KEYS[2]) ~= ARGV[1] then
  return {0}
end
redis.call('PEXPIRE', KEYS[2], ARGV[2])
local letter = {'id', ARGV[3], 'error', ARGV[4], 'attempts', ARGV[5]}
local found = redis.call('XRANGE', KEYS[1], ARGV[3], ARGV[3])[1]
local fields = found and found[2] or {}
-- Foreign entries may have more fields than a command of a script can have.
for at = 1, math.min(#fields, 200) do
  letter[#letter + 1] = fields[at]
end
local dropped = redis.call('XLEN', KEYS[3]) + 1 - tonumber(ARGV[6])
redis.call('XADD', KEYS[3], 'MAXLEN', ARGV[6], '*', unpack(letter))
redis.call('XACK', KEYS[1], 'tidegate', ARGV[3])
redis.call('XDEL', KEYS[1], ARGV[3])
return {1, math.max(dropped, 0)}
