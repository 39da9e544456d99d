//! The worker of one partition: it reads entries, has the sink apply them, and acknowledges them.
//!
//! The order of a key's writes is kept by four rules. They are in one stream. The oldest
//! unacknowledged entries are read first, always. Only the holder of the lease is given entries.
//! Nothing beyond a batch is read before the whole batch is acknowledged or dead-lettered. Every
//! effect on the stream is a script that compares the lease first, so a worker that was stopped and
//! goes on changes nothing. Only the call of the sink that was under way cannot be undone.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use tokio::task::{JoinError, JoinHandle};
use tokio::time::Instant;

use super::core::Core;
use super::event::Event;
use super::lease::{LeaseKeeper, LeaseLost};
use super::record::Unreadable;
use super::sink::{Batch, ErasedSink, SinkFailure, Write, WriteId};
use super::stop_signal::StopSignal;
use crate::key::CacheKey;
use crate::l2::redis::queue::{
    FailureState, Granted, PartitionLease, RawEntry, StreamId, parse_id,
};
use crate::random;

/// The worker of one partition.
pub(super) struct Worker<K, V> {
    core: Arc<Core<K, V>>,
    sink: Arc<dyn ErasedSink<K, V>>,
    partition: u16,
    lease: LeaseKeeper<K, V>,
    epoch: u64,
    /// The failures of the partition, as they are stored in Redis too.
    failure_state: FailureState,
    /// Failures in a row.
    failures: u32,
}

/// The writes of a batch, and the entries to acknowledge when it is applied.
struct DecodedBatch<K, V> {
    writes: Vec<Write<K, V>>,
    /// The entry of each write.
    entry_ids: Vec<StreamId>,
    /// The entries of the writes, and of the earlier writes that were coalesced into them.
    acknowledged: Vec<StreamId>,
}

impl<K, V> Worker<K, V>
where
    K: CacheKey,
    V: Send + Sync + 'static,
{
    pub(super) fn new(
        core: Arc<Core<K, V>>,
        sink: Arc<dyn ErasedSink<K, V>>,
        partition: u16,
        lease: PartitionLease,
        claimed: Instant,
        granted: Granted,
    ) -> Self {
        Self {
            lease: LeaseKeeper::new(Arc::clone(&core), partition, lease, claimed),
            core,
            sink,
            partition,
            epoch: granted.epoch,
            failure_state: granted.failure_state,
            failures: 0,
        }
    }

    pub(super) async fn run(mut self, mut stop: StopSignal) {
        let partition = self.partition;
        if self.work(&mut stop).await.is_err() {
            self.core.counters.lost.add(1);
            self.core.emit(&Event::Lost { partition });
            return;
        }
        self.lease.release().await;
    }

    async fn work(&mut self, stop: &mut StopSignal) -> Result<(), LeaseLost> {
        let mut applied = Vec::new();
        loop {
            let stopping = stop.is_set();
            if stopping && applied.is_empty() {
                return Ok(());
            }
            let count = match self.failure_state.isolate {
                _ if stopping => 0,
                Some(_) => 1,
                None => self.core.config.batch_size,
            };
            let mut entries = self.lease.advance(&applied, count).await?;
            applied.clear();
            if entries.is_empty() {
                self.lease.wait_for_writes(stop).await;
                continue;
            }
            let linger = self.core.config.linger;
            if entries.len() < count && !linger.is_zero() {
                self.lease.wait(linger, stop).await?;
                entries = self.lease.advance(&[], count).await?;
            }
            if self.failure_state.isolate < entries.first().map(|entry| entry.id) {
                self.failure_state.isolate = None;
            }
            applied = self.apply(&entries, stop).await?;
        }
    }

    /// Has a batch applied, or a part of it dead-lettered. Answers the entries to acknowledge. The
    /// rest of the batch is read again first.
    async fn apply(
        &mut self,
        entries: &[RawEntry],
        stop: &mut StopSignal,
    ) -> Result<Vec<StreamId>, LeaseLost> {
        let batch = self.decode(entries).await?;
        if batch.writes.is_empty() {
            return Ok(Vec::new());
        }
        let ids: Vec<_> = batch.writes.iter().map(Write::id).collect();
        let attempt = batch.writes[0].attempt;
        let coalesced = batch.acknowledged.len() - ids.len();
        match self.call_sink(batch.writes).await? {
            Ok(()) => {
                self.failures = 0;
                self.core.counters.coalesced.add(coalesced as u64);
                Ok(batch.acknowledged)
            }
            Err(failure) => {
                self.handle_failure(&ids, &batch.entry_ids, attempt, failure, stop)
                    .await?;
                Ok(Vec::new())
            }
        }
    }

    /// Decodes entries, and dead-letters at once those that cannot be decoded.
    async fn decode(&mut self, entries: &[RawEntry]) -> Result<DecodedBatch<K, V>, LeaseLost> {
        let (mut writes, mut entry_ids) = (Vec::new(), Vec::new());
        for entry in entries {
            let write = match (entry.fields.is_empty(), entry.field("w")) {
                (true, _) => Err(Unreadable::Deleted),
                (false, None) => Err(Unreadable::Damaged),
                (false, Some(record)) => self.core.records.decode(record),
            };
            let was = entry.field("was").map(|was| String::from_utf8_lossy(was));
            let was = was.and_then(|was| parse_id(&was));
            let id = WriteId::from(was.unwrap_or(entry.id));
            match write {
                Ok((key, value)) => {
                    let attempt = self.attempt_of(entry.id);
                    entry_ids.push(entry.id);
                    writes.push(Write {
                        id,
                        key,
                        value,
                        attempt,
                    });
                }
                Err(why) => {
                    self.core.counters.unreadable.add(1);
                    let error = why.to_string();
                    self.lease.dead_letter(entry.id, id, &error, 0).await?;
                }
            }
        }
        let acknowledged = entry_ids.clone();
        if self.core.config.coalesce {
            coalesce(&mut writes, &mut entry_ids);
        }
        Ok(DecodedBatch {
            writes,
            entry_ids,
            acknowledged,
        })
    }

    fn attempt_of(&self, entry: StreamId) -> u32 {
        let in_a_batch = u32::from(self.failure_state.isolate >= Some(entry));
        let alone = match self.failure_state.failed {
            Some(failed) if failed == entry => self.failure_state.failures,
            _ => 0,
        };
        alone.saturating_add(in_a_batch).saturating_add(1)
    }

    /// Calls the sink, and keeps the lease meanwhile. The call has ended when this answers.
    async fn call_sink(
        &mut self,
        writes: Vec<Write<K, V>>,
    ) -> Result<Result<(), SinkFailure>, LeaseLost> {
        let batch = Batch {
            partition: self.partition,
            epoch: self.epoch,
            writes,
        };
        self.core.counters.batches.add(1);
        let sink = Arc::clone(&self.sink);
        let mut task = AbortOnDrop(tokio::spawn(sink.apply(batch)));
        let timeout = self.core.config.sink_timeout;
        let call = tokio::time::timeout(timeout, &mut task.0);
        match self.lease.keep_lease_during(call).await {
            Ok(Ok(applied)) => Ok(sink_result(applied)),
            Ok(Err(_)) => {
                task.0.abort();
                match self.lease.keep_lease_during(&mut task.0).await? {
                    // The call had ended just before.
                    Ok(applied) => Ok(applied),
                    Err(_) => {
                        let text = format!("the sink did not end within {timeout:?}");
                        Ok(Err(SinkFailure::new(text)))
                    }
                }
            }
            Err(LeaseLost) => {
                // This process may claim the partition again, but not before the call has ended.
                task.0.abort();
                let _ = (&mut task.0).await;
                Err(LeaseLost)
            }
        }
    }

    async fn handle_failure(
        &mut self,
        ids: &[WriteId],
        entry_ids: &[StreamId],
        attempt: u32,
        failure: SinkFailure,
        stop: &mut StopSignal,
    ) -> Result<(), LeaseLost> {
        self.core.counters.failed.add(1);
        self.core.emit(&Event::Failed {
            partition: self.partition,
            writes: ids.len(),
            error: failure.text.clone(),
        });
        let rejected = failure.rejected;
        if let Some(at) = rejected.and_then(|rejected| ids.iter().position(|id| *id == rejected)) {
            // The other writes were not at fault: they are tried again at once.
            let (entry_id, attempt) = (entry_ids[at], self.attempt_of(entry_ids[at]));
            let dead = self
                .lease
                .dead_letter(entry_id, ids[at], &failure.text, attempt);
            return dead.await;
        }
        if let [entry_id] = entry_ids {
            if attempt >= self.core.config.attempts {
                let dead = self
                    .lease
                    .dead_letter(*entry_id, ids[0], &failure.text, attempt);
                return dead.await;
            }
            let failures = match self.failure_state.failed {
                Some(failed) if failed == *entry_id => self.failure_state.failures,
                _ => 0,
            };
            self.failure_state.failed = Some(*entry_id);
            self.failure_state.failures = failures.saturating_add(1);
        } else {
            self.failure_state.isolate = entry_ids.last().copied();
        }
        self.lease.store_failures(self.failure_state).await?;
        self.failures = self.failures.saturating_add(1);
        self.lease.wait(self.backoff(), stop).await
    }

    /// The pause after this number of failures in a row.
    fn backoff(&self) -> Duration {
        let config = &self.core.config;
        let doublings = self.failures.saturating_sub(1).min(31);
        let wait = config.backoff.saturating_mul(1 << doublings);
        let wait = wait.min(config.max_backoff);
        random::duration(wait / 2, wait)
    }
}

/// Keeps the last write of each key, and its entry.
fn coalesce<K: CacheKey, V>(writes: &mut Vec<Write<K, V>>, entry_ids: &mut Vec<StreamId>) {
    let mut seen = HashSet::new();
    let last: Vec<bool> = writes
        .iter()
        .rev()
        .map(|write| seen.insert(&write.key))
        .collect();
    let kept = || last.iter().rev().copied();
    let mut keep = kept();
    entry_ids.retain(|_| keep.next().unwrap_or(true));
    let mut keep = kept();
    writes.retain(|_| keep.next().unwrap_or(true));
}

/// A task that is aborted when its owner is dropped.
struct AbortOnDrop(JoinHandle<Result<(), SinkFailure>>);

impl Drop for AbortOnDrop {
    fn drop(&mut self) {
        self.0.abort();
    }
}

fn sink_result(task: Result<Result<(), SinkFailure>, JoinError>) -> Result<(), SinkFailure> {
    // The message of a panic went to the panic hook.
    task.unwrap_or_else(|_| Err(SinkFailure::new("the sink panicked")))
}
