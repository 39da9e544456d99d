//! L1 as the engine uses it: whether an entry may be answered, and what is stored there.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use super::core::Engine;
use super::flight::{Flight, FoundEntry};
use super::remote::RemoteTier;
use crate::answer::Answer;
use crate::entry::{Freshness, Read};
use crate::erased::AnyKey;
use crate::l1::{HitView, Meta};
use crate::lifetime::Usability;
use crate::ttl;

/// When the next hit may begin a refresh again, after one that came to nothing without an error.
pub(super) const RETRY_AFTER: Duration = Duration::from_millis(20);

/// An entry of L1 that may be used at a given moment.
pub(crate) struct L1Entry {
    pub(super) answer: Answer,
    pub(super) meta: Meta,
    usability: Usability,
    /// It is time for a refresh.
    pub(super) refresh_due: bool,
}

impl L1Entry {
    /// Whether a caller may have it.
    pub(super) fn suits(&self, read: Read) -> bool {
        match self.usability {
            Usability::Fresh => true,
            Usability::Revalidate => !read.fresh,
            Usability::Fallback | Usability::Gone => false,
        }
    }

    /// The entry as an interim value of a flight.
    pub(super) fn found(&self) -> FoundEntry {
        FoundEntry {
            answer: self.answer.clone(),
            lifetime: self.meta.lifetime,
            of_l1: Some((self.meta.begun, self.meta.stamp)),
            version_id: self.meta.version_id,
        }
    }
}

impl Engine {
    /// Whether a hit has nothing to do but to answer this entry. An absence is counted.
    #[inline]
    pub(crate) fn is_plain_hit<V>(&self, hit: &HitView<'_, V>, now: Instant) -> bool
    where
        V: Send + Sync + 'static,
    {
        let proven = |remote: &RemoteTier| {
            remote.channel.is_proven(now) || self.l1_usable_for(hit.meta.begun, now)
        };
        let usable = hit.no_refresh_before.is_some_and(|until| now < until)
            && self.fence.holds(hit.stamp)
            && self.remote.as_ref().is_none_or(proven)
            && hit.tags_hold();
        let is_plain_hit = usable && !self.tasks.is_closed();
        if is_plain_hit && hit.value.is_none() {
            self.stats.negative_hits.add();
        }
        is_plain_hit
    }

    /// Moves an entry into its hot slot.
    pub(crate) fn promote(&self, key: &AnyKey) {
        let _shard = self.flights.lock(key.id.hash);
        self.l1.promote(key);
    }

    /// The entry of a key, if it may be used at all now.
    pub(super) fn l1_entry(&self, key: &AnyKey, now: Instant) -> Option<L1Entry> {
        self.check_l1_entry(self.l1.get(key, now)?, now)
    }

    /// An entry of L1 with what it may be used for.
    pub(super) fn check_l1_entry(
        &self,
        (answer, meta): (Answer, Meta),
        now: Instant,
    ) -> Option<L1Entry> {
        let usable = now < meta.l1_deadline
            && self.fence.holds(meta.stamp)
            && self.l1_usable_for(meta.begun, now);
        if !usable || !answer.tags_hold() {
            return None;
        }
        let (mut usability, mut refresh_due) = (Usability::Fresh, false);
        if now >= meta.no_refresh_before {
            usability = meta.lifetime.usability(now, &self.config.windows);
            refresh_due = match usability {
                Usability::Fresh => meta.lifetime.is_early(now, &self.config.windows),
                Usability::Revalidate => true,
                Usability::Fallback => false,
                Usability::Gone => return None,
            };
        } else if answer.freshness != Freshness::Fresh {
            usability = Usability::Revalidate;
        }
        Some(L1Entry {
            answer,
            meta,
            usability,
            refresh_due,
        })
    }

    /// What L1 may answer now.
    pub(crate) fn peek(&self, found: (Answer, Meta), now: Instant) -> Option<Answer> {
        let entry = self.check_l1_entry(found, now)?;
        entry.suits(Read::new()).then_some(entry.answer)
    }

    /// Whether an entry that began to be read here at this moment is not too old to be answered.
    pub(super) fn l1_usable_for(&self, begun: Instant, now: Instant) -> bool {
        self.remote.as_ref().is_none_or(|remote| {
            let degraded = self.config.degraded_l1_ttl;
            remote.channel.l1_usable(begun, now, degraded)
        })
    }

    /// Until then hits answer the entry and do nothing else, as long as it may be answered at all.
    /// Under the shard's lock.
    pub(super) fn suspend_refresh(&self, key: &AnyKey, until: Instant) {
        let now = Instant::now();
        self.l1.amend(key, |meta| {
            let usable_until = meta.lifetime.usable_until(now, &self.config.windows);
            meta.no_refresh_before = until.min(usable_until).min(meta.l1_deadline);
        });
    }

    /// From then on hits see about a refresh again. Under the shard's lock.
    pub(super) fn rearm_refresh(&self, key: &AnyKey, at: Instant) {
        let windows = &self.config.windows;
        self.l1.amend(key, |meta| {
            let by_itself = meta.lifetime.no_refresh_before(meta.loaded_at(), windows);
            if meta.no_refresh_before > by_itself {
                meta.no_refresh_before = meta.no_refresh_before.min(at);
            }
        });
    }

    /// Stores an entry that a flight has found, if L1 has room for its kind. Under the shard's lock,
    /// while the flight is current. `no_refresh_before`: where it is not the lifetime's own.
    pub(super) fn store(
        &self,
        flight: &Flight,
        found: &FoundEntry,
        l1_lifetime: Duration,
        (now, no_refresh_before): (Instant, Option<Instant>),
    ) -> bool {
        let (hash, at) = (flight.key.id.hash, found.answer.at);
        if self.l1.is_off() || self.fence.is_held_off(hash, now) {
            return false;
        }
        let (lifetime, windows) = (found.lifetime, &self.config.windows);
        let l1_deadline = ttl::deadline(at, l1_lifetime);
        let no_refresh_before = no_refresh_before
            .unwrap_or_else(|| lifetime.no_refresh_before(found.answer.loaded_at(), windows));
        let epoch = flight.epoch().unwrap_or_default();
        let meta = Meta {
            begun: flight.begun,
            stored: at,
            age: found.answer.age,
            lifetime,
            no_refresh_before: no_refresh_before.min(l1_deadline),
            l1_deadline,
            version_id: found.version_id,
            stamp: self.fence.stamp_in(hash, epoch),
        };
        self.l1.store(&flight.key, &found.answer, meta)
    }

    /// Publishes an entry that is about to be refreshed: to the callers of the flight, and in L1 to
    /// the callers that come.
    pub(super) fn publish_interim(&self, flight: &Arc<Flight>, found: &FoundEntry) {
        if !self.is_of_use(found) {
            return;
        }
        let shard = self.flights.lock(flight.key.id.hash);
        if shard.is_current(flight) {
            let (now, windows) = (Instant::now(), &self.config.windows);
            let no_refresh_before = match found.lifetime.usability(now, windows) {
                Usability::Fresh | Usability::Revalidate => {
                    let usable_until = found.lifetime.usable_until(now, windows);
                    self.load_deadline().min(usable_until)
                }
                Usability::Fallback | Usability::Gone => now,
            };
            flight.suspend_refresh();
            let l1_lifetime = self.config.l1_lifetime();
            self.store(flight, found, l1_lifetime, (now, Some(no_refresh_before)));
        }
        drop(shard);
        flight.set_interim(found.clone());
    }

    /// Whether an entry is good for anything now.
    pub(super) fn is_of_use(&self, found: &FoundEntry) -> bool {
        let (now, windows) = (Instant::now(), &self.config.windows);
        found.lifetime.usability(now, windows) != Usability::Gone
    }
}
