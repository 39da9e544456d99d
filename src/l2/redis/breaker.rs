//! The circuit breaker: after too many failures no command is sent, until probes are answered.
//!
//! | state | how it is entered | a command |
//! |---|---|---|
//! | closed | at first, and when probes were answered | is sent |
//! | open | the share of commands without an answer in the window was too large | fails at once, without I/O |
//!
//! A failure is a command without an answer: a timeout, or no connection. An error that the server
//! answers is an answer. While the breaker is open, the handle sends probes of its own, at growing,
//! jittered intervals; no request pays for one. If no probe is answered for a while, the connection
//! counts as dead and is made anew: a client that goes on sending does not notice a black hole.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::Notify;
use tokio::time::Instant;

use crate::error::BuildError;

/// When a [`Redis`](crate::Redis) handle stops sending commands to a server that does not answer:
/// see [`RedisBuilder::breaker`](crate::RedisBuilder::breaker).
///
/// ```
/// use std::time::Duration;
/// use tidegate::{Breaker, Redis};
///
/// // For a server that is known to stall now and then: 20 failures, and most of all commands.
/// let patient = Breaker::new().window(Duration::from_secs(5)).failure_rate(0.8).least_failures(20);
/// let redis = Redis::builder("redis://127.0.0.1:6379").breaker(patient).open()?;
/// # drop(redis);
/// # Ok::<_, tidegate::BuildError>(())
/// ```
#[derive(Clone, Debug, PartialEq)]
#[must_use = "it is a setting of `RedisBuilder`"]
pub struct Breaker {
    enabled: bool,
    window: Duration,
    failure_rate: f64,
    least_failures: u32,
    longest_pause: Duration,
}

impl Default for Breaker {
    fn default() -> Self {
        Self {
            enabled: true,
            window: Duration::from_secs(2),
            failure_rate: 0.5,
            least_failures: 3,
            longest_pause: Duration::from_millis(250),
        }
    }
}

impl Breaker {
    /// The default: it opens if within 2 seconds at least 3 commands, and half of all, got no
    /// answer; or if 9 in a row got none.
    pub fn new() -> Self {
        Self::default()
    }

    /// No breaker: every command is sent, and may cost its timeout.
    pub fn off() -> Self {
        Self {
            enabled: false,
            ..Self::default()
        }
    }

    /// The time over which failures are counted, from 100 ms to 60 s. Default: 2 seconds.
    pub fn window(mut self, window: Duration) -> Self {
        self.window = window;
        self
    }

    /// The share of failed commands that opens it, above 0 and up to 1. Default: 0.5.
    pub fn failure_rate(mut self, share: f64) -> Self {
        self.failure_rate = share;
        self
    }

    /// The least number of failed commands that opens it. Three times as many in a row open it
    /// whatever was answered before: the connection is dead, or the server is. Default: 3.
    pub fn least_failures(mut self, failures: u32) -> Self {
        self.least_failures = failures;
        self
    }

    /// The longest pause between two probes, from 10 ms to 60 s. A server that is back is used
    /// again after this time at most. The first probe comes after 50 milliseconds. Default: 250
    /// milliseconds.
    pub fn longest_pause(mut self, pause: Duration) -> Self {
        self.longest_pause = pause;
        self
    }

    pub(super) fn check(&self) -> Result<(), BuildError> {
        let refuse = |value: String, allowed| {
            Err(BuildError::OutOfRange {
                setter: "breaker",
                value,
                allowed,
            })
        };
        let minute = Duration::from_secs(60);
        if !(Duration::from_millis(100)..=minute).contains(&self.window) {
            return refuse(
                format!("window {:?}", self.window),
                "a window of 100 ms to 60 s",
            );
        }
        if !(self.failure_rate > 0.0 && self.failure_rate <= 1.0) {
            let rate = format!("failure_rate {:?}", self.failure_rate);
            return refuse(rate, "a failure_rate above 0 and up to 1");
        }
        if self.least_failures == 0 {
            return refuse("least_failures 0".to_owned(), "at least one failure");
        }
        if !(Duration::from_millis(10)..=minute).contains(&self.longest_pause) {
            let pause = format!("longest_pause {:?}", self.longest_pause);
            return refuse(pause, "a longest_pause of 10 ms to 60 s");
        }
        Ok(())
    }

    pub(super) fn max_probe_interval(&self) -> Duration {
        self.longest_pause
    }
}

/// The number of buckets of the window. The oldest one is forgotten first.
const BUCKETS: u32 = 10;

/// The state of one handle's breaker.
#[derive(Debug)]
pub(super) struct BreakerState {
    settings: Breaker,
    started: Instant,
    open: AtomicBool,
    counts: Mutex<Counts>,
    /// The breaker has opened: probes are to be sent.
    pub(super) opened: Arc<Notify>,
}

#[derive(Debug, Default)]
struct Counts {
    /// Failures since the last answer.
    consecutive_failures: u32,
    buckets: [Bucket; BUCKETS as usize],
}

/// The answers and failures of one part of the window.
#[derive(Clone, Copy, Debug, Default)]
struct Bucket {
    number: u64,
    answered: u32,
    failed: u32,
}

impl Counts {
    fn bucket(&mut self, number: u64) -> &mut Bucket {
        let at = usize::try_from(number % u64::from(BUCKETS)).unwrap_or(0);
        let bucket = &mut self.buckets[at];
        if bucket.number != number {
            *bucket = Bucket {
                number,
                ..Bucket::default()
            };
        }
        bucket
    }

    fn should_open(&self, number: u64, settings: &Breaker) -> bool {
        let recent = self
            .buckets
            .iter()
            .filter(|bucket| bucket.number + u64::from(BUCKETS) > number);
        let (mut answered, mut failed) = (0_u64, 0_u64);
        for bucket in recent {
            answered += u64::from(bucket.answered);
            failed += u64::from(bucket.failed);
        }
        #[expect(clippy::cast_precision_loss, reason = "a share of a count")]
        let share = failed as f64 / (answered + failed) as f64;
        let least = settings.least_failures;
        self.consecutive_failures >= least.saturating_mul(3)
            || (failed >= u64::from(least) && share >= settings.failure_rate)
    }
}

impl BreakerState {
    pub(super) fn new(settings: Breaker) -> Self {
        Self {
            settings,
            started: Instant::now(),
            open: AtomicBool::new(false),
            counts: Mutex::default(),
            opened: Arc::default(),
        }
    }

    pub(super) fn settings(&self) -> &Breaker {
        &self.settings
    }

    pub(super) fn is_open(&self) -> bool {
        self.open.load(Ordering::Acquire)
    }

    /// Counts one command, answered or not. `true`: that has opened the breaker.
    pub(super) fn record(&self, answered: bool, now: Instant) -> bool {
        if answered {
            self.record_answers(1, now);
            return false;
        }
        self.within_window(now, |counts, number| {
            let bucket = counts.bucket(number);
            bucket.failed = bucket.failed.saturating_add(1);
            counts.consecutive_failures = counts.consecutive_failures.saturating_add(1);
            let opens = counts.should_open(number, &self.settings);
            if opens {
                self.open.store(true, Ordering::Release);
                self.opened.notify_one();
            }
            opens
        })
        .unwrap_or(false)
    }

    /// Counts commands that were answered together.
    pub(super) fn record_answers(&self, commands: u32, now: Instant) {
        self.within_window(now, |counts, number| {
            let bucket = counts.bucket(number);
            bucket.answered = bucket.answered.saturating_add(commands);
            counts.consecutive_failures = 0;
        });
    }

    /// Calls `record` with the number of the present bucket, unless the breaker is open or off.
    fn within_window<T>(
        &self,
        now: Instant,
        record: impl FnOnce(&mut Counts, u64) -> T,
    ) -> Option<T> {
        // While it is open, only probes count: an answer to an earlier command says nothing.
        if !self.settings.enabled || self.is_open() {
            return None;
        }
        let nanos = |time: Duration| u64::try_from(time.as_nanos()).unwrap_or(u64::MAX);
        let length = nanos(self.settings.window / BUCKETS);
        let number = nanos(now.saturating_duration_since(self.started)) / length.max(1);
        Some(record(&mut self.counts.lock(), number))
    }

    /// Closes the breaker: probes were answered.
    pub(super) fn close(&self) {
        *self.counts.lock() = Counts::default();
        self.open.store(false, Ordering::Release);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);

    fn state(settings: Breaker) -> (BreakerState, Instant) {
        let state = BreakerState::new(settings);
        let started = state.started;
        (state, started)
    }

    #[test]
    fn it_opens_when_enough_have_failed_and_they_are_a_large_share() {
        let (state, started) = state(Breaker::new());
        for answer in 0..3 {
            assert!(!state.record(true, started + MS * answer));
        }
        assert!(!state.record(false, started) && !state.record(false, started));
        assert!(state.record(false, started), "three of six");
        assert!(state.is_open());
        assert!(!state.record(false, started), "opened once");
        state.record(true, started);
        assert!(state.is_open(), "late answers do not close it");
        state.close();
        assert!(!state.is_open());
        assert!(
            !state.record(false, started),
            "what was before is forgotten"
        );
    }

    #[test]
    fn what_is_answered_together_counts_as_often() {
        let (state, started) = state(Breaker::new());
        state.record_answers(64, started);
        for failure in 1..=8 {
            assert!(
                !state.record(false, started),
                "{failure} of {}",
                64 + failure
            );
        }
        state.record_answers(64, started);
        for failure in 1..=9 {
            assert_eq!(state.record(false, started), failure == 9, "in a row");
        }
    }

    #[test]
    fn failures_among_many_answers_and_failures_of_long_ago_do_not_open_it() {
        let (state, started) = state(Breaker::new());
        for at in 0..1_000 {
            assert!(!state.record(at % 3 != 0, started + MS * at));
        }
        let (state, started) = self::state(Breaker::new());
        for at in 0..100 {
            let now = started + MS * 1_001 * at;
            assert!(!state.record(false, now), "two in a window");
            if at % 8 == 7 {
                state.record(true, now);
            }
        }
    }

    #[test]
    fn it_opens_on_failures_in_a_row_whatever_was_answered_before() {
        let (state, started) = state(Breaker::new());
        for _ in 0..1_000 {
            state.record(true, started);
        }
        for failures in [8, 9] {
            for failure in 1..=failures {
                assert_eq!(state.record(false, started), failure == 9);
            }
            state.record(true, started);
        }
    }

    #[test]
    fn without_one_nothing_opens() {
        let (state, started) = state(Breaker::off());
        for _ in 0..100 {
            assert!(!state.record(false, started));
        }
    }
}
