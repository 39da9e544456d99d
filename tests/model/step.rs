//! The kinds of steps, and a counterexample in words: a line a step.

use std::fmt::Write;

use crate::explore::Counterexample;
use crate::rules::{Model, Rule};
use crate::state::{At, Flight, How, Kind, Message, Record, State, Under};

/// What a process, a flight, a write or the world does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Step {
    Lead,
    Join,
    Read,
    HearReply,
    Acquire,
    TimerEnds,
    GoAlone,
    Load,
    LoadOld,
    LoadFails,
    Mark,
    Fill,
    FillRefused,
    FillUnknown,
    FillLost,
    Land,
    LandUnstored,
    Store,
    Commit,
    Announce,
    EvictEarly,
    Execute,
    Return,
    CallerLeaves,
    WaitedOut,
    Untold,
    Repair,
    Hear,
    HearTwice,
    Beat,
    Cut,
    NoticeCut,
    Subscribe,
    Forget,
    Up,
    Crash,
    L1Drops,
    ValueAges,
    ValueExpires,
    MarkExpires,
    LeaseExpires,
    DeadLeaseExpires,
    Replicate,
    FailOver,
    Tick,
}

impl Step {
    /// All but those that only a switched-off rule brings.
    pub(crate) const OF_THE_PROTOCOL: [Self; 36] = [
        Self::Lead,
        Self::Join,
        Self::Read,
        Self::Acquire,
        Self::TimerEnds,
        Self::GoAlone,
        Self::Load,
        Self::LoadFails,
        Self::Mark,
        Self::Fill,
        Self::FillRefused,
        Self::FillUnknown,
        Self::FillLost,
        Self::Land,
        Self::LandUnstored,
        Self::Commit,
        Self::Execute,
        Self::Return,
        Self::WaitedOut,
        Self::Untold,
        Self::Repair,
        Self::Hear,
        Self::HearTwice,
        Self::Beat,
        Self::Cut,
        Self::NoticeCut,
        Self::Subscribe,
        Self::Up,
        Self::Crash,
        Self::L1Drops,
        Self::ValueAges,
        Self::ValueExpires,
        Self::MarkExpires,
        Self::LeaseExpires,
        Self::DeadLeaseExpires,
        Self::Tick,
    ];

    /// Whether it comes by itself, sooner or later. What is left are faults, the passing of time
    /// and the calls of users.
    pub(crate) fn is_due(self) -> bool {
        !matches!(
            self,
            Self::GoAlone
                | Self::LoadFails
                | Self::FillUnknown
                | Self::FillLost
                | Self::CallerLeaves
                | Self::Untold
                | Self::HearTwice
                | Self::Cut
                | Self::Crash
                | Self::L1Drops
                | Self::ValueAges
                | Self::ValueExpires
                | Self::LeaseExpires
                | Self::FailOver
                | Self::Tick
        )
    }
}

/// A step, and the number of who takes it.
pub(crate) type Taken = (Step, u8);

/// Who does what, and how it ends.
pub(crate) fn tell(model: &Model<'_>, counterexample: &Counterexample) -> String {
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
        Kind::Failed => "the mark of a failed load".into(),
        Kind::Lease => "a lease".into(),
        Kind::Value if record.stale => format!("v{version}, stale"),
        Kind::Value => format!("v{version}"),
    }
}

fn line(model: &Model<'_>, before: &State, (step, who): Taken, after: &State) -> String {
    let index = usize::from(who);
    match step {
        Step::Lead
        | Step::Join
        | Step::Read
        | Step::HearReply
        | Step::Acquire
        | Step::TimerEnds
        | Step::GoAlone
        | Step::Load
        | Step::LoadOld
        | Step::LoadFails
        | Step::Mark
        | Step::Fill
        | Step::FillRefused
        | Step::FillUnknown
        | Step::FillLost
        | Step::Land
        | Step::LandUnstored
        | Step::Store => {
            let name = char::from(b'a' + who);
            let (was, is) = (&before.flights[index], &after.flights[index]);
            let process = if was.flies() { was } else { is }.process;
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
        Step::Commit
        | Step::Announce
        | Step::EvictEarly
        | Step::Execute
        | Step::Return
        | Step::CallerLeaves
        | Step::WaitedOut
        | Step::Untold => {
            let (process, how) = model.config.writes[index];
            let how = match how {
                How::Invalidate => "invalidate",
                How::InvalidateEverywhere => "invalidate_everywhere",
                How::Insert => "insert",
                How::Expire => "expire",
            };
            let version = after.writes[index].version;
            let what = match step {
                Step::Commit => format!("v{version} is committed"),
                Step::Announce => "is announced, L2 is not yet changed".into(),
                Step::EvictEarly => "evicts L1, L2 is not yet changed".into(),
                Step::Execute => format!("at L2, which now holds {}", record(&after.l2)),
                Step::CallerLeaves => "the caller goes away, the reply is heard by nobody".into(),
                Step::Untold => "L2 cannot be told, returns an error".into(),
                Step::WaitedOut => "has waited out the channel lease, returns".into(),
                _ => format!(
                    "hears the reply, {}, returns",
                    l1(after, usize::from(process))
                ),
            };
            match version {
                0 => format!("P{process} {how}: {what}"),
                _ => format!("P{process} {how} (v{version}): {what}"),
            }
        }
        Step::Hear | Step::HearTwice => {
            let here = &before.processes[index];
            let again = if step == Step::HearTwice {
                ", and will again"
            } else {
                ""
            };
            let what = match here.inbox[0] {
                Message::Changed(version) => {
                    format!(
                        "hears that the key changed (v{version}); {}",
                        l1(after, index)
                    )
                }
                Message::Wake => "hears that the lease is gone".into(),
                Message::Beat(sent) => format!(
                    "its beat of {sent} comes back: L1 may answer before {}",
                    after.processes[index].lease_until
                ),
                Message::None => unreachable!("a message is heard"),
            };
            format!("P{index} {what}{again}")
        }
        Step::Beat => format!("P{index} sends a beat at {}", before.now),
        Step::Cut => format!("P{index}'s connection to the bus dies"),
        Step::Repair => format!(
            "P{index} tells L2 what it could not be told (v{})",
            before.processes[index].repairs
        ),
        Step::NoticeCut => format!("P{index} notices that it is not connected"),
        Step::Subscribe => format!("P{index} is subscribed again"),
        Step::Forget => format!("P{index} forgets what it read"),
        Step::Up => format!("P{index} forgets what it read, and uses L1"),
        Step::Crash => format!("P{index} crashes, another takes its place"),
        Step::L1Drops => format!("P{index}'s L1 drops the entry"),
        Step::ValueAges => "the value in L2 passes its TTL".into(),
        Step::ValueExpires => "the value in L2 is dropped".into(),
        Step::MarkExpires => "the mark expires".into(),
        Step::LeaseExpires => format!("{} expires, its holder lives", record(&before.l2)),
        Step::DeadLeaseExpires => format!("{} expires, its holder is gone", record(&before.l2)),
        Step::Replicate => format!("L2's replica catches up: {}", record(&after.replica)),
        Step::FailOver => format!("L2 fails over to its replica: {}", record(&after.l2)),
        Step::Tick => format!("it is {}", after.now),
    }
}

fn l1(state: &State, process: usize) -> String {
    match state.processes[process].l1 {
        Some(version) => format!("L1 holds v{version}"),
        None => "L1 is empty".into(),
    }
}

fn goes_on(flight: &Flight) -> &'static str {
    match flight.at {
        At::Acquire => "asks for the lease next",
        At::Load => "loads next",
        At::Wait => "waits",
        At::Land | At::Reply => "that is its answer",
        At::LandFailed => "an error is its answer",
        _ => "goes on",
    }
}

fn flight(before: &State, step: Step, was: &Flight, is: &Flight, after: &State) -> String {
    match step {
        Step::Lead if is.refreshes => "a refresh begins it".into(),
        Step::Lead => format!("a get that must see v{} begins it", is.needs),
        Step::Join => format!("a get joins it; it must now see v{}", is.needs),
        Step::HearReply => "hears the reply and registers".into(),
        Step::Acquire if is.at == At::Load || is.at == At::Fill => {
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
        Step::GoAlone => "gives L2 up, loads alone next".into(),
        Step::Load | Step::LoadOld => format!("loads v{}", is.version),
        Step::LoadFails => "its load fails".into(),
        Step::Mark => format!("gives up; L2 holds {}", record(&after.l2)),
        Step::Fill | Step::FillRefused | Step::FillUnknown | Step::FillLost => {
            let there = was.token == before.l2.token;
            let compared = match was.under {
                Under::Lease if there => "its lease",
                Under::Lease => "its lease, which is gone",
                Under::Value if there => "the value that it read",
                Under::Value => "the value that it read, which is gone",
                Under::Nothing | Under::Alone => "nothing",
            };
            let done = match step {
                Step::FillLost => "its fill gets lost",
                Step::FillRefused => "its fill is refused",
                Step::FillUnknown => "fills, and does not hear what became of it",
                _ => "fills",
            };
            let v = was.version;
            format!(
                "{done} (v{v}, for {compared}); L2 holds {}",
                record(&after.l2)
            )
        }
        Step::Land if is.at == At::Store => "may store into L1".into(),
        Step::LandUnstored if was.at == At::LandFailed => "answers an error".into(),
        Step::LandUnstored => format!("answers v{}, stores nothing", was.version),
        Step::Land | Step::Store => {
            let here = l1(after, usize::from(was.process));
            format!("answers v{}; {here}", was.version)
        }
        _ => unreachable!("not a step of a flight"),
    }
}
