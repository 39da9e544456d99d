use tidegate::CacheKey;

#[derive(Clone, PartialEq, Eq, Hash, CacheKey)]
#[cache_key(bound = "T: CacheKey")]
struct Id<T>(T);

fn main() {}
