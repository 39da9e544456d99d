-- KEYS[1] the lease, KEYS[2] the state. ARGV: token, lease ms, partitions.
-- Answers {0, epoch, failed, failures, isolate}: granted; {1, ms}: held by another;
-- {2, partitions}: others have this number of partitions.
local partitions = redis.call('HGET', KEYS[2], 'partitions')
if partitions and partitions ~= ARGV[3] then
  return {2, partitions}
end
local held = redis.call('GET', KEYS[1])
if held and held ~= ARGV[1] then
  local left = redis.call('PTTL', KEYS[1])
  if left < 0 then
    redis.call('PEXPIRE', KEYS[1], ARGV[2])
    left = tonumber(ARGV[2])
  end
  return {1, left}
end
redis.call('SET', KEYS[1], ARGV[1], 'PX', ARGV[2])
-- The epoch is a time, so that it grows even after a flush.
local time = redis.call('TIME')
local now = tonumber(time[1]) * 1000 + math.floor(tonumber(time[2]) / 1000)
local last = tonumber(redis.call('HGET', KEYS[2], 'epoch') or 0) or 0
local epoch = string.format('%.0f', math.max(last + 1, now))
redis.call('HSET', KEYS[2], 'partitions', ARGV[3], 'epoch', epoch)
local head = redis.call('HMGET', KEYS[2], 'failed', 'failures', 'isolate')
return {0, epoch, head[1] or '', head[2] or '0', head[3] or ''}
