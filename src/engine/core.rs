//! The engine's state: what one cache shares between its handles and the tasks that work for it.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::Instant;

use super::batch::window::BatchWindow;
use super::flight::table::Flights;
use super::load::permits::LoadLimiter;
use super::negative_budget::Budget;
use super::remote::RemoteTier;
use super::tasks::Tasks;
use crate::batch::Batching;
use crate::codec::AnyCodec;
use crate::coherence::fence::Fence;
use crate::coherence::repairs::Repairs;
use crate::coherence::sequence::SequenceTracker;
use crate::coherence::watermarks::WatermarkTable;
use crate::config::Config;
use crate::error::RemoteError;
use crate::key::HashedKey;
use crate::l1::{L1, TypedEntries};
use crate::l2::{Backend, Tier};
use crate::loader::{ErasedBatchLoader, ErasedLoader};
use crate::stats::Counters;
use crate::telemetry::Telemetry;
use crate::time_base::TimeBase;
use crate::ttl;

/// The number of refreshes that may run in the background of one process. With more, entries stay
/// what they are until the next hit.
pub(crate) const MAX_BACKGROUND: usize = 1024;

/// One cache: shared by its handles and by the tasks that work for it.
pub(crate) struct Engine {
    pub(crate) name: String,
    pub(super) config: Config,
    pub(super) loader: Arc<dyn ErasedLoader>,
    pub(super) batches: Option<Batches>,
    pub(crate) l1: L1,
    pub(super) fence: Fence,
    pub(super) watermarks: WatermarkTable,
    /// The numbers of other processes' messages.
    pub(super) numbers: Mutex<SequenceTracker>,
    pub(super) repairs: Repairs,
    pub(super) flights: Flights,
    pub(super) remote: Option<RemoteTier>,
    /// `max_concurrent_loads`.
    pub(super) limiter: Option<Arc<LoadLimiter>>,
    /// Permits for work that no caller waits for.
    pub(super) background: Arc<Semaphore>,
    pub(super) negatives: Budget,
    /// An upper estimate of what a load costs, in microseconds: for values that come without one.
    cost: AtomicU64,
    pub(crate) stats: Counters,
    pub(crate) telemetry: Arc<Telemetry>,
    pub(super) tasks: Arc<Tasks>,
    pub(super) created_at: Instant,
    pub(crate) time_base: TimeBase,
}

/// The settings and parts of one engine.
pub(crate) struct EngineParts {
    pub(crate) name: String,
    pub(crate) config: Config,
    pub(crate) loader: Arc<dyn ErasedLoader>,
    pub(crate) batches: Option<Batches>,
    pub(crate) typed: Arc<dyn TypedEntries>,
    /// The capacity of L1 is not a number of entries.
    pub(crate) weighs: bool,
    pub(crate) remote: Option<(Backend, Arc<dyn AnyCodec>)>,
}

impl Engine {
    pub(crate) fn new(parts: EngineParts) -> Arc<Self> {
        let EngineParts {
            name,
            config,
            loader,
            batches,
            typed,
            weighs,
            remote,
        } = parts;
        let (now, telemetry) = (Instant::now(), Telemetry::new(&name));
        let time_base = TimeBase::at(now);
        let entries = if weighs { 10_000 } else { config.l1_capacity };
        Arc::new(Self {
            l1: L1::new(config.l1_capacity, config.negative_capacity, weighs, typed),
            fence: Fence::new(entries, config.hold_off, time_base),
            watermarks: if remote.is_some() {
                WatermarkTable::default()
            } else {
                WatermarkTable::alone()
            },
            numbers: Mutex::default(),
            repairs: Repairs::default(),
            flights: Flights::new(),
            remote: remote.map(|(at, codec)| {
                let tier = Tier::new(at, Arc::clone(&telemetry));
                RemoteTier::new(&name, tier, codec, config.channel_lease, now, time_base)
            }),
            limiter: config
                .max_concurrent_loads
                .map(|loads| Arc::new(LoadLimiter::new(loads))),
            background: Arc::new(Semaphore::new(MAX_BACKGROUND)),
            negatives: Budget::new(config.negative_capacity, config.negative_ttl, now),
            cost: AtomicU64::new(0),
            stats: Counters::default(),
            telemetry,
            tasks: Arc::default(),
            created_at: now,
            time_base,
            name,
            config,
            loader,
            batches,
        })
    }

    pub(crate) fn is_closed(&self) -> bool {
        self.tasks.is_closed()
    }

    /// An encoded key with its hash.
    pub(crate) fn id(&self, encoded: Vec<u8>) -> HashedKey {
        self.flights.id(encoded)
    }

    /// Counts an operation's failure and notes whether L2 can be reached.
    pub(super) fn tier<T>(&self, result: Result<T, RemoteError>) -> Result<T, RemoteError> {
        if let Some(remote) = &self.remote {
            remote.note(&result);
        }
        if result.is_err() {
            self.stats.l2_failures.add();
        }
        result
    }

    /// Takes in what a load has cost.
    pub(super) fn note_cost(&self, sample: Duration) {
        let cost = ttl::upper_cost(self.usual_cost(), sample);
        let micros = u64::try_from(cost.as_micros()).unwrap_or(u64::MAX);
        self.cost.store(micros, Ordering::Relaxed);
    }

    pub(super) fn usual_cost(&self) -> Duration {
        Duration::from_micros(self.cost.load(Ordering::Relaxed))
    }

    /// When a load that begins now is cut off.
    pub(super) fn load_deadline(&self) -> Instant {
        ttl::deadline(Instant::now(), self.config.load_timeout)
    }

    /// Whether entries that are filled now belong to a cold start.
    pub(super) fn is_cold(&self, now: Instant) -> bool {
        now.saturating_duration_since(self.created_at) < self.config.ttl
    }

    /// How long L1 may answer what came from a load that L2 knows nothing of.
    pub(super) fn unshared_l1_lifetime(&self) -> Duration {
        self.config.l1_lifetime().min(self.config.degraded_l1_ttl)
    }

    /// A permit for work that no caller waits for.
    pub(super) fn background_permit(&self) -> Option<OwnedSemaphorePermit> {
        Arc::clone(&self.background).try_acquire_owned().ok()
    }
}

/// How keys are loaded together.
pub(crate) struct Batches {
    pub(super) loader: Arc<dyn ErasedBatchLoader>,
    pub(super) settings: Batching,
    /// Where single look-ups come together, if they do.
    pub(super) window: Option<Arc<BatchWindow>>,
}

impl Batches {
    pub(crate) fn new(loader: Arc<dyn ErasedBatchLoader>, settings: Batching) -> Self {
        let has_window = !settings.window.is_zero();
        Self {
            loader,
            window: has_window.then(|| BatchWindow::new(&settings)),
            settings,
        }
    }

    pub(super) fn has_window(&self) -> bool {
        self.window.is_some()
    }
}

impl Drop for Engine {
    fn drop(&mut self) {
        if let Some(remote) = &self.remote {
            remote.tier.unlisten(&remote.channel_name);
        }
        #[cfg(feature = "metrics")]
        self.telemetry.publish(self.stats.snapshot(), None);
    }
}

impl fmt::Debug for Engine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Cache")
            .field("name", &self.name)
            .field("l2", &self.remote.as_ref().map(|remote| &remote.tier))
            .field("flights", &self.flights.len())
            .field("tasks", &self.tasks.running())
            .finish_non_exhaustive()
    }
}
