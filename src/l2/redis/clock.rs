//! The server's clock, as this process knows it.
//!
//! Times in records are in the server's time, because the clocks of hosts differ. `TIME` gives the
//! offset to this process's monotonic clock. The server's answer counts as the time at the middle
//! of the round trip.

use std::sync::atomic::{AtomicI64, Ordering};
use std::time::Duration;

use tokio::time::Instant;

const UNKNOWN: i64 = i64::MIN;

#[derive(Debug)]
pub(super) struct Clock {
    started: Instant,
    /// Milliseconds from `zero` to the server's time.
    offset_ms: AtomicI64,
}

impl Clock {
    pub(super) fn new() -> Self {
        Self {
            started: Instant::now(),
            offset_ms: AtomicI64::new(UNKNOWN),
        }
    }

    pub(super) fn now_ms(&self) -> Option<u64> {
        let offset_ms = self.offset_ms.load(Ordering::Relaxed);
        if offset_ms == UNKNOWN {
            return None;
        }
        let since_ms = i64::try_from(self.started.elapsed().as_millis()).unwrap_or(i64::MAX);
        u64::try_from(offset_ms.saturating_add(since_ms)).ok()
    }

    pub(super) fn is_known(&self) -> bool {
        self.offset_ms.load(Ordering::Relaxed) != UNKNOWN
    }

    /// The server's time was `server`, in the answer to a command that was sent at `asked`. The
    /// answer came just now.
    pub(super) fn set(&self, asked: Instant, server: Duration) {
        let middle = asked.saturating_duration_since(self.started) + asked.elapsed() / 2;
        let ms = |duration: Duration| i64::try_from(duration.as_millis()).unwrap_or(i64::MAX);
        self.offset_ms
            .store(ms(server).saturating_sub(ms(middle)), Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn the_servers_time_goes_on_from_the_middle_of_the_round_trip() {
        let clock = Clock::new();
        assert_eq!(clock.now_ms(), None);
        let asked = Instant::now();
        tokio::time::advance(Duration::from_millis(10)).await;
        clock.set(asked, Duration::from_millis(1_000_000));
        assert_eq!(clock.now_ms(), Some(1_000_005));
        tokio::time::advance(Duration::from_millis(100)).await;
        assert_eq!(clock.now_ms(), Some(1_000_105));
    }
}
