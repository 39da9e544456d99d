//! The partition manager: which partitions this process works on.
//!
//! Every worker registers itself every third of a lease, and learns how many workers live. Each
//! takes its share of the partitions, rounded up, and gives up partitions beyond it. So all
//! partitions have a worker, and a worker that comes or goes moves no more partitions than
//! necessary. Shares only spread the work: the lease makes sure that a partition has one worker at
//! a time.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::watch;
use tokio::task::{Id, JoinError, JoinSet};
use tokio::time::Instant;

use super::core::Core;
use super::event::Event;
use super::handle::{Inner, WriteBehind};
use super::sink::ErasedSink;
use super::stop_signal::StopSignal;
use super::worker::Worker;
use crate::key::CacheKey;
use crate::l2::redis::queue::{Claimed, PartitionLease};
use crate::l2::{Listener, TierOperations};
use crate::random;

/// Makes the handle and, if there is a sink, the tasks that apply writes.
pub(super) fn start<K, V>(
    core: Arc<Core<K, V>>,
    sink: Option<Arc<dyn ErasedSink<K, V>>>,
) -> WriteBehind<K, V>
where
    K: CacheKey,
    V: Send + Sync + 'static,
{
    let (stop, stopped) = StopSignal::channel();
    let (ending, ended) = watch::channel(());
    if let Some(sink) = sink {
        let listener: Arc<dyn Listener> = core.clone();
        core.redis.listen(&core.channel, Arc::downgrade(&listener));
        let manager = PartitionManager {
            core: Arc::clone(&core),
            sink,
            worker_id: random_token(),
            share: core.partitions.len(),
            owned: HashMap::new(),
            tasks: JoinSet::new(),
            not_before: vec![Instant::now(); core.partitions.len()],
        };
        tokio::spawn(async move {
            manager.run(stopped).await;
            drop(ending);
        });
    }
    let inner = Inner { core, stop, ended };
    WriteBehind {
        inner: Arc::new(inner),
    }
}

/// A random name.
fn random_token() -> Bytes {
    let token: String = random::bytes().map(|byte| format!("{byte:02x}")).concat();
    token.into()
}

struct PartitionManager<K, V> {
    core: Arc<Core<K, V>>,
    sink: Arc<dyn ErasedSink<K, V>>,
    worker_id: Bytes,
    /// The number of partitions for this worker.
    share: usize,
    owned: HashMap<u16, OwnedPartition>,
    tasks: JoinSet<()>,
    /// When another worker's lease on a partition may have ended.
    not_before: Vec<Instant>,
}

/// A partition that a task of this process works on.
struct OwnedPartition {
    task: Id,
    stop: watch::Sender<bool>,
}

impl<K, V> PartitionManager<K, V>
where
    K: CacheKey,
    V: Send + Sync + 'static,
{
    async fn run(mut self, mut stopped: StopSignal) {
        let core = Arc::clone(&self.core);
        let heartbeat = core.config.lease_ttl / 3;
        let mut next = Instant::now();
        while !stopped.is_set() {
            if next <= Instant::now() {
                next = Instant::now() + random::duration(heartbeat * 3 / 4, heartbeat);
                self.register().await;
            }
            self.claim_share(&stopped).await;
            tokio::select! {
                () = stopped.set() => {}
                () = core.free.notified() => {}
                () = tokio::time::sleep_until(next) => {}
                Some(ended) = self.tasks.join_next_with_id() => self.remove_ended(ended),
            }
        }
        for owned in self.owned.values() {
            owned.stop.send_replace(true);
        }
        while let Some(ended) = self.tasks.join_next_with_id().await {
            self.remove_ended(ended);
        }
        // If this command is lost, the worker counts as alive for one lease.
        let _ = core
            .redis
            .queue_register(&core.workers, &self.worker_id, 0)
            .await;
    }

    async fn register(&mut self) {
        let core = &self.core;
        let ttl_ms = crate::ttl::millis(core.config.lease_ttl);
        let live = core
            .redis
            .queue_register(&core.workers, &self.worker_id, ttl_ms);
        // Without an answer the share stays as it was. The leases decide who works on a partition.
        if let Ok(live) = live.await {
            let live = usize::try_from(live).unwrap_or(usize::MAX).max(1);
            self.share = core.partitions.len().div_ceil(live);
        }
    }

    async fn claim_share(&mut self, stopped: &StopSignal) {
        // Partitions whose task was told to stop are owned until their batch is done.
        let kept = || self.owned.values().filter(|owned| !*owned.stop.borrow());
        for owned in kept().take(kept().count().saturating_sub(self.share)) {
            owned.stop.send_replace(true);
        }
        let core = Arc::clone(&self.core);
        let count = core.config.partitions;
        // Begins at a random partition, so that workers which start together do not race for each.
        let first = u16::try_from(random::number() % u64::from(count)).unwrap_or_default();
        for partition in (first..count).chain(0..first) {
            let at = usize::from(partition);
            if self.owned.len() >= self.share || stopped.is_set() {
                return;
            }
            let freed = core.partitions[at].freed.swap(false, Ordering::SeqCst);
            let due = freed || self.not_before[at] <= Instant::now();
            if due && !self.owned.contains_key(&partition) {
                self.claim(partition).await;
            }
        }
    }

    async fn claim(&mut self, partition: u16) {
        let (core, at) = (&self.core, usize::from(partition));
        let lease = PartitionLease {
            token: random_token(),
            ttl_ms: crate::ttl::millis(core.config.lease_ttl),
        };
        let sent = Instant::now();
        let keys = &core.partitions[at].keys;
        let claimed = core.redis.queue_claim(keys, &lease, core.config.partitions);
        match claimed.await {
            Ok(Claimed::Granted(granted)) => {
                core.counters.claimed.add(1);
                let epoch = granted.epoch;
                core.emit(&Event::Claimed { partition, epoch });
                let (stop, stopped) = StopSignal::channel();
                let (core, sink) = (Arc::clone(core), Arc::clone(&self.sink));
                let worker = Worker::new(core, sink, partition, lease, sent, granted);
                let task = self.tasks.spawn(worker.run(stopped)).id();
                self.owned.insert(partition, OwnedPartition { task, stop });
            }
            Ok(Claimed::Held(ms)) => {
                let left = Duration::from_millis(ms).min(core.config.lease_ttl);
                self.not_before[at] = Instant::now() + left;
            }
            Ok(Claimed::Partitions(there)) => {
                self.not_before[at] = Instant::now() + core.config.lease_ttl;
                core.emit(&Event::Disagreement { partition, there });
            }
            Err(_) => self.not_before[at] = Instant::now() + core.config.lease_ttl / 3,
        }
    }

    /// A task has ended, because it gave its partition up or lost it.
    fn remove_ended(&mut self, ended: Result<(Id, ()), JoinError>) {
        let id = match &ended {
            Ok((id, ())) => *id,
            Err(error) => error.id(),
        };
        let partition = self.owned.iter().find(|(_, owned)| owned.task == id);
        let Some((&partition, _)) = partition else {
            return;
        };
        self.owned.remove(&partition);
        // Other workers come first.
        let pause = self.core.config.lease_ttl / 3;
        self.not_before[usize::from(partition)] = Instant::now() + pause;
        self.core.partitions[usize::from(partition)]
            .freed
            .store(false, Ordering::SeqCst);
    }
}
