-- Tries every command that the other scripts run, so that a missing permission shows early.
-- KEYS[1] a key that is never stored: without it, each command does nothing. ARGV: channel.
-- Answers {command, error, …} for the commands that failed.
local refused = {}
local function try(command, ...)
  local reply = redis.pcall(command, ...)
  if type(reply) == 'table' and reply.err then
    table.insert(refused, command)
    table.insert(refused, reply.err)
  end
end
local key = KEYS[1]
try('GET', key)
try('MGET', key)
try('GETRANGE', key, 0, 0)
try('SETRANGE', key, 0, '')
try('SET', key, '', 'XX', 'PX', 1)
try('DEL', key)
try('UNLINK', key)
try('PTTL', key)
try('PEXPIRE', key, 1)
try('ZADD', key, 'XX', 0, '')
try('ZCARD', key)
try('ZRANGE', key, 0, 0)
try('ZREMRANGEBYSCORE', key, 0, 0)
try('ZSCORE', key, '')
try('PUBLISH', ARGV[1], '')
return refused
