//! The answer of the engine to a look-up: a value or an absence on its way to a caller.

use std::time::Duration;

use tokio::time::Instant;

use crate::coherence::watermarks::Tags;
use crate::entry::{Entry, Freshness, Provenance, Source};
use crate::erased::{AnyValue, Erased};

/// A value or an absence, with its age and the tier that it comes from.
#[derive(Clone, Debug)]
pub(crate) struct Answer {
    pub(crate) value: Option<AnyValue>,
    pub(crate) source: Source,
    /// How old the value was at the moment `at`.
    pub(crate) age: Duration,
    /// When the answer was made.
    pub(crate) at: Instant,
    pub(crate) fresh_until: Instant,
    pub(crate) freshness: Freshness,
    pub(crate) provenance: Provenance,
    pub(crate) tags: Option<Tags>,
}

impl Answer {
    /// The entry that a caller gets. `None` is an absence.
    pub(crate) fn into_entry(self) -> Option<Entry<Erased>> {
        let (source, freshness) = (self.source, self.freshness);
        let (fresh_until, provenance) = (self.fresh_until, self.provenance);
        let age = self.age + self.at.elapsed();
        self.value.map(|value| Entry {
            value,
            source,
            age,
            freshness,
            fresh_until,
            provenance,
        })
    }

    /// When its load ended, in this process or in another one.
    pub(crate) fn loaded_at(&self) -> Instant {
        before(self.at, self.age)
    }

    /// Whether none of its tags was invalidated since its load began.
    pub(crate) fn tags_hold(&self) -> bool {
        self.tags.as_ref().is_none_or(Tags::hold)
    }
}

/// The moment `age` before `at`. If this clock has no such moment: `at`.
pub(crate) fn before(at: Instant, age: Duration) -> Instant {
    at.checked_sub(age).unwrap_or(at)
}
