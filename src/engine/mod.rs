//! What happens behind a handle: see the architecture page of the crate.

use std::fmt;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::Poll;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::runtime::Handle;
use tokio::sync::Semaphore;
use tokio::time::Instant;

use self::batch::LoadRoute;
use self::batch::window::BatchWindow;
use self::fetch::{FlightGuard, Leader};
use self::flight::inline::InlinePoll;
use self::flight::{Flight, Flights, Found, Outcome, Purpose};
use self::load::permits::LoadLimiter;
use self::negative_budget::Budget;
use self::remote::RemoteTier;
use self::tasks::Tasks;
use crate::answer::Answer;
use crate::batch::Batching;
use crate::codec::AnyCodec;
use crate::coherence::channel::ChannelLease;
use crate::coherence::fence::Fence;
use crate::coherence::repairs::Repairs;
use crate::coherence::sequence::SequenceTracker;
use crate::coherence::watermarks::WatermarkTable;
use crate::config::Config;
use crate::entry::{Freshness, Read, Source};
use crate::erased::{AnyError, AnyKey};
use crate::error::Error;
use crate::health::{Channel, Event, Health};
use crate::key::HashedKey;
use crate::l1::{HitView, L1, Meta, TypedEntries};
use crate::l2::{At, Tier};
use crate::lifetime::Usability;
use crate::loader::{ErasedBatchLoader, ErasedLoader};
use crate::stats::Counters;
#[cfg(feature = "metrics")]
use crate::telemetry::{self, Gauges};
use crate::telemetry::{Telemetry, Wait};
use crate::time_base::TimeBase;
use crate::ttl;

mod batch;
pub(crate) mod change;
mod fetch;
mod flight;
pub(crate) mod get_many;
mod heartbeat;
mod load;
mod negative_budget;
mod refresh;
mod regenerate;
mod remote;
mod tasks;
mod warm;

#[cfg(test)]
#[cfg(feature = "bincode")]
mod tests;

/// One cache: shared by its handles and by the tasks that work for it.
pub(crate) struct Engine {
    pub(crate) name: String,
    config: Config,
    loader: Arc<dyn ErasedLoader>,
    batches: Option<Batches>,
    pub(crate) l1: L1,
    fence: Fence,
    watermarks: WatermarkTable,
    numbers: Mutex<SequenceTracker>,
    repairs: Repairs,
    flights: Flights,
    remote: Option<RemoteTier>,
    /// Places for loads.
    limiter: Option<Arc<LoadLimiter>>,
    /// Places for work that nobody waits for.
    background: Arc<Semaphore>,
    negatives: Budget,
    /// An upper estimate of what a load costs, in microseconds: for values that come without one.
    cost: AtomicU64,
    pub(crate) stats: Counters,
    pub(crate) telemetry: Arc<Telemetry>,
    tasks: Arc<Tasks>,
    created_at: Instant,
    pub(crate) time_base: TimeBase,
}

impl Engine {
    pub(crate) fn new(
        name: &str,
        config: Config,
        loader: Arc<dyn ErasedLoader>,
        batches: Option<Batches>,
        typed: Arc<dyn TypedEntries>,
        weighs: bool,
        remote: Option<(At, Arc<dyn AnyCodec>)>,
    ) -> Arc<Self> {
        let (now, telemetry) = (Instant::now(), Telemetry::new(name));
        let time_base = TimeBase::at(now);
        // With a weigher the capacity is not a number of entries.
        let entries = if weighs { 10_000 } else { config.l1_capacity };
        Arc::new(Self {
            name: name.to_owned(),
            loader,
            batches,
            l1: L1::new(config.l1_capacity, config.negative_capacity, weighs, typed),
            fence: Fence::new(entries, config.hold_off, time_base),
            watermarks: if remote.is_some() {
                WatermarkTable::default()
            } else {
                WatermarkTable::alone()
            },
            numbers: Mutex::default(),
            repairs: Repairs::default(),
            flights: Flights::new(),
            remote: remote.map(|(at, codec)| {
                let tier = Tier::new(at, Arc::clone(&telemetry));
                RemoteTier::new(name, tier, codec, config.channel_lease, now, time_base)
            }),
            limiter: config
                .max_concurrent_loads
                .map(|loads| Arc::new(LoadLimiter::new(loads))),
            background: Arc::new(Semaphore::new(refresh::MAX_BACKGROUND)),
            negatives: Budget::new(config.negative_capacity, config.negative_ttl, now),
            cost: AtomicU64::new(0),
            stats: Counters::default(),
            telemetry,
            tasks: Arc::default(),
            created_at: now,
            time_base,
            config,
        })
    }

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

    /// A look-up that goes past L1: joins the flight of its key, or begins one.
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

    /// Whether a hit has nothing to do but to answer this; an absence is counted.
    #[inline]
    pub(crate) fn is_plain_hit<V>(&self, seen: &HitView<'_, V>, now: Instant) -> bool
    where
        V: Send + Sync + 'static,
    {
        let proven = |remote: &RemoteTier| {
            remote.channel.is_proven(now) || self.l1_usable_for(seen.meta.begun, now)
        };
        let usable = seen.no_refresh_before.is_some_and(|until| now < until)
            && self.fence.holds(seen.stamp)
            && self.remote.as_ref().is_none_or(proven)
            && seen.tags_hold();
        let is_plain_hit = usable && !self.tasks.is_closed();
        if is_plain_hit && seen.value.is_none() {
            self.stats.negative_hits.add();
        }
        is_plain_hit
    }

    /// Puts an entry that is a hit now and then in front.
    pub(crate) fn promote(&self, key: &AnyKey) {
        let _shard = self.flights.lock(key.id.hash);
        self.l1.promote(key);
    }

    /// A hit in L1, counted. `key`: for the refresh that it may begin.
    pub(crate) fn hit(
        self: &Arc<Self>,
        found: (Answer, Meta),
        read: Read,
        now: Instant,
        key: &dyn Fn() -> AnyKey,
    ) -> Option<Answer> {
        let local = self.judge_l1(found, now);
        let local = local.filter(|local| local.suits(read))?;
        if local.late {
            self.refresh_in_background(key(), &local);
        }
        self.count(&local.answer);
        Some(local.answer)
    }

    /// Counts a look-up that L1 has not answered.
    fn counted(
        &self,
        got: Result<CallerAnswer, Error<AnyError>>,
    ) -> Result<Answer, Error<AnyError>> {
        match &got {
            Ok(CallerAnswer { answer, .. }) => self.count(answer),
            Err(Error::Closed | Error::NoRuntime) => {}
            Err(_) => self.stats.misses.add(),
        }
        let CallerAnswer { mut answer, joined } = got?;
        if joined {
            self.stats.coalesced.add();
            if answer.freshness == Freshness::Fresh {
                answer.source = Source::Coalesced;
            }
        }
        Ok(answer)
    }

    /// A load now, or the one that is under way. Its error is the caller's, whatever is there.
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
            Err(received) => received.map(|received| received.answer),
        }
    }

    /// Waits for what comes of a flight, and of another one where it comes to nothing. Counted, unless
    /// a load was asked for. Cancel safe: what was begun goes on without it.
    pub(crate) async fn wait(
        self: &Arc<Self>,
        mut wait: FlightWait,
    ) -> Result<Answer, Error<AnyError>> {
        loop {
            let FlightWait { flight, role, want } = &wait;
            let news = match role {
                Role::Leads => self.poll_inline(flight, want).await,
                Role::Joins | Role::Follows => None,
            };
            let answer = match news {
                Some(news) => news.map(|answer| {
                    answer.map(|answer| CallerAnswer {
                        answer,
                        joined: false,
                    })
                }),
                None => self.outcome(flight, *role, want).await,
            };
            if let Some(answer) = answer {
                return self.counted_if(!want.load, answer);
            }
            wait = match self.enter_inline(flight.key.clone(), *want, self.admit()?) {
                Ok(wait) => wait,
                Err(received) => return self.counted_if(!want.load, received),
            };
        }
    }

    fn counted_if(
        &self,
        counts: bool,
        got: Result<CallerAnswer, Error<AnyError>>,
    ) -> Result<Answer, Error<AnyError>> {
        if counts {
            self.counted(got)
        } else {
            got.map(|received| received.answer)
        }
    }

    /// Joins the flight of a key, or begins one that its leader polls.
    fn enter_inline(
        self: &Arc<Self>,
        key: AnyKey,
        want: Want,
        admission: Admission,
    ) -> Result<FlightWait, Result<CallerAnswer, Error<AnyError>>> {
        let entered = self.enter(key, &want, admission, |runtime, leader| {
            self.run_inline(runtime, leader);
        });
        entered.or_wait(want)
    }

    /// Polls a flight for as long as it has no task. `None`: it has one, and its leader waits for it
    /// like everybody else.
    async fn poll_inline(&self, flight: &Flight, want: &Want) -> Option<News> {
        let inline = InlineGuard(flight);
        std::future::poll_fn(|cx| {
            let polled = inline.0.driver.poll(cx, || self.tasks.is_closed());
            let still_inline = matches!(polled, InlinePoll::InlineGuard);
            if let InlinePoll::Panicked(_) = &polled {
                flight.complete(Outcome::Completed(Err(Error::LoadPanicked)));
            }
            drop(polled);
            match self.news(flight, Role::Leads, want) {
                None if still_inline => Poll::Pending,
                news => Poll::Ready(news),
            }
        })
        .await
    }

    /// Waits for what comes of a flight for one of its callers. `None`: it has to look again.
    async fn outcome(
        &self,
        flight: &Flight,
        role: Role,
        want: &Want,
    ) -> Option<Result<CallerAnswer, Error<AnyError>>> {
        let mut waits_since = None;
        let news = loop {
            // Listen first, then look: a landing between the two is not missed.
            let mut news = pin!(flight.state_changed());
            news.as_mut().enable();
            if let Some(news) = self.news(flight, role, want) {
                break news;
            }
            if role != Role::Leads && waits_since.is_none() {
                waits_since = Some(Instant::now());
                flight.trace().joined_here(flight.serial);
            }
            news.await;
        };
        if let Some(since) = waits_since {
            self.telemetry.waited(Wait::Flight, since);
        }
        news.map(|answer| {
            answer.map(|answer| CallerAnswer {
                answer,
                joined: role == Role::Joins,
            })
        })
    }

    /// What a flight means for a caller at this moment: nothing yet, or an answer or error, or that it
    /// has to look again.
    fn news(&self, flight: &Flight, role: Role, want: &Want) -> Option<News> {
        let outcome = flight.outcome();
        if role == Role::Follows {
            return outcome.map(|_| None);
        }
        let failed = match outcome {
            None => Some(false),
            Some(Outcome::Completed(Err(_))) => Some(true),
            Some(_) => None,
        };
        if let Some(answer) = failed.and_then(|failed| self.interim_answer(flight, want, failed)) {
            return Some(Some(Ok(answer)));
        }
        Some(match outcome? {
            Outcome::Completed(Ok(answer)) => {
                let stale = want.read.fresh && answer.freshness != Freshness::Fresh;
                // What was joined began before this call, and so perhaps before one of its tags was
                // invalidated.
                let dead = role == Role::Joins && !answer.tags_hold();
                (!stale && !dead).then(|| Ok(answer.clone()))
            }
            Outcome::Completed(Err(error)) => {
                if role == Role::Joins {
                    self.stats.coalesced.add();
                }
                Some(Err(error.clone()))
            }
            // Its runtime ended under it, or it was another's and came to nothing that this one could
            // have. This one lives, so try again here.
            Outcome::Abandoned => None,
        })
    }

    /// What a caller may have at this moment of a flight that has not landed, or has failed.
    fn interim_answer(&self, flight: &Flight, want: &Want, failed: bool) -> Option<Answer> {
        if want.read.fresh || !flight.has_interim() {
            return None;
        }
        let now = Instant::now();
        let windows = &self.config.windows;
        // The flight may have begun after what it has from L1: whoever joins it comes later still.
        let usable = |begun, stamp| {
            !want.read.skip_l1 && self.fence.holds(stamp) && self.l1_usable_for(begun, now)
        };
        flight
            .interim_answer(now, windows, failed, usable)
            .filter(Answer::tags_hold)
    }

    /// What L1 has, if it may be used at all now.
    pub(crate) fn look(&self, key: &AnyKey, now: Instant) -> Option<L1Entry> {
        self.judge_l1(self.l1.get(key, now)?, now)
    }

    /// Whether what L1 has may be used, and for what.
    fn judge_l1(&self, (answer, meta): (Answer, Meta), now: Instant) -> Option<L1Entry> {
        if !self.usable(&meta, now) || !answer.tags_hold() {
            return None;
        }
        let (mut usability, mut late) = (Usability::Fresh, false);
        if now >= meta.no_refresh_before {
            usability = meta.lifetime.usability(now, &self.config.windows);
            late = match usability {
                Usability::Fresh => meta.lifetime.is_early(now, &self.config.windows),
                Usability::Revalidate => true,
                Usability::Fallback => false,
                Usability::Gone => return None,
            };
        } else if answer.freshness != Freshness::Fresh {
            usability = Usability::Revalidate;
        }
        Some(L1Entry {
            answer,
            meta,
            usability,
            late,
        })
    }

    /// What L1 may answer now.
    pub(crate) fn peek(&self, found: (Answer, Meta), now: Instant) -> Option<Answer> {
        let local = self.judge_l1(found, now)?;
        local.suits(Read::new()).then_some(local.answer)
    }

    fn usable(&self, meta: &Meta, now: Instant) -> bool {
        now < meta.l1_deadline
            && self.fence.holds(meta.stamp)
            && self.l1_usable_for(meta.begun, now)
    }

    /// Whether what began to be read here at this moment is not too old to be answered.
    fn l1_usable_for(&self, begun: Instant, now: Instant) -> bool {
        self.remote.as_ref().is_none_or(|remote| {
            remote
                .channel
                .l1_usable(begun, now, self.config.degraded_l1_ttl)
        })
    }

    /// Whether what a flight reads may be answered to a call that begins now. While nobody hears of
    /// invalidations, one that began too long ago is not joined: the time is bounded within which an
    /// old value is answered.
    fn may_join(&self, begun: Instant, now: Instant) -> bool {
        self.remote.is_none()
            || now < ttl::deadline(begun, self.config.channel_lease)
            || self.l1_usable_for(begun, now)
    }

    /// Joins the flight of a key or begins one, in one critical section. `begin` is given the one that
    /// is new, and sees to it that it is flown.
    fn enter(
        self: &Arc<Self>,
        key: AnyKey,
        want: &Want,
        admission: Admission,
        begin: impl FnOnce(Handle, Leader),
    ) -> Entered {
        let Admission {
            runtime, running, ..
        } = admission;
        let nesting = load::nesting();
        let mut shard = self.flights.lock(key.id.hash);
        if let Some(flight) = shard.find(&key.id) {
            if nesting.serials().contains(&flight.serial) {
                return Entered::Refused(Error::LoadCycle);
            }
            if self.may_join(flight.begun, Instant::now()) {
                let flight = Arc::clone(flight);
                let role = if want.joins(&flight) {
                    if want.read.fresh {
                        flight.require_fresh();
                    }
                    Role::Joins
                } else {
                    Role::Follows
                };
                drop(shard);
                flight.driver.spawn_if_inline();
                return Entered::Flight(flight, role);
            }
            shard.detach(key.id.hash, &key.id.encoded);
        }
        // Look again, now that nobody can land:
        //   1. this call misses in L1;
        //   2. another call's flight of the key lands: stored in L1, out of the table;
        //   3. this call finds no flight, and would load what is already there.
        let now = Instant::now();
        let again = self.l1.get_again(&key, now);
        let local = again.and_then(|found| self.judge_l1(found, now));
        if let Some(local) = local.as_ref().filter(|local| local.suits(want.read)) {
            if !want.read.skip_l1 {
                return Entered::Answered(local.answer.clone());
            }
        }
        let purpose = match want {
            Want { load: true, .. } => Purpose::Load,
            Want { read, .. } if read.fresh => Purpose::Fresh,
            _ => Purpose::Any,
        };
        let mut flight = Flight::new(key, purpose, now);
        flight.past_l1 = want.read.skip_l1 && !want.load;
        flight.failures = shard.failures(&flight.key.id, now);
        if let Some((error, _)) = shard.held(&flight.key.id, now) {
            if want.read.fresh {
                self.stats.errors_held.add();
                return Entered::Refused(error);
            }
            if let Some(local) = local.as_ref().filter(|_| !want.read.skip_l1) {
                // Good for nothing but this, or it would have been taken.
                return Entered::Answered(Answer {
                    freshness: Freshness::StaleOnError,
                    ..local.answer.clone()
                });
            }
            if self.remote.is_none() || self.config.windows.longest().is_zero() {
                self.stats.errors_held.add();
                return Entered::Refused(error);
            }
            // L2 may have something, or something new.
            flight.held_error = Some(error);
        }
        // Past L1 nobody has it, and a flight with something for its callers is one that can wait.
        if let Some(local) = local.filter(|_| purpose != Purpose::Any || !want.read.skip_l1) {
            flight.set_interim(local.found());
        }
        let flight = Arc::new(flight);
        shard.insert(Arc::clone(&flight));
        drop(shard);
        begin(runtime, self.leader(&flight, nesting, running));
        Entered::Flight(flight, Role::Leads)
    }

    /// Lets the caller fly it, as far as that goes.
    fn run_inline(self: &Arc<Self>, runtime: Handle, leader: Leader) {
        let has_window = self.batches.as_ref().is_some_and(Batches::has_window);
        if self.remote.is_none() || has_window {
            return self.spawn_task(&runtime, leader);
        }
        let flight = Arc::clone(&leader.guard.flight);
        let future = Box::pin(fetch::run(leader));
        flight.driver.start_inline(runtime, future);
    }

    fn spawn_task(self: &Arc<Self>, runtime: &Handle, leader: Leader) {
        let batches = self.batches.as_ref();
        if let Some(window) = batches.and_then(|batches| batches.window.as_ref()) {
            let arrival = window.expect_arrival();
            leader.guard.flight.set_route(LoadRoute::Window(arrival));
        }
        leader.guard.flight.driver.mark_in_task();
        runtime.spawn(fetch::run(leader));
    }

    /// A flight that was put into the table a moment ago.
    fn leader(
        self: &Arc<Self>,
        flight: &Arc<Flight>,
        nesting: load::Nesting,
        running: tasks::Running,
    ) -> Leader {
        // Not under the lock: whoever collects traces may be slow.
        let background = matches!(flight.purpose, Purpose::Replace(_));
        flight.traced(self.telemetry.flight_trace(
            flight.serial,
            background,
            &flight.key.id.encoded,
        ));
        Leader {
            guard: FlightGuard {
                engine: Arc::clone(self),
                flight: Arc::clone(flight),
                completed: false,
            },
            nesting,
            running,
            read: None,
        }
    }

    /// Counts one answered look-up.
    fn count(&self, answer: &Answer) {
        let stats = &self.stats;
        match answer.source {
            Source::L1 => stats.l1_hits.add(),
            Source::L2 => stats.l2_hits.add(),
            Source::Loader | Source::Coalesced => stats.misses.add(),
        }
        if answer.freshness != Freshness::Fresh {
            stats.stale_hits.add();
        }
        if answer.value.is_none() && matches!(answer.source, Source::L1 | Source::L2) {
            stats.negative_hits.add();
        }
    }

    /// Tells the user. What that does wrong is not our trouble.
    pub(crate) fn emit(&self, event: &Event) {
        self.emit_change(event, true);
    }

    /// The same; `first`: the state was another one before.
    pub(crate) fn emit_change(&self, event: &Event, first: bool) {
        self.telemetry.event(event, first);
        if let Some(on_event) = &self.config.on_event {
            let emit = std::panic::AssertUnwindSafe(|| on_event.0(event));
            let _ = std::panic::catch_unwind(emit);
        }
    }

    pub(crate) fn health(&self) -> Health {
        let now = Instant::now();
        let link = self.remote.as_ref().map(|remote| &remote.channel);
        Health {
            channel: match link {
                None => Channel::None,
                Some(link) if link.is_proven(now) => Channel::Proven,
                Some(link) if link.is_up() => Channel::Unproven,
                Some(_) => Channel::Down,
            },
            last_message: link.and_then(|link| link.since_last_message(now)),
            gaps: self.stats.snapshot().gaps,
            pending_repairs: self.repairs.len(),
            l2_reachable: link.is_some_and(ChannelLease::is_reachable),
            denied: self.remote.as_ref().and_then(|remote| remote.tier.denied()),
        }
    }

    /// An encoded key with its hash.
    pub(crate) fn id(&self, encoded: Vec<u8>) -> HashedKey {
        self.flights.id(encoded)
    }

    pub(crate) fn is_closed(&self) -> bool {
        self.tasks.is_closed()
    }

    pub(crate) async fn close(&self) {
        self.tasks.shut();
        self.flights.spawn_if_inline();
        self.tasks.close().await;
        Box::pin(self.last_repairs()).await;
        if let Some(remote) = &self.remote {
            remote.channel.set_down(Instant::now());
            remote.channel.wake.notify_one();
        }
        #[cfg(feature = "metrics")]
        self.publish();
    }

    #[cfg(feature = "metrics")]
    pub(crate) fn publish(&self) {
        let (health, remote) = (self.health(), self.remote.is_some());
        let gauges = Gauges {
            l1_entries: self.l1.entries(),
            flights: self.flights.under_way(),
            repairs_pending: health.pending_repairs,
            shared: remote.then_some((health.channel == Channel::Proven, health.l2_reachable)),
        };
        self.telemetry.publish(self.stats.snapshot(), Some(&gauges));
    }

    /// Publishes what has happened, every now and then, from the first look-up past L1 on.
    #[cfg(feature = "metrics")]
    fn publish_from_now_on(self: &Arc<Self>, runtime: &Handle) {
        if let Some(publishing) = self.telemetry.begin_publishing() {
            let engine = Arc::downgrade(self);
            runtime.spawn(async move {
                let _publishing = publishing;
                loop {
                    tokio::time::sleep(telemetry::PUBLISH_INTERVAL).await;
                    match engine.upgrade() {
                        Some(engine) if !engine.is_closed() => engine.publish(),
                        _ => return,
                    }
                }
            });
        }
    }

    /// A load has cost so much.
    fn note_cost(&self, sample: Duration) {
        let cost = ttl::upper_cost(self.usual_cost(), sample);
        let micros = u64::try_from(cost.as_micros()).unwrap_or(u64::MAX);
        self.cost.store(micros, Ordering::Relaxed);
    }

    fn usual_cost(&self) -> Duration {
        Duration::from_micros(self.cost.load(Ordering::Relaxed))
    }

    /// Whether entries that are filled now belong to a cold start.
    fn is_cold(&self, now: Instant) -> bool {
        now.saturating_duration_since(self.created_at) < self.config.ttl
    }

    /// How long L1 may answer what came from a load that L2 knows nothing of.
    fn unshared_l1_lifetime(&self) -> Duration {
        self.config.l1_lifetime().min(self.config.degraded_l1_ttl)
    }
}

/// How keys are loaded together.
pub(crate) struct Batches {
    loader: Arc<dyn ErasedBatchLoader>,
    settings: Batching,
    /// Where single look-ups meet, if they do.
    window: Option<Arc<BatchWindow>>,
}

impl Batches {
    fn has_window(&self) -> bool {
        self.window.is_some()
    }

    pub(crate) fn new(loader: Arc<dyn ErasedBatchLoader>, settings: Batching) -> Self {
        let has_window = !settings.window.is_zero();
        Self {
            loader,
            window: has_window.then(|| BatchWindow::new(&settings)),
            settings,
        }
    }
}

/// A call that was let in.
pub(crate) struct Admission {
    runtime: Handle,
    running: tasks::Running,
    /// When the call began, in numbers of flights.
    since: u64,
}

/// What a call is after.
#[derive(Clone, Copy)]
pub(crate) struct Want {
    read: Read,
    /// A load, whatever there is.
    load: bool,
    /// When the call began, in numbers of flights.
    since: u64,
}

impl Want {
    fn joins(&self, flight: &Flight) -> bool {
        if self.load {
            flight.loads() || flight.purpose == Purpose::Load
        } else {
            !self.read.skip_l1 || (flight.past_l1 && flight.serial > self.since)
        }
    }
}

/// What L1 has.
pub(crate) struct L1Entry {
    answer: Answer,
    meta: Meta,
    usability: Usability,
    /// Somebody should see about a new one.
    late: bool,
}

impl L1Entry {
    /// Whether a caller may have it.
    fn suits(&self, read: Read) -> bool {
        match self.usability {
            Usability::Fresh => true,
            Usability::Revalidate => !read.fresh,
            Usability::Fallback | Usability::Gone => false,
        }
    }

    fn found(&self) -> Found {
        Found {
            answer: self.answer.clone(),
            lifetime: self.meta.lifetime,
            of_l1: Some((self.meta.begun, self.meta.stamp)),
            version_id: self.meta.version_id,
        }
    }
}

enum Entered {
    Flight(Arc<Flight>, Role),
    Answered(Answer),
    Refused(Error<AnyError>),
}

/// A caller's wait for a flight.
pub(crate) struct FlightWait {
    flight: Arc<Flight>,
    role: Role,
    want: Want,
}

impl Entered {
    /// `Err`: nobody has to wait for it.
    fn or_wait(self, want: Want) -> Result<FlightWait, Result<CallerAnswer, Error<AnyError>>> {
        match self {
            Self::Flight(flight, role) => Ok(FlightWait { flight, role, want }),
            Self::Answered(answer) => Err(Ok(CallerAnswer {
                answer,
                joined: false,
            })),
            Self::Refused(error) => Err(Err(error)),
        }
    }
}

/// A leader's part in a flight. When he is dropped, it goes on without him.
struct InlineGuard<'a>(&'a Flight);

impl Drop for InlineGuard<'_> {
    fn drop(&mut self) {
        self.0.driver.spawn_if_inline();
    }
}

/// What a flight means for one of its callers: an answer or an error, or that he has to look again.
type News = Option<Result<Answer, Error<AnyError>>>;

/// What a caller has to do with a flight.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Role {
    Leads,
    Joins,
    /// Waits for its end, and does not take what comes of it.
    Follows,
}

/// What came of a flight for one of its callers.
struct CallerAnswer {
    answer: Answer,
    joined: bool,
}

impl Drop for Engine {
    fn drop(&mut self) {
        if let Some(remote) = &self.remote {
            remote.tier.unlisten(&remote.channel_name);
        }
        #[cfg(feature = "metrics")]
        self.telemetry.publish(self.stats.snapshot(), None);
    }
}

impl fmt::Debug for Engine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Cache")
            .field("name", &self.name)
            .field("l2", &self.remote.as_ref().map(|remote| &remote.tier))
            .field("flights", &self.flights.len())
            .field("tasks", &self.tasks.running())
            .finish_non_exhaustive()
    }
}
