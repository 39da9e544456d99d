//! The steps that lead out of a state. A step is atomic: a script that the server carries out, or
//! what a process does under one lock.

use crate::effects::{
    acquire, change_executed, change_fails, clear_local, commit, crash, detach, execute, fill,
    finish, finish_with_error, loaded, may_fill, process_message, publish, read, remove,
    rename_tokens, repair, returns, still_holds, wake_waiters, without_lease,
};
use crate::rules::{Model, Rule};
use crate::state::{
    FillAgainst, Flight, Kind, Message, Progress, Record, Stage, State, Subscription, WriteKind,
};
use crate::step::{Step, StepTaken};

/// Collects the steps that lead out of a state.
pub(crate) struct Transitions<'a> {
    model: &'a Model<'a>,
    from: &'a State,
    steps: &'a mut Vec<(StepTaken, State)>,
}

pub(crate) fn number(index: usize) -> u8 {
    u8::try_from(index).expect("there are few of each")
}

impl<'a> Transitions<'a> {
    pub(crate) fn of(
        model: &'a Model<'a>,
        from: &'a State,
        steps: &'a mut Vec<(StepTaken, State)>,
    ) {
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
        next.environment();
    }

    fn step(&mut self, step: StepTaken, change: impl FnOnce(&mut State)) {
        let mut to = *self.from;
        change(&mut to);
        self.push(step, to);
    }

    /// A step that uses up one of the allowed faults.
    fn fault(
        &mut self,
        step: StepTaken,
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

    fn push(&mut self, step: StepTaken, mut to: State) {
        if self.model.has(Rule::UniqueToken) && !self.model.replicates() {
            rename_tokens(&mut to);
        }
        // A detached flight is not joined and stores nothing. Once it has its answer, it has no
        // further effect.
        for flight in &mut to.flights {
            let answered = match flight.stage {
                Stage::Complete => flight.fenced && flight.version >= flight.needs,
                Stage::CompleteWithError => true,
                _ => false,
            };
            if answered && !flight.joinable {
                *flight = Flight::default();
            }
        }
        self.steps.push((step, to));
    }

    // ---- callers -------------------------------------------------------------------------------

    /// A get or a refresh joins the flight of its key or leads one. A get that L1 answers is no
    /// step, because the answer of L1 is checked in every state.
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
                        stage: Stage::ReadL2,
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

    /// Each process has as many slots for flights as it has calls, so the order of the processes
    /// makes no difference.
    fn free_slot(&self, process: usize) -> usize {
        let config = self.model.config;
        let calls = |process: usize| usize::from(config.gets[process] + config.refreshes[process]);
        let first: usize = (0..process).map(calls).sum();
        let mut slots = first..first + calls(process);
        slots
            .find(|slot| !self.from.flights[*slot].in_use())
            .expect("a flight is led by a call of its process")
    }

    // ---- flights -------------------------------------------------------------------------------

    fn flight(&mut self, index: usize) {
        let (model, from) = (self.model, self.from);
        let (i, flight) = (number(index), &from.flights[index]);
        match flight.stage {
            Stage::Free => {}
            Stage::ReadL2 if from.processes[usize::from(flight.process)].repairs > 0 => {
                self.step((Step::LoadWithoutLease, i), |to| {
                    without_lease(&mut to.flights[index])
                });
            }
            Stage::ReadL2 => {
                self.step((Step::Read, i), |to| read(model, to, index));
                self.load_without_lease(index);
            }
            Stage::Reply => self.step((Step::ReceiveReply, i), |to| {
                let flight = &mut to.flights[index];
                (flight.registered, flight.stage) = (true, Stage::Complete);
            }),
            Stage::Acquire => {
                self.step((Step::Acquire, i), |to| acquire(model, to, index));
                self.load_without_lease(index);
            }
            Stage::Wait => {
                // While the lease lasts, the end of a timer leads back to the same wait.
                let asked = from.l2.kind == Kind::Lease && from.l2.waited_for;
                if !asked && model.has(Rule::WaitWithTimer) {
                    self.step((Step::TimerEnds, i), |to| {
                        to.flights[index].stage = Stage::Acquire
                    });
                }
                self.load_without_lease(index);
            }
            Stage::Load | Stage::MarkFailure => self.loading(index),
            Stage::Fill => self.filling(index),
            Stage::Complete if !flight.enters_l1 || flight.fenced => {
                self.step((Step::CompleteUnstored, i), |to| {
                    let flight = std::mem::take(&mut to.flights[index]);
                    to.old_answer |= flight.version < flight.needs;
                });
            }
            Stage::Complete => self.step((Step::Complete, i), |to| {
                let flight = to.flights[index];
                to.old_answer |= flight.version < flight.needs;
                if model.has(Rule::CheckWithStore) {
                    to.flights[index] = Flight::default();
                    to.processes[usize::from(flight.process)].l1 = Some(flight.version);
                } else {
                    to.flights[index].stage = Stage::Store;
                }
            }),
            Stage::Store => self.step((Step::Store, i), |to| {
                let flight = std::mem::take(&mut to.flights[index]);
                to.processes[usize::from(flight.process)].l1 = Some(flight.version);
            }),
            Stage::CompleteWithError => {
                self.step((Step::CompleteUnstored, i), |to| {
                    to.flights[index] = Flight::default()
                });
            }
        }
    }

    /// A load ends, or its failure is marked in L2.
    fn loading(&mut self, index: usize) {
        let (model, from, i) = (self.model, self.from, number(index));
        if from.flights[index].stage == Stage::MarkFailure {
            self.step((Step::MarkFailure, i), |to| {
                if still_holds(to, index) {
                    wake_waiters(to);
                    to.l2 = Record::of(Kind::Failed, 0);
                }
                finish_with_error(&mut to.flights[index]);
            });
            return;
        }
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
                match flight.fill_against {
                    FillAgainst::Lease => flight.stage = Stage::MarkFailure,
                    _ => finish_with_error(flight),
                }
            },
        );
    }

    /// A fill is carried out or refused, and its outcome may stay unknown.
    fn filling(&mut self, index: usize) {
        let (model, from, i) = (self.model, self.from, number(index));
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
                to.flights[index].enters_l1 = false;
            },
        );
        self.fault(
            (Step::FillLost, i),
            |to| &mut to.faults.unknown_fills,
            |to| finish(&mut to.flights[index], false),
        );
    }

    /// L2 does not answer, or the lease lasts longer than `lease_wait`.
    fn load_without_lease(&mut self, index: usize) {
        self.fault(
            (Step::LoadWithoutLease, number(index)),
            |to| &mut to.faults.without_lease,
            |to| {
                without_lease(&mut to.flights[index]);
            },
        );
    }

    // ---- writes --------------------------------------------------------------------------------

    fn write(&mut self, index: usize) {
        let (model, from) = (self.model, self.from);
        let (i, write) = (number(index), &from.writes[index]);
        let (process, write_kind) = model.config.writes[index];
        let process = usize::from(process);
        match write.progress {
            Progress::Nothing if !model.has(Rule::CommitThenInvalidate) => {
                self.step((Step::Execute, i), |to| {
                    execute(model, to, index, write_kind)
                });
            }
            Progress::Nothing if self.may_commit(write_kind) => {
                self.step((Step::Commit, i), |to| {
                    commit(to, index);
                    to.writes[index].progress = Progress::Committed;
                })
            }
            Progress::Nothing | Progress::All => {}
            Progress::Committed if !model.has(Rule::RemoveThenPublish) => {
                self.step((Step::Announce, i), |to| {
                    publish(
                        to,
                        Some(process),
                        Message::Changed(to.writes[index].version),
                    );
                    to.writes[index].progress = Progress::Announced;
                });
            }
            Progress::Committed if !model.has(Rule::L2ThenEvict) => {
                self.step((Step::EvictEarly, i), |to| {
                    clear_local(model, to, process);
                    to.writes[index].progress = Progress::Evicted;
                });
            }
            Progress::Committed | Progress::Evicted | Progress::Announced => {
                self.step((Step::Execute, i), |to| {
                    execute(model, to, index, write_kind)
                });
                if write_kind == WriteKind::Invalidate {
                    self.fault(
                        (Step::ChangeFails, i),
                        |to| &mut to.faults.change_fails,
                        |to| change_fails(model, to, index, process),
                    );
                }
            }
            Progress::Executed => {
                self.step((Step::Return, i), |to| {
                    returns(model, to, index, process, write_kind)
                });
                if !model.has(Rule::EvictWithoutCaller) {
                    self.step((Step::CallerLeaves, i), |to| {
                        let write = &mut to.writes[index];
                        (write.progress, write.dropped) = (Progress::All, true);
                    });
                }
            }
            Progress::WaitsForLease => {
                if from.now >= write.returned + model.config.lease {
                    self.step((Step::WaitedForLease, i), |to| {
                        to.writes[index].progress = Progress::All;
                        to.everywhere = to.everywhere.max(to.writes[index].version);
                    });
                }
            }
            Progress::Premature => self.step((Step::Commit, i), |to| {
                commit(to, index);
                change_executed(to, index, write_kind);
                let version = to.writes[index].version;
                let here = &mut to.processes[process];
                here.knows = here.knows.max(version);
                to.writes[index].progress = Progress::All;
            }),
        }
    }

    /// While an insert is between its commit and its change of L2, no other write commits, and no
    /// insert commits while another write is there.
    fn may_commit(&self, write_kind: WriteKind) -> bool {
        let mut others = self.from.writes.iter().zip(self.model.config.writes);
        !self.model.has(Rule::InsertInTurn)
            || !others.any(|(write, (_, other))| {
                (write_kind == WriteKind::Insert || *other == WriteKind::Insert)
                    && matches!(
                        write.progress,
                        Progress::Committed | Progress::Evicted | Progress::Announced
                    )
            })
    }

    // ---- the bus -------------------------------------------------------------------------------

    fn bus(&mut self, process: usize) {
        let (model, from) = (self.model, self.from);
        let (i, here) = (number(process), &from.processes[process]);
        if here.inbox[0] != Message::None {
            self.step((Step::Receive, i), |to| {
                process_message(model, to, process);
                to.processes[process].pop_message();
            });
            if matches!(here.inbox[0], Message::Changed(_)) {
                self.fault(
                    (Step::ReceiveTwice, i),
                    |to| &mut to.faults.duplicates,
                    |to| process_message(model, to, process),
                );
            }
        }
        match here.subscription {
            Subscription::Up => {
                self.fault(
                    (Step::Cut, i),
                    |to| &mut to.faults.cuts,
                    |to| {
                        let here = &mut to.processes[process];
                        (here.subscription, here.inbox) = (Subscription::Cut, Default::default());
                    },
                );
                let sent = here
                    .inbox
                    .iter()
                    .any(|message| matches!(message, Message::Heartbeat(_)));
                let renews = here.lease_until < from.now + model.config.lease;
                // A process without gets needs no L1 and so no heartbeats.
                let reads = model.config.gets[process] > 0;
                if model.config.lease > 0 && reads && renews && !sent {
                    self.step((Step::Heartbeat, i), |to| {
                        let here = &mut to.processes[process];
                        if model.has(Rule::HeartbeatInQueue) {
                            here.send(Message::Heartbeat(from.now));
                        } else {
                            here.lease_until = from.now + model.config.lease;
                        }
                    });
                }
            }
            Subscription::Cut => {
                self.step((Step::NoticeCut, i), |to| {
                    to.processes[process].subscription = Subscription::Down
                });
            }
            Subscription::Down if !model.has(Rule::SubscribeThenClear) => {
                self.step((Step::ClearLocal, i), |to| {
                    clear_local(model, to, process);
                    to.processes[process].subscription = Subscription::Cleared;
                });
            }
            Subscription::Down => self.step((Step::Subscribe, i), |to| {
                let here = &mut to.processes[process];
                (here.subscription, here.lease_until) =
                    (Subscription::Subscribed, from.now + model.config.lease);
            }),
            Subscription::Subscribed => self.step((Step::Up, i), |to| {
                clear_local(model, to, process);
                to.processes[process].subscription = Subscription::Up;
            }),
            Subscription::Cleared => {
                self.step((Step::Subscribe, i), |to| {
                    to.processes[process].subscription = Subscription::Up
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
                (Step::L1Evicts, i),
                |to| &mut to.faults.evictions,
                |to| to.processes[process].l1 = None,
            );
        }
    }

    // ---- the environment ------------------------------------------------------------------------

    fn environment(&mut self) {
        let (model, from) = (self.model, self.from);
        match from.l2.kind {
            Kind::Absent => {}
            Kind::Failed => self.step((Step::FailureExpires, 0), |to| to.l2 = Record::ABSENT),
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
