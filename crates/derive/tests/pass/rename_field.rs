use tidegate_derive::CacheKey;

#[derive(Clone, PartialEq, Eq, Hash, CacheKey)]
struct Report {
    // Its name is not written.
    team: u64,
}

fn main() {}
