//! Arithmetic of lives and deadlines: pure functions, no clock, no randomness of their own.

use std::time::Duration;

use tokio::time::Instant;

/// Longer durations count as this: a hundred years. Still longer ones overflow somewhere in Redis,
/// in moka or in the kernel.
pub(crate) const LONGEST: Duration = Duration::from_secs(100 * 365 * 24 * 3600);

/// `ttl` shortened by up to the share `jitter`; `u` is drawn from [0, 1).
pub(crate) fn jittered(ttl: Duration, jitter: f64, u: f64) -> Duration {
    ttl - ttl.mul_f64((jitter * u).clamp(0.0, 1.0)).min(ttl)
}

/// A first life from (ttl/20, ttl]: the residual life of a steady population, with a lower bound,
/// so that entries that were filled together do not expire together. `u` is drawn from [0, 1).
pub(crate) fn first_life(ttl: Duration, u: f64) -> Duration {
    let shortest = ttl / 20;
    ttl - (ttl - shortest).mul_f64(u.clamp(0.0, 1.0)).min(ttl)
}

/// How long before the end of its life a hit begins a refresh; `u` is drawn from (0, 1].
pub(crate) fn early_by(cost: Duration, beta: f64, u: f64) -> Duration {
    times(cost, -beta * u.ln())
}

/// The longest result of [`early_by`]: the smallest number that is drawn is 2⁻⁵³.
pub(crate) fn earliest(cost: Duration, beta: f64) -> Duration {
    times(cost, beta * 53.0 * std::f64::consts::LN_2)
}

fn times(cost: Duration, share: f64) -> Duration {
    // `mul_f64` panics where the product is not a valid duration.
    let cost = cost.min(LONGEST);
    let most = LONGEST.div_duration_f64(cost.max(Duration::from_nanos(1)));
    cost.mul_f64(share.clamp(0.0, most)).min(LONGEST)
}

/// An upper estimate of the cost of a load: a longer load counts at once, each shorter one by an
/// eighth.
pub(crate) fn upper_cost(estimate: Duration, sample: Duration) -> Duration {
    sample.max(estimate / 8 * 7 + sample / 8)
}

/// How long no attempt is made after this many failures in a row: `base` after each of the first
/// three, then twice as long after each further one, up to 16 times.
pub(crate) fn backoff(base: Duration, failures: u32) -> Duration {
    let doublings = failures.saturating_sub(3).min(4);
    base.saturating_mul(1 << doublings).min(LONGEST)
}

/// `now + life`, or the latest moment that the clock can express.
pub(crate) fn deadline(now: Instant, life: Duration) -> Instant {
    now.checked_add(life.min(LONGEST)).unwrap_or_else(|| {
        // The clock is too near its end for `life`. A day is later than any caller waits.
        now.checked_add(Duration::from_secs(86_400)).unwrap_or(now)
    })
}

/// Whole milliseconds, at least one: the unit of an expiry in Redis.
pub(crate) fn millis(life: Duration) -> u64 {
    u64::try_from(life.min(LONGEST).as_millis())
        .unwrap_or(u64::MAX)
        .max(1)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn jitter_only_shortens_and_by_no_more_than_its_share(
            ms in 1_u64..10_000_000_000, jitter in 0.0_f64..1.0, u in 0.0_f64..1.0
        ) {
            let ttl = Duration::from_millis(ms);
            let life = jittered(ttl, jitter, u);
            prop_assert!(life <= ttl);
            prop_assert!(life >= ttl.mul_f64(1.0 - jitter) - Duration::from_nanos(1));
        }

        #[test]
        fn a_first_life_is_in_its_band(ms in 20_u64..10_000_000_000, u in 0.0_f64..1.0) {
            let ttl = Duration::from_millis(ms);
            let life = first_life(ttl, u);
            prop_assert!(life <= ttl && life >= ttl / 20);
        }

        #[test]
        fn no_duration_overflows(secs in any::<u64>(), nanos in 0_u32..1_000_000_000, u in 0.0_f64..1.0) {
            let absurd = Duration::new(secs, nanos);
            let now = Instant::now();
            prop_assert!(deadline(now, absurd) >= now);
            prop_assert!(millis(absurd) >= 1);
            prop_assert!(jittered(absurd.min(LONGEST), 0.5, u) <= absurd);
        }
    }

    #[test]
    fn a_backoff_grows_from_the_fourth_failure_on() {
        let base = Duration::from_millis(200);
        let holds = (1..=9).map(|failures| backoff(base, failures).as_millis());
        assert_eq!(
            holds.collect::<Vec<_>>(),
            [200, 200, 200, 400, 800, 1_600, 3_200, 3_200, 3_200]
        );
        assert_eq!(backoff(Duration::MAX, 9), LONGEST);
        assert_eq!(backoff(Duration::ZERO, 9), Duration::ZERO);
    }

    #[test]
    fn the_estimate_of_a_cost_rises_at_once_and_falls_slowly() {
        let ms = Duration::from_millis;
        assert_eq!(upper_cost(ms(8), ms(80)), ms(80));
        assert_eq!(upper_cost(ms(80), ms(8)), ms(71));
        let steady = (0..100).fold(ms(80), |estimate, _| upper_cost(estimate, ms(8)));
        assert!(steady >= ms(8) && steady < ms(9), "{steady:?}");
        assert_eq!(early_by(Duration::MAX, 1e300, 1e-300), LONGEST);
        assert_eq!(early_by(ms(8), 1.0, 1.0), Duration::ZERO);
        assert_eq!(early_by(Duration::ZERO, 1.0, 0.5), Duration::ZERO);
    }

    #[test]
    fn the_ends_of_the_bands_are_reached() {
        let ttl = Duration::from_secs(100);
        assert_eq!(jittered(ttl, 0.1, 0.0), ttl);
        assert_eq!(jittered(ttl, 0.1, 1.0), Duration::from_secs(90));
        assert_eq!(jittered(ttl, 0.0, 1.0), ttl);
        assert_eq!(first_life(ttl, 0.0), ttl);
        assert_eq!(first_life(ttl, 1.0), Duration::from_secs(5));
        assert_eq!(millis(Duration::ZERO), 1);
    }
}
