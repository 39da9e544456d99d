use tidegate::CacheKey;

#[derive(Clone, PartialEq, Eq, Hash, CacheKey)]
struct UserId(u64);

mod inner {
    use super::CacheKey;

    #[derive(Clone, PartialEq, Eq, Hash, CacheKey)]
    #[cache_key(crate = "tidegate")]
    pub struct TeamId(u64);
}

fn main() {}
