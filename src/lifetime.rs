//! The lifetime of an entry: what it may be used for at a moment. Pure functions of time.
//!
//! ```text
//!  load    fresh           refresh-ahead    stale-while-revalidate   stale-if-error    gone
//!   |------------------------|================|-----------------------|-----------------|
//!   0                  (drawn per hit)       ttl                 + its window     + its window
//! ```
//!
//! Both stale windows begin where the TTL ends (RFC 5861). An entry that was expired by hand is
//! answered only in place of an error from then on, because its user knows that it is out of date.
//! An absence has no stale windows: it is cheap to look up again, and a caller that has just
//! created the row must not be told that there is none.

use std::time::Duration;

use tokio::time::Instant;

use crate::entry::Freshness;
use crate::random;
use crate::ttl;

/// When an entry is fresh, by the clock of this process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Lifetime {
    /// The end of its TTL.
    pub(crate) fresh_until: Instant,
    /// Whether it was expired by hand.
    pub(crate) expired: bool,
    /// Whether it has stale windows. Values have them, absences have not.
    pub(crate) has_stale_windows: bool,
    /// How long a load of it takes.
    pub(crate) cost: Duration,
}

/// What an entry may be used for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Usability {
    /// It is answered.
    Fresh,
    /// It is answered while a new value is loaded.
    Revalidate,
    /// It is answered if the load of a new value fails or is late.
    Fallback,
    /// It is not answered any more.
    Gone,
}

/// How long after its TTL an entry may be used, and how early it is refreshed.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Windows {
    pub(crate) while_revalidate: Duration,
    pub(crate) if_error: Duration,
    /// β of the early refresh: see [`Lifetime::is_early`]. Zero turns it off.
    pub(crate) ahead: f64,
}

impl Windows {
    /// The longer window: what is added to the TTL where an entry is stored.
    pub(crate) fn longest(&self) -> Duration {
        self.while_revalidate.max(self.if_error)
    }
}

impl Lifetime {
    pub(crate) fn new(fresh_until: Instant, has_stale_windows: bool, cost: Duration) -> Self {
        Self {
            fresh_until,
            expired: false,
            has_stale_windows,
            cost,
        }
    }

    /// What the entry may be used for at this moment.
    pub(crate) fn usability(&self, now: Instant, windows: &Windows) -> Usability {
        if now < self.fresh_until && !self.expired {
            return Usability::Fresh;
        }
        let within = |window: Duration| {
            let some = self.has_stale_windows && !window.is_zero();
            some && now < ttl::deadline(self.fresh_until, window)
        };
        if !self.expired && within(windows.while_revalidate) {
            Usability::Revalidate
        } else if within(windows.if_error) {
            Usability::Fallback
        } else {
            Usability::Gone
        }
    }

    /// When the usability that it has now ends.
    pub(crate) fn usable_until(&self, now: Instant, windows: &Windows) -> Instant {
        match self.usability(now, windows) {
            Usability::Fresh => self.fresh_until,
            Usability::Revalidate => ttl::deadline(self.fresh_until, windows.while_revalidate),
            Usability::Fallback => ttl::deadline(self.fresh_until, windows.if_error),
            Usability::Gone => now,
        }
    }

    /// Whether the entry is within its TTL at this moment.
    pub(crate) fn freshness(&self, now: Instant) -> Freshness {
        if now < self.fresh_until && !self.expired {
            Freshness::Fresh
        } else {
            Freshness::Stale
        }
    }

    /// The moment before which no hit begins an early refresh: no draw of
    /// [`is_early`](Self::is_early) is that large.
    pub(crate) fn no_refresh_before(&self, loaded_at: Instant, windows: &Windows) -> Instant {
        if self.expired {
            return loaded_at;
        }
        if windows.ahead == 0.0 || self.cost.is_zero() {
            return self.fresh_until;
        }
        let reach = ttl::earliest(self.cost, windows.ahead);
        let lifetime = self.fresh_until.saturating_duration_since(loaded_at);
        // However long a load takes, the first half of a lifetime has no early refresh.
        let reach = reach.min(lifetime / 2);
        self.fresh_until.checked_sub(reach).unwrap_or(loaded_at)
    }

    /// Whether this hit begins a refresh before the TTL ends. This is probabilistic early
    /// expiration (XFetch: Vattani, Chierichetti, Lowenstein, "Optimal Probabilistic Cache Stampede
    /// Prevention", PVLDB 8(8), 2015): a refresh begins if a draw of −δ·β·ln(u) is at least the
    /// time that is left, where δ is how long a load takes and u a random number from (0, 1].
    pub(crate) fn is_early(&self, now: Instant, windows: &Windows) -> bool {
        let left = self.fresh_until.saturating_duration_since(now);
        windows.ahead > 0.0
            && !self.cost.is_zero()
            && ttl::early_by(self.cost, windows.ahead, 1.0 - random::share()) >= left
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn windows(while_revalidate: u64, if_error: u64) -> Windows {
        Windows {
            while_revalidate: Duration::from_secs(while_revalidate),
            if_error: Duration::from_secs(if_error),
            ahead: 1.0,
        }
    }

    fn walk(lifetime: Lifetime, windows: Windows, from: Instant) -> Vec<Usability> {
        (0..8_u32)
            .map(|second| lifetime.usability(from + SECOND * second, &windows))
            .collect()
    }

    #[test]
    fn both_windows_begin_where_the_ttl_ends() {
        use Usability::{Fallback, Fresh, Gone, Revalidate};
        let now = Instant::now();
        let lifetime = Lifetime::new(now + SECOND * 2, true, SECOND);
        assert_eq!(
            walk(lifetime, windows(2, 4), now),
            [
                Fresh, Fresh, Revalidate, Revalidate, Fallback, Fallback, Gone, Gone
            ]
        );
        assert_eq!(
            walk(lifetime, windows(3, 1), now)[2..6],
            [Revalidate, Revalidate, Revalidate, Gone]
        );
        assert_eq!(walk(lifetime, windows(0, 0), now)[1..3], [Fresh, Gone]);
        let absence = Lifetime {
            has_stale_windows: false,
            ..lifetime
        };
        assert_eq!(walk(absence, windows(2, 4), now)[1..3], [Fresh, Gone]);
    }

    #[test]
    fn what_was_expired_by_hand_is_a_fallback_to_the_end_of_that_window() {
        use Usability::{Fallback, Gone};
        let now = Instant::now();
        let lifetime = Lifetime {
            expired: true,
            ..Lifetime::new(now + SECOND * 2, true, SECOND)
        };
        assert_eq!(
            walk(lifetime, windows(5, 2), now)[..5],
            [Fallback, Fallback, Fallback, Fallback, Gone]
        );
        assert_eq!(
            lifetime.usability(now, &windows(5, 0)),
            Gone,
            "none was asked for"
        );
    }

    #[test]
    fn a_usability_ends_when_it_says() {
        let now = Instant::now();
        let lifetime = Lifetime::new(now + SECOND * 2, true, SECOND);
        let windows = windows(2, 4);
        for second in 0..6 {
            let at = now + SECOND * second;
            let until = lifetime.usable_until(at, &windows);
            let just_before = until - Duration::from_nanos(1);
            assert_eq!(
                lifetime.usability(at, &windows),
                lifetime.usability(just_before, &windows)
            );
            assert_ne!(
                lifetime.usability(at, &windows),
                lifetime.usability(until, &windows)
            );
        }
    }

    /// P(trigger | x left) = e^(−x/(βδ)), by draws of the crate's own.
    #[test]
    fn a_hit_is_early_as_often_as_the_paper_says() {
        let now = Instant::now();
        for beta in [0.5, 1.0, 4.0] {
            let windows = Windows {
                ahead: beta,
                ..windows(0, 0)
            };
            for left in [0.1, 0.5, 1.0, 2.0, 5.0] {
                let lifetime = Lifetime::new(now + SECOND.mul_f64(left), true, SECOND);
                let draws = 40_000;
                let early = (0..draws)
                    .filter(|_| lifetime.is_early(now, &windows))
                    .count();
                let (share, expected) = (early as f64 / f64::from(draws), (-left / beta).exp());
                let sigma = (expected * (1.0 - expected) / f64::from(draws)).sqrt();
                assert!(
                    (share - expected).abs() < 6.0 * sigma + 1e-9,
                    "beta {beta}, {left} left: {share}, not {expected}"
                );
            }
        }
    }

    #[test]
    fn no_refresh_is_early_before_its_moment_nor_in_the_first_half_of_a_lifetime() {
        let loaded_at = Instant::now();
        let windows = windows(0, 0);
        let quick = Lifetime::new(loaded_at + SECOND * 100, true, Duration::from_millis(10));
        let earliest = quick.no_refresh_before(loaded_at, &windows);
        let reach = quick.fresh_until - earliest;
        assert!(reach > Duration::from_millis(360) && reach < Duration::from_millis(370));
        let slow = Lifetime::new(loaded_at + SECOND * 100, true, SECOND * 60);
        assert_eq!(
            slow.no_refresh_before(loaded_at, &windows),
            loaded_at + SECOND * 50
        );
        let expired = Lifetime {
            expired: true,
            ..quick
        };
        assert_eq!(expired.no_refresh_before(loaded_at, &windows), loaded_at);
        let off = Windows {
            ahead: 0.0,
            ..windows
        };
        assert_eq!(slow.no_refresh_before(loaded_at, &off), slow.fresh_until);
        assert!(!slow.is_early(slow.fresh_until, &off));
    }
}
