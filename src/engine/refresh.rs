//! Refreshes: replacing an entry while it is still answered.
//!
//! | who | finds | does |
//! |---|---|---|
//! | a hit in L1 | an entry late in its TTL (drawn), or past it within `stale_while_revalidate` | answers it, begins a flight behind its back |
//! | a flight | the same in L2 | puts it up, for callers to take, and goes on |
//! | a flight | an entry that only an error justifies | puts it up for the case that the load fails, or is late |
//!
//! In L2 the entry stays where it is. Whoever refreshes it holds the *claim*, a lease in a key beside
//! it: one process in the fleet. The others keep answering what they have, and are woken when the new
//! value is there. The claim only saves work. What keeps an old value out is the fill: it is compared
//! with the entry that was read before the load began, its state included, so that whatever changed
//! the key meanwhile, an expiry too, makes it lose.
//!
//! A refresher that dies is replaced when its claim ends, one that hangs when `load_timeout` does, and
//! one that fails leaves a mark in the place of its claim: for `error_backoff` nobody tries.

use std::sync::Arc;
use std::time::Duration;

use tokio::runtime::Handle;
use tokio::sync::OwnedSemaphorePermit;
use tokio::time::Instant;

use super::fetch::{Completion, Retention};
use super::flight::{Failure, Flight, Found, Purpose};
use super::regenerate::LeaseWaits;
use super::{Engine, L1Entry, load};
use crate::entry::Freshness;
use crate::erased::{AnyError, AnyKey};
use crate::error::Error;
use crate::l1::Meta;
use crate::lifetime::Usability;
use crate::ttl;

/// Refreshes in one process at once that nobody waits for. With more, entries stay what they are
/// until the next hit.
pub(crate) const MAX_BACKGROUND: usize = 1024;

/// After a refresh that came to nothing, for which nobody is to blame, the next hit may try again.
pub(crate) const RETRY_AFTER: Duration = Duration::from_millis(20);

/// Which versions of the value a flight is out to replace.
#[derive(Debug, Default)]
pub(crate) struct Replaces {
    /// The one that it found first.
    first: Option<u64>,
    /// The one that it has begun to replace before its time.
    early: Option<u64>,
}

impl Engine {
    /// Begins a refresh that no caller waits for, unless one is under way, or one failed a moment ago.
    pub(crate) fn refresh_in_background(self: &Arc<Self>, key: AnyKey, local: &L1Entry) {
        let (Ok(runtime), Some(running)) = (Handle::try_current(), self.tasks.enter()) else {
            return;
        };
        if self.background.available_permits() == 0 {
            return;
        }
        let now = Instant::now();
        let mut shard = self.flights.lock(key.id.hash);
        // Look again, now that nobody can invalidate it: the flight puts up what is found here.
        let Some(local) = self
            .look(&key, now)
            .filter(|found| found.meta.version_id == local.meta.version_id)
        else {
            return;
        };
        if let Some((_, until)) = shard.held(&key.id, now) {
            return self.suspend_refresh(&key, until);
        }
        let until = self.load_deadline();
        if let Some(flight) = shard.find(&key.id) {
            flight.suspend_refresh();
            return self.suspend_refresh(&key, until);
        }
        let mut flight = Flight::new(key, Purpose::Replace(local.meta.version_id), now);
        flight.failures = shard.failures(&flight.key.id, now);
        flight.set_interim(local.found());
        flight.suspend_refresh();
        let flight = Arc::new(flight);
        shard.insert(Arc::clone(&flight));
        self.suspend_refresh(&flight.key, until);
        drop(shard);
        self.stats.refreshes.add();
        let leader = self.leader(&flight, load::nesting(), running);
        self.spawn_task(&runtime, leader);
    }

    /// Until then hits answer what L1 has and do nothing else, as long as it may be answered at all.
    /// Under the shard's lock.
    fn suspend_refresh(&self, key: &AnyKey, until: Instant) {
        let now = Instant::now();
        self.l1.amend(key, |meta| {
            let stands = meta.lifetime.usable_until(now, &self.config.windows);
            meta.no_refresh_before = until.min(stands).min(meta.l1_deadline);
        });
    }

    /// Hits look after the entry themselves again, from then on. Under the shard's lock.
    pub(crate) fn rearm_refresh(&self, key: &AnyKey, at: Instant) {
        self.l1.amend(key, |meta| {
            if meta.no_refresh_before
                > meta
                    .lifetime
                    .no_refresh_before(meta.loaded_at(), &self.config.windows)
            {
                meta.no_refresh_before = meta.no_refresh_before.min(at);
            }
        });
    }

    /// Stores an entry that a flight has found, if there is an L1 for it. Under the shard's lock, while
    /// the flight is current. With an end of its calm other than its life's.
    pub(crate) fn store(
        &self,
        flight: &Flight,
        found: &Found,
        l1_lifetime: Duration,
        (now, no_refresh_before): (Instant, Option<Instant>),
    ) -> bool {
        let (hash, at) = (flight.key.id.hash, found.answer.at);
        if self.l1.is_off() || self.fence.is_held_off(hash, now) {
            return false;
        }
        let l1_deadline = ttl::deadline(at, l1_lifetime);
        let windows = &self.config.windows;
        let no_refresh_before = no_refresh_before.unwrap_or_else(|| {
            found
                .lifetime
                .no_refresh_before(found.answer.loaded_at(), windows)
        });
        let meta = Meta {
            begun: flight.begun,
            stored: at,
            age: found.answer.age,
            lifetime: found.lifetime,
            no_refresh_before: no_refresh_before.min(l1_deadline),
            l1_deadline,
            version_id: found.version_id,
            stamp: self
                .fence
                .stamp_in(hash, flight.epoch().unwrap_or_default()),
        };
        self.l1.store(&flight.key, &found.answer, meta)
    }

    /// Puts up an entry that is about to be refreshed: for the callers of the flight, and in L1 for
    /// those who come.
    pub(crate) fn publish_interim(&self, flight: &Arc<Flight>, found: &Found) {
        if !self.is_of_use(found) {
            return;
        }
        let shard = self.flights.lock(flight.key.id.hash);
        if shard.is_current(flight) {
            let now = Instant::now();
            let stands = found.lifetime.usable_until(now, &self.config.windows);
            let no_refresh_before = match found.lifetime.usability(now, &self.config.windows) {
                Usability::Fresh | Usability::Revalidate => self.load_deadline().min(stands),
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
    pub(crate) fn is_of_use(&self, found: &Found) -> bool {
        found
            .lifetime
            .usability(Instant::now(), &self.config.windows)
            != Usability::Gone
    }

    /// Whether a flight that has found this entry in L2 is to replace it.
    pub(crate) fn replaces(
        &self,
        flight: &Flight,
        found: &Found,
        replaces: &mut Replaces,
        waits: &LeaseWaits,
    ) -> bool {
        // Read a moment ago.
        let (now, windows) = (found.answer.at, &self.config.windows);
        if found.lifetime.freshness(now) != Freshness::Fresh {
            return true;
        }
        if flight.held_error.is_some() {
            return false;
        }
        match flight.purpose {
            Purpose::Fresh => false,
            Purpose::Replace(version_id) => found.version_id == version_id,
            Purpose::Any => {
                let begins = replaces.early.is_none()
                    && !waits.has_waited()
                    && now
                        >= found
                            .lifetime
                            .no_refresh_before(found.answer.loaded_at(), windows)
                    && found.lifetime.is_early(now, windows);
                if begins {
                    replaces.early = Some(found.version_id);
                }
                replaces.early == Some(found.version_id)
            }
            Purpose::Load => match replaces.first {
                // What another process has loaded meanwhile will do.
                Some(first) => first == found.version_id,
                None if waits.has_waited() => false,
                None => {
                    replaces.first = Some(found.version_id);
                    true
                }
            },
        }
    }

    /// What a flight that must not load comes down with, having found this entry.
    pub(crate) fn spare(
        &self,
        flight: &Flight,
        error: &Error<AnyError>,
        found: Found,
    ) -> Completion {
        let keep = if self.is_of_use(&found) {
            flight.set_interim(found.clone());
            Retention::Entry(found, self.config.l1_lifetime())
        } else {
            self.stats.errors_held.add();
            Retention::Nothing
        };
        Completion {
            outcome: Some(Err(error.clone())),
            keep,
        }
    }

    /// A load failed in another process a moment ago.
    pub(crate) fn failed_elsewhere(&self, flight: &Flight, left: Duration) -> Completion {
        Completion::failure(Failure {
            error: Error::LoadFailedElsewhere,
            hold: left,
            failures: flight.failures,
        })
    }

    /// A place for work that nobody waits for.
    pub(crate) fn background_permit(&self) -> Option<OwnedSemaphorePermit> {
        Arc::clone(&self.background).try_acquire_owned().ok()
    }
}

#[cfg(test)]
#[cfg(feature = "bincode")]
mod tests {
    use super::*;
    use crate::{BoxError, Cache, CacheBuilder, InProcess, Loader, loader_fn};

    fn slow(
        load: Duration,
    ) -> CacheBuilder<impl Loader<Key = u64, Value = u64, Error = BoxError> + use<>> {
        let load = loader_fn(move |id: u64| async move {
            tokio::time::sleep(load).await;
            Ok::<_, BoxError>(Some(id))
        });
        Cache::builder("numbers", load)
            .ttl_jitter(0.0)
            .load_timeout(Duration::from_secs(3_600))
    }

    /// A life begins with the load, not where this process first reads of it.
    #[tokio::test(start_paused = true)]
    async fn an_entry_that_is_read_late_from_l2_is_calm_no_longer_than_where_it_was_loaded() {
        let tier = InProcess::new();
        let build = || {
            let builder = slow(Duration::from_secs(10)).ttl(Duration::from_secs(1_000));
            builder.l2(tier.clone()).build().unwrap()
        };
        let (a, b) = (build(), build());
        let no_refresh_before = |cache: &Cache<u64, u64, BoxError>| {
            let (_, meta) = cache
                .engine()
                .l1
                .get(&cache.key(1), Instant::now())
                .unwrap();
            meta.no_refresh_before
        };
        a.get(&1).await.unwrap();
        tokio::time::advance(Duration::from_secs(600)).await;
        b.get(&1).await.unwrap();
        let later = no_refresh_before(&b).saturating_duration_since(no_refresh_before(&a));
        assert!(later < Duration::from_millis(10), "{later:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn a_hit_in_l2_is_not_early_in_the_first_half_of_a_life() {
        let builder = slow(Duration::from_secs(1_000)).ttl(Duration::from_secs(10));
        let cache = builder.l1_capacity(0).l2(InProcess::new()).build().unwrap();
        cache.get(&1).await.unwrap();
        for _ in 0..49 {
            tokio::time::advance(Duration::from_millis(100)).await;
            cache.get(&1).await.unwrap();
        }
        assert_eq!(cache.stats().refreshes, 0);
        tokio::time::advance(Duration::from_millis(200)).await;
        for _ in 0..9 {
            cache.get(&1).await.unwrap();
        }
        assert_eq!(cache.stats().refreshes, 1, "it is, in the second half");
    }
}
