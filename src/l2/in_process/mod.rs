//! The embedded tier: the same protocol over a map.

use std::collections::{HashMap, VecDeque};
use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Weak};
use std::time::Duration;

use bytes::Bytes;
use parking_lot::Mutex;
use tokio::time::Instant;

use super::{
    Acquired, Advance, Keys, Listener, Notice, Over, Read, Refill, WatermarkRequest,
    new_incarnation, with_watermarks,
};
use crate::codec::envelope::{self, Expiry, HEAD, HEADER, Head, STATED, WAITERS};
use crate::engine::watermarks::Watermarks;
use crate::error::RemoteError;
use crate::ttl;

#[cfg(all(test, feature = "bincode"))]
mod testing;
#[cfg(all(test, feature = "bincode"))]
use self::testing::Wire;
#[cfg(all(test, feature = "bincode"))]
pub(crate) use self::testing::{Gate, When};

#[cfg(feature = "testing")]
pub(crate) mod faults;

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
    /// Whoever works with this handle is dead: nothing of it is carried out any more.
    #[cfg(all(test, feature = "bincode"))]
    killed: Arc<std::sync::atomic::AtomicBool>,
}

struct Shared {
    /// Guards the records. Never held while a listener runs, nor across an await.
    store: Mutex<Store>,
    listeners: Mutex<HashMap<Bytes, Vec<Weak<dyn Listener>>>>,
    /// Messages that nobody has been told yet.
    undelivered: Mutex<VecDeque<Notice>>,
    /// Held by whoever tells them.
    delivery: Mutex<()>,
    commands: AtomicU64,
    /// Where the tier's clock began: the wall clock at that moment, and tokio's.
    started_ms: u64,
    started: Instant,
    #[cfg(all(test, feature = "bincode"))]
    gates: Mutex<Vec<Gate>>,
    #[cfg(all(test, feature = "bincode"))]
    wires: Mutex<Option<Vec<Wire>>>,
    /// How long an operation may be on its way over wires, and its answer too.
    #[cfg(all(test, feature = "bincode"))]
    latency_ms: AtomicU64,
    #[cfg(feature = "testing")]
    faults: Option<faults::FaultState>,
}

#[derive(Default)]
struct Store {
    records: HashMap<Bytes, StoredRecord>,
    marks: HashMap<Bytes, StoredMarks>,
    /// Expired records are swept when the map has grown to this.
    sweep_at: usize,
}

struct StoredRecord {
    bytes: Bytes,
    expires_at: Instant,
}

/// What was invalidated as a whole in one cache.
struct StoredMarks {
    watermarks: Watermarks,
    /// What was loaded before and has any tag is dead.
    floor: u64,
    tags: HashMap<u64, u64>,
}

/// Tags whose marks are kept; then the older half goes.
const MAX_TAGS: usize = 100_000;

const MIN_SWEEP_SIZE: usize = 1024;

impl Store {
    fn get(&mut self, key: &[u8], now: Instant) -> Option<&mut StoredRecord> {
        if self
            .records
            .get(key)
            .is_some_and(|stored| stored.expires_at <= now)
        {
            self.records.remove(key);
        }
        self.records.get_mut(key)
    }

    fn set(&mut self, key: &Bytes, bytes: impl Into<Bytes>, ttl_ms: u64, now: Instant) {
        if self.records.len() >= self.sweep_at.max(MIN_SWEEP_SIZE) {
            self.records.retain(|_, stored| stored.expires_at > now);
            self.sweep_at = self.records.len() * 2;
        }
        let expires_at = ttl::deadline(now, Duration::from_millis(ttl_ms));
        self.records.insert(
            key.clone(),
            StoredRecord {
                bytes: bytes.into(),
                expires_at,
            },
        );
    }

    /// Looks at the marks of a cache, as the script does on a server.
    fn update_marks(&mut self, key: &Bytes, look: &WatermarkRequest) -> (Watermarks, u64) {
        if !self.marks.contains_key(key) {
            let marks = StoredMarks {
                watermarks: Watermarks {
                    incarnation: new_incarnation(),
                    ..Watermarks::default()
                },
                floor: 0,
                tags: HashMap::new(),
            };
            self.marks.insert(key.clone(), marks);
        }
        let Some(marks) = self.marks.get_mut(key) else {
            return Default::default();
        };
        let watermarks = &mut marks.watermarks;
        if watermarks.incarnation == look.known.incarnation
            && watermarks.current < look.known.current
        {
            watermarks.current = look.known.current + 1;
            watermarks.all = watermarks.current;
        }
        match look.advance {
            Advance::Nothing => {}
            Advance::All => {
                watermarks.current += 1;
                watermarks.all = watermarks.current;
                marks.tags.clear();
            }
            Advance::Tag(tag) => {
                watermarks.current += 1;
                marks.tags.insert(tag, watermarks.current);
                if marks.tags.len() > MAX_TAGS {
                    let mut ages: Vec<u64> = marks.tags.values().copied().collect();
                    let (_, middle, _) = ages.select_nth_unstable(MAX_TAGS / 2);
                    marks.floor = *middle;
                    marks.tags.retain(|_, mark| *mark > marks.floor);
                }
            }
        }
        let of_tags = look.tags.iter().filter_map(|tag| marks.tags.get(tag));
        let latest = of_tags.copied().fold(marks.floor, u64::max);
        (marks.watermarks, latest)
    }

    /// The milliseconds that a lease of another lives on; it knows now that somebody waits. One whose
    /// load began before everything was invalidated holds nobody up.
    fn held_by_another(&mut self, key: &[u8], known: Watermarks, now: Instant) -> Option<u64> {
        let stored = self.get(key, now)?;
        if !envelope::is_lease(&stored.bytes) {
            return None;
        }
        let baseline = envelope::lease_era(&stored.bytes);
        if baseline.incarnation != known.incarnation || baseline.watermark < known.all {
            return None;
        }
        let mut watermarks = stored.bytes.to_vec();
        watermarks[WAITERS] = 1;
        stored.bytes = watermarks.into();
        Some(ttl::millis(stored.expires_at - now))
    }

    /// Keeps a record for so long at least.
    fn extend_ttl(&mut self, key: &[u8], ttl_ms: u64, now: Instant) {
        if let Some(stored) = self.get(key, now) {
            let least = ttl::deadline(now, Duration::from_millis(ttl_ms));
            stored.expires_at = stored.expires_at.max(least);
        }
    }

    /// The record that still has this head.
    fn with_head(&mut self, key: &[u8], head: Head, now: Instant) -> Option<&mut StoredRecord> {
        self.get(key, now)
            .filter(|stored| stored.bytes.get(..HEAD) == Some(&head))
    }
}

impl StoredRecord {
    fn waited_for(&self) -> bool {
        envelope::is_lease(&self.bytes) && self.bytes[WAITERS] != 0
    }
}

impl Shared {
    fn new() -> Self {
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
            gates: Mutex::default(),
            #[cfg(all(test, feature = "bincode"))]
            wires: Mutex::default(),
            #[cfg(all(test, feature = "bincode"))]
            latency_ms: AtomicU64::new(0),
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
        Self {
            shared: Arc::new(Shared::new()),
            #[cfg(all(test, feature = "bincode"))]
            killed: Arc::default(),
        }
    }

    /// How many operations were sent to this tier: what would have been commands to a server.
    pub fn commands(&self) -> u64 {
        self.shared.commands.load(Ordering::Relaxed)
    }

    /// How many records are held that have not expired: values, absences, leases, hold-offs and
    /// what failed loads leave behind.
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

    /// Whether nothing is held.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Messages come without a connection, unless a test puts one in between.
    pub(crate) fn is_direct(&self) -> bool {
        #[cfg(feature = "testing")]
        if self.shared.faults.is_some() {
            return false;
        }
        #[cfg(all(test, feature = "bincode"))]
        return self.shared.wires.lock().is_none();
        #[cfg(not(all(test, feature = "bincode")))]
        true
    }

    pub(crate) fn prefix(&self) -> &'static str {
        "tidegate"
    }

    pub(crate) fn timeout(&self) -> Duration {
        Duration::from_millis(100)
    }

    pub(crate) fn now_ms(&self) -> Option<u64> {
        let since = self.shared.started.elapsed();
        let now = self
            .shared
            .started_ms
            .saturating_add(u64::try_from(since.as_millis()).unwrap_or(u64::MAX));
        #[cfg(feature = "testing")]
        let now = self.shifted_clock(now);
        Some(now)
    }

    pub(crate) fn listen(&self, channel: &Bytes, listener: Weak<dyn Listener>) {
        #[cfg(all(test, feature = "bincode"))]
        if let Some(wires) = &mut *self.shared.wires.lock() {
            wires.push(Wire {
                channel: channel.clone(),
                listener,
                up: false,
                queue: VecDeque::new(),
            });
            return;
        }
        let strong = listener.upgrade();
        self.shared
            .listeners
            .lock()
            .entry(channel.clone())
            .or_default()
            .push(listener);
        let Some(listener) = strong else { return };
        #[cfg(feature = "testing")]
        if !self.channel_stands() {
            return self.refuse_listener(&*listener);
        }
        listener.on_up();
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

    pub(crate) async fn get_many(&self, keys: &[Bytes]) -> (Vec<Read>, Result<(), RemoteError>) {
        let read = self.run("get_many", |store, now| {
            let get = |key: &Bytes| store.get(key, now).map(|stored| stored.bytes.clone());
            keys.iter().map(get).collect::<Vec<_>>()
        });
        match read.await {
            Ok(records) => (records.into_iter().map(Ok).collect(), Ok(())),
            Err(error) => (vec![Err(()); keys.len()], Err(error)),
        }
    }

    pub(crate) async fn acquire(
        &self,
        keys: &Keys,
        lease: Vec<u8>,
        ttl_ms: u64,
        over: Over<'_>,
        known: Watermarks,
    ) -> Result<Acquired, RemoteError> {
        let refresh = matches!(over, Over::Entry(_));
        self.run("acquire", |store, now| {
            if let Some(left) = store.held_by_another(&keys.record, known, now) {
                return Acquired::Held(left);
            }
            match store.get(&keys.record, now) {
                Some(stored) if envelope::is_lease(&stored.bytes) && !refresh => {}
                Some(stored) => {
                    let replaced = match over {
                        Over::Nothing => false,
                        Over::Useless(seen) | Over::Entry(seen) => stored.bytes.starts_with(seen),
                    };
                    if !replaced {
                        return Acquired::Record(Some(stored.bytes.clone()));
                    }
                }
                None if refresh => return Acquired::Record(None),
                None => {}
            }
            let mut failures = 0;
            // Whoever refreshes a record that is dead holds up nobody.
            let respects_claim = !matches!(over, Over::Useless(_));
            if let Some(left) = store
                .held_by_another(&keys.claim, known, now)
                .filter(|_| respects_claim)
            {
                return Acquired::Held(left);
            }
            if let Some(claim) = store.get(&keys.claim, now).filter(|_| respects_claim) {
                if let Some((hold_ms, failed)) = envelope::failed(&claim.bytes) {
                    let left = ttl::millis(claim.expires_at - now).saturating_sub(hold_ms);
                    if left > 0 {
                        return Acquired::Failed(left);
                    }
                    failures = failed;
                }
            }
            if refresh {
                store.set(&keys.claim, lease, ttl_ms, now);
                store.extend_ttl(&keys.record, ttl_ms, now);
            } else {
                store.set(&keys.record, lease, ttl_ms, now);
            }
            Acquired::Granted(failures)
        })
        .await
    }

    pub(crate) async fn refill(
        &self,
        keys: &Keys,
        seen: &[u8],
        head: Head,
        refill: Refill,
        ttl_ms: u64,
        wake: Notice,
    ) -> Result<bool, RemoteError> {
        self.run("refill", |store, now| {
            let mut waited_for = false;
            if let Some(claim) = store.with_head(&keys.claim, head, now) {
                waited_for = claim.waited_for();
                store.records.remove(&keys.claim);
            }
            let found = store.get(&keys.record, now);
            let unchanged = found.filter(|stored| stored.bytes.starts_with(seen));
            let mut stored = false;
            if let Some(old) = unchanged {
                stored = true;
                match refill {
                    Refill::Record(record) => store.set(&keys.record, record, ttl_ms, now),
                    Refill::Header(header) => {
                        let renewed = [&header[..], &old.bytes[HEADER..]].concat();
                        store.set(&keys.record, renewed, ttl_ms, now);
                    }
                    Refill::Nothing => drop(store.records.remove(&keys.record)),
                }
            }
            if waited_for {
                self.publish(wake);
            }
            stored
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
        refreshed: Option<&Bytes>,
        head: Head,
        ttl_ms: u64,
    ) -> Result<bool, RemoteError> {
        self.run("renew", |store, now| {
            let Some(stored) = store.with_head(key, head, now) else {
                return false;
            };
            stored.expires_at = ttl::deadline(now, Duration::from_millis(ttl_ms));
            if let Some(refreshed) = refreshed {
                store.extend_ttl(refreshed, ttl_ms, now);
            }
            true
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

    pub(crate) async fn invalidate(
        &self,
        keys: &Keys,
        hold_off: Option<(Vec<u8>, u64)>,
        notice: Notice,
    ) -> Result<(), RemoteError> {
        self.run("invalidate", |store, now| {
            store.records.remove(&keys.record);
            store.records.remove(&keys.claim);
            if let Some((record, ttl_ms)) = hold_off {
                store.set(&keys.record, record, ttl_ms, now);
            }
            self.publish(notice);
        })
        .await
    }

    pub(crate) async fn expire(
        &self,
        keys: &Keys,
        state: Expiry,
        notice: Notice,
    ) -> Result<(), RemoteError> {
        self.run("expire", |store, now| {
            store.records.remove(&keys.claim);
            match store.get(&keys.record, now) {
                Some(stored) if envelope::is_entry(&stored.bytes) => {
                    let mut expired = stored.bytes.to_vec();
                    expired[HEAD..STATED].copy_from_slice(&state);
                    stored.bytes = expired.into();
                }
                Some(stored) if envelope::is_hold_off(&stored.bytes) => {}
                _ => {
                    store.records.remove(&keys.record);
                }
            }
            self.publish(notice);
        })
        .await
    }

    pub(crate) async fn insert(
        &self,
        keys: &Keys,
        record: Vec<u8>,
        versioned: bool,
        ttl_ms: u64,
        notice: Notice,
    ) -> Result<bool, RemoteError> {
        self.run("insert", |store, now| {
            let superseded = versioned
                && store.get(&keys.record, now).is_some_and(|stored| {
                    envelope::is_entry(&stored.bytes)
                        && envelope::version(&stored.bytes) > envelope::version(&record)
                });
            if !superseded {
                store.set(&keys.record, record, ttl_ms, now);
                store.records.remove(&keys.claim);
                self.publish(notice);
            }
            !superseded
        })
        .await
    }

    pub(crate) async fn marks(
        &self,
        key: &Bytes,
        mut look: WatermarkRequest,
    ) -> Result<(Watermarks, u64), RemoteError> {
        let operation = match look.advance {
            Advance::Nothing => "marks",
            Advance::All | Advance::Tag(_) => "raise",
        };
        self.run(operation, |store, _| {
            let notice = look.notice.take();
            let (watermarks, latest) = store.update_marks(key, &look);
            if let Some(notice) = notice {
                self.publish(marked_notice(notice, watermarks));
            }
            (watermarks, latest)
        })
        .await
    }

    /// Not counted among the commands: in one process nothing comes between.
    pub(crate) async fn beat(
        &self,
        key: &Bytes,
        known: Watermarks,
        message: Vec<u8>,
    ) -> Result<(), RemoteError> {
        let look = WatermarkRequest {
            advance: Advance::Nothing,
            known,
            tags: Vec::new(),
            notice: None,
        };
        self.run_uncounted("beat", |store, _| {
            let (watermarks, _) = store.update_marks(key, &look);
            let notice = Notice {
                channel: Bytes::new(),
                message: message.into(),
            };
            self.publish(marked_notice(notice, watermarks));
        })
        .await
    }

    #[expect(
        clippy::unused_self,
        reason = "a tier with a connection has something to do"
    )]
    pub(crate) fn renew_bus(&self) {}

    /// Ends a lease, if it is still there, in whichever way, and wakes its waiters.
    async fn finish(
        &self,
        operation: &'static str,
        key: &Bytes,
        head: Head,
        wake: Notice,
        how: impl FnOnce(&mut Store, Instant),
    ) -> Result<bool, RemoteError> {
        self.run(operation, |store, now| {
            let Some(stored) = store.with_head(key, head, now) else {
                return false;
            };
            let waited_for = stored.waited_for();
            how(store, now);
            if waited_for {
                self.publish(wake);
            }
            true
        })
        .await
    }

    /// Carries out one operation, atomically, and counts it.
    async fn run<T>(
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
    async fn run_uncounted<T>(
        &self,
        operation: &'static str,
        what: impl FnOnce(&mut Store, Instant) -> T,
    ) -> Result<T, RemoteError> {
        #[cfg(all(test, feature = "bincode"))]
        self.pass(operation, When::Before).await?;
        let _ = operation;
        #[cfg(feature = "testing")]
        let fault = self.before_operation(operation).await?;
        let result = what(&mut self.shared.store.lock(), Instant::now());
        self.deliver();
        #[cfg(all(test, feature = "bincode"))]
        self.pass(operation, When::After).await?;
        #[cfg(feature = "testing")]
        self.after_operation(operation, fault).await?;
        Ok(result)
    }

    /// Says something to those who listen: under the store's lock, so in the order of execution.
    fn publish(&self, notice: Notice) {
        self.shared.undelivered.lock().push_back(notice);
    }

    /// Tells what was said, each message to everyone before the next one, without the store's lock.
    fn deliver(&self) {
        loop {
            // Whoever finds this locked leaves its message to the one who tells.
            let Some(delivering) = self.shared.delivery.try_lock() else {
                return;
            };
            while let Some(notice) = self.next_undelivered() {
                #[cfg(all(test, feature = "bincode"))]
                self.send_over_wires(&notice);
                for listener in self.listeners_on(&notice.channel) {
                    listener.on_message(&notice.message);
                }
            }
            drop(delivering);
            // Left between the last look and the unlocking.
            if self.shared.undelivered.lock().is_empty() {
                return;
            }
        }
    }

    fn next_undelivered(&self) -> Option<Notice> {
        self.shared.undelivered.lock().pop_front()
    }

    /// Who hears a channel; the one without a name is heard by all.
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
}

/// Adds the marks to a message about them, as the script does on a server.
fn marked_notice(notice: Notice, watermarks: Watermarks) -> Notice {
    Notice {
        channel: notice.channel,
        message: with_watermarks(notice.message.to_vec(), watermarks).into(),
    }
}

impl fmt::Debug for InProcess {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("InProcess")
            .field("records", &self.len())
            .finish_non_exhaustive()
    }
}
