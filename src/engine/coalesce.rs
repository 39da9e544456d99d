//! Coalescing: a look-up that goes past L1 joins the flight of its key, or begins one.
//!
//! | the table has | the caller |
//! |---|---|
//! | no flight of the key | leads: it begins one, and polls it inline as far as that goes |
//! | one whose outcome it may have | joins it |
//! | one that began too early for it | follows it, and looks again after its end |
//! | one that must not be joined any more | detaches it and leads |
//!
//! An entry that callers may have meanwhile is the flight's interim value. A caller that takes one
//! does not wait for the end.

use std::pin::pin;
use std::sync::Arc;
use std::task::Poll;

use tokio::runtime::Handle;
use tokio::time::Instant;

use super::core::Engine;
use super::flight::inline::InlinePoll;
use super::flight::table::Shard;
use super::flight::{self, Flight, Need, Outcome, Purpose};
use super::flight_task::FlightTask;
use super::load::nesting;
use super::memory::L1Entry;
use super::report::CallerAnswer;
use super::tasks::Running;
use crate::answer::Answer;
use crate::entry::{Freshness, Read};
use crate::erased::{AnyError, AnyKey};
use crate::error::Error;
use crate::l1::Meta;
use crate::telemetry::Wait;
use crate::ttl;

/// A call that was let in: the cache is open, and there is a runtime.
pub(crate) struct Admission {
    runtime: Handle,
    running: Running,
    /// When the call began, in serial numbers of flights.
    since: u64,
}

/// What a call wants.
#[derive(Clone, Copy)]
pub(crate) struct Want {
    pub(super) read: Read,
    /// A load, whatever the tiers hold.
    pub(super) load: bool,
    /// When the call began, in serial numbers of flights.
    pub(super) since: u64,
}

impl Want {
    /// What an ordinary look-up wants that begins now.
    pub(super) fn look_up(read: Read) -> Self {
        Self {
            read,
            load: false,
            since: flight::now_in_serials(),
        }
    }

    /// The role of a call in a flight that is under way. Under the shard's lock.
    fn role(&self, flight: &Flight) -> Role {
        let joins = if self.load {
            flight.has_load() || flight.purpose == Purpose::Load
        } else {
            !self.read.skip_l1 || (flight.past_l1 && flight.serial > self.since)
        };
        if !joins {
            return Role::Follows;
        }
        if self.read.fresh {
            flight.raise_need(Need::FreshAnswer);
        }
        Role::Joins
    }

    fn purpose(&self) -> Purpose {
        match self {
            Self { load: true, .. } => Purpose::Load,
            Self { read, .. } if read.fresh => Purpose::Fresh,
            _ => Purpose::Any,
        }
    }
}

/// What a caller has to do with a flight.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Role {
    Leads,
    Joins,
    /// Waits for its end, and does not take its outcome.
    Follows,
}

/// What a call came to in the flight table.
pub(super) enum Entered {
    Flight(Arc<Flight>, Role),
    Answered(Answer),
    Refused(Error<AnyError>),
}

/// A caller's wait for a flight.
pub(crate) struct FlightWait {
    pub(super) flight: Arc<Flight>,
    pub(super) role: Role,
    pub(super) want: Want,
}

impl Entered {
    /// `Err`: the outcome, where there is nothing to wait for.
    pub(super) fn or_wait(
        self,
        want: Want,
    ) -> Result<FlightWait, Result<CallerAnswer, Error<AnyError>>> {
        match self {
            Self::Flight(flight, role) => Ok(FlightWait { flight, role, want }),
            Self::Answered(answer) => Err(Ok(CallerAnswer::own(answer))),
            Self::Refused(error) => Err(Err(error)),
        }
    }
}

/// What a flight means for one of its callers at this moment.
pub(super) enum Progress {
    Pending,
    Answer(Result<Answer, Error<AnyError>>),
    LookAgain,
}

/// A leader's part in a flight. When it is dropped, the flight goes on in a task.
struct InlineGuard<'a>(&'a Flight);

impl Drop for InlineGuard<'_> {
    fn drop(&mut self) {
        self.0.driver.spawn_if_inline();
    }
}

impl Engine {
    /// Lets a call in, unless the cache is closed or there is no runtime.
    pub(crate) fn admit(self: &Arc<Self>) -> Result<Admission, Error<AnyError>> {
        // Nothing can fail between putting a flight into the table and spawning its task.
        let runtime = Handle::try_current().map_err(|_| Error::NoRuntime)?;
        let since = flight::now_in_serials();
        let running = self.tasks.enter().ok_or(Error::Closed)?;
        #[cfg(feature = "metrics")]
        self.publish_from_now_on(&runtime);
        Ok(Admission {
            runtime,
            running,
            since,
        })
    }

    /// A hit in L1 that is not a plain one, counted. `key`: for the refresh that it may begin.
    pub(crate) fn hit(
        self: &Arc<Self>,
        found: (Answer, Meta),
        read: Read,
        now: Instant,
        key: &dyn Fn() -> AnyKey,
    ) -> Option<Answer> {
        let entry = self.check_l1_entry(found, now);
        let entry = entry.filter(|entry| entry.suits(read))?;
        if entry.refresh_due {
            self.refresh_in_background(key(), &entry);
        }
        self.count(&entry.answer);
        Some(entry.answer)
    }

    /// A look-up that goes past L1. `Err`: the outcome, where there is nothing to wait for.
    pub(crate) fn begin(
        self: &Arc<Self>,
        key: AnyKey,
        read: Read,
        admission: Admission,
    ) -> Result<FlightWait, Result<Answer, Error<AnyError>>> {
        let want = Want {
            read,
            load: false,
            since: admission.since,
        };
        let entered = self.enter_inline(key, want, admission);
        entered.map_err(|got| self.counted(got))
    }

    /// A load now, or the one that is under way. Its error is the caller's, whatever the tiers hold.
    pub(crate) async fn refresh(
        self: &Arc<Self>,
        key: AnyKey,
        admission: Admission,
    ) -> Result<Answer, Error<AnyError>> {
        let want = Want {
            read: Read::fresh().skip_l1(),
            load: true,
            since: admission.since,
        };
        match self.enter_inline(key, want, admission) {
            Ok(wait) => self.wait(wait).await,
            Err(got) => got.map(|got| got.answer),
        }
    }

    /// Waits for the outcome of a flight, and of another one where a caller has to look again.
    /// Counted, unless a load was asked for. Cancel safe: the flight goes on.
    pub(crate) async fn wait(
        self: &Arc<Self>,
        mut wait: FlightWait,
    ) -> Result<Answer, Error<AnyError>> {
        loop {
            let FlightWait { flight, role, want } = &wait;
            if *role == Role::Leads {
                match self.poll_inline(flight, want).await {
                    Progress::Answer(got) => return self.received(got, *role, want),
                    Progress::Pending | Progress::LookAgain => {}
                }
            }
            // A flight that was abandoned while it was polled is so still.
            if let Progress::Answer(got) = self.outcome(flight, *role, want).await {
                return self.received(got, *role, want);
            }
            wait = match self.enter_inline(flight.key.clone(), *want, self.admit()?) {
                Ok(wait) => wait,
                Err(got) if want.load => return got.map(|got| got.answer),
                Err(got) => return self.counted(got),
            };
        }
    }

    /// Waits for a flight that has a task already.
    pub(super) async fn wait_for_task(
        self: &Arc<Self>,
        wait: FlightWait,
    ) -> Result<Answer, Error<AnyError>> {
        let FlightWait { flight, role, want } = &wait;
        if let Progress::Answer(got) = self.outcome(flight, *role, want).await {
            return self.received(got, *role, want);
        }
        match self.enter_inline(flight.key.clone(), *want, self.admit()?) {
            Ok(wait) => self.wait(wait).await,
            Err(got) => self.counted(got),
        }
    }

    fn received(
        &self,
        got: Result<Answer, Error<AnyError>>,
        role: Role,
        want: &Want,
    ) -> Result<Answer, Error<AnyError>> {
        if want.load {
            return got;
        }
        let joined = role == Role::Joins;
        self.counted(got.map(|answer| CallerAnswer { answer, joined }))
    }

    /// Polls a flight as its leader. `Pending`: it has a task now, and its leader waits for it as its
    /// other callers do.
    async fn poll_inline(&self, flight: &Flight, want: &Want) -> Progress {
        let inline = InlineGuard(flight);
        std::future::poll_fn(|cx| {
            let polled = inline.0.driver.poll(cx, || self.tasks.is_closed());
            let still_inline = matches!(polled, InlinePoll::Idle);
            if let InlinePoll::Panicked(_) = &polled {
                flight.complete(Outcome::Completed(Err(Error::LoadPanicked)));
            }
            drop(polled);
            match self.progress(flight, Role::Leads, want) {
                Progress::Pending if still_inline => Poll::Pending,
                progress => Poll::Ready(progress),
            }
        })
        .await
    }

    /// Waits until a flight has an answer for a caller, or the caller has to look again.
    async fn outcome(&self, flight: &Flight, role: Role, want: &Want) -> Progress {
        let mut waits_since = None;
        let progress = loop {
            // Register first, then look: a completion between the two is not missed.
            let mut changed = pin!(flight.state_changed());
            changed.as_mut().enable();
            match self.progress(flight, role, want) {
                Progress::Pending => {}
                progress => break progress,
            }
            if role != Role::Leads && waits_since.is_none() {
                waits_since = Some(Instant::now());
                flight.trace().joined_here(flight.serial);
            }
            changed.await;
        };
        if let Some(since) = waits_since {
            self.telemetry.waited(Wait::Flight, since);
        }
        progress
    }

    /// What a flight means for a caller at this moment.
    pub(super) fn progress(&self, flight: &Flight, role: Role, want: &Want) -> Progress {
        let outcome = flight.outcome();
        if role == Role::Follows {
            return outcome.map_or(Progress::Pending, |_| Progress::LookAgain);
        }
        let failed = match outcome {
            None => Some(false),
            Some(Outcome::Completed(Err(_))) => Some(true),
            Some(_) => None,
        };
        if let Some(answer) = failed.and_then(|failed| self.interim_answer(flight, want, failed)) {
            return Progress::Answer(Ok(answer));
        }
        match outcome {
            None => Progress::Pending,
            Some(Outcome::Completed(Ok(answer))) => {
                let stale = want.read.fresh && answer.freshness != Freshness::Fresh;
                // A flight that was joined began before this call, and so perhaps before one of the
                // tags was invalidated.
                let dead = role == Role::Joins && !answer.tags_hold();
                if stale || dead {
                    Progress::LookAgain
                } else {
                    Progress::Answer(Ok(answer.clone()))
                }
            }
            Some(Outcome::Completed(Err(error))) => {
                if role == Role::Joins {
                    self.stats.coalesced.add();
                }
                Progress::Answer(Err(error.clone()))
            }
            // Its runtime has ended, or it came to nothing that this caller could have. The caller's
            // own runtime lives, so it tries again there.
            Some(Outcome::Abandoned) => Progress::LookAgain,
        }
    }

    /// What a caller may have of a flight that is not completed, or has failed.
    fn interim_answer(&self, flight: &Flight, want: &Want, failed: bool) -> Option<Answer> {
        if want.read.fresh || !flight.has_interim() {
            return None;
        }
        let now = Instant::now();
        let windows = &self.config.windows;
        // The flight may have begun after its entry of L1: a caller that joins it comes later still.
        let usable = |begun, stamp| {
            !want.read.skip_l1 && self.fence.holds(stamp) && self.l1_usable_for(begun, now)
        };
        flight
            .interim_answer(now, windows, failed, usable)
            .filter(Answer::tags_hold)
    }

    /// Whether what a flight reads may be answered to a call that begins now. While no invalidation
    /// is heard, a flight that began too long ago is not joined: so the time is bounded within which
    /// an old value is answered.
    fn may_join(&self, begun: Instant, now: Instant) -> bool {
        self.remote.is_none()
            || now < ttl::deadline(begun, self.config.channel_lease)
            || self.l1_usable_for(begun, now)
    }

    /// Joins the flight of a key, or begins one that its leader polls.
    fn enter_inline(
        self: &Arc<Self>,
        key: AnyKey,
        want: Want,
        admission: Admission,
    ) -> Result<FlightWait, Result<CallerAnswer, Error<AnyError>>> {
        let entered = self.enter(key, &want, admission, |runtime, task| task.start(runtime));
        entered.or_wait(want)
    }

    /// Joins the flight of a key or begins one, in one critical section. `run` is given the task of a
    /// new flight, and sees to it that it runs.
    pub(super) fn enter(
        self: &Arc<Self>,
        key: AnyKey,
        want: &Want,
        admission: Admission,
        run: impl FnOnce(Handle, FlightTask),
    ) -> Entered {
        let Admission {
            runtime, running, ..
        } = admission;
        let nesting = nesting::current();
        let mut shard = self.flights.lock(key.id.hash);
        if let Some(flight) = shard.find(&key.id) {
            if nesting.serials().contains(&flight.serial) {
                return Entered::Refused(Error::LoadCycle);
            }
            if self.may_join(flight.begun, Instant::now()) {
                let (flight, role) = (Arc::clone(flight), want.role(flight));
                drop(shard);
                flight.driver.spawn_if_inline();
                return Entered::Flight(flight, role);
            }
            shard.detach(key.id.hash, &key.id.encoded);
        }
        match self.new_flight(&mut shard, key, want) {
            Ok(flight) => {
                drop(shard);
                run(runtime, FlightTask::new(self, &flight, nesting, running));
                Entered::Flight(flight, Role::Leads)
            }
            Err(answered) => answered,
        }
    }

    /// Puts a new flight into the table, unless L1 or a held error answers the call. Under the
    /// shard's lock.
    fn new_flight(
        &self,
        shard: &mut Shard,
        key: AnyKey,
        want: &Want,
    ) -> Result<Arc<Flight>, Entered> {
        // Look again, now that no flight of the key can complete:
        //   1. this call misses in L1;
        //   2. another call's flight of the key completes: stored in L1, out of the table;
        //   3. this call finds no flight, and would load what is already there.
        let now = Instant::now();
        let again = self.l1.get_again(&key, now);
        let local = again.and_then(|found| self.check_l1_entry(found, now));
        if let Some(local) = local.as_ref().filter(|local| local.suits(want.read)) {
            if !want.read.skip_l1 {
                return Err(Entered::Answered(local.answer.clone()));
            }
        }
        let purpose = want.purpose();
        let mut flight = Flight::new(key, purpose, now);
        flight.past_l1 = want.read.skip_l1 && !want.load;
        flight.failures = shard.failures(&flight.key.id, now);
        if let Some((error, _)) = shard.held_error(&flight.key.id, now) {
            self.answer_held_error(&error, want, local.as_ref())?;
            // L2 may hold something, or something new.
            flight.held_error = Some(error);
        }
        // A caller past L1 may not have the entry. A flight with an interim value is one that can
        // wait.
        if let Some(local) = local.filter(|_| purpose != Purpose::Any || !want.read.skip_l1) {
            flight.set_interim(local.found());
        }
        let flight = Arc::new(flight);
        shard.insert(Arc::clone(&flight));
        Ok(flight)
    }

    /// A load of the key failed a moment ago. `Ok`: L2 may still answer, without a load.
    fn answer_held_error(
        &self,
        error: &Error<AnyError>,
        want: &Want,
        local: Option<&L1Entry>,
    ) -> Result<(), Entered> {
        let refused = || {
            self.stats.errors_held.add();
            Entered::Refused(error.clone())
        };
        if want.read.fresh {
            return Err(refused());
        }
        if let Some(local) = local.filter(|_| !want.read.skip_l1) {
            // It is good for nothing but this, or it would have been taken.
            return Err(Entered::Answered(Answer {
                freshness: Freshness::StaleOnError,
                ..local.answer.clone()
            }));
        }
        if self.remote.is_none() || self.config.windows.longest().is_zero() {
            return Err(refused());
        }
        Ok(())
    }
}
