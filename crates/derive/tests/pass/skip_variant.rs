use tidegate_derive::CacheKey;

#[derive(Clone, PartialEq, Eq, Hash, CacheKey)]
enum Page {
    Start,
    #[cache_key(rename = "Group")]
    Team(u64),
}

fn main() {}
