-- KEYS[1] the lease. ARGV: token, channel, message. Answers 0: it is not the caller's; 1: given up.
if redis.call('GET', KEYS[1]) ~= ARGV[1] then
  return 0
end
redis.call('DEL', KEYS[1])
redis.pcall('PUBLISH', ARGV[2], ARGV[3])
return 1
