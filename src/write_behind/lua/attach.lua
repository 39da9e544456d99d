-- KEYS[1] the state of partition 0. ARGV: into how many partitions the caller divides keys.
-- Answers how many it is.
redis.call('HSETNX', KEYS[1], 'partitions', ARGV[1])
return redis.call('HGET', KEYS[1], 'partitions')
