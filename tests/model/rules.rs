//! The rules of the protocol, each of which can be switched off, and the violations that must never
//! happen.

use std::fmt;

use crate::state::{Config, Kind, Message, Progress, Stage, State, Subscription};

/// The rules of the protocol.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Rule {
    /// A token belongs to one load, not to a process.
    UniqueToken,
    /// The lease is acquired before the source is read.
    AcquireThenLoad,
    /// The fill compares and stores in one script.
    CompareAtFill,
    /// An invalidation removes the lease as well.
    InvalidateLease,
    /// Without a record in L2 the fill is refused.
    AbsentIsRefused,
    /// The message follows the removal.
    RemoveThenPublish,
    /// A flight registers before its read is sent.
    RegisterThenRead,
    /// The check of the fence and the store into L1 are one step.
    CheckWithStore,
    /// A detached flight is not joined.
    JoinCurrent,
    /// L1 is evicted after L2 has answered.
    L2ThenEvict,
    /// L1 is evicted also when the caller goes away.
    EvictWithoutCaller,
    /// A process subscribes first and then clears what it read before.
    SubscribeThenClear,
    /// An invalidation is announced also when L2 held nothing, because a value that was loaded
    /// without a lease enters L1.
    AlwaysPublish,
    /// L2 is read from the server that is written to.
    ReadPrimary,
    /// The commit comes before the invalidation.
    CommitThenInvalidate,
    /// The loader sees what was committed before it began.
    LoadPrimary,
    /// Writers that insert take turns.
    InsertInTurn,
    /// No fail-over loses a write.
    KeepWrites,
    /// `expire` gives a new token to the value that it leaves.
    ExpireNewToken,
    /// An insert enters L1 only if no other change of its key came meanwhile.
    InsertUnlessOvertaken,
    /// A process that waits for a lease has a timer beside the wake-up.
    WaitWithTimer,
    /// The lease of another process is left alone.
    RespectLease,
    /// A get joins the running flight of its key.
    Coalesce,
    /// L1 answers only within the channel lease.
    ChannelLease,
    /// The channel lease counts from the sending of the heartbeat.
    LeaseFromSending,
    /// Heartbeats and messages share one queue.
    HeartbeatInQueue,
    /// After the end of the channel lease, a flight older than H is not joined.
    JoinWithinLease,
    /// A key whose change failed at L2 is not read from L2 before its repair.
    RepairThenRead,
    /// A confirmed change clears only the repairs that were pending before it was sent, not those
    /// that came while its reply was under way.
    ClearEarlierRepairs,
}

/// What must never happen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Violation {
    /// A get is answered with an older version than a change that had returned here, or whose
    /// message was processed here, before the get began.
    OldAnswer,
    /// L2 holds a value older than a change that it has carried out.
    OldInL2,
    /// L1 holds a value older than a change that returned here or whose message was processed here.
    OldInL1,
    /// A process that is connected and has processed all messages answers an older version from L1.
    Missed,
    /// An L1 hit misses a change that returned H ago.
    OlderThanLease,
    /// A process can still answer what `invalidate_everywhere` has invalidated.
    NotEverywhere,
    /// Two loads in one process, neither of them detached.
    TwoLoadsInProcess,
    /// Two loads under leases: both holders live, no lease has expired, and no change came between.
    TwoLoadsInFleet,
    /// No step is left to do, and a flight or a lease is left.
    Stuck,
}

impl Violation {
    fn text(self) -> &'static str {
        match self {
            Self::OldAnswer => "a get is answered with a version older than it must see",
            Self::OldInL2 => "L2 holds a version older than a change that it has carried out",
            Self::OldInL1 => "L1 holds a version older than a change that this process knows of",
            Self::Missed => {
                "a process that has processed all messages answers an old version from L1"
            }
            Self::OlderThanLease => "an L1 hit misses a change that returned H ago",
            Self::NotEverywhere => {
                "an old version is answered after invalidate_everywhere returned"
            }
            Self::TwoLoadsInProcess => "two loads in one process, neither detached",
            Self::TwoLoadsInFleet => "two loads in the fleet, both with a living lease",
            Self::Stuck => "no step is left, and a flight or a lease is left behind",
        }
    }
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.text())
    }
}

/// A configuration under the protocol, or under the protocol without one rule.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Model<'a> {
    pub(crate) config: &'a Config,
    pub(crate) without: Option<Rule>,
}

impl Model<'_> {
    pub(crate) fn has(&self, rule: Rule) -> bool {
        self.without != Some(rule)
    }

    /// What L1 of a process would answer now.
    pub(crate) fn l1_answer(&self, state: &State, process: usize) -> Option<u8> {
        let process = &state.processes[process];
        let up = matches!(process.subscription, Subscription::Up | Subscription::Cut);
        (up && self.within_lease(state, process.lease_until)).then_some(process.l1)?
    }

    pub(crate) fn within_lease(&self, state: &State, lease_until: u8) -> bool {
        self.config.lease == 0 || !self.has(Rule::ChannelLease) || state.now < lease_until
    }

    /// Whether there is a replica of L2 that lags.
    pub(crate) fn replicates(&self) -> bool {
        !self.has(Rule::ReadPrimary) || !self.has(Rule::KeepWrites)
    }

    /// The first violation in a state, `wanted` before all others. `idle`: no process has a step
    /// left to do.
    pub(crate) fn violation(
        &self,
        state: &State,
        idle: bool,
        wanted: Option<Violation>,
    ) -> Option<Violation> {
        let broken = |violation| self.breaks(state, idle, violation);
        match wanted {
            Some(violation) => broken(violation).then_some(violation),
            None => ALL.into_iter().find(|violation| broken(*violation)),
        }
    }

    fn breaks(&self, state: &State, idle: bool, violation: Violation) -> bool {
        let mut processes = 0..self.config.processes;
        match violation {
            Violation::OldAnswer => state.old_answer,
            Violation::OldInL2 => {
                let newest = if state.l2.stale {
                    state.invalidated
                } else {
                    state.changed
                };
                state.l2.kind == Kind::Value && state.l2.version < newest
            }
            Violation::OldInL1 => processes.any(|process| {
                let process = &state.processes[process];
                process.l1.is_some_and(|l1| l1 < process.knows)
            }),
            Violation::Missed => processes.any(|process| {
                let old = self
                    .l1_answer(state, process)
                    .is_some_and(|l1| l1 < state.changed);
                old && state.processes[process].subscription == Subscription::Up
                    && !self.has_unprocessed_change(state, process)
            }),
            Violation::OlderThanLease => processes.any(|process| {
                self.config.lease > 0
                    && self.l1_answer(state, process).is_some_and(|l1| {
                        state.writes.iter().any(|write| {
                            matches!(write.progress, Progress::WaitsForLease | Progress::All)
                                && !write.dropped
                                && write.version > l1
                                && state.now >= write.returned + self.config.lease
                        })
                    })
            }),
            Violation::NotEverywhere => processes.any(|process| {
                let l1 = self.l1_answer(state, process);
                l1.is_some_and(|l1| l1 < state.everywhere)
            }),
            Violation::TwoLoadsInProcess => processes.any(|process| {
                let flights = state.flights.iter().filter(|flight| {
                    usize::from(flight.process) == process && flight.loads() && flight.joinable
                });
                flights.count() > 1
            }),
            Violation::TwoLoadsInFleet => {
                let flights = state.flights.iter();
                flights
                    .filter(|flight| flight.holds() && !flight.lost)
                    .count()
                    > 1
            }
            Violation::Stuck => {
                // A write that waits for the channel lease waits for time alone.
                let is_over =
                    |progress| matches!(progress, Progress::All | Progress::WaitsForLease);
                idle && (state
                    .flights
                    .iter()
                    .any(|flight| flight.stage != Stage::Free)
                    || state.l2.kind == Kind::Lease
                    || !state.writes.iter().all(|write| is_over(write.progress)))
            }
        }
    }

    /// Whether a change that L2 has carried out has not been processed by a process yet.
    fn has_unprocessed_change(&self, state: &State, process: usize) -> bool {
        let messages = state.processes[process].inbox.iter();
        let mut own = state.writes.iter().zip(self.config.writes);
        messages
            .into_iter()
            .any(|message| matches!(message, Message::Changed(_)))
            || own.any(|(write, (by, _))| {
                usize::from(*by) == process && write.progress == Progress::Executed
            })
    }
}

const ALL: [Violation; 9] = [
    Violation::OldInL2,
    Violation::OldInL1,
    Violation::OldAnswer,
    Violation::Missed,
    Violation::OlderThanLease,
    Violation::NotEverywhere,
    Violation::TwoLoadsInProcess,
    Violation::TwoLoadsInFleet,
    Violation::Stuck,
];
