//! L1, the tier in this process: entries by the hash of their key. The only file that names moka.
//!
//! moka is used as a bounded map and for nothing else. Its own loading can store a value that was
//! loaded before an invalidation that has already returned; its clock cannot be paused; its
//! per-entry expiry costs a quarter of a hit. So an entry carries its own deadline and its own
//! stamp of the fence, and both are checked when the entry is read.
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

/// The times and the origin of an entry. The fields that a hit looks at come last, beside the value
/// in memory.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub(crate) struct Meta {
    /// When its read or load began. It misses no change that was made before.
    pub(crate) begun: Instant,
    /// When it was stored in L1.
    pub(crate) stored: Instant,
    /// How old it was when it was stored.
    pub(crate) age: Duration,
    /// From this moment on L1 does not answer it, even if its lifetime is longer.
    pub(crate) l1_deadline: Instant,
    /// Identifies the version of the value.
    pub(crate) version_id: u64,
    pub(crate) lifetime: Lifetime,
    /// Before this moment a hit begins no refresh: it answers and does nothing else.
    pub(crate) no_refresh_before: Instant,
    pub(crate) stamp: Stamp,
}

impl Meta {
    /// How old the entry is at this moment.
    pub(crate) fn age_at(&self, now: Instant) -> Duration {
        self.age + now.saturating_duration_since(self.stored)
    }

    /// When its load ended, in this process or in another one.
    pub(crate) fn loaded_at(&self) -> Instant {
        before(self.stored, self.age)
    }
}

/// A stored entry: a key with its value or its absence. `H` is the part with types, a `TypedEntry`.
#[derive(Debug)]
#[repr(C)]
pub(crate) struct Slot<H: ?Sized = dyn Any + Send + Sync> {
    pub(crate) meta: Meta,
    /// In a box: most entries have none.
    tags: Option<Box<Tags>>,
    entry: H,
}

/// The part of an entry that a hit looks at.
pub(crate) struct HitView<'a, V> {
    /// Before this moment the entry's own times ask for nothing but an answer. `None`: they always
    /// ask for more.
    pub(crate) no_refresh_before: Option<Instant>,
    pub(crate) stamp: Stamp,
    pub(crate) value: &'a Option<Arc<V>>,
    tags: &'a Option<Box<Tags>>,
    pub(crate) meta: &'a Meta,
}

impl<V: Send + Sync + 'static> HitView<'_, V> {
    /// Whether none of its tags was invalidated since its load began.
    #[inline]
    pub(crate) fn tags_hold(&self) -> bool {
        self.tags.as_ref().is_none_or(|tags| tags.hold())
    }

    /// The answer of the engine that this entry makes.
    pub(crate) fn answer(&self, now: Instant) -> Answer {
        let value = self.value.clone();
        let value = value.map(|value| value as AnyValue);
        answer_from_l1(value, self.meta, self.tags.as_deref(), now)
    }

    /// The entry that a caller gets. The entry must be fresh; `None` is an absence.
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

/// The answer that an entry of L1 makes.
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

/// The operations for which L1 needs the types of keys and values. [`TypedL1`] has them.
pub(crate) trait TypedEntries: Send + Sync {
    /// A new entry. `None`: the key or the value has the types of another cache.
    fn make(&self, key: &AnyKey, answer: &Answer, meta: Meta) -> Option<Arc<Slot>>;

    /// The same entry with other times.
    fn with_meta(&self, slot: &Slot, meta: Meta) -> Option<Arc<Slot>>;

    /// The value of an entry. `None`: the entry is not this key's. `Some(None)`: an absence.
    fn value(&self, slot: &Slot, key: &AnyKey) -> Option<Option<AnyValue>>;

    /// The part of the capacity that an entry uses.
    fn weight(&self, slot: &Slot) -> u32;

    /// Puts an entry into its hot slot, over the entry that is there.
    fn promote(&self, hash: u64, slot: &Arc<Slot>);

    /// Removes a key's entry from its hot slot.
    fn demote(&self, key: &AnyKey);
}

type Map = moka::sync::Cache<u64, Arc<Slot>, RandomState>;

/// The map of values and the map of absences. They are two, so that a flood of absent keys evicts
/// no value. The hot slots are in front of both.
pub(crate) struct L1 {
    found: Option<Map>,
    missing: Option<Map>,
    /// Whether an absence was ever stored. Until then a look-up skips the map of absences.
    any_missing: AtomicBool,
    typed: Arc<dyn TypedEntries>,
}

impl L1 {
    /// `capacity` is that of the values, `missing` that of the absences. `weighs`: the first is a
    /// sum of weights, not a number of entries.
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

    /// Whether its capacity is zero, so that it keeps nothing.
    pub(crate) fn is_off(&self) -> bool {
        self.found.is_none()
    }

    /// The entry that is stored under a key. The caller decides whether it may be answered.
    pub(crate) fn get(&self, key: &AnyKey, now: Instant) -> Option<(Answer, Meta)> {
        let slot = self.slot(key.l1_hash)?;
        let value = self.typed.value(&slot, key)?;
        let answer = answer_from_l1(value, &slot.meta, slot.tags.as_deref(), now);
        Some((answer, slot.meta))
    }

    /// The entry that is stored under a hash. The caller compares the key.
    pub(crate) fn slot(&self, hash: u64) -> Option<Arc<Slot>> {
        let found = self.found.as_ref()?.get(&hash);
        found.or_else(|| self.missing()?.get(&hash))
    }

    /// The map of absences, if an absence was ever stored.
    fn missing(&self) -> Option<&Map> {
        let missing = self.missing.as_ref();
        missing.filter(|_| self.any_missing.load(Ordering::Acquire))
    }

    /// The same as [`get`](Self::get) for a caller that has looked a moment ago. If nothing is
    /// stored, the map does not count this look-up as another miss of the key.
    pub(crate) fn get_again(&self, key: &AnyKey, now: Instant) -> Option<(Answer, Meta)> {
        self.contains(key.l1_hash)
            .then(|| self.get(key, now))
            .flatten()
    }

    /// Whether an entry is stored under a hash. The map does not count this as a look-up.
    fn contains(&self, hash: u64) -> bool {
        let has = |map: &Map| map.contains_key(&hash);
        self.found.as_ref().is_some_and(has) || self.missing().is_some_and(has)
    }

    /// Puts a key's entry into its hot slot, over the entry that is there. The caller holds the
    /// lock of the key's shard, so that the entry in the hot slot is the one in the map.
    pub(crate) fn promote(&self, key: &AnyKey) {
        if let Some(slot) = self.slot(key.l1_hash) {
            if self.typed.value(&slot, key).is_some() {
                self.typed.promote(key.l1_hash, &slot);
            }
        }
    }

    /// Stores an answer, if its kind is kept at all. The caller holds the lock of the key's shard,
    /// so that nothing happens between its check of the fence and the store.
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

    /// Changes the [`Meta`] of a key's entry, if one is stored. The caller holds the lock of the
    /// key's shard.
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

    /// The number of entries. Entries of the last moments may not be counted yet.
    #[cfg(feature = "metrics")]
    pub(crate) fn entries(&self) -> u64 {
        let found = self.found.as_ref().map_or(0, Map::entry_count);
        found + self.missing.as_ref().map_or(0, Map::entry_count)
    }

    /// Removes an entry from the map alone, as moka does when it needs the room.
    #[cfg(all(test, feature = "bincode"))]
    pub(crate) fn evict_for_tests(&self, key: &AnyKey) {
        if let Some(found) = &self.found {
            found.invalidate(&key.l1_hash);
        }
    }

    /// Removes a key's entry. The caller holds the lock of the key's shard.
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
