//! `Entry`, the answer of a look-up with its age and its source; `Read`, the conditions of a
//! look-up.

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

    /// How long ago the loader answered or `insert` was called, in this process or in another one.
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
    /// It was loaded. `stored`: a tier keeps it.
    Forwarded { why: ForwardReason, stored: bool },
}

/// Why a load was begun, in the terms of RFC 9211.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ForwardReason {
    /// No tier had an entry.
    Miss,
    /// A tier had an entry that was past its TTL, or soon would be.
    Stale,
    /// The caller asked for a load.
    Request,
}

impl Provenance {
    /// Notes that a tier keeps the loaded value.
    pub(crate) fn store(&mut self) {
        if let Self::Forwarded { stored, .. } = self {
            *stored = true;
        }
    }
}

impl ForwardReason {
    /// `asked_for`: a caller asked for the load. `has_previous`: a tier had an entry.
    pub(crate) fn because(asked_for: bool, has_previous: bool) -> Self {
        match (asked_for, has_previous) {
            (true, _) => Self::Request,
            (false, true) => Self::Stale,
            (false, false) => Self::Miss,
        }
    }

    /// The value of the parameter `fwd`.
    pub(crate) fn word(self) -> &'static str {
        match self {
            Self::Miss => "miss",
            Self::Stale => "stale",
            Self::Request => "request",
        }
    }
}

/// The conditions on the answer of one look-up: see [`Cache::get_with`](crate::Cache::get_with).
///
/// ```
/// use tidegate::Read;
///
/// let usual = Read::new(); // what `get` does
/// let strict = Read::fresh(); // nothing past its TTL; waits for a load, and gets its error
/// let newest = Read::fresh().skip_l1(); // also asks the shared tier, whatever L1 holds
/// # let _ = (usual, strict, newest);
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[must_use = "it is a parameter of `get_with`"]
pub struct Read {
    pub(crate) fresh: bool,
    pub(crate) skip_l1: bool,
}

impl Read {
    /// The conditions of [`get`](crate::Cache::get): stale answers where the settings allow them.
    pub const fn new() -> Self {
        Self {
            fresh: false,
            skip_l1: false,
        }
    }

    /// No answer past its TTL, whatever the settings say. If no tier has a fresh entry, the look-up
    /// waits for a load, and gets its error if it fails. It joins loads as every look-up does.
    pub const fn fresh() -> Self {
        Self {
            fresh: true,
            skip_l1: false,
        }
    }

    /// Skips L1: the shared tier is asked after this call began, or the loader if there is no
    /// shared tier, and L1 keeps the answer. The answer misses no invalidation that had returned in
    /// any process before the call, apart from those that a fail-over of Redis can lose.
    ///
    /// A read or load that was under way before the call is waited for, not joined. The look-up
    /// coalesces with other look-ups of this kind that began after it. A hit in the shared tier
    /// takes two commands instead of one, because tags and invalidations of everything are asked
    /// for too.
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

/// Whether an entry was within its TTL when it was answered.
///
/// ```
/// use tidegate::{Entry, Freshness};
///
/// /// The `Cache-Control` of a response that is made from the entry.
/// fn cache_control<V>(entry: &Entry<V>) -> &'static str {
///     match entry.freshness() {
///         Freshness::Fresh => "max-age=60",
///         _ => "no-store", // stale: no other cache should keep it
///     }
/// }
/// # let _ = cache_control::<u8>;
/// ```
#[non_exhaustive]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Freshness {
    /// Within its TTL.
    Fresh,
    /// Past its TTL. It was answered within
    /// [`stale_while_revalidate`](crate::CacheBuilder::stale_while_revalidate) while a refresh
    /// runs, or because the load takes longer than
    /// [`load_soft_timeout`](crate::CacheBuilder::load_soft_timeout).
    Stale,
    /// Past its TTL. It was answered because the load failed, within
    /// [`stale_if_error`](crate::CacheBuilder::stale_if_error).
    StaleOnError,
}
