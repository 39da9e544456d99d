use tidegate_derive::CacheKey;

#[derive(Clone, PartialEq, Eq, Hash, CacheKey)]
enum Page {
    Team(u64),
    #[cache_key(rename = "Team")]
    Group(u64, u64),
}

fn main() {}
