//! Loads of many keys with one call of `load_many`.
//!
//! Every key keeps its own flight, lease and fence: what happens to one of them does not concern the
//! others. What they share is a place among `max_concurrent_loads` and a call of the loader. They meet
//! twice:
//!
//! | where | who waits for whom | then |
//! |---|---|---|
//! | before the place | `get_many`: for every key that may still need a load; single look-ups: see [`gather`](super::gather) | *chunks*: one place, and one load each |
//! | before the load | the flights of a chunk, for all that have not got their lease yet | `load_many` for those that have |
//!
//! Who goes another way (a value is there after all, somebody else holds the lease) drops its seat,
//! and nobody waits for it any more. Nobody waits for anything but single commands of L2, which have a
//! timeout.

use std::collections::HashSet;
use std::sync::{Arc, OnceLock};

use parking_lot::Mutex;
use tokio::runtime::Handle;
use tokio::sync::{OnceCell, OwnedSemaphorePermit, Semaphore, oneshot};
use tokio::task::AbortHandle;
use tokio::time::Instant;

use super::Engine;
use super::gather::Approach;
use super::load::{self, Nesting};
use super::places::{self, Hopeless, Places, Turn};
use crate::erased::{AnyEntry, AnyError, AnyKey, AnyValue};
use crate::error::Error;
use crate::loader::Loaded;
use crate::telemetry::Trace;

/// How a flight comes to its load.
#[derive(Debug)]
pub(crate) enum Company {
    Alone,
    /// On its way to where single look-ups gather.
    Approaching(Approach),
    /// Alone, but so many of one call at once.
    InTurn(Arc<Semaphore>),
    /// With the other keys of one call.
    Seat(Seat),
}

impl Company {
    pub(crate) fn take(&mut self) -> Self {
        std::mem::replace(self, Self::Alone)
    }
}

/// The flights of one call whose ways have not parted.
pub(crate) struct Formation {
    most: usize,
    /// How many of its chunks are loaded at once.
    turns: Arc<Semaphore>,
    form: Form,
    muster: Mutex<Muster>,
}

/// Makes a chunk of the flights with these numbers.
type Form = Box<dyn Fn(Vec<Arrived>, Arc<Semaphore>) + Send + Sync>;

#[derive(Debug)]
struct Muster {
    undecided: usize,
    arrived: Vec<Arrived>,
}

/// A flight that needs a load.
#[derive(Debug)]
struct Arrived {
    index: usize,
    turn: Turn,
    pass: oneshot::Sender<ChunkSeat>,
}

/// One flight's part in a formation.
#[derive(Debug)]
pub(crate) struct Seat {
    index: usize,
    /// Until it is decided whether the flight needs a load.
    formation: Option<Arc<Formation>>,
}

impl Seat {
    /// Seats for so many keys, in their order.
    pub(crate) fn of(
        engine: &Arc<Engine>,
        runtime: &Handle,
        keys: Vec<AnyKey>,
        most: usize,
        at_once: usize,
    ) -> Vec<Self> {
        let (engine, runtime, count) = (Arc::clone(engine), runtime.clone(), keys.len());
        let form = move |arrived: Vec<Arrived>, turns| {
            let (keys, passes) = arrived
                .into_iter()
                .map(|arrived| ((keys[arrived.index].clone(), arrived.turn), arrived.pass))
                .unzip();
            Chunk::form(&engine, &runtime, keys, passes, Some(turns), None);
        };
        let formation = Arc::new(Formation {
            most,
            turns: Arc::new(Semaphore::new(at_once)),
            form: Box::new(form),
            muster: Mutex::new(Muster {
                undecided: count,
                arrived: Vec::new(),
            }),
        });
        let seat = |index| Self {
            index,
            formation: Some(Arc::clone(&formation)),
        };
        (0..count).map(seat).collect()
    }

    /// The flight needs a load: waits for a seat in a chunk.
    pub(crate) async fn chunk(mut self, turn: Turn) -> Option<ChunkSeat> {
        let (pass, mine) = oneshot::channel();
        let arrived = Arrived {
            index: self.index,
            turn,
            pass,
        };
        if let Some(formation) = self.formation.take() {
            formation.decide(Some(arrived));
        }
        mine.await.ok()
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        if let Some(formation) = self.formation.take() {
            formation.decide(None);
        }
    }
}

impl Formation {
    fn decide(&self, arrived: Option<Arrived>) {
        let mut all = {
            let mut muster = self.muster.lock();
            muster.undecided -= 1;
            muster.arrived.extend(arrived);
            if muster.undecided > 0 {
                return;
            }
            std::mem::take(&mut muster.arrived)
        };
        // As the caller has named them.
        all.sort_unstable_by_key(|arrived| arrived.index);
        while !all.is_empty() {
            let rest = all.split_off(self.most.min(all.len()));
            (self.form)(std::mem::replace(&mut all, rest), Arc::clone(&self.turns));
        }
    }
}

/// Flights that are loaded with one call.
pub(crate) struct Chunk {
    turn: Turn,
    turns: Option<Arc<Semaphore>>,
    held: OnceCell<Arc<Held>>,
    boarding: Mutex<Boarding>,
    load: OnceLock<AbortHandle>,
}

/// What a chunk holds while it loads.
#[derive(Debug)]
struct Held(
    #[expect(dead_code, reason = "held, not read")] Option<OwnedSemaphorePermit>,
    #[expect(dead_code, reason = "held, not read")] Option<places::Place>,
);

struct Boarding {
    undecided: usize,
    inline: Vec<Passenger>,
    move_to_task: Option<Depart>,
}

/// Begins the load.
type Depart = Box<dyn FnOnce(Vec<Passenger>, Option<Arc<Held>>) -> Option<AbortHandle> + Send>;

/// A flight that has its lease, or needs none.
struct Passenger {
    index: usize,
    serial: u64,
    nesting: Nesting,
    previous: Option<AnyEntry>,
    trace: Trace,
    answer: Answer,
}

/// One flight's part in a chunk.
#[derive(Debug)]
pub(crate) struct ChunkSeat {
    index: usize,
    chunk: Arc<Chunk>,
    decided: bool,
}

/// What a chunk's load has found for one of its keys.
#[derive(Debug)]
pub(crate) struct Share {
    found: oneshot::Receiver<Result<Loaded<AnyValue>, Error<AnyError>>>,
    /// The last one to go ends the load.
    _chunk: Arc<Chunk>,
}

impl Chunk {
    /// Hands a seat to each. `until_loaded`: single look-ups that have come together, with what is to
    /// be dropped when the load has ended.
    pub(super) fn form(
        engine: &Arc<Engine>,
        runtime: &Handle,
        keys: Vec<(AnyKey, Turn)>,
        passes: Vec<oneshot::Sender<ChunkSeat>>,
        turns: Option<Arc<Semaphore>>,
        until_loaded: Option<super::gather::Loading>,
    ) {
        let known = keys.iter().all(|(_, turn)| *turn == Turn::Known);
        let (engine, runtime) = (Arc::clone(engine), runtime.clone());
        let move_to_task = move |inline: Vec<Passenger>, held| {
            if inline.is_empty() {
                return None;
            }
            let singles = until_loaded.is_some();
            let inline = inline
                .into_iter()
                .map(|passenger| (keys[passenger.index].0.clone(), passenger))
                .collect();
            let running = engine.tasks.enter_late();
            let loading = async move {
                let _held = (running, held, until_loaded);
                load_all(&engine, inline, singles).await;
            };
            Some(runtime.spawn(loading).abort_handle())
        };
        let chunk = Arc::new(Self {
            turn: if known { Turn::Known } else { Turn::Unknown },
            turns,
            held: OnceCell::new(),
            boarding: Mutex::new(Boarding {
                undecided: passes.len(),
                inline: Vec::new(),
                move_to_task: Some(Box::new(move_to_task)),
            }),
            load: OnceLock::new(),
        });
        for (index, pass) in passes.into_iter().enumerate() {
            // Whoever has gone meanwhile leaves the chunk here.
            let _ = pass.send(ChunkSeat {
                index,
                chunk: Arc::clone(&chunk),
                decided: false,
            });
        }
    }
}

impl Chunk {
    fn decide(&self, passenger: Option<Passenger>) {
        let (mut inline, move_to_task) = {
            let mut boarding = self.boarding.lock();
            boarding.undecided -= 1;
            boarding.inline.extend(passenger);
            if boarding.undecided > 0 {
                return;
            }
            (
                std::mem::take(&mut boarding.inline),
                boarding.move_to_task.take(),
            )
        };
        inline.sort_unstable_by_key(|passenger| passenger.index);
        let load =
            move_to_task.and_then(|move_to_task| move_to_task(inline, self.held.get().cloned()));
        if let Some(load) = load {
            let _ = self.load.set(load);
        }
    }
}

impl Drop for Chunk {
    fn drop(&mut self) {
        if let Some(load) = self.load.get() {
            load.abort();
        }
    }
}

impl ChunkSeat {
    /// Waits until the chunk has its place, until the deadline at most.
    pub(crate) async fn place(
        &self,
        places: Option<&Arc<Places>>,
        deadline: Instant,
    ) -> Result<(), Hopeless> {
        let chunk = &self.chunk;
        let take = || async {
            let turn = match &chunk.turns {
                Some(turns) => {
                    let turn = Arc::clone(turns).acquire_owned();
                    let turn = tokio::time::timeout_at(deadline, turn).await;
                    Some(turn.map_err(|_| Hopeless)?.map_err(|_| Hopeless)?)
                }
                None => None,
            };
            let place = match places {
                Some(places) => Some(places.take(chunk.turn, deadline).await?),
                None => None,
            };
            Ok(Arc::new(Held(turn, place)))
        };
        chunk.held.get_or_try_init(take).await.map(drop)
    }

    /// The flight may load: waits for the others of the chunk.
    pub(crate) fn board(
        mut self,
        serial: u64,
        nesting: Nesting,
        previous: Option<AnyEntry>,
    ) -> Share {
        let (answer, found) = oneshot::channel();
        let passenger = Passenger {
            index: self.index,
            serial,
            nesting,
            previous,
            trace: Trace::here(),
            answer: Answer(Some(answer)),
        };
        self.decided = true;
        self.chunk.decide(Some(passenger));
        Share {
            found,
            _chunk: Arc::clone(&self.chunk),
        }
    }
}

impl Drop for ChunkSeat {
    fn drop(&mut self) {
        if !self.decided {
            self.chunk.decide(None);
        }
    }
}

impl Share {
    pub(crate) async fn found(self) -> Result<Loaded<AnyValue>, Error<AnyError>> {
        match self.found.await {
            Ok(found) => found,
            // The runtime is shutting down, and this task goes with it.
            Err(_) => std::future::pending().await,
        }
    }
}

/// The way back to one who waits for a load. When that panics, he is told.
struct Answer(Option<oneshot::Sender<Result<Loaded<AnyValue>, Error<AnyError>>>>);

impl Answer {
    fn give(mut self, answer: Result<Loaded<AnyValue>, Error<AnyError>>) {
        if let Some(waits) = self.0.take() {
            let _ = waits.send(answer);
        }
    }
}

impl Drop for Answer {
    fn drop(&mut self) {
        if let Some(waits) = self.0.take().filter(|_| std::thread::panicking()) {
            let _ = waits.send(Err(Error::LoadPanicked));
        }
    }
}

/// `singles`: a key that came alone is loaded as one.
async fn load_all(engine: &Engine, mut inline: Vec<(AnyKey, Passenger)>, singles: bool) {
    while !inline.is_empty() {
        // One that was detached may sit here beside its successor: each wants a value of its own.
        let mut keys = HashSet::with_capacity(inline.len());
        let (first, twice) = inline
            .into_iter()
            .partition(|(key, _)| keys.insert(Arc::clone(&key.id.encoded)));
        load_once(engine, first, singles).await;
        inline = twice;
    }
}

async fn load_once(engine: &Engine, inline: Vec<(AnyKey, Passenger)>, singles: bool) {
    // A load of several must wait for none of them, nor for what any of their callers load.
    let around = inline.iter().flat_map(|(_, passenger)| {
        let around = passenger.nesting.serials().iter().copied();
        around.chain([passenger.serial])
    });
    let nesting: Nesting = around.collect();
    let trace = engine.telemetry.load_trace(None, inline.len());
    let mut previous = None;
    let mut answers = Vec::with_capacity(inline.len());
    let mut keys = Vec::with_capacity(inline.len());
    for (key, passenger) in inline {
        trace.follows(&passenger.trace);
        previous = previous.or(passenger.previous);
        answers.push(passenger.answer);
        keys.push(key);
    }
    let loading = async {
        match (&engine.batches, keys.as_slice()) {
            (None, [key, ..]) => engine.loader.load(key, previous).await.map(one),
            (Some(_), [key]) if singles => engine.loader.load(key, previous).await.map(one),
            (Some(batches), keys) => {
                engine.stats.batch_loads.add();
                batches.loader.load_many(keys).await
            }
            (None, []) => Ok(Vec::new()),
        }
    };
    let loaded = trace.within(load::within(nesting, loading)).await;
    trace.ended(if loaded.is_ok() { "found" } else { "error" });
    match loaded {
        Ok(loaded) => {
            for (answer, loaded) in answers.into_iter().zip(loaded) {
                answer.give(Ok(loaded));
            }
        }
        Err(error) => {
            let error = Arc::new(error);
            for answer in answers {
                answer.give(Err(Error::Load(Arc::clone(&error))));
            }
        }
    }
}

fn one(loaded: Loaded<AnyValue>) -> Vec<Loaded<AnyValue>> {
    vec![loaded]
}

impl std::fmt::Debug for Formation {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Formation").finish_non_exhaustive()
    }
}

impl std::fmt::Debug for Chunk {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Chunk").finish_non_exhaustive()
    }
}
