//! The embedded tier: the same protocol over a map.

use std::collections::HashMap;
use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Weak};
use std::time::Duration;

use bytes::Bytes;
use parking_lot::Mutex;
use tokio::time::Instant;

use super::{Acquired, Listener, Notice};
use crate::codec::envelope::{self, HEAD, Head, WAITERS};
use crate::error::RemoteError;
use crate::ttl;

/// A shared tier within this process: for examples, tests and services of one node.
///
/// `Clone` gives another handle to the same tier. Several caches of one name on one `InProcess`
/// behave like so many processes of a fleet: they share entries and leases and hear of each other's
/// invalidations. It never fails and never blocks, keeps what it holds until it expires (there is no
/// capacity), and follows tokio's clock, so that tests can pause it.
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
    shared: Arc<Shared>,
}

struct Shared {
    /// Guards the records. Never held while a listener runs, nor across an await.
    store: Mutex<Store>,
    listeners: Mutex<HashMap<Bytes, Vec<Weak<dyn Listener>>>>,
    commands: AtomicU64,
    /// Where the tier's clock began: the wall clock at that moment, and tokio's.
    started_ms: u64,
    started: Instant,
    #[cfg(all(test, feature = "bincode"))]
    gates: Mutex<Vec<Gate>>,
}

#[derive(Default)]
struct Store {
    records: HashMap<Bytes, Stored>,
    /// Expired records are swept when the map has grown to this.
    sweep_at: usize,
}

struct Stored {
    bytes: Bytes,
    until: Instant,
}

const SWEEP_FROM: usize = 1024;

impl Store {
    fn get(&mut self, key: &[u8], now: Instant) -> Option<&mut Stored> {
        if self
            .records
            .get(key)
            .is_some_and(|stored| stored.until <= now)
        {
            self.records.remove(key);
        }
        self.records.get_mut(key)
    }

    fn set(&mut self, key: &Bytes, bytes: impl Into<Bytes>, ttl_ms: u64, now: Instant) {
        if self.records.len() >= self.sweep_at.max(SWEEP_FROM) {
            self.records.retain(|_, stored| stored.until > now);
            self.sweep_at = self.records.len() * 2;
        }
        let until = ttl::deadline(now, Duration::from_millis(ttl_ms));
        self.records.insert(
            key.clone(),
            Stored {
                bytes: bytes.into(),
                until,
            },
        );
    }

    /// The record that still has this head.
    fn with_head(&mut self, key: &[u8], head: Head, now: Instant) -> Option<&mut Stored> {
        self.get(key, now)
            .filter(|stored| stored.bytes.get(..HEAD) == Some(&head))
    }
}

impl Stored {
    fn waited_for(&self) -> bool {
        envelope::is_lease(&self.bytes) && self.bytes[WAITERS] != 0
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
        let wall = std::time::SystemTime::now()
            .duration_since(std::time::UNIX_EPOCH)
            .unwrap_or(Duration::ZERO);
        Self {
            shared: Arc::new(Shared {
                store: Mutex::default(),
                listeners: Mutex::default(),
                commands: AtomicU64::new(0),
                started_ms: ttl::millis(wall),
                started: Instant::now(),
                #[cfg(all(test, feature = "bincode"))]
                gates: Mutex::default(),
            }),
        }
    }

    /// How many operations were sent to this tier: what would have been commands to a server.
    pub fn commands(&self) -> u64 {
        self.shared.commands.load(Ordering::Relaxed)
    }

    /// How many records are held that have not expired: values, absences, leases and marks.
    pub fn len(&self) -> usize {
        let now = Instant::now();
        self.shared
            .store
            .lock()
            .records
            .values()
            .filter(|stored| stored.until > now)
            .count()
    }

    /// Whether nothing is held.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    pub(crate) fn prefix(&self) -> &'static str {
        "tidegate"
    }

    pub(crate) fn timeout(&self) -> Duration {
        Duration::from_millis(100)
    }

    pub(crate) fn now_ms(&self) -> Option<u64> {
        let since = self.shared.started.elapsed();
        Some(
            self.shared
                .started_ms
                .saturating_add(u64::try_from(since.as_millis()).unwrap_or(u64::MAX)),
        )
    }

    pub(crate) fn listen(&self, channel: &Bytes, listener: Weak<dyn Listener>) {
        let strong = listener.upgrade();
        self.shared
            .listeners
            .lock()
            .entry(channel.clone())
            .or_default()
            .push(listener);
        if let Some(listener) = strong {
            listener.on_up();
        }
    }

    pub(crate) fn unlisten(&self, channel: &Bytes) {
        let mut listeners = self.shared.listeners.lock();
        if let Some(here) = listeners.get_mut(channel) {
            here.retain(|listener| listener.strong_count() > 0);
            if here.is_empty() {
                listeners.remove(channel);
            }
        }
    }

    pub(crate) async fn get(&self, key: &Bytes) -> Result<Option<Bytes>, RemoteError> {
        self.run("get", |store, now| {
            store.get(key, now).map(|stored| stored.bytes.clone())
        })
        .await
    }

    pub(crate) async fn acquire(
        &self,
        key: &Bytes,
        lease: Vec<u8>,
        ttl_ms: u64,
        replacing: Option<&[u8]>,
    ) -> Result<Acquired, RemoteError> {
        self.run("acquire", |store, now| {
            if let Some(stored) = store.get(key, now) {
                if envelope::is_lease(&stored.bytes) {
                    let mut marked = stored.bytes.to_vec();
                    marked[WAITERS] = 1;
                    stored.bytes = marked.into();
                    return Acquired::Held(ttl::millis(stored.until - now));
                }
                let head = &stored.bytes[..stored.bytes.len().min(HEAD)];
                if replacing != Some(head) {
                    return Acquired::Record(stored.bytes.clone());
                }
            }
            store.set(key, lease, ttl_ms, now);
            Acquired::Granted
        })
        .await
    }

    pub(crate) async fn replace(
        &self,
        key: &Bytes,
        head: Head,
        record: Vec<u8>,
        ttl_ms: u64,
        wake: Notice,
    ) -> Result<bool, RemoteError> {
        self.finish("replace", key, head, wake, |store, now| {
            store.set(key, record, ttl_ms, now)
        })
        .await
    }

    pub(crate) async fn renew(
        &self,
        key: &Bytes,
        head: Head,
        ttl_ms: u64,
    ) -> Result<bool, RemoteError> {
        self.run("renew", |store, now| {
            match store.with_head(key, head, now) {
                Some(stored) => {
                    stored.until = ttl::deadline(now, Duration::from_millis(ttl_ms));
                    true
                }
                None => false,
            }
        })
        .await
    }

    pub(crate) async fn release(
        &self,
        key: &Bytes,
        head: Head,
        wake: Notice,
    ) -> Result<bool, RemoteError> {
        self.finish("release", key, head, wake, |store, _| {
            store.records.remove(key);
        })
        .await
    }

    pub(crate) async fn invalidate(&self, key: &Bytes, notice: Notice) -> Result<(), RemoteError> {
        self.run("invalidate", |store, _| {
            store.records.remove(key);
            self.publish(&notice)
        })
        .await
        .map(|deliver| deliver.now(&notice))
    }

    pub(crate) async fn insert(
        &self,
        key: &Bytes,
        record: Vec<u8>,
        ttl_ms: u64,
        notice: Notice,
    ) -> Result<(), RemoteError> {
        self.run("insert", |store, now| {
            store.set(key, record, ttl_ms, now);
            self.publish(&notice)
        })
        .await
        .map(|deliver| deliver.now(&notice))
    }

    /// Ends a lease, if it is still there, in whichever way, and wakes its waiters.
    async fn finish(
        &self,
        operation: &'static str,
        key: &Bytes,
        head: Head,
        wake: Notice,
        how: impl FnOnce(&mut Store, Instant),
    ) -> Result<bool, RemoteError> {
        let deliver = self
            .run(operation, |store, now| {
                let waited_for = store.with_head(key, head, now)?.waited_for();
                how(store, now);
                Some(waited_for.then(|| self.publish(&wake)))
            })
            .await?;
        if let Some(Some(deliver)) = &deliver {
            deliver.now(&wake);
        }
        Ok(deliver.is_some())
    }

    /// Carries out one operation, atomically.
    #[cfg_attr(
        not(test),
        expect(clippy::unused_async, reason = "tests stop it at a gate")
    )]
    async fn run<T>(
        &self,
        operation: &'static str,
        what: impl FnOnce(&mut Store, Instant) -> T,
    ) -> Result<T, RemoteError> {
        #[cfg(all(test, feature = "bincode"))]
        self.pass(operation, When::Before).await?;
        let _ = operation;
        self.shared.commands.fetch_add(1, Ordering::Relaxed);
        let result = what(&mut self.shared.store.lock(), Instant::now());
        #[cfg(all(test, feature = "bincode"))]
        self.pass(operation, When::After).await?;
        Ok(result)
    }

    /// Who is to be told. Taken under the store's lock, in the order of execution; told after it.
    fn publish(&self, notice: &Notice) -> Delivery {
        let listeners = self.shared.listeners.lock();
        Delivery(
            listeners
                .get(&notice.channel)
                .map(|here| here.iter().filter_map(Weak::upgrade).collect()),
        )
    }
}

struct Delivery(Option<Vec<Arc<dyn Listener>>>);

impl Delivery {
    fn now(&self, notice: &Notice) {
        for listener in self.0.iter().flatten() {
            listener.on_message(&notice.message);
        }
    }
}

impl fmt::Debug for InProcess {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("InProcess")
            .field("records", &self.len())
            .finish_non_exhaustive()
    }
}

/// Where an operation stops: before it is carried out, or between that and its reply.
#[cfg(all(test, feature = "bincode"))]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum When {
    Before,
    After,
}

/// Stops the next operation of a kind until the test lets it go on, or makes it fail.
#[cfg(all(test, feature = "bincode"))]
#[derive(Clone, Debug)]
pub(crate) struct Gate {
    operation: &'static str,
    when: When,
    arrived: Arc<tokio::sync::Semaphore>,
    open: Arc<tokio::sync::Semaphore>,
    error: Option<crate::error::RemoteKind>,
}

#[cfg(all(test, feature = "bincode"))]
impl Gate {
    /// Waits until an operation stands at the gate.
    pub(crate) async fn reached(&self) {
        self.arrived.acquire().await.expect("never closed").forget();
    }

    pub(crate) fn open(&self) {
        self.open.add_permits(1);
    }
}

#[cfg(all(test, feature = "bincode"))]
impl InProcess {
    /// Stops the next such operation.
    pub(crate) fn gate(&self, operation: &'static str, when: When) -> Gate {
        self.put(operation, when, None)
    }

    /// Lets the next such operation fail.
    pub(crate) fn fail(
        &self,
        operation: &'static str,
        when: When,
        error: crate::error::RemoteKind,
    ) {
        self.put(operation, when, Some(error)).open();
    }

    fn put(
        &self,
        operation: &'static str,
        when: When,
        error: Option<crate::error::RemoteKind>,
    ) -> Gate {
        let semaphore = || Arc::new(tokio::sync::Semaphore::new(0));
        let gate = Gate {
            operation,
            when,
            arrived: semaphore(),
            open: semaphore(),
            error,
        };
        self.shared.gates.lock().push(gate.clone());
        gate
    }

    async fn pass(&self, operation: &'static str, when: When) -> Result<(), RemoteError> {
        let gate = {
            let mut gates = self.shared.gates.lock();
            let at = gates
                .iter()
                .position(|gate| gate.operation == operation && gate.when == when);
            at.map(|at| gates.remove(at))
        };
        let Some(gate) = gate else { return Ok(()) };
        gate.arrived.add_permits(1);
        gate.open.acquire().await.expect("never closed").forget();
        match gate.error {
            Some(kind) => Err(RemoteError::new(kind, operation)),
            None => Ok(()),
        }
    }

    /// The raw record under a key, as somebody with other tools would see it.
    pub(crate) fn raw(&self, key: &[u8]) -> Option<Bytes> {
        self.shared
            .store
            .lock()
            .get(key, Instant::now())
            .map(|stored| stored.bytes.clone())
    }

    /// Nobody hears anything any more.
    pub(crate) fn mute(&self) {
        self.shared.listeners.lock().clear();
    }

    /// Every key with the kind of its record.
    pub(crate) fn kinds(&self) -> Vec<(Bytes, Option<envelope::Kind>)> {
        let now = Instant::now();
        let store = self.shared.store.lock();
        let live = store
            .records
            .iter()
            .filter(|(_, stored)| stored.until > now);
        live.map(|(key, stored)| {
            let parsed = envelope::Header::parse(&stored.bytes, envelope::key_hash(key));
            (key.clone(), parsed.ok().map(|(header, _)| header.kind))
        })
        .collect()
    }

    pub(crate) fn set_raw(&self, key: &[u8], bytes: &[u8], ttl_ms: u64) {
        let key = Bytes::copy_from_slice(key);
        self.shared
            .store
            .lock()
            .set(&key, bytes.to_vec(), ttl_ms, Instant::now());
    }

    pub(crate) fn delete_raw(&self, key: &[u8]) {
        self.shared.store.lock().records.remove(key);
    }
}
