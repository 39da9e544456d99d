use tidegate_derive::CacheKey;

#[derive(Clone, PartialEq, Eq, Hash, CacheKey)]
// The name of an enum is not part of the key.
enum Page {
    Start,
}

fn main() {}
