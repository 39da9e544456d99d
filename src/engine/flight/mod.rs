//! Singleflight: one read or load of a key at a time in this process.
//!
//! | state | how it is entered | what a caller does |
//! |---|---|---|
//! | no flight | | leads: puts a flight into the table and flies it, or spawns its task |
//! | flying | by the leader, under the shard's lock | joins |
//! | flying, with an offer | an entry was found that may be answered meanwhile, or if the load fails | takes the offer, or joins |
//! | detached | an invalidation, an insert or a gap takes it out of the table | begins a new one |
//! | landed | once: with an answer or an error | has its outcome |
//! | abandoned | it was dropped with its runtime | tries again |
//!
//! Only a flight that is still in the table when it lands may store into L1; the check and the
//! store are one critical section. A lock is never held across an await.

pub(crate) mod inline;

use std::sync::Arc;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use hashbrown::HashTable;
use parking_lot::{Mutex, MutexGuard};
use tokio::sync::Notify;
use tokio::sync::futures::Notified;
use tokio::time::Instant;
use xxhash_rust::xxh3::xxh3_64_with_seed;

use crate::answer::Answer;
use crate::coherence::fence::Stamp;
use crate::engine::batch::LoadRoute;
use crate::engine::flight::inline::Driver;
use crate::entry::Freshness;
use crate::erased::{AnyError, AnyKey};
use crate::error::Error;
use crate::key::HashedKey;
use crate::lifetime::{Lifetime, Usability, Windows};
use crate::random;
use crate::telemetry::Trace;
use crate::ttl;

/// Shards of the table; a power of two, and no more than the fewest stripes of a fence.
const SHARDS: usize = 64;

/// Errors held for `error_backoff` per shard. When more keys fail at once, those whose time is up
/// go first, then those that end soonest.
const HELD_PER_SHARD: usize = 256;

#[derive(Debug)]
pub(crate) enum Outcome {
    Completed(Result<Answer, Error<AnyError>>),
    Abandoned,
}

/// What a flight is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Purpose {
    /// Callers that take what there is.
    Any,
    /// Callers that take nothing stale.
    Fresh,
    /// A load, whatever there is.
    Load,
    /// To replace this version of the value behind its callers' backs.
    Replace(u64),
}

/// An entry that callers may have while the flight is under way, or if it comes to nothing.
#[derive(Clone, Debug)]
pub(crate) struct Found {
    pub(crate) answer: Answer,
    pub(crate) lifetime: Lifetime,
    /// Of an entry from L1: when it began to be read there, and what must not have happened since. The
    /// flight may have begun later, and may not even have registered.
    pub(crate) of_l1: Option<(Instant, Stamp)>,
    /// Which version of the value it is.
    pub(crate) version_id: u64,
}

impl Found {
    /// As an answer at this moment.
    pub(crate) fn answer_at(&self, now: Instant) -> Answer {
        Answer {
            freshness: self.lifetime.freshness(now),
            ..self.answer.clone()
        }
    }
}

/// One read or load, and all who wait for it.
#[derive(Debug)]
pub(crate) struct Flight {
    pub(crate) key: AnyKey,
    /// Unique in this process: what a loader's own look-ups are compared against.
    pub(crate) serial: u64,
    pub(crate) begun: Instant,
    /// The epoch that it began to read in; `NOT_REGISTERED` before.
    epoch: AtomicU64,
    /// Its key was invalidated since it began, and L2 was not told: its lease may still be there, and
    /// is not to be filled against.
    revoked: AtomicBool,
    pub(crate) purpose: Purpose,
    /// Its callers want to miss nothing that messages have not told yet: L2 is asked for everything.
    pub(crate) past_l1: bool,
    /// A load failed a moment ago: this flight may read and not load, and has this error to answer.
    pub(crate) held_error: Option<Error<AnyError>>,
    /// Failures in a row before it, as far as this process knows.
    pub(crate) failures: u32,
    /// Its load has begun.
    loads: AtomicBool,
    /// Somebody waits for it who takes nothing else.
    awaited: AtomicBool,
    /// The soft timeout is over: who waits may have what is there.
    late: AtomicBool,
    /// L1 was told to let it work.
    suspends_refresh: AtomicBool,
    interim_value: Mutex<Option<Found>>,
    route: Mutex<LoadRoute>,
    /// Who flies it.
    pub(crate) driver: Driver,
    /// The lease that it waits for is gone, or the flight was detached: look again.
    pub(crate) wake: Notify,
    outcome: OnceLock<Outcome>,
    /// It has landed, or there is something else for those who wait.
    changed: Notify,
    trace: OnceLock<Trace>,
}

const NOT_REGISTERED: u64 = u64::MAX;

/// The number of the last flight of this process.
static LAST_SERIAL: AtomicU64 = AtomicU64::new(0);

/// A moment, in numbers of flights: those that begin from now on have later ones.
pub(crate) fn now_in_serials() -> u64 {
    LAST_SERIAL.load(Ordering::SeqCst)
}

impl Flight {
    pub(crate) fn new(key: AnyKey, purpose: Purpose, begun: Instant) -> Self {
        Self {
            key,
            serial: LAST_SERIAL.fetch_add(1, Ordering::SeqCst) + 1,
            begun,
            epoch: AtomicU64::new(NOT_REGISTERED),
            revoked: AtomicBool::new(false),
            purpose,
            past_l1: false,
            held_error: None,
            failures: 0,
            loads: AtomicBool::new(false),
            awaited: AtomicBool::new(false),
            late: AtomicBool::new(false),
            suspends_refresh: AtomicBool::new(false),
            interim_value: Mutex::new(None),
            route: Mutex::new(LoadRoute::Single),
            driver: Driver::default(),
            wake: Notify::new(),
            outcome: OnceLock::new(),
            changed: Notify::new(),
            trace: OnceLock::new(),
        }
    }

    /// Has it come to its load in another way than alone.
    pub(crate) fn set_route(&self, route: LoadRoute) {
        *self.route.lock() = route;
    }

    /// How it comes to its load; from then on it is alone.
    pub(crate) fn take_route(&self) -> LoadRoute {
        self.route.lock().take()
    }

    /// What it does shows there, from now on.
    pub(crate) fn traced(&self, trace: Trace) {
        if Trace::ARE_KEPT {
            let _ = self.trace.set(trace);
        }
    }

    /// Where it shows what it does, or nowhere before it is flown.
    pub(crate) fn trace(&self) -> Trace {
        self.trace.get().cloned().unwrap_or_else(Trace::none)
    }

    /// Its load begins.
    pub(crate) fn begin_load(&self) {
        self.loads.store(true, Ordering::SeqCst);
    }

    pub(crate) fn loads(&self) -> bool {
        self.loads.load(Ordering::SeqCst)
    }

    /// Puts up what callers may have, in the place of an earlier offer.
    pub(crate) fn set_interim(&self, found: Found) {
        *self.interim_value.lock() = Some(found);
        self.changed.notify_waiters();
    }

    /// Whether callers may have something.
    pub(crate) fn has_interim(&self) -> bool {
        self.interim_value.lock().is_some()
    }

    pub(crate) fn interim(&self) -> Option<Found> {
        self.interim_value.lock().clone()
    }

    /// L1 leaves the entry to this flight, which has to say so when it ends.
    pub(crate) fn suspend_refresh(&self) {
        self.suspends_refresh.store(true, Ordering::SeqCst);
    }

    pub(crate) fn suspends_refresh(&self) -> bool {
        self.suspends_refresh.load(Ordering::SeqCst)
    }

    /// The soft timeout is over.
    pub(crate) fn pass_soft_timeout(&self) {
        self.late.store(true, Ordering::SeqCst);
        self.changed.notify_waiters();
    }

    /// What a caller may have at this moment, though the flight has not landed, or has failed. What
    /// comes from L1 only if `usable` says so.
    pub(crate) fn interim_answer(
        &self,
        now: Instant,
        windows: &Windows,
        failed: bool,
        usable: impl FnOnce(Instant, Stamp) -> bool,
    ) -> Option<Answer> {
        let found = self.interim_value.lock();
        let found = found.as_ref()?;
        if !found
            .of_l1
            .is_none_or(|(begun, stamp)| usable(begun, stamp))
        {
            return None;
        }
        let answer = || found.answer_at(now);
        match found.lifetime.usability(now, windows) {
            Usability::Fresh | Usability::Revalidate => Some(answer()),
            Usability::Fallback if failed => Some(Answer {
                freshness: Freshness::StaleOnError,
                ..answer()
            }),
            Usability::Fallback if self.late.load(Ordering::SeqCst) => Some(answer()),
            Usability::Fallback | Usability::Gone => None,
        }
    }

    /// Somebody waits for it who takes no offer.
    pub(crate) fn require_fresh(&self) {
        self.awaited.store(true, Ordering::SeqCst);
    }

    /// Whether nobody waits for it: whoever comes has something to answer.
    pub(crate) fn is_background(&self, windows: &Windows) -> bool {
        if self.awaited.load(Ordering::SeqCst) {
            return false;
        }
        match self.purpose {
            Purpose::Replace(_) => true,
            Purpose::Any => {
                let interim_answer = |now| self.interim_answer(now, windows, false, |_, _| true);
                self.has_interim() && interim_answer(Instant::now()).is_some()
            }
            Purpose::Fresh | Purpose::Load => false,
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

    /// How it ended, once it has.
    pub(crate) fn outcome(&self) -> Option<&Outcome> {
        self.outcome.get()
    }

    /// Waits for the landing, or for something else that callers may have.
    pub(crate) fn state_changed(&self) -> Notified<'_> {
        self.changed.notified()
    }

    /// The first outcome counts.
    pub(crate) fn complete(&self, outcome: Outcome) {
        let _ = self.outcome.set(outcome);
        self.changed.notify_waiters();
        // Nobody waits for it to load any more.
        drop(self.take_route());
    }
}

/// An error that is answered for a while without a load.
#[derive(Debug)]
struct Held {
    id: HashedKey,
    error: Error<AnyError>,
    until: Instant,
    failures: u32,
    /// Failures later than this are not in a row any more.
    in_a_row_until: Instant,
}

/// A failed load, as it is held.
#[derive(Clone, Debug)]
pub(crate) struct Failure {
    pub(crate) error: Error<AnyError>,
    /// For how long there is no other attempt.
    pub(crate) hold: Duration,
    /// It is the last of so many in a row.
    pub(crate) failures: u32,
}

#[derive(Debug)]
pub(crate) struct Shard {
    flights: HashTable<Arc<Flight>>,
    /// Flights that wait for a lease, detached ones too: who hears of a wake-up.
    waiting: HashTable<Arc<Flight>>,
    held: HashTable<Held>,
    /// Inserts that are under way; one whose key is changed meanwhile is taken out.
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

    /// Whether this very flight is still the one that its key's callers join.
    pub(crate) fn is_current(&self, flight: &Arc<Flight>) -> bool {
        self.find(&flight.key.id)
            .is_some_and(|current| Arc::ptr_eq(current, flight))
    }

    /// Takes the flight out, wherever it is still in.
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

    /// What a mutation does to what runs on its key. The flight is taken out and handed over: later
    /// callers begin a new one, and if it waits for a lease it looks again, for that lease may be
    /// gone. Whether it may still fill L2 is for the lease to say: a message may be about something
    /// that happened before the flight began.
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
            .held
            .find_entry(hash, |held| *held.id.encoded == *encoded)
        {
            entry.remove();
        }
        detached
    }

    /// One that is detached and has no task is still found by whoever closes the cache.
    fn keep_findable(&mut self, flight: &Arc<Flight>) {
        if !flight.driver.is_in_task() {
            self.listen(flight);
        }
    }

    /// Detaches what began to read in an earlier epoch.
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

    /// An insert begins: until it is settled, this notices whatever changes its key.
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

    /// The error that is to be answered for this key, and until when.
    pub(crate) fn held(&self, id: &HashedKey, now: Instant) -> Option<(Error<AnyError>, Instant)> {
        let held = self.find_held(id)?;
        (held.until > now).then(|| (held.error.clone(), held.until))
    }

    /// How many loads of this key have failed in a row.
    pub(crate) fn failures(&self, id: &HashedKey, now: Instant) -> u32 {
        let held = self.find_held(id);
        held.map_or(0, |held| {
            if held.in_a_row_until > now {
                held.failures
            } else {
                0
            }
        })
    }

    fn find_held(&self, id: &HashedKey) -> Option<&Held> {
        self.held
            .find(id.hash, |held| held.id.encoded == id.encoded)
    }

    pub(crate) fn hold(&mut self, id: &HashedKey, failure: Failure, now: Instant) {
        self.clear_failure(id);
        if self.held.len() >= HELD_PER_SHARD {
            self.held.retain(|held| held.in_a_row_until > now);
        }
        if self.held.len() >= HELD_PER_SHARD {
            let soonest = self.held.iter().map(|held| held.until).min();
            self.held.retain(|held| Some(held.until) != soonest);
        }
        let held = Held {
            id: id.clone(),
            error: failure.error,
            until: ttl::deadline(now, failure.hold),
            failures: failure.failures,
            in_a_row_until: ttl::deadline(now, failure.hold.saturating_mul(2)),
        };
        self.held.insert_unique(id.hash, held, |held| held.id.hash);
    }

    /// A load has succeeded.
    pub(crate) fn clear_failure(&mut self, id: &HashedKey) {
        if let Ok(entry) = self
            .held
            .find_entry(id.hash, |held| held.id.encoded == id.encoded)
        {
            entry.remove();
        }
    }
}

#[derive(Debug)]
pub(crate) struct Flights {
    /// Guards the flights and held errors of its keys, and the order of: bump of a generation,
    /// store into L1, landing. Nothing is awaited and no tier is called under it.
    shards: Box<[Mutex<Shard>]>,
    seed: u64,
}

impl Flights {
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
