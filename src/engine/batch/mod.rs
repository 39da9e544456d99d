//! Loads of many keys with one call of `load_many`.
//!
//! Every key keeps its own flight, lease and fence: what happens to one of them does not concern the
//! others. What they share is a place among `max_concurrent_loads` and a call of the loader. They meet
//! twice:
//!
//! | where | who waits for whom | then |
//! |---|---|---|
//! | before the place | `get_many`: for every key that may still need a load; single look-ups: see [`gather`](crate::engine::batch::window) | *chunks*: one place, and one load each |
//! | before the load | the flights of a chunk, for all that have not got their lease yet | `load_many` for those that have |
//!
//! Who goes another way (a value is there after all, somebody else holds the lease) drops its seat,
//! and nobody waits for it any more. Nobody waits for anything but single commands of L2, which have a
//! timeout.

pub(crate) mod window;

use std::collections::HashSet;
use std::sync::{Arc, OnceLock};

use parking_lot::Mutex;
use tokio::runtime::Handle;
use tokio::sync::{OnceCell, OwnedSemaphorePermit, Semaphore, oneshot};
use tokio::task::AbortHandle;
use tokio::time::Instant;

use crate::engine::Engine;
use crate::engine::batch::window::ArrivalGuard;
use crate::engine::load::nesting::{self, Nesting};
use crate::engine::load::permits::{self, LoadLimiter, Priority, WouldTimeOut};
use crate::entry::AnyEntry;
use crate::erased::{AnyError, AnyKey, AnyValue};
use crate::error::Error;
use crate::loader::Loaded;
use crate::telemetry::Trace;

/// How a flight comes to its load.
#[derive(Debug)]
pub(crate) enum LoadRoute {
    Single,
    /// On its way to where single look-ups gather.
    Window(ArrivalGuard),
    /// Alone, but so many of one call at once.
    Throttled(Arc<Semaphore>),
    /// With the other keys of one call.
    Batch(PlanTicket),
}

impl LoadRoute {
    pub(crate) fn take(&mut self) -> Self {
        std::mem::replace(self, Self::Single)
    }
}

/// The flights of one call whose ways have not parted.
pub(crate) struct BatchPlan {
    most: usize,
    /// How many of its chunks are loaded at once.
    concurrency: Arc<Semaphore>,
    make_batch: MakeBatch,
    pending: Mutex<Pending>,
}

/// Makes a chunk of the flights with these numbers.
type MakeBatch = Box<dyn Fn(Vec<PlannedLoad>, Arc<Semaphore>) + Send + Sync>;

#[derive(Debug)]
struct Pending {
    undecided: usize,
    arrived: Vec<PlannedLoad>,
}

/// A flight that needs a load.
#[derive(Debug)]
struct PlannedLoad {
    index: usize,
    priority: Priority,
    sender: oneshot::Sender<BatchTicket>,
}

/// One flight's part in a formation.
#[derive(Debug)]
pub(crate) struct PlanTicket {
    index: usize,
    /// Until it is decided whether the flight needs a load.
    plan: Option<Arc<BatchPlan>>,
}

impl PlanTicket {
    /// Seats for so many keys, in their order.
    pub(crate) fn of(
        engine: &Arc<Engine>,
        runtime: &Handle,
        keys: Vec<AnyKey>,
        most: usize,
        at_once: usize,
    ) -> Vec<Self> {
        let (engine, runtime, count) = (Arc::clone(engine), runtime.clone(), keys.len());
        let make_batch = move |arrived: Vec<PlannedLoad>, concurrency| {
            let (keys, senders) = arrived
                .into_iter()
                .map(|arrived| {
                    (
                        (keys[arrived.index].clone(), arrived.priority),
                        arrived.sender,
                    )
                })
                .unzip();
            Batch::form(&engine, &runtime, keys, senders, Some(concurrency), None);
        };
        let plan = Arc::new(BatchPlan {
            most,
            concurrency: Arc::new(Semaphore::new(at_once)),
            make_batch: Box::new(make_batch),
            pending: Mutex::new(Pending {
                undecided: count,
                arrived: Vec::new(),
            }),
        });
        let seat = |index| Self {
            index,
            plan: Some(Arc::clone(&plan)),
        };
        (0..count).map(seat).collect()
    }

    /// The flight needs a load: waits for a seat in a chunk.
    pub(crate) async fn batch(mut self, priority: Priority) -> Option<BatchTicket> {
        let (sender, mine) = oneshot::channel();
        let arrived = PlannedLoad {
            index: self.index,
            priority,
            sender,
        };
        if let Some(plan) = self.plan.take() {
            plan.decide(Some(arrived));
        }
        mine.await.ok()
    }
}

impl Drop for PlanTicket {
    fn drop(&mut self) {
        if let Some(plan) = self.plan.take() {
            plan.decide(None);
        }
    }
}

impl BatchPlan {
    fn decide(&self, arrived: Option<PlannedLoad>) {
        let mut all = {
            let mut pending = self.pending.lock();
            pending.undecided -= 1;
            pending.arrived.extend(arrived);
            if pending.undecided > 0 {
                return;
            }
            std::mem::take(&mut pending.arrived)
        };
        // As the caller has named them.
        all.sort_unstable_by_key(|arrived| arrived.index);
        while !all.is_empty() {
            let rest = all.split_off(self.most.min(all.len()));
            (self.make_batch)(
                std::mem::replace(&mut all, rest),
                Arc::clone(&self.concurrency),
            );
        }
    }
}

/// Flights that are loaded with one call.
pub(crate) struct Batch {
    priority: Priority,
    concurrency: Option<Arc<Semaphore>>,
    held: OnceCell<Arc<HeldPermits>>,
    collecting: Mutex<Collecting>,
    load: OnceLock<AbortHandle>,
}

/// What a chunk holds while it loads.
#[derive(Debug)]
struct HeldPermits(
    #[expect(dead_code, reason = "held, not read")] Option<OwnedSemaphorePermit>,
    #[expect(dead_code, reason = "held, not read")] Option<permits::Permit>,
);

struct Collecting {
    undecided: usize,
    inline: Vec<Member>,
    move_to_task: Option<StartLoad>,
}

/// Begins the load.
type StartLoad =
    Box<dyn FnOnce(Vec<Member>, Option<Arc<HeldPermits>>) -> Option<AbortHandle> + Send>;

/// A flight that has its lease, or needs none.
struct Member {
    index: usize,
    serial: u64,
    nesting: Nesting,
    previous: Option<AnyEntry>,
    trace: Trace,
    answer: Reply,
}

/// One flight's part in a chunk.
#[derive(Debug)]
pub(crate) struct BatchTicket {
    index: usize,
    batch: Arc<Batch>,
    decided: bool,
}

/// What a chunk's load has found for one of its keys.
#[derive(Debug)]
pub(crate) struct MemberResult {
    found: oneshot::Receiver<Result<Loaded<AnyValue>, Error<AnyError>>>,
    /// The last one to go ends the load.
    _chunk: Arc<Batch>,
}

impl Batch {
    /// Hands a seat to each. `until_loaded`: single look-ups that have come together, with what is to
    /// be dropped when the load has ended.
    fn form(
        engine: &Arc<Engine>,
        runtime: &Handle,
        keys: Vec<(AnyKey, Priority)>,
        senders: Vec<oneshot::Sender<BatchTicket>>,
        concurrency: Option<Arc<Semaphore>>,
        until_loaded: Option<window::LoadingBatch>,
    ) {
        let known = keys.iter().all(|(_, priority)| *priority == Priority::Warm);
        let (engine, runtime) = (Arc::clone(engine), runtime.clone());
        let move_to_task = move |inline: Vec<Member>, held| {
            if inline.is_empty() {
                return None;
            }
            let singles = until_loaded.is_some();
            let inline = inline
                .into_iter()
                .map(|member| (keys[member.index].0.clone(), member))
                .collect();
            let running = engine.tasks.enter_late();
            let loading = async move {
                let _held = (running, held, until_loaded);
                load_all(&engine, inline, singles).await;
            };
            Some(runtime.spawn(loading).abort_handle())
        };
        let batch = Arc::new(Self {
            priority: if known {
                Priority::Warm
            } else {
                Priority::Cold
            },
            concurrency,
            held: OnceCell::new(),
            collecting: Mutex::new(Collecting {
                undecided: senders.len(),
                inline: Vec::new(),
                move_to_task: Some(Box::new(move_to_task)),
            }),
            load: OnceLock::new(),
        });
        for (index, sender) in senders.into_iter().enumerate() {
            // Whoever has gone meanwhile leaves the chunk here.
            let _ = sender.send(BatchTicket {
                index,
                batch: Arc::clone(&batch),
                decided: false,
            });
        }
    }
}

impl Batch {
    fn decide(&self, member: Option<Member>) {
        let (mut inline, move_to_task) = {
            let mut collecting = self.collecting.lock();
            collecting.undecided -= 1;
            collecting.inline.extend(member);
            if collecting.undecided > 0 {
                return;
            }
            (
                std::mem::take(&mut collecting.inline),
                collecting.move_to_task.take(),
            )
        };
        inline.sort_unstable_by_key(|member| member.index);
        let load =
            move_to_task.and_then(|move_to_task| move_to_task(inline, self.held.get().cloned()));
        if let Some(load) = load {
            let _ = self.load.set(load);
        }
    }
}

impl Drop for Batch {
    fn drop(&mut self) {
        if let Some(load) = self.load.get() {
            load.abort();
        }
    }
}

impl BatchTicket {
    /// Waits until the chunk has its place, until the deadline at most.
    pub(crate) async fn wait_for_permit(
        &self,
        limiter: Option<&Arc<LoadLimiter>>,
        deadline: Instant,
    ) -> Result<(), WouldTimeOut> {
        let batch = &self.batch;
        let take = || async {
            let priority = match &batch.concurrency {
                Some(concurrency) => {
                    let priority = Arc::clone(concurrency).acquire_owned();
                    let priority = tokio::time::timeout_at(deadline, priority).await;
                    Some(
                        priority
                            .map_err(|_| WouldTimeOut)?
                            .map_err(|_| WouldTimeOut)?,
                    )
                }
                None => None,
            };
            let place = match limiter {
                Some(limiter) => Some(limiter.acquire(batch.priority, deadline).await?),
                None => None,
            };
            Ok(Arc::new(HeldPermits(priority, place)))
        };
        batch.held.get_or_try_init(take).await.map(drop)
    }

    /// The flight may load: waits for the others of the chunk.
    pub(crate) fn join(
        mut self,
        serial: u64,
        nesting: Nesting,
        previous: Option<AnyEntry>,
    ) -> MemberResult {
        let (answer, found) = oneshot::channel();
        let member = Member {
            index: self.index,
            serial,
            nesting,
            previous,
            trace: Trace::here(),
            answer: Reply(Some(answer)),
        };
        self.decided = true;
        self.batch.decide(Some(member));
        MemberResult {
            found,
            _chunk: Arc::clone(&self.batch),
        }
    }
}

impl Drop for BatchTicket {
    fn drop(&mut self) {
        if !self.decided {
            self.batch.decide(None);
        }
    }
}

impl MemberResult {
    pub(crate) async fn found(self) -> Result<Loaded<AnyValue>, Error<AnyError>> {
        match self.found.await {
            Ok(found) => found,
            // The runtime is shutting down, and this task goes with it.
            Err(_) => std::future::pending().await,
        }
    }
}

/// The way back to one who waits for a load. When that panics, he is told.
struct Reply(Option<oneshot::Sender<Result<Loaded<AnyValue>, Error<AnyError>>>>);

impl Reply {
    fn give(mut self, answer: Result<Loaded<AnyValue>, Error<AnyError>>) {
        if let Some(waits) = self.0.take() {
            let _ = waits.send(answer);
        }
    }
}

impl Drop for Reply {
    fn drop(&mut self) {
        if let Some(waits) = self.0.take().filter(|_| std::thread::panicking()) {
            let _ = waits.send(Err(Error::LoadPanicked));
        }
    }
}

/// `singles`: a key that came alone is loaded as one.
async fn load_all(engine: &Engine, mut inline: Vec<(AnyKey, Member)>, singles: bool) {
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

async fn load_once(engine: &Engine, inline: Vec<(AnyKey, Member)>, singles: bool) {
    // A load of several must wait for none of them, nor for what any of their callers load.
    let around = inline.iter().flat_map(|(_, member)| {
        let around = member.nesting.serials().iter().copied();
        around.chain([member.serial])
    });
    let nesting: Nesting = around.collect();
    let trace = engine.telemetry.load_trace(None, inline.len());
    let mut previous = None;
    let mut answers = Vec::with_capacity(inline.len());
    let mut keys = Vec::with_capacity(inline.len());
    for (key, member) in inline {
        trace.follows(&member.trace);
        previous = previous.or(member.previous);
        answers.push(member.answer);
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
    let loaded = trace.within(nesting::within(nesting, loading)).await;
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

impl std::fmt::Debug for BatchPlan {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Formation").finish_non_exhaustive()
    }
}

impl std::fmt::Debug for Batch {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Chunk").finish_non_exhaustive()
    }
}
