//! The hot slots: a lock-free table in front of moka that holds the entries that are hit most.
//!
//! moka records each read in a log and works through that log later, which costs more than the
//! look-up itself. So the hottest entries are kept in a table of slots as well. A key has one slot,
//! chosen by its hash. A slot is read without a lock and rarely written: one in [`SAMPLE`] hits of
//! moka promotes its entry into its slot, over the entry that was there. One in [`SAMPLE`] hits of
//! a hot slot is reported to moka, so that moka's policy still knows what is hot, unless the entry
//! was reported less than [`REPORT_EVERY`] ago.
//!
//! Each slot has two hints, both taken from hashes. The first is that of the key in the slot: most
//! look-ups for another key end there, without a read of the entry's memory. The second is that of
//! the key that last requested the slot. A slot that is taken is given to a key that requests it
//! twice in a row, if no hit of the present entry was seen in between.
//!
//! Every entry here is in moka too, with the same times and the same fence. A change of an entry in
//! moka removes it here, under the lock under which it was promoted. An entry that moka evicted is
//! found by the reports, and by a probe that looks at one slot after the other.

use std::borrow::Borrow;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, AtomicUsize, Ordering};

use arc_swap::{ArcSwapOption, Guard};
use tokio::time::Instant;

use super::{HitView, Slot};
use crate::coherence::fence::Stamp;
use crate::coherence::watermarks::Tags;

/// One in this many hits does more than read one slot: it reports, probes or promotes.
pub(crate) const SAMPLE: u64 = if cfg!(test) { 2 } else { 16 };

/// The shortest time between two reports of one entry to the map, and between two probes, in
/// nanoseconds. A report within it would tell the map nothing new, and a probe reads memory that is
/// most likely not in the processor's cache.
const REPORT_EVERY: u64 = if cfg!(test) { 0 } else { 100_000 };

/// The upper limit of the number of slots.
const MAX_SLOTS: u64 = 16_384;

/// The table. The number of slots is a power of two, or zero.
pub(super) struct HotSlots<K, V> {
    slots: Box<[ArcSwapOption<HotEntry<K, V>>]>,
    /// One for each slot. A hint may be out of date: the entry decides.
    hints: Box<[SlotHint]>,
    /// The slot that is probed next.
    next_probe: AtomicUsize,
    /// When a slot was last probed, in nanoseconds after the cache's time base.
    probed_at: AtomicU64,
}

/// The hints of one slot: zero means no key.
#[derive(Debug, Default)]
struct SlotHint {
    /// The key whose entry is in the slot.
    held_by: AtomicU32,
    /// The key that last requested the slot.
    requested_by: AtomicU32,
}

/// An entry in a slot. The fields that a hit looks at are copied here, which saves a read of
/// memory.
#[derive(Debug)]
#[repr(C)]
struct HotEntry<K, V> {
    key: K,
    no_refresh_before: Option<Instant>,
    stamp: Stamp,
    value: Option<Arc<V>>,
    tags: Option<Box<Tags>>,
    slot: Arc<Slot>,
    /// When a hit was last reported to the map, in nanoseconds after the cache's time base.
    reported_at: AtomicU64,
}

/// A slot with the entry that a look-up found in it.
pub(crate) struct HotRef<K, V> {
    index: usize,
    entry: Guard<Option<Arc<HotEntry<K, V>>>>,
}

/// Whether [`REPORT_EVERY`] has passed since the moment in `last`. If so, `last` becomes `nanos`.
fn is_due(last: &AtomicU64, nanos: u64) -> bool {
    let is_due = last.load(Ordering::Relaxed).saturating_add(REPORT_EVERY) <= nanos;
    if is_due {
        last.store(nanos, Ordering::Relaxed);
    }
    is_due
}

impl<K, V> HotRef<K, V> {
    /// The part of the entry that a hit looks at.
    pub(crate) fn view(&self) -> Option<HitView<'_, V>> {
        self.entry.as_ref().map(|entry| HitView {
            no_refresh_before: entry.no_refresh_before,
            stamp: entry.stamp,
            value: &entry.value,
            tags: &entry.tags,
            meta: &entry.slot.meta,
        })
    }

    /// Whether this entry is the one that the map holds.
    pub(super) fn is_same_as(&self, in_map: &Arc<Slot>) -> bool {
        let entry = self.entry.as_ref();
        entry.is_some_and(|entry| Arc::ptr_eq(&entry.slot, in_map))
    }

    /// Whether a hit at this moment is reported to the map.
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
    /// A table for an L1 of this many entries: one slot for two entries. Zero turns it off.
    pub(super) fn new(entries: u64) -> Self {
        let slots = match entries {
            0 => 0,
            entries => entries.div_ceil(2).min(MAX_SLOTS).next_power_of_two(),
        };
        Self {
            slots: (0..slots).map(|_| ArcSwapOption::empty()).collect(),
            hints: (0..slots).map(|_| SlotHint::default()).collect(),
            next_probe: AtomicUsize::new(0),
            probed_at: AtomicU64::new(0),
        }
    }

    /// The slot of a key, and the hint that tells the key from most others with this slot. A hint
    /// is never zero.
    fn locate(&self, hash: u64) -> (usize, u32) {
        let index = usize::try_from(hash & (self.slots.len() as u64 - 1)).unwrap_or(0);
        (index, u32::try_from(hash >> 32).unwrap_or(0) | 1)
    }

    /// The entry of a key, if it is in its slot.
    #[inline]
    pub(super) fn get<Q>(&self, hash: u64, key: &Q) -> Option<HotRef<K, V>>
    where
        K: Borrow<Q>,
        Q: Eq + ?Sized,
    {
        if self.slots.is_empty() {
            return None;
        }
        let (index, hint) = self.locate(hash);
        if self.hints[index].held_by.load(Ordering::Relaxed) != hint {
            return None;
        }
        self.find(index, key)
    }

    /// The entry of a key, if it is in this slot. The hints are not asked.
    fn find<Q>(&self, index: usize, key: &Q) -> Option<HotRef<K, V>>
    where
        K: Borrow<Q>,
        Q: Eq + ?Sized,
    {
        let entry = self.slots[index].load();
        let is_it = entry
            .as_ref()
            .is_some_and(|entry| entry.key.borrow() == key);
        is_it.then_some(HotRef { index, entry })
    }

    /// Requests the slot of a key. Whether it is given: it is free, or this is the second request
    /// in a row.
    pub(super) fn request(&self, hash: u64) -> bool {
        if self.slots.is_empty() {
            return false;
        }
        let (index, hint) = self.locate(hash);
        let is_free = self.slots[index].load().is_none();
        is_free || self.hints[index].requested_by.swap(hint, Ordering::Relaxed) == hint
    }

    /// Notes a hit of the entry in a slot: the request of another key for this slot is void.
    pub(super) fn mark_in_use(&self, hot: &HotRef<K, V>) {
        self.hints[hot.index]
            .requested_by
            .store(0, Ordering::Relaxed);
    }

    /// The entry of the slot whose turn it is, if a probe is due and the slot is not empty.
    pub(super) fn next_to_probe(&self, nanos: u64) -> Option<HotRef<K, V>> {
        if !is_due(&self.probed_at, nanos) {
            return None;
        }
        let index = self.next_probe.fetch_add(1, Ordering::Relaxed) & (self.slots.len() - 1);
        let entry = self.slots[index].load();
        entry.is_some().then_some(HotRef { index, entry })
    }

    /// Puts an entry into the slot of its key.
    pub(super) fn put(&self, hash: u64, key: &K, slot: &Arc<Slot>, view: &HitView<'_, V>) {
        if self.slots.is_empty() {
            return;
        }
        let (index, hint) = self.locate(hash);
        let entry = HotEntry {
            key: key.clone(),
            no_refresh_before: view.no_refresh_before,
            stamp: view.stamp,
            value: view.value.clone(),
            tags: view.tags.clone(),
            slot: Arc::clone(slot),
            reported_at: AtomicU64::new(0),
        };
        self.slots[index].store(Some(Arc::new(entry)));
        self.hints[index].held_by.store(hint, Ordering::Relaxed);
    }

    /// Removes a key's entry from its slot, whatever the hints say.
    pub(super) fn remove(&self, hash: u64, key: &K) {
        if self.slots.is_empty() {
            return;
        }
        if let Some(hot) = self.find(self.locate(hash).0, key) {
            self.remove_if_same(&hot);
        }
    }

    /// Empties a slot, unless it holds another entry by now.
    pub(super) fn remove_if_same(&self, hot: &HotRef<K, V>) {
        self.slots[hot.index].compare_and_swap(&*hot.entry, None);
    }
}
