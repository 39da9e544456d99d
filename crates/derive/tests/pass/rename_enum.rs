use tidegate_derive::CacheKey;

#[derive(Clone, PartialEq, Eq, Hash, CacheKey)]
// Its name is not written.
enum Page {
    Start,
}

fn main() {}
