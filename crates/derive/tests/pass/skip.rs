use tidegate_derive::CacheKey;

#[derive(Clone, PartialEq, Eq, Hash, CacheKey)]
struct Report {
    team: u64,
    // The month is part of the key.
    month: String,
}

fn main() {}
