//! The list of repairs: invalidations that L2 has not confirmed and that are repeated until it
//! does.
//!
//! | state | how it is entered | what it means |
//! |---|---|---|
//! | nothing pending | | this process reads every key from L2 |
//! | keys or tags pending | a call failed; its caller has the error | this process does not read these keys from L2, and entries with these tags are dead |
//! | everything pending | `invalidate_all` failed, or the list was full | this process reads nothing from L2 |
//!
//! A repair is an invalidation, also where an `insert` failed: a value that comes late may be older
//! than the record in L2, and the source has the value anyway. A newer call for a key replaces an
//! older one; the other repairs keep their order. It does no harm to carry out a repair twice. The
//! attempts have no end, because an entry can live longer than any limit: its loader chooses its
//! TTL.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use parking_lot::Mutex;
use tokio::sync::Notify;

use super::watermarks::TagWatermark;
use crate::key::HashedKey;

/// Repairs that the list holds. One more, and everything is invalidated instead.
const MAX_PENDING: usize = 10_000;

/// A change that is to be repeated.
#[derive(Clone, Debug)]
pub(crate) enum Repair {
    Invalidate(HashedKey),
    Expire(HashedKey),
    Tag(u64),
    All,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum Target {
    Key(Arc<[u8]>),
    Tag(u64),
    All,
}

impl Repair {
    fn target(&self) -> Target {
        match self {
            Self::Invalidate(id) | Self::Expire(id) => Target::Key(Arc::clone(&id.encoded)),
            Self::Tag(tag) => Target::Tag(*tag),
            Self::All => Target::All,
        }
    }
}

/// The repairs of one cache.
#[derive(Debug, Default)]
pub(crate) struct Repairs {
    list: Mutex<RepairList>,
    pending: AtomicUsize,
    /// Wakes the worker: L2 may be reachable again.
    pub(crate) wake: Arc<Notify>,
}

/// The repairs by their tickets. A newer repair has a higher ticket.
#[derive(Debug, Default)]
struct RepairList {
    last_ticket: u64,
    in_order: BTreeMap<u64, PendingRepair>,
    tickets: HashMap<Target, u64>,
    has_worker: bool,
}

#[derive(Debug)]
struct PendingRepair {
    repair: Repair,
    /// A tag whose entries are dead until L2 has confirmed its invalidation.
    tag: Option<Arc<TagWatermark>>,
}

impl Drop for PendingRepair {
    fn drop(&mut self) {
        if let Some(tag) = &self.tag {
            tag.remove_unconfirmed();
        }
    }
}

/// What the addition of a repair means for the caller.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Added {
    /// The list has no worker: the caller starts one.
    pub(crate) needs_worker: bool,
    /// The list was full: everything is to be invalidated.
    pub(crate) overflowed: bool,
    /// The list was empty.
    pub(crate) first: bool,
}

impl Repairs {
    /// How many repairs are pending.
    pub(crate) fn len(&self) -> usize {
        self.pending.load(Ordering::Acquire)
    }

    /// Adds a repair in place of an older one for the same target. `tag`: its entries are dead
    /// until the repair is done.
    pub(crate) fn add(&self, repair: Repair, tag: Option<Arc<TagWatermark>>) -> Added {
        if let Some(tag) = &tag {
            tag.add_unconfirmed();
        }
        let mut list = self.list.lock();
        let first = list.in_order.is_empty();
        let target = repair.target();
        let overflowed = list.in_order.len() >= MAX_PENDING && !list.tickets.contains_key(&target);
        if overflowed || matches!(repair, Repair::All) {
            // The invalidation of everything contains each of them.
            list.in_order.clear();
            list.tickets.clear();
            list.push(Repair::All, tag);
        } else {
            let weaker = matches!(repair, Repair::Expire(_))
                && list
                    .pending(&target)
                    .is_some_and(|pending| matches!(pending.repair, Repair::Invalidate(_)));
            list.push(
                if weaker {
                    as_invalidation(repair)
                } else {
                    repair
                },
                tag,
            );
        }
        self.pending.store(list.in_order.len(), Ordering::Release);
        let needs_worker = !std::mem::replace(&mut list.has_worker, true);
        Added {
            needs_worker,
            overflowed,
            first,
        }
    }

    /// The ticket of the newest repair. A call that begins now may settle the repairs up to it.
    pub(crate) fn last_ticket(&self) -> u64 {
        self.list.lock().last_ticket
    }

    /// L2 has confirmed a call for this key: its repair is done, if its ticket is not higher than
    /// `last`, the newest one when the call began. An expiry does not settle an invalidation.
    pub(crate) fn settle(&self, encoded: &[u8], last: u64, by_expiry: bool) {
        if self.len() == 0 {
            return;
        }
        let target = Target::Key(encoded.into());
        let mut list = self.list.lock();
        let stays = by_expiry
            && list
                .pending(&target)
                .is_some_and(|pending| matches!(pending.repair, Repair::Invalidate(_)));
        // A repair that was added since then may belong to a later write than the call.
        let older = list.tickets.get(&target).copied().filter(|at| *at <= last);
        if let Some(ticket) = older.filter(|_| !stays) {
            list.tickets.remove(&target);
            list.in_order.remove(&ticket);
        }
        self.pending.store(list.in_order.len(), Ordering::Release);
    }

    /// Whether this process must not read a key from L2.
    pub(crate) fn blocks(&self, encoded: &Arc<[u8]>) -> bool {
        if self.len() == 0 {
            return false;
        }
        let list = self.list.lock();
        list.tickets.contains_key(&Target::All)
            || list.tickets.contains_key(&Target::Key(Arc::clone(encoded)))
    }

    /// The repair that is next. `None`: the list is empty, and has no worker any more.
    pub(crate) fn next_repair(&self) -> Option<(u64, Repair)> {
        let mut list = self.list.lock();
        let first = list.in_order.first_key_value();
        let first = first.map(|(ticket, pending)| (*ticket, pending.repair.clone()));
        list.has_worker = first.is_some();
        first
    }

    /// The worker ends, although the list may not be empty.
    pub(crate) fn release_worker(&self) {
        self.list.lock().has_worker = false;
    }

    /// L2 has confirmed the repair. A newer one for the same target stays.
    pub(crate) fn confirm(&self, ticket: u64) {
        let mut list = self.list.lock();
        if let Some(pending) = list.in_order.remove(&ticket) {
            list.tickets.remove(&pending.repair.target());
        }
        self.pending.store(list.in_order.len(), Ordering::Release);
    }
}

impl RepairList {
    fn pending(&self, target: &Target) -> Option<&PendingRepair> {
        self.in_order.get(self.tickets.get(target)?)
    }

    fn push(&mut self, repair: Repair, tag: Option<Arc<TagWatermark>>) {
        self.last_ticket += 1;
        let target = repair.target();
        if let Some(older) = self.tickets.insert(target, self.last_ticket) {
            self.in_order.remove(&older);
        }
        self.in_order
            .insert(self.last_ticket, PendingRepair { repair, tag });
    }
}

fn as_invalidation(repair: Repair) -> Repair {
    match repair {
        Repair::Expire(id) => Repair::Invalidate(id),
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(key: u64) -> HashedKey {
        HashedKey {
            hash: key,
            encoded: key.to_string().into_bytes().into(),
        }
    }

    fn order(repairs: &Repairs) -> Vec<String> {
        let mut order = Vec::new();
        while let Some((ticket, repair)) = repairs.next_repair() {
            order.push(match repair {
                Repair::Invalidate(id) => String::from_utf8_lossy(&id.encoded).into_owned(),
                Repair::Expire(id) => format!("expire {}", String::from_utf8_lossy(&id.encoded)),
                other => format!("{other:?}"),
            });
            repairs.confirm(ticket);
        }
        order
    }

    #[test]
    fn the_newest_call_for_a_key_wins_and_the_others_keep_their_order() {
        let repairs = Repairs::default();
        for key in [1, 2, 3, 1] {
            repairs.add(Repair::Invalidate(id(key)), None);
        }
        repairs.add(Repair::Expire(id(4)), None);
        repairs.add(Repair::Expire(id(2)), None);
        assert!(repairs.blocks(&id(1).encoded) && !repairs.blocks(&id(9).encoded));
        assert_eq!(order(&repairs), ["3", "1", "expire 4", "2"]);
        assert_eq!(repairs.len(), 0);
    }

    #[test]
    fn a_confirmed_call_settles_what_was_pending_but_an_expiry_no_invalidation() {
        let repairs = Repairs::default();
        for key in [1, 2] {
            repairs.add(Repair::Invalidate(id(key)), None);
        }
        let last = repairs.last_ticket();
        repairs.settle(b"1", last, false);
        repairs.settle(b"2", last, true);
        assert_eq!(order(&repairs), ["2"]);
    }

    /// The first of two invalidations is carried out, its reply is on its way; a later write is
    /// committed, and its invalidation fails.
    #[test]
    fn a_reply_that_comes_late_settles_nothing_newer() {
        let repairs = Repairs::default();
        let first = repairs.last_ticket();
        repairs.add(Repair::Invalidate(id(1)), None);
        repairs.settle(b"1", first, false);
        assert!(repairs.blocks(&id(1).encoded));
    }

    #[test]
    fn one_that_was_replaced_while_it_was_done_stays() {
        let repairs = Repairs::default();
        repairs.add(Repair::Invalidate(id(1)), None);
        let (ticket, _) = repairs.next_repair().unwrap();
        repairs.add(Repair::Invalidate(id(1)), None);
        repairs.confirm(ticket);
        assert!(repairs.blocks(&id(1).encoded));
    }

    #[test]
    fn a_full_list_becomes_one_invalidation_of_everything() {
        let repairs = Repairs::default();
        let added = repairs.add(Repair::Invalidate(id(0)), None);
        assert!(added.needs_worker && !added.overflowed);
        let overflowed = (1..=MAX_PENDING as u64)
            .filter(|key| repairs.add(Repair::Invalidate(id(*key)), None).overflowed);
        assert_eq!(overflowed.count(), 1);
        assert!(repairs.blocks(&id(123_456).encoded));
        assert_eq!(order(&repairs), ["All"]);
    }

    #[test]
    fn a_tag_that_is_pending_keeps_its_entries_dead() {
        let (repairs, tag) = (Repairs::default(), Arc::new(TagWatermark::default()));
        repairs.add(Repair::Tag(5), Some(Arc::clone(&tag)));
        repairs.add(Repair::Tag(5), Some(Arc::clone(&tag)));
        assert!(tag.is_unconfirmed());
        let (ticket, _) = repairs.next_repair().unwrap();
        repairs.confirm(ticket);
        assert!(!tag.is_unconfirmed());
    }
}
