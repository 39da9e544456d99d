//! What can happen next. One step is one thing that nothing can come between: a script that the
//! server carries out, or what a process does under one lock.

use crate::effects::{
    acquire, alone, commit, crash, detach, ends, execute, fails, fill, forget, hear, holds_still,
    loaded, may_fill, publish, read, remove, rename_tokens, repair, returns, told, untold,
    wake_waiters,
};
use crate::rules::{Model, Rule};
use crate::state::{At, Done, Flight, How, Kind, Link, Message, Record, State, Under};
use crate::step::{Step, Taken};

/// The steps that lead out of a state.
pub(crate) struct Next<'a> {
    model: &'a Model<'a>,
    from: &'a State,
    steps: &'a mut Vec<(Taken, State)>,
}

pub(crate) fn number(index: usize) -> u8 {
    u8::try_from(index).expect("there are few of each")
}

impl<'a> Next<'a> {
    pub(crate) fn of(model: &'a Model<'a>, from: &'a State, steps: &'a mut Vec<(Taken, State)>) {
        steps.clear();
        let mut next = Self { model, from, steps };
        for process in 0..model.config.processes {
            next.calls(process);
            next.bus(process);
        }
        for flight in 0..from.flights.len() {
            next.flight(flight);
        }
        for write in 0..model.config.writes.len() {
            next.write(write);
        }
        next.world();
    }

    fn step(&mut self, step: Taken, change: impl FnOnce(&mut State)) {
        let mut to = *self.from;
        change(&mut to);
        self.push(step, to);
    }

    /// The same, and it uses up one of the faults that are allowed.
    fn fault(
        &mut self,
        step: Taken,
        left: impl Fn(&mut State) -> &mut u8,
        change: impl FnOnce(&mut State),
    ) {
        let mut to = *self.from;
        let left = left(&mut to);
        if *left > 0 {
            *left -= 1;
            change(&mut to);
            self.push(step, to);
        }
    }

    fn push(&mut self, step: Taken, mut to: State) {
        if self.model.has(Rule::UniqueToken) && !self.model.replicates() {
            rename_tokens(&mut to);
        }
        // Nobody joins a detached flight and it stores nothing: what is left of it is its answer.
        for flight in &mut to.flights {
            let answered = match flight.at {
                At::Land => flight.fenced && flight.version >= flight.needs,
                At::LandFailed => true,
                _ => false,
            };
            if answered && !flight.joinable {
                *flight = Flight::default();
            }
        }
        self.steps.push((step, to));
    }

    // ---- callers -------------------------------------------------------------------------------

    /// A get or a refresh joins the flight of its key or leads one. (A get that L1 answers changes
    /// nothing: what L1 would answer is looked at in every state.)
    fn calls(&mut self, process: usize) {
        let here = &self.from.processes[process];
        let misses = self.model.l1_answer(self.from, process).is_none();
        if here.gets > 0 && misses {
            self.enter(process, false);
        }
        if here.refreshes > 0 {
            self.enter(process, true);
        }
    }

    fn enter(&mut self, process: usize, refreshes: bool) {
        let (model, from) = (self.model, self.from);
        let needs = from.processes[process].knows.max(from.everywhere);
        let spend = |to: &mut State| {
            let here = &mut to.processes[process];
            let left = if refreshes {
                &mut here.refreshes
            } else {
                &mut here.gets
            };
            *left -= 1;
        };
        let is_here = |flight: &Flight| flight.joinable && usize::from(flight.process) == process;
        let young = |flight: &Flight| {
            let here = &from.processes[process];
            !model.has(Rule::JoinWithinLease)
                || model.within_lease(from, here.lease_until)
                || from.now < flight.begun + model.config.lease
        };
        let joined = from.flights.iter().position(is_here);
        match joined {
            Some(joined) if model.has(Rule::Coalesce) && young(&from.flights[joined]) => {
                self.step((Step::Join, number(joined)), |to| {
                    spend(to);
                    let flight = &mut to.flights[joined];
                    flight.needs = flight.needs.max(needs);
                });
            }
            _ => {
                let free = self.free_slot(process);
                self.step((Step::Lead, number(free)), |to| {
                    spend(to);
                    if let (Some(old), true) = (joined, model.has(Rule::Coalesce)) {
                        detach(model, &mut to.flights[old]);
                    }
                    to.flights[free] = Flight {
                        at: At::ReadL2,
                        process: number(process),
                        refreshes,
                        joinable: true,
                        registered: model.has(Rule::RegisterThenRead),
                        begun: if model.config.lease > 0 { to.now } else { 0 },
                        needs,
                        ..Flight::default()
                    };
                });
            }
        }
    }

    /// Each process has as many slots for flights as it has calls: which process came first makes
    /// no difference.
    fn free_slot(&self, process: usize) -> usize {
        let config = self.model.config;
        let calls = |process: usize| usize::from(config.gets[process] + config.refreshes[process]);
        let first: usize = (0..process).map(calls).sum();
        let mut slots = first..first + calls(process);
        slots
            .find(|slot| !self.from.flights[*slot].flies())
            .expect("a flight is led by a call of its process")
    }

    // ---- flights -------------------------------------------------------------------------------

    fn flight(&mut self, index: usize) {
        let (model, from) = (self.model, self.from);
        let (i, flight) = (number(index), &from.flights[index]);
        match flight.at {
            At::Free => {}
            At::ReadL2 if from.processes[usize::from(flight.process)].repairs > 0 => {
                self.step((Step::GoAlone, i), |to| alone(&mut to.flights[index]));
            }
            At::ReadL2 => {
                self.step((Step::Read, i), |to| read(model, to, index));
                self.go_alone(index);
            }
            At::Reply => self.step((Step::HearReply, i), |to| {
                let flight = &mut to.flights[index];
                (flight.registered, flight.at) = (true, At::Land);
            }),
            At::Acquire => {
                self.step((Step::Acquire, i), |to| acquire(model, to, index));
                self.go_alone(index);
            }
            At::Wait => {
                // A timer that ends while the lease is there asks again and waits again.
                let asked = from.l2.kind == Kind::Lease && from.l2.waited_for;
                if !asked && model.has(Rule::WaitWithTimer) {
                    self.step((Step::TimerEnds, i), |to| {
                        to.flights[index].at = At::Acquire
                    });
                }
                self.go_alone(index);
            }
            At::Load => {
                self.step((Step::Load, i), |to| {
                    loaded(model, &mut to.flights[index], from.source);
                });
                if !model.has(Rule::LoadPrimary) && from.source > 0 {
                    self.step((Step::LoadOld, i), |to| {
                        loaded(model, &mut to.flights[index], from.source - 1);
                    });
                }
                self.fault(
                    (Step::LoadFails, i),
                    |to| &mut to.faults.failures,
                    |to| {
                        let flight = &mut to.flights[index];
                        match flight.under {
                            Under::Lease => flight.at = At::Mark,
                            _ => fails(flight),
                        }
                    },
                );
            }
            At::Mark => self.step((Step::Mark, i), |to| {
                if holds_still(to, index) {
                    wake_waiters(to);
                    to.l2 = Record::of(Kind::Failed, 0);
                }
                fails(&mut to.flights[index]);
            }),
            At::Fill => {
                let stores = may_fill(model, from, index);
                let step = if stores {
                    Step::Fill
                } else {
                    Step::FillRefused
                };
                self.step((step, i), |to| fill(model, to, index));
                self.fault(
                    (Step::FillUnknown, i),
                    |to| &mut to.faults.unknown_fills,
                    |to| {
                        fill(model, to, index);
                        to.flights[index].keeps = false;
                    },
                );
                self.fault(
                    (Step::FillLost, i),
                    |to| &mut to.faults.unknown_fills,
                    |to| ends(&mut to.flights[index], false),
                );
            }
            At::Land if !flight.keeps || flight.fenced => {
                self.step((Step::LandUnstored, i), |to| {
                    let flight = std::mem::take(&mut to.flights[index]);
                    to.old_answer |= flight.version < flight.needs;
                });
            }
            At::Land => self.step((Step::Land, i), |to| {
                let flight = to.flights[index];
                to.old_answer |= flight.version < flight.needs;
                if model.has(Rule::CheckWithStore) {
                    to.flights[index] = Flight::default();
                    to.processes[usize::from(flight.process)].l1 = Some(flight.version);
                } else {
                    to.flights[index].at = At::Store;
                }
            }),
            At::Store => self.step((Step::Store, i), |to| {
                let flight = std::mem::take(&mut to.flights[index]);
                to.processes[usize::from(flight.process)].l1 = Some(flight.version);
            }),
            At::LandFailed => {
                self.step((Step::LandUnstored, i), |to| {
                    to.flights[index] = Flight::default()
                });
            }
        }
    }

    /// L2 does not answer, or the lease is not given up within `lease_wait`.
    fn go_alone(&mut self, index: usize) {
        self.fault(
            (Step::GoAlone, number(index)),
            |to| &mut to.faults.alone,
            |to| {
                alone(&mut to.flights[index]);
            },
        );
    }

    // ---- writes --------------------------------------------------------------------------------

    fn write(&mut self, index: usize) {
        let (model, from) = (self.model, self.from);
        let (i, write) = (number(index), &from.writes[index]);
        let (process, how) = model.config.writes[index];
        let process = usize::from(process);
        match write.done {
            Done::Nothing if !model.has(Rule::CommitThenInvalidate) => {
                self.step((Step::Execute, i), |to| execute(model, to, index, how));
            }
            Done::Nothing if self.has_turn(how) => self.step((Step::Commit, i), |to| {
                commit(to, index);
                to.writes[index].done = Done::Committed;
            }),
            Done::Nothing | Done::All => {}
            Done::Committed if !model.has(Rule::RemoveThenPublish) => {
                self.step((Step::Announce, i), |to| {
                    publish(
                        to,
                        Some(process),
                        Message::Changed(to.writes[index].version),
                    );
                    to.writes[index].done = Done::Announced;
                });
            }
            Done::Committed if !model.has(Rule::L2ThenEvict) => {
                self.step((Step::EvictEarly, i), |to| {
                    forget(model, to, process);
                    to.writes[index].done = Done::Evicted;
                });
            }
            Done::Committed | Done::Evicted | Done::Announced => {
                self.step((Step::Execute, i), |to| execute(model, to, index, how));
                if how == How::Invalidate {
                    self.fault(
                        (Step::Untold, i),
                        |to| &mut to.faults.untold,
                        |to| untold(model, to, index, process),
                    );
                }
            }
            Done::Executed => {
                self.step((Step::Return, i), |to| {
                    returns(model, to, index, process, how)
                });
                if !model.has(Rule::EvictWithoutCaller) {
                    self.step((Step::CallerLeaves, i), |to| {
                        let write = &mut to.writes[index];
                        (write.done, write.dropped) = (Done::All, true);
                    });
                }
            }
            Done::WaitsOut => {
                if from.now >= write.returned + model.config.lease {
                    self.step((Step::WaitedOut, i), |to| {
                        to.writes[index].done = Done::All;
                        to.everywhere = to.everywhere.max(to.writes[index].version);
                    });
                }
            }
            Done::Premature => self.step((Step::Commit, i), |to| {
                commit(to, index);
                told(to, index, how);
                let version = to.writes[index].version;
                let here = &mut to.processes[process];
                here.knows = here.knows.max(version);
                to.writes[index].done = Done::All;
            }),
        }
    }

    /// Between the commit and L2's change of a write that inserts, or beside one, nobody commits.
    fn has_turn(&self, how: How) -> bool {
        let mut others = self.from.writes.iter().zip(self.model.config.writes);
        !self.model.has(Rule::InsertInTurn)
            || !others.any(|(write, (_, other))| {
                (how == How::Insert || *other == How::Insert)
                    && matches!(
                        write.done,
                        Done::Committed | Done::Evicted | Done::Announced
                    )
            })
    }

    // ---- the bus -------------------------------------------------------------------------------

    fn bus(&mut self, process: usize) {
        let (model, from) = (self.model, self.from);
        let (i, here) = (number(process), &from.processes[process]);
        if here.inbox[0] != Message::None {
            self.step((Step::Hear, i), |to| {
                hear(model, to, process);
                to.processes[process].hear();
            });
            if matches!(here.inbox[0], Message::Changed(_)) {
                self.fault(
                    (Step::HearTwice, i),
                    |to| &mut to.faults.duplicates,
                    |to| hear(model, to, process),
                );
            }
        }
        match here.link {
            Link::Up => {
                self.fault(
                    (Step::Cut, i),
                    |to| &mut to.faults.cuts,
                    |to| {
                        let here = &mut to.processes[process];
                        (here.link, here.inbox) = (Link::Cut, Default::default());
                    },
                );
                let sent = here
                    .inbox
                    .iter()
                    .any(|message| matches!(message, Message::Beat(_)));
                let renews = here.lease_until < from.now + model.config.lease;
                // Whoever never reads needs no L1.
                let reads = model.config.gets[process] > 0;
                if model.config.lease > 0 && reads && renews && !sent {
                    self.step((Step::Beat, i), |to| {
                        let here = &mut to.processes[process];
                        if model.has(Rule::BeatInQueue) {
                            here.send(Message::Beat(from.now));
                        } else {
                            here.lease_until = from.now + model.config.lease;
                        }
                    });
                }
            }
            Link::Cut => {
                self.step((Step::NoticeCut, i), |to| {
                    to.processes[process].link = Link::Down
                });
            }
            Link::Down if !model.has(Rule::SubscribeThenForget) => {
                self.step((Step::Forget, i), |to| {
                    forget(model, to, process);
                    to.processes[process].link = Link::Forgotten;
                });
            }
            Link::Down => self.step((Step::Subscribe, i), |to| {
                let here = &mut to.processes[process];
                (here.link, here.lease_until) = (Link::Subscribed, from.now + model.config.lease);
            }),
            Link::Subscribed => self.step((Step::Up, i), |to| {
                forget(model, to, process);
                to.processes[process].link = Link::Up;
            }),
            Link::Forgotten => {
                self.step((Step::Subscribe, i), |to| {
                    to.processes[process].link = Link::Up
                });
            }
        }
        self.fault(
            (Step::Crash, i),
            |to| &mut to.faults.crashes,
            |to| crash(model, to, process),
        );
        if here.repairs > 0 {
            self.step((Step::Repair, i), |to| repair(to, process));
        }
        if here.l1.is_some() {
            self.fault(
                (Step::L1Drops, i),
                |to| &mut to.faults.evictions,
                |to| to.processes[process].l1 = None,
            );
        }
    }

    // ---- the world -----------------------------------------------------------------------------

    fn world(&mut self) {
        let (model, from) = (self.model, self.from);
        match from.l2.kind {
            Kind::Absent => {}
            Kind::Failed => self.step((Step::MarkExpires, 0), |to| to.l2 = Record::ABSENT),
            Kind::Lease => {
                let mut flights = from.flights.iter();
                let alive = flights.any(|flight| flight.holds() && flight.token == from.l2.token);
                if alive {
                    self.fault(
                        (Step::LeaseExpires, 0),
                        |to| &mut to.faults.expiries,
                        remove,
                    );
                } else {
                    self.step((Step::DeadLeaseExpires, 0), remove);
                }
            }
            Kind::Value => {
                if !from.l2.stale {
                    self.fault(
                        (Step::ValueAges, 0),
                        |to| &mut to.faults.agings,
                        |to| to.l2.stale = true,
                    );
                }
                self.fault(
                    (Step::ValueExpires, 0),
                    |to| &mut to.faults.evictions,
                    remove,
                );
            }
        }
        if model.replicates() && from.replica != from.l2 {
            self.step((Step::Replicate, 0), |to| to.replica = to.l2);
        }
        if !model.has(Rule::KeepWrites) {
            self.fault(
                (Step::FailOver, 0),
                |to| &mut to.faults.fail_overs,
                |to| to.l2 = to.replica,
            );
        }
        if from.now < model.config.ticks {
            self.step((Step::Tick, 0), |to| to.now += 1);
        }
    }
}
