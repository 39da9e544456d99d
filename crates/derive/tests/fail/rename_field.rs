use tidegate_derive::CacheKey;

#[derive(Clone, PartialEq, Eq, Hash, CacheKey)]
struct Report {
    #[cache_key(rename = "group")]
    team: u64,
}

fn main() {}
