//! `Stats`, the counters of a cache: one table of their names, docs and metrics.

use std::sync::atomic::{AtomicU64, Ordering};

use parking_lot::Mutex;

/// A series of the metrics that is published from one counter of [`Stats`].
#[cfg(feature = "metrics")]
pub(crate) struct CounterSeries {
    pub(crate) name: &'static str,
    pub(crate) labels: &'static [(&'static str, &'static str)],
    pub(crate) of: fn(&Stats) -> u64,
}

/// Makes the types of the counters from one table. A row is a counter's docs, its name, and the
/// name and labels of its metric.
macro_rules! stats {
    ($(
        $(#[$doc:meta])*
        $name:ident: $metric:literal { $($label:ident: $value:literal),* },
    )*) => {
        /// A snapshot of the counters of one cache in this process, since it was built.
        ///
        /// The counting rule: every look-up that was answered (with a value, an absence or an
        /// error) counts in exactly one of `l1_hits`, `l2_hits` and `misses`. Negative answers
        /// count as hits. A look-up whose future was dropped, or that was answered
        /// [`Closed`](crate::Error::Closed) or [`NoRuntime`](crate::Error::NoRuntime), counts in
        /// none. [`peek`](crate::Cache::peek) is not counted.
        #[non_exhaustive]
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
        pub struct Stats {
            $($(#[$doc])* pub $name: u64,)*
        }

        impl Stats {
            /// What was counted since an earlier snapshot of the same cache.
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

            /// The later of two snapshots, counter by counter.
            #[cfg(feature = "metrics")]
            pub(crate) fn max(&self, other: &Self) -> Self {
                Self { $($name: self.$name.max(other.$name),)* }
            }
        }

        /// The live counters of one cache.
        #[derive(Debug, Default)]
        pub(crate) struct Counters {
            $(pub(crate) $name: Counter,)*
            /// Plain hits of the hot slots. They are counted apart, because many threads count them
            /// at once.
            pub(crate) hot_hits: ShardedCounter,
            /// Plain hits of the map behind the hot slots.
            pub(crate) plain_hits: ShardedCounter,
        }

        /// The series of each counter, in the order of the table.
        #[cfg(feature = "metrics")]
        pub(crate) const COUNTER_SERIES: &[CounterSeries] = &[$(CounterSeries {
            name: $metric,
            labels: &[$((stringify!($label), $value)),*],
            of: |stats| stats.$name,
        },)*];

        /// The name of each counter, and a snapshot in which it alone is one.
        #[cfg(all(test, feature = "metrics"))]
        pub(crate) fn one_of_each() -> Vec<(&'static str, Stats)> {
            vec![$((stringify!($name), Stats { $name: 1, ..Stats::default() }),)*]
        }

        impl Counters {
            /// The counters at this moment.
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
    l1_hits: "tidegate_lookups_total" { tier: "l1", outcome: "hit" },
    /// Look-ups answered by the shared tier, by their own read of it or by one that they joined.
    l2_hits: "tidegate_lookups_total" { tier: "l2", outcome: "hit" },
    /// Look-ups that no tier could answer: a load was run or joined, or a held error was answered.
    misses: "tidegate_lookups_total" { tier: "source", outcome: "miss" },
    /// Hits that were past their TTL.
    stale_hits: "tidegate_lookups_stale_total" {},
    /// Hits that were answered with an absence: "there is no such thing".
    negative_hits: "tidegate_lookups_negative_total" {},
    /// Look-ups that joined a read or a load of another one.
    coalesced: "tidegate_lookups_collapsed_total" {},
    /// Loads begun: one for each key, even if a batch loader loads several keys with one call.
    loads: "tidegate_loads_total" {},
    /// Calls of [`BatchLoader::load_many`](crate::BatchLoader::load_many).
    batch_loads: "tidegate_batch_loads_total" {},
    /// Refreshes begun in the background. Some of them find that another process was quicker.
    refreshes: "tidegate_refreshes_total" {},
    /// Loads that answered `Loaded::unchanged`.
    unchanged: "tidegate_loads_unchanged_total" {},
    /// Loads that ended in an error, a panic or a timeout.
    load_failures: "tidegate_loads_failed_total" {},
    /// Look-ups answered by an error that is held for `error_backoff`, without a load.
    errors_held: "tidegate_lookups_held_total" {},
    /// Loads refused because no permit of `max_concurrent_loads` came free in time.
    overloaded: "tidegate_loads_overloaded_total" {},
    /// Records written to the shared tier by loads.
    fills: "tidegate_fills_total" { outcome: "stored" },
    /// Fills refused because the key was invalidated, replaced or evicted after the load began.
    fills_refused: "tidegate_fills_total" { outcome: "refused" },
    /// Absences that were not written to the shared tier because too many came at once.
    negatives_not_stored: "tidegate_fills_total" { outcome: "too_many_absences" },
    /// Times this process waited for the load of another process.
    lease_waits: "tidegate_lease_waits_total" {},
    /// Loads without a lease, because the wait for it took longer than `lease_wait`.
    lease_wait_exceeded: "tidegate_lease_waits_exceeded_total" {},
    /// Records that could not be read, because they are corrupt, foreign, too large, of an older
    /// version, or sealed under an unknown key.
    decode_failures: "tidegate_records_unusable_total" { reason: "unreadable" },
    /// Records of a newer `schema_version`, left alone.
    newer_records: "tidegate_records_unusable_total" { reason: "newer" },
    /// Values that could not be encoded, or whose record would be too large.
    encode_failures: "tidegate_records_unusable_total" { reason: "unencodable" },
    /// Operations of the shared tier that failed or timed out.
    l2_failures: "tidegate_l2_failures_total" {},
    /// Keys, tags and whole caches invalidated by this cache.
    invalidations: "tidegate_changes_total" { operation: "invalidate" },
    /// Keys expired by hand by this cache.
    expirations: "tidegate_changes_total" { operation: "expire" },
    /// Values inserted by this cache.
    inserts: "tidegate_changes_total" { operation: "insert" },
    /// Writes to the source that returned `Ok`, by `write`, `invalidate_after` and `refresh_after`.
    writes: "tidegate_changes_total" { operation: "write" },
    /// Inserts refused because the entry in the shared tier has a later version.
    inserts_superseded: "tidegate_inserts_superseded_total" {},
    /// Invalidations that failed at first and were confirmed later.
    repairs: "tidegate_repairs_total" {},
    /// Times too many repairs were pending, so that everything was invalidated instead.
    repairs_overflowed: "tidegate_repairs_overflowed_total" {},
    /// Keys that another process invalidated, expired or replaced.
    remote_invalidations: "tidegate_remote_invalidations_total" {},
    /// Times a message may have been missed on the invalidation bus.
    gaps: "tidegate_gaps_total" {},
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

/// A counter that few threads add to at once.
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

/// How many cells belong to one thread each, which adds to its cell without an atomic increment.
const OWN_CELLS: usize = 16;
/// The number of all cells. Threads beyond the first [`OWN_CELLS`] share the rest.
const CELLS: usize = OWN_CELLS + 8;

/// A counter that many threads add to at once, each in its own cache line if there are enough.
#[derive(Debug, Default)]
pub(crate) struct ShardedCounter([Cell; CELLS]);

/// One thread's part of a counter, or that of a few threads, in a cache line of its own.
#[derive(Debug, Default)]
#[repr(align(128))]
struct Cell(AtomicU64);

/// The index of a thread's cell in every [`ShardedCounter`], for as long as the thread lives.
struct CellOfThread(usize);

/// The own cells that ended threads have given back, and how many cells were ever taken.
static CELLS_TAKEN: Mutex<(Vec<usize>, usize)> = Mutex::new((Vec::new(), 0));

impl CellOfThread {
    fn take() -> Self {
        let mut cells = CELLS_TAKEN.lock();
        let (given_back, taken) = &mut *cells;
        Self(given_back.pop().unwrap_or_else(|| {
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
    /// Adds one, and returns the count of this thread's cell before.
    #[inline]
    pub(crate) fn add(&self) -> u64 {
        // A thread that is ending has given its cell back already.
        let index = CELL.try_with(|cell| cell.0).unwrap_or(OWN_CELLS);
        let Cell(count) = &self.0[index];
        if index >= OWN_CELLS {
            return count.fetch_add(1, Ordering::Relaxed);
        }
        // No other thread writes to this cell. An earlier owner has ended, and gave it back under
        // the lock of `CELLS_TAKEN`.
        let before = count.load(Ordering::Relaxed);
        count.store(before + 1, Ordering::Relaxed);
        before
    }

    fn sum(&self) -> u64 {
        self.0
            .iter()
            .map(|cell| cell.0.load(Ordering::Relaxed))
            .sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Threads come and go, and more of them live at once than have a cell of their own.
    #[test]
    fn every_thread_counts_and_no_own_cell_has_two_threads() {
        let (counter, threads) = (ShardedCounter::default(), 2 * CELLS);
        for _ in 0..3 {
            let all_live = std::sync::Barrier::new(threads);
            let cells: Vec<usize> = std::thread::scope(|scope| {
                let running: Vec<_> = (0..threads)
                    .map(|_| {
                        scope.spawn(|| {
                            all_live.wait();
                            for _ in 0..1_000 {
                                counter.add();
                            }
                            all_live.wait();
                            CELL.with(|cell| cell.0)
                        })
                    })
                    .collect();
                let ended = running.into_iter().map(|thread| thread.join());
                ended.map(|cell| cell.expect("a cell")).collect()
            });
            assert!(cells.iter().all(|&cell| cell < CELLS));
            let mut own: Vec<usize> = cells.into_iter().filter(|&cell| cell < OWN_CELLS).collect();
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
