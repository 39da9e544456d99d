-- KEYS[1] the record. KEYS[2] its claim: the lease of the process that refreshes it. ARGV: lease
-- record, lease ms, '0' if the key holds nothing, '1' to replace a record, '2' to refresh it, the
-- beginning of that record, era, mark of the last invalidation of everything. Answers {0,
-- failures}: granted; {1, ms}: held by another; {2, record or nil}: the key holds another record,
-- or nothing; {3, ms}: a load failed recently.
local function is_alive(lease)
  -- Else its load began before everything was invalidated, and its value would not be used.
  local era, mark = struct.unpack('<I8I8', lease, 73)
  return era == tonumber(ARGV[5]) and mark >= tonumber(ARGV[6])
end
local function held_by_another(key)
  redis.call('SETRANGE', key, 20, '\1')
  local left = redis.call('PTTL', key)
  if left < 0 then
    redis.call('PEXPIRE', key, ARGV[2])
    left = tonumber(ARGV[2])
  end
  return {1, left}
end
local function is_kind(record, kind)
  return type(record) == 'string' and #record == 104 and string.sub(record, 1, 4) == 'TG\1' .. kind
end
local refresh = ARGV[3] == '2'
local held = redis.pcall('GET', KEYS[1])
if is_kind(held, '\3') then
  if is_alive(held) then
    return held_by_another(KEYS[1])
  elseif refresh then
    return {2, held}
  end
elseif type(held) == 'string' then
  if ARGV[3] == '0' or string.sub(held, 1, #ARGV[4]) ~= ARGV[4] then
    return {2, held}
  end
elseif refresh then
  return {2, false}
end
local claim, failures = nil, 0
if ARGV[3] ~= '1' then
  -- A refresh of a dead record does not hold up this load.
  claim = redis.pcall('GET', KEYS[2])
end
if is_kind(claim, '\3') and is_alive(claim) then
  return held_by_another(KEYS[2])
elseif is_kind(claim, '\4') then
  -- The mark lives for twice the time without attempts, so that failures are counted on.
  local left = redis.call('PTTL', KEYS[2]) - struct.unpack('<I8', claim, 61)
  if left > 0 then
    return {3, left}
  end
  failures = struct.unpack('<I4', claim, 69)
end
if refresh then
  redis.call('SET', KEYS[2], ARGV[1], 'PX', ARGV[2])
  -- The record must live until the fill, which is compared with it.
  local left = redis.call('PTTL', KEYS[1])
  if left >= 0 and left < tonumber(ARGV[2]) then
    redis.call('PEXPIRE', KEYS[1], ARGV[2])
  end
else
  -- The key holds nothing, or a record that may be replaced, or another type, which is not ours.
  redis.call('SET', KEYS[1], ARGV[1], 'PX', ARGV[2])
end
return {0, failures}
