use tidegate_derive::CacheKey;

#[derive(Clone, PartialEq, Eq, Hash, CacheKey)]
#[cache_key(crate = "not a path")]
struct TeamId(u64);

fn main() {}
