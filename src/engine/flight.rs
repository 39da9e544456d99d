//! Singleflight: one read or load of a key at a time in this process.
//!
//! | state | how it is entered | what a caller does |
//! |---|---|---|
//! | no flight | | leads: puts a flight into the table and spawns its task |
//! | flying | by the leader, under the shard's lock | joins |
//! | detached | an invalidation, an insert or a gap takes it out of the table | begins a new one |
//! | landed | its task, once: with an answer or an error | has its outcome |
//! | abandoned | its task was dropped with its runtime | tries again |
//!
//! Only a flight that is still in the table when it lands may store into L1; the check and the
//! store are one critical section. A lock is never held across an await.

use std::pin::pin;
use std::sync::Arc;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use hashbrown::HashTable;
use parking_lot::{Mutex, MutexGuard};
use tokio::sync::Notify;
use tokio::time::Instant;
use xxhash_rust::xxh3::xxh3_64_with_seed;

use crate::error::Error;
use crate::l1::Answer;
use crate::random;

/// Shards of the table; a power of two, and no more than the fewest stripes of a fence.
const SHARDS: usize = 64;

/// Errors held for `error_backoff` per shard. When more keys fail at once, those whose time is up
/// go first, then those that end soonest.
const HELD_PER_SHARD: usize = 256;

/// An encoded key with its hash in this process.
#[derive(Clone, Debug)]
pub(crate) struct Id {
    pub(crate) hash: u64,
    pub(crate) encoded: Arc<[u8]>,
}

#[derive(Debug)]
pub(crate) enum Outcome<V, E> {
    Landed(Result<Answer<V>, Error<E>>),
    Abandoned,
}

/// One read or load, and all who wait for it.
#[derive(Debug)]
pub(crate) struct Flight<V, E> {
    pub(crate) id: Id,
    /// Unique in this process: what a loader's own look-ups are compared against.
    pub(crate) serial: u64,
    pub(crate) begun: Instant,
    /// The epoch that it began to read in; `NOT_YET` before.
    epoch: AtomicU64,
    /// Its key was invalidated since it began, and L2 was not told: its lease may still be there, and
    /// is not to be filled against.
    revoked: AtomicBool,
    /// The lease that it waits for is gone, or the flight was detached: look again.
    pub(crate) wake: Notify,
    outcome: OnceLock<Outcome<V, E>>,
    landed: Notify,
}

const NOT_YET: u64 = u64::MAX;

impl<V, E> Flight<V, E> {
    pub(crate) fn new(id: Id) -> Self {
        static SERIAL: AtomicU64 = AtomicU64::new(0);
        Self {
            id,
            serial: SERIAL.fetch_add(1, Ordering::Relaxed),
            begun: Instant::now(),
            epoch: AtomicU64::new(NOT_YET),
            revoked: AtomicBool::new(false),
            wake: Notify::new(),
            outcome: OnceLock::new(),
            landed: Notify::new(),
        }
    }

    /// Begins to read in `epoch`: what is read from now on misses nothing since.
    pub(crate) fn register(&self, epoch: u32) {
        self.epoch.store(u64::from(epoch), Ordering::SeqCst);
    }

    /// The epoch that it reads in, once it reads.
    pub(crate) fn epoch(&self) -> Option<u32> {
        u32::try_from(self.epoch.load(Ordering::SeqCst)).ok()
    }

    /// Keeps it from filling L2.
    pub(crate) fn revoke(&self) {
        self.revoked.store(true, Ordering::SeqCst);
    }

    pub(crate) fn is_revoked(&self) -> bool {
        self.revoked.load(Ordering::SeqCst)
    }

    /// Waits until the flight has landed. Cancel safe.
    pub(crate) async fn outcome(&self) -> &Outcome<V, E> {
        loop {
            // Listen first, then look: a landing between the two is not missed.
            let mut landed = pin!(self.landed.notified());
            landed.as_mut().enable();
            if let Some(outcome) = self.outcome.get() {
                return outcome;
            }
            landed.await;
        }
    }

    /// The first outcome counts.
    pub(crate) fn land(&self, outcome: Outcome<V, E>) {
        let _ = self.outcome.set(outcome);
        self.landed.notify_waiters();
    }
}

/// An error that is answered for a while without a load.
#[derive(Debug)]
struct Held<E> {
    id: Id,
    error: Error<E>,
    until: Instant,
}

#[derive(Debug)]
pub(crate) struct Shard<V, E> {
    flights: HashTable<Arc<Flight<V, E>>>,
    /// Flights that wait for a lease, detached ones too: who hears of a wake-up.
    waiting: HashTable<Arc<Flight<V, E>>>,
    held: HashTable<Held<E>>,
    /// Inserts that are under way; one whose key is changed meanwhile is taken out.
    inserts: HashTable<Arc<Id>>,
}

impl<V, E> Shard<V, E> {
    pub(crate) fn find(&self, id: &Id) -> Option<&Arc<Flight<V, E>>> {
        self.flights
            .find(id.hash, |flight| flight.id.encoded == id.encoded)
    }

    pub(crate) fn insert(&mut self, flight: Arc<Flight<V, E>>) {
        self.flights
            .insert_unique(flight.id.hash, flight, |flight| flight.id.hash);
    }

    /// Whether this very flight is still the one that its key's callers join.
    pub(crate) fn is_current(&self, flight: &Arc<Flight<V, E>>) -> bool {
        self.find(&flight.id)
            .is_some_and(|current| Arc::ptr_eq(current, flight))
    }

    /// Takes the flight out, wherever it is still in.
    pub(crate) fn remove(&mut self, flight: &Arc<Flight<V, E>>) {
        for table in [&mut self.flights, &mut self.waiting] {
            if let Ok(entry) = table.find_entry(flight.id.hash, |other| Arc::ptr_eq(other, flight))
            {
                entry.remove();
            }
        }
    }

    /// Lets the flight hear of wake-ups from now on, until it is removed.
    pub(crate) fn listen(&mut self, flight: &Arc<Flight<V, E>>) {
        let hash = flight.id.hash;
        if self
            .waiting
            .find(hash, |other| Arc::ptr_eq(other, flight))
            .is_none()
        {
            self.waiting
                .insert_unique(hash, Arc::clone(flight), |flight| flight.id.hash);
        }
    }

    /// Wakes the flights that wait for a lease on this key.
    pub(crate) fn wake(&self, hash: u64, encoded: &[u8]) {
        for flight in self.waiting.iter_hash(hash) {
            if *flight.id.encoded == *encoded {
                flight.wake.notify_one();
            }
        }
    }

    /// What a mutation does to what runs on its key. The flight is taken out and handed over: later
    /// callers begin a new one, and if it waits for a lease it looks again, for that lease may be
    /// gone. Whether it may still fill L2 is for the lease to say: a message may be about something
    /// that happened before the flight began.
    pub(crate) fn detach(&mut self, hash: u64, encoded: &[u8]) -> Option<Arc<Flight<V, E>>> {
        let detached = self
            .flights
            .find_entry(hash, |flight| *flight.id.encoded == *encoded)
            .ok()
            .map(|entry| entry.remove().0);
        self.wake(hash, encoded);
        self.inserts.retain(|insert| *insert.encoded != *encoded);
        if let Ok(entry) = self
            .held
            .find_entry(hash, |held| *held.id.encoded == *encoded)
        {
            entry.remove();
        }
        detached
    }

    /// Detaches what began to read in an earlier epoch.
    fn detach_before(&mut self, epoch: u32) {
        self.flights
            .retain(|flight| flight.epoch().is_none_or(|began| began == epoch));
        for flight in &self.waiting {
            flight.wake.notify_one();
        }
    }

    /// An insert begins: until it is settled, this notices whatever changes its key.
    pub(crate) fn begin_insert(&mut self, id: &Arc<Id>) {
        self.inserts
            .insert_unique(id.hash, Arc::clone(id), |id| id.hash);
    }

    /// Takes the insert out. `false`: its key was changed meanwhile, before or after it in L2.
    pub(crate) fn end_insert(&mut self, id: &Arc<Id>) -> bool {
        let entry = self
            .inserts
            .find_entry(id.hash, |other| Arc::ptr_eq(other, id));
        entry.map(|entry| entry.remove()).is_ok()
    }

    /// The error that is to be answered for this key, if its time is not up.
    pub(crate) fn held(&mut self, id: &Id, now: Instant) -> Option<Error<E>> {
        let entry = self
            .held
            .find_entry(id.hash, |held| held.id.encoded == id.encoded)
            .ok()?;
        if entry.get().until > now {
            return Some(entry.get().error.clone());
        }
        entry.remove();
        None
    }

    pub(crate) fn hold(&mut self, id: &Id, error: Error<E>, until: Instant, now: Instant) {
        if self.held.len() >= HELD_PER_SHARD {
            self.held.retain(|held| held.until > now);
        }
        if self.held.len() >= HELD_PER_SHARD {
            let soonest = self.held.iter().map(|held| held.until).min();
            self.held.retain(|held| Some(held.until) != soonest);
        }
        match self
            .held
            .find_mut(id.hash, |held| held.id.encoded == id.encoded)
        {
            Some(held) => (held.error, held.until) = (error, until),
            None => {
                let held = Held {
                    id: id.clone(),
                    error,
                    until,
                };
                self.held.insert_unique(id.hash, held, |held| held.id.hash);
            }
        }
    }
}

#[derive(Debug)]
pub(crate) struct Flights<V, E> {
    /// Guards the flights and held errors of its keys, and the order of: bump of a generation,
    /// store into L1, landing. Nothing is awaited and no tier is called under it.
    shards: Box<[Mutex<Shard<V, E>>]>,
    seed: u64,
}

impl<V, E> Flights<V, E> {
    pub(crate) fn new() -> Self {
        let shard = || {
            Mutex::new(Shard {
                flights: HashTable::new(),
                waiting: HashTable::new(),
                held: HashTable::new(),
                inserts: HashTable::new(),
            })
        };
        Self {
            shards: (0..SHARDS).map(|_| shard()).collect(),
            seed: random::number(),
        }
    }

    pub(crate) fn hash(&self, encoded: &[u8]) -> u64 {
        xxh3_64_with_seed(encoded, self.seed)
    }

    pub(crate) fn id(&self, encoded: Vec<u8>) -> Id {
        Id {
            hash: self.hash(&encoded),
            encoded: encoded.into(),
        }
    }

    pub(crate) fn lock(&self, hash: u64) -> MutexGuard<'_, Shard<V, E>> {
        let shard = usize::try_from(hash & (SHARDS as u64 - 1)).unwrap_or(0);
        self.shards[shard].lock()
    }

    /// What a gap does: flights that began to read before it are detached.
    pub(crate) fn detach_before(&self, epoch: u32) {
        for shard in &self.shards {
            shard.lock().detach_before(epoch);
        }
    }

    /// Wakes the flights that wait for a lease on this key.
    pub(crate) fn wake(&self, encoded: &[u8]) {
        let hash = self.hash(encoded);
        self.lock(hash).wake(hash, encoded);
    }

    /// How many flights and inserts are in the tables.
    pub(crate) fn len(&self) -> usize {
        self.shards
            .iter()
            .map(|shard| {
                let shard = shard.lock();
                shard.flights.len() + shard.waiting.len() + shard.inserts.len()
            })
            .sum()
    }
}
