//! What a worker asks of Redis while it holds a partition.

use std::pin::pin;
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::Instant;

use super::event::Event;
use super::sink::WriteId;
use super::steward::set;
use super::worker::{Lost, Worker};
use crate::error::RemoteError;
use crate::l2::redis::queue::{QueueKeys, RawEntry, StreamId};
use crate::random;

/// How soon what Redis did not answer is asked again.
const RETRY: Duration = Duration::from_millis(20);
const MOST_RETRY: Duration = Duration::from_secs(1);

impl<K, V> Worker<K, V> {
    pub(super) fn keys(&self) -> &QueueKeys {
        &self.core.partitions[usize::from(self.number)].keys
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
        let (mut count, mut pause) = (count, RETRY);
        loop {
            let sent = Instant::now();
            if sent >= self.deadline() {
                return Err(Lost);
            }
            let redis = &self.core.redis;
            let entries = redis.queue_advance(self.keys(), &self.hold, applied, count);
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
                    self.pause(&mut pause).await;
                }
            }
        }
    }

    /// Moves an entry to the dead letters.
    pub(super) async fn bury(
        &mut self,
        entry: StreamId,
        id: WriteId,
        error: &str,
        attempts: u32,
    ) -> Result<(), Lost> {
        let mut pause = RETRY;
        loop {
            let sent = Instant::now();
            if sent >= self.deadline() {
                return Err(Lost);
            }
            let (core, keys) = (&self.core, self.keys());
            let max = core.config.max_dead_letters;
            let buried = core
                .redis
                .queue_bury(keys, &self.hold, entry, error, attempts, max);
            match buried.await {
                Ok(Some(dropped)) => {
                    self.was_renewed(sent);
                    self.core.counters.dead_lettered.add(1);
                    self.core.counters.dead_letters_dropped.add(dropped);
                    self.core.tell(&Event::DeadLettered {
                        partition: self.number,
                        id,
                        error: error.to_owned(),
                        dropped,
                    });
                    return Ok(());
                }
                Ok(None) => return Err(Lost),
                Err(_) => self.pause(&mut pause).await,
            }
        }
    }

    /// Stores what failed, for a worker that comes after. Where Redis does not answer only the count
    /// of attempts is at stake.
    pub(super) async fn note(&mut self) -> Result<(), Lost> {
        let sent = Instant::now();
        let noted = self
            .core
            .redis
            .queue_note(self.keys(), &self.hold, self.noted);
        match noted.await {
            Ok(true) => self.was_renewed(sent),
            Ok(false) => return Err(Lost),
            Err(_) => {}
        }
        Ok(())
    }

    /// Waits for something, and keeps the lease meanwhile.
    pub(super) async fn keep<T>(&mut self, what: impl Future<Output = T>) -> Result<T, Lost> {
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
            redis.queue_advance(self.keys(), &self.hold, &[], 0).await;
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
        self.keep(async {
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
        let written = &self.core.partitions[usize::from(self.number)].written;
        tokio::select! {
            () = written.notified() => {}
            () = tokio::time::sleep_until(self.renew_at) => {}
            () = set(stop) => {}
        }
    }

    async fn pause(&self, pause: &mut Duration) {
        let until = Instant::now() + random::duration(*pause / 2, *pause);
        tokio::time::sleep_until(until.min(self.deadline())).await;
        *pause = (*pause * 2).min(MOST_RETRY);
    }
}
