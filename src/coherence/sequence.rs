//! The sequence tracker: finds gaps in the numbers of other processes' messages.
//!
//! A gap means that a message was lost without any error. Messages of one origin may come in
//! another order than they were numbered, because they are executed on several connections. So
//! missing numbers count as a gap only when they have been missing for a while. The number that an
//! origin began with is not known. A message that it sent before the first one that came here
//! cannot be missed, because nothing is used that was read before this process listened.

use std::collections::{BTreeSet, HashMap};
use std::time::Duration;

use tokio::time::Instant;

use crate::protocol::message::Origin;

/// Origins that are remembered. Beyond that, the origins are forgotten whose last message is
/// oldest.
const MAX_ORIGINS: usize = 4096;

/// Numbers after a gap that are remembered for one origin.
const MAX_AHEAD: usize = 1024;

/// The numbers of the messages that have come, by origin.
#[derive(Debug, Default)]
pub(crate) struct SequenceTracker {
    origins: HashMap<Origin, OriginSequence>,
}

/// The numbers of one origin.
#[derive(Debug)]
struct OriginSequence {
    /// Of the numbers before this one it is not known whether they came.
    first: u64,
    /// Every number from `first` up to here has come, without this one.
    next: u64,
    /// The numbers that came after a gap.
    ahead: BTreeSet<u64>,
    /// Since when numbers are missing.
    gap_since: Option<Instant>,
    last_message: Instant,
}

/// What the number of a message shows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Delivery {
    New,
    /// The message came before. In a cluster it may come over several connections.
    Duplicate,
    /// The message is new. More than [`MAX_AHEAD`] numbers have come after a missing one, so that
    /// message is lost.
    AfterGap,
}

impl SequenceTracker {
    /// Takes in the number of a message that came.
    pub(crate) fn observe(&mut self, origin: Origin, number: u64, now: Instant) -> Delivery {
        if self.origins.len() >= MAX_ORIGINS && !self.origins.contains_key(&origin) {
            self.forget_older_half();
        }
        let sequence = self
            .origins
            .entry(origin)
            .or_insert_with(|| OriginSequence {
                first: number,
                next: number,
                ahead: BTreeSet::new(),
                gap_since: None,
                last_message: now,
            });
        sequence.last_message = now;
        if number < sequence.first {
            return Delivery::New;
        }
        if number < sequence.next || !sequence.ahead.insert(number) {
            return Delivery::Duplicate;
        }
        sequence.advance_next();
        if sequence.ahead.is_empty() {
            sequence.gap_since = None;
            return Delivery::New;
        }
        sequence.gap_since.get_or_insert(now);
        if sequence.ahead.len() > MAX_AHEAD {
            sequence.skip_gap();
            return Delivery::AfterGap;
        }
        Delivery::New
    }

    /// Whether numbers have been missing for longer than this. Answers once for each gap.
    pub(crate) fn take_gap(&mut self, longer_than: Duration, now: Instant) -> bool {
        let mut found = false;
        for sequence in self.origins.values_mut() {
            let is_gap = sequence
                .gap_since
                .is_some_and(|since| now.saturating_duration_since(since) > longer_than);
            if is_gap {
                sequence.skip_gap();
                found = true;
            }
        }
        found
    }

    /// Forgets every number: any message may have been missed.
    pub(crate) fn clear(&mut self) {
        self.origins.clear();
    }

    fn forget_older_half(&mut self) {
        let mut ages: Vec<Instant> = self
            .origins
            .values()
            .map(|sequence| sequence.last_message)
            .collect();
        let half = ages.len() / 2;
        let (_, middle, _) = ages.select_nth_unstable(half);
        let middle = *middle;
        self.origins
            .retain(|_, sequence| sequence.last_message > middle);
    }
}

impl OriginSequence {
    fn advance_next(&mut self) {
        while self.ahead.remove(&self.next) {
            self.next = self.next.saturating_add(1);
        }
    }

    fn skip_gap(&mut self) {
        self.next = self
            .ahead
            .last()
            .map_or(self.next, |last| last.saturating_add(1));
        // The missing messages may still come, and are new then.
        self.first = self.next;
        self.ahead.clear();
        self.gap_since = None;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const A: Origin = [1; 16];
    const GRACE: Duration = Duration::from_millis(100);

    #[test]
    fn the_last_number_is_one_like_any_other() {
        let (mut numbers, now) = (SequenceTracker::default(), Instant::now());
        for origin in [[1; 16], [2; 16]] {
            if origin == [2; 16] {
                numbers.observe(origin, 1, now);
            }
            assert_eq!(numbers.observe(origin, u64::MAX, now), Delivery::New);
            numbers.take_gap(Duration::ZERO, now + Duration::from_secs(1));
            assert_ne!(numbers.observe(origin, 0, now), Delivery::Duplicate);
        }
    }

    #[test]
    fn a_hole_that_stays_open_is_a_loss_and_is_told_once() {
        let (mut numbers, start) = (SequenceTracker::default(), Instant::now());
        for number in [7, 8, 10, 11] {
            assert_eq!(numbers.observe(A, number, start), Delivery::New);
        }
        assert!(!numbers.take_gap(GRACE, start + GRACE));
        assert!(numbers.take_gap(GRACE, start + GRACE * 2));
        assert!(!numbers.take_gap(GRACE, start + GRACE * 9));
        assert_eq!(numbers.observe(A, 12, start + GRACE * 9), Delivery::New);
        assert!(!numbers.take_gap(GRACE, start + GRACE * 20));
        let late = numbers.observe(A, 9, start + GRACE * 20);
        assert_eq!(late, Delivery::New, "it fills the hole that was given up");
    }

    #[test]
    fn another_order_and_duplicates_are_no_loss() {
        let (mut numbers, start) = (SequenceTracker::default(), Instant::now());
        let again = [2, 3, 2, 0];
        for number in [1, 3, 2, 5, 4] {
            assert_eq!(numbers.observe(A, number, start), Delivery::New);
        }
        assert_eq!(
            again.map(|number| numbers.observe(A, number, start)),
            [
                Delivery::Duplicate,
                Delivery::Duplicate,
                Delivery::Duplicate,
                Delivery::New
            ],
            "nobody knows whether 0 has come"
        );
        assert_eq!(numbers.observe(A, 7, start), Delivery::New);
        assert_eq!(numbers.observe(A, 7, start), Delivery::Duplicate);
        assert_eq!(numbers.observe(A, 6, start), Delivery::New);
        assert!(!numbers.take_gap(GRACE, start + GRACE * 2));
    }

    #[test]
    fn holes_and_origins_are_bounded() {
        let (mut numbers, start) = (SequenceTracker::default(), Instant::now());
        numbers.observe(A, 0, start);
        let gaps = (2..2_000)
            .filter(|number| numbers.observe(A, *number, start) == Delivery::AfterGap)
            .count();
        assert_eq!(gaps, 1);
        for origin in 0..10_000_u64 {
            let mut name = [0; 16];
            name[..8].copy_from_slice(&origin.to_le_bytes());
            numbers.observe(name, 0, start + Duration::from_nanos(origin));
        }
        assert!(numbers.origins.len() <= MAX_ORIGINS);
    }
}
