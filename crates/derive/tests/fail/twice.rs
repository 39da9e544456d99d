use tidegate_derive::CacheKey;

#[derive(Clone, PartialEq, Eq, Hash, CacheKey)]
enum Page {
    #[cache_key(rename = "a", rename = "b")]
    Start,
}

fn main() {}
