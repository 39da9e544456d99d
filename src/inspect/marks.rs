//! The marks of a cache, as they stand in Redis.

/// The marks of a cache: what was invalidated as a whole, and in which era.
#[non_exhaustive]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Marks {
    /// Random. It changes when the marks are lost; then all earlier records are dead.
    pub era: u64,
    /// The last mark. Each invalidation of a tag or of everything raises it by one.
    pub mark: u64,
    /// The mark of the last invalidation of everything; zero for none.
    pub all: u64,
    /// The mark of the last invalidation of a tag; zero for none since `all`.
    pub tagged: u64,
    /// The marks of tags up to this one were forgotten: a record with a tag and an older load is
    /// dead.
    pub floor: u64,
}

impl Marks {
    /// Parses the value of [`Names::marks`](super::Names::marks). `None`: it is not ours.
    pub fn parse(bytes: &[u8]) -> Option<Self> {
        let text = std::str::from_utf8(bytes).ok()?;
        let mut numbers = text.split(' ').map(str::parse);
        let mut next = || numbers.next()?.ok();
        let parsed = Self {
            era: next()?,
            mark: next()?,
            all: next()?,
            tagged: next()?,
            floor: next()?,
        };
        next().is_none().then_some(parsed)
    }
}
