//! What a worker asks of Redis while it holds a partition.

use std::pin::pin;
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::Instant;

use super::event::Event;
use super::partition_manager::set;
use super::sink::WriteId;
use super::worker::{Lost, Worker};
use crate::error::RemoteError;
use crate::l2::redis::queue::{QueueKeys, RawEntry, StreamId};
use crate::random;

/// How soon what Redis did not answer is asked again.
const RETRY_DELAY: Duration = Duration::from_millis(20);
const MAX_RETRY_DELAY: Duration = Duration::from_secs(1);

impl<K, V> Worker<K, V> {
    pub(super) fn keys(&self) -> &QueueKeys {
        &self.core.partitions[usize::from(self.partition)].keys
    }

    /// From here on another worker may have the partition, as far as this one knows.
    fn deadline(&self) -> Instant {
        self.renewed + self.core.config.lease_ttl
    }

    /// The lease was there when the server answered a question that was sent then.
    fn was_renewed(&mut self, sent: Instant) {
        self.renewed = sent;
        self.renew_at = sent + self.core.config.lease_ttl / 3;
    }

    /// Acknowledges what is applied, and reads. Asks until there is an answer or the lease is lost,
    /// which is safe: what a lost answer has acknowledged stays so, and what it has read is read
    /// again.
    pub(super) async fn advance(
        &mut self,
        applied: &[StreamId],
        count: usize,
    ) -> Result<Vec<RawEntry>, Lost> {
        let (mut count, mut delay) = (count, RETRY_DELAY);
        loop {
            let sent = Instant::now();
            if sent >= self.deadline() {
                return Err(Lost);
            }
            let redis = &self.core.redis;
            let entries = redis.queue_advance(self.keys(), &self.lease, applied, count);
            match entries.await {
                Ok(Some(entries)) => {
                    self.was_renewed(sent);
                    self.core.counters.applied.add(applied.len() as u64);
                    return Ok(entries);
                }
                Ok(None) => return Err(Lost),
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
    ) -> Result<(), Lost> {
        let mut delay = RETRY_DELAY;
        loop {
            let sent = Instant::now();
            if sent >= self.deadline() {
                return Err(Lost);
            }
            let (core, keys) = (&self.core, self.keys());
            let max = core.config.max_dead_letters;
            let moved =
                core.redis
                    .queue_dead_letter(keys, &self.lease, entry, error, attempts, max);
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
                Ok(None) => return Err(Lost),
                Err(_) => self.back_off(&mut delay).await,
            }
        }
    }

    /// Stores what failed, for a worker that comes after. Where Redis does not answer only the count
    /// of attempts is at stake.
    pub(super) async fn store_failures(&mut self) -> Result<(), Lost> {
        let sent = Instant::now();
        let stored =
            self.core
                .redis
                .queue_store_failures(self.keys(), &self.lease, self.failure_state);
        match stored.await {
            Ok(true) => self.was_renewed(sent),
            Ok(false) => return Err(Lost),
            Err(_) => {}
        }
        Ok(())
    }

    /// Waits for something, and keeps the lease meanwhile.
    pub(super) async fn keep_lease_during<T>(
        &mut self,
        what: impl Future<Output = T>,
    ) -> Result<T, Lost> {
        let mut what = pin!(what);
        loop {
            tokio::select! {
                biased;
                done = &mut what => return Ok(done),
                () = tokio::time::sleep_until(self.renew_at) => self.renew().await?,
            }
        }
    }

    async fn renew(&mut self) -> Result<(), Lost> {
        let sent = Instant::now();
        if sent >= self.deadline() {
            return Err(Lost);
        }
        let redis = &self.core.redis;
        let renewed: Result<_, RemoteError> =
            redis.queue_advance(self.keys(), &self.lease, &[], 0).await;
        match renewed {
            Ok(Some(_)) => self.was_renewed(sent),
            Ok(None) => return Err(Lost),
            Err(_) => {
                let soon = Instant::now() + self.core.config.lease_ttl / 12;
                self.renew_at = soon.min(self.deadline());
            }
        }
        Ok(())
    }

    /// Waits for so long, or until it is told to stop.
    pub(super) async fn wait(
        &mut self,
        time: Duration,
        stop: &mut watch::Receiver<bool>,
    ) -> Result<(), Lost> {
        self.keep_lease_during(async {
            tokio::select! {
                () = tokio::time::sleep(time) => {}
                () = set(stop) => {}
            }
        })
        .await
    }

    /// Waits until there may be something to read, or the lease is to be renewed, which is the same
    /// question.
    pub(super) async fn wait_for_writes(&self, stop: &mut watch::Receiver<bool>) {
        let written = &self.core.partitions[usize::from(self.partition)].written;
        tokio::select! {
            () = written.notified() => {}
            () = tokio::time::sleep_until(self.renew_at) => {}
            () = set(stop) => {}
        }
    }

    async fn back_off(&self, delay: &mut Duration) {
        let until = Instant::now() + random::duration(*delay / 2, *delay);
        tokio::time::sleep_until(until.min(self.deadline())).await;
        *delay = (*delay * 2).min(MAX_RETRY_DELAY);
    }
}
