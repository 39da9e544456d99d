use tidegate_derive::CacheKey;

#[derive(Clone, PartialEq, Eq, Hash, CacheKey)]
enum Page {
    #[cache_key(skip)] Start, #[cache_key(nothing)] End,
    Team,
}

fn main() {}
