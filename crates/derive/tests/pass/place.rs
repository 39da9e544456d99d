use tidegate_derive::CacheKey;

#[derive(Clone, PartialEq, Eq, Hash, CacheKey)]
enum Page {
    // A variant accepts only `rename`.
    Start,
}

fn main() {}
