//! Single reads, which share an `MGET` when several are in flight.
//!
//! A `GET` costs the client and the server more than the record does. While several reads are in
//! flight, the next ones join a batch, which is sent as one `MGET`. The batch is sent when this
//! thread has nothing else to do; that needs no timer. It is sent at once when it holds half of all
//! reads in flight: then the server works on one half while this process handles the other. No read
//! waits for the answer to an earlier command. A lone `GET` is sent as it is. In a cluster there
//! are no batches, because a command is for one slot there.
//!
//! A batch is sent by a task of the runtime whose reads it holds, and reads of another runtime do
//! not join it: a runtime that stands still holds up its own reads only. A single thread of a
//! runtime may stand still with the task. Therefore some of the reads watch the timeout for all.

use std::sync::Arc;

use bytes::Bytes;
use fred::types::{ClusterHash, CustomCommand, Value};
use tokio::runtime::Handle;
use tokio::sync::oneshot;
use tokio::time::Instant;

use super::errors::{is_denial, remote_error};
use super::handle::Redis;
use super::mget_batcher::{Batch, PendingRead, Reply};
use crate::error::{RemoteError, RemoteKind};

/// The number of other reads in flight from which on a read joins a batch.
const MIN_IN_FLIGHT: usize = 4;

/// The bounds of a full batch: enough keys to share the cost of the command, and few enough that
/// its reply is not late.
const MIN_BATCH: usize = 4;
const MAX_BATCH: usize = 64;

/// Sends a batch. If it is dropped before, with its runtime, the reads of the batch are not lost:
/// each is sent alone.
struct BatchSender {
    redis: Redis,
    batch: Arc<Batch>,
}

impl Drop for BatchSender {
    fn drop(&mut self) {
        drop(self.redis.shared.mget.take(&self.batch));
    }
}

impl Redis {
    pub(super) async fn get_one(&self, key: &Bytes) -> Result<Option<Bytes>, RemoteError> {
        self.ensure_started().await;
        self.shared.admit("read")?;
        let batcher = &self.shared.mget;
        let (others_in_flight, in_flight) = batcher.begin();
        let alone = self.shared.clustered || batcher.is_mget_denied();
        let reply = if others_in_flight < MIN_IN_FLIGHT || alone {
            None
        } else {
            self.get_batched(key, others_in_flight).await
        };
        // For a batch that was answered, its sender has told the breaker.
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

    /// Reads as part of a batch. `None`: the read was not sent.
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
        // The command has a timeout of its own, but the batch may never be sent.
        let watches_timeout = joined.index == 0 || joined.index.is_power_of_two();
        let reply = if watches_timeout {
            match tokio::time::timeout(self.shared.timeout, receiver).await {
                Ok(reply) => reply,
                Err(_) => {
                    // If the batch was not sent, its other reads are sent alone now.
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
            // The reply was not understood: each read is sent alone.
            Ok(_) => {}
            Err(error) if is_denial(error.details()) && commands > 1 => {
                self.shared.mget.set_mget_denied();
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
            // Lets the tasks that are ready run first: their reads may join.
            tokio::task::yield_now().await;
        }
        let pending = self.redis.shared.mget.take(&self.batch);
        // Empty if the batch was full and sent before, or if a read timed out.
        if !pending.is_empty() {
            self.redis.send_batch(pending).await;
        }
    }
}
