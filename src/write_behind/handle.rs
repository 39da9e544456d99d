//! The handle: how writes are accepted, and how a write-behind is watched and closed.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;

use super::core::Core;
use super::error::WriteError;
use super::event::{Lag, Stats};
use super::record::partition;
use super::sink::WriteId;
use crate::error::RemoteError;
use crate::key::{self, CacheKey};
use crate::l2::TierOperations;
use crate::l2::redis::queue::{Accepted, is_server_error};

/// Accepts writes now; a worker applies them to the source of truth later. See the
/// [module](crate::write_behind) for what may be lost.
///
/// A handle: clones share everything, so no `Arc` is needed. When the last one is dropped, the
/// worker of this process stops in the background, as after [`close`](Self::close).
pub struct WriteBehind<K, V> {
    pub(super) inner: Arc<Inner<K, V>>,
}

pub(super) struct Inner<K, V> {
    pub(super) core: Arc<Core<K, V>>,
    pub(super) stop: watch::Sender<bool>,
    /// Closed when the worker has ended.
    pub(super) ended: watch::Receiver<()>,
}

impl<K: CacheKey, V> WriteBehind<K, V> {
    /// Writes a value. `Ok`: the write is accepted. It is in Redis, and the sink will be given it
    /// at least once. The sink will see the same id. It is greater than those of all earlier writes
    /// of this key. Its [`WriteId::version`] can go into the cache with the value.
    ///
    /// This is one command. The first one takes two round trips. Two writes of one key that are
    /// under way at once are accepted in either order; to keep the order, wait for the first.
    ///
    /// # Errors
    ///
    /// [`WriteError`]. All but [`Unknown`](WriteError::Unknown) say that the write was not
    /// accepted.
    ///
    /// # Cancel safety
    ///
    /// If the future is dropped, the write may have been accepted or not, as after `Unknown`.
    pub async fn write(&self, key: &K, value: &V) -> Result<WriteId, WriteError> {
        self.accept(key, Some(value)).await
    }

    /// Writes a deletion: the sink is given the key [without a value](super::Write::value). In
    /// every other respect it is a [`write`](Self::write), with the same errors and cancel safety.
    pub async fn delete(&self, key: &K) -> Result<WriteId, WriteError> {
        self.accept(key, None).await
    }

    async fn accept(&self, key: &K, value: Option<&V>) -> Result<WriteId, WriteError> {
        let core = &self.inner.core;
        let record = match self.record(key, value) {
            Ok(record) => record,
            Err(error) => return self.count(Err(error)),
        };
        let (config, number) = (&core.config, self.partition(key));
        let keys = &core.partitions[usize::from(number)].keys;
        let accepted = core.redis.queue_accept(
            keys,
            config.partitions,
            config.max_unapplied,
            record,
            core.written(number),
        );
        self.count(write_result(accepted.await))
    }

    fn record(&self, key: &K, value: Option<&V>) -> Result<Vec<u8>, WriteError> {
        if *self.inner.stop.borrow() {
            return Err(WriteError::Closed);
        }
        let core = &self.inner.core;
        let record = core.records.encode(key, value);
        let record = record.map_err(WriteError::Unencodable)?;
        if record.len() > core.config.max_write_bytes {
            let bytes = record.len();
            return Err(WriteError::TooLarge { bytes });
        }
        Ok(record)
    }

    /// The partition of a key, from zero. [`Batch::partition`](super::Batch::partition) is the same
    /// for its writes.
    pub fn partition(&self, key: &K) -> u16 {
        partition(&key::encode(key), self.inner.core.config.partitions)
    }
}

impl<K, V> WriteBehind<K, V> {
    pub(super) fn count(&self, result: Result<WriteId, WriteError>) -> Result<WriteId, WriteError> {
        let counters = &self.inner.core.counters;
        match &result {
            Ok(_) => counters.accepted.add(1),
            Err(WriteError::Unknown(_)) => counters.unknown.add(1),
            Err(_) => counters.refused.add(1),
        }
        result
    }

    /// How far the source of truth is behind, over all partitions and processes. This is two
    /// commands for each partition.
    ///
    /// ```
    /// # async fn watch(views: tidegate::write_behind::WriteBehind<u64, u64>) -> Result<(), Box<dyn std::error::Error>> {
    /// let lag = views.lag().await?;
    /// println!("{} writes behind, by {:?}", lag.unapplied, lag.oldest.unwrap_or_default());
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    ///
    /// [`RemoteError`] if Redis does not answer.
    pub async fn lag(&self) -> Result<Lag, RemoteError> {
        let core = &self.inner.core;
        let (mut lag, mut oldest) = (Lag::default(), None::<u64>);
        for partition in &core.partitions {
            let (length, first) = core.redis.queue_backlog(&partition.keys.stream).await?;
            lag.unapplied += length;
            if let Some((ms, _)) = first {
                oldest = Some(oldest.map_or(ms, |oldest| oldest.min(ms)));
            }
        }
        lag.oldest = oldest
            .zip(core.redis.now_ms())
            .map(|(oldest, now)| Duration::from_millis(now.saturating_sub(oldest)));
        Ok(lag)
    }

    /// The counters of this process since the write-behind was opened.
    pub fn stats(&self) -> Stats {
        self.inner.core.counters.snapshot()
    }

    /// Refuses further writes, waits for the batches that are being applied, acknowledges them, and
    /// gives the partitions of this process up, so that other workers go on at once. Accepted
    /// writes that are not applied stay in Redis, for other workers or for the next start.
    ///
    /// It takes as long as the sink's calls. If Redis does not answer, it takes up to `lease_ttl`
    /// more. Writes that are under way may still be accepted.
    ///
    /// # Cancel safety
    ///
    /// If the future is dropped, the closing goes on. `close` can be called again.
    pub async fn close(&self) {
        self.inner.stop.send_replace(true);
        let mut ended = self.inner.ended.clone();
        // The error is the signal: the worker has ended and dropped the sender.
        while ended.changed().await.is_ok() {}
    }
}

/// Makes the answer to a write the result for the caller.
pub(super) fn write_result(accepted: Result<Accepted, RemoteError>) -> Result<WriteId, WriteError> {
    match accepted {
        Ok(Accepted::Id(id)) => Ok(id.into()),
        Ok(Accepted::Full(unapplied)) => Err(WriteError::Full { unapplied }),
        Ok(Accepted::Partitions(there)) => Err(WriteError::Partitions { there }),
        Ok(Accepted::Gone) => Err(WriteError::NoSuchLetter),
        Ok(Accepted::NotConnected) => Err(WriteError::Refused(RemoteError::new(
            crate::error::RemoteKind::Unreachable,
            "write",
        ))),
        // An error of the server itself comes before the write. A lost connection may come after
        // it.
        Err(error) if is_server_error(&error) => Err(WriteError::Refused(error)),
        Err(error) => Err(WriteError::Unknown(error)),
    }
}

impl<K, V> Clone for WriteBehind<K, V> {
    fn clone(&self) -> Self {
        Self {
            inner: Arc::clone(&self.inner),
        }
    }
}

impl<K, V> Drop for Inner<K, V> {
    fn drop(&mut self) {
        self.stop.send_replace(true);
    }
}

impl<K, V> fmt::Debug for WriteBehind<K, V> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("WriteBehind")
            .field("config", &self.inner.core.config)
            .field("stats", &self.stats())
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::write_behind::{Batch, DeadLetter, Event, OpenError, Sink, Write};

    fn handle<T: Send + Sync + Clone + fmt::Debug + Unpin + 'static>() {}
    fn error<T: std::error::Error + Send + Sync + 'static>() {}
    fn shared<T: Send + Sync + fmt::Debug>() {}
    fn future<T: Send>(_: &T) {}

    // A value that is neither `Clone` nor `Debug`.
    #[derive(serde::Serialize, serde::Deserialize)]
    struct Opaque;

    struct Nowhere;

    impl Sink for Nowhere {
        type Key = u64;
        type Value = Opaque;
        type Error = crate::BoxError;

        async fn apply(&self, _: &Batch<u64, Opaque>) -> Result<(), crate::BoxError> {
            Ok(())
        }
    }

    #[test]
    fn public_types_can_be_shared_and_public_futures_sent() {
        handle::<WriteBehind<u64, Opaque>>();
        handle::<Event>();
        handle::<WriteId>();
        error::<OpenError>();
        error::<WriteError>();
        shared::<Batch<u64, u8>>();
        shared::<Write<u64, u8>>();
        shared::<DeadLetter<u64, u8>>();
        let redis = crate::Redis::open("redis://127.0.0.1:1").expect("a sound URL");
        future(&WriteBehind::builder("opaque", redis, Nowhere).open());
        let used = |writes: WriteBehind<u64, Opaque>, letter: DeadLetter<u64, Opaque>| {
            future(&writes.write(&1, &Opaque));
            future(&writes.delete(&1));
            future(&writes.redrive(&letter));
            future(&writes.dead_letters(1));
            future(&writes.discard(&letter));
            future(&writes.lag());
            future(&writes.close());
        };
        let _ = used;
    }
}
