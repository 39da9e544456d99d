//! What happens behind a handle: see the architecture page of the crate.

use std::borrow::Borrow;
use std::fmt;
use std::hash::Hash;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::Poll;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::runtime::Handle;
use tokio::sync::Semaphore;
use tokio::time::Instant;

use self::aboard::Leg;
use self::budget::Budget;
use self::fence::Fence;
use self::flight::{Aim, Flight, Flights, Found, Id, Outcome};
use self::gather::Gather;
use self::marks::Marks;
use self::numbers::Numbers;
use self::places::Places;
use self::read::{Claim, Leader};
use self::repairs::Repairs;
use self::shared::Shared;
use self::tasks::Tasks;
use self::together::Company;
use crate::batch::Batching;
use crate::codec::ErasedCodec;
use crate::config::Config;
use crate::entry::{Freshness, Read, Source};
use crate::error::Error;
use crate::health::{Channel, Event, Health};
use crate::key::{self, CacheKey};
use crate::l1::{Answer, L1, Meta, SAMPLE, Seen, Weigher};
use crate::l2::{At, Tier};
use crate::life::Standing;
use crate::loader::{ErasedBatchLoader, ErasedLoader};
use crate::stats::Counters;
#[cfg(feature = "metrics")]
use crate::telemetry::{self, Gauges};
use crate::telemetry::{Telemetry, Wait};
use crate::ttl;
use crate::zero::Zero;

mod aboard;
mod budget;
mod bus;
pub(crate) mod fence;
mod flight;
mod gather;
mod lease;
mod load;
mod many;
pub(crate) mod marks;
mod mutate;
mod numbers;
mod places;
mod read;
mod refresh;
mod repairs;
mod shared;
mod tasks;
mod together;
mod warm;
pub(crate) mod write;

#[cfg(test)]
#[cfg(feature = "bincode")]
mod tests;

/// One cache: shared by its handles and by the tasks that work for it.
pub(crate) struct Engine<K, V, E> {
    pub(crate) name: String,
    config: Config,
    loader: Arc<dyn ErasedLoader<K, V, E>>,
    batches: Option<Batches<K, V, E>>,
    l1: L1<K, V>,
    fence: Fence,
    marks: Marks,
    numbers: Mutex<Numbers>,
    repairs: Repairs,
    flights: Flights<V, E>,
    shared: Option<Shared<V>>,
    /// Places for loads.
    places: Option<Arc<Places>>,
    /// Places for work that nobody waits for.
    behind: Arc<Semaphore>,
    negatives: Budget,
    /// An upper estimate of what a load costs, in microseconds: for values that come without one.
    cost: AtomicU64,
    pub(crate) stats: Counters,
    pub(crate) telemetry: Arc<Telemetry>,
    tasks: Arc<Tasks>,
    born: Instant,
    zero: Zero,
}

impl<K, V, E> Engine<K, V, E>
where
    K: CacheKey,
    V: Send + Sync + 'static,
    E: Send + Sync + 'static,
{
    pub(crate) fn new(
        name: &str,
        config: Config,
        loader: Arc<dyn ErasedLoader<K, V, E>>,
        batches: Option<Batches<K, V, E>>,
        weigher: Option<Weigher<K, V>>,
        shared: Option<(At, Arc<dyn ErasedCodec<V>>)>,
    ) -> Arc<Self> {
        let (now, telemetry) = (Instant::now(), Telemetry::new(name));
        let zero = Zero::at(now);
        // With a weigher the capacity is not a number of entries.
        let entries = if weigher.is_some() {
            10_000
        } else {
            config.l1_capacity
        };
        Arc::new(Self {
            name: name.to_owned(),
            loader,
            batches,
            l1: L1::new(config.l1_capacity, config.negative_capacity, weigher),
            fence: Fence::new(entries, config.hold_off, zero),
            marks: if shared.is_some() {
                Marks::default()
            } else {
                Marks::alone()
            },
            numbers: Mutex::default(),
            repairs: Repairs::default(),
            flights: Flights::new(),
            shared: shared.map(|(at, codec)| {
                let tier = Tier::new(at, Arc::clone(&telemetry));
                Shared::new(name, tier, codec, config.channel_lease, now, zero)
            }),
            places: config
                .max_concurrent_loads
                .map(|loads| Arc::new(Places::new(loads))),
            behind: Arc::new(Semaphore::new(refresh::MOST)),
            negatives: Budget::new(config.negative_capacity, config.negative_ttl, now),
            cost: AtomicU64::new(0),
            stats: Counters::default(),
            telemetry,
            tasks: Arc::default(),
            born: now,
            zero,
            config,
        })
    }

    /// The read path, from the caller's side. Cancel safe: what it began goes on without it. `look`: L1
    /// may have something.
    pub(crate) async fn get<Q>(
        self: &Arc<Self>,
        key: &Q,
        read: Read,
        look: bool,
    ) -> Result<Answer<V>, Error<E>>
    where
        K: Borrow<Q>,
        Q: Hash + Eq + ToOwned<Owned = K> + ?Sized,
    {
        if self.tasks.is_closed() {
            return Err(Error::Closed);
        }
        if look && !read.skip_l1 {
            if let Some(answer) = self.hit(key, read, Instant::now()) {
                return Ok(answer);
            }
        }
        let want = Want {
            read,
            load: false,
            since: flight::now_in_serials(),
        };
        let got = self.fly_or_join(key, want).await;
        self.counted(got)
    }

    /// A hit of the front, counted: fresh, and nothing to do but to answer it.
    pub(crate) fn quick<Q, T>(
        &self,
        key: &Q,
        now: impl FnOnce() -> Instant,
        answer: impl FnOnce(&Seen<'_, V>, Instant) -> T,
    ) -> Option<T>
    where
        K: Borrow<Q>,
        Q: Hash + Eq + ?Sized,
    {
        let hot = self.l1.hot(key)?;
        let (seen, now) = (hot.seen()?, now());
        if !self.is_calm(&seen, now) {
            return None;
        }
        let answer = answer(&seen, now);
        if self.stats.quick_hits.add() % SAMPLE == 0 {
            self.l1.touch(key, &hot, self.zero.nanos(now));
        }
        Some(answer)
    }

    /// The same of all of L1.
    pub(crate) fn calm_hit<Q, T>(
        &self,
        key: &Q,
        now: impl Fn() -> Instant,
        answer: impl Fn(&Seen<'_, V>, Instant) -> T,
    ) -> Calm<T>
    where
        K: Borrow<Q>,
        Q: Hash + Eq + ToOwned<Owned = K> + ?Sized,
    {
        if let Some(answer) = self.quick(key, &now, &answer) {
            return Calm::Hit(answer);
        }
        let Some(slot) = self.l1.slot(key) else {
            return Calm::Nothing;
        };
        let now = now();
        let seen = slot.seen();
        if !self.is_calm(&seen, now) {
            return Calm::Something;
        }
        if self.stats.calm_hits.add() % SAMPLE == SAMPLE - 1 && self.l1.may_move_up(key) {
            self.promote(key);
        }
        Calm::Hit(answer(&seen, now))
    }

    /// Whether a hit has nothing to do but to answer this; an absence is counted.
    #[inline]
    fn is_calm(&self, seen: &Seen<'_, V>, now: Instant) -> bool {
        let proven = |shared: &Shared<V>| {
            shared.link.is_proven(now) || self.reads_l1(seen.slot.meta.begun, now)
        };
        let usable = seen.calm_until.is_some_and(|until| now < until)
            && self.fence.holds(seen.stamp)
            && self.shared.as_ref().is_none_or(proven)
            && seen.tags_hold();
        let is_calm = usable && !self.tasks.is_closed();
        if is_calm && seen.value.is_none() {
            self.stats.negative_hits.add();
        }
        is_calm
    }

    /// Puts what is a hit now and then in front.
    fn promote<Q>(&self, key: &Q)
    where
        K: Borrow<Q>,
        Q: ToOwned<Owned = K> + ?Sized,
    {
        let key = key.to_owned();
        let hash = self.id(&key).hash;
        let _shard = self.flights.lock(hash);
        self.l1.promote(key);
    }

    /// A hit in L1, counted.
    fn hit<Q>(self: &Arc<Self>, key: &Q, read: Read, now: Instant) -> Option<Answer<V>>
    where
        K: Borrow<Q>,
        Q: Hash + Eq + ToOwned<Owned = K> + ?Sized,
    {
        let local = self.look(key, now).filter(|local| local.is_for(read))?;
        if local.late {
            self.refresh_behind(key, &local);
        }
        self.count(&local.answer);
        Some(local.answer)
    }

    /// Counts a look-up that L1 has not answered.
    fn counted(&self, got: Result<Flown<V>, Error<E>>) -> Result<Answer<V>, Error<E>> {
        match &got {
            Ok(Flown { answer, .. }) => self.count(answer),
            Err(Error::Closed | Error::NoRuntime) => {}
            Err(_) => self.stats.misses.add(),
        }
        let Flown { mut answer, joined } = got?;
        if joined {
            self.stats.coalesced.add();
            if answer.freshness == Freshness::Fresh {
                answer.source = Source::Coalesced;
            }
        }
        Ok(answer)
    }

    /// A load now, or the one that is under way. Its error is the caller's, whatever is there.
    pub(crate) async fn refresh<Q>(self: &Arc<Self>, key: &Q) -> Result<Answer<V>, Error<E>>
    where
        K: Borrow<Q>,
        Q: Hash + Eq + ToOwned<Owned = K> + ?Sized,
    {
        if self.tasks.is_closed() {
            return Err(Error::Closed);
        }
        let want = Want {
            read: Read::fresh().skip_l1(),
            load: true,
            since: flight::now_in_serials(),
        };
        self.fly_or_join(key, want).await.map(|flown| flown.answer)
    }

    async fn fly_or_join<Q>(self: &Arc<Self>, key: &Q, want: Want) -> Result<Flown<V>, Error<E>>
    where
        K: Borrow<Q>,
        Q: Hash + Eq + ToOwned<Owned = K> + ?Sized,
    {
        loop {
            let entered = self.enter(key, &want, |runtime, leader| {
                self.board(runtime, leader);
            });
            let (flight, role) = match entered.at_once() {
                Ok(answer) => return answer,
                Err(entered) => entered,
            };
            let news = match role {
                Role::Leads => self.fly_first_leg(&flight, &want).await,
                Role::Joins | Role::Follows => None,
            };
            let answer = match news {
                Some(news) => news.map(|answer| {
                    answer.map(|answer| Flown {
                        answer,
                        joined: false,
                    })
                }),
                None => self.outcome(&flight, role, &want).await,
            };
            if let Some(answer) = answer {
                return answer;
            }
        }
    }

    /// Polls a flight for as long as it has no task. `None`: it has one, and its leader waits for it
    /// like everybody else.
    async fn fly_first_leg(&self, flight: &Flight<V, E>, want: &Want) -> Option<News<V, E>> {
        let aboard = Aboard(flight);
        std::future::poll_fn(|cx| {
            let leg = aboard.0.craft.poll(cx, || self.tasks.is_closed());
            let still_aboard = matches!(leg, Leg::Aboard);
            if let Leg::Crashed(_) = &leg {
                flight.land(Outcome::Landed(Err(Error::LoadPanicked)));
            }
            drop(leg);
            match self.news(flight, Role::Leads, want) {
                None if still_aboard => Poll::Pending,
                news => Poll::Ready(news),
            }
        })
        .await
    }

    /// Waits for what comes of a flight for one of its callers. `None`: it has to look again.
    async fn outcome(
        &self,
        flight: &Flight<V, E>,
        role: Role,
        want: &Want,
    ) -> Option<Result<Flown<V>, Error<E>>> {
        let mut waits_since = None;
        let news = loop {
            // Listen first, then look: a landing between the two is not missed.
            let mut news = pin!(flight.news());
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
            answer.map(|answer| Flown {
                answer,
                joined: role == Role::Joins,
            })
        })
    }

    /// What a flight means for a caller at this moment: nothing yet, or an answer or error, or that it
    /// has to look again.
    fn news(&self, flight: &Flight<V, E>, role: Role, want: &Want) -> Option<News<V, E>> {
        let outcome = flight.outcome();
        if role == Role::Follows {
            return outcome.map(|_| None);
        }
        let failed = match outcome {
            None => Some(false),
            Some(Outcome::Landed(Err(_))) => Some(true),
            Some(_) => None,
        };
        if let Some(answer) = failed.and_then(|failed| self.instead(flight, want, failed)) {
            return Some(Some(Ok(answer)));
        }
        Some(match outcome? {
            Outcome::Landed(Ok(answer)) => {
                let stale = want.read.fresh && answer.freshness != Freshness::Fresh;
                // What was joined began before this call, and so perhaps before one of its tags was
                // invalidated.
                let dead = role == Role::Joins && !answer.tags_hold();
                (!stale && !dead).then(|| Ok(answer.clone()))
            }
            Outcome::Landed(Err(error)) => {
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
    fn instead(&self, flight: &Flight<V, E>, want: &Want, failed: bool) -> Option<Answer<V>> {
        if want.read.fresh || !flight.has_offer() {
            return None;
        }
        let now = Instant::now();
        let windows = &self.config.windows;
        // The flight may have begun after what it has from L1: whoever joins it comes later still.
        let usable = |begun, stamp| {
            !want.read.skip_l1 && self.fence.holds(stamp) && self.reads_l1(begun, now)
        };
        flight
            .instead(now, windows, failed, usable)
            .filter(Answer::tags_hold)
    }

    /// What L1 has, if it may be used at all now.
    pub(crate) fn look<Q>(&self, key: &Q, now: Instant) -> Option<Local<V>>
    where
        K: Borrow<Q>,
        Q: Hash + Eq + ?Sized,
    {
        self.judge_local(self.l1.get(key, now)?, now)
    }

    /// Whether what L1 has may be used, and for what.
    fn judge_local(&self, (answer, meta): (Answer<V>, Meta), now: Instant) -> Option<Local<V>> {
        if !self.usable(&meta, now) || !answer.tags_hold() {
            return None;
        }
        let (mut standing, mut late) = (Standing::Fresh, false);
        if now >= meta.calm_until {
            standing = meta.life.standing(now, &self.config.windows);
            late = match standing {
                Standing::Fresh => meta.life.is_early(now, &self.config.windows),
                Standing::Revalidate => true,
                Standing::Fallback => false,
                Standing::Gone => return None,
            };
        } else if answer.freshness != Freshness::Fresh {
            standing = Standing::Revalidate;
        }
        Some(Local {
            answer,
            meta,
            standing,
            late,
        })
    }

    /// What L1 may answer now.
    pub(crate) fn peek<Q>(&self, key: &Q, now: Instant) -> Option<Answer<V>>
    where
        K: Borrow<Q>,
        Q: Hash + Eq + ?Sized,
    {
        let local = self.look(key, now)?;
        local.is_for(Read::new()).then_some(local.answer)
    }

    fn usable(&self, meta: &Meta, now: Instant) -> bool {
        now < meta.bound && self.fence.holds(meta.stamp) && self.reads_l1(meta.begun, now)
    }

    /// Whether what began to be read here at this moment is not too old to be answered.
    fn reads_l1(&self, begun: Instant, now: Instant) -> bool {
        self.shared.as_ref().is_none_or(|shared| {
            shared
                .link
                .l1_usable(begun, now, self.config.degraded_l1_ttl)
        })
    }

    /// Whether what a flight reads may be answered to a call that begins now. While nobody hears of
    /// invalidations, one that began too long ago is not joined: the time is bounded within which an
    /// old value is answered.
    fn joinable(&self, begun: Instant, now: Instant) -> bool {
        self.shared.is_none()
            || now < ttl::deadline(begun, self.config.channel_lease)
            || self.reads_l1(begun, now)
    }

    /// Joins the flight of a key or begins one, in one critical section. `begin` is given the one that
    /// is new, and sees to it that it is flown.
    fn enter<Q>(
        self: &Arc<Self>,
        key: &Q,
        want: &Want,
        begin: impl FnOnce(Handle, Leader<K, V, E>),
    ) -> Entered<V, E>
    where
        K: Borrow<Q>,
        Q: Hash + Eq + ToOwned<Owned = K> + ?Sized,
    {
        // Nothing can fail between putting a flight into the table and spawning its task.
        let Ok(runtime) = Handle::try_current() else {
            return Entered::Refused(Error::NoRuntime);
        };
        let Some(running) = self.tasks.enter() else {
            return Entered::Refused(Error::Closed);
        };
        #[cfg(feature = "metrics")]
        self.publish_from_now_on(&runtime);
        let owned = key.to_owned();
        let id = self.flights.id(key::encode(&owned));
        let nesting = load::nesting();
        let mut shard = self.flights.lock(id.hash);
        if let Some(flight) = shard.find(&id) {
            if nesting.serials().contains(&flight.serial) {
                return Entered::Refused(Error::LoadCycle);
            }
            if self.joinable(flight.begun, Instant::now()) {
                let flight = Arc::clone(flight);
                let role = if want.joins(&flight) {
                    if want.read.fresh {
                        flight.await_it();
                    }
                    Role::Joins
                } else {
                    Role::Follows
                };
                drop(shard);
                flight.craft.hand_over();
                return Entered::Flight(flight, role);
            }
            shard.detach(id.hash, &id.encoded);
        }
        // Look again, now that nobody can land:
        //   1. this call misses in L1;
        //   2. another call's flight of the key lands: stored in L1, out of the table;
        //   3. this call finds no flight, and would load what is already there.
        let now = Instant::now();
        let again = self.l1.get_again(key, now);
        let local = again.and_then(|found| self.judge_local(found, now));
        if let Some(local) = local.as_ref().filter(|local| local.is_for(want.read)) {
            if !want.read.skip_l1 {
                return Entered::Answered(local.answer.clone());
            }
        }
        let aim = match want {
            Want { load: true, .. } => Aim::Load,
            Want { read, .. } if read.fresh => Aim::Fresh,
            _ => Aim::Any,
        };
        let mut flight = Flight::new(id, aim, now);
        flight.past_l1 = want.read.skip_l1 && !want.load;
        flight.failures = shard.failures(&flight.id, now);
        if let Some((error, _)) = shard.held(&flight.id, now) {
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
            if self.shared.is_none() || self.config.windows.longest().is_zero() {
                self.stats.errors_held.add();
                return Entered::Refused(error);
            }
            // L2 may have something, or something new.
            flight.spared = Some(error);
        }
        // Past L1 nobody has it, and a flight with something for its callers is one that can wait.
        if let Some(local) = local.filter(|_| aim != Aim::Any || !want.read.skip_l1) {
            flight.offer(local.found());
        }
        let flight = Arc::new(flight);
        shard.insert(Arc::clone(&flight));
        drop(shard);
        begin(runtime, self.leader(&flight, owned, nesting, running));
        Entered::Flight(flight, Role::Leads)
    }

    /// Lets the caller fly it, as far as that goes.
    fn board(self: &Arc<Self>, runtime: Handle, leader: Leader<K, V, E>) {
        let gathers = self.batches.as_ref().is_some_and(Batches::gathers);
        if self.shared.is_none() || gathers {
            return self.take_off(&runtime, leader);
        }
        let flight = Arc::clone(&leader.claim.flight);
        let flying = Box::pin(read::fly(leader));
        flight.craft.board(runtime, flying);
    }

    fn take_off(self: &Arc<Self>, runtime: &Handle, leader: Leader<K, V, E>) {
        let batches = self.batches.as_ref();
        if let Some(gather) = batches.and_then(|batches| batches.gather.as_ref()) {
            let approach = gather.approach();
            leader.claim.flight.join(Company::Approaching(approach));
        }
        leader.claim.flight.craft.has_task();
        runtime.spawn(read::fly(leader));
    }

    /// A flight that was put into the table a moment ago.
    fn leader(
        self: &Arc<Self>,
        flight: &Arc<Flight<V, E>>,
        key: K,
        nesting: load::Nesting,
        running: tasks::Running,
    ) -> Leader<K, V, E> {
        // Not under the lock: whoever collects traces may be slow.
        let behind = matches!(flight.aim, Aim::Replace(_));
        flight.traced(
            self.telemetry
                .flight_trace(flight.serial, behind, &flight.id.encoded),
        );
        Leader {
            claim: Claim {
                engine: Arc::clone(self),
                flight: Arc::clone(flight),
                landed: false,
            },
            key,
            nesting,
            running,
            read: None,
        }
    }

    /// Counts one answered look-up.
    fn count(&self, answer: &Answer<V>) {
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
    pub(crate) fn tell(&self, event: &Event) {
        self.tell_change(event, true);
    }

    /// The same; `first`: the state was another one before.
    pub(crate) fn tell_change(&self, event: &Event, first: bool) {
        self.telemetry.event(event, first);
        if let Some(on_event) = &self.config.on_event {
            let tell = std::panic::AssertUnwindSafe(|| on_event.0(event));
            let _ = std::panic::catch_unwind(tell);
        }
    }

    pub(crate) fn health(&self) -> Health {
        let now = Instant::now();
        let link = self.shared.as_ref().map(|shared| &shared.link);
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
            l2_reachable: link.is_some_and(shared::Link::is_reachable),
            denied: self.shared.as_ref().and_then(|shared| shared.tier.denied()),
        }
    }

    fn id(&self, key: &K) -> Id {
        self.flights.id(key::encode(key))
    }

    pub(crate) fn is_closed(&self) -> bool {
        self.tasks.is_closed()
    }

    pub(crate) async fn close(&self) {
        self.tasks.shut();
        self.flights.hand_over();
        self.tasks.close().await;
        Box::pin(self.last_repairs()).await;
        if let Some(shared) = &self.shared {
            shared.link.set_down(Instant::now());
            shared.link.nudge.notify_one();
        }
        #[cfg(feature = "metrics")]
        self.publish();
    }

    #[cfg(feature = "metrics")]
    pub(crate) fn publish(&self) {
        let (health, shared) = (self.health(), self.shared.is_some());
        let gauges = Gauges {
            l1_entries: self.l1.entries(),
            flights: self.flights.under_way(),
            repairs_pending: health.pending_repairs,
            shared: shared.then_some((health.channel == Channel::Proven, health.l2_reachable)),
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
        now.saturating_duration_since(self.born) < self.config.ttl
    }

    /// How long L1 may answer what came from a load that L2 knows nothing of.
    fn unshared_bound(&self) -> Duration {
        self.config.l1_bound().min(self.config.degraded_l1_ttl)
    }
}

/// How keys are loaded together.
pub(crate) struct Batches<K, V, E> {
    loader: Arc<dyn ErasedBatchLoader<K, V, E>>,
    settings: Batching,
    /// Where single look-ups meet, if they do.
    gather: Option<Arc<Gather<K, V, E>>>,
}

impl<K, V, E> Batches<K, V, E>
where
    K: CacheKey,
    V: Send + Sync + 'static,
    E: Send + Sync + 'static,
{
    fn gathers(&self) -> bool {
        self.gather.is_some()
    }

    pub(crate) fn new(loader: Arc<dyn ErasedBatchLoader<K, V, E>>, settings: Batching) -> Self {
        let gathers = !settings.window.is_zero();
        Self {
            loader,
            gather: gathers.then(|| Gather::new(&settings)),
            settings,
        }
    }
}

/// What a call is after.
#[derive(Clone, Copy)]
struct Want {
    read: Read,
    /// A load, whatever there is.
    load: bool,
    /// When the call began, in numbers of flights.
    since: u64,
}

impl Want {
    fn joins<V, E>(&self, flight: &Flight<V, E>) -> bool {
        if self.load {
            flight.loads() || flight.aim == Aim::Load
        } else {
            !self.read.skip_l1 || (flight.past_l1 && flight.serial > self.since)
        }
    }
}

/// What L1 has for a hit that asks for nothing special.
pub(crate) enum Calm<T> {
    Hit(T),
    /// Something that takes a closer look.
    Something,
    Nothing,
}

/// What L1 has.
pub(crate) struct Local<V> {
    answer: Answer<V>,
    meta: Meta,
    standing: Standing,
    /// Somebody should see about a new one.
    late: bool,
}

impl<V> Local<V> {
    /// Whether a caller may have it.
    fn is_for(&self, read: Read) -> bool {
        match self.standing {
            Standing::Fresh => true,
            Standing::Revalidate => !read.fresh,
            Standing::Fallback | Standing::Gone => false,
        }
    }

    fn found(&self) -> Found<V> {
        Found {
            answer: self.answer.clone(),
            life: self.meta.life,
            of_l1: Some((self.meta.begun, self.meta.stamp)),
            print: self.meta.print,
        }
    }
}

enum Entered<V, E> {
    Flight(Arc<Flight<V, E>>, Role),
    Answered(Answer<V>),
    Refused(Error<E>),
}

/// What nobody has to wait for, or a flight.
type AtOnce<V, E> = Result<Result<Flown<V>, Error<E>>, (Arc<Flight<V, E>>, Role)>;

impl<V, E> Entered<V, E> {
    fn at_once(self) -> AtOnce<V, E> {
        match self {
            Self::Flight(flight, role) => Err((flight, role)),
            Self::Answered(answer) => Ok(Ok(Flown {
                answer,
                joined: false,
            })),
            Self::Refused(error) => Ok(Err(error)),
        }
    }
}

/// A leader's part in a flight. When he is dropped, it goes on without him.
struct Aboard<'a, V, E>(&'a Flight<V, E>);

impl<V, E> Drop for Aboard<'_, V, E> {
    fn drop(&mut self) {
        self.0.craft.hand_over();
    }
}

/// What a flight means for one of its callers: an answer or an error, or that he has to look again.
type News<V, E> = Option<Result<Answer<V>, Error<E>>>;

/// What a caller has to do with a flight.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Role {
    Leads,
    Joins,
    /// Waits for its end, and does not take what comes of it.
    Follows,
}

/// What came of a flight for one of its callers.
struct Flown<V> {
    answer: Answer<V>,
    joined: bool,
}

impl<K, V, E> Drop for Engine<K, V, E> {
    fn drop(&mut self) {
        if let Some(shared) = &self.shared {
            shared.tier.unlisten(&shared.channel);
        }
        #[cfg(feature = "metrics")]
        self.telemetry.publish(self.stats.snapshot(), None);
    }
}

impl<K, V, E> fmt::Debug for Engine<K, V, E> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Cache")
            .field("name", &self.name)
            .field("l2", &self.shared.as_ref().map(|shared| &shared.tier))
            .field("flights", &self.flights.len())
            .field("tasks", &self.tasks.running())
            .finish_non_exhaustive()
    }
}
