//! The fence: makes an entry unusable that was stored before an invalidation of its key.
//!
//! Messages from other processes name encoded keys, L1 holds typed keys, and an encoding cannot be
//! reversed. So L1 is not searched. Every key belongs to one of many *stripes*. A message bumps the
//! generation of its key's stripe, and an entry is answered only while the generation is current
//! under which it was stored. An entry remembers its stripe, so a hit compares two numbers and
//! computes no hash. A message also makes the entries of other keys in the same stripe unusable,
//! which costs each of them one read of L2.
//!
//! A generation is bumped, and an entry is stored, only under the lock of the shard of the flight
//! table that the stripe belongs to.

use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::time::Duration;

use tokio::time::Instant;

use crate::time_base::TimeBase;
use crate::ttl;

/// Stripes for each entry that L1 can hold.
const STRIPES_PER_ENTRY: u64 = 2;
const MIN_STRIPES: u64 = 1 << 8;
const MAX_STRIPES: u64 = 1 << 16;

/// The fence of one cache.
#[derive(Debug)]
pub(crate) struct Fence {
    generations: Box<[AtomicU32]>,
    /// Bumped when a message may have been missed: every entry of an earlier epoch is unusable.
    epoch: AtomicU32,
    time_base: TimeBase,
    /// With a hold-off: until when nothing of a stripe is stored, in nanoseconds of the time base.
    held_off: Option<Box<[AtomicU64]>>,
    hold_off: Duration,
}

/// The generation and the epoch under which an entry was stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Stamp {
    stripe: u32,
    generation: u32,
    epoch: u32,
}

impl Fence {
    pub(crate) fn new(l1_capacity: u64, hold_off: Duration, time_base: TimeBase) -> Self {
        let stripes = l1_capacity
            .saturating_mul(STRIPES_PER_ENTRY)
            .clamp(MIN_STRIPES, MAX_STRIPES)
            .next_power_of_two();
        Self {
            generations: (0..stripes).map(|_| AtomicU32::new(0)).collect(),
            epoch: AtomicU32::new(0),
            time_base,
            held_off: (!hold_off.is_zero())
                .then(|| (0..stripes).map(|_| AtomicU64::new(0)).collect()),
            hold_off,
        }
    }

    /// The key was invalidated. For the time of the hold-off, the value that is read may be older.
    pub(crate) fn hold_off(&self, hash: u64, now: Instant) {
        if let Some(held_off) = &self.held_off {
            let until = self.time_base.nanos(ttl::deadline(now, self.hold_off));
            held_off[self.stripe(hash)].fetch_max(until, Ordering::SeqCst);
        }
    }

    /// Everything was invalidated: the same for every key.
    pub(crate) fn hold_off_all(&self, now: Instant) {
        let until = self.time_base.nanos(ttl::deadline(now, self.hold_off));
        for held_off in self.held_off.iter().flatten() {
            held_off.fetch_max(until, Ordering::SeqCst);
        }
    }

    /// Whether nothing may be stored for this key yet.
    pub(crate) fn is_held_off(&self, hash: u64, now: Instant) -> bool {
        self.held_off.as_ref().is_some_and(|held_off| {
            self.time_base.nanos(now) < held_off[self.stripe(hash)].load(Ordering::SeqCst)
        })
    }

    fn stripe(&self, hash: u64) -> usize {
        // The number of stripes is a power of two. The low bits choose the shard as well, so a
        // stripe belongs to one shard.
        usize::try_from(hash & (self.generations.len() as u64 - 1)).unwrap_or(0)
    }

    /// The stamp of an entry whose read began in `epoch`.
    pub(crate) fn stamp_in(&self, hash: u64, epoch: u32) -> Stamp {
        let stripe = self.stripe(hash);
        let generation = self.generations[stripe].load(Ordering::SeqCst);
        #[expect(
            clippy::cast_possible_truncation,
            reason = "there are at most 2^16 stripes"
        )]
        let stripe = stripe as u32;
        Stamp {
            stripe,
            generation,
            epoch,
        }
    }

    /// Whether neither the stripe's generation nor the epoch has changed since the stamp was made.
    #[inline]
    pub(crate) fn holds(&self, stamp: Stamp) -> bool {
        self.generations[stamp.stripe as usize].load(Ordering::Acquire) == stamp.generation
            && self.epoch.load(Ordering::Acquire) == stamp.epoch
    }

    /// Another process changed a key with this hash. The caller holds the shard's lock.
    pub(crate) fn bump(&self, hash: u64) {
        self.generations[self.stripe(hash)].fetch_add(1, Ordering::SeqCst);
    }

    pub(crate) fn epoch(&self) -> u32 {
        self.epoch.load(Ordering::SeqCst)
    }

    /// A message may have been missed.
    pub(crate) fn bump_epoch(&self) {
        self.epoch.fetch_add(1, Ordering::SeqCst);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn over(capacity: u64, hold_off: Duration) -> Fence {
        Fence::new(capacity, hold_off, TimeBase::at(Instant::now()))
    }

    #[test]
    fn a_hold_off_ends_and_concerns_its_stripe() {
        let now = Instant::now();
        let fence = over(1000, Duration::from_secs(1));
        fence.hold_off(7, now);
        assert!(fence.is_held_off(7, now) && !fence.is_held_off(8, now));
        assert!(!fence.is_held_off(7, now + Duration::from_secs(2)));
        fence.hold_off_all(now);
        assert!(fence.is_held_off(8, now));
        assert!(!over(1000, Duration::ZERO).is_held_off(7, now));
    }

    #[test]
    fn a_message_or_a_gap_ends_what_was_stamped_before() {
        let fence = over(1000, Duration::ZERO);
        let (mine, other) = (fence.stamp_in(7, 0), fence.stamp_in(8, 0));
        assert!(fence.holds(mine) && fence.holds(other));
        fence.bump(7);
        assert!(!fence.holds(mine) && fence.holds(other));
        assert!(fence.holds(fence.stamp_in(7, 0)));
        fence.bump_epoch();
        assert!(!fence.holds(other));
    }

    #[test]
    fn stripes_follow_the_capacity_within_bounds() {
        for (capacity, stripes) in [
            (0, 256),
            (1_000, 2_048),
            (10_000, 32_768),
            (u64::MAX, 65_536),
        ] {
            assert_eq!(
                over(capacity, Duration::ZERO).generations.len(),
                stripes,
                "{capacity}"
            );
        }
    }
}
