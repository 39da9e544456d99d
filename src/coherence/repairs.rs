//! What L2 has not confirmed: an invalidation that failed is repeated until it has.
//!
//! | state | how it is entered | what it means |
//! |---|---|---|
//! | nothing pending | | |
//! | keys or tags pending | a call failed, its caller was told | this process reads none of them from L2 |
//! | everything pending | `invalidate_all` failed, or the list was full | this process reads nothing from L2 |
//!
//! A repair is an invalidation, also where an `insert` failed: a value that comes late may be older
//! than what is there, and the source has it anyway. The newest call for a key takes the place of an
//! older one; the others keep their order. A repair that was done twice has done nothing more. There
//! is no end to the attempts: an entry that a loader gave a longer life could outlive any.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use parking_lot::Mutex;
use tokio::sync::Notify;

use super::watermarks::TagWatermark;
use crate::key::HashedKey;

/// Repairs that are kept apart; one more, and everything is invalidated instead.
pub(crate) const MOST: usize = 10_000;

/// What is to be repeated.
#[derive(Clone, Debug)]
pub(crate) enum Repair {
    Invalidate(HashedKey),
    Expire(HashedKey),
    Tag(u64),
    All,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum About {
    Key(Arc<[u8]>),
    Tag(u64),
    All,
}

impl Repair {
    fn about(&self) -> About {
        match self {
            Self::Invalidate(id) | Self::Expire(id) => About::Key(Arc::clone(&id.encoded)),
            Self::Tag(tag) => About::Tag(*tag),
            Self::All => About::All,
        }
    }
}

#[derive(Debug, Default)]
pub(crate) struct Repairs {
    list: Mutex<List>,
    pending: AtomicUsize,
    /// There may be something to do, and L2 may be there.
    pub(crate) wake: Arc<Notify>,
}

#[derive(Debug, Default)]
struct List {
    next: u64,
    in_order: BTreeMap<u64, Pending>,
    tickets: HashMap<About, u64>,
    /// A task works at it.
    worked_at: bool,
}

#[derive(Debug)]
struct Pending {
    repair: Repair,
    /// A tag whose entries are dead until L2 has confirmed it.
    held: Option<Arc<TagWatermark>>,
}

impl Drop for Pending {
    fn drop(&mut self) {
        if let Some(tag) = &self.held {
            tag.end();
        }
    }
}

/// What became of a repair that was put on the list.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Added {
    /// Nobody works at the list: begin to.
    pub(crate) needs_worker: bool,
    /// There was no room: everything is to be invalidated.
    pub(crate) overflowed: bool,
    /// There was none before.
    pub(crate) first: bool,
}

impl Repairs {
    /// How many repairs are pending.
    pub(crate) fn len(&self) -> usize {
        self.pending.load(Ordering::Acquire)
    }

    /// Puts a repair on the list, in the place of an older one about the same.
    pub(crate) fn add(&self, repair: Repair, held: Option<Arc<TagWatermark>>) -> Added {
        if let Some(tag) = &held {
            tag.begin();
        }
        let mut list = self.list.lock();
        let first = list.in_order.is_empty();
        let about = repair.about();
        let overflowed = list.in_order.len() >= MOST && !list.tickets.contains_key(&about);
        if overflowed || matches!(repair, Repair::All) {
            // Whoever invalidates everything has invalidated each.
            list.in_order.clear();
            list.tickets.clear();
            list.push(Repair::All, held);
        } else {
            let weaker = matches!(repair, Repair::Expire(_))
                && list
                    .pending(&about)
                    .is_some_and(|pending| matches!(pending.repair, Repair::Invalidate(_)));
            list.push(if weaker { stronger(repair) } else { repair }, held);
        }
        self.pending.store(list.in_order.len(), Ordering::Release);
        let needs_worker = !std::mem::replace(&mut list.worked_at, true);
        Added {
            needs_worker,
            overflowed,
            first,
        }
    }

    /// What a call that begins now may settle when it is confirmed: what is pending already.
    pub(crate) fn last(&self) -> u64 {
        self.list.lock().next
    }

    /// L2 has confirmed a call for this key that began at `last`: what was pending then is done. An
    /// expiry does not stand for an invalidation.
    pub(crate) fn settled(&self, encoded: &[u8], last: u64, by_expiry: bool) {
        if self.len() == 0 {
            return;
        }
        let about = About::Key(encoded.into());
        let mut list = self.list.lock();
        let stays = by_expiry
            && list
                .pending(&about)
                .is_some_and(|pending| matches!(pending.repair, Repair::Invalidate(_)));
        // One that was added since may be about a later write than the call was.
        let older = list.tickets.get(&about).copied().filter(|at| *at <= last);
        if let Some(ticket) = older.filter(|_| !stays) {
            list.tickets.remove(&about);
            list.in_order.remove(&ticket);
        }
        self.pending.store(list.in_order.len(), Ordering::Release);
    }

    /// Whether this process must not read a key from L2.
    pub(crate) fn block(&self, encoded: &Arc<[u8]>) -> bool {
        if self.len() == 0 {
            return false;
        }
        let list = self.list.lock();
        list.tickets.contains_key(&About::All)
            || list.tickets.contains_key(&About::Key(Arc::clone(encoded)))
    }

    /// The next one, or none: then nobody works at the list any more.
    pub(crate) fn first(&self) -> Option<(u64, Repair)> {
        let mut list = self.list.lock();
        let first = list.in_order.first_key_value();
        let first = first.map(|(ticket, pending)| (*ticket, pending.repair.clone()));
        list.worked_at = first.is_some();
        first
    }

    /// Nobody works at the list any more, whatever is on it.
    pub(crate) fn leave(&self) {
        self.list.lock().worked_at = false;
    }

    /// L2 has confirmed it; a newer one about the same stays.
    pub(crate) fn done(&self, ticket: u64) {
        let mut list = self.list.lock();
        if let Some(pending) = list.in_order.remove(&ticket) {
            list.tickets.remove(&pending.repair.about());
        }
        self.pending.store(list.in_order.len(), Ordering::Release);
    }
}

impl List {
    fn pending(&self, about: &About) -> Option<&Pending> {
        self.in_order.get(self.tickets.get(about)?)
    }

    fn push(&mut self, repair: Repair, held: Option<Arc<TagWatermark>>) {
        self.next += 1;
        let about = repair.about();
        if let Some(older) = self.tickets.insert(about, self.next) {
            self.in_order.remove(&older);
        }
        self.in_order.insert(self.next, Pending { repair, held });
    }
}

fn stronger(repair: Repair) -> Repair {
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
        while let Some((ticket, repair)) = repairs.first() {
            order.push(match repair {
                Repair::Invalidate(id) => String::from_utf8_lossy(&id.encoded).into_owned(),
                Repair::Expire(id) => format!("expire {}", String::from_utf8_lossy(&id.encoded)),
                other => format!("{other:?}"),
            });
            repairs.done(ticket);
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
        assert!(repairs.block(&id(1).encoded) && !repairs.block(&id(9).encoded));
        assert_eq!(order(&repairs), ["3", "1", "expire 4", "2"]);
        assert_eq!(repairs.len(), 0);
    }

    #[test]
    fn a_confirmed_call_settles_what_was_pending_but_an_expiry_no_invalidation() {
        let repairs = Repairs::default();
        for key in [1, 2] {
            repairs.add(Repair::Invalidate(id(key)), None);
        }
        let last = repairs.last();
        repairs.settled(b"1", last, false);
        repairs.settled(b"2", last, true);
        assert_eq!(order(&repairs), ["2"]);
    }

    /// The first of two invalidations is carried out, its reply is on its way; a later write is
    /// committed, and its invalidation fails.
    #[test]
    fn a_reply_that_comes_late_settles_nothing_newer() {
        let repairs = Repairs::default();
        let first = repairs.last();
        repairs.add(Repair::Invalidate(id(1)), None);
        repairs.settled(b"1", first, false);
        assert!(repairs.block(&id(1).encoded));
    }

    #[test]
    fn one_that_was_replaced_while_it_was_done_stays() {
        let repairs = Repairs::default();
        repairs.add(Repair::Invalidate(id(1)), None);
        let (ticket, _) = repairs.first().unwrap();
        repairs.add(Repair::Invalidate(id(1)), None);
        repairs.done(ticket);
        assert!(repairs.block(&id(1).encoded));
    }

    #[test]
    fn a_full_list_becomes_one_invalidation_of_everything() {
        let repairs = Repairs::default();
        let added = repairs.add(Repair::Invalidate(id(0)), None);
        assert!(added.needs_worker && !added.overflowed);
        let overflowed = (1..=MOST as u64)
            .filter(|key| repairs.add(Repair::Invalidate(id(*key)), None).overflowed);
        assert_eq!(overflowed.count(), 1);
        assert!(repairs.block(&id(123_456).encoded));
        assert_eq!(order(&repairs), ["All"]);
    }

    #[test]
    fn a_tag_that_is_pending_keeps_its_entries_dead() {
        let (repairs, tag) = (Repairs::default(), Arc::new(TagWatermark::default()));
        repairs.add(Repair::Tag(5), Some(Arc::clone(&tag)));
        repairs.add(Repair::Tag(5), Some(Arc::clone(&tag)));
        assert!(tag.is_unconfirmed());
        let (ticket, _) = repairs.first().unwrap();
        repairs.done(ticket);
        assert!(!tag.is_unconfirmed());
    }
}
