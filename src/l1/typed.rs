//! The part of L1 that knows the types of keys and values: the typed half of an entry, and the hot
//! slots.

use std::borrow::Borrow;
use std::hash::{BuildHasher, Hash};
use std::sync::Arc;

use foldhash::fast::RandomState;

use super::hot_slots::{HotRef, HotSlots};
use super::{HitView, L1, Meta, Slot, TypedEntries};
use crate::answer::Answer;
use crate::erased::{self, AnyKey, AnyValue};

/// What the user gave to `l1_weigher`: the part of the capacity that an entry uses.
pub(crate) type Weigher<K, V> = Arc<dyn Fn(&K, &V) -> u32 + Send + Sync>;

/// The part of an entry that has the types of its cache. The value comes first, because a hit looks
/// at it.
#[derive(Debug)]
#[repr(C)]
struct TypedEntry<K, V> {
    value: Option<Arc<V>>,
    key: K,
}

/// The operations of L1 that know one cache's types.
pub(crate) struct TypedL1<K, V> {
    hasher: RandomState,
    weigher: Option<Weigher<K, V>>,
    hot: HotSlots<K, V>,
}

impl<K, V> TypedL1<K, V>
where
    K: Clone + Hash + Eq + Send + Sync + 'static,
    V: Send + Sync + 'static,
{
    /// `capacity` is that of L1. Zero turns L1 off, and the hot slots with it.
    pub(crate) fn new(capacity: u64, weigher: Option<Weigher<K, V>>) -> Self {
        let entries = match weigher {
            Some(_) if capacity > 0 => u64::MAX,
            _ => capacity,
        };
        Self {
            hasher: RandomState::default(),
            weigher,
            hot: HotSlots::new(entries),
        }
    }

    /// The hash of a key in L1. Its seed is random.
    pub(crate) fn hash<Q: Hash + ?Sized>(&self, key: &Q) -> u64 {
        self.hasher.hash_one(key)
    }

    /// The entry that the hot slots have of a key. The caller decides whether it may be answered.
    #[inline]
    pub(crate) fn hot<Q>(&self, hash: u64, key: &Q) -> Option<HotRef<K, V>>
    where
        K: Borrow<Q>,
        Q: Eq + ?Sized,
    {
        self.hot.get(hash, key)
    }

    /// The part of an entry that a hit looks at; the entry was found under the key's hash. `None`:
    /// it is the entry of another key.
    pub(crate) fn view<'a, Q>(&self, slot: &'a Slot, key: &Q) -> Option<HitView<'a, V>>
    where
        K: Borrow<Q>,
        Q: Eq + ?Sized,
    {
        let entry = entry_of::<K, V>(slot)?;
        (entry.key.borrow() == key).then(|| slot.view(entry))
    }

    /// Reports a hit of a hot slot to the map, whose policy decides what is kept, and probes
    /// another slot. Does either only when it is due.
    pub(crate) fn touch(&self, l1: &L1, hash: u64, hot: &HotRef<K, V>, nanos: u64) {
        self.hot.mark_in_use(hot);
        if hot.report_due(nanos) && !l1.slot(hash).is_some_and(|slot| hot.is_same_as(&slot)) {
            self.hot.remove_if_same(hot);
        }
        // An entry that the map evicted and that no one asks for would stay in its slot.
        if let Some(other) = self.hot.next_to_probe(nanos) {
            let hash = other.key().map(|key| self.hash(key));
            if !hash.is_some_and(|hash| l1.contains(hash)) {
                self.hot.remove_if_same(&other);
            }
        }
    }

    /// Requests the hot slot of a key that was hit in the map. Whether it is given.
    pub(crate) fn may_promote(&self, hash: u64) -> bool {
        self.hot.request(hash)
    }
}

/// The typed part of an entry. `None`: it has the types of another cache.
fn entry_of<K: 'static, V: 'static>(slot: &Slot) -> Option<&TypedEntry<K, V>> {
    slot.entry.downcast_ref()
}

impl Slot {
    fn view<'a, K, V>(&'a self, entry: &'a TypedEntry<K, V>) -> HitView<'a, V> {
        let Meta {
            no_refresh_before,
            lifetime,
            ..
        } = &self.meta;
        HitView {
            no_refresh_before: (!lifetime.expired)
                .then(|| lifetime.fresh_until.min(*no_refresh_before)),
            stamp: self.meta.stamp,
            value: &entry.value,
            tags: &self.tags,
            meta: &self.meta,
        }
    }
}

impl<K, V> TypedEntries for TypedL1<K, V>
where
    K: Clone + Hash + Eq + Send + Sync + 'static,
    V: Send + Sync + 'static,
{
    fn make(&self, key: &AnyKey, answer: &Answer, meta: Meta) -> Option<Arc<Slot>> {
        let key: &K = key.typed()?;
        let value = match &answer.value {
            Some(value) => Some(erased::typed::<V>(Arc::clone(value))?),
            None => None,
        };
        Some(Arc::new(Slot {
            meta,
            tags: answer.tags.clone().map(Box::new),
            entry: TypedEntry {
                value,
                key: key.clone(),
            },
        }))
    }

    fn with_meta(&self, slot: &Slot, meta: Meta) -> Option<Arc<Slot>> {
        let TypedEntry { value, key } = entry_of::<K, V>(slot)?;
        Some(Arc::new(Slot {
            meta,
            tags: slot.tags.clone(),
            entry: TypedEntry {
                value: value.clone(),
                key: key.clone(),
            },
        }))
    }

    fn value(&self, slot: &Slot, key: &AnyKey) -> Option<Option<AnyValue>> {
        let entry = entry_of::<K, V>(slot)?;
        let value = || entry.value.clone().map(|value| value as AnyValue);
        key.typed::<K>()
            .is_some_and(|key| *key == entry.key)
            .then(value)
    }

    fn weight(&self, slot: &Slot) -> u32 {
        let entry = entry_of::<K, V>(slot);
        let value = entry.and_then(|entry| entry.value.as_ref().map(|value| (&entry.key, value)));
        match (&self.weigher, value) {
            (Some(weigh), Some((key, value))) => weigh(key, value),
            _ => 1,
        }
    }

    fn promote(&self, hash: u64, slot: &Arc<Slot>) {
        if let Some(entry) = entry_of::<K, V>(slot) {
            self.hot.put(hash, &entry.key, slot, &slot.view(entry));
        }
    }

    fn demote(&self, key: &AnyKey) {
        if let Some(typed) = key.typed::<K>() {
            self.hot.remove(key.l1_hash, typed);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::coherence::fence::Fence;
    use crate::entry::{Freshness, Provenance, Source};
    use crate::key::{self, HashedKey};
    use crate::lifetime::Lifetime;
    use crate::time_base::TimeBase;
    use tokio::time::Instant;

    fn any(key: &str, l1_hash: u64) -> AnyKey {
        let encoded = key::encode(&key.to_owned()).into();
        AnyKey::new(HashedKey { hash: 0, encoded }, l1_hash, key.to_owned())
    }

    fn answer(value: Option<u64>, now: Instant) -> Answer {
        Answer {
            value: value.map(|value| Arc::new(value) as AnyValue),
            source: Source::Loader,
            age: Duration::ZERO,
            at: now,
            fresh_until: now + Duration::from_secs(1),
            freshness: Freshness::Fresh,
            provenance: Provenance::FromTier,
            tags: None,
        }
    }

    fn meta(now: Instant) -> Meta {
        let end = now + Duration::from_secs(1);
        let fence = Fence::new(100, Duration::ZERO, TimeBase::at(now));
        Meta {
            begun: now,
            stored: now,
            age: Duration::ZERO,
            l1_deadline: end,
            version_id: 0,
            lifetime: Lifetime::new(end, true, Duration::ZERO),
            no_refresh_before: end,
            stamp: fence.stamp_in(0, 0),
        }
    }

    /// Two keys with one hash: a store evicts the entry of the other key, and a look-up never finds
    /// it.
    #[test]
    fn keys_that_share_a_hash_are_never_answered_for_each_other() {
        let now = Instant::now();
        let typed: Arc<TypedL1<String, u64>> = Arc::new(TypedL1::new(100, None));
        let l1 = L1::new(100, 100, false, Arc::clone(&typed) as _);
        let (ada, bob) = (any("ada", 7), any("bob", 7));
        let value = |key: &AnyKey| l1.get(key, now).map(|(answer, _)| answer.value.is_some());

        assert!(l1.store(&ada, &answer(Some(1), now), meta(now)));
        assert_eq!((value(&ada), value(&bob)), (Some(true), None));
        let slot = l1.slot(7).expect("a slot");
        assert!(typed.view(&slot, "ada").is_some() && typed.view(&slot, "bob").is_none());
        l1.amend(&bob, |meta| meta.lifetime.expired = true);
        assert!(
            l1.get(&ada, now)
                .is_some_and(|(_, meta)| !meta.lifetime.expired)
        );

        // They also share a hot slot.
        l1.promote(&bob);
        assert!(typed.hot(7, "ada").is_none() && typed.hot(7, "bob").is_none());
        l1.promote(&ada);
        assert!(typed.hot(7, "ada").is_some() && typed.hot(7, "bob").is_none());
        l1.remove(&bob);
        assert_eq!(value(&ada), None, "evicted with the other key");

        assert!(l1.store(&bob, &answer(None, now), meta(now)));
        assert_eq!((value(&ada), value(&bob)), (None, Some(false)));
        assert!(l1.store(&ada, &answer(Some(1), now), meta(now)));
        assert_eq!((value(&ada), value(&bob)), (Some(true), None));
    }
}
