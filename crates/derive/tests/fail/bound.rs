use tidegate_derive::CacheKey;

#[derive(Clone, PartialEq, Eq, Hash, CacheKey)]
#[cache_key(bound = "T: ==")]
struct Id<T>(T);

fn main() {}
