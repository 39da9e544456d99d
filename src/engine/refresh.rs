//! Refreshes: an entry is replaced while it is still answered.
//!
//! | in | finds | does |
//! |---|---|---|
//! | a hit in L1 | an entry late in its TTL (drawn at random), or past it within `stale_while_revalidate` | answers it, and begins a flight that no caller waits for |
//! | a flight | such an entry in L2 | makes it the interim value, which callers take, and goes on |
//! | a flight | an entry that only an error justifies | makes it the interim value, in case the load fails or is late |
//!
//! In L2 the entry stays where it is. The process that refreshes it holds the *claim*: a lease in a
//! key beside the entry, one in the fleet. The other processes keep answering what they have, and
//! are woken by the fill. The claim only saves work. The fill keeps an old value out: it is compared
//! with the entry that was read before the load began, its state included. Any change of the key
//! meanwhile, an expiry too, makes the fill lose.
//!
//! A process that dies while it refreshes is replaced when its claim ends. A load that hangs is cut
//! off at `load_timeout`. A load that fails leaves a mark in the place of the claim: for
//! `error_backoff` no process tries.

use std::sync::Arc;

use tokio::runtime::Handle;
use tokio::time::Instant;

use super::core::Engine;
use super::flight::{Flight, FoundEntry, Purpose};
use super::flight_task::FlightTask;
use super::lease::LeaseWaits;
use super::load::nesting;
use super::memory::L1Entry;
use crate::entry::Freshness;
use crate::erased::AnyKey;

impl Engine {
    /// Begins a refresh that no caller waits for, unless one is under way, or one failed a moment ago.
    pub(super) fn refresh_in_background(self: &Arc<Self>, key: AnyKey, seen: &L1Entry) {
        let (Ok(runtime), Some(running)) = (Handle::try_current(), self.tasks.enter()) else {
            return;
        };
        if self.background.available_permits() == 0 {
            return;
        }
        let now = Instant::now();
        let mut shard = self.flights.lock(key.id.hash);
        // Look again, now that nothing can invalidate the entry: it is the flight's interim value.
        let Some(local) = self
            .l1_entry(&key, now)
            .filter(|local| local.meta.version_id == seen.meta.version_id)
        else {
            return;
        };
        if let Some((_, until)) = shard.held_error(&key.id, now) {
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
        let task = FlightTask::new(self, &flight, nesting::current(), running);
        task.spawn(&runtime);
    }
}

/// The versions of the value that a flight is to replace.
#[derive(Debug, Default)]
pub(super) struct Replaces {
    /// The version that it found first.
    first: Option<u64>,
    /// The version that it has begun to replace before its TTL is over.
    early: Option<u64>,
}

impl FlightTask {
    /// Whether the flight is to replace this entry, which it has found in L2.
    pub(super) fn replaces(
        &self,
        found: &FoundEntry,
        replaces: &mut Replaces,
        waits: &LeaseWaits,
    ) -> bool {
        // It was read a moment ago.
        let (now, windows) = (found.answer.at, &self.engine.config.windows);
        if found.lifetime.freshness(now) != Freshness::Fresh {
            return true;
        }
        if self.flight.held_error.is_some() {
            return false;
        }
        match self.flight.purpose {
            Purpose::Fresh => false,
            Purpose::Replace(version_id) => found.version_id == version_id,
            Purpose::Any => {
                let lifetime = &found.lifetime;
                let begins = replaces.early.is_none()
                    && !waits.has_waited()
                    && now >= lifetime.no_refresh_before(found.answer.loaded_at(), windows)
                    && lifetime.is_early(now, windows);
                if begins {
                    replaces.early = Some(found.version_id);
                }
                replaces.early == Some(found.version_id)
            }
            Purpose::Load => match replaces.first {
                // A value that another process has loaded meanwhile will do.
                Some(first) => first == found.version_id,
                None if waits.has_waited() => false,
                None => {
                    replaces.first = Some(found.version_id);
                    true
                }
            },
        }
    }
}

#[cfg(test)]
#[cfg(feature = "bincode")]
mod tests {
    use std::time::Duration;

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
                .get(&cache.shell.key(1), Instant::now())
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
