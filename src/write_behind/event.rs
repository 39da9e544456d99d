//! What a write-behind says of itself.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use super::sink::WriteId;

/// Something that operators want to hear of: see
/// [`on_event`](super::WriteBehindBuilder::on_event).
#[non_exhaustive]
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// This process works on a partition from now on.
    Claimed {
        /// Which.
        partition: u16,
        /// The [epoch](super::Batch::epoch) that began.
        epoch: u64,
    },
    /// This process learnt that another one may work on its partition: it was stopped for longer
    /// than the lease, or Redis did not answer for so long, or lost the lease. What it has applied
    /// and not acknowledged is applied again.
    Lost {
        /// Which.
        partition: u16,
    },
    /// Other processes divide the keys into another number of partitions, which was noticed only
    /// now: the stored number was lost, and they were the first to store it again. This process does
    /// not work on the partition.
    Disagreement {
        /// Which.
        partition: u16,
        /// Their number.
        there: String,
    },
    /// A batch failed. It is tried again, unless a [`DeadLettered`](Self::DeadLettered) follows.
    Failed {
        /// Of which partition.
        partition: u16,
        /// How many writes it had.
        writes: usize,
        /// The error of the sink, with its causes.
        error: String,
    },
    /// A write was moved to the dead letters.
    DeadLettered {
        /// Of which partition.
        partition: u16,
        /// Which.
        id: WriteId,
        /// The error of the sink, or why the entry could not be read.
        error: String,
        /// How many older letters were dropped for it, because there are
        /// [`max_dead_letters`](super::WriteBehindBuilder::max_dead_letters).
        dropped: u64,
    },
}

/// How far the source of truth is behind: see [`WriteBehind::lag`](super::WriteBehind::lag).
#[non_exhaustive]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Lag {
    /// Writes that are accepted and not acknowledged.
    pub unapplied: u64,
    /// How old the oldest of them is. `None`: there is none, or the server's clock is not known.
    pub oldest: Option<Duration>,
}

macro_rules! stats {
    ($($(#[$doc:meta])* $name:ident,)*) => {
        /// Counters of one write-behind in this process, since it was opened: a snapshot. The
        /// fleet's backlog is [`lag`](super::WriteBehind::lag).
        #[non_exhaustive]
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
        pub struct Stats {
            $($(#[$doc])* pub $name: u64,)*
        }

        #[derive(Debug, Default)]
        pub(super) struct Counters {
            $(pub(super) $name: Counter,)*
        }

        impl Counters {
            pub(super) fn snapshot(&self) -> Stats {
                Stats { $($name: self.$name.0.load(Ordering::Relaxed),)* }
            }
        }
    };
}

stats! {
    /// Writes that this process had accepted, re-driven ones among them.
    accepted,
    /// Writes that were answered an error which says that they were not accepted.
    refused,
    /// Writes that were answered [`Unknown`](super::WriteError::Unknown).
    unknown,
    /// Writes that this process's sink applied and that are acknowledged.
    applied,
    /// Writes among them that were not given to the sink, because a later one of their key stood in
    /// the same batch.
    coalesced,
    /// Batches that this process's sink was given.
    batches,
    /// Batches among them that failed.
    failed,
    /// Entries that this process moved to the dead letters.
    dead_lettered,
    /// Entries among them that could not be read.
    unreadable,
    /// Dead letters that were dropped because there were too many.
    dead_letters_dropped,
    /// Partitions that this process claimed.
    claimed,
    /// Partitions that it lost without giving them up.
    lost,
}

#[derive(Debug, Default)]
pub(super) struct Counter(AtomicU64);

impl Counter {
    pub(super) fn add(&self, more: u64) {
        self.0.fetch_add(more, Ordering::Relaxed);
    }
}
