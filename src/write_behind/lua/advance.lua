-- KEYS[1] the stream, KEYS[2] the lease. ARGV: token, lease ms, how many entries to read, then the
-- ids of the applied entries.
-- Answers {0}: the lease is not the caller's, nothing was done; {1, entries}.
if redis.call('GET', KEYS[2]) ~= ARGV[1] then
  return {0}
end
redis.call('PEXPIRE', KEYS[2], ARGV[2])
if #ARGV > 3 then
  local ids = {}
  for at = 4, #ARGV do
    ids[#ids + 1] = ARGV[at]
  end
  redis.call('XACK', KEYS[1], 'tidegate', unpack(ids))
  redis.call('XDEL', KEYS[1], unpack(ids))
end
local count = tonumber(ARGV[3])
-- XREADGROUP takes zero for no limit.
if count == 0 then
  return {1, {}}
end
local function read(most, from)
  local args = {'XREADGROUP', 'GROUP', 'tidegate', 'worker', 'COUNT', most, 'STREAMS', KEYS[1], from}
  local got = redis.pcall(unpack(args))
  if got and got.err and string.find(got.err, 'NOGROUP', 1, true) then
    -- Applied entries are deleted, so all entries are unapplied.
    redis.call('XGROUP', 'CREATE', KEYS[1], 'tidegate', '0', 'MKSTREAM')
    got = redis.pcall(unpack(args))
  end
  if got and got.err then
    return nil, got
  end
  return got and got[1] and got[1][2] or {}
end
-- Entries that were read and not acknowledged come first: they are older.
local entries, failed = read(count, '0')
if entries and #entries < count then
  local fresh
  fresh, failed = read(count - #entries, '>')
  for _, entry in ipairs(fresh or {}) do
    entries[#entries + 1] = entry
  end
end
return failed or {1, entries}
