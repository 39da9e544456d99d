//! Interleaving tests of the engine, on the embedded tier under paused time.
//!
//! Each race is forced. A gate stops an operation of the tier before it is carried out or before
//! its reply, or the loader waits until the test lets it go on. A *node* is a cache with its own
//! L1, as in a process of its own.

use std::future::pending;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use tokio::sync::Semaphore;
use tokio::task::JoinHandle;
use tokio::time::Instant;

use crate::error::RemoteKind;
use crate::l2::{Gate, When};
use crate::protocol::record::{self, Kind};
use crate::{
    BoxError, Cache, CacheBuilder, Entry, Error, Freshness, InProcess, Loaded, Loader, Read, Source,
};

mod batches;
mod cancel;
mod closing;
mod coherence;
mod fences;
mod held_errors;
mod hot_slots;
mod interim_values;
mod leases;
mod loads;
mod polled_inline;
mod read_conditions;
mod records;
mod refresh;
mod refresh_claims;
mod simulation;
mod stale;
mod tier_failures;
mod tiers;
mod writes;

type Users = Cache<u64, String, BoxError>;
type Got = Result<Option<Arc<String>>, Error<BoxError>>;

/// Key 1 in L2.
const KEY: &[u8] = b"tidegate:users:1";
/// The TTL of the tests with stale windows.
const TTL: Duration = Duration::from_secs(10);
const MS: Duration = Duration::from_millis(1);

/// What the loader does with one call.
#[derive(Clone, Debug)]
enum Step {
    Found(&'static str),
    Missing,
    Fail(&'static str),
    Panic,
    Hang,
}

/// A source of truth. If it is gated, each load waits until the test lets it go on.
#[derive(Clone)]
struct Database {
    /// One permit for each load that has begun.
    begun: Arc<Semaphore>,
    /// One permit for each load that may go on.
    go: Arc<Semaphore>,
    calls: Arc<AtomicUsize>,
    running: Arc<AtomicUsize>,
    max_running: Arc<AtomicUsize>,
    /// The next step is the last one. One step is kept for all further calls.
    steps: Arc<parking_lot::Mutex<Vec<Step>>>,
    gated: bool,
}

impl Database {
    fn new(gated: bool, steps: impl IntoIterator<Item = Step>) -> Self {
        let mut steps: Vec<_> = steps.into_iter().collect();
        steps.reverse();
        Self {
            begun: Arc::new(Semaphore::new(0)),
            go: Arc::new(Semaphore::new(0)),
            calls: Arc::default(),
            running: Arc::default(),
            max_running: Arc::default(),
            steps: Arc::new(parking_lot::Mutex::new(steps)),
            gated,
        }
    }

    /// Waits until one more load has begun.
    async fn loading(&self) {
        self.begun.acquire().await.unwrap().forget();
    }

    /// Lets one load go on.
    fn answer(&self) {
        self.go.add_permits(1);
    }

    fn calls(&self) -> usize {
        self.calls.load(Ordering::SeqCst)
    }
}

/// Counts one running load, also if it is dropped.
struct Running(Arc<AtomicUsize>);

impl Drop for Running {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::SeqCst);
    }
}

impl Loader for Database {
    type Key = u64;
    type Value = String;
    type Error = BoxError;

    async fn load(&self, _: &u64) -> Result<Loaded<String>, BoxError> {
        self.calls.fetch_add(1, Ordering::SeqCst);
        let running = self.running.fetch_add(1, Ordering::SeqCst) + 1;
        self.max_running.fetch_max(running, Ordering::SeqCst);
        let _running = Running(Arc::clone(&self.running));
        // The step is taken at the beginning: a load reads the row as it is when the load begins.
        let step = {
            let mut steps = self.steps.lock();
            if steps.len() > 1 {
                steps.pop()
            } else {
                steps.last().cloned()
            }
        };
        self.begun.add_permits(1);
        if self.gated {
            self.go.acquire().await.unwrap().forget();
        }
        match step.expect("a step") {
            Step::Found(value) => Ok(Loaded::found(value.to_owned())),
            Step::Missing => Ok(Loaded::missing()),
            Step::Fail(message) => Err(BoxError::from(message)),
            Step::Panic => panic!("the loader panics, as the test asks"),
            Step::Hang => pending().await,
        }
    }
}

/// A cache on this tier, with settings that draw nothing at random.
fn node(source: &Database, tier: &InProcess) -> Users {
    settings(source).l2(tier.clone()).build().unwrap()
}

/// Settings without jitter and early refresh, because the tests count milliseconds.
fn settings(source: &Database) -> CacheBuilder<Database> {
    Cache::builder("users", source.clone())
        .ttl_jitter(0.0)
        .refresh_ahead(0.0)
}

fn spawn_get(cache: &Users, key: u64) -> JoinHandle<Got> {
    let cache = cache.clone();
    tokio::spawn(async move { cache.get(&key).await })
}

fn spawn_invalidate(cache: &Users, key: u64) -> JoinHandle<Result<(), crate::RemoteError>> {
    let cache = cache.clone();
    tokio::spawn(async move { cache.invalidate(&key).await })
}

fn text(got: &Got) -> Option<&str> {
    got.as_ref().unwrap().as_ref().map(|value| value.as_str())
}

/// Entries are fresh for ten seconds, answered for ten more while a new value is loaded, and for
/// twenty if that load fails.
fn with_stale_windows<L: Loader>(settings: CacheBuilder<L>) -> CacheBuilder<L> {
    settings
        .ttl(TTL)
        .stale_while_revalidate(TTL)
        .stale_if_error(TTL * 2)
}

fn stale_settings(source: &Database, tier: &InProcess) -> CacheBuilder<Database> {
    with_stale_windows(settings(source)).l2(tier.clone())
}

/// One step for each value.
fn steps(values: &[&'static str]) -> Vec<Step> {
    values.iter().map(|value| Step::Found(value)).collect()
}

/// An empty tier, and a source that answers these values, the last one from then on.
fn fixture(gated: bool, values: &[&'static str]) -> (InProcess, Database) {
    (InProcess::new(), Database::new(gated, steps(values)))
}

/// The value of key 1 and its freshness.
async fn entry(cache: &Users) -> (String, Freshness) {
    let entry = cache.get_entry(&1).await.unwrap().unwrap();
    (entry.value().to_string(), entry.freshness())
}

/// The value of key 1, its source and its freshness.
async fn sourced_entry(cache: &Users) -> (String, Source, Freshness) {
    let entry = cache.get_entry(&1).await.unwrap().unwrap();
    (entry.value().to_string(), entry.source(), entry.freshness())
}

fn spawn_get_with(cache: &Users, read: Read) -> JoinHandle<Got> {
    let cache = cache.clone();
    tokio::spawn(async move { cache.get_with(&1, read).await })
}

fn spawn_refresh(cache: &Users) -> JoinHandle<Got> {
    let cache = cache.clone();
    tokio::spawn(async move { cache.refresh(&1).await })
}

/// The key in L2 of the claim of key 1: the lease of its refresh.
fn claim_key() -> Vec<u8> {
    [b"tidegate:users::{", KEY, b"}"].concat()
}

/// A source that can tell that nothing has changed. In a reload `Step::Missing` stands for that.
#[derive(Clone)]
struct Etags(Database);

impl Loader for Etags {
    type Key = u64;
    type Value = String;
    type Error = BoxError;

    async fn load(&self, key: &u64) -> Result<Loaded<String>, BoxError> {
        Ok(self.0.load(key).await?.version(7).tag("team:7"))
    }

    async fn reload(&self, key: &u64, _: &Entry<String>) -> Result<Loaded<String>, BoxError> {
        let loaded = self.0.load(key).await?;
        Ok(if loaded.value.is_none() {
            Loaded::unchanged()
        } else {
            loaded
        })
    }
}

fn etags(source: &Database) -> CacheBuilder<Etags> {
    let settings = Cache::builder("users", Etags(source.clone()));
    with_stale_windows(settings.ttl_jitter(0.0).refresh_ahead(0.0))
}

/// The kind of the record in L2, as `redis-cli` would show it.
fn raw_kind(tier: &InProcess, key: &[u8]) -> Option<Kind> {
    tier.raw(key).map(|record| {
        record::Header::parse(&record, record::key_hash(key))
            .unwrap()
            .0
            .kind
    })
}

/// What must hold after every test: no task, flight or lease is left.
async fn validate(caches: &[&Users], tier: &InProcess) {
    for cache in caches {
        let waiting = Instant::now();
        while cache.engine().tasks.running() > 0 || cache.engine().flights.len() > 0 {
            assert!(
                waiting.elapsed() < Duration::from_secs(120),
                "something still runs: {cache:?}"
            );
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }
    validate_tier(tier);
}

/// No lease is left.
fn validate_tier(tier: &InProcess) {
    for (key, kind) in tier.kinds() {
        assert_ne!(
            kind,
            Some(Kind::Lease),
            "a lease is left on {}",
            String::from_utf8_lossy(&key)
        );
    }
}

/// Lets all tasks run until they wait. The clock does not move.
async fn settle() {
    for _ in 0..50 {
        tokio::task::yield_now().await;
    }
}
