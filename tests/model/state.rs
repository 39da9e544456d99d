//! What the model is in: one key, its source of truth, L2, the processes, and what is under way.

/// The most that a configuration may ask for.
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
    /// A value past its TTL, kept for what it is worth.
    pub(crate) stale: bool,
    /// A lease that somebody waits for.
    pub(crate) waited_for: bool,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub(crate) enum Kind {
    #[default]
    Absent,
    Lease,
    Value,
    /// The mark of a failed load.
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

/// One message of the bus, as one process will hear it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub(crate) enum Message {
    #[default]
    None,
    /// The key was invalidated, inserted or expired. The version is for the oracle: it is not sent.
    Changed(u8),
    /// A lease that somebody waits for is gone.
    Wake,
    /// The process to itself, with the time at which it was sent.
    Beat(u8),
}

/// The subscription of a process.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub(crate) enum Link {
    #[default]
    Up,
    /// Dead, and the process has not noticed: it hears nothing.
    Cut,
    /// Dead, and the process knows.
    Down,
    /// The server has it again; the process has not yet forgotten what it read before.
    Subscribed,
    /// Forgotten, but not subscribed: the wrong order.
    Forgotten,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub(crate) struct Process {
    pub(crate) l1: Option<u8>,
    pub(crate) link: Link,
    /// L1 answers before this time.
    pub(crate) lease_until: u8,
    pub(crate) inbox: [Message; INBOX],
    /// Calls that have not begun.
    pub(crate) gets: u8,
    pub(crate) refreshes: u8,
    /// The newest version that L2 could not be told of: it is to be told before it is read again.
    pub(crate) repairs: u8,
    /// For the oracle: the newest version of which this process knows that it is there, because a
    /// change of its own returned or a message was processed.
    pub(crate) knows: u8,
}

impl Process {
    pub(crate) fn send(&mut self, message: Message) {
        let free = self.inbox.iter_mut().find(|slot| **slot == Message::None);
        *free.expect("a configuration sends no more messages than an inbox holds") = message;
    }

    pub(crate) fn hear(&mut self) {
        self.inbox.copy_within(1.., 0);
        self.inbox[INBOX - 1] = Message::None;
    }

    pub(crate) fn is_subscribed(&self) -> bool {
        matches!(self.link, Link::Up | Link::Subscribed)
    }
}

/// Where a flight is: what it does next.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub(crate) enum At {
    #[default]
    Free,
    ReadL2,
    /// L2 has answered with a value, and the reply is under way (only without R7).
    Reply,
    Acquire,
    Wait,
    Load,
    /// The load failed: the lease is to be replaced by a mark.
    Mark,
    Fill,
    Land,
    /// Checked that it may store into L1, not yet stored (only without R8).
    Store,
    LandFailed,
}

/// What a load runs under, and its fill is compared with.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub(crate) enum Under {
    #[default]
    Nothing,
    Lease,
    /// The value that it refreshes.
    Value,
    /// No fill.
    Alone,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub(crate) struct Flight {
    pub(crate) at: At,
    pub(crate) process: u8,
    pub(crate) under: Under,
    /// Of the lease or the value that it runs under, or of the stale value that it will replace.
    pub(crate) token: u8,
    /// What it has read or loaded.
    pub(crate) version: u8,
    /// Loads although there is a value.
    pub(crate) refreshes: bool,
    /// In the table: later callers join it.
    pub(crate) joinable: bool,
    /// A change or a gap came since it registered: it stores nothing in L1.
    pub(crate) fenced: bool,
    pub(crate) registered: bool,
    /// Its answer may enter L1.
    pub(crate) keeps: bool,
    /// It has loaded before it acquired (only without R2).
    pub(crate) loaded: bool,
    /// When it began; counted only where there is a channel lease.
    pub(crate) begun: u8,
    /// For the oracle: the newest version that one of its callers must see.
    pub(crate) needs: u8,
    /// For the oracle: its lease expired, or the key was changed under it.
    pub(crate) lost: bool,
}

impl Flight {
    pub(crate) fn flies(&self) -> bool {
        self.at != At::Free
    }

    /// From the grant to the fill: wider than the load itself.
    pub(crate) fn holds(&self) -> bool {
        self.under == Under::Lease && matches!(self.at, At::Load | At::Fill | At::Mark)
    }

    pub(crate) fn loads(&self) -> bool {
        matches!(self.at, At::Load | At::Fill | At::Mark)
    }
}

/// Where a write is: what it has done.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub(crate) enum Done {
    #[default]
    Nothing,
    Committed,
    /// Evicted here, L2 not yet told (only without R10).
    Evicted,
    /// Announced, L2 not yet changed (only without R6).
    Announced,
    /// L2 has carried it out, the reply is under way.
    Executed,
    /// `invalidate_everywhere`: waits until nobody can have missed it.
    WaitsOut,
    /// L2 has answered, the source has not committed (only without R14).
    Premature,
    All,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub(crate) struct Write {
    pub(crate) done: Done,
    pub(crate) version: u8,
    /// The repair that was pending when L2 was told.
    pub(crate) settles: u8,
    /// An insert whose key was changed while it was under way.
    pub(crate) disturbed: bool,
    /// When it returned; counted only where there is a channel lease.
    pub(crate) returned: u8,
    /// Its process crashed or its caller went away: nothing was promised.
    pub(crate) dropped: bool,
}

/// What may still go wrong.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub(crate) struct Faults {
    /// Leases that expire under a living holder.
    pub(crate) expiries: u8,
    /// Values of L2 that pass their TTL.
    pub(crate) agings: u8,
    /// Entries that L1 or L2 drops: expired or evicted.
    pub(crate) evictions: u8,
    pub(crate) crashes: u8,
    pub(crate) cuts: u8,
    pub(crate) duplicates: u8,
    /// Flights that L2 does not answer, or that wait for longer than `lease_wait`.
    pub(crate) alone: u8,
    /// Invalidations that L2 does not answer and does not carry out.
    pub(crate) untold: u8,
    pub(crate) failures: u8,
    /// Fills of which nobody knows what became.
    pub(crate) unknown_fills: u8,
    pub(crate) fail_overs: u8,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub(crate) struct State {
    /// The newest committed version.
    pub(crate) source: u8,
    pub(crate) l2: Record,
    /// L2's replica, where somebody could read it.
    pub(crate) replica: Record,
    pub(crate) now: u8,
    pub(crate) processes: [Process; PROCESSES],
    pub(crate) flights: [Flight; FLIGHTS],
    pub(crate) writes: [Write; WRITES],
    pub(crate) faults: Faults,
    /// For the oracle: the newest version that L2 was told of by invalidations and inserts; by
    /// expiries too; and by `invalidate_everywhere` that has returned.
    pub(crate) invalidated: u8,
    pub(crate) changed: u8,
    pub(crate) everywhere: u8,
    /// For the oracle: a caller was just answered with less than it must see.
    pub(crate) old_answer: bool,
}

/// What a write does after its commit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum How {
    Invalidate,
    InvalidateEverywhere,
    Insert,
    Expire,
}

/// Bounds of one exploration.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Config {
    pub(crate) name: &'static str,
    /// Whether L2 holds version 0 at first.
    pub(crate) warm: bool,
    /// Gets per process; a process takes part if it is within `processes`.
    pub(crate) processes: usize,
    pub(crate) gets: [u8; PROCESSES],
    pub(crate) refreshes: [u8; PROCESSES],
    /// Process and kind.
    pub(crate) writes: &'static [(u8, How)],
    pub(crate) faults: Faults,
    /// The channel lease H in ticks, and how far time goes. No channel lease where it is zero.
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
        for (process, how) in self.writes {
            bounds += &format!(", P{process} {how:?}");
        }
        let faults = &self.faults;
        for (name, faults) in [
            ("lease expiries", faults.expiries),
            ("values past their TTL", faults.agings),
            ("evictions", faults.evictions),
            ("crashes", faults.crashes),
            ("cuts", faults.cuts),
            ("duplicates", faults.duplicates),
            ("flights alone", faults.alone),
            ("failed invalidations", faults.untold),
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
            process.link = Link::Down;
        }
        for write in start.writes.iter_mut().skip(self.writes.len()) {
            write.done = Done::All;
            write.dropped = true;
        }
        start
    }
}
