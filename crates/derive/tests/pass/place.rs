use tidegate_derive::CacheKey;

#[derive(Clone, PartialEq, Eq, Hash, CacheKey)]
enum Page {
    // Here, names alone.
    Start,
}

fn main() {}
