use tidegate::CacheKey;

#[derive(Clone, PartialEq, Eq, Hash, CacheKey)]
#[cache_key(bound = "T: ==")]
struct Id<T>(T);

fn main() {}
