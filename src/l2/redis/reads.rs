//! Single reads of many callers, as one command.
//!
//! A `GET` costs the client and the server more than the record does. So while several are under way,
//! the next ones collect until this thread has nothing else to do, which takes no timer, and set out as
//! one `MGET`. They set out at once when they are half of all that are under way: then the server works
//! for the one half while this process deals with the other. Nobody waits for an answer to what was sent
//! before. A lone caller's `GET` is sent as it is. Not in a cluster: a command is for one slot there.
//!
//! Whoever sends a batch is a task of the runtime of those who wait for it, and no other caller joins
//! them: where a runtime stands still, so do they. A single thread of it may stand still with the batch,
//! and so some of them watch the time for all.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use bytes::Bytes;
use fred::error::Error as FredError;
use fred::types::{ClusterHash, CustomCommand, Value};
use parking_lot::Mutex;
use tokio::runtime::{Handle, Id};
use tokio::sync::oneshot;
use tokio::time::Instant;

use super::errors::is_denial;
use super::{Redis, remote};
use crate::error::{RemoteError, RemoteKind};

/// Reads under way from which on they are sent together.
const MANY: usize = 4;

/// Keys of one command: enough to share its cost, and few enough that a reply keeps nobody waiting.
const LEAST: usize = 4;
const MOST: usize = 64;

type Found = Result<Option<Bytes>, FredError>;

#[derive(Debug, Default)]
pub(super) struct Reads {
    under_way: AtomicUsize,
    /// The batch that is joined, and by whom.
    open: Mutex<Option<(Id, Arc<Batch>)>>,
    /// This user may not send `MGET`.
    apart: AtomicBool,
}

#[derive(Debug)]
struct Waiting {
    key: Bytes,
    /// Dropped: nobody has sent it.
    found: oneshot::Sender<Found>,
}

/// Empty once somebody has taken them.
type Batch = Mutex<Vec<Waiting>>;

/// A read that is under way, until dropped.
struct UnderWay<'a>(&'a Reads);

impl Drop for UnderWay<'_> {
    fn drop(&mut self) {
        self.0.under_way.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Whoever sends a batch. Dropped with its runtime before it has, it leaves nobody waiting.
struct Sender {
    redis: Redis,
    batch: Arc<Batch>,
}

impl Drop for Sender {
    fn drop(&mut self) {
        drop(self.redis.shared.reads.take(&self.batch));
    }
}

/// Joined a batch.
struct Joined {
    batch: Arc<Batch>,
    /// In their order.
    place: usize,
    /// There are enough of them.
    full: bool,
}

impl Reads {
    /// Whether every key needs a command of its own.
    pub(super) fn are_apart(&self) -> bool {
        self.apart.load(Ordering::Relaxed)
    }

    /// Notes that this user may not send `MGET`.
    pub(super) fn denied<T>(&self, read: &Result<T, RemoteError>) {
        if read.as_ref().is_err_and(RemoteError::is_denied) {
            self.apart.store(true, Ordering::Relaxed);
        }
    }

    /// Joins those of its runtime, or begins with a batch of their own.
    fn join(&self, runtime: Id, waiting: Waiting, enough: usize) -> Joined {
        let mut open = self.open.lock();
        let batch = match &*open {
            Some((of, batch)) if *of == runtime => Arc::clone(batch),
            _ => {
                let batch = Arc::default();
                *open = Some((runtime, Arc::clone(&batch)));
                batch
            }
        };
        let (place, full) = {
            let mut collected = batch.lock();
            collected.push(waiting);
            (collected.len() - 1, collected.len() >= enough)
        };
        if full {
            *open = None;
        }
        Joined { batch, place, full }
    }

    /// Nobody joins these any more.
    fn take(&self, batch: &Arc<Batch>) -> Vec<Waiting> {
        let mut open = self.open.lock();
        if open
            .as_ref()
            .is_some_and(|(_, open)| Arc::ptr_eq(open, batch))
        {
            *open = None;
        }
        drop(open);
        std::mem::take(&mut *batch.lock())
    }
}

impl Redis {
    pub(crate) async fn get(&self, key: &Bytes) -> Result<Option<Bytes>, RemoteError> {
        self.ready().await;
        self.shared.admit("read")?;
        let reads = &self.shared.reads;
        let others = reads.under_way.fetch_add(1, Ordering::Relaxed);
        let under_way = UnderWay(reads);
        let apart = self.shared.clustered || reads.are_apart();
        let found = if others < MANY || apart {
            None
        } else {
            self.get_with_others(key, others).await
        };
        // The breaker knows of what was answered together.
        let (read, known) = match found {
            Some(found) => (found, true),
            None => {
                let found = self.get_alone(key.clone()).await;
                (found.map_err(|error| remote("read", error)), false)
            }
        };
        drop(under_way);
        if !(known && read.is_ok()) {
            self.shared.answered(&read);
        }
        self.shared.note_denial(&read);
        read
    }

    fn get_alone(&self, key: Bytes) -> impl Future<Output = Found> + Send + use<> {
        let command = CustomCommand::new_static("GET", ClusterHash::FirstKey, false);
        let sent = self.send(&self.shared.client(), command, vec![key.into()]);
        async { sent.await.and_then(Value::convert) }
    }

    /// `None`: it was not sent.
    async fn get_with_others(
        &self,
        key: &Bytes,
        others: usize,
    ) -> Option<Result<Option<Bytes>, RemoteError>> {
        let runtime = Handle::try_current().ok()?;
        let (found, mine) = oneshot::channel();
        let key = key.clone();
        let enough = (others + 1).div_ceil(2).clamp(LEAST, MOST);
        let reads = &self.shared.reads;
        let joined = reads.join(runtime.id(), Waiting { key, found }, enough);
        if joined.place == 0 || joined.full {
            let (redis, batch) = (self.clone(), Arc::clone(&joined.batch));
            let sender = Sender { redis, batch };
            runtime.spawn(sender.send(joined.full));
        }
        // The command has a timeout of its own.
        let watches = joined.place == 0 || joined.place.is_power_of_two();
        let found = if watches {
            match tokio::time::timeout(self.shared.timeout, mine).await {
                Ok(found) => found,
                Err(_) => {
                    // If these have not been sent, the others send theirs alone.
                    drop(reads.take(&joined.batch));
                    return Some(Err(RemoteError::new(RemoteKind::Timeout, "read")));
                }
            }
        } else {
            mine.await
        };
        Some(found.ok()?.map_err(|error| remote("read", error)))
    }

    async fn send_together(&self, waiting: Vec<Waiting>) {
        let commands = u32::try_from(waiting.len()).unwrap_or(u32::MAX);
        let (keys, waiting): (Vec<Value>, Vec<_>) = waiting
            .into_iter()
            .map(|one| (one.key.into(), one.found))
            .unzip();
        let name = if commands == 1 { "GET" } else { "MGET" };
        let command = CustomCommand::new_static(name, ClusterHash::FirstKey, false);
        let records = self.send(&self.shared.client(), command, keys).await;
        let records = records.and_then(|found| match commands {
            1 => found.convert().map(|record| vec![record]),
            _ => found.convert::<Vec<Option<Bytes>>>(),
        });
        match records {
            Ok(records) if records.len() == waiting.len() => {
                self.shared.breaker.note_answers(commands, Instant::now());
                for (one, record) in waiting.into_iter().zip(records) {
                    let _ = one.send(Ok(record));
                }
            }
            // Not understood: each of them tries alone.
            Ok(_) => {}
            Err(error) if is_denial(error.details()) && commands > 1 => {
                self.shared.reads.apart.store(true, Ordering::Relaxed);
            }
            Err(error) => {
                for one in waiting {
                    let _ = one.send(Err(error.clone()));
                }
            }
        }
    }
}

impl Sender {
    async fn send(self, at_once: bool) {
        if !at_once {
            // Until those have run that are ready to.
            tokio::task::yield_now().await;
        }
        let waiting = self.redis.shared.reads.take(&self.batch);
        // Nothing is left where they were enough, or somebody has lost patience.
        if !waiting.is_empty() {
            self.redis.send_together(waiting).await;
        }
    }
}
