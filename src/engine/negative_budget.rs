//! The negative budget: limits how many absences are stored in L2, so that a flood of random keys
//! does not fill Redis.
//!
//! It is a token bucket that holds `capacity` tokens and gains `capacity` tokens per `period`. A
//! store takes one token. So in any window of one period at most twice the capacity are taken:
//! those that were saved up, and those that came in. A record lives for one period, so at most
//! twice the capacity of them live at any moment.

use std::time::Duration;

use parking_lot::Mutex;
use tokio::time::Instant;

/// The token bucket of one cache.
#[derive(Debug)]
pub(crate) struct Budget {
    capacity: f64,
    period: Duration,
    /// The number of tokens, and when it was computed.
    state: Mutex<(f64, Instant)>,
}

impl Budget {
    pub(crate) fn new(capacity: u64, period: Duration, now: Instant) -> Self {
        #[expect(clippy::cast_precision_loss, reason = "a budget, not an account")]
        let capacity = capacity as f64;
        Self {
            capacity,
            period,
            state: Mutex::new((capacity, now)),
        }
    }

    /// Takes a token, if one is left.
    pub(crate) fn take(&self, now: Instant) -> bool {
        let mut state = self.state.lock();
        let (tokens, counted) = *state;
        let elapsed = now.saturating_duration_since(counted);
        let share = if self.period.is_zero() {
            1.0
        } else {
            elapsed.div_duration_f64(self.period)
        };
        let tokens = share.mul_add(self.capacity, tokens).min(self.capacity);
        let taken = tokens >= 1.0;
        *state = (if taken { tokens - 1.0 } else { tokens }, counted.max(now));
        taken
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        /// No window of one period sees more than twice the capacity, however the calls are spread.
        #[test]
        fn no_period_sees_more_than_twice_the_capacity(
            capacity in 1_u64..50, gaps in prop::collection::vec(0_u64..400, 1..600)
        ) {
            let period = Duration::from_millis(1000);
            let start = Instant::now();
            let budget = Budget::new(capacity, period, start);
            let (mut now, mut taken) = (start, Vec::new());
            for gap in gaps {
                now += Duration::from_millis(gap * gap / 400);
                if budget.take(now) {
                    taken.push(now);
                }
            }
            for (at, first) in taken.iter().enumerate() {
                let within = taken[at..].iter().filter(|other| **other - *first < period).count();
                prop_assert!(within as u64 <= 2 * capacity);
            }
        }
    }

    #[test]
    fn what_was_spent_comes_back() {
        let (start, period) = (Instant::now(), Duration::from_secs(10));
        let budget = Budget::new(2, period, start);
        assert!(budget.take(start) && budget.take(start) && !budget.take(start));
        assert!(budget.take(start + period / 2));
        assert!(!budget.take(start + period / 2));
        assert!(!Budget::new(0, period, start).take(start + period));
    }
}
