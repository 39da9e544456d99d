-- KEYS[1] the record. KEYS[2] the claim to refresh it. ARGV: new record, ms, channel, message, '1'
-- if it has a version. Answers 1: stored; 2: the stored entry has a later version, nothing was
-- stored.
if ARGV[5] == '1' then
  local held = redis.pcall('GETRANGE', KEYS[1], 0, 103)
  if type(held) == 'string' and #held == 104
      and (string.sub(held, 1, 4) == 'TG\1\1' or string.sub(held, 1, 4) == 'TG\1\2') then
    -- Eight bytes, the highest first: a Lua number cannot hold the version.
    for at = 89, 96 do
      local theirs, ours = string.byte(held, at), string.byte(ARGV[1], at)
      if theirs > ours then
        return 2
      elseif theirs < ours then
        break
      end
    end
  end
end
local stored = redis.pcall('SET', KEYS[1], ARGV[1], 'PX', ARGV[2])
if stored.err then
  -- The old value must not stay.
  redis.call('DEL', KEYS[1])
end
redis.call('DEL', KEYS[2])
redis.call('PUBLISH', ARGV[3], ARGV[4])
if stored.err then
  return stored
end
return 1
