-- KEYS[1] the lease, KEYS[2] the state. ARGV: token, lease ms, id of the entry that failed, how
-- often, up to which id entries are tried one by one. Answers 0: the lease is not the caller's,
-- nothing was done; 1.
if redis.call('GET', KEYS[1]) ~= ARGV[1] then
  return 0
end
redis.call('PEXPIRE', KEYS[1], ARGV[2])
redis.call('HSET', KEYS[2], 'failed', ARGV[3], 'failures', ARGV[4], 'isolate', ARGV[5])
return 1
