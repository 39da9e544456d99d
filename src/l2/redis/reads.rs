//! Single reads of many callers, as one command.
//!
//! A `GET` costs the client and the server more than the record does. So while several are under way,
//! the next ones collect until this thread has nothing else to do, which takes no timer, and set out as
//! one `MGET`. Nobody waits for an answer to what was sent before. A lone caller's `GET` is sent as it
//! is. Not in a cluster: a command is for one slot there.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use bytes::Bytes;
use fred::error::Error as FredError;
use fred::types::{ClusterHash, CustomCommand, Value};
use parking_lot::Mutex;
use tokio::runtime::Handle;
use tokio::sync::oneshot;

use super::errors::is_denial;
use super::{Redis, remote};
use crate::error::{RemoteError, RemoteKind};

/// Reads under way from which on they are sent together.
const MANY: usize = 4;

/// Keys of one command: enough to share its cost, and few enough that a reply keeps nobody waiting.
const MOST: usize = 64;

type Found = Result<Option<Bytes>, FredError>;

#[derive(Debug, Default)]
pub(super) struct Reads {
    under_way: AtomicUsize,
    collected: Mutex<Vec<Waiting>>,
    /// This user may not send `MGET`.
    apart: AtomicBool,
}

#[derive(Debug)]
struct Waiting {
    key: Bytes,
    /// Dropped: nobody has sent it.
    found: oneshot::Sender<Found>,
}

/// A read that is under way, until dropped.
struct UnderWay<'a>(&'a Reads);

impl Drop for UnderWay<'_> {
    fn drop(&mut self) {
        self.0.under_way.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Whoever sends what has been collected. Dropped with its runtime before it has, it leaves nobody
/// waiting.
struct Collector(Option<Redis>);

impl Drop for Collector {
    fn drop(&mut self) {
        if let Some(redis) = self.0.take() {
            drop(redis.shared.reads.take());
        }
    }
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

    fn take(&self) -> Vec<Waiting> {
        std::mem::take(&mut *self.collected.lock())
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
            self.get_with_others(key).await
        };
        let read = match found {
            Some(found) => found,
            None => {
                let found = self.get_alone(key).await;
                found.map_err(|error| remote("read", error))
            }
        };
        drop(under_way);
        self.shared.answered(&read);
        self.shared.saw(&read);
        read
    }

    async fn get_alone(&self, key: &Bytes) -> Found {
        let command = CustomCommand::new_static("GET", ClusterHash::FirstKey, false);
        let client = self.shared.client();
        let read = self.send(&client, command, vec![key.clone().into()]).await;
        read.and_then(Value::convert)
    }

    /// `None`: it was not sent.
    async fn get_with_others(&self, key: &Bytes) -> Option<Result<Option<Bytes>, RemoteError>> {
        let runtime = Handle::try_current().ok()?;
        let (found, mine) = oneshot::channel();
        let is_first = {
            let mut collected = self.shared.reads.collected.lock();
            let key = key.clone();
            collected.push(Waiting { key, found });
            collected.len() == 1
        };
        if is_first {
            runtime.spawn(send_collected(Collector(Some(self.clone()))));
        }
        // The command has a timeout of its own, and whoever sends it may be on a runtime that stands
        // still.
        match tokio::time::timeout(self.shared.timeout, mine).await {
            Ok(Ok(found)) => Some(found.map_err(|error| remote("read", error))),
            Ok(Err(_)) => None,
            Err(_) => {
                // Those who come next collect anew, on a runtime that runs.
                drop(self.shared.reads.take());
                Some(Err(RemoteError::new(RemoteKind::Timeout, "read")))
            }
        }
    }

    async fn send_together(&self, waiting: Vec<Waiting>) {
        if let [_] = waiting.as_slice() {
            for Waiting { key, found } in waiting {
                let _ = found.send(self.get_alone(&key).await);
            }
            return;
        }
        let command = CustomCommand::new_static("MGET", ClusterHash::FirstKey, false);
        let keys = waiting.iter().map(|one| one.key.clone().into()).collect();
        let client = self.shared.client();
        let records = self.send(&client, command, keys).await;
        match records.and_then(Value::convert::<Vec<Option<Bytes>>>) {
            Ok(records) if records.len() == waiting.len() => {
                for (one, record) in waiting.into_iter().zip(records) {
                    let _ = one.found.send(Ok(record));
                }
            }
            // Not understood: each of them tries alone.
            Ok(_) => {}
            Err(error) if is_denial(error.details()) => {
                self.shared.reads.apart.store(true, Ordering::Relaxed);
            }
            Err(error) => {
                for one in waiting {
                    let _ = one.found.send(Err(error.clone()));
                }
            }
        }
    }
}

async fn send_collected(mut collector: Collector) {
    // Until those have run that are ready to.
    tokio::task::yield_now().await;
    let Some(redis) = collector.0.take() else {
        return;
    };
    let mut waiting = redis.shared.reads.take();
    while waiting.len() > MOST {
        let redis = redis.clone();
        let some = waiting.split_off(waiting.len() - MOST);
        tokio::spawn(async move { redis.send_together(some).await });
    }
    // Nothing is left where somebody has lost patience.
    if !waiting.is_empty() {
        redis.send_together(waiting).await;
    }
}
