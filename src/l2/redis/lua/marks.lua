-- KEYS[1] the marks of a cache: 'era mark all tagged floor' in decimal. KEYS[2] its tags: a sorted
-- set of tags by their marks, made when a tag is invalidated, with the era as member 'era'. ARGV:
-- what to invalidate ('', 'all' or a tag), an era in case there is none, the era and mark that the
-- caller knows, ms, channel or '', message, then tags to look up. Answers {era, mark, all, latest
-- mark of the tags}, and publishes the first three on the channel.
local marks, tags = KEYS[1], KEYS[2]
-- Half of what a Lua number holds exactly. No cache counts that far: a larger number is not ours.
local top = 4503599627370496
local function text(number)
  return string.format('%.0f', number)
end
local function score(member)
  return tonumber(redis.call('ZSCORE', tags, member) or 0)
end
local held = redis.pcall('GETRANGE', marks, 0, -1)
local era, mark, all, tagged, floor
if type(held) == 'string' then
  era, mark, all, tagged, floor = string.match(held, '^(%d+) (%d+) (%d+) (%d+) (%d+)$')
end
if era then
  era, mark, all = tonumber(era), tonumber(mark), tonumber(all)
  tagged, floor = tonumber(tagged), tonumber(floor)
  mark = math.max(mark, all, tagged, floor)
  if math.max(era, mark) >= top or (era == tonumber(ARGV[3]) and tonumber(ARGV[4]) >= top) then
    era = nil
  end
end
if not era then
  -- The marks were never stored, or flushed, or evicted, or they are not ours.
  era, mark, all, tagged, floor = tonumber(ARGV[2]), 0, 0, 0, 0
  redis.call('DEL', tags)
end
if era == tonumber(ARGV[3]) and mark < tonumber(ARGV[4]) then
  -- A fail-over lost marks. It is unknown which.
  mark = tonumber(ARGV[4]) + 1
  all = mark
end
if tagged > 0 then
  local of = redis.pcall('ZSCORE', tags, 'era')
  if type(of) ~= 'string' or -tonumber(of) ~= era then
    -- The tags alone were lost.
    redis.call('DEL', tags)
    mark, tagged = mark + 1, 0
    all = mark
  end
end
if ARGV[1] ~= '' then
  mark = mark + 1
  if ARGV[1] == 'all' then
    all, tagged = mark, 0
    redis.call('UNLINK', tags)
  else
    tagged = mark
    redis.call('ZADD', tags, text(-era), 'era', text(mark), ARGV[1])
    if redis.call('ZCARD', tags) > 100001 then
      -- The oldest are removed. A record with a tag and an older load counts as dead.
      local oldest = redis.call('ZRANGE', tags, 1000, 1000, 'WITHSCORES')[2]
      redis.call('ZREMRANGEBYSCORE', tags, 0, oldest)
      floor = tonumber(oldest)
    end
  end
end
local now = table.concat({text(era), text(mark), text(all), text(tagged), text(floor)}, ' ')
if now ~= held or redis.call('PTTL', marks) < tonumber(ARGV[5]) / 2 then
  redis.call('SET', marks, now, 'PX', ARGV[5])
end
if tagged > 0 and redis.call('PTTL', tags) < tonumber(ARGV[5]) / 2 then
  redis.call('PEXPIRE', tags, ARGV[5])
end
local latest = 0
if #ARGV > 7 then
  latest = floor
  if tagged > 0 then
    for at = 8, #ARGV do
      latest = math.max(latest, score(ARGV[at]))
    end
  end
end
if ARGV[6] ~= '' then
  redis.call('PUBLISH', ARGV[6], ARGV[7] .. struct.pack('<I8I8I8', era, mark, all))
end
return {text(era), text(mark), text(all), text(latest)}
