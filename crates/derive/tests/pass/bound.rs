use tidegate_derive::CacheKey;

#[derive(Clone, PartialEq, Eq, Hash, CacheKey)]
#[cache_key(bound = "T: ::tidegate::CacheKey")]
struct Id<T>(T);

fn main() {}
