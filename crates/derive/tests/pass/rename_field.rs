use tidegate_derive::CacheKey;

#[derive(Clone, PartialEq, Eq, Hash, CacheKey)]
struct Report {
    // The name of a field is not part of the key.
    team: u64,
}

fn main() {}
