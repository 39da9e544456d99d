//! The tier in this process: entries by the hash of their key. The only file that names moka.
//!
//! moka is used as a bounded map and nothing else. Its own loading stores a value that was loaded
//! before an invalidation that has already returned; its clock cannot be paused; its per-entry
//! expiry costs a quarter of a hit. So entries carry their own deadline and their own stamp, and
//! both are checked when an entry is read.
//!
//! The map does not know the types of keys and values, so that it is compiled once for all caches.
//! Its key is a hash of 64 bits with a random seed. An entry holds the key itself, and
//! [`TypedEntries`] compares it. Two keys with the same hash evict each other; neither is ever
//! answered for the other.

use std::any::Any;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use foldhash::fast::RandomState;
use tokio::time::Instant;

use crate::answer::{Answer, before};
use crate::coherence::fence::Stamp;
use crate::coherence::watermarks::Tags;
use crate::entry::{Entry, Freshness, Provenance, Source};
use crate::erased::{AnyKey, AnyValue};
use crate::lifetime::Lifetime;

mod hot_slots;
mod typed;

pub(crate) use self::hot_slots::SAMPLE;
pub(crate) use self::typed::{TypedL1, Weigher};

/// What is known of an entry, apart from its value. What a hit looks at comes last, beside the
/// value.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub(crate) struct Meta {
    /// When it began to be read: what it misses is not older.
    pub(crate) begun: Instant,
    /// When it was stored here, and how old it was then.
    pub(crate) stored: Instant,
    pub(crate) age: Duration,
    /// L1 answers nothing from this moment on, whatever its life.
    pub(crate) l1_deadline: Instant,
    /// Which version of the value it is.
    pub(crate) version_id: u64,
    pub(crate) lifetime: Lifetime,
    /// Until then a hit answers and does nothing else.
    pub(crate) no_refresh_before: Instant,
    pub(crate) stamp: Stamp,
}

impl Meta {
    pub(crate) fn age_at(&self, now: Instant) -> Duration {
        self.age + now.saturating_duration_since(self.stored)
    }

    /// When its load ended, wherever that was.
    pub(crate) fn loaded_at(&self) -> Instant {
        before(self.stored, self.age)
    }
}

/// An entry: a key with its value or its absence. `H` is the part with types, a `TypedEntry`.
#[derive(Debug)]
#[repr(C)]
pub(crate) struct Slot<H: ?Sized = dyn Any + Send + Sync> {
    pub(crate) meta: Meta,
    /// In a box: most entries have none.
    tags: Option<Box<Tags>>,
    entry: H,
}

/// What a hit looks at.
pub(crate) struct HitView<'a, V> {
    /// Until then there is nothing to do but to answer it, as far as its own times say. `None`: never.
    pub(crate) no_refresh_before: Option<Instant>,
    pub(crate) stamp: Stamp,
    pub(crate) value: &'a Option<Arc<V>>,
    tags: &'a Option<Box<Tags>>,
    /// The rest.
    pub(crate) meta: &'a Meta,
}

impl<V: Send + Sync + 'static> HitView<'_, V> {
    #[inline]
    pub(crate) fn tags_hold(&self) -> bool {
        self.tags.as_ref().is_none_or(|tags| tags.hold())
    }

    pub(crate) fn answer(&self, now: Instant) -> Answer {
        let value = self.value.clone();
        let value = value.map(|value| value as AnyValue);
        answer_from_l1(value, self.meta, self.tags.as_deref(), now)
    }

    /// As it is told to callers, while it is fresh.
    pub(crate) fn entry(&self, now: Instant) -> Option<Entry<V>> {
        let value = self.value.clone()?;
        Some(Entry {
            value,
            source: Source::L1,
            age: self.meta.age_at(now),
            freshness: Freshness::Fresh,
            fresh_until: self.meta.lifetime.fresh_until,
            provenance: Provenance::FromTier,
        })
    }
}

/// The answer of an entry of L1.
fn answer_from_l1(
    value: Option<AnyValue>,
    meta: &Meta,
    tags: Option<&Tags>,
    now: Instant,
) -> Answer {
    Answer {
        value,
        source: Source::L1,
        age: meta.age_at(now),
        at: now,
        fresh_until: meta.lifetime.fresh_until,
        freshness: meta.lifetime.freshness(now),
        provenance: Provenance::FromTier,
        tags: tags.cloned(),
    }
}

/// What L1 asks of the code that knows the types of keys and values: [`TypedL1`].
pub(crate) trait TypedEntries: Send + Sync {
    /// A new entry. `None`: key or value is of another cache.
    fn make(&self, key: &AnyKey, answer: &Answer, meta: Meta) -> Option<Arc<Slot>>;

    /// The same entry with other times.
    fn with_meta(&self, slot: &Slot, meta: Meta) -> Option<Arc<Slot>>;

    /// The value of an entry. `None`: it is not this key's. `Some(None)`: an absence.
    fn value(&self, slot: &Slot, key: &AnyKey) -> Option<Option<AnyValue>>;

    /// What an entry takes of the capacity.
    fn weight(&self, slot: &Slot) -> u32;

    /// Puts an entry into its hot slot, which may hold another one.
    fn promote(&self, hash: u64, slot: &Arc<Slot>);

    /// Takes a key's entry out of its hot slot.
    fn demote(&self, key: &AnyKey);
}

type Map = moka::sync::Cache<u64, Arc<Slot>, RandomState>;

/// Values and absences, each in a map of its own, so that a flood of absent keys evicts no value. In
/// front of both, the entries that are asked for most.
pub(crate) struct L1 {
    found: Option<Map>,
    missing: Option<Map>,
    /// There was an absence: else nobody has to look for one.
    any_missing: AtomicBool,
    typed: Arc<dyn TypedEntries>,
}

impl L1 {
    /// `weighs`: the capacity is not a number of entries.
    pub(crate) fn new(
        capacity: u64,
        missing: u64,
        weighs: bool,
        typed: Arc<dyn TypedEntries>,
    ) -> Self {
        let map = |capacity| moka::sync::Cache::builder().max_capacity(capacity);
        let found = (capacity > 0).then(|| {
            let map = map(capacity);
            let typed = Arc::clone(&typed);
            let map = if weighs {
                map.weigher(move |_, slot: &Arc<Slot>| typed.weight(slot))
            } else {
                map
            };
            map.build_with_hasher(RandomState::default())
        });
        let missing = (capacity > 0 && missing > 0)
            .then(|| map(missing).build_with_hasher(RandomState::default()));
        Self {
            found,
            missing,
            any_missing: AtomicBool::new(false),
            typed,
        }
    }

    /// Its capacity is zero: it keeps nothing.
    pub(crate) fn is_off(&self) -> bool {
        self.found.is_none()
    }

    /// What is stored under a key, whether it may be answered or not.
    pub(crate) fn get(&self, key: &AnyKey, now: Instant) -> Option<(Answer, Meta)> {
        let slot = self.slot(key.l1_hash)?;
        let value = self.typed.value(&slot, key)?;
        let answer = answer_from_l1(value, &slot.meta, slot.tags.as_deref(), now);
        Some((answer, slot.meta))
    }

    /// What is stored under a hash, as it is kept: the caller compares the key.
    pub(crate) fn slot(&self, hash: u64) -> Option<Arc<Slot>> {
        let found = self.found.as_ref()?.get(&hash);
        found.or_else(|| self.missing()?.get(&hash))
    }

    /// The absences, if there ever were some.
    fn missing(&self) -> Option<&Map> {
        let missing = self.missing.as_ref();
        missing.filter(|_| self.any_missing.load(Ordering::Acquire))
    }

    /// The same as [`get`](Self::get), without a word to the policy of the map: for a caller who has
    /// just looked.
    pub(crate) fn get_again(&self, key: &AnyKey, now: Instant) -> Option<(Answer, Meta)> {
        self.contains(key.l1_hash)
            .then(|| self.get(key, now))
            .flatten()
    }

    /// Whether something is stored under a hash. The policy of the map does not hear of it.
    fn contains(&self, hash: u64) -> bool {
        let has = |map: &Map| map.contains_key(&hash);
        self.found.as_ref().is_some_and(has) || self.missing().is_some_and(has)
    }

    /// Puts an entry in front, where another one may be. The caller holds the lock of the key's shard:
    /// what is in front is what is in the map.
    pub(crate) fn promote(&self, key: &AnyKey) {
        if let Some(slot) = self.slot(key.l1_hash) {
            if self.typed.value(&slot, key).is_some() {
                self.typed.promote(key.l1_hash, &slot);
            }
        }
    }

    /// Stores an answer, if there is a place for its kind. The caller holds the lock of the key's
    /// shard, so that nothing comes between its check of the fence and this.
    pub(crate) fn store(&self, key: &AnyKey, answer: &Answer, meta: Meta) -> bool {
        self.typed.demote(key);
        let (into, other) = if answer.value.is_some() {
            (self.found.as_ref(), self.missing())
        } else {
            self.any_missing.store(true, Ordering::Release);
            (self.missing.as_ref(), self.found.as_ref())
        };
        if let Some(other) = other {
            other.invalidate(&key.l1_hash);
        }
        let Some(into) = into else { return false };
        let slot = self.typed.make(key, answer, meta);
        let stored = slot.map(|slot| into.insert(key.l1_hash, slot));
        stored.is_some()
    }

    /// Changes what is known of an entry, if it is there. The caller holds the lock of the key's shard.
    pub(crate) fn amend(&self, key: &AnyKey, amend: impl FnOnce(&mut Meta)) {
        self.typed.demote(key);
        for map in [&self.found, &self.missing].into_iter().flatten() {
            let Some(slot) = map.get(&key.l1_hash) else {
                continue;
            };
            if self.typed.value(&slot, key).is_some() {
                let mut meta = slot.meta;
                amend(&mut meta);
                if let Some(slot) = self.typed.with_meta(&slot, meta) {
                    map.insert(key.l1_hash, slot);
                }
                return;
            }
        }
    }

    /// The number of entries, roughly: what was stored a moment ago may be missing.
    #[cfg(feature = "metrics")]
    pub(crate) fn entries(&self) -> u64 {
        let found = self.found.as_ref().map_or(0, Map::entry_count);
        found + self.missing.as_ref().map_or(0, Map::entry_count)
    }

    /// As moka does when there is no room.
    #[cfg(all(test, feature = "bincode"))]
    pub(crate) fn evict_for_tests(&self, key: &AnyKey) {
        if let Some(found) = &self.found {
            found.invalidate(&key.l1_hash);
        }
    }

    /// The caller holds the lock of the key's shard.
    pub(crate) fn remove(&self, key: &AnyKey) {
        self.typed.demote(key);
        if let Some(found) = &self.found {
            found.invalidate(&key.l1_hash);
        }
        if let Some(missing) = self.missing() {
            missing.invalidate(&key.l1_hash);
        }
    }
}
