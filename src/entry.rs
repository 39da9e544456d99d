//! What a look-up answers about an entry.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use crate::erased::{self, Erased};

/// A value with what is known about it: see [`Cache::get_entry`](crate::Cache::get_entry) and
/// [`Cache::peek`](crate::Cache::peek).
#[derive(Debug)]
pub struct Entry<V: ?Sized> {
    pub(crate) value: Arc<V>,
    pub(crate) source: Source,
    pub(crate) age: Duration,
    pub(crate) freshness: Freshness,
    pub(crate) fresh_until: Instant,
    pub(crate) provenance: Provenance,
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

impl<V: ?Sized> Clone for Entry<V> {
    fn clone(&self) -> Self {
        Self {
            value: Arc::clone(&self.value),
            source: self.source,
            age: self.age,
            freshness: self.freshness,
            fresh_until: self.fresh_until,
            provenance: self.provenance,
        }
    }
}

/// An entry without the type of its value.
pub(crate) type AnyEntry = Entry<Erased>;

impl AnyEntry {
    /// The same entry with the type of its value.
    pub(crate) fn typed<V: Send + Sync + 'static>(self) -> Option<Entry<V>> {
        Some(Entry {
            value: erased::typed(self.value)?,
            source: self.source,
            age: self.age,
            freshness: self.freshness,
            fresh_until: self.fresh_until,
            provenance: self.provenance,
        })
    }
}

/// How an answer came about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Provenance {
    /// A tier had it.
    FromTier,
    /// It was loaded. `stored`: in a tier, too.
    Forwarded { why: ForwardReason, stored: bool },
}

/// Why a load was begun, in the words of RFC 9211.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ForwardReason {
    /// No tier had anything.
    Miss,
    /// There was an entry, past its TTL or about to be.
    Stale,
    /// The caller asked for a load.
    Request,
}

impl Provenance {
    /// A tier keeps what was loaded.
    pub(crate) fn store(&mut self) {
        if let Self::Forwarded { stored, .. } = self {
            *stored = true;
        }
    }
}

impl ForwardReason {
    pub(crate) fn because(asked_for: bool, has_previous: bool) -> Self {
        match (asked_for, has_previous) {
            (true, _) => Self::Request,
            (false, true) => Self::Stale,
            (false, false) => Self::Miss,
        }
    }

    pub(crate) fn word(self) -> &'static str {
        match self {
            Self::Miss => "miss",
            Self::Stale => "stale",
            Self::Request => "request",
        }
    }
}

/// What one look-up may be answered: see [`Cache::get_with`](crate::Cache::get_with).
///
/// ```
/// use tidegate::Read;
///
/// let usual = Read::new(); // what `get` does
/// let strict = Read::fresh(); // nothing past its TTL; waits for a load, and gets its error
/// let newest = Read::fresh().skip_l1(); // and asks the shared tier, whatever L1 holds
/// # let _ = (usual, strict, newest);
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[must_use = "it is a parameter of `get_with`"]
pub struct Read {
    pub(crate) fresh: bool,
    pub(crate) skip_l1: bool,
}

impl Read {
    /// As [`get`](crate::Cache::get): stale answers where the settings allow them.
    pub const fn new() -> Self {
        Self {
            fresh: false,
            skip_l1: false,
        }
    }

    /// Nothing that is past its TTL, whatever the settings say: waits for a load where there is
    /// nothing fresh, and gets its error where it fails. It joins loads as every look-up does.
    pub const fn fresh() -> Self {
        Self {
            fresh: true,
            skip_l1: false,
        }
    }

    /// Leaves L1 aside: the shared tier is asked (or, without one, the loader) after this call began,
    /// and L1 keeps what comes of it. The answer misses no invalidation that had returned anywhere
    /// before, apart from what a fail-over of Redis can lose. What was under way before the call is
    /// waited for, not joined; it coalesces with such look-ups that began after it. A hit in the shared
    /// tier is two commands then, for what was invalidated as a whole is asked for, too.
    pub const fn skip_l1(mut self) -> Self {
        self.skip_l1 = true;
        self
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
///
/// ```
/// use tidegate::{Entry, Freshness};
///
/// /// What an HTTP handler may say of it.
/// fn cache_control<V>(entry: &Entry<V>) -> &'static str {
///     match entry.freshness() {
///         Freshness::Fresh => "max-age=60",
///         _ => "no-store", // stale: let nobody keep it
///     }
/// }
/// # let _ = cache_control::<u8>;
/// ```
#[non_exhaustive]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Freshness {
    /// Within its TTL.
    Fresh,
    /// Past its TTL, answered because a refresh may take its time: within
    /// [`stale_while_revalidate`](crate::CacheBuilder::stale_while_revalidate), or because the load takes
    /// longer than [`load_soft_timeout`](crate::CacheBuilder::load_soft_timeout).
    Stale,
    /// Past its TTL, answered because the load failed, within
    /// [`stale_if_error`](crate::CacheBuilder::stale_if_error).
    StaleOnError,
}
