//! The core: what the handle and the workers of one process share.

use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::Notify;

use super::error::OpenError;
use super::event::{Counters, Event};
use super::record::Records;
use crate::key::namespace;
use crate::l2::redis::Redis;
use crate::l2::redis::queue::QueueKeys;
use crate::l2::{Listener, Publication, TierOperations};

type OnEvent = Arc<dyn Fn(&Event) + Send + Sync>;

/// The settings.
#[derive(Clone)]
pub(super) struct Config {
    pub(super) partitions: u16,
    pub(super) max_unapplied: u64,
    pub(super) max_write_bytes: usize,
    pub(super) batch_size: usize,
    pub(super) linger: Duration,
    pub(super) coalesce: bool,
    pub(super) attempts: u32,
    pub(super) backoff: Duration,
    pub(super) max_backoff: Duration,
    pub(super) sink_timeout: Duration,
    pub(super) max_dead_letters: u64,
    pub(super) lease_ttl: Duration,
    pub(super) schema_version: u16,
    pub(super) on_event: Option<OnEvent>,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            partitions: 8,
            max_unapplied: 10_000,
            max_write_bytes: 1 << 20,
            batch_size: 100,
            linger: Duration::ZERO,
            coalesce: false,
            attempts: 20,
            backoff: Duration::from_millis(100),
            max_backoff: Duration::from_secs(30),
            sink_timeout: Duration::from_secs(30),
            max_dead_letters: 1_000,
            lease_ttl: Duration::from_secs(10),
            schema_version: 0,
            on_event: None,
        }
    }
}

impl fmt::Debug for Config {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Config")
            .field("partitions", &self.partitions)
            .field("max_unapplied", &self.max_unapplied)
            .field("batch_size", &self.batch_size)
            .field("attempts", &self.attempts)
            .field("lease_ttl", &self.lease_ttl)
            .finish_non_exhaustive()
    }
}

pub(super) struct Core<K, V> {
    pub(super) redis: Redis,
    pub(super) records: Records<K, V>,
    pub(super) config: Config,
    pub(super) partitions: Vec<Partition>,
    /// The key of the set of living workers.
    pub(super) workers: Bytes,
    /// The channel on which waiting workers are told of writes and of free partitions.
    pub(super) channel: Bytes,
    pub(super) counters: Counters,
    /// A partition has no worker any more.
    pub(super) free: Notify,
}

/// One partition, as this process sees it.
pub(super) struct Partition {
    pub(super) keys: QueueKeys,
    /// There may be something to read.
    pub(super) written: Notify,
    /// Its worker gave it up, or may have.
    pub(super) freed: AtomicBool,
}

/// The first byte of a message: what it is about. The partition follows in decimal.
const WRITTEN: u8 = b'w';
const FREED: u8 = b'f';

impl<K, V> Core<K, V> {
    pub(super) fn new(name: &str, redis: Redis, records: Records<K, V>, config: Config) -> Self {
        // A name is escaped and holds no brace, so the text between the braces is the hash tag.
        let name = namespace(redis.prefix(), name);
        let name = &name[redis.prefix().len() + 1..name.len() - 1];
        let key = |partition: &str, what: &str| {
            let begin = [redis.prefix().as_bytes(), b":wb:{", name];
            let end = [partition.as_bytes(), b"}", what.as_bytes()];
            Bytes::from([begin.concat(), end.concat()].concat())
        };
        let partitions = (0..config.partitions).map(|partition| {
            let partition = format!(":{partition}");
            Partition {
                keys: QueueKeys {
                    stream: key(&partition, ""),
                    lease: key(&partition, ":lease"),
                    state: key(&partition, ":state"),
                    dead: key(&partition, ":dead"),
                },
                written: Notify::new(),
                freed: AtomicBool::new(false),
            }
        });
        let partitions = partitions.collect();
        Self {
            workers: key(":0", ":workers"),
            channel: key("", ":wake"),
            partitions,
            redis,
            records,
            config,
            counters: Counters::default(),
            free: Notify::new(),
        }
    }

    pub(super) async fn attach(&self) -> Result<(), OpenError> {
        // Partition 0 exists for any number of partitions.
        let (first, here) = (&self.partitions[0].keys.state, self.config.partitions);
        let there = self.redis.queue_attach(first, here).await?;
        if there != here.to_string() {
            return Err(OpenError::Partitions { here, there });
        }
        Ok(())
    }

    pub(super) fn written(&self, partition: u16) -> Publication {
        self.notice(WRITTEN, partition)
    }

    pub(super) fn freed(&self, partition: u16) -> Publication {
        self.notice(FREED, partition)
    }

    fn notice(&self, about: u8, partition: u16) -> Publication {
        let mut message = vec![about];
        message.extend_from_slice(partition.to_string().as_bytes());
        Publication {
            channel: self.channel.clone(),
            message: message.into(),
        }
    }

    pub(super) fn emit(&self, event: &Event) {
        if let Some(on_event) = &self.config.on_event {
            // A panic of the user's function went to the panic hook. The worker goes on.
            let _ = catch_unwind(AssertUnwindSafe(|| on_event(event)));
        }
    }

    /// Wakes all tasks, because messages may have been missed.
    fn wake_all(&self) {
        for partition in &self.partitions {
            partition.written.notify_one();
            partition.freed.store(true, Ordering::SeqCst);
        }
        self.free.notify_one();
    }
}

impl<K, V> Listener for Core<K, V> {
    fn on_message(&self, message: &[u8]) {
        let Some((&about, number)) = message.split_first() else {
            return;
        };
        let number = std::str::from_utf8(number).ok();
        let number = number.and_then(|number| number.parse::<usize>().ok());
        let Some(partition) = number.and_then(|number| self.partitions.get(number)) else {
            return;
        };
        match about {
            WRITTEN => partition.written.notify_one(),
            FREED => {
                partition.freed.store(true, Ordering::SeqCst);
                self.free.notify_one();
            }
            _ => {}
        }
    }

    fn on_up(&self) {
        self.wake_all();
    }

    fn on_down(&self) {}

    fn on_gap(&self) {
        self.wake_all();
    }
}

impl<K, V> Drop for Core<K, V> {
    fn drop(&mut self) {
        self.redis.unlisten(&self.channel);
    }
}
