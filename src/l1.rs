//! The tier in this process. The only file that names moka.
//!
//! moka is used as a bounded map and nothing else. Its own loading stores a value that was loaded
//! before an invalidation that has already returned; its clock cannot be paused; its per-entry
//! expiry costs a quarter of a hit. So entries carry their own deadline and their own stamp, and
//! both are checked when an entry is read.

use std::borrow::Borrow;
use std::hash::Hash;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use moka::sync::Cache as Map;
use tokio::time::Instant;

use crate::engine::fence::Stamp;
use crate::engine::marks::Tags;
use crate::entry::{Entry, Freshness, Source, Way};
use crate::life::Life;

use self::front::Front;
pub(crate) use self::front::{Hot, SAMPLE};

mod front;

pub(crate) type Weigher<K, V> = Arc<dyn Fn(&K, &V) -> u32 + Send + Sync>;

/// What is known of an entry, apart from its value.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub(crate) struct Meta {
    pub(crate) stamp: Stamp,
    /// Until then a hit answers and does nothing else.
    pub(crate) calm_until: Instant,
    pub(crate) life: Life,
    /// When it began to be read: what it misses is not older.
    pub(crate) begun: Instant,
    /// When it was stored here, and how old it was then.
    pub(crate) stored: Instant,
    pub(crate) age: Duration,
    /// L1 answers nothing from this moment on, whatever its life.
    pub(crate) bound: Instant,
    /// Which version of the value it is.
    pub(crate) print: u64,
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

/// What is kept of a key: a value or an absence. What a hit looks at comes first, and most of it shares a line
/// of the processor's cache.
#[derive(Debug)]
#[repr(C)]
pub(crate) struct Slot<V> {
    value: Option<Arc<V>>,
    pub(crate) meta: Meta,
    tags: Option<Tags>,
}

/// What a hit looks at.
pub(crate) struct Seen<'a, V> {
    /// Until then there is nothing to do but to answer it, as far as its own times say. `None`: never.
    pub(crate) calm_until: Option<Instant>,
    pub(crate) stamp: Stamp,
    pub(crate) value: &'a Option<Arc<V>>,
    tags: &'a Option<Tags>,
    /// The rest.
    pub(crate) slot: &'a Slot<V>,
}

impl<V> Seen<'_, V> {
    pub(crate) fn tags_hold(&self) -> bool {
        self.tags.as_ref().is_none_or(Tags::hold)
    }
}

impl<V> Slot<V> {
    pub(crate) fn seen(&self) -> Seen<'_, V> {
        let Meta {
            calm_until, life, ..
        } = &self.meta;
        Seen {
            calm_until: (!life.expired).then(|| life.fresh_until.min(*calm_until)),
            stamp: self.meta.stamp,
            value: &self.value,
            tags: &self.tags,
            slot: self,
        }
    }

    pub(crate) fn answer(&self, now: Instant) -> Answer<V> {
        Answer {
            value: self.value.clone(),
            source: Source::L1,
            age: self.meta.age_at(now),
            at: now,
            fresh_until: self.meta.life.fresh_until,
            freshness: self.meta.life.freshness(now),
            way: Way::Found,
            tags: self.tags.clone(),
        }
    }

    /// As it is told to callers, while it is fresh.
    pub(crate) fn entry(&self, now: Instant) -> Option<Entry<V>> {
        let value = self.value.clone()?;
        Some(Entry {
            value,
            source: Source::L1,
            age: self.meta.age_at(now),
            freshness: Freshness::Fresh,
            fresh_until: self.meta.life.fresh_until,
            way: Way::Found,
        })
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

type Slots<K, V> = Map<K, Arc<Slot<V>>>;

/// Values and absences, each in a map of its own, so that a flood of absent keys evicts no value. In
/// front of both, the entries that are asked for most.
pub(crate) struct L1<K, V> {
    found: Option<Slots<K, V>>,
    missing: Option<Slots<K, V>>,
    /// There was an absence: else nobody has to look for one.
    any_missing: AtomicBool,
    front: Front<K, V>,
}

impl<K, V> L1<K, V>
where
    K: Clone + Hash + Eq + Send + Sync + 'static,
    V: Send + Sync + 'static,
{
    pub(crate) fn new(capacity: u64, missing: u64, weigher: Option<Weigher<K, V>>) -> Self {
        let entries = match weigher {
            Some(_) if capacity > 0 => u64::MAX,
            _ => capacity,
        };
        let found = (capacity > 0).then(|| {
            let map = Map::builder().max_capacity(capacity);
            match weigher {
                Some(weigh) => map.weigher(move |key, slot: &Arc<Slot<V>>| {
                    slot.value.as_ref().map_or(1, |value| weigh(key, value))
                }),
                None => map,
            }
            .build()
        });
        let missing = (capacity > 0 && missing > 0).then(|| Map::new(missing));
        Self {
            found,
            missing,
            any_missing: AtomicBool::new(false),
            front: Front::new(entries),
        }
    }

    /// What is stored under a key, whether it may be answered or not.
    pub(crate) fn get<Q>(&self, key: &Q, now: Instant) -> Option<(Answer<V>, Meta)>
    where
        K: Borrow<Q>,
        Q: Hash + Eq + ?Sized,
    {
        let slot = self.slot(key)?;
        Some((slot.answer(now), slot.meta))
    }

    /// The same, as it is kept.
    pub(crate) fn slot<Q>(&self, key: &Q) -> Option<Arc<Slot<V>>>
    where
        K: Borrow<Q>,
        Q: Hash + Eq + ?Sized,
    {
        let found = self.found.as_ref()?.get(key);
        found.or_else(|| self.missing()?.get(key))
    }

    /// The absences, if there ever were some.
    fn missing(&self) -> Option<&Slots<K, V>> {
        let missing = self.missing.as_ref();
        missing.filter(|_| self.any_missing.load(Ordering::Acquire))
    }

    /// The same, without a word to the policy of the map: for whoever has just looked.
    pub(crate) fn get_again<Q>(&self, key: &Q, now: Instant) -> Option<(Answer<V>, Meta)>
    where
        K: Borrow<Q>,
        Q: Hash + Eq + ?Sized,
    {
        let has = |map: &Slots<K, V>| map.contains_key(key);
        let is_there = self.found.as_ref().is_some_and(has) || self.missing().is_some_and(has);
        is_there.then(|| self.get(key, now)).flatten()
    }

    /// What the front has of a key, whether it may be answered or not.
    pub(crate) fn hot<Q>(&self, key: &Q) -> Option<Hot<K, V>>
    where
        K: Borrow<Q>,
        Q: Hash + Eq + ?Sized,
    {
        self.front.get(key)
    }

    /// Lets the map know of a hit in the front, for its policy decides what is kept; and looks at one of the
    /// others. Neither more often than it is of use.
    pub(crate) fn touch<Q>(&self, key: &Q, hot: &Hot<K, V>, nanos: u64)
    where
        K: Borrow<Q>,
        Q: Hash + Eq + ?Sized,
    {
        self.front.keep(hot);
        if hot.is_news(nanos) && !self.slot(key).is_some_and(|there| hot.is(&there)) {
            self.front.drop_if(hot);
        }
        // One which may have been evicted and not been asked for since.
        if let Some(other) = self.front.next(nanos) {
            let kept = |map: &Option<Slots<K, V>>| {
                let map = map.as_ref();
                map.zip(other.key())
                    .is_some_and(|(map, key)| map.contains_key(key))
            };
            if !kept(&self.found) && !kept(&self.missing) {
                self.front.drop_if(&other);
            }
        }
    }

    /// Whether an entry that is asked for may move up.
    pub(crate) fn may_move_up<Q: Hash + ?Sized>(&self, key: &Q) -> bool {
        self.front.ask(key)
    }

    /// Puts an entry in front, where another one may be. The caller holds the lock of the key's shard:
    /// what is in front is what is in the map.
    pub(crate) fn promote(&self, key: K) {
        if let Some(slot) = self.slot(&key) {
            self.front.put(key, slot);
        }
    }

    /// Stores an answer, if there is a place for its kind. The caller holds the lock of the key's shard, so that nothing comes
    /// between its check of the fence and this.
    pub(crate) fn store(&self, key: K, answer: &Answer<V>, meta: Meta) -> bool {
        self.front.remove(&key);
        let slot = Arc::new(Slot {
            value: answer.value.clone(),
            meta,
            tags: answer.tags.clone(),
        });
        let (into, other) = if answer.value.is_some() {
            (self.found.as_ref(), self.missing())
        } else {
            self.any_missing.store(true, Ordering::Release);
            (self.missing.as_ref(), self.found.as_ref())
        };
        if let Some(other) = other {
            other.invalidate(&key);
        }
        let stored = into.map(|into| into.insert(key, slot));
        stored.is_some()
    }

    /// Changes what is known of an entry, if it is there. The caller holds the lock of the key's shard.
    pub(crate) fn amend(&self, key: &K, amend: impl FnOnce(&mut Meta)) {
        self.front.remove(key);
        for map in [&self.found, &self.missing].into_iter().flatten() {
            if let Some(slot) = map.get(key) {
                let mut meta = slot.meta;
                amend(&mut meta);
                let slot = Slot {
                    value: slot.value.clone(),
                    meta,
                    tags: slot.tags.clone(),
                };
                return map.insert(key.clone(), Arc::new(slot));
            }
        }
    }

    /// How many there are, roughly: what was stored a moment ago may be missing.
    #[cfg(feature = "metrics")]
    pub(crate) fn entries(&self) -> u64 {
        let found = self.found.as_ref().map_or(0, Map::entry_count);
        found + self.missing.as_ref().map_or(0, Map::entry_count)
    }

    /// As moka does when there is no room.
    #[cfg(all(test, feature = "bincode"))]
    pub(crate) fn evict_for_tests(&self, key: &K) {
        if let Some(found) = &self.found {
            found.invalidate(key);
        }
    }

    /// The caller holds the lock of the key's shard.
    pub(crate) fn remove(&self, key: &K) {
        self.front.remove(key);
        if let Some(found) = &self.found {
            found.invalidate(key);
        }
        if let Some(missing) = self.missing() {
            missing.invalidate(key);
        }
    }
}
