//! Counters for all that happens.

use std::sync::atomic::{AtomicU64, Ordering};

use parking_lot::Mutex;

macro_rules! stats {
    ($($(#[$doc:meta])* $name:ident,)*) => {
        /// Counters of one cache in this process, since it was built: a snapshot.
        ///
        /// The counting rule: every look-up that was answered (a value, an absence or an error)
        /// counts exactly one of `l1_hits`, `l2_hits` and `misses`. Negative answers count among
        /// the hits. A look-up whose future was dropped, or that was answered
        /// [`Closed`](crate::Error::Closed) or [`NoRuntime`](crate::Error::NoRuntime), counts none.
        /// [`peek`](crate::Cache::peek) is not counted.
        #[non_exhaustive]
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
        pub struct Stats {
            $($(#[$doc])* pub $name: u64,)*
        }

        impl Stats {
            /// What has happened since an earlier snapshot of the same cache.
            ///
            /// ```
            /// # fn every_minute(users: &tidegate::Cache<u64, u64>) {
            /// let mut before = users.stats();
            /// // a minute later
            /// let now = users.stats();
            /// println!("hit ratio of the last minute: {:.3}", now.since(&before).hit_ratio());
            /// before = now;
            /// # let _ = before;
            /// # }
            /// ```
            #[must_use]
            pub fn since(&self, earlier: &Self) -> Self {
                Self { $($name: self.$name.saturating_sub(earlier.$name),)* }
            }

            /// Of each counter the later state.
            #[cfg(feature = "metrics")]
            pub(crate) fn max(&self, other: &Self) -> Self {
                Self { $($name: self.$name.max(other.$name),)* }
            }
        }

        #[derive(Debug, Default)]
        pub(crate) struct Counters {
            $(pub(crate) $name: Counter,)*
            /// Hits of the front: counted apart, because many threads count them.
            pub(crate) hot_hits: ShardedCounter,
            /// Hits of L1 behind its front.
            pub(crate) plain_hits: ShardedCounter,
        }

        /// The name of each counter, and a snapshot in which it alone is one.
        #[cfg(all(test, feature = "metrics"))]
        pub(crate) fn one_of_each() -> Vec<(&'static str, Stats)> {
            vec![$((stringify!($name), Stats { $name: 1, ..Stats::default() }),)*]
        }

        impl Counters {
            pub(crate) fn snapshot(&self) -> Stats {
                let mut stats = Stats { $($name: self.$name.so_far(),)* };
                stats.l1_hits += self.hot_hits.sum() + self.plain_hits.sum();
                stats
            }
        }
    };
}

stats! {
    /// Look-ups answered by the tier in this process.
    l1_hits,
    /// Look-ups answered by the shared tier, their own read of it or one that they joined.
    l2_hits,
    /// Look-ups that no tier could answer: a load was run or joined, or a held error was answered.
    misses,
    /// Hits that were past their TTL.
    stale_hits,
    /// Hits that said "there is no such thing".
    negative_hits,
    /// Look-ups that joined a read or a load of another one.
    coalesced,
    /// Loads begun: one for each key, also where a batch loader loads several with one call.
    loads,
    /// Calls of [`BatchLoader::load_many`](crate::BatchLoader::load_many).
    batch_loads,
    /// Refreshes begun that no caller waited for; some find that another process was quicker.
    refreshes,
    /// Loads that answered `Loaded::unchanged`.
    unchanged,
    /// Loads that ended in an error, a panic or a timeout.
    load_failures,
    /// Look-ups answered by an error that is held for `error_backoff`, without a load.
    errors_held,
    /// Loads refused because no place came free in time.
    overloaded,
    /// Records written to the shared tier by loads.
    fills,
    /// Fills that lost: the key was invalidated, replaced or evicted after the load began.
    fills_refused,
    /// Absences that were not written to the shared tier because too many came at once.
    negatives_not_stored,
    /// Times this process waited for the load of another one.
    lease_waits,
    /// Loads without a lease because waiting took longer than `lease_wait`.
    lease_wait_exceeded,
    /// Records that could not be read: corrupt, foreign, too large, of an older version, sealed under
    /// an unknown key.
    decode_failures,
    /// Records of a newer `schema_version`, left alone.
    newer_records,
    /// Values that could not be encoded, or whose records would be too large.
    encode_failures,
    /// Operations of the shared tier that failed or timed out.
    l2_failures,
    /// Keys, tags and whole caches invalidated by this cache.
    invalidations,
    /// Keys expired by hand by this cache.
    expirations,
    /// Values inserted by this cache.
    inserts,
    /// Writes to the source that returned `Ok`, by `write`, `invalidate_after` and `refresh_after`.
    writes,
    /// Inserts refused because the entry in the shared tier has a later version.
    inserts_superseded,
    /// Invalidations that failed at first and were confirmed later.
    repairs,
    /// Times so many were pending that everything was invalidated instead.
    repairs_overflowed,
    /// Keys that another process invalidated, expired or replaced.
    remote_invalidations,
    /// Times something may have been missed on the invalidation bus.
    gaps,
}

impl Stats {
    /// Look-ups that were answered.
    pub fn lookups(&self) -> u64 {
        self.l1_hits + self.l2_hits + self.misses
    }

    /// The share of look-ups that a tier answered, from 0 to 1; 0 when there were none.
    pub fn hit_ratio(&self) -> f64 {
        let hits = self.l1_hits + self.l2_hits;
        #[expect(clippy::cast_precision_loss, reason = "a ratio for people")]
        let (hits, lookups) = (hits as f64, self.lookups() as f64);
        if lookups > 0.0 { hits / lookups } else { 0.0 }
    }
}

#[derive(Debug, Default)]
pub(crate) struct Counter(AtomicU64);

impl Counter {
    pub(crate) fn add(&self) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }

    pub(crate) fn so_far(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// Lanes that are one thread's, which adds without a word to the others.
const OWN_CELLS: usize = 16;
/// All lanes: where there are more threads, those share the rest.
const CELLS: usize = OWN_CELLS + 8;

/// A counter that threads add to side by side: one cache line for each, or for a few.
#[derive(Debug, Default)]
pub(crate) struct ShardedCounter([Cell; CELLS]);

#[derive(Debug, Default)]
#[repr(align(128))]
struct Cell(AtomicU64);

/// A lane of all such counters, while a thread lives.
struct CellOfThread(usize);

/// Places that threads have left, and how many were taken.
static CELLS_TAKEN: Mutex<(Vec<usize>, usize)> = Mutex::new((Vec::new(), 0));

impl CellOfThread {
    fn take() -> Self {
        let mut places = CELLS_TAKEN.lock();
        let (left, taken) = &mut *places;
        Self(left.pop().unwrap_or_else(|| {
            *taken += 1;
            match *taken - 1 {
                own @ ..OWN_CELLS => own,
                more => OWN_CELLS + more % (CELLS - OWN_CELLS),
            }
        }))
    }
}

impl Drop for CellOfThread {
    fn drop(&mut self) {
        if self.0 < OWN_CELLS {
            CELLS_TAKEN.lock().0.push(self.0);
        }
    }
}

thread_local! {
    static CELL: CellOfThread = CellOfThread::take();
}

impl ShardedCounter {
    /// Answers how many this thread's lane had before.
    #[inline]
    pub(crate) fn add(&self) -> u64 {
        // A thread that ends has none any more.
        let at = CELL.try_with(|place| place.0).unwrap_or(OWN_CELLS);
        let Cell(count) = &self.0[at];
        if at >= OWN_CELLS {
            return count.fetch_add(1, Ordering::Relaxed);
        }
        // Nobody else writes here, and whoever did before has let go of the place.
        let before = count.load(Ordering::Relaxed);
        count.store(before + 1, Ordering::Relaxed);
        before
    }

    fn sum(&self) -> u64 {
        self.0
            .iter()
            .map(|lane| lane.0.load(Ordering::Relaxed))
            .sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Threads come and go, and more of them live at once than have a lane of their own.
    #[test]
    fn every_thread_counts_and_no_lane_is_that_of_two() {
        let (counter, threads) = (ShardedCounter::default(), 2 * CELLS);
        for _ in 0..3 {
            let all_live = std::sync::Barrier::new(threads);
            let places: Vec<usize> = std::thread::scope(|scope| {
                let running: Vec<_> = (0..threads)
                    .map(|_| {
                        scope.spawn(|| {
                            all_live.wait();
                            for _ in 0..1_000 {
                                counter.add();
                            }
                            all_live.wait();
                            CELL.with(|place| place.0)
                        })
                    })
                    .collect();
                let ended = running.into_iter().map(|thread| thread.join());
                ended.map(|place| place.expect("a place")).collect()
            });
            assert!(places.iter().all(|&place| place < CELLS));
            let mut own: Vec<usize> = places
                .into_iter()
                .filter(|&place| place < OWN_CELLS)
                .collect();
            let some = own.len();
            own.sort_unstable();
            own.dedup();
            assert_eq!(own.len(), some, "one thread each");
        }
        assert_eq!(counter.sum(), 3 * 1_000 * threads as u64);
    }

    #[test]
    fn snapshots_subtract_and_ratios_divide() {
        let counters = Counters::default();
        assert!(counters.snapshot().hit_ratio().abs() < f64::EPSILON);
        counters.l1_hits.add();
        let before = counters.snapshot();
        counters.l2_hits.add();
        counters.misses.add();
        counters.misses.add();
        let stats = counters.snapshot();
        assert_eq!(stats.lookups(), 4);
        assert!((stats.hit_ratio() - 0.5).abs() < f64::EPSILON);
        let since = stats.since(&before);
        assert_eq!((since.l1_hits, since.l2_hits, since.misses), (0, 1, 2));
    }
}
