use tidegate_derive::CacheKey;

#[derive(Clone, PartialEq, Eq, Hash, CacheKey)]
enum Page {
    #[cache_key(rename = "1")]
    Start,
}

fn main() {}
