-- KEYS[1] the record. ARGV: lease record, lease ms, '1' if a record may be replaced, what it begins
-- with, era, mark of the last invalidation of everything.
-- Answers {0}: granted; {1, ms}: held by another; {2, record}: there is something else.
local held = redis.pcall('GET', KEYS[1])
if type(held) == 'string' then
  if #held == 104 and string.sub(held, 1, 4) == 'TG\1\3' then
    local era, mark = struct.unpack('<I8I8', held, 73)
    if era == tonumber(ARGV[5]) and mark >= tonumber(ARGV[6]) then
      redis.call('SETRANGE', KEYS[1], 20, '\1')
      local left = redis.call('PTTL', KEYS[1])
      if left < 0 then
        redis.call('PEXPIRE', KEYS[1], ARGV[2])
        left = tonumber(ARGV[2])
      end
      return {1, left}
    end
    -- Its load began before everything was invalidated: nobody would take its value.
  elseif ARGV[3] ~= '1' or string.sub(held, 1, #ARGV[4]) ~= ARGV[4] then
    return {2, held}
  end
end
-- Nothing there, or what may be replaced, or a key of another type, which is no record of ours.
redis.call('SET', KEYS[1], ARGV[1], 'PX', ARGV[2])
return {0}
