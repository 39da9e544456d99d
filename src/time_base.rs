//! Moments as numbers, which compare in one instruction and fit in an atomic.

use tokio::time::Instant;

/// Where the numbers of one cache begin.
#[derive(Clone, Copy, Debug)]
pub(crate) struct TimeBase(Instant);

impl TimeBase {
    pub(crate) fn at(moment: Instant) -> Self {
        Self(moment)
    }

    /// Nanoseconds from zero to a moment; none if it was before.
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
        let zero = TimeBase::at(now);
        assert_eq!(zero.nanos(now), 0);
        assert_eq!(zero.nanos(now - Duration::from_secs(1)), 0);
        let later = Duration::new(3, 7);
        assert_eq!(zero.nanos(now + later), 3_000_000_007);
    }
}
