use tidegate_derive::CacheKey;

#[derive(Clone, PartialEq, Eq, Hash, CacheKey)]
#[cache_key(rename = "Pages")]
enum Page {
    Start,
}

fn main() {}
