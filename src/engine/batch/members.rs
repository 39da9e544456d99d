//! One batch: its members, their shared permit, and the replies to them.
//!
//! | step | who waits |
//! |---|---|
//! | every candidate is sent a ticket | |
//! | the batch gets one permit | all ticket holders |
//! | a ticket holder joins as a member, or drops its ticket | the members, until no ticket is undecided |
//! | the load runs, unless there is no member | the members, until the reply |
//! | the last ticket and the last result are dropped | the load is aborted if it still runs |

use std::fmt;
use std::sync::{Arc, OnceLock};

use parking_lot::Mutex;
use tokio::runtime::Handle;
use tokio::sync::{OnceCell, OwnedSemaphorePermit, Semaphore, oneshot};
use tokio::task::AbortHandle;
use tokio::time::Instant;

use crate::engine::load::permits::{LoadLimiter, Permit, Priority, WouldTimeOut};
use crate::entry::AnyEntry;
use crate::erased::{AnyError, AnyKey, AnyValue};
use crate::error::Error;
use crate::loader::Loaded;
use crate::telemetry::Trace;

/// Runs the load of a batch. The engine implements it.
pub(crate) trait BatchRunner: Send + Sync {
    /// Loads the members in a task on `runtime` and replies to each of them.
    ///
    /// `single_alone`: a batch of one key is loaded with `load` instead of `load_many`. `held` is
    /// dropped when the load has ended.
    fn start(
        self: Arc<Self>,
        runtime: &Handle,
        members: Vec<(AnyKey, Member)>,
        single_alone: bool,
        held: HeldWhileLoading,
    ) -> AbortHandle;
}

/// What is released when a load has ended.
pub(crate) type HeldWhileLoading = Box<dyn Send>;

/// The result of a load for one key.
type LoadResult = Result<Loaded<AnyValue>, Error<AnyError>>;

/// A flight that needs a load and is to be sent a ticket.
#[derive(Debug)]
pub(super) struct Candidate {
    pub(super) key: AnyKey,
    pub(super) priority: Priority,
    pub(super) sender: oneshot::Sender<BatchTicket>,
}

/// Flights that are loaded with one call.
pub(crate) struct Batch {
    priority: Priority,
    /// Limits how many batches of one call load at once.
    concurrency: Option<Arc<Semaphore>>,
    held: OnceCell<Arc<HeldPermits>>,
    collecting: Mutex<Collecting>,
    load: OnceLock<AbortHandle>,
}

/// The permits that a batch holds until its load has ended.
#[derive(Debug)]
struct HeldPermits(
    #[expect(dead_code, reason = "held, not read")] Option<OwnedSemaphorePermit>,
    #[expect(dead_code, reason = "held, not read")] Option<Permit>,
);

/// The members so far. The load starts when no ticket is undecided.
struct Collecting {
    undecided: usize,
    members: Vec<Member>,
    start: Option<StartLoad>,
}

/// All that the start of the load needs, apart from the members.
struct StartLoad {
    runner: Arc<dyn BatchRunner>,
    runtime: Handle,
    /// By the index of their tickets.
    keys: Vec<AnyKey>,
    /// `None`: the batch is one of a call of many keys.
    window: Option<HeldWhileLoading>,
}

/// A flight that takes part in the load: it has its lease, or needs none.
pub(crate) struct Member {
    index: usize,
    /// The member's flight, and the flights whose loads it runs in.
    pub(crate) serials: Vec<u64>,
    pub(crate) previous: Option<AnyEntry>,
    pub(crate) trace: Trace,
    pub(crate) reply: Reply,
}

/// One flight's part in a batch. Dropped undecided, it takes the flight out of the batch.
#[derive(Debug)]
pub(crate) struct BatchTicket {
    index: usize,
    batch: Arc<Batch>,
    decided: bool,
}

/// The result of the load for one member.
#[derive(Debug)]
pub(crate) struct MemberResult {
    found: oneshot::Receiver<LoadResult>,
    /// The load is aborted when the last holder of the batch drops it.
    _batch: Arc<Batch>,
}

impl Batch {
    /// Forms a batch and sends every candidate its ticket.
    ///
    /// `window`: the candidates are single look-ups that met in a window; it is dropped when the
    /// load has ended.
    pub(super) fn form(
        runner: Arc<dyn BatchRunner>,
        runtime: Handle,
        candidates: Vec<Candidate>,
        concurrency: Option<Arc<Semaphore>>,
        window: Option<HeldWhileLoading>,
    ) {
        let is_warm = |candidate: &Candidate| candidate.priority == Priority::Warm;
        let priority = if candidates.iter().all(is_warm) {
            Priority::Warm
        } else {
            Priority::Cold
        };
        let (keys, senders): (Vec<_>, Vec<_>) = candidates
            .into_iter()
            .map(|candidate| (candidate.key, candidate.sender))
            .unzip();
        let batch = Arc::new(Self {
            priority,
            concurrency,
            held: OnceCell::new(),
            collecting: Mutex::new(Collecting {
                undecided: senders.len(),
                members: Vec::new(),
                start: Some(StartLoad {
                    runner,
                    runtime,
                    keys,
                    window,
                }),
            }),
            load: OnceLock::new(),
        });
        for (index, sender) in senders.into_iter().enumerate() {
            // A flight that has ended meanwhile drops its ticket here, and so leaves the batch.
            let _ = sender.send(BatchTicket {
                index,
                batch: Arc::clone(&batch),
                decided: false,
            });
        }
    }

    /// One ticket holder joins, or leaves. The last one to decide starts the load.
    fn decide(&self, member: Option<Member>) {
        let (mut members, start) = {
            let mut collecting = self.collecting.lock();
            collecting.undecided -= 1;
            collecting.members.extend(member);
            if collecting.undecided > 0 {
                return;
            }
            let members = std::mem::take(&mut collecting.members);
            (members, collecting.start.take())
        };
        members.sort_unstable_by_key(|member| member.index);
        let load = start.and_then(|start| start.run(members, self.held.get().cloned()));
        if let Some(load) = load {
            let _ = self.load.set(load);
        }
    }
}

impl StartLoad {
    /// `None`: there is nothing to load.
    fn run(self, members: Vec<Member>, permits: Option<Arc<HeldPermits>>) -> Option<AbortHandle> {
        if members.is_empty() {
            return None;
        }
        let single_alone = self.window.is_some();
        let members = members
            .into_iter()
            .map(|member| (self.keys[member.index].clone(), member))
            .collect();
        let held = Box::new((permits, self.window));
        let load = self
            .runner
            .start(&self.runtime, members, single_alone, held);
        Some(load)
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
    /// Waits until the batch has its permit, until the deadline at most.
    pub(crate) async fn wait_for_permit(
        &self,
        limiter: Option<&Arc<LoadLimiter>>,
        deadline: Instant,
    ) -> Result<(), WouldTimeOut> {
        let batch = &self.batch;
        let acquire = || async {
            let of_call = match &batch.concurrency {
                Some(concurrency) => {
                    let acquired = Arc::clone(concurrency).acquire_owned();
                    let acquired = tokio::time::timeout_at(deadline, acquired).await;
                    let acquired = acquired.map_err(|_| WouldTimeOut)?;
                    Some(acquired.map_err(|_| WouldTimeOut)?)
                }
                None => None,
            };
            let permit = match limiter {
                Some(limiter) => Some(limiter.acquire(batch.priority, deadline).await?),
                None => None,
            };
            Ok(Arc::new(HeldPermits(of_call, permit)))
        };
        batch.held.get_or_try_init(acquire).await.map(drop)
    }

    /// The flight takes part in the load, which starts when the other tickets are decided.
    /// `serials`: the flight, and the flights whose loads it runs in.
    pub(crate) fn join(mut self, serials: &[u64], previous: Option<AnyEntry>) -> MemberResult {
        let (reply, found) = oneshot::channel();
        let member = Member {
            index: self.index,
            serials: serials.to_vec(),
            previous,
            trace: Trace::here(),
            reply: Reply(Some(reply)),
        };
        self.decided = true;
        self.batch.decide(Some(member));
        MemberResult {
            found,
            _batch: Arc::clone(&self.batch),
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
    pub(crate) async fn found(self) -> LoadResult {
        match self.found.await {
            Ok(found) => found,
            // The runtime is shutting down, and this task goes with it.
            Err(_) => std::future::pending().await,
        }
    }
}

/// The way back to a member that waits for the load. Dropped by a panic, it says so.
pub(crate) struct Reply(Option<oneshot::Sender<LoadResult>>);

impl Reply {
    pub(crate) fn send(mut self, result: LoadResult) {
        if let Some(sender) = self.0.take() {
            let _ = sender.send(result);
        }
    }
}

impl Drop for Reply {
    fn drop(&mut self) {
        if let Some(sender) = self.0.take().filter(|_| std::thread::panicking()) {
            let _ = sender.send(Err(Error::LoadPanicked));
        }
    }
}

impl fmt::Debug for Batch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Batch").finish_non_exhaustive()
    }
}
