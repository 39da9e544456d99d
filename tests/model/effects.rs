//! What a step does to the state: the scripts at L2, and what a process does under one lock.

use crate::rules::{Model, Rule};
use crate::state::{
    At, Done, Flight, How, Kind, Link, Message, Process, Record, State, Under, Write,
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
    (flight.at, flight.token) = match record.kind {
        Kind::Value if flight.refreshes => {
            flight.under = Under::Value;
            (At::Load, record.token)
        }
        Kind::Value if record.stale => (At::Acquire, record.token),
        Kind::Value => {
            (flight.version, flight.keeps) = (record.version, true);
            (At::Land, 0)
        }
        Kind::Absent | Kind::Lease => (At::Acquire, 0),
        Kind::Failed => (At::LandFailed, 0),
    };
    if !flight.registered {
        if is_value && flight.at == At::Land {
            flight.at = At::Reply;
        } else {
            flight.registered = true;
        }
    }
    if flight.at == At::Acquire && !model.has(Rule::AcquireThenLoad) {
        (flight.at, flight.token) = (At::Load, 0);
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
        flight.at = if flight.loaded { At::Fill } else { At::Load };
        (flight.under, flight.token, flight.loaded) = (Under::Lease, token, false);
        return;
    }
    let flight = &mut to.flights[index];
    (flight.loaded, flight.token) = (false, 0);
    match to.l2.kind {
        Kind::Value if to.l2.stale => flight.token = to.l2.token,
        Kind::Value => {
            (flight.at, flight.version, flight.keeps) = (At::Land, to.l2.version, true);
        }
        Kind::Failed => flight.at = At::LandFailed,
        Kind::Lease | Kind::Absent => {
            to.l2.waited_for = true;
            flight.at = At::Wait;
        }
    }
}

pub(crate) fn loaded(model: &Model<'_>, flight: &mut Flight, version: u8) {
    flight.version = version;
    match flight.under {
        Under::Lease | Under::Value => flight.at = At::Fill,
        Under::Alone => ends(flight, true),
        Under::Nothing => {
            assert!(
                !model.has(Rule::AcquireThenLoad),
                "a load runs under something"
            );
            (flight.at, flight.loaded) = (At::Acquire, true);
        }
    }
}

/// The flight has its answer.
pub(crate) fn ends(flight: &mut Flight, keeps: bool) {
    (flight.at, flight.keeps) = (At::Land, keeps);
    (flight.under, flight.token, flight.lost) = (Under::Nothing, 0, false);
}

/// The flight has an error instead.
pub(crate) fn fails(flight: &mut Flight) {
    ends(flight, false);
    flight.at = At::LandFailed;
}

/// The flight loads without a lease.
pub(crate) fn alone(flight: &mut Flight) {
    (flight.at, flight.under, flight.token) = (At::Load, Under::Alone, 0);
    flight.registered = true;
}

/// Whether the record that the load began under is still there.
pub(crate) fn holds_still(state: &State, index: usize) -> bool {
    let flight = &state.flights[index];
    let kind = if flight.under == Under::Lease {
        Kind::Lease
    } else {
        Kind::Value
    };
    state.l2.kind == kind && state.l2.token == flight.token
}

/// What the script of the fill compares.
pub(crate) fn may_fill(model: &Model<'_>, state: &State, index: usize) -> bool {
    holds_still(state, index)
        || !model.has(Rule::CompareAtFill)
        || (!model.has(Rule::AbsentIsRefused) && state.l2.kind == Kind::Absent)
}

pub(crate) fn fill(model: &Model<'_>, to: &mut State, index: usize) {
    let stores = may_fill(model, to, index);
    if stores {
        wake_waiters(to);
        let flight = to.flights[index];
        let token = if flight.under == Under::Lease {
            flight.token
        } else {
            new_token(model, to, flight.process)
        };
        to.l2 = Record::value(flight.version, token);
    }
    ends(&mut to.flights[index], stores);
}

/// A token that is no longer in L2.
const GONE: u8 = u8::MAX;

/// A token that nobody has. One that nobody has any more is as good as new.
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

/// What a token is makes no difference, only whether it is the one in L2: a token that L2 has lost
/// never comes back.
pub(crate) fn rename_tokens(to: &mut State) {
    let there = to.l2.token;
    let mut flights = to.flights.iter_mut();
    while let Some(flight) = flights.find(|flight| flight.token != 0) {
        flight.token = if flight.token == there { 1 } else { GONE };
    }
    to.l2.token = to.l2.token.min(1);
}

/// Removes whatever L2 holds. Whoever held a lease has lost it, through no fault of the others.
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

/// For the oracle: from now on L2 must not hold anything older.
pub(crate) fn told(to: &mut State, index: usize, how: How) {
    let version = to.writes[index].version;
    to.changed = to.changed.max(version);
    if how != How::Expire {
        to.invalidated = to.invalidated.max(version);
    }
}

pub(crate) fn execute(model: &Model<'_>, to: &mut State, index: usize, how: How) {
    let by = model.config.writes[index].0;
    let write = to.writes[index];
    let was_there = to.l2.kind != Kind::Absent;
    match how {
        How::Expire if to.l2.kind == Kind::Value => {
            to.l2.stale = true;
            if model.has(Rule::ExpireNewToken) {
                to.l2.token = new_token(model, to, by);
            }
        }
        _ if to.l2.kind == Kind::Lease && !model.has(Rule::InvalidateLease) => {}
        _ => remove(to),
    }
    if how == How::Insert {
        to.l2 = Record::value(write.version, new_token(model, to, by));
    }
    // A process ignores its own messages, so it is not sent them here.
    let published = write.done == Done::Announced;
    if !published && (was_there || model.has(Rule::AlwaysPublish)) {
        publish(to, Some(usize::from(by)), Message::Changed(write.version));
    }
    to.writes[index].done = Done::Executed;
    to.writes[index].settles = to.processes[usize::from(by)].repairs;
    if model.has(Rule::CommitThenInvalidate) {
        told(to, index, how);
    }
}

pub(crate) fn returns(model: &Model<'_>, to: &mut State, index: usize, process: usize, how: How) {
    // Its own eviction does not disturb an insert.
    let undisturbed = !to.writes[index].disturbed || !model.has(Rule::InsertUndisturbed);
    if model.has(Rule::L2ThenEvict) {
        forget(model, to, process);
    }
    let version = to.writes[index].version;
    let now = to.now;
    let here: &mut Process = &mut to.processes[process];
    if how == How::Insert && undisturbed {
        here.l1 = Some(version);
    }
    here.knows = here.knows.max(version);
    let settles = std::mem::take(&mut to.writes[index].settles);
    if how != How::Expire && (here.repairs == settles || !model.has(Rule::SettleEarlier)) {
        here.repairs = 0;
    }
    let write: &mut Write = &mut to.writes[index];
    write.disturbed = false;
    write.returned = if model.config.lease > 0 { now } else { 0 };
    write.done = if !model.has(Rule::CommitThenInvalidate) {
        Done::Premature
    } else if how == How::InvalidateEverywhere {
        Done::WaitsOut
    } else {
        Done::All
    };
}

/// L2 was not told. The caller hears an error, and still nothing older is answered here.
pub(crate) fn untold(model: &Model<'_>, to: &mut State, index: usize, process: usize) {
    forget(model, to, process);
    let write = &mut to.writes[index];
    (write.done, write.dropped) = (Done::All, true);
    let version = write.version;
    let here = &mut to.processes[process];
    here.knows = here.knows.max(version);
    if model.has(Rule::RepairThenRead) {
        here.repairs = here.repairs.max(version);
    }
}

/// L2 is told after all; what the process has from the source itself since then is good.
pub(crate) fn repair(to: &mut State, process: usize) {
    let version = std::mem::take(&mut to.processes[process].repairs);
    remove(to);
    publish(to, Some(process), Message::Changed(version));
    to.changed = to.changed.max(version);
    to.invalidated = to.invalidated.max(version);
}

// ---- a process ---------------------------------------------------------------------------------

/// Messages are published by the script that changes L2, to whoever is subscribed then.
pub(crate) fn publish(to: &mut State, except: Option<usize>, message: Message) {
    for (index, process) in to.processes.iter_mut().enumerate() {
        if process.is_subscribed() && except != Some(index) {
            process.send(message);
        }
    }
}

/// The lease that is about to go: who waits for it is told. (Only who waits: to others a wake-up
/// means nothing.)
pub(crate) fn wake_waiters(to: &mut State) {
    if to.l2.kind != Kind::Lease || !to.l2.waited_for {
        return;
    }
    for index in 0..to.processes.len() {
        let mut flights = to.flights.iter();
        let waits =
            flights.any(|flight| usize::from(flight.process) == index && flight.at == At::Wait);
        if waits && to.processes[index].is_subscribed() {
            to.processes[index].send(Message::Wake);
        }
    }
}

pub(crate) fn hear(model: &Model<'_>, to: &mut State, process: usize) {
    match to.processes[process].inbox[0] {
        Message::None => {}
        Message::Changed(version) => {
            forget(model, to, process);
            let here = &mut to.processes[process];
            here.knows = here.knows.max(version);
        }
        Message::Wake => {
            for flight in &mut to.flights {
                if usize::from(flight.process) == process && flight.at == At::Wait {
                    flight.at = At::ReadL2;
                }
            }
        }
        Message::Beat(sent) => {
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

/// What a change or a gap does here: L1 is emptied, flights are detached, inserts are disturbed.
pub(crate) fn forget(model: &Model<'_>, to: &mut State, process: usize) {
    to.processes[process].l1 = None;
    for flight in &mut to.flights {
        if flight.flies() && usize::from(flight.process) == process {
            detach(model, flight);
        }
    }
    for (write, (by, how)) in to.writes.iter_mut().zip(model.config.writes) {
        let under_way = !matches!(write.done, Done::Nothing | Done::All);
        write.disturbed |= under_way && *how == How::Insert && usize::from(*by) == process;
    }
}

pub(crate) fn detach(model: &Model<'_>, flight: &mut Flight) {
    flight.joinable &= !model.has(Rule::JoinCurrent);
    flight.fenced |= flight.registered;
    if flight.at == At::Wait {
        flight.at = At::ReadL2;
    }
}

/// The process is gone, and another takes its place. What it had in L2 stays.
pub(crate) fn crash(model: &Model<'_>, to: &mut State, process: usize) {
    let here = to.processes[process];
    to.processes[process] = Process {
        link: Link::Down,
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
        if usize::from(*by) == process && !matches!(write.done, Done::Nothing | Done::All) {
            (write.done, write.dropped) = (Done::All, true);
            (write.disturbed, write.settles) = (false, 0);
        }
    }
}
