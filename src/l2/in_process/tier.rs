//! The handle of the embedded tier, and how it carries out operations and delivers messages.

use std::collections::{HashMap, VecDeque};
use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Weak};
use std::time::Duration;

use bytes::Bytes;
use parking_lot::Mutex;
use tokio::time::Instant;

#[cfg(feature = "testing")]
use super::fault_state::FaultState;
#[cfg(all(test, feature = "bincode"))]
use super::gates::{TestHooks, When};
use super::store::Store;
use crate::error::RemoteError;
use crate::l2::listener::Listener;
use crate::protocol::request::Publication;
use crate::ttl;

/// A shared tier within this process: for examples, tests and services of one node.
///
/// `Clone` gives another handle to the same tier. Several caches of one name on one `InProcess`
/// behave like the processes of a fleet: they share entries and leases, and each receives the
/// invalidations of the others. The tier never fails and never blocks. It has no capacity: it keeps
/// records until they expire. It follows tokio's clock, so that tests can pause it.
///
/// ```
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// use tidegate::{BuildError, Cache, InProcess, Loaded, Source, loader_fn};
///
/// let shared = InProcess::new();
/// let node = || -> Result<Cache<u64, String, std::io::Error>, BuildError> {
///     let load = loader_fn(|id: u64| async move {
///         Ok::<_, std::io::Error>(Loaded::found(format!("user {id}")))
///     });
///     Cache::builder("users", load).l2(shared.clone()).build()
/// };
/// let (a, b) = (node()?, node()?);
/// a.get(&1).await?;
/// assert_eq!(b.get_entry(&1).await?.map(|user| user.source()), Some(Source::L2));
/// # Ok(())
/// # }
/// ```
#[derive(Clone)]
pub struct InProcess {
    pub(super) shared: Arc<Shared>,
    /// The process that this handle stands for is dead: operations on it never end.
    #[cfg(all(test, feature = "bincode"))]
    pub(super) killed: Arc<std::sync::atomic::AtomicBool>,
}

pub(super) struct Shared {
    /// Guards the records. Never held while a listener runs, nor across an await.
    pub(super) store: Mutex<Store>,
    pub(super) listeners: Mutex<HashMap<Bytes, Vec<Weak<dyn Listener>>>>,
    /// Messages that were published and not yet delivered, in the order of execution.
    undelivered: Mutex<VecDeque<Publication>>,
    /// Held by the caller that delivers them.
    delivery: Mutex<()>,
    commands: AtomicU64,
    /// Where the tier's clock began: the wall clock at that moment, and tokio's.
    pub(super) started_ms: u64,
    pub(super) started: Instant,
    #[cfg(all(test, feature = "bincode"))]
    pub(super) hooks: TestHooks,
    #[cfg(feature = "testing")]
    pub(super) faults: Option<FaultState>,
}

impl Shared {
    pub(super) fn new() -> Self {
        let wall = std::time::SystemTime::now()
            .duration_since(std::time::UNIX_EPOCH)
            .unwrap_or(Duration::ZERO);
        Self {
            store: Mutex::default(),
            listeners: Mutex::default(),
            undelivered: Mutex::default(),
            delivery: Mutex::default(),
            commands: AtomicU64::new(0),
            started_ms: ttl::millis(wall),
            started: Instant::now(),
            #[cfg(all(test, feature = "bincode"))]
            hooks: TestHooks::default(),
            #[cfg(feature = "testing")]
            faults: None,
        }
    }
}

impl Default for InProcess {
    fn default() -> Self {
        Self::new()
    }
}

impl InProcess {
    /// An empty tier.
    pub fn new() -> Self {
        Self::with_shared(Shared::new())
    }

    pub(super) fn with_shared(shared: Shared) -> Self {
        Self {
            shared: Arc::new(shared),
            #[cfg(all(test, feature = "bincode"))]
            killed: Arc::default(),
        }
    }

    /// The number of operations that were sent to this tier. To a server they would be commands.
    pub fn commands(&self) -> u64 {
        self.shared.commands.load(Ordering::Relaxed)
    }

    /// The number of records that have not expired: values, absences, leases, hold-offs, and the
    /// marks that failed loads leave behind.
    pub fn len(&self) -> usize {
        let now = Instant::now();
        self.shared
            .store
            .lock()
            .records
            .values()
            .filter(|stored| stored.expires_at > now)
            .count()
    }

    /// Whether the tier holds no record.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Carries out one operation, atomically, and counts it.
    pub(super) async fn run<T>(
        &self,
        operation: &'static str,
        what: impl FnOnce(&mut Store, Instant) -> T,
    ) -> Result<T, RemoteError> {
        self.shared.commands.fetch_add(1, Ordering::Relaxed);
        self.run_uncounted(operation, what).await
    }

    #[cfg_attr(
        not(any(test, feature = "testing")),
        expect(clippy::unused_async, reason = "tests stop it at a gate")
    )]
    pub(super) async fn run_uncounted<T>(
        &self,
        operation: &'static str,
        what: impl FnOnce(&mut Store, Instant) -> T,
    ) -> Result<T, RemoteError> {
        #[cfg(all(test, feature = "bincode"))]
        self.pass(operation, When::Before).await?;
        let _ = operation;
        #[cfg(feature = "testing")]
        let fault = match &self.shared.faults {
            Some(faults) => faults.before_operation(operation).await?,
            None => None,
        };
        let result = what(&mut self.shared.store.lock(), Instant::now());
        self.deliver();
        #[cfg(all(test, feature = "bincode"))]
        self.pass(operation, When::After).await?;
        #[cfg(feature = "testing")]
        FaultState::after_operation(operation, fault).await?;
        Ok(result)
    }

    #[cfg(all(test, feature = "bincode"))]
    async fn pass(&self, operation: &'static str, when: When) -> Result<(), RemoteError> {
        let hooks = &self.shared.hooks;
        hooks
            .pass(operation, when, self.has_no_connection(), &self.killed)
            .await
    }

    /// Whether listeners are called without a connection that a test could cut.
    pub(super) fn has_no_connection(&self) -> bool {
        #[cfg(feature = "testing")]
        if self.shared.faults.is_some() {
            return false;
        }
        #[cfg(all(test, feature = "bincode"))]
        return !self.shared.hooks.is_wired();
        #[cfg(not(all(test, feature = "bincode")))]
        true
    }

    /// Publishes a message. The caller holds the lock of the store, so that messages are in the
    /// order of execution.
    pub(super) fn publish(&self, publication: Publication) {
        self.shared.undelivered.lock().push_back(publication);
    }

    /// Delivers the published messages, each to all listeners before the next one. The lock of the
    /// store is not held.
    fn deliver(&self) {
        loop {
            // If another caller delivers, it delivers our message too.
            let Some(delivering) = self.shared.delivery.try_lock() else {
                return;
            };
            while let Some(publication) = self.next_undelivered() {
                #[cfg(all(test, feature = "bincode"))]
                self.shared.hooks.send_over_wires(&publication);
                for listener in self.listeners_on(&publication.channel) {
                    listener.on_message(&publication.message);
                }
            }
            drop(delivering);
            // A message may have been published between the last check and the unlocking.
            if self.shared.undelivered.lock().is_empty() {
                return;
            }
        }
    }

    fn next_undelivered(&self) -> Option<Publication> {
        self.shared.undelivered.lock().pop_front()
    }

    /// The listeners of a channel. A message for the channel without a name goes to all of them.
    fn listeners_on(&self, channel: &Bytes) -> Vec<Arc<dyn Listener>> {
        #[cfg(feature = "testing")]
        if !self.channel_stands() {
            return Vec::new();
        }
        let listeners = self.shared.listeners.lock();
        let here = listeners
            .iter()
            .filter(|(name, _)| channel.is_empty() || *name == channel);
        here.flat_map(|(_, here)| here.iter().filter_map(Weak::upgrade))
            .collect()
    }

    #[cfg(feature = "testing")]
    pub(super) fn channel_stands(&self) -> bool {
        let faults = self.shared.faults.as_ref();
        faults.is_none_or(FaultState::channel_stands)
    }
}

impl fmt::Debug for InProcess {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("InProcess")
            .field("records", &self.len())
            .finish_non_exhaustive()
    }
}
