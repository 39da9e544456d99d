//! The tier in this process. The only file that names moka.
//!
//! moka is used as a bounded map and nothing else. Its own loading stores a value that was loaded
//! before an invalidation that has already returned; its clock cannot be paused; its per-entry
//! expiry costs a quarter of a hit. So entries carry their own deadline and their own stamp, and
//! both are checked when an entry is read.

use std::borrow::Borrow;
use std::hash::Hash;
use std::sync::Arc;
use std::time::Duration;

use moka::sync::Cache as Map;
use tokio::time::Instant;

use crate::engine::fence::Stamp;
use crate::engine::marks::Tags;
use crate::entry::{Entry, Freshness, Source, Way};
use crate::life::Life;

pub(crate) type Weigher<K, V> = Arc<dyn Fn(&K, &V) -> u32 + Send + Sync>;

/// What is known of an entry, apart from its value.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Meta {
    /// When it began to be read: what it misses is not older.
    pub(crate) begun: Instant,
    /// When it was stored here, and how old it was then.
    pub(crate) stored: Instant,
    pub(crate) age: Duration,
    pub(crate) life: Life,
    /// Until then a hit answers and does nothing else.
    pub(crate) calm_until: Instant,
    /// L1 answers nothing from this moment on, whatever its life.
    pub(crate) bound: Instant,
    /// Which version of the value it is.
    pub(crate) print: u64,
    pub(crate) stamp: Stamp,
}

impl Meta {
    pub(crate) fn age_at(&self, now: Instant) -> Duration {
        self.age + now.saturating_duration_since(self.stored)
    }

    /// When its load ended, wherever that was.
    pub(crate) fn born(&self) -> Instant {
        before(self.stored, self.age)
    }
}

#[derive(Debug)]
struct Slot<T> {
    value: T,
    meta: Meta,
    tags: Option<Tags>,
}

impl<T: Clone> Clone for Slot<T> {
    fn clone(&self) -> Self {
        Self {
            value: self.value.clone(),
            meta: self.meta,
            tags: self.tags.clone(),
        }
    }
}

/// An answer on its way to a caller: a value or an absence, and where it comes from.
#[derive(Debug)]
pub(crate) struct Answer<V> {
    pub(crate) value: Option<Arc<V>>,
    pub(crate) source: Source,
    /// How old it was at `at`.
    pub(crate) age: Duration,
    pub(crate) at: Instant,
    pub(crate) fresh_until: Instant,
    pub(crate) freshness: Freshness,
    pub(crate) way: Way,
    pub(crate) tags: Option<Tags>,
}

impl<V> Answer<V> {
    /// As it is told to callers; `None` is an absence.
    pub(crate) fn into_entry(self) -> Option<Entry<V>> {
        let (source, freshness) = (self.source, self.freshness);
        let (fresh_until, way) = (self.fresh_until, self.way);
        let age = self.age + self.at.elapsed();
        self.value.map(|value| Entry {
            value,
            source,
            age,
            freshness,
            fresh_until,
            way,
        })
    }

    /// When its load ended, wherever that was.
    pub(crate) fn born(&self) -> Instant {
        before(self.at, self.age)
    }

    /// Whether none of its tags was invalidated since its load began.
    pub(crate) fn tags_hold(&self) -> bool {
        self.tags.as_ref().is_none_or(Tags::hold)
    }
}

/// So long before, or as early as this clock can tell.
fn before(at: Instant, age: Duration) -> Instant {
    at.checked_sub(age).unwrap_or(at)
}

impl<V> Clone for Answer<V> {
    fn clone(&self) -> Self {
        Self {
            value: self.value.clone(),
            source: self.source,
            age: self.age,
            at: self.at,
            fresh_until: self.fresh_until,
            freshness: self.freshness,
            way: self.way,
            tags: self.tags.clone(),
        }
    }
}

/// Values and absences, each in a map of its own, so that a flood of absent keys evicts no value.
pub(crate) struct L1<K, V> {
    found: Option<Map<K, Slot<Arc<V>>>>,
    missing: Option<Map<K, Slot<()>>>,
}

impl<K, V> L1<K, V>
where
    K: Clone + Hash + Eq + Send + Sync + 'static,
    V: Send + Sync + 'static,
{
    pub(crate) fn new(capacity: u64, missing: u64, weigher: Option<Weigher<K, V>>) -> Self {
        let found = (capacity > 0).then(|| {
            let map = Map::builder().max_capacity(capacity);
            match weigher {
                Some(weigh) => map.weigher(move |key, slot: &Slot<Arc<V>>| weigh(key, &slot.value)),
                None => map,
            }
            .build()
        });
        let missing = (capacity > 0 && missing > 0).then(|| Map::new(missing));
        Self { found, missing }
    }

    /// What is stored under a key, whether it may be answered or not.
    pub(crate) fn get<Q>(&self, key: &Q, now: Instant) -> Option<(Answer<V>, Meta)>
    where
        K: Borrow<Q>,
        Q: Hash + Eq + ?Sized,
    {
        let (value, meta, tags) = match self.found.as_ref()?.get(key) {
            Some(slot) => (Some(slot.value), slot.meta, slot.tags),
            None => {
                let slot = self.missing.as_ref()?.get(key)?;
                (None, slot.meta, slot.tags)
            }
        };
        Some((
            Answer {
                value,
                source: Source::L1,
                age: meta.age_at(now),
                at: now,
                fresh_until: meta.life.fresh_until,
                freshness: meta.life.freshness(now),
                way: Way::Found,
                tags,
            },
            meta,
        ))
    }

    /// Stores an answer, if there is a place for its kind. The caller holds the lock of the key's shard, so that nothing comes
    /// between its check of the fence and this.
    pub(crate) fn store(&self, key: K, answer: &Answer<V>, meta: Meta) -> bool {
        let tags = answer.tags.clone();
        match &answer.value {
            Some(value) => {
                if let Some(missing) = &self.missing {
                    missing.invalidate(&key);
                }
                let value = Arc::clone(value);
                let found = self.found.as_ref();
                found.map(|found| found.insert(key, Slot { value, meta, tags }))
            }
            None => {
                if let Some(found) = &self.found {
                    found.invalidate(&key);
                }
                let (value, missing) = ((), self.missing.as_ref());
                missing.map(|missing| missing.insert(key, Slot { value, meta, tags }))
            }
        }
        .is_some()
    }

    /// Changes what is known of an entry, if it is there. The caller holds the lock of the key's shard.
    pub(crate) fn amend(&self, key: &K, amend: impl FnOnce(&mut Meta)) {
        if let Some(found) = &self.found {
            if let Some(mut slot) = found.get(key) {
                amend(&mut slot.meta);
                return found.insert(key.clone(), slot);
            }
        }
        if let Some(missing) = &self.missing {
            if let Some(mut slot) = missing.get(key) {
                amend(&mut slot.meta);
                missing.insert(key.clone(), slot);
            }
        }
    }

    /// How many there are, roughly: what was stored a moment ago may be missing.
    #[cfg(feature = "metrics")]
    pub(crate) fn entries(&self) -> u64 {
        let found = self.found.as_ref().map_or(0, Map::entry_count);
        found + self.missing.as_ref().map_or(0, Map::entry_count)
    }

    pub(crate) fn remove(&self, key: &K) {
        if let Some(found) = &self.found {
            found.invalidate(key);
        }
        if let Some(missing) = &self.missing {
            missing.invalidate(key);
        }
    }
}
