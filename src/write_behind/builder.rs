//! The settings of a write-behind, their checks, and how it is opened.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use serde::Serialize;
use serde::de::DeserializeOwned;

use super::core::{Config, Core};
use super::error::OpenError;
use super::event::Event;
use super::handle::WriteBehind;
use super::partition_manager;
use super::record::Records;
use super::sink::{ErasedSink, Sink};
use crate::codec::{Codec, ErasedCodec};
use crate::error::BuildError;
use crate::key::CacheKey;
use crate::l2::TierOperations;
use crate::l2::redis::Redis;

/// Settings of a write-behind: see [`WriteBehind::builder`] and [`WriteBehind::writer`].
///
/// | setting | default | |
/// |---|---|---|
/// | [`partitions`](Self::partitions) | 8 | how many batches can be applied at once |
/// | [`max_unapplied`](Self::max_unapplied) | 10,000 | writes that may wait in a partition |
/// | [`max_write_bytes`](Self::max_write_bytes) | 1 MiB | larger writes are refused |
/// | [`batch_size`](Self::batch_size) | 100 | writes that the sink is given at once |
/// | [`linger`](Self::linger) | zero | how long to wait for a batch to become full |
/// | [`coalesce`](Self::coalesce) | off | only the last write of a key in a batch |
/// | [`attempts`](Self::attempts) | 20 | before a write is dead-lettered |
/// | [`backoff`](Self::backoff) | 100 ms to 30 s | between attempts |
/// | [`sink_timeout`](Self::sink_timeout) | 30 s | a longer call is cut off |
/// | [`max_dead_letters`](Self::max_dead_letters) | 1,000 | dead letters kept in a partition |
/// | [`lease_ttl`](Self::lease_ttl) | 10 s | how long a dead worker holds its partitions |
/// | [`codec`](Self::codec) | `Bincode` | how keys and values become bytes |
/// | [`schema_version`](Self::schema_version) | 0 | the version of their types |
/// | [`on_event`](Self::on_event) | none | called with events for operators |
///
/// The process that writes checks the bounds. The settings from `batch_size` to `lease_ttl` are the
/// worker's. All processes must agree on `partitions`, the codec and `schema_version`. A process
/// that disagrees on `partitions` is refused.
#[must_use = "a builder does nothing until `open` is called"]
pub struct WriteBehindBuilder<K, V> {
    name: String,
    redis: Redis,
    sink: Option<Arc<dyn ErasedSink<K, V>>>,
    codecs: Option<Codecs<K, V>>,
    config: Config,
}

type Codecs<K, V> = (Arc<dyn ErasedCodec<K>>, Arc<dyn ErasedCodec<V>>);

impl<K, V> WriteBehind<K, V>
where
    K: CacheKey + Serialize + DeserializeOwned,
    V: Serialize + DeserializeOwned + Send + Sync + 'static,
{
    /// A write-behind that also applies writes in this process: it takes its share of the
    /// partitions. Processes with the same name share a write-behind. 1 to 100 bytes.
    pub fn builder<S>(name: &str, redis: Redis, sink: S) -> WriteBehindBuilder<K, V>
    where
        S: Sink<Key = K, Value = V>,
    {
        let mut builder = Self::writer(name, redis);
        builder.sink = Some(Arc::new(sink));
        builder
    }

    /// A write-behind that only accepts writes. Other processes, which have a sink, apply them. The
    /// settings of the worker are checked and not used.
    pub fn writer(name: &str, redis: Redis) -> WriteBehindBuilder<K, V> {
        WriteBehindBuilder {
            name: name.to_owned(),
            redis,
            sink: None,
            #[cfg(feature = "bincode")]
            codecs: Some((Arc::new(crate::Bincode), Arc::new(crate::Bincode))),
            #[cfg(not(feature = "bincode"))]
            codecs: None,
            config: Config::default(),
        }
    }
}

impl<K, V> WriteBehindBuilder<K, V> {
    /// The number of partitions into which keys are divided, by a hash. Each is a stream that one
    /// worker at a time applies. So this number bounds the batches that the fleet applies at once,
    /// and the workers that have work. It cannot be changed while the name is in use: let the
    /// writes drain, and take another name.
    ///
    /// Default: 8. From 1 to 256. An idle partition costs 3 commands per `lease_ttl`.
    pub fn partitions(mut self, partitions: u16) -> Self {
        self.config.partitions = partitions;
        self
    }

    /// The largest number of unapplied writes in each partition. One more is refused with
    /// [`Full`](super::WriteError::Full). The server checks it in the step that accepts the write,
    /// so no race gets past it.
    ///
    /// Default: 10,000. From 1 to 10,000,000. Redis keeps `partitions · max_unapplied ·
    /// max_write_bytes` at worst.
    pub fn max_unapplied(mut self, writes: u64) -> Self {
        self.config.max_unapplied = writes;
        self
    }

    /// The largest encoded write, in bytes. Larger ones are refused with
    /// [`TooLarge`](super::WriteError::TooLarge).
    ///
    /// Default: 1 MiB. From 64 bytes to 64 MiB.
    pub fn max_write_bytes(mut self, bytes: usize) -> Self {
        self.config.max_write_bytes = bytes;
        self
    }

    /// The largest number of writes that the sink is given at once. It is given fewer if fewer
    /// wait, and one at a time after a batch failed.
    ///
    /// Default: 100. From 1 to 1,000. A worker that dies applies up to one batch per partition
    /// again.
    pub fn batch_size(mut self, writes: usize) -> Self {
        self.config.batch_size = writes;
        self
    }

    /// How long to wait for a batch to become full. With zero a batch is applied as it is.
    ///
    /// Default: zero. Up to 60 s.
    pub fn linger(mut self, linger: Duration) -> Self {
        self.config.linger = linger;
        self
    }

    /// Gives the sink only the last of several writes of a key in a batch. The others are
    /// acknowledged with it, so a source of truth that keeps a history misses them.
    ///
    /// Default: off.
    pub fn coalesce(mut self, on: bool) -> Self {
        self.config.coalesce = on;
        self
    }

    /// How often a write is tried before it is dead-lettered and the partition goes on without it.
    /// After a batch failed, its writes are tried one by one, each at least once, so that only the
    /// write at fault is dead-lettered.
    ///
    /// If a sink fails for long, because its database is away, each partition loses a write to the
    /// dead letters whenever the attempts are used up: after about 6 minutes with the defaults.
    /// [`u32::MAX`] never gives up. Then a bad write stops its partition, unless the sink
    /// [rejects](Sink::rejected) it.
    ///
    /// Default: 20. At least 1.
    pub fn attempts(mut self, attempts: u32) -> Self {
        self.config.attempts = attempts;
        self
    }

    /// How long to wait after a failure, and how long at most. The wait doubles with each failure
    /// in a row of the partition. It is shortened by up to half at random, so that workers do not
    /// come back at one moment.
    ///
    /// Default: 100 ms and 30 s. From 1 ms to 1 hour.
    pub fn backoff(mut self, first: Duration, most: Duration) -> Self {
        (self.config.backoff, self.config.max_backoff) = (first, most);
        self
    }

    /// A call of the sink that takes longer is cut off, and counts as failed. The next call waits
    /// until the call has ended in this process. Statements that it has sent to the database may
    /// still be carried out there.
    ///
    /// Default: 30 seconds. Longer than zero, up to 1 hour.
    pub fn sink_timeout(mut self, timeout: Duration) -> Self {
        self.config.sink_timeout = timeout;
        self
    }

    /// How many dead letters are kept in each partition. One more drops the oldest **for good**.
    /// The [event](Event::DeadLettered) and the stats say so.
    ///
    /// Default: 1,000. From 1 to 1,000,000.
    pub fn max_dead_letters(mut self, letters: u64) -> Self {
        self.config.max_dead_letters = letters;
        self
    }

    /// How long the lease of a worker on a partition lives. It is renewed every third of this time.
    /// A worker that died is replaced after this time and a third more, at most.
    ///
    /// Default: 10 seconds. From 100 ms to 10 minutes, and at least twice the
    /// [`timeout`](crate::RedisBuilder::timeout) of the Redis handle. The same in all workers.
    pub fn lease_ttl(mut self, ttl: Duration) -> Self {
        self.config.lease_ttl = ttl;
        self
    }

    /// The version of the types of keys and values. Raise it when they change. This process
    /// dead-letters entries of another version; they can be [re-driven](WriteBehind::redrive) for a
    /// process that reads them. Before a change of version, let the writes drain, or deploy a type
    /// that reads both under the same version.
    ///
    /// Default: 0.
    pub fn schema_version(mut self, version: u16) -> Self {
        self.config.schema_version = version;
        self
    }

    /// Called with events for operators, from the worker's task. It must be quick and must not
    /// block.
    ///
    /// Default: events are dropped.
    pub fn on_event(mut self, on_event: impl Fn(&Event) + Send + Sync + 'static) -> Self {
        self.config.on_event = Some(Arc::new(on_event));
        self
    }

    fn check(&self) -> Result<(), BuildError> {
        self.check_ranges()?;
        self.check_clashes()
    }

    fn check_ranges(&self) -> Result<(), BuildError> {
        let config = &self.config;
        let refused = |setter, value: &dyn fmt::Debug, allowed| {
            Err(BuildError::OutOfRange {
                setter,
                value: format!("{value:?}"),
                allowed,
            })
        };
        let ms = Duration::from_millis;
        if !(1..=100).contains(&self.name.len()) {
            return refused("name", &self.name, "1 to 100 bytes");
        }
        if !(1..=256).contains(&config.partitions) {
            return refused("partitions", &config.partitions, "1 to 256");
        }
        if !(1..=10_000_000).contains(&config.max_unapplied) {
            return refused("max_unapplied", &config.max_unapplied, "1 to 10,000,000");
        }
        if !(64..=64 << 20).contains(&config.max_write_bytes) {
            let allowed = "64 bytes to 64 MiB";
            return refused("max_write_bytes", &config.max_write_bytes, allowed);
        }
        if !(1..=1_000).contains(&config.batch_size) {
            return refused("batch_size", &config.batch_size, "1 to 1,000");
        }
        if config.linger > ms(60_000) {
            return refused("linger", &config.linger, "up to 60 s");
        }
        if config.attempts == 0 {
            let allowed = "at least 1: with none, nothing could ever be applied";
            return refused("attempts", &config.attempts, allowed);
        }
        for backoff in [config.backoff, config.max_backoff] {
            if !(ms(1)..=ms(3_600_000)).contains(&backoff) {
                return refused("backoff", &backoff, "1 ms to 1 hour");
            }
        }
        if config.sink_timeout.is_zero() || config.sink_timeout > ms(3_600_000) {
            let allowed = "longer than zero, up to 1 hour";
            return refused("sink_timeout", &config.sink_timeout, allowed);
        }
        if !(1..=1_000_000).contains(&config.max_dead_letters) {
            let allowed = "1 to 1,000,000";
            return refused("max_dead_letters", &config.max_dead_letters, allowed);
        }
        if !(ms(100)..=ms(600_000)).contains(&config.lease_ttl) {
            let allowed = "100 ms to 10 minutes: it is renewed every third of it";
            return refused("lease_ttl", &config.lease_ttl, allowed);
        }
        Ok(())
    }

    fn check_clashes(&self) -> Result<(), BuildError> {
        let config = &self.config;
        let clash = |setter, value: &dyn fmt::Debug, other, other_value: &dyn fmt::Debug, why| {
            Err(BuildError::Clash {
                setter,
                value: format!("{value:?}"),
                other,
                other_value: format!("{other_value:?}"),
                why,
            })
        };
        let (lease_ttl, timeout) = (config.lease_ttl, self.redis.timeout());
        if lease_ttl < timeout * 2 {
            let why = "one command without an answer would cost the lease";
            return clash("lease_ttl", &lease_ttl, "timeout", &timeout, why);
        }
        let (first, most) = (config.backoff, config.max_backoff);
        if first > most {
            let why = "the first wait is longer than the longest";
            return clash("backoff", &first, "backoff", &most, why);
        }
        if config.batch_size == 1 {
            if !config.linger.is_zero() {
                let why = "a batch of one is full at once";
                return clash("batch_size", &1, "linger", &config.linger, why);
            }
            if config.coalesce {
                let why = "a batch of one has nothing to coalesce";
                return clash("batch_size", &1, "coalesce", &true, why);
            }
        }
        Ok(())
    }
}

impl<K, V> WriteBehindBuilder<K, V>
where
    K: CacheKey + Serialize + DeserializeOwned,
    V: Serialize + DeserializeOwned + Send + Sync + 'static,
{
    /// How keys and values become bytes.
    ///
    /// Default: [`Bincode`](crate::Bincode). Entries of another codec are dead-lettered. A codec
    /// that is [bound](crate::Codec::is_bound) to its record, like `Sealed`, is here bound to the
    /// key, to whether it is written or deleted, and to the schema version. It is not bound to the
    /// stream or to the place in it: a writer to Redis can still repeat, leave out and reorder
    /// whole writes.
    pub fn codec(mut self, codec: impl Codec) -> Self {
        let codec = Arc::new(codec);
        self.codecs = Some((codec.clone(), codec));
        self
    }

    /// Checks the settings, asks Redis whether other processes have the same number of partitions,
    /// and starts the worker if there is a sink.
    ///
    /// # Errors
    ///
    /// [`OpenError`]: a setting makes no sense, other processes disagree, or Redis does not answer.
    ///
    /// # Cancel safety
    ///
    /// Nothing runs until it has returned.
    pub async fn open(self) -> Result<WriteBehind<K, V>, OpenError> {
        self.check()?;
        let Some((keys, values)) = self.codecs else {
            return Err(BuildError::NoCodec.into());
        };
        let records = Records {
            keys,
            values,
            schema: self.config.schema_version,
        };
        let core = Core::new(&self.name, self.redis, records, self.config);
        core.attach().await?;
        Ok(partition_manager::start(Arc::new(core), self.sink))
    }
}

impl<K, V> fmt::Debug for WriteBehindBuilder<K, V> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("WriteBehindBuilder")
            .field("name", &self.name)
            .field("worker", &self.sink.is_some())
            .field("config", &self.config)
            .finish_non_exhaustive()
    }
}
