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

use super::flight::{Aim, Failure, Flight, Found};
use super::lease::Waited;
use super::read::{Keep, Landing};
use super::{Engine, Local, load};
use crate::entry::Freshness;
use crate::erased::{AnyError, AnyKey};
use crate::error::Error;
use crate::l1::Meta;
use crate::life::Standing;
use crate::ttl;

/// Refreshes in one process at once that nobody waits for. With more, entries stay what they are
/// until the next hit.
pub(crate) const MOST: usize = 1024;

/// After a refresh that came to nothing, for which nobody is to blame, the next hit may try again.
pub(crate) const QUIET: Duration = Duration::from_millis(20);

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
    pub(crate) fn refresh_behind(self: &Arc<Self>, key: AnyKey, local: &Local) {
        let (Ok(runtime), Some(running)) = (Handle::try_current(), self.tasks.enter()) else {
            return;
        };
        if self.behind.available_permits() == 0 {
            return;
        }
        let now = Instant::now();
        let mut shard = self.flights.lock(key.id.hash);
        // Look again, now that nobody can invalidate it: the flight puts up what is found here.
        let Some(local) = self
            .look(&key, now)
            .filter(|found| found.meta.print == local.meta.print)
        else {
            return;
        };
        if let Some((_, until)) = shard.held(&key.id, now) {
            return self.calm(&key, until);
        }
        let until = self.load_deadline();
        if let Some(flight) = shard.find(&key.id) {
            flight.calm();
            return self.calm(&key, until);
        }
        let mut flight = Flight::new(key, Aim::Replace(local.meta.print), now);
        flight.failures = shard.failures(&flight.key.id, now);
        flight.offer(local.found());
        flight.calm();
        let flight = Arc::new(flight);
        shard.insert(Arc::clone(&flight));
        self.calm(&flight.key, until);
        drop(shard);
        self.stats.refreshes.add();
        let leader = self.leader(&flight, load::nesting(), running);
        self.take_off(&runtime, leader);
    }

    /// Until then hits answer what L1 has and do nothing else, as long as it may be answered at all.
    /// Under the shard's lock.
    fn calm(&self, key: &AnyKey, until: Instant) {
        let now = Instant::now();
        self.l1.amend(key, |meta| {
            let stands = meta.life.stands_until(now, &self.config.windows);
            meta.calm_until = until.min(stands).min(meta.bound);
        });
    }

    /// Hits look after the entry themselves again, from then on. Under the shard's lock.
    pub(crate) fn end_calm(&self, key: &AnyKey, at: Instant) {
        self.l1.amend(key, |meta| {
            if meta.calm_until > meta.life.calm_until(meta.born(), &self.config.windows) {
                meta.calm_until = meta.calm_until.min(at);
            }
        });
    }

    /// Stores an entry that a flight has found, if there is an L1 for it. Under the shard's lock, while
    /// the flight is current. With an end of its calm other than its life's.
    pub(crate) fn store(
        &self,
        flight: &Flight,
        found: &Found,
        bound: Duration,
        (now, calm_until): (Instant, Option<Instant>),
    ) -> bool {
        let (hash, at) = (flight.key.id.hash, found.answer.at);
        if self.l1.is_off() || self.fence.is_held_off(hash, now) {
            return false;
        }
        let bound = ttl::deadline(at, bound);
        let windows = &self.config.windows;
        let calm_until =
            calm_until.unwrap_or_else(|| found.life.calm_until(found.answer.born(), windows));
        let meta = Meta {
            begun: flight.begun,
            stored: at,
            age: found.answer.age,
            life: found.life,
            calm_until: calm_until.min(bound),
            bound,
            print: found.print,
            stamp: self
                .fence
                .stamp_in(hash, flight.epoch().unwrap_or_default()),
        };
        self.l1.store(&flight.key, &found.answer, meta)
    }

    /// Puts up an entry that is about to be refreshed: for the callers of the flight, and in L1 for
    /// those who come.
    pub(crate) fn put_up(&self, flight: &Arc<Flight>, found: &Found) {
        if !self.is_of_use(found) {
            return;
        }
        let shard = self.flights.lock(flight.key.id.hash);
        if shard.is_current(flight) {
            let now = Instant::now();
            let stands = found.life.stands_until(now, &self.config.windows);
            let calm_until = match found.life.standing(now, &self.config.windows) {
                Standing::Fresh | Standing::Revalidate => self.load_deadline().min(stands),
                Standing::Fallback | Standing::Gone => now,
            };
            flight.calm();
            let bound = self.config.l1_bound();
            self.store(flight, found, bound, (now, Some(calm_until)));
        }
        drop(shard);
        flight.offer(found.clone());
    }

    /// Whether an entry is good for anything now.
    pub(crate) fn is_of_use(&self, found: &Found) -> bool {
        found.life.standing(Instant::now(), &self.config.windows) != Standing::Gone
    }

    /// Whether a flight that has found this entry in L2 is to replace it.
    pub(crate) fn replaces(
        &self,
        flight: &Flight,
        found: &Found,
        replaces: &mut Replaces,
        waited: &Waited,
    ) -> bool {
        // Read a moment ago.
        let (now, windows) = (found.answer.at, &self.config.windows);
        if found.life.freshness(now) != Freshness::Fresh {
            return true;
        }
        if flight.spared.is_some() {
            return false;
        }
        match flight.aim {
            Aim::Fresh => false,
            Aim::Replace(print) => found.print == print,
            Aim::Any => {
                let begins = replaces.early.is_none()
                    && !waited.has_waited()
                    && now >= found.life.calm_until(found.answer.born(), windows)
                    && found.life.is_early(now, windows);
                if begins {
                    replaces.early = Some(found.print);
                }
                replaces.early == Some(found.print)
            }
            Aim::Load => match replaces.first {
                // What another process has loaded meanwhile will do.
                Some(first) => first == found.print,
                None if waited.has_waited() => false,
                None => {
                    replaces.first = Some(found.print);
                    true
                }
            },
        }
    }

    /// What a flight that must not load comes down with, having found this entry.
    pub(crate) fn spare(&self, flight: &Flight, error: &Error<AnyError>, found: Found) -> Landing {
        let keep = if self.is_of_use(&found) {
            flight.offer(found.clone());
            Keep::Entry(found, self.config.l1_bound())
        } else {
            self.stats.errors_held.add();
            Keep::Nothing
        };
        Landing {
            outcome: Some(Err(error.clone())),
            keep,
        }
    }

    /// A load failed in another process a moment ago.
    pub(crate) fn failed_elsewhere(&self, flight: &Flight, left: Duration) -> Landing {
        Landing::failure(Failure {
            error: Error::LoadFailedElsewhere,
            hold: left,
            failures: flight.failures,
        })
    }

    /// A place for work that nobody waits for.
    pub(crate) fn place_behind(&self) -> Option<OwnedSemaphorePermit> {
        Arc::clone(&self.behind).try_acquire_owned().ok()
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
        let calm_until = |cache: &Cache<u64, u64, BoxError>| {
            let (_, meta) = cache
                .engine()
                .l1
                .get(&cache.key(1), Instant::now())
                .unwrap();
            meta.calm_until
        };
        a.get(&1).await.unwrap();
        tokio::time::advance(Duration::from_secs(600)).await;
        b.get(&1).await.unwrap();
        let later = calm_until(&b).saturating_duration_since(calm_until(&a));
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
