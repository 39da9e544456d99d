//! The channel lease: whether this process receives every invalidation, and so whether L1 may
//! answer.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use crossbeam_utils::atomic::AtomicCell;
use parking_lot::Mutex;
use tokio::sync::Notify;
use tokio::time::Instant;

use crate::time_base::TimeBase;
use crate::ttl;

/// The state of this process's connection to the bus, and what it means for L1.
///
/// | the channel | L2 | L1 |
/// |---|---|---|
/// | has proven itself within the channel lease | in any state | answers |
/// | has not | answers | does not answer: an invalidation may have been missed, and L2 has the current value |
/// | has not | cannot be reached | answers for `degraded_l1_ttl` |
///
/// A connection can be dead without an error, and a process can be stopped and continued. So the
/// process sends itself a *heartbeat* through the server, on the connection that receives the
/// messages of other processes. The server appends to a subscriber's stream in the order of
/// execution, and this process handles that stream in order. So when a heartbeat has come back,
/// every invalidation has been handled that was executed before the heartbeat was sent. L1 may
/// answer until the time at which the last such heartbeat was sent, plus the lease, by this
/// process's own clock. (Gray and Cheriton, "Leases", SOSP 1989.)
#[derive(Debug)]
pub(crate) struct ChannelLease {
    /// How long one heartbeat proves the channel.
    lease: Duration,
    /// Messages come without a connection that can be lost, so a subscription is proof enough.
    direct: bool,
    time_base: TimeBase,
    /// When the channel was first used.
    begun: OnceLock<Instant>,
    /// Until when the channel is proven. Written under the lock of `heartbeats`.
    proven_until: AtomicCell<Option<Instant>>,
    /// The subscription stands, as far as this process knows.
    up: AtomicBool,
    /// The subscription stood at some time.
    was_up: AtomicBool,
    /// The first attempt to subscribe has succeeded or failed.
    first_attempt_ended: AtomicBool,
    changed: Notify,
    /// The last operation of the tier was answered.
    reachable: AtomicBool,
    heartbeats: Mutex<Heartbeats>,
    /// Wakes the heartbeat task: a heartbeat is wanted now.
    pub(crate) wake: Arc<Notify>,
    /// When the last message of any kind came, in nanoseconds of the time base. Zero: none came.
    last_message: AtomicU64,
}

#[derive(Debug)]
struct Heartbeats {
    number: u64,
    /// The heartbeats that have not come back, and when each was sent.
    sent: VecDeque<(u64, Instant)>,
    /// Since when no heartbeat came back, although the subscription seems to stand.
    silent_since: Instant,
}

/// Heartbeats under way that are remembered.
const MAX_PENDING: usize = 16;

impl ChannelLease {
    pub(crate) fn new(lease: Duration, direct: bool, now: Instant, time_base: TimeBase) -> Self {
        Self {
            lease,
            direct,
            time_base,
            begun: OnceLock::new(),
            proven_until: AtomicCell::new(None),
            up: AtomicBool::new(false),
            was_up: AtomicBool::new(false),
            first_attempt_ended: AtomicBool::new(false),
            changed: Notify::new(),
            reachable: AtomicBool::new(true),
            heartbeats: Mutex::new(Heartbeats {
                number: 0,
                sent: VecDeque::new(),
                silent_since: now,
            }),
            wake: Arc::default(),
            last_message: AtomicU64::new(0),
        }
    }

    /// The time between two heartbeats.
    pub(crate) fn period(&self) -> Duration {
        self.lease / 3
    }

    pub(crate) fn is_direct(&self) -> bool {
        self.direct
    }

    #[inline]
    pub(crate) fn is_proven(&self, now: Instant) -> bool {
        self.proven_until.load().is_some_and(|until| now < until)
    }

    /// Whether an entry may be answered whose read began at `begun`. `degraded`: for how long it
    /// may be while L2 cannot be reached.
    pub(crate) fn l1_usable(&self, begun: Instant, now: Instant, degraded: Duration) -> bool {
        let proven_until = self.proven_until.load();
        if proven_until.is_some_and(|until| now < until) {
            return true;
        }
        if self.reachable.load(Ordering::Relaxed) {
            return false;
        }
        let since = proven_until.map_or(begun, |until| begun.max(until));
        now < ttl::deadline(since, degraded)
    }

    /// Answers when the channel was first used. The first call also calls `first`.
    pub(crate) fn begin(&self, first: impl FnOnce()) -> Instant {
        *self.begun.get_or_init(|| {
            first();
            Instant::now()
        })
    }

    /// Notes whether an operation of the tier was answered.
    pub(crate) fn set_reachable(&self, reachable: bool) {
        // Hits read the same cache line: it is written on a change, and not with every operation.
        if self.reachable.load(Ordering::Relaxed) != reachable {
            self.reachable.store(reachable, Ordering::Relaxed);
        }
    }

    /// Waits until the first attempt to subscribe has succeeded or failed, until `until` at most.
    pub(crate) async fn wait_for_first_attempt(&self, until: Instant) {
        if self.first_attempt_ended.load(Ordering::SeqCst) {
            return;
        }
        loop {
            let changed = self.changed.notified();
            if self.first_attempt_ended.load(Ordering::SeqCst) {
                return;
            }
            if tokio::time::timeout_at(until, changed).await.is_err() {
                return;
            }
        }
    }

    /// A heartbeat is about to be sent. Answers its number.
    pub(crate) fn heartbeat_sent(&self, now: Instant) -> u64 {
        let mut heartbeats = self.heartbeats.lock();
        heartbeats.number += 1;
        let number = heartbeats.number;
        if heartbeats.sent.len() == MAX_PENDING {
            heartbeats.sent.pop_front();
        }
        heartbeats.sent.push_back((number, now));
        number
    }

    /// A heartbeat came back.
    pub(crate) fn heartbeat_returned(&self, number: u64, now: Instant) {
        if !self.up.load(Ordering::SeqCst) {
            return;
        }
        let mut heartbeats = self.heartbeats.lock();
        // The server keeps their order, so the heartbeats that were sent before this one are lost.
        while let Some((first, sent)) = heartbeats.sent.front().copied() {
            if first > number {
                break;
            }
            heartbeats.sent.pop_front();
            if first == number {
                heartbeats.silent_since = now;
                let until = ttl::deadline(sent, self.lease);
                self.proven_until
                    .store(self.proven_until.load().max(Some(until)));
                self.reachable.store(true, Ordering::Relaxed);
                drop(heartbeats);
                self.end_first_attempt();
                return;
            }
        }
    }

    /// Whether the subscription seems to stand, and yet no heartbeat came back for a lease.
    pub(crate) fn is_silent(&self, now: Instant) -> bool {
        let mut heartbeats = self.heartbeats.lock();
        let silent = self.up.load(Ordering::SeqCst)
            && now.saturating_duration_since(heartbeats.silent_since) > self.lease;
        if silent {
            // Reported once per lease.
            heartbeats.silent_since = now;
        }
        silent
    }

    /// The subscription stands. Answers whether it has stood before.
    pub(crate) fn set_up(&self, now: Instant) -> bool {
        {
            let mut heartbeats = self.heartbeats.lock();
            // Heartbeats of an earlier connection prove nothing about this one.
            heartbeats.sent.clear();
            heartbeats.silent_since = now;
            if self.direct {
                self.proven_until
                    .store(Some(ttl::deadline(now, Duration::MAX)));
            }
        }
        self.up.store(true, Ordering::SeqCst);
        self.wake.notify_one();
        self.was_up.swap(true, Ordering::SeqCst)
    }

    /// The subscription is lost, and the channel is not proven from now on.
    pub(crate) fn set_down(&self, now: Instant) {
        self.up.store(false, Ordering::SeqCst);
        {
            let mut heartbeats = self.heartbeats.lock();
            heartbeats.sent.clear();
            if self.is_proven(now) {
                self.proven_until.store(Some(now));
            }
        }
        self.end_first_attempt();
    }

    pub(crate) fn is_up(&self) -> bool {
        self.up.load(Ordering::SeqCst)
    }

    pub(crate) fn is_reachable(&self) -> bool {
        self.reachable.load(Ordering::Relaxed)
    }

    pub(crate) fn message_received(&self, now: Instant) {
        self.last_message
            .store(self.time_base.nanos(now), Ordering::Relaxed);
    }

    /// How long ago the last message of any kind came.
    pub(crate) fn since_last_message(&self, now: Instant) -> Option<Duration> {
        let last = self.last_message.load(Ordering::Relaxed);
        (last > 0).then(|| Duration::from_nanos(self.time_base.nanos(now).saturating_sub(last)))
    }

    fn end_first_attempt(&self) {
        self.first_attempt_ended.store(true, Ordering::SeqCst);
        self.changed.notify_waiters();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LEASE: Duration = Duration::from_secs(2);

    fn channel() -> (ChannelLease, Instant) {
        let now = Instant::now();
        let channel = ChannelLease::new(LEASE, false, now, TimeBase::at(now));
        (channel, now)
    }

    #[test]
    fn a_beat_proves_the_channel_from_when_it_was_sent() {
        let (channel, start) = channel();
        channel.set_up(start);
        assert!(!channel.is_proven(start));
        let number = channel.heartbeat_sent(start);
        let back = start + Duration::from_millis(1500);
        channel.heartbeat_returned(number, back);
        assert!(channel.is_proven(back));
        assert!(
            !channel.is_proven(start + LEASE),
            "not from when it came back"
        );
        channel.heartbeat_returned(number, start + LEASE);
        assert!(
            !channel.is_proven(start + LEASE),
            "a second return proves nothing"
        );
    }

    #[test]
    fn a_beat_of_an_earlier_connection_or_of_nobody_proves_nothing() {
        let (channel, start) = channel();
        channel.set_up(start);
        let number = channel.heartbeat_sent(start);
        channel.set_down(start);
        channel.set_up(start);
        channel.heartbeat_returned(number, start);
        channel.heartbeat_returned(99, start);
        assert!(!channel.is_proven(start));
        let newer = channel.heartbeat_sent(start);
        channel.heartbeat_returned(newer, start);
        assert!(channel.is_proven(start));
        channel.set_down(start);
        assert!(!channel.is_proven(start));
    }

    #[test]
    fn without_proof_and_without_l2_entries_are_used_for_a_while() {
        let (channel, start) = channel();
        let degraded = Duration::from_secs(5);
        channel.set_up(start);
        let number = channel.heartbeat_sent(start);
        channel.heartbeat_returned(number, start);
        let usable = |stored, now| channel.l1_usable(stored, now, degraded);
        assert!(usable(start, start + LEASE / 2) && !usable(start, start + LEASE));
        channel.reachable.store(false, Ordering::Relaxed);
        assert!(usable(start, start + LEASE));
        assert!(usable(
            start,
            start + LEASE + degraded - Duration::from_millis(1)
        ));
        assert!(!usable(start, start + LEASE + degraded));
        let later = start + LEASE + Duration::from_secs(60);
        assert!(usable(later, later + degraded / 2) && !usable(later, later + degraded));
    }

    #[test]
    fn silence_is_noticed_once_per_lease() {
        let (channel, start) = channel();
        assert!(!channel.is_silent(start + LEASE * 2), "it is not up");
        channel.set_up(start);
        assert!(!channel.is_silent(start + LEASE));
        assert!(channel.is_silent(start + LEASE * 2));
        assert!(!channel.is_silent(start + LEASE * 2));
        assert!(channel.is_silent(start + LEASE * 4));
    }
}
