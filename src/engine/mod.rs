//! What happens behind a handle: see the architecture page of the crate.

use std::borrow::Borrow;
use std::fmt;
use std::hash::Hash;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::runtime::Handle;
use tokio::sync::Semaphore;
use tokio::time::Instant;

use self::budget::Budget;
use self::fence::Fence;
use self::flight::{Flight, Flights, Id, Outcome};
use self::marks::Marks;
use self::numbers::Numbers;
use self::repairs::Repairs;
use self::shared::Shared;
use self::tasks::Tasks;
use crate::codec::ErasedCodec;
use crate::config::Config;
use crate::entry::Source;
use crate::error::Error;
use crate::health::{Channel, Event, Health};
use crate::key::{self, CacheKey};
use crate::l1::{Answer, L1, Meta, Weigher};
use crate::l2::Tier;
use crate::loader::ErasedLoader;
use crate::stats::Counters;
use crate::ttl;

mod budget;
mod bus;
pub(crate) mod fence;
mod flight;
mod lease;
mod load;
pub(crate) mod marks;
mod mutate;
mod numbers;
mod read;
mod repairs;
mod shared;
mod tasks;

#[cfg(test)]
#[cfg(feature = "bincode")]
mod tests;

/// One cache: shared by its handles and by the tasks that work for it.
pub(crate) struct Engine<K, V, E> {
    pub(crate) name: String,
    config: Config,
    loader: Arc<dyn ErasedLoader<K, V, E>>,
    l1: L1<K, V>,
    fence: Fence,
    marks: Marks,
    numbers: Mutex<Numbers>,
    repairs: Repairs,
    flights: Flights<V, E>,
    shared: Option<Shared<V>>,
    /// Places for loads.
    places: Option<Arc<Semaphore>>,
    negatives: Budget,
    pub(crate) stats: Counters,
    tasks: Arc<Tasks>,
    born: Instant,
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
        weigher: Option<Weigher<K, V>>,
        shared: Option<(Tier, Arc<dyn ErasedCodec<V>>)>,
    ) -> Arc<Self> {
        let now = Instant::now();
        // With a weigher the capacity is not a number of entries.
        let entries = if weigher.is_some() {
            10_000
        } else {
            config.l1_capacity
        };
        Arc::new(Self {
            name: name.to_owned(),
            loader,
            l1: L1::new(config.l1_capacity, config.negative_capacity, weigher),
            fence: Fence::new(entries, config.hold_off),
            marks: if shared.is_some() {
                Marks::default()
            } else {
                Marks::alone()
            },
            numbers: Mutex::default(),
            repairs: Repairs::default(),
            flights: Flights::new(),
            shared: shared
                .map(|(tier, codec)| Shared::new(name, tier, codec, config.channel_lease)),
            places: config
                .max_concurrent_loads
                .map(|loads| Arc::new(Semaphore::new(loads))),
            negatives: Budget::new(config.negative_capacity, config.negative_ttl, now),
            stats: Counters::default(),
            tasks: Arc::default(),
            born: now,
            config,
        })
    }

    /// The read path, from the caller's side. Cancel safe: what it began goes on without it.
    pub(crate) async fn get<Q>(self: &Arc<Self>, key: &Q) -> Result<Answer<V>, Error<E>>
    where
        K: Borrow<Q>,
        Q: Hash + Eq + ToOwned<Owned = K> + ?Sized,
    {
        if self.tasks.is_closed() {
            return Err(Error::Closed);
        }
        if let Some(answer) = self.l1_hit(key, Instant::now()) {
            self.count(&answer);
            return Ok(answer);
        }
        loop {
            let (flight, leads) = match self.enter(key) {
                Entered::Leads(flight) => (flight, true),
                Entered::Joins(flight) => (flight, false),
                Entered::Answered(answer) => {
                    self.count(&answer);
                    return Ok(answer);
                }
                Entered::Refused(error) => return Err(error),
            };
            // Abandoned: its runtime ended under it. This one lives, so try again here.
            if let Outcome::Landed(landed) = flight.outcome().await {
                // What was joined began before this call, and so perhaps before one of its tags was
                // invalidated.
                if !leads && landed.as_ref().is_ok_and(|answer| !answer.tags_hold()) {
                    continue;
                }
                if !leads {
                    self.stats.coalesced.add();
                }
                return match landed {
                    Ok(answer) => {
                        self.count(answer);
                        let mut answer = answer.clone();
                        if !leads {
                            answer.source = Source::Coalesced;
                        }
                        Ok(answer)
                    }
                    Err(error) => {
                        self.stats.misses.add();
                        Err(error.clone())
                    }
                };
            }
        }
    }

    /// What L1 may answer now.
    pub(crate) fn l1_hit<Q>(&self, key: &Q, now: Instant) -> Option<Answer<V>>
    where
        K: Borrow<Q>,
        Q: Hash + Eq + ?Sized,
    {
        let (answer, meta) = self.l1.get(key, now)?;
        (self.usable(&meta, now) && answer.tags_hold()).then_some(answer)
    }

    fn usable(&self, meta: &Meta, now: Instant) -> bool {
        now < meta.deadline
            && self.fence.holds(meta.stamp)
            && self.shared.as_ref().is_none_or(|shared| {
                shared
                    .link
                    .l1_usable(meta.begun, now, self.config.degraded_l1_ttl)
            })
    }

    /// Whether what a flight reads may be answered to a call that begins now. While nobody hears of
    /// invalidations, one that began too long ago is not joined: the time is bounded within which an
    /// old value is answered.
    fn joinable(&self, begun: Instant, now: Instant) -> bool {
        self.shared.as_ref().is_none_or(|shared| {
            now < ttl::deadline(begun, self.config.channel_lease)
                || shared
                    .link
                    .l1_usable(begun, now, self.config.degraded_l1_ttl)
        })
    }

    /// Joins the flight of a key or begins one, in one critical section.
    fn enter<Q>(self: &Arc<Self>, key: &Q) -> Entered<V, E>
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
        let owned = key.to_owned();
        let id = self.flights.id(key::encode(&owned));
        let nesting = load::nesting();
        let mut shard = self.flights.lock(id.hash);
        if let Some(flight) = shard.find(&id) {
            if nesting.contains(&flight.serial) {
                self.stats.misses.add();
                return Entered::Refused(Error::LoadCycle);
            }
            if self.joinable(flight.begun, Instant::now()) {
                return Entered::Joins(Arc::clone(flight));
            }
            shard.detach(id.hash, &id.encoded);
        }
        // Look again, now that nobody can land:
        //   1. this call misses in L1;
        //   2. another call's flight of the key lands: stored in L1, out of the table;
        //   3. this call finds no flight, and would load what is already there.
        let now = Instant::now();
        if let Some(answer) = self.l1_hit(key, now) {
            return Entered::Answered(answer);
        }
        if let Some(error) = shard.held(&id, now) {
            self.stats.misses.add();
            self.stats.errors_held.add();
            return Entered::Refused(error);
        }
        let flight = Arc::new(Flight::new(id));
        shard.insert(Arc::clone(&flight));
        drop(shard);
        let engine = Arc::clone(self);
        runtime.spawn(read::fly(
            engine,
            Arc::clone(&flight),
            owned,
            nesting,
            running,
        ));
        Entered::Leads(flight)
    }

    /// Counts one answered look-up.
    fn count(&self, answer: &Answer<V>) {
        let stats = &self.stats;
        match answer.source {
            Source::L1 => stats.l1_hits.add(),
            Source::L2 => stats.l2_hits.add(),
            Source::Loader | Source::Coalesced => stats.misses.add(),
        }
        if answer.value.is_none() && matches!(answer.source, Source::L1 | Source::L2) {
            stats.negative_hits.add();
        }
    }

    /// Tells the user. What that does wrong is not our trouble.
    pub(crate) fn tell(&self, event: &Event) {
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
        }
    }

    fn id(&self, key: &K) -> Id {
        self.flights.id(key::encode(key))
    }

    pub(crate) fn is_closed(&self) -> bool {
        self.tasks.is_closed()
    }

    pub(crate) async fn close(&self) {
        self.tasks.close().await;
        self.last_repairs().await;
        if let Some(shared) = &self.shared {
            shared.link.set_down(Instant::now());
            shared.link.nudge.notify_one();
        }
    }

    /// Whether entries that are filled now belong to a cold start.
    fn is_cold(&self, now: Instant) -> bool {
        now.saturating_duration_since(self.born) < self.config.ttl
    }

    /// How long L1 may keep what came from a load that L2 knows nothing of.
    fn unshared_life(&self, life: Duration) -> Duration {
        self.config.l1_life(life).min(self.config.degraded_l1_ttl)
    }
}

enum Entered<V, E> {
    Leads(Arc<Flight<V, E>>),
    Joins(Arc<Flight<V, E>>),
    Answered(Answer<V>),
    Refused(Error<E>),
}

impl<K, V, E> Drop for Engine<K, V, E> {
    fn drop(&mut self) {
        if let Some(shared) = &self.shared {
            shared.tier.unlisten(&shared.channel);
        }
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
