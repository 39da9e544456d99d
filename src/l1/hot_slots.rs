//! The entries that are asked for most, in front of moka.
//!
//! A read of moka notes itself in a log, which somebody works through now and then: that costs more than
//! the look-up does. So the hottest entries sit in a table of slots as well, one for each value of a
//! hash, which are read without a lock and written by few: one in [`SAMPLE`] hits in moka moves up, in
//! the place of whatever is in its slot. One in as many hits here is a read of moka, too, so that its
//! policy goes on knowing what is hot, unless there was one just now.
//!
//! Beside each slot are two numbers made of hashes: of the key that is in it, so that most look-ups for other
//! keys end without a look at that one's memory, and of the key that asked last to move up there: a slot
//! that is taken is given to whoever asks twice in a row, while nobody is seen to ask for what is there.
//!
//! What is here is in moka, with the same times and the same fence: whoever changes an entry there takes
//! it out here, under the same lock under which it moves up. What moka has evicted is found out by
//! those reads, and by a look at one slot after the other.

use std::borrow::Borrow;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, AtomicUsize, Ordering};

use arc_swap::{ArcSwapOption, Guard};
use tokio::time::Instant;

use super::{HitView, Slot};
use crate::coherence::fence::Stamp;
use crate::coherence::watermarks::Tags;

/// One in how many hits is more than a look at one slot.
pub(crate) const SAMPLE: u64 = if cfg!(test) { 2 } else { 16 };

/// How long after the map was reported_at of an entry it is reported_at of it again, in nanoseconds: it knows by now that
/// this one is asked for. And how long after one slot was looked at the next one is: its memory is cold, most
/// likely.
const REPORT_EVERY: u64 = if cfg!(test) { 0 } else { 100_000 };

/// Slots at most.
const MOST_SLOTS: u64 = 16_384;

pub(super) struct HotSlots<K, V> {
    /// A power of two, or none.
    slots: Box<[ArcSwapOption<HotEntry<K, V>>]>,
    /// Hints, which may be behind.
    hints: Box<[SlotHint]>,
    /// The slot that is looked at next.
    next_probe: AtomicUsize,
    /// When one was looked at, in nanoseconds after zero.
    probed_at: AtomicU64,
}

#[derive(Debug, Default)]
struct SlotHint {
    held_by: AtomicU32,
    /// Zero: nobody.
    requested_by: AtomicU32,
}

/// What a hit looks at is here as well: one read of memory less.
#[derive(Debug)]
#[repr(C)]
struct HotEntry<K, V> {
    key: K,
    no_refresh_before: Option<Instant>,
    stamp: Stamp,
    value: Option<Arc<V>>,
    tags: Option<Box<Tags>>,
    slot: Arc<Slot>,
    /// When the map was reported_at of a hit, in nanoseconds after zero.
    reported_at: AtomicU64,
}

/// A slot of the front, as it was found.
pub(crate) struct HotRef<K, V> {
    at: usize,
    entry: Guard<Option<Arc<HotEntry<K, V>>>>,
}

/// Whether it is time again, and then it is now.
fn is_due(since: &AtomicU64, nanos: u64) -> bool {
    let is_due = since.load(Ordering::Relaxed).saturating_add(REPORT_EVERY) <= nanos;
    if is_due {
        since.store(nanos, Ordering::Relaxed);
    }
    is_due
}

impl<K, V> HotRef<K, V> {
    pub(crate) fn view(&self) -> Option<HitView<'_, V>> {
        self.entry.as_ref().map(|entry| HitView {
            no_refresh_before: entry.no_refresh_before,
            stamp: entry.stamp,
            value: &entry.value,
            tags: &entry.tags,
            meta: &entry.slot.meta,
        })
    }

    /// Whether this is what is in the map.
    pub(super) fn is(&self, there: &Arc<Slot>) -> bool {
        let entry = self.entry.as_ref();
        entry.is_some_and(|entry| Arc::ptr_eq(&entry.slot, there))
    }

    /// Whether it is time to tell the map of a hit.
    pub(crate) fn report_due(&self, nanos: u64) -> bool {
        self.entry
            .as_ref()
            .is_some_and(|entry| is_due(&entry.reported_at, nanos))
    }

    pub(super) fn key(&self) -> Option<&K> {
        self.entry.as_ref().map(|entry| &entry.key)
    }
}

impl<K, V> HotSlots<K, V>
where
    K: Clone + Eq,
{
    /// For so many entries; zero turns it off.
    pub(super) fn new(entries: u64) -> Self {
        let slots = match entries {
            0 => 0,
            entries => entries.div_ceil(2).min(MOST_SLOTS).next_power_of_two(),
        };
        Self {
            slots: (0..slots).map(|_| ArcSwapOption::empty()).collect(),
            hints: (0..slots).map(|_| SlotHint::default()).collect(),
            next_probe: AtomicUsize::new(0),
            probed_at: AtomicU64::new(0),
        }
    }

    /// The slot of a key, and what tells it from most others there.
    fn at(&self, hash: u64) -> (usize, u32) {
        let at = usize::try_from(hash & (self.slots.len() as u64 - 1)).unwrap_or(0);
        (at, u32::try_from(hash >> 32).unwrap_or(0) | 1)
    }

    /// What is there of a key.
    #[inline]
    pub(super) fn get<Q>(&self, hash: u64, key: &Q) -> Option<HotRef<K, V>>
    where
        K: Borrow<Q>,
        Q: Eq + ?Sized,
    {
        if self.slots.is_empty() {
            return None;
        }
        let (at, tag_hash) = self.at(hash);
        if self.hints[at].held_by.load(Ordering::Relaxed) != tag_hash {
            return None;
        }
        self.find(at, key)
    }

    fn find<Q>(&self, at: usize, key: &Q) -> Option<HotRef<K, V>>
    where
        K: Borrow<Q>,
        Q: Eq + ?Sized,
    {
        let entry = self.slots[at].load();
        let is_it = entry
            .as_ref()
            .is_some_and(|entry| entry.key.borrow() == key);
        is_it.then_some(HotRef { at, entry })
    }

    /// Asks for the slot of a key.
    pub(super) fn request(&self, hash: u64) -> bool {
        if self.slots.is_empty() {
            return false;
        }
        let (at, tag_hash) = self.at(hash);
        let is_free = self.slots[at].load().is_none();
        is_free
            || self.hints[at]
                .requested_by
                .swap(tag_hash, Ordering::Relaxed)
                == tag_hash
    }

    /// What is there is asked for.
    pub(super) fn mark_in_use(&self, hot: &HotRef<K, V>) {
        self.hints[hot.at].requested_by.store(0, Ordering::Relaxed);
    }

    /// One slot after the other, if it is time and there is something in it.
    pub(super) fn next_to_probe(&self, nanos: u64) -> Option<HotRef<K, V>> {
        if !is_due(&self.probed_at, nanos) {
            return None;
        }
        let at = self.next_probe.fetch_add(1, Ordering::Relaxed) & (self.slots.len() - 1);
        let entry = self.slots[at].load();
        entry.is_some().then_some(HotRef { at, entry })
    }

    /// Puts an entry into the slot of its key.
    pub(super) fn put(&self, hash: u64, key: &K, slot: &Arc<Slot>, view: &HitView<'_, V>) {
        if self.slots.is_empty() {
            return;
        }
        let (at, tag_hash) = self.at(hash);
        let entry = HotEntry {
            key: key.clone(),
            no_refresh_before: view.no_refresh_before,
            stamp: view.stamp,
            value: view.value.clone(),
            tags: view.tags.clone(),
            slot: Arc::clone(slot),
            reported_at: AtomicU64::new(0),
        };
        self.slots[at].store(Some(Arc::new(entry)));
        self.hints[at].held_by.store(tag_hash, Ordering::Relaxed);
    }

    /// Whatever the hints say.
    pub(super) fn remove(&self, hash: u64, key: &K) {
        if self.slots.is_empty() {
            return;
        }
        if let Some(hot) = self.find(self.at(hash).0, key) {
            self.remove_if_same(&hot);
        }
    }

    /// Empties a slot, unless something else is in it by now.
    pub(super) fn remove_if_same(&self, hot: &HotRef<K, V>) {
        self.slots[hot.at].compare_and_swap(&*hot.entry, None);
    }
}
