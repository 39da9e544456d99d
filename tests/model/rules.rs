//! The rules of the protocol, each of which can be switched off, and what must never happen.

use std::fmt;

use crate::state::{At, Config, Done, Kind, Link, Message, State};

/// R1 to R17, and what the design adds to them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Rule {
    /// R1: a token belongs to one load, not to a process.
    UniqueToken,
    /// R2: the lease is acquired before the source is read.
    AcquireThenLoad,
    /// R3: the fill compares and stores in one script.
    CompareAtFill,
    /// R4: an invalidation removes the lease as well.
    InvalidateLease,
    /// R5: where nothing is, the fill is refused.
    AbsentIsRefused,
    /// R6: the message follows the removal.
    RemoveThenPublish,
    /// R7: a flight registers before its read is sent.
    RegisterThenRead,
    /// R8: the check of the fence and the store into L1 are one.
    CheckWithStore,
    /// R9: a detached flight is not joined.
    JoinCurrent,
    /// R10: L1 is evicted after L2 has answered.
    L2ThenEvict,
    /// R10: and also when the caller goes away.
    EvictWithoutCaller,
    /// R11: subscribe, then forget what was read before.
    SubscribeThenForget,
    /// R12: an invalidation is announced also where L2 held nothing, because what was loaded alone
    /// enters L1.
    AlwaysPublish,
    /// R13: L2 is read where it is written.
    ReadPrimary,
    /// R14: the commit comes first.
    CommitThenInvalidate,
    /// R15: the loader sees what was committed before it began.
    LoadPrimary,
    /// R16: writers that insert take turns.
    InsertInTurn,
    /// R17: no fail-over loses a write.
    KeepWrites,
    /// D1: `expire` gives the value that it leaves a new token.
    ExpireNewToken,
    /// D2: an insert enters L1 only if nothing changed its key meanwhile.
    InsertUndisturbed,
    /// D3: whoever waits for a lease has a timer beside the wake-up.
    WaitWithTimer,
    /// D4: another's lease is left alone.
    RespectLease,
    /// D5: a get joins the flight that is there.
    Coalesce,
    /// D6: L1 answers only within the channel lease.
    ChannelLease,
    /// D7: the channel lease counts from when the beat was sent.
    LeaseFromSending,
    /// D8: beats take the same way as the messages.
    BeatInQueue,
    /// D9: when the channel lease has run out, a flight older than it is not joined.
    JoinWithinLease,
    /// D10: a key that L2 could not be told of is not read from L2 before L2 has been told.
    RepairThenRead,
    /// D11: a change that L2 has confirmed settles the repairs that were pending before it was sent,
    /// not those that came while its reply was under way.
    SettleEarlier,
}

/// What must never happen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Violation {
    /// P3: a get that began after a change had returned here, or had been heard of here, is
    /// answered with an older version.
    OldAnswer,
    /// P3: L2 holds a value older than a change that it has carried out.
    OldInL2,
    /// P3: L1 holds a value older than a change that returned here or was heard of here.
    OldInL1,
    /// A process that is connected and has heard everything answers an older version from L1.
    Missed,
    /// P4: an L1 hit misses a change that returned H ago.
    OlderThanLease,
    /// P3: somebody can still answer what `invalidate_everywhere` has invalidated.
    NotEverywhere,
    /// P1: two loads in one process, neither of them detached.
    TwoLoadsInProcess,
    /// P2: two loads under leases, both holders alive, no lease expired, no change between.
    TwoLoadsInFleet,
    /// Nothing is left to do, and a flight or a lease is there.
    Stuck,
}

impl Violation {
    fn text(self) -> &'static str {
        match self {
            Self::OldAnswer => "a get is answered with a version older than it must see",
            Self::OldInL2 => "L2 holds a version older than a change that it has carried out",
            Self::OldInL1 => "L1 holds a version older than a change that this process knows of",
            Self::Missed => "a process that has heard everything answers an old version from L1",
            Self::OlderThanLease => "an L1 hit misses a change that returned H ago",
            Self::NotEverywhere => {
                "an old version is answered after invalidate_everywhere returned"
            }
            Self::TwoLoadsInProcess => "two loads in one process, neither detached",
            Self::TwoLoadsInFleet => "two loads in the fleet, both with a living lease",
            Self::Stuck => "nothing is left to do, and a flight or a lease is left behind",
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
        let up = matches!(process.link, Link::Up | Link::Cut);
        (up && self.within_lease(state, process.lease_until)).then_some(process.l1)?
    }

    pub(crate) fn within_lease(&self, state: &State, lease_until: u8) -> bool {
        self.config.lease == 0 || !self.has(Rule::ChannelLease) || state.now < lease_until
    }

    /// Whether an L2 replica lags behind anywhere.
    pub(crate) fn replicates(&self) -> bool {
        !self.has(Rule::ReadPrimary) || !self.has(Rule::KeepWrites)
    }

    /// The first thing that is wrong with a state, `wanted` before all others. `idle`: no process
    /// has anything left to do in it.
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
                old && state.processes[process].link == Link::Up && !self.is_to_hear(state, process)
            }),
            Violation::OlderThanLease => processes.any(|process| {
                self.config.lease > 0
                    && self.l1_answer(state, process).is_some_and(|l1| {
                        state.writes.iter().any(|write| {
                            matches!(write.done, Done::WaitsOut | Done::All)
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
                // Whoever waits out the channel lease waits for nothing but time.
                let is_over = |done| matches!(done, Done::All | Done::WaitsOut);
                idle && (state.flights.iter().any(|flight| flight.at != At::Free)
                    || state.l2.kind == Kind::Lease
                    || !state.writes.iter().all(|write| is_over(write.done)))
            }
        }
    }

    /// Whether a change that L2 has carried out is still on its way to a process.
    fn is_to_hear(&self, state: &State, process: usize) -> bool {
        let messages = state.processes[process].inbox.iter();
        let mut own = state.writes.iter().zip(self.config.writes);
        messages
            .into_iter()
            .any(|message| matches!(message, Message::Changed(_)))
            || own
                .any(|(write, (by, _))| usize::from(*by) == process && write.done == Done::Executed)
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
