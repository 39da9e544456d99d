//! What a look-up answers about an entry.

use std::sync::Arc;
use std::time::Duration;

/// A value with what is known about it: see [`Cache::get_entry`](crate::Cache::get_entry) and
/// [`Cache::peek`](crate::Cache::peek).
#[derive(Debug)]
pub struct Entry<V> {
    pub(crate) value: Arc<V>,
    pub(crate) source: Source,
    pub(crate) age: Duration,
    pub(crate) freshness: Freshness,
}

impl<V> Entry<V> {
    /// The value.
    pub fn value(&self) -> &Arc<V> {
        &self.value
    }

    /// The value, without the rest.
    pub fn into_value(self) -> Arc<V> {
        self.value
    }

    /// Which tier answered.
    pub fn source(&self) -> Source {
        self.source
    }

    /// How long ago the loader answered (or `insert` was called), in whichever process that was.
    pub fn age(&self) -> Duration {
        self.age
    }

    /// Whether the entry was within its TTL when it was answered.
    pub fn freshness(&self) -> Freshness {
        self.freshness
    }
}

impl<V> Clone for Entry<V> {
    fn clone(&self) -> Self {
        Self {
            value: Arc::clone(&self.value),
            source: self.source,
            age: self.age,
            freshness: self.freshness,
        }
    }
}

/// Which tier answered a look-up.
#[non_exhaustive]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Source {
    /// The tier in this process.
    L1,
    /// The shared tier.
    L2,
    /// This call ran the loader.
    Loader,
    /// This call joined a read or a load that another call in this process had begun.
    Coalesced,
}

/// How an entry stands to its TTL.
#[non_exhaustive]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Freshness {
    /// Within its TTL.
    Fresh,
    /// Past its TTL, answered because a refresh may take its time.
    Stale,
    /// Past its TTL, answered because the load failed.
    StaleOnError,
}
