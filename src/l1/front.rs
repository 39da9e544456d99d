//! The entries that are asked for most, in front of moka.
//!
//! A read of moka notes itself in a log, which somebody works through now and then: that costs more than
//! the look-up does. So the hottest entries sit in a table of slots as well, one for each value of a
//! hash, which are read without a lock and written by few: one in [`SAMPLE`] hits in moka moves up, in
//! the place of whatever is in its slot. One in as many hits here is a read of moka, too, so that its
//! policy goes on knowing what is hot.
//!
//! Beside each slot are two numbers made of hashes: of the key that is in it, so that most look-ups for other
//! keys end without a look at that one's memory, and of the key that asked last to move up there: a slot
//! that is taken is given to whoever asks twice in a row, while nobody is seen to ask for what is there.
//!
//! What is here is in moka, with the same times and the same fence: whoever changes an entry there takes
//! it out here, under the same lock under which it moves up. What moka has evicted is found out by
//! those reads, and by a look at one slot after the other.

use std::borrow::Borrow;
use std::hash::{BuildHasher, Hash};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicUsize, Ordering};

use arc_swap::{ArcSwapOption, Guard};
use foldhash::fast::RandomState;

use super::Slot;

/// One in how many hits is more than a look at one slot.
pub(crate) const SAMPLE: u64 = if cfg!(test) { 2 } else { 16 };

/// One in how many looks at the next slot, too: its memory is cold, most likely.
pub(crate) const SWEEP: u64 = if cfg!(test) { 1 } else { 8 };

/// Slots at most.
const MOST: u64 = 4_096;

pub(super) struct Front<K, V> {
    /// A power of two, or none.
    slots: Box<[ArcSwapOption<Kept<K, V>>]>,
    /// Hints, which may be behind.
    marks: Box<[Mark]>,
    hasher: RandomState,
    /// The slot that is looked at next.
    hand: AtomicUsize,
}

#[derive(Debug, Default)]
struct Mark {
    held_by: AtomicU32,
    /// Zero: nobody.
    asked_by: AtomicU32,
}

#[derive(Debug)]
struct Kept<K, V> {
    key: K,
    slot: Arc<Slot<V>>,
}

/// A slot of the front, as it was found.
pub(crate) struct Hot<K, V> {
    at: usize,
    kept: Guard<Option<Arc<Kept<K, V>>>>,
}

impl<K, V> Hot<K, V> {
    pub(crate) fn slot(&self) -> Option<&Arc<Slot<V>>> {
        self.kept.as_ref().map(|kept| &kept.slot)
    }

    pub(super) fn key(&self) -> Option<&K> {
        self.kept.as_ref().map(|kept| &kept.key)
    }
}

impl<K, V> Front<K, V>
where
    K: Hash + Eq,
{
    /// For so many entries; zero turns it off.
    pub(super) fn new(entries: u64) -> Self {
        let slots = match entries {
            0 => 0,
            entries => entries.min(MOST).next_power_of_two(),
        };
        Self {
            slots: (0..slots).map(|_| ArcSwapOption::empty()).collect(),
            marks: (0..slots).map(|_| Mark::default()).collect(),
            hasher: RandomState::default(),
            hand: AtomicUsize::new(0),
        }
    }

    /// The slot of a key, and what tells it from most others there.
    fn at<Q: Hash + ?Sized>(&self, key: &Q) -> (usize, u32) {
        let hash = self.hasher.hash_one(key);
        let at = usize::try_from(hash & (self.slots.len() as u64 - 1)).unwrap_or(0);
        (at, u32::try_from(hash >> 32).unwrap_or(0) | 1)
    }

    /// What is there of a key.
    pub(super) fn get<Q>(&self, key: &Q) -> Option<Hot<K, V>>
    where
        K: Borrow<Q>,
        Q: Hash + Eq + ?Sized,
    {
        if self.slots.is_empty() {
            return None;
        }
        let (at, mark) = self.at(key);
        if self.marks[at].held_by.load(Ordering::Relaxed) != mark {
            return None;
        }
        self.find(at, key)
    }

    fn find<Q>(&self, at: usize, key: &Q) -> Option<Hot<K, V>>
    where
        K: Borrow<Q>,
        Q: Eq + ?Sized,
    {
        let kept = self.slots[at].load();
        let is_it = kept.as_ref().is_some_and(|kept| kept.key.borrow() == key);
        is_it.then_some(Hot { at, kept })
    }

    /// Asks for the slot of a key.
    pub(super) fn ask<Q: Hash + ?Sized>(&self, key: &Q) -> bool {
        if self.slots.is_empty() {
            return false;
        }
        let (at, mark) = self.at(key);
        let is_free = self.slots[at].load().is_none();
        is_free || self.marks[at].asked_by.swap(mark, Ordering::Relaxed) == mark
    }

    /// What is there is asked for.
    pub(super) fn keep(&self, hot: &Hot<K, V>) {
        self.marks[hot.at].asked_by.store(0, Ordering::Relaxed);
    }

    /// One slot after the other, if there is something in it.
    pub(super) fn next(&self) -> Option<Hot<K, V>> {
        let at = self.hand.fetch_add(1, Ordering::Relaxed) & (self.slots.len() - 1);
        let kept = self.slots[at].load();
        kept.is_some().then_some(Hot { at, kept })
    }

    pub(super) fn put(&self, key: K, slot: Arc<Slot<V>>) {
        if !self.slots.is_empty() {
            let (at, mark) = self.at(&key);
            self.slots[at].store(Some(Arc::new(Kept { key, slot })));
            self.marks[at].held_by.store(mark, Ordering::Relaxed);
        }
    }

    /// Whatever the hints say.
    pub(super) fn remove(&self, key: &K) {
        if self.slots.is_empty() {
            return;
        }
        if let Some(hot) = self.find(self.at(key).0, key) {
            self.drop_if(&hot);
        }
    }

    /// Empties a slot, unless something else is in it by now.
    pub(super) fn drop_if(&self, hot: &Hot<K, V>) {
        self.slots[hot.at].compare_and_swap(&*hot.kept, None);
    }
}
