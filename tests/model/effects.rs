//! The effects of steps: the scripts that L2 carries out, and what a process does under one lock.

use crate::rules::{Model, Rule};
use crate::state::{
    FillAgainst, Flight, Kind, Message, Process, Progress, Record, Stage, State, Subscription,
    Write, WriteKind,
};

// ---- a flight at L2 ----------------------------------------------------------------------------

pub(crate) fn read(model: &Model<'_>, to: &mut State, index: usize) {
    let record = if model.has(Rule::ReadPrimary) {
        to.l2
    } else {
        to.replica
    };
    let flight = &mut to.flights[index];
    let is_value = record.kind == Kind::Value;
    (flight.stage, flight.token) = match record.kind {
        Kind::Value if flight.refreshes => {
            flight.fill_against = FillAgainst::Value;
            (Stage::Load, record.token)
        }
        Kind::Value if record.stale => (Stage::Acquire, record.token),
        Kind::Value => {
            (flight.version, flight.enters_l1) = (record.version, true);
            (Stage::Complete, 0)
        }
        Kind::Absent | Kind::Lease => (Stage::Acquire, 0),
        Kind::Failed => (Stage::CompleteWithError, 0),
    };
    if !flight.registered {
        if is_value && flight.stage == Stage::Complete {
            flight.stage = Stage::Reply;
        } else {
            flight.registered = true;
        }
    }
    if flight.stage == Stage::Acquire && !model.has(Rule::AcquireThenLoad) {
        (flight.stage, flight.token) = (Stage::Load, 0);
    }
}

pub(crate) fn acquire(model: &Model<'_>, to: &mut State, index: usize) {
    let replaces = to.flights[index].token;
    let grants = match to.l2.kind {
        Kind::Absent => true,
        Kind::Value => to.l2.stale && to.l2.token == replaces,
        Kind::Lease => !model.has(Rule::RespectLease),
        Kind::Failed => false,
    };
    if grants {
        let token = new_token(model, to, to.flights[index].process);
        to.l2 = Record::of(Kind::Lease, token);
        let flight = &mut to.flights[index];
        flight.stage = if flight.loaded {
            Stage::Fill
        } else {
            Stage::Load
        };
        (flight.fill_against, flight.token, flight.loaded) = (FillAgainst::Lease, token, false);
        return;
    }
    let flight = &mut to.flights[index];
    (flight.loaded, flight.token) = (false, 0);
    match to.l2.kind {
        Kind::Value if to.l2.stale => flight.token = to.l2.token,
        Kind::Value => {
            (flight.stage, flight.version, flight.enters_l1) =
                (Stage::Complete, to.l2.version, true);
        }
        Kind::Failed => flight.stage = Stage::CompleteWithError,
        Kind::Lease | Kind::Absent => {
            to.l2.waited_for = true;
            flight.stage = Stage::Wait;
        }
    }
}

pub(crate) fn loaded(model: &Model<'_>, flight: &mut Flight, version: u8) {
    flight.version = version;
    match flight.fill_against {
        FillAgainst::Lease | FillAgainst::Value => flight.stage = Stage::Fill,
        FillAgainst::NoFill => finish(flight, true),
        FillAgainst::Nothing => {
            assert!(
                !model.has(Rule::AcquireThenLoad),
                "a load runs under something"
            );
            (flight.stage, flight.loaded) = (Stage::Acquire, true);
        }
    }
}

/// The flight has its answer.
pub(crate) fn finish(flight: &mut Flight, enters_l1: bool) {
    (flight.stage, flight.enters_l1) = (Stage::Complete, enters_l1);
    (flight.fill_against, flight.token, flight.lost) = (FillAgainst::Nothing, 0, false);
}

/// The flight has an error as its answer.
pub(crate) fn finish_with_error(flight: &mut Flight) {
    finish(flight, false);
    flight.stage = Stage::CompleteWithError;
}

/// The flight loads without a lease.
pub(crate) fn without_lease(flight: &mut Flight) {
    (flight.stage, flight.fill_against, flight.token) = (Stage::Load, FillAgainst::NoFill, 0);
    flight.registered = true;
}

/// Whether the record against which the fill is compared is still in L2.
pub(crate) fn still_holds(state: &State, index: usize) -> bool {
    let flight = &state.flights[index];
    let kind = if flight.fill_against == FillAgainst::Lease {
        Kind::Lease
    } else {
        Kind::Value
    };
    state.l2.kind == kind && state.l2.token == flight.token
}

/// Whether the script of the fill stores its value.
pub(crate) fn may_fill(model: &Model<'_>, state: &State, index: usize) -> bool {
    still_holds(state, index)
        || !model.has(Rule::CompareAtFill)
        || (!model.has(Rule::AbsentIsRefused) && state.l2.kind == Kind::Absent)
}

pub(crate) fn fill(model: &Model<'_>, to: &mut State, index: usize) {
    let stores = may_fill(model, to, index);
    if stores {
        wake_waiters(to);
        let flight = to.flights[index];
        let token = if flight.fill_against == FillAgainst::Lease {
            flight.token
        } else {
            new_token(model, to, flight.process)
        };
        to.l2 = Record::value(flight.version, token);
    }
    finish(&mut to.flights[index], stores);
}

/// A token that is no longer in L2.
const GONE: u8 = u8::MAX;

/// A token that is in no record and in no flight. A token that was used before and is gone counts
/// as new.
fn new_token(model: &Model<'_>, state: &State, process: u8) -> u8 {
    if !model.has(Rule::UniqueToken) {
        return process + 1;
    }
    let taken = |token: u8| {
        state.l2.token == token
            || state.replica.token == token
            || state.flights.iter().any(|flight| flight.token == token)
    };
    (1..GONE)
        .find(|token| !taken(*token))
        .expect("few tokens are taken")
}

/// Only one property of a token matters, whether it is the one in L2, because a token that L2 has
/// lost never comes back. So all other tokens get the same number.
pub(crate) fn rename_tokens(to: &mut State) {
    let there = to.l2.token;
    let mut flights = to.flights.iter_mut();
    while let Some(flight) = flights.find(|flight| flight.token != 0) {
        flight.token = if flight.token == there { 1 } else { GONE };
    }
    to.l2.token = to.l2.token.min(1);
}

/// Removes the record of L2. Its holder has lost the lease, which is no violation of the other
/// processes.
pub(crate) fn remove(to: &mut State) {
    if to.l2.kind == Kind::Lease {
        for flight in &mut to.flights {
            flight.lost |= flight.holds() && flight.token == to.l2.token;
        }
    }
    to.l2 = Record::ABSENT;
}

// ---- a write -----------------------------------------------------------------------------------

pub(crate) fn commit(to: &mut State, index: usize) {
    to.source += 1;
    to.writes[index].version = to.source;
}

/// For the oracle: from now on L2 must hold nothing older.
pub(crate) fn change_executed(to: &mut State, index: usize, write_kind: WriteKind) {
    let version = to.writes[index].version;
    to.changed = to.changed.max(version);
    if write_kind != WriteKind::Expire {
        to.invalidated = to.invalidated.max(version);
    }
}

pub(crate) fn execute(model: &Model<'_>, to: &mut State, index: usize, write_kind: WriteKind) {
    let by = model.config.writes[index].0;
    let write = to.writes[index];
    let was_there = to.l2.kind != Kind::Absent;
    match write_kind {
        WriteKind::Expire if to.l2.kind == Kind::Value => {
            to.l2.stale = true;
            if model.has(Rule::ExpireNewToken) {
                to.l2.token = new_token(model, to, by);
            }
        }
        _ if to.l2.kind == Kind::Lease && !model.has(Rule::InvalidateLease) => {}
        _ => remove(to),
    }
    if write_kind == WriteKind::Insert {
        to.l2 = Record::value(write.version, new_token(model, to, by));
    }
    // A process ignores its own messages, so they are not sent to it here.
    let published = write.progress == Progress::Announced;
    if !published && (was_there || model.has(Rule::AlwaysPublish)) {
        publish(to, Some(usize::from(by)), Message::Changed(write.version));
    }
    to.writes[index].progress = Progress::Executed;
    to.writes[index].pending_repair = to.processes[usize::from(by)].repairs;
    if model.has(Rule::CommitThenInvalidate) {
        change_executed(to, index, write_kind);
    }
}

pub(crate) fn returns(
    model: &Model<'_>,
    to: &mut State,
    index: usize,
    process: usize,
    write_kind: WriteKind,
) {
    // The eviction by the insert itself does not count as a change meanwhile.
    let not_overtaken = !to.writes[index].overtaken || !model.has(Rule::InsertUnlessOvertaken);
    if model.has(Rule::L2ThenEvict) {
        clear_local(model, to, process);
    }
    let version = to.writes[index].version;
    let now = to.now;
    let here: &mut Process = &mut to.processes[process];
    if write_kind == WriteKind::Insert && not_overtaken {
        here.l1 = Some(version);
    }
    here.knows = here.knows.max(version);
    let pending_repair = std::mem::take(&mut to.writes[index].pending_repair);
    if write_kind != WriteKind::Expire
        && (here.repairs == pending_repair || !model.has(Rule::ClearEarlierRepairs))
    {
        here.repairs = 0;
    }
    let write: &mut Write = &mut to.writes[index];
    write.overtaken = false;
    write.returned = if model.config.lease > 0 { now } else { 0 };
    write.progress = if !model.has(Rule::CommitThenInvalidate) {
        Progress::Premature
    } else if write_kind == WriteKind::InvalidateEverywhere {
        Progress::WaitsForLease
    } else {
        Progress::All
    };
}

/// L2 has not carried the change out. The caller gets an error, and this process still answers
/// nothing older.
pub(crate) fn change_fails(model: &Model<'_>, to: &mut State, index: usize, process: usize) {
    clear_local(model, to, process);
    let write = &mut to.writes[index];
    (write.progress, write.dropped) = (Progress::All, true);
    let version = write.version;
    let here = &mut to.processes[process];
    here.knows = here.knows.max(version);
    if model.has(Rule::RepairThenRead) {
        here.repairs = here.repairs.max(version);
    }
}

/// The repair reaches L2. Values that the process has loaded from the source since the change are
/// current.
pub(crate) fn repair(to: &mut State, process: usize) {
    let version = std::mem::take(&mut to.processes[process].repairs);
    remove(to);
    publish(to, Some(process), Message::Changed(version));
    to.changed = to.changed.max(version);
    to.invalidated = to.invalidated.max(version);
}

// ---- a process ---------------------------------------------------------------------------------

/// The script that changes L2 publishes the message to all processes that are subscribed at that
/// moment.
pub(crate) fn publish(to: &mut State, except: Option<usize>, message: Message) {
    for (index, process) in to.processes.iter_mut().enumerate() {
        if process.is_subscribed() && except != Some(index) {
            process.send(message);
        }
    }
}

/// Wakes the processes that wait for a lease which is about to go. A wake-up changes nothing in
/// others.
pub(crate) fn wake_waiters(to: &mut State) {
    if to.l2.kind != Kind::Lease || !to.l2.waited_for {
        return;
    }
    for index in 0..to.processes.len() {
        let mut flights = to.flights.iter();
        let waits = flights
            .any(|flight| usize::from(flight.process) == index && flight.stage == Stage::Wait);
        if waits && to.processes[index].is_subscribed() {
            to.processes[index].send(Message::Wake);
        }
    }
}

pub(crate) fn process_message(model: &Model<'_>, to: &mut State, process: usize) {
    match to.processes[process].inbox[0] {
        Message::None => {}
        Message::Changed(version) => {
            clear_local(model, to, process);
            let here = &mut to.processes[process];
            here.knows = here.knows.max(version);
        }
        Message::Wake => {
            for flight in &mut to.flights {
                if usize::from(flight.process) == process && flight.stage == Stage::Wait {
                    flight.stage = Stage::ReadL2;
                }
            }
        }
        Message::Heartbeat(sent) => {
            let counts_from = if model.has(Rule::LeaseFromSending) {
                sent
            } else {
                to.now
            };
            let here = &mut to.processes[process];
            here.lease_until = here.lease_until.max(counts_from + model.config.lease);
        }
    }
}

/// The effect of a change or of a gap in a process: L1 is emptied, flights are detached, and
/// inserts that are under way are marked as overtaken.
pub(crate) fn clear_local(model: &Model<'_>, to: &mut State, process: usize) {
    to.processes[process].l1 = None;
    for flight in &mut to.flights {
        if flight.in_use() && usize::from(flight.process) == process {
            detach(model, flight);
        }
    }
    for (write, (by, write_kind)) in to.writes.iter_mut().zip(model.config.writes) {
        let under_way = !matches!(write.progress, Progress::Nothing | Progress::All);
        write.overtaken |=
            under_way && *write_kind == WriteKind::Insert && usize::from(*by) == process;
    }
}

pub(crate) fn detach(model: &Model<'_>, flight: &mut Flight) {
    flight.joinable &= !model.has(Rule::JoinCurrent);
    flight.fenced |= flight.registered;
    if flight.stage == Stage::Wait {
        flight.stage = Stage::ReadL2;
    }
}

/// The process dies and a new one takes its place. What it had in L2 stays there.
pub(crate) fn crash(model: &Model<'_>, to: &mut State, process: usize) {
    let here = to.processes[process];
    to.processes[process] = Process {
        subscription: Subscription::Down,
        gets: here.gets,
        refreshes: here.refreshes,
        ..Process::default()
    };
    for flight in &mut to.flights {
        if usize::from(flight.process) == process {
            *flight = Flight::default();
        }
    }
    for (write, (by, _)) in to.writes.iter_mut().zip(model.config.writes) {
        if usize::from(*by) == process
            && !matches!(write.progress, Progress::Nothing | Progress::All)
        {
            (write.progress, write.dropped) = (Progress::All, true);
            (write.overtaken, write.pending_repair) = (false, 0);
        }
    }
}
