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
use super::{Redis, remote_error};
use crate::error::{RemoteError, RemoteKind};

/// MgetBatcher under way from which on they are sent together.
const MIN_IN_FLIGHT: usize = 4;

/// Keys of one command: enough to share its cost, and few enough that a reply keeps nobody waiting.
const MIN_BATCH: usize = 4;
const MAX_BATCH: usize = 64;

type Reply = Result<Option<Bytes>, FredError>;

#[derive(Debug, Default)]
pub(super) struct MgetBatcher {
    in_flight: AtomicUsize,
    /// The batch that is joined, and by whom.
    open: Mutex<Option<(Id, Arc<Batch>)>>,
    /// This user may not send `MGET`.
    mget_denied: AtomicBool,
}

#[derive(Debug)]
struct PendingRead {
    key: Bytes,
    /// Dropped: nobody has sent it.
    reply: oneshot::Sender<Reply>,
}

/// Empty once somebody has taken them.
type Batch = Mutex<Vec<PendingRead>>;

/// A read that is under way, until dropped.
struct InFlightGuard<'a>(&'a MgetBatcher);

impl Drop for InFlightGuard<'_> {
    fn drop(&mut self) {
        self.0.in_flight.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Whoever sends a batch. Dropped with its runtime before it has, it leaves nobody waiting.
struct BatchSender {
    redis: Redis,
    batch: Arc<Batch>,
}

impl Drop for BatchSender {
    fn drop(&mut self) {
        drop(self.redis.shared.mget.take(&self.batch));
    }
}

/// Joined a batch.
struct Joined {
    batch: Arc<Batch>,
    /// In their order.
    index: usize,
    /// There are enough of them.
    full: bool,
}

impl MgetBatcher {
    /// Whether every key needs a command of its own.
    pub(super) fn is_mget_denied(&self) -> bool {
        self.mget_denied.load(Ordering::Relaxed)
    }

    /// Notes that this user may not send `MGET`.
    pub(super) fn note_denial<T>(&self, read: &Result<T, RemoteError>) {
        if read.as_ref().is_err_and(RemoteError::is_denied) {
            self.mget_denied.store(true, Ordering::Relaxed);
        }
    }

    /// Joins those of its runtime, or begins with a batch of their own.
    fn join(&self, runtime: Id, pending: PendingRead, full_at: usize) -> Joined {
        let mut open = self.open.lock();
        let batch = match &*open {
            Some((of, batch)) if *of == runtime => Arc::clone(batch),
            _ => {
                let batch = Arc::default();
                *open = Some((runtime, Arc::clone(&batch)));
                batch
            }
        };
        let (index, full) = {
            let mut collected = batch.lock();
            collected.push(pending);
            (collected.len() - 1, collected.len() >= full_at)
        };
        if full {
            *open = None;
        }
        Joined { batch, index, full }
    }

    /// Nobody joins these any more.
    fn take(&self, batch: &Arc<Batch>) -> Vec<PendingRead> {
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
        self.ensure_started().await;
        self.shared.admit("read")?;
        let batcher = &self.shared.mget;
        let others_in_flight = batcher.in_flight.fetch_add(1, Ordering::Relaxed);
        let in_flight = InFlightGuard(batcher);
        let alone = self.shared.clustered || batcher.is_mget_denied();
        let reply = if others_in_flight < MIN_IN_FLIGHT || alone {
            None
        } else {
            self.get_batched(key, others_in_flight).await
        };
        // The breaker knows of what was answered together.
        let (read, counted) = match reply {
            Some(reply) => (reply, true),
            None => {
                let reply = self.get_single(key.clone()).await;
                (reply.map_err(|error| remote_error("read", error)), false)
            }
        };
        drop(in_flight);
        if !(counted && read.is_ok()) {
            self.shared.report_to_breaker(&read);
        }
        self.shared.note_denial(&read);
        read
    }

    fn get_single(&self, key: Bytes) -> impl Future<Output = Reply> + Send + use<> {
        let command = CustomCommand::new_static("GET", ClusterHash::FirstKey, false);
        let sent = self.send(&self.shared.client(), command, vec![key.into()]);
        async { sent.await.and_then(Value::convert) }
    }

    /// `None`: it was not sent.
    async fn get_batched(
        &self,
        key: &Bytes,
        others_in_flight: usize,
    ) -> Option<Result<Option<Bytes>, RemoteError>> {
        let runtime = Handle::try_current().ok()?;
        let (reply, receiver) = oneshot::channel();
        let key = key.clone();
        let full_at = (others_in_flight + 1)
            .div_ceil(2)
            .clamp(MIN_BATCH, MAX_BATCH);
        let batcher = &self.shared.mget;
        let joined = batcher.join(runtime.id(), PendingRead { key, reply }, full_at);
        if joined.index == 0 || joined.full {
            let (redis, batch) = (self.clone(), Arc::clone(&joined.batch));
            let sender = BatchSender { redis, batch };
            runtime.spawn(sender.send(joined.full));
        }
        // The command has a timeout of its own.
        let watches_timeout = joined.index == 0 || joined.index.is_power_of_two();
        let reply = if watches_timeout {
            match tokio::time::timeout(self.shared.timeout, receiver).await {
                Ok(reply) => reply,
                Err(_) => {
                    // If these have not been sent, the others send theirs alone.
                    drop(batcher.take(&joined.batch));
                    return Some(Err(RemoteError::new(RemoteKind::Timeout, "read")));
                }
            }
        } else {
            receiver.await
        };
        Some(reply.ok()?.map_err(|error| remote_error("read", error)))
    }

    async fn send_batch(&self, pending: Vec<PendingRead>) {
        let commands = u32::try_from(pending.len()).unwrap_or(u32::MAX);
        let (keys, pending): (Vec<Value>, Vec<_>) = pending
            .into_iter()
            .map(|read| (read.key.into(), read.reply))
            .unzip();
        let name = if commands == 1 { "GET" } else { "MGET" };
        let command = CustomCommand::new_static(name, ClusterHash::FirstKey, false);
        let records = self.send(&self.shared.client(), command, keys).await;
        let records = records.and_then(|reply| match commands {
            1 => reply.convert().map(|record| vec![record]),
            _ => reply.convert::<Vec<Option<Bytes>>>(),
        });
        match records {
            Ok(records) if records.len() == pending.len() => {
                self.shared.breaker.record_answers(commands, Instant::now());
                for (read, record) in pending.into_iter().zip(records) {
                    let _ = read.send(Ok(record));
                }
            }
            // Not understood: each of them tries alone.
            Ok(_) => {}
            Err(error) if is_denial(error.details()) && commands > 1 => {
                self.shared.mget.mget_denied.store(true, Ordering::Relaxed);
            }
            Err(error) => {
                for read in pending {
                    let _ = read.send(Err(error.clone()));
                }
            }
        }
    }
}

impl BatchSender {
    async fn send(self, immediately: bool) {
        if !immediately {
            // Until those have run that are ready to.
            tokio::task::yield_now().await;
        }
        let pending = self.redis.shared.mget.take(&self.batch);
        // Nothing is left where they were enough, or somebody has lost patience.
        if !pending.is_empty() {
            self.redis.send_batch(pending).await;
        }
    }
}
