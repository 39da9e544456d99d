//! The kinds of steps, and a counterexample in words, one line per step.

use std::fmt::Write;

use crate::explore::Counterexample;
use crate::rules::{Model, Rule};
use crate::state::{FillAgainst, Flight, Kind, Message, Record, Stage, State, WriteKind};

/// A step of a process, of a flight, of a write or of the environment.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Step {
    Lead,
    Join,
    Read,
    ReceiveReply,
    Acquire,
    TimerEnds,
    LoadWithoutLease,
    Load,
    LoadOld,
    LoadFails,
    MarkFailure,
    Fill,
    FillRefused,
    FillUnknown,
    FillLost,
    Complete,
    CompleteUnstored,
    Store,
    Commit,
    Announce,
    EvictEarly,
    Execute,
    Return,
    CallerLeaves,
    WaitedForLease,
    ChangeFails,
    Repair,
    Receive,
    ReceiveTwice,
    Heartbeat,
    Cut,
    NoticeCut,
    Subscribe,
    ClearLocal,
    Up,
    Crash,
    L1Evicts,
    ValueAges,
    ValueExpires,
    FailureExpires,
    LeaseExpires,
    DeadLeaseExpires,
    Replicate,
    FailOver,
    Tick,
}

impl Step {
    /// All steps but those that only a switched-off rule allows.
    pub(crate) const OF_THE_PROTOCOL: [Self; 36] = [
        Self::Lead,
        Self::Join,
        Self::Read,
        Self::Acquire,
        Self::TimerEnds,
        Self::LoadWithoutLease,
        Self::Load,
        Self::LoadFails,
        Self::MarkFailure,
        Self::Fill,
        Self::FillRefused,
        Self::FillUnknown,
        Self::FillLost,
        Self::Complete,
        Self::CompleteUnstored,
        Self::Commit,
        Self::Execute,
        Self::Return,
        Self::WaitedForLease,
        Self::ChangeFails,
        Self::Repair,
        Self::Receive,
        Self::ReceiveTwice,
        Self::Heartbeat,
        Self::Cut,
        Self::NoticeCut,
        Self::Subscribe,
        Self::Up,
        Self::Crash,
        Self::L1Evicts,
        Self::ValueAges,
        Self::ValueExpires,
        Self::FailureExpires,
        Self::LeaseExpires,
        Self::DeadLeaseExpires,
        Self::Tick,
    ];

    /// Whether the step happens by itself sooner or later. The other steps are faults, the passing
    /// of time and the calls of users.
    pub(crate) fn is_due(self) -> bool {
        !matches!(
            self,
            Self::LoadWithoutLease
                | Self::LoadFails
                | Self::FillUnknown
                | Self::FillLost
                | Self::CallerLeaves
                | Self::ChangeFails
                | Self::ReceiveTwice
                | Self::Cut
                | Self::Crash
                | Self::L1Evicts
                | Self::ValueAges
                | Self::ValueExpires
                | Self::LeaseExpires
                | Self::FailOver
                | Self::Tick
        )
    }
}

/// A step, and the number of the process, flight or write that takes it.
pub(crate) type StepTaken = (Step, u8);

/// The counterexample, one line per step, and the violation at its end.
pub(crate) fn describe(model: &Model<'_>, counterexample: &Counterexample) -> String {
    let mut story = String::new();
    let mut before = counterexample.first;
    for (number, (step, after)) in counterexample.steps.iter().enumerate() {
        let line = line(model, &before, *step, after);
        writeln!(story, "  {:>2}. {line}", number + 1).expect("a string takes everything");
        before = *after;
    }
    writeln!(story, "   => {}", counterexample.violation).expect("a string takes everything");
    story
}

fn record(record: &Record) -> String {
    let version = record.version;
    match record.kind {
        Kind::Absent => "nothing".into(),
        Kind::Failed => "a failure mark".into(),
        Kind::Lease => "a lease".into(),
        Kind::Value if record.stale => format!("v{version}, stale"),
        Kind::Value => format!("v{version}"),
    }
}

fn line(model: &Model<'_>, before: &State, (step, who): StepTaken, after: &State) -> String {
    let index = usize::from(who);
    match step {
        Step::Lead
        | Step::Join
        | Step::Read
        | Step::ReceiveReply
        | Step::Acquire
        | Step::TimerEnds
        | Step::LoadWithoutLease
        | Step::Load
        | Step::LoadOld
        | Step::LoadFails
        | Step::MarkFailure
        | Step::Fill
        | Step::FillRefused
        | Step::FillUnknown
        | Step::FillLost
        | Step::Complete
        | Step::CompleteUnstored
        | Step::Store => flight_line(model, before, (step, who), after),
        Step::Commit
        | Step::Announce
        | Step::EvictEarly
        | Step::Execute
        | Step::Return
        | Step::CallerLeaves
        | Step::WaitedForLease
        | Step::ChangeFails => write_line(model, step, index, after),
        Step::Receive | Step::ReceiveTwice => message_line(before, step, index, after),
        Step::Heartbeat => format!("P{index} sends a heartbeat at {}", before.now),
        Step::Cut => format!("P{index}'s connection to the bus dies"),
        Step::Repair => format!(
            "P{index} repairs at L2 (v{})",
            before.processes[index].repairs
        ),
        Step::NoticeCut => format!("P{index} notices that it is not connected"),
        Step::Subscribe => format!("P{index} is subscribed again"),
        Step::ClearLocal => format!("P{index} clears what it read"),
        Step::Up => format!("P{index} clears what it read, and uses L1"),
        Step::Crash => format!("P{index} crashes, another takes its place"),
        Step::L1Evicts => format!("P{index}'s L1 drops the entry"),
        Step::ValueAges => "the value in L2 passes its TTL".into(),
        Step::ValueExpires => "the value in L2 is dropped".into(),
        Step::FailureExpires => "the failure mark expires".into(),
        Step::LeaseExpires => format!("{} expires, its holder lives", record(&before.l2)),
        Step::DeadLeaseExpires => format!("{} expires, its holder is gone", record(&before.l2)),
        Step::Replicate => format!("L2's replica catches up: {}", record(&after.replica)),
        Step::FailOver => format!("L2 fails over to its replica: {}", record(&after.l2)),
        Step::Tick => format!("it is {}", after.now),
    }
}

fn flight_line(model: &Model<'_>, before: &State, (step, who): StepTaken, after: &State) -> String {
    let index = usize::from(who);
    let name = char::from(b'a' + who);
    let (was, is) = (&before.flights[index], &after.flights[index]);
    let process = if was.in_use() { was } else { is }.process;
    let read = match model.has(Rule::ReadPrimary) {
        true => &before.l2,
        false => &before.replica,
    };
    let what = match step {
        Step::Read => format!("reads L2: {}; {}", record(read), goes_on(is)),
        _ => flight(before, step, was, is, after),
    };
    format!("P{process} flight {name}: {what}")
}

fn write_line(model: &Model<'_>, step: Step, index: usize, after: &State) -> String {
    let (process, write_kind) = model.config.writes[index];
    let write_kind = match write_kind {
        WriteKind::Invalidate => "invalidate",
        WriteKind::InvalidateEverywhere => "invalidate_everywhere",
        WriteKind::Insert => "insert",
        WriteKind::Expire => "expire",
    };
    let version = after.writes[index].version;
    let what = match step {
        Step::Commit => format!("v{version} is committed"),
        Step::Announce => "is announced, L2 is not yet changed".into(),
        Step::EvictEarly => "evicts L1, L2 is not yet changed".into(),
        Step::Execute => format!("is carried out, L2 holds {}", record(&after.l2)),
        Step::CallerLeaves => "the caller goes away before the reply".into(),
        Step::ChangeFails => "L2 does not carry it out, returns an error".into(),
        Step::WaitedForLease => "has waited out the channel lease, returns".into(),
        _ => format!(
            "receives the reply, {}, returns",
            l1(after, usize::from(process))
        ),
    };
    match version {
        0 => format!("P{process} {write_kind}: {what}"),
        _ => format!("P{process} {write_kind} (v{version}): {what}"),
    }
}

fn message_line(before: &State, step: Step, index: usize, after: &State) -> String {
    let here = &before.processes[index];
    let again = if step == Step::ReceiveTwice {
        ", and will again"
    } else {
        ""
    };
    let what = match here.inbox[0] {
        Message::Changed(version) => {
            format!(
                "learns that the key changed (v{version}); {}",
                l1(after, index)
            )
        }
        Message::Wake => "learns that the lease is gone".into(),
        Message::Heartbeat(sent) => format!(
            "its heartbeat of {sent} comes back: L1 may answer before {}",
            after.processes[index].lease_until
        ),
        Message::None => unreachable!("a message is received"),
    };
    format!("P{index} {what}{again}")
}

fn l1(state: &State, process: usize) -> String {
    match state.processes[process].l1 {
        Some(version) => format!("L1 holds v{version}"),
        None => "L1 is empty".into(),
    }
}

fn goes_on(flight: &Flight) -> &'static str {
    match flight.stage {
        Stage::Acquire => "asks for the lease next",
        Stage::Load => "loads next",
        Stage::Wait => "waits",
        Stage::Complete | Stage::Reply => "that is its answer",
        Stage::CompleteWithError => "an error is its answer",
        _ => "goes on",
    }
}

fn flight(before: &State, step: Step, was: &Flight, is: &Flight, after: &State) -> String {
    match step {
        Step::Lead if is.refreshes => "a refresh begins it".into(),
        Step::Lead => format!("a get that must see v{} begins it", is.needs),
        Step::Join => format!("a get joins it; it must now see v{}", is.needs),
        Step::ReceiveReply => "receives the reply and registers".into(),
        Step::Acquire if is.stage == Stage::Load || is.stage == Stage::Fill => {
            format!("acquires {}", record(&after.l2))
        }
        Step::Acquire => {
            format!(
                "asks for the lease: {}; {}",
                record(&before.l2),
                goes_on(is)
            )
        }
        Step::TimerEnds => "its timer ends, it asks for the lease again".into(),
        Step::LoadWithoutLease => "gives L2 up, loads without a lease next".into(),
        Step::Load | Step::LoadOld => format!("loads v{}", is.version),
        Step::LoadFails => "its load fails".into(),
        Step::MarkFailure => format!("gives up; L2 holds {}", record(&after.l2)),
        Step::Fill | Step::FillRefused | Step::FillUnknown | Step::FillLost => {
            let there = was.token == before.l2.token;
            let compared = match was.fill_against {
                FillAgainst::Lease if there => "its lease",
                FillAgainst::Lease => "its lease, which is gone",
                FillAgainst::Value if there => "the value that it read",
                FillAgainst::Value => "the value that it read, which is gone",
                FillAgainst::Nothing | FillAgainst::NoFill => "nothing",
            };
            let progress = match step {
                Step::FillLost => "its fill gets lost",
                Step::FillRefused => "its fill is refused",
                Step::FillUnknown => "fills, and does not learn the outcome",
                _ => "fills",
            };
            let v = was.version;
            format!(
                "{progress} (v{v}, for {compared}); L2 holds {}",
                record(&after.l2)
            )
        }
        Step::Complete if is.stage == Stage::Store => "may store into L1".into(),
        Step::CompleteUnstored if was.stage == Stage::CompleteWithError => {
            "answers an error".into()
        }
        Step::CompleteUnstored => format!("answers v{}, stores nothing", was.version),
        Step::Complete | Step::Store => {
            let here = l1(after, usize::from(was.process));
            format!("answers v{}; {here}", was.version)
        }
        _ => unreachable!("not a step of a flight"),
    }
}
