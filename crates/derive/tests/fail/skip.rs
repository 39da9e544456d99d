use tidegate_derive::CacheKey;

#[derive(Clone, PartialEq, Eq, Hash, CacheKey)]
struct Report {
    team: u64,
    #[cache_key(skip)]
    month: String,
}

fn main() {}
