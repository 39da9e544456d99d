use tidegate_derive::CacheKey;

#[derive(Clone, PartialEq, Eq, Hash, CacheKey)]
struct Report {
    team: u64,
    // The month, too.
    month: String,
}

fn main() {}
