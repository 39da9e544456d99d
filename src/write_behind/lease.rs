//! The lease on a partition: how a worker keeps it, and what it asks of Redis while it holds it.

use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use super::core::Core;
use super::event::Event;
use super::sink::WriteId;
use super::stop_signal::StopSignal;
use crate::error::RemoteError;
use crate::l2::redis::queue::{FailureState, PartitionLease, QueueKeys, RawEntry, StreamId};
use crate::random;

/// How soon a question that Redis did not answer is asked again, at first and at most.
const RETRY_DELAY: Duration = Duration::from_millis(20);
const MAX_RETRY_DELAY: Duration = Duration::from_secs(1);

/// The lease is lost: the worker must not touch the partition any more.
pub(super) struct LeaseLost;

/// Keeps the lease on one partition.
pub(super) struct LeaseKeeper<K, V> {
    core: Arc<Core<K, V>>,
    partition: u16,
    lease: PartitionLease,
    /// When the last renewal that is certain was sent. The server counts from a later time.
    renewed: Instant,
    /// When to renew it again.
    renew_at: Instant,
}

impl<K, V> LeaseKeeper<K, V> {
    pub(super) fn new(
        core: Arc<Core<K, V>>,
        partition: u16,
        lease: PartitionLease,
        claimed: Instant,
    ) -> Self {
        Self {
            core,
            partition,
            lease,
            renewed: claimed,
            renew_at: claimed,
        }
    }

    fn keys(&self) -> &QueueKeys {
        &self.core.partitions[usize::from(self.partition)].keys
    }

    /// From this time on another worker may have the partition, as far as this one knows.
    fn deadline(&self) -> Instant {
        self.renewed + self.core.config.lease_ttl
    }

    /// The server confirmed the lease in its answer to a command that was sent then.
    fn was_renewed(&mut self, sent: Instant) {
        self.renewed = sent;
        self.renew_at = sent + self.core.config.lease_ttl / 3;
    }

    /// Acknowledges the applied entries, and reads. Asks until there is an answer or the lease is
    /// lost. To ask again is safe: entries that a lost answer has acknowledged stay so, and entries
    /// that it has read are read again.
    pub(super) async fn advance(
        &mut self,
        applied: &[StreamId],
        count: usize,
    ) -> Result<Vec<RawEntry>, LeaseLost> {
        let (mut count, mut delay) = (count, RETRY_DELAY);
        loop {
            let sent = Instant::now();
            if sent >= self.deadline() {
                return Err(LeaseLost);
            }
            let redis = &self.core.redis;
            let entries = redis.queue_advance(self.keys(), &self.lease, applied, count);
            match entries.await {
                Ok(Some(entries)) => {
                    self.was_renewed(sent);
                    self.core.counters.applied.add(applied.len() as u64);
                    return Ok(entries);
                }
                Ok(None) => return Err(LeaseLost),
                Err(error) => {
                    // The entries may be too large to come in time.
                    if error.is_timeout() && count > 1 {
                        count /= 2;
                    }
                    self.back_off(&mut delay).await;
                }
            }
        }
    }

    /// Moves an entry to the dead letters.
    pub(super) async fn dead_letter(
        &mut self,
        entry: StreamId,
        id: WriteId,
        error: &str,
        attempts: u32,
    ) -> Result<(), LeaseLost> {
        let mut delay = RETRY_DELAY;
        loop {
            let sent = Instant::now();
            if sent >= self.deadline() {
                return Err(LeaseLost);
            }
            let (core, keys) = (&self.core, self.keys());
            let (redis, max) = (&core.redis, core.config.max_dead_letters);
            let moved = redis.queue_dead_letter(keys, &self.lease, entry, error, attempts, max);
            match moved.await {
                Ok(Some(dropped)) => {
                    self.was_renewed(sent);
                    self.core.counters.dead_lettered.add(1);
                    self.core.counters.dead_letters_dropped.add(dropped);
                    self.core.emit(&Event::DeadLettered {
                        partition: self.partition,
                        id,
                        error: error.to_owned(),
                        dropped,
                    });
                    return Ok(());
                }
                Ok(None) => return Err(LeaseLost),
                Err(_) => self.back_off(&mut delay).await,
            }
        }
    }

    /// Stores the failures of the partition for the next worker. If Redis does not answer, only the
    /// count of attempts is lost.
    pub(super) async fn store_failures(&mut self, failures: FailureState) -> Result<(), LeaseLost> {
        let sent = Instant::now();
        let redis = &self.core.redis;
        let stored = redis.queue_store_failures(self.keys(), &self.lease, failures);
        match stored.await {
            Ok(true) => self.was_renewed(sent),
            Ok(false) => return Err(LeaseLost),
            Err(_) => {}
        }
        Ok(())
    }

    /// Waits for a future, and renews the lease meanwhile.
    pub(super) async fn keep_lease_during<T>(
        &mut self,
        what: impl Future<Output = T>,
    ) -> Result<T, LeaseLost> {
        let mut what = pin!(what);
        loop {
            tokio::select! {
                biased;
                done = &mut what => return Ok(done),
                () = tokio::time::sleep_until(self.renew_at) => self.renew().await?,
            }
        }
    }

    async fn renew(&mut self) -> Result<(), LeaseLost> {
        let sent = Instant::now();
        if sent >= self.deadline() {
            return Err(LeaseLost);
        }
        let redis = &self.core.redis;
        let renewed: Result<_, RemoteError> =
            redis.queue_advance(self.keys(), &self.lease, &[], 0).await;
        match renewed {
            Ok(Some(_)) => self.was_renewed(sent),
            Ok(None) => return Err(LeaseLost),
            Err(_) => {
                let soon = Instant::now() + self.core.config.lease_ttl / 12;
                self.renew_at = soon.min(self.deadline());
            }
        }
        Ok(())
    }

    /// Waits for this long, or until the worker is told to stop.
    pub(super) async fn wait(
        &mut self,
        time: Duration,
        stop: &mut StopSignal,
    ) -> Result<(), LeaseLost> {
        self.keep_lease_during(async {
            tokio::select! {
                () = tokio::time::sleep(time) => {}
                () = stop.set() => {}
            }
        })
        .await
    }

    /// Waits until there may be something to read, or the lease is to be renewed: the same command
    /// does both.
    pub(super) async fn wait_for_writes(&self, stop: &mut StopSignal) {
        let written = &self.core.partitions[usize::from(self.partition)].written;
        tokio::select! {
            () = written.notified() => {}
            () = tokio::time::sleep_until(self.renew_at) => {}
            () = stop.set() => {}
        }
    }

    /// Gives the partition up. If the command is lost, the lease ends by itself.
    pub(super) async fn release(&self) {
        let freed = self.core.freed(self.partition);
        let redis = &self.core.redis;
        let _ = redis.queue_release(self.keys(), &self.lease, freed).await;
    }

    async fn back_off(&self, delay: &mut Duration) {
        let until = Instant::now() + random::duration(*delay / 2, *delay);
        tokio::time::sleep_until(until.min(self.deadline())).await;
        *delay = (*delay * 2).min(MAX_RETRY_DELAY);
    }
}
