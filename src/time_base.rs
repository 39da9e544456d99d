//! Moments as numbers: nanoseconds since a time base. A number compares in one instruction and fits
//! in an atomic.

use tokio::time::Instant;

/// The moment from which one cache counts nanoseconds.
#[derive(Clone, Copy, Debug)]
pub(crate) struct TimeBase(Instant);

impl TimeBase {
    pub(crate) fn at(moment: Instant) -> Self {
        Self(moment)
    }

    /// Nanoseconds from the time base to a moment. A moment before the time base gives zero.
    #[inline]
    pub(crate) fn nanos(self, at: Instant) -> u64 {
        let since = at.saturating_duration_since(self.0);
        let nanos = since.as_secs().saturating_mul(1_000_000_000);
        nanos.saturating_add(since.subsec_nanos().into())
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn moments_are_in_order_and_none_is_before_zero() {
        let now = Instant::now();
        let base = TimeBase::at(now);
        assert_eq!(base.nanos(now), 0);
        assert_eq!(base.nanos(now - Duration::from_secs(1)), 0);
        let later = Duration::new(3, 7);
        assert_eq!(base.nanos(now + later), 3_000_000_007);
    }
}
