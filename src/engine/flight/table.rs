//! The flight table: at most one read or load per key in this process, and the errors that are held.

use std::sync::Arc;

use hashbrown::HashTable;
use parking_lot::{Mutex, MutexGuard};
use tokio::time::Instant;
use xxhash_rust::xxh3::xxh3_64_with_seed;

use super::{Failure, Flight};
use crate::erased::AnyError;
use crate::error::Error;
use crate::key::HashedKey;
use crate::random;
use crate::ttl;

/// Shards of the table; a power of two, and no more than the fewest stripes of a fence.
const SHARDS: usize = 64;

/// Errors held for `error_backoff` per shard. When more keys fail at once, those whose time is up
/// go first, then those that end soonest.
const HELD_PER_SHARD: usize = 256;

/// An error that is answered for a while without a load.
#[derive(Debug)]
struct HeldError {
    id: HashedKey,
    error: Error<AnyError>,
    until: Instant,
    failures: u32,
    /// Failures later than this are not in a row any more.
    in_a_row_until: Instant,
}

/// The flights, held errors and inserts of the keys of one shard.
#[derive(Debug)]
pub(crate) struct Shard {
    flights: HashTable<Arc<Flight>>,
    /// The flights that hear of wake-ups: those that wait for a lease, detached ones too.
    waiting: HashTable<Arc<Flight>>,
    held_errors: HashTable<HeldError>,
    /// The inserts that are under way. An insert whose key is changed meanwhile is taken out.
    inserts: HashTable<Arc<HashedKey>>,
}

impl Shard {
    pub(crate) fn find(&self, id: &HashedKey) -> Option<&Arc<Flight>> {
        self.flights
            .find(id.hash, |flight| flight.key.id.encoded == id.encoded)
    }

    pub(crate) fn insert(&mut self, flight: Arc<Flight>) {
        self.flights
            .insert_unique(flight.key.id.hash, flight, |flight| flight.key.id.hash);
    }

    /// Whether callers of its key still join this very flight.
    pub(crate) fn is_current(&self, flight: &Arc<Flight>) -> bool {
        self.find(&flight.key.id)
            .is_some_and(|current| Arc::ptr_eq(current, flight))
    }

    /// Takes the flight out of each table that holds it.
    pub(crate) fn remove(&mut self, flight: &Arc<Flight>) {
        for table in [&mut self.flights, &mut self.waiting] {
            if let Ok(entry) =
                table.find_entry(flight.key.id.hash, |other| Arc::ptr_eq(other, flight))
            {
                entry.remove();
            }
        }
    }

    /// Lets the flight hear of wake-ups from now on, until it is removed.
    pub(crate) fn listen(&mut self, flight: &Arc<Flight>) {
        let hash = flight.key.id.hash;
        if self
            .waiting
            .find(hash, |other| Arc::ptr_eq(other, flight))
            .is_none()
        {
            self.waiting
                .insert_unique(hash, Arc::clone(flight), |flight| flight.key.id.hash);
        }
    }

    /// Wakes the flights that wait for a lease on this key.
    pub(crate) fn wake(&self, hash: u64, encoded: &[u8]) {
        for flight in self.waiting.iter_hash(hash) {
            if *flight.key.id.encoded == *encoded {
                flight.wake.notify_one();
            }
        }
    }

    /// What a change of a key does here. The flight of the key is taken out and returned: later callers
    /// begin a new one. If it waits for a lease it looks again, because that lease may be gone. Whether
    /// it may still fill L2 is decided by its lease: a message may be about a change before the flight
    /// began.
    pub(crate) fn detach(&mut self, hash: u64, encoded: &[u8]) -> Option<Arc<Flight>> {
        let detached = self
            .flights
            .find_entry(hash, |flight| *flight.key.id.encoded == *encoded)
            .ok()
            .map(|entry| entry.remove().0);
        if let Some(flight) = &detached {
            self.keep_findable(flight);
        }
        self.wake(hash, encoded);
        self.inserts.retain(|insert| *insert.encoded != *encoded);
        if let Ok(entry) = self
            .held_errors
            .find_entry(hash, |held| *held.id.encoded == *encoded)
        {
            entry.remove();
        }
        detached
    }

    /// Lets `close` find a detached flight that has no task.
    fn keep_findable(&mut self, flight: &Arc<Flight>) {
        if !flight.driver.is_in_task() {
            self.listen(flight);
        }
    }

    /// Detaches the flights that began to read in an earlier epoch.
    fn detach_before(&mut self, epoch: u32) {
        let mut detached = Vec::new();
        self.flights.retain(|flight| {
            let stays = flight.epoch().is_none_or(|began| began == epoch);
            if !stays {
                detached.push(Arc::clone(flight));
            }
            stays
        });
        for flight in &detached {
            self.keep_findable(flight);
        }
        for flight in &self.waiting {
            flight.wake.notify_one();
        }
    }

    /// Registers an insert: until its end, any change of its key takes it out.
    pub(crate) fn begin_insert(&mut self, id: &Arc<HashedKey>) {
        self.inserts
            .insert_unique(id.hash, Arc::clone(id), |id| id.hash);
    }

    /// Takes the insert out. `false`: its key was changed meanwhile, before or after it in L2.
    pub(crate) fn end_insert(&mut self, id: &Arc<HashedKey>) -> bool {
        let entry = self
            .inserts
            .find_entry(id.hash, |other| Arc::ptr_eq(other, id));
        entry.map(|entry| entry.remove()).is_ok()
    }

    /// The error that is answered for this key without a load, and until when.
    pub(crate) fn held_error(
        &self,
        id: &HashedKey,
        now: Instant,
    ) -> Option<(Error<AnyError>, Instant)> {
        let held = self.find_held_error(id)?;
        (held.until > now).then(|| (held.error.clone(), held.until))
    }

    /// The number of loads of this key that have failed in a row.
    pub(crate) fn failures(&self, id: &HashedKey, now: Instant) -> u32 {
        let held = self.find_held_error(id);
        held.map_or(0, |held| {
            if held.in_a_row_until > now {
                held.failures
            } else {
                0
            }
        })
    }

    fn find_held_error(&self, id: &HashedKey) -> Option<&HeldError> {
        self.held_errors
            .find(id.hash, |held| held.id.encoded == id.encoded)
    }

    pub(crate) fn hold(&mut self, id: &HashedKey, failure: Failure, now: Instant) {
        self.clear_failure(id);
        if self.held_errors.len() >= HELD_PER_SHARD {
            self.held_errors.retain(|held| held.in_a_row_until > now);
        }
        if self.held_errors.len() >= HELD_PER_SHARD {
            let soonest = self.held_errors.iter().map(|held| held.until).min();
            self.held_errors.retain(|held| Some(held.until) != soonest);
        }
        let held = HeldError {
            id: id.clone(),
            error: failure.error,
            until: ttl::deadline(now, failure.hold),
            failures: failure.failures,
            in_a_row_until: ttl::deadline(now, failure.hold.saturating_mul(2)),
        };
        self.held_errors
            .insert_unique(id.hash, held, |held| held.id.hash);
    }

    /// Forgets the failures of a key: a load has succeeded.
    pub(crate) fn clear_failure(&mut self, id: &HashedKey) {
        if let Ok(entry) = self
            .held_errors
            .find_entry(id.hash, |held| held.id.encoded == id.encoded)
        {
            entry.remove();
        }
    }
}

#[derive(Debug)]
pub(crate) struct Flights {
    /// A lock guards the flights and held errors of its keys, and the order of: bump of a generation,
    /// store into L1, completion. Nothing is awaited and no tier is called under it.
    shards: Box<[Mutex<Shard>]>,
    seed: u64,
}

impl Flights {
    pub(crate) fn new() -> Self {
        let shard = || {
            Mutex::new(Shard {
                flights: HashTable::new(),
                waiting: HashTable::new(),
                held_errors: HashTable::new(),
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

    pub(crate) fn id(&self, encoded: Vec<u8>) -> HashedKey {
        HashedKey {
            hash: self.hash(&encoded),
            encoded: encoded.into(),
        }
    }

    pub(crate) fn lock(&self, hash: u64) -> MutexGuard<'_, Shard> {
        let shard = usize::try_from(hash & (SHARDS as u64 - 1)).unwrap_or(0);
        self.shards[shard].lock()
    }

    /// What a gap does: flights that began to read before it are detached.
    pub(crate) fn detach_before(&self, epoch: u32) {
        for shard in &self.shards {
            shard.lock().detach_before(epoch);
        }
    }

    /// Gives a task to every flight that has none.
    pub(crate) fn spawn_if_inline(&self) {
        for shard in &self.shards {
            let inline: Vec<_> = {
                let shard = shard.lock();
                let flights = shard.flights.iter().chain(&shard.waiting);
                let inline = flights.filter(|flight| !flight.driver.is_in_task());
                inline.cloned().collect()
            };
            for flight in inline {
                flight.driver.spawn_if_inline();
            }
        }
    }

    /// Wakes the flights that wait for a lease on this key.
    pub(crate) fn wake(&self, encoded: &[u8]) {
        let hash = self.hash(encoded);
        self.lock(hash).wake(hash, encoded);
    }

    /// How many flights callers can join.
    #[cfg(feature = "metrics")]
    pub(crate) fn under_way(&self) -> usize {
        let shards = self.shards.iter();
        shards.map(|shard| shard.lock().flights.len()).sum()
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
