//! The state of the model: one key, its source of truth, L2, the processes, and the calls under
//! way.

/// Upper bounds of what a configuration may ask for.
pub(crate) const PROCESSES: usize = 3;
pub(crate) const FLIGHTS: usize = 5;
pub(crate) const WRITES: usize = 3;
const INBOX: usize = 5;

/// A record of L2.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub(crate) struct Record {
    pub(crate) kind: Kind,
    pub(crate) token: u8,
    pub(crate) version: u8,
    /// A value past its TTL.
    pub(crate) stale: bool,
    /// A lease for which a process waits.
    pub(crate) waited_for: bool,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub(crate) enum Kind {
    #[default]
    Absent,
    Lease,
    Value,
    /// A failure mark.
    Failed,
}

impl Record {
    pub(crate) const ABSENT: Self = Self {
        kind: Kind::Absent,
        token: 0,
        version: 0,
        stale: false,
        waited_for: false,
    };

    pub(crate) fn of(kind: Kind, token: u8) -> Self {
        Self {
            kind,
            token,
            ..Self::ABSENT
        }
    }

    pub(crate) fn value(version: u8, token: u8) -> Self {
        Self {
            version,
            ..Self::of(Kind::Value, token)
        }
    }
}

/// A message of the bus in the inbox of one process.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub(crate) enum Message {
    #[default]
    None,
    /// The key was invalidated, inserted or expired. The version is not sent, it is for the oracle.
    Changed(u8),
    /// A lease for which a process waits is gone.
    Wake,
    /// From the process to itself, with the time at which it was sent.
    Heartbeat(u8),
}

/// The subscription of a process.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub(crate) enum Subscription {
    #[default]
    Up,
    /// Dead without notice: nothing arrives.
    Cut,
    /// Dead, and the process knows.
    Down,
    /// Confirmed by the server. The process has not cleared what it read before.
    Subscribed,
    /// Cleared, but not subscribed: the wrong order.
    Cleared,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub(crate) struct Process {
    pub(crate) l1: Option<u8>,
    pub(crate) subscription: Subscription,
    /// L1 answers before this time.
    pub(crate) lease_until: u8,
    pub(crate) inbox: [Message; INBOX],
    /// Calls that have not begun.
    pub(crate) gets: u8,
    pub(crate) refreshes: u8,
    /// The newest version whose change failed at L2. It must be repaired before L2 is read again.
    pub(crate) repairs: u8,
    /// For the oracle: the newest version that this process knows of, from a change of its own that
    /// returned or from a message that it processed.
    pub(crate) knows: u8,
}

impl Process {
    pub(crate) fn send(&mut self, message: Message) {
        let free = self.inbox.iter_mut().find(|slot| **slot == Message::None);
        *free.expect("a configuration sends no more messages than an inbox holds") = message;
    }

    pub(crate) fn pop_message(&mut self) {
        self.inbox.copy_within(1.., 0);
        self.inbox[INBOX - 1] = Message::None;
    }

    pub(crate) fn is_subscribed(&self) -> bool {
        matches!(
            self.subscription,
            Subscription::Up | Subscription::Subscribed
        )
    }
}

/// The stage of a flight: what it does next.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub(crate) enum Stage {
    #[default]
    Free,
    ReadL2,
    /// L2 has answered with a value, and the reply is under way (only without `RegisterThenRead`).
    Reply,
    Acquire,
    Wait,
    Load,
    /// The load failed, and a failure mark is to replace the lease.
    MarkFailure,
    Fill,
    Complete,
    /// It may store into L1 and has not stored yet (only without `CheckWithStore`).
    Store,
    CompleteWithError,
}

/// The record against which the fill of a load is compared.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub(crate) enum FillAgainst {
    #[default]
    Nothing,
    Lease,
    /// The value that is refreshed.
    Value,
    /// No fill.
    NoFill,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub(crate) struct Flight {
    pub(crate) stage: Stage,
    pub(crate) process: u8,
    pub(crate) fill_against: FillAgainst,
    /// The token of that record, or of the stale value that the lease will replace.
    pub(crate) token: u8,
    /// The version that was read or loaded.
    pub(crate) version: u8,
    /// A load is wanted although there is a value.
    pub(crate) refreshes: bool,
    /// In the flight table: later callers join it.
    pub(crate) joinable: bool,
    /// A change or a gap came since it registered, so it stores nothing in L1.
    pub(crate) fenced: bool,
    pub(crate) registered: bool,
    /// Its answer may enter L1.
    pub(crate) enters_l1: bool,
    /// It has loaded before it acquired (only without `AcquireThenLoad`).
    pub(crate) loaded: bool,
    /// When it began. Counted only with a channel lease.
    pub(crate) begun: u8,
    /// For the oracle: the newest version that one of its callers must see.
    pub(crate) needs: u8,
    /// For the oracle: its lease expired, or the key was changed under it.
    pub(crate) lost: bool,
}

impl Flight {
    pub(crate) fn in_use(&self) -> bool {
        self.stage != Stage::Free
    }

    /// From the grant to the fill, which is longer than the load itself.
    pub(crate) fn holds(&self) -> bool {
        self.fill_against == FillAgainst::Lease
            && matches!(self.stage, Stage::Load | Stage::Fill | Stage::MarkFailure)
    }

    pub(crate) fn loads(&self) -> bool {
        matches!(self.stage, Stage::Load | Stage::Fill | Stage::MarkFailure)
    }
}

/// The progress of a write: what it has done.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub(crate) enum Progress {
    #[default]
    Nothing,
    Committed,
    /// L1 is evicted and L2 is not changed yet (only without `L2ThenEvict`).
    Evicted,
    /// Announced, and L2 is not changed yet (only without `RemoveThenPublish`).
    Announced,
    /// L2 has carried it out, and the reply is under way.
    Executed,
    /// `invalidate_everywhere` waits until no process can have missed it.
    WaitsForLease,
    /// L2 has answered, and the source has not committed (only without `CommitThenInvalidate`).
    Premature,
    All,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub(crate) struct Write {
    pub(crate) progress: Progress,
    pub(crate) version: u8,
    /// The repair that was pending when the change was sent.
    pub(crate) pending_repair: u8,
    /// An insert whose key was changed while it was under way.
    pub(crate) overtaken: bool,
    /// When it returned. Counted only with a channel lease.
    pub(crate) returned: u8,
    /// Its process crashed or its caller went away, so nothing was promised.
    pub(crate) dropped: bool,
}

/// The faults that may still happen.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub(crate) struct Faults {
    /// Leases that expire under a living holder.
    pub(crate) expiries: u8,
    /// Values of L2 that pass their TTL.
    pub(crate) agings: u8,
    /// Entries that L1 or L2 drops.
    pub(crate) evictions: u8,
    pub(crate) crashes: u8,
    pub(crate) cuts: u8,
    pub(crate) duplicates: u8,
    /// Flights that L2 does not answer, or that wait for longer than `lease_wait`.
    pub(crate) without_lease: u8,
    /// Invalidations that L2 neither answers nor carries out.
    pub(crate) change_fails: u8,
    pub(crate) failures: u8,
    /// Fills whose outcome stays unknown.
    pub(crate) unknown_fills: u8,
    pub(crate) fail_overs: u8,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub(crate) struct State {
    /// The newest committed version.
    pub(crate) source: u8,
    pub(crate) l2: Record,
    /// The replica of L2, if it is read.
    pub(crate) replica: Record,
    pub(crate) now: u8,
    pub(crate) processes: [Process; PROCESSES],
    pub(crate) flights: [Flight; FLIGHTS],
    pub(crate) writes: [Write; WRITES],
    pub(crate) faults: Faults,
    /// For the oracle: the newest version that L2 has carried out, by invalidations and inserts, by
    /// expiries as well, and by an `invalidate_everywhere` that has returned.
    pub(crate) invalidated: u8,
    pub(crate) changed: u8,
    pub(crate) everywhere: u8,
    /// For the oracle: a caller was answered with less than it must see.
    pub(crate) old_answer: bool,
}

/// What a write does after its commit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum WriteKind {
    Invalidate,
    InvalidateEverywhere,
    Insert,
    Expire,
}

/// The bounds of one exploration.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Config {
    pub(crate) name: &'static str,
    /// Whether L2 holds version 0 at first.
    pub(crate) warm: bool,
    /// Processes that take part, and the gets of each.
    pub(crate) processes: usize,
    pub(crate) gets: [u8; PROCESSES],
    pub(crate) refreshes: [u8; PROCESSES],
    /// The process and the kind of each write.
    pub(crate) writes: &'static [(u8, WriteKind)],
    pub(crate) faults: Faults,
    /// The channel lease H and the end of time, in ticks. Zero means no channel lease.
    pub(crate) lease: u8,
    pub(crate) ticks: u8,
}

impl Config {
    /// The bounds in words.
    pub(crate) fn bounds(&self) -> String {
        let gets = &self.gets[..self.processes];
        let mut bounds = format!("gets {gets:?}");
        let refreshes = &self.refreshes[..self.processes];
        if refreshes.iter().any(|refreshes| *refreshes > 0) {
            bounds += &format!(", refreshes {refreshes:?}");
        }
        for (process, write_kind) in self.writes {
            bounds += &format!(", P{process} {write_kind:?}");
        }
        let faults = &self.faults;
        for (name, faults) in [
            ("lease expiries", faults.expiries),
            ("values past their TTL", faults.agings),
            ("evictions", faults.evictions),
            ("crashes", faults.crashes),
            ("cuts", faults.cuts),
            ("duplicates", faults.duplicates),
            ("flights without a lease", faults.without_lease),
            ("failed invalidations", faults.change_fails),
            ("failed loads", faults.failures),
            ("unknown fills", faults.unknown_fills),
        ] {
            if faults > 0 {
                bounds += &format!(", {name} {faults}");
            }
        }
        if self.lease > 0 {
            bounds += &format!(", H {} ticks of {}", self.lease, self.ticks);
        }
        bounds + if self.warm { ", warm" } else { ", cold" }
    }

    pub(crate) fn start(&self) -> State {
        let mut start = State {
            faults: self.faults,
            ..State::default()
        };
        if self.warm {
            start.l2 = Record::value(0, 1);
            start.replica = start.l2;
        }
        for (process, (gets, refreshes)) in start
            .processes
            .iter_mut()
            .zip(self.gets.into_iter().zip(self.refreshes))
        {
            process.gets = gets;
            process.refreshes = refreshes;
            process.lease_until = self.lease;
        }
        for process in start.processes.iter_mut().skip(self.processes) {
            process.subscription = Subscription::Down;
        }
        for write in start.writes.iter_mut().skip(self.writes.len()) {
            write.progress = Progress::All;
            write.dropped = true;
        }
        start
    }
}
