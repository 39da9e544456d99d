-- KEYS[1] the record. KEYS[2] the claim to refresh it. ARGV: head and state that the record must
-- still have, head of the claim, new record, or its header alone, or '', ms, '1' if it is the
-- header alone, channel, message. Gives up the claim, if it is still there. Answers 1: stored, or
-- removed if there is nothing to store; 0: the record was changed meanwhile, nothing was stored.
local claim = redis.pcall('GETRANGE', KEYS[2], 0, 20)
local waited = false
if type(claim) == 'string' and string.sub(claim, 1, 20) == ARGV[2] then
  waited = string.byte(claim, 21) ~= 0
  redis.call('DEL', KEYS[2])
end
local seen = redis.pcall('GETRANGE', KEYS[1], 0, 35)
local stored = 0
if type(seen) == 'string' and seen == ARGV[1] then
  if ARGV[3] == '' then
    stored = redis.call('DEL', KEYS[1])
  elseif ARGV[5] == '1' then
    redis.call('SETRANGE', KEYS[1], 0, ARGV[3])
    stored = redis.call('PEXPIRE', KEYS[1], ARGV[4])
  else
    stored = redis.pcall('SET', KEYS[1], ARGV[3], 'PX', ARGV[4])
    if not stored.err then
      stored = 1
    end
  end
end
if waited then
  redis.pcall('PUBLISH', ARGV[6], ARGV[7])
end
return stored
