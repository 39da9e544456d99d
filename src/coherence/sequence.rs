//! Holes in the numbers of what others say: a message was lost, and nobody said so.
//!
//! Messages of one origin may come in another order than they were numbered (they are executed on
//! several connections), so a hole is one only when it has stayed open for a while. Where a new origin
//! begins cannot be known; what it said before its first message here cannot be missed either, since
//! whatever was read before this process listened is not used.

use std::collections::{BTreeSet, HashMap};
use std::time::Duration;

use tokio::time::Instant;

use crate::protocol::message::Origin;

/// Origins that are remembered; beyond that those go which were not heard for longest.
const MOST: usize = 4096;

/// Numbers beyond a hole that are remembered.
const AHEAD: usize = 1024;

#[derive(Debug, Default)]
pub(crate) struct SequenceTracker {
    origins: HashMap<Origin, Heard>,
}

#[derive(Debug)]
struct Heard {
    /// What came before this one is not known.
    first: u64,
    /// Every number from `first` to before this one has come.
    next: u64,
    /// Those after the hole.
    ahead: BTreeSet<u64>,
    open_since: Option<Instant>,
    last: Instant,
}

/// What a number says of its message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Delivery {
    New,
    /// It came before: in a cluster, over another line.
    Again,
    /// It is new, and so many before it are missing that something must have been lost.
    AfterGap,
}

impl SequenceTracker {
    /// A message came.
    pub(crate) fn hear(&mut self, origin: Origin, number: u64, now: Instant) -> Delivery {
        if self.origins.len() >= MOST && !self.origins.contains_key(&origin) {
            self.forget_half();
        }
        let heard = self.origins.entry(origin).or_insert_with(|| Heard {
            first: number,
            next: number,
            ahead: BTreeSet::new(),
            open_since: None,
            last: now,
        });
        heard.last = now;
        if number < heard.first {
            return Delivery::New;
        }
        if number < heard.next || !heard.ahead.insert(number) {
            return Delivery::Again;
        }
        heard.close_up();
        if heard.ahead.is_empty() {
            heard.open_since = None;
            return Delivery::New;
        }
        heard.open_since.get_or_insert(now);
        if heard.ahead.len() > AHEAD {
            heard.give_up();
            return Delivery::AfterGap;
        }
        Delivery::New
    }

    /// Whether a hole has been open for longer than this. It is not reported again.
    pub(crate) fn lost(&mut self, longer_than: Duration, now: Instant) -> bool {
        let mut lost = false;
        for heard in self.origins.values_mut() {
            let open = heard
                .open_since
                .is_some_and(|since| now.saturating_duration_since(since) > longer_than);
            if open {
                heard.give_up();
                lost = true;
            }
        }
        lost
    }

    /// Anything may have been missed: begin anew.
    pub(crate) fn clear(&mut self) {
        self.origins.clear();
    }

    fn forget_half(&mut self) {
        let mut ages: Vec<Instant> = self.origins.values().map(|heard| heard.last).collect();
        let half = ages.len() / 2;
        let (_, middle, _) = ages.select_nth_unstable(half);
        let middle = *middle;
        self.origins.retain(|_, heard| heard.last > middle);
    }
}

impl Heard {
    fn close_up(&mut self) {
        while self.ahead.remove(&self.next) {
            self.next = self.next.saturating_add(1);
        }
    }

    fn give_up(&mut self) {
        self.next = self
            .ahead
            .last()
            .map_or(self.next, |last| last.saturating_add(1));
        // What is missing may still come.
        self.first = self.next;
        self.ahead.clear();
        self.open_since = None;
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
                numbers.hear(origin, 1, now);
            }
            assert_eq!(numbers.hear(origin, u64::MAX, now), Delivery::New);
            numbers.lost(Duration::ZERO, now + Duration::from_secs(1));
            assert_ne!(numbers.hear(origin, 0, now), Delivery::Again);
        }
    }

    #[test]
    fn a_hole_that_stays_open_is_a_loss_and_is_told_once() {
        let (mut numbers, start) = (SequenceTracker::default(), Instant::now());
        for number in [7, 8, 10, 11] {
            assert_eq!(numbers.hear(A, number, start), Delivery::New);
        }
        assert!(!numbers.lost(GRACE, start + GRACE));
        assert!(numbers.lost(GRACE, start + GRACE * 2));
        assert!(!numbers.lost(GRACE, start + GRACE * 9));
        assert_eq!(numbers.hear(A, 12, start + GRACE * 9), Delivery::New);
        assert!(!numbers.lost(GRACE, start + GRACE * 20));
        let late = numbers.hear(A, 9, start + GRACE * 20);
        assert_eq!(late, Delivery::New, "it fills the hole that was given up");
    }

    #[test]
    fn another_order_and_duplicates_are_no_loss() {
        let (mut numbers, start) = (SequenceTracker::default(), Instant::now());
        let again = [2, 3, 2, 0];
        for number in [1, 3, 2, 5, 4] {
            assert_eq!(numbers.hear(A, number, start), Delivery::New);
        }
        assert_eq!(
            again.map(|number| numbers.hear(A, number, start)),
            [
                Delivery::Again,
                Delivery::Again,
                Delivery::Again,
                Delivery::New
            ],
            "nobody knows whether 0 has come"
        );
        assert_eq!(numbers.hear(A, 7, start), Delivery::New);
        assert_eq!(numbers.hear(A, 7, start), Delivery::Again);
        assert_eq!(numbers.hear(A, 6, start), Delivery::New);
        assert!(!numbers.lost(GRACE, start + GRACE * 2));
    }

    #[test]
    fn holes_and_origins_are_bounded() {
        let (mut numbers, start) = (SequenceTracker::default(), Instant::now());
        numbers.hear(A, 0, start);
        let lost = (2..2_000)
            .filter(|number| numbers.hear(A, *number, start) == Delivery::AfterGap)
            .count();
        assert_eq!(lost, 1);
        for origin in 0..10_000_u64 {
            let mut name = [0; 16];
            name[..8].copy_from_slice(&origin.to_le_bytes());
            numbers.hear(name, 0, start + Duration::from_nanos(origin));
        }
        assert!(numbers.origins.len() <= MOST);
    }
}
