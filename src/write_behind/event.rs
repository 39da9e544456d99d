//! Events, the lag and counters of a write-behind.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use super::sink::WriteId;

/// An event for operators: see
/// [`on_event`](super::WriteBehindBuilder::on_event).
#[non_exhaustive]
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// This process has claimed a partition, and works on it.
    Claimed {
        /// The partition.
        partition: u16,
        /// The [epoch](super::Batch::epoch) that began.
        epoch: u64,
    },
    /// Another process may work on the partition of this one. This process was stopped for longer
    /// than the lease, or Redis did not answer for that long, or Redis lost the lease. Writes that
    /// were applied and not acknowledged are applied again.
    Lost {
        /// The partition.
        partition: u16,
    },
    /// Other processes divide the keys into another number of partitions. It was noticed only now:
    /// the stored number was lost, and they were the first to store it again. This process does not
    /// work on the partition.
    Disagreement {
        /// The partition.
        partition: u16,
        /// Their number.
        there: String,
    },
    /// A batch failed. It is tried again, unless a [`DeadLettered`](Self::DeadLettered) follows.
    Failed {
        /// The partition.
        partition: u16,
        /// How many writes it had.
        writes: usize,
        /// The error of the sink, with its causes.
        error: String,
    },
    /// A write was moved to the dead letters.
    DeadLettered {
        /// The partition.
        partition: u16,
        /// The write.
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
    /// The age of the oldest of them. `None`: there is none, or the server's clock is not known.
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
    /// Writes of this process that were accepted, including re-driven ones.
    accepted,
    /// Writes of this process that were certainly not accepted.
    refused,
    /// Writes of this process that ended in [`Unknown`](super::WriteError::Unknown).
    unknown,
    /// Writes that this process's sink applied, and that were acknowledged.
    applied,
    /// Those of the applied writes that the sink was not given, because the same batch had a later
    /// write of their key.
    coalesced,
    /// Batches that this process's sink was given.
    batches,
    /// Those of the batches that failed.
    failed,
    /// Entries that this process moved to the dead letters.
    dead_lettered,
    /// Those of the dead-lettered entries that could not be read.
    unreadable,
    /// Dead letters that were dropped because there were too many.
    dead_letters_dropped,
    /// Partitions that this process claimed.
    claimed,
    /// Partitions that this process lost without giving them up.
    lost,
}

#[derive(Debug, Default)]
pub(super) struct Counter(AtomicU64);

impl Counter {
    pub(super) fn add(&self, more: u64) {
        self.0.fetch_add(more, Ordering::Relaxed);
    }
}
