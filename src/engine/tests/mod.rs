//! Exact interleavings on the embedded tier, under paused time: every race is forced with a gate
//! that stops an operation before it is carried out or before its reply, or with the loader.

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
use crate::{BoxError, Cache, CacheBuilder, Error, InProcess, Loaded, Loader, Source};

mod batches;
mod cancel;
mod coherence;
mod fences;
mod first_leg;
mod hot_slots;
mod leases;
mod life;
mod loads;
mod refresh;
mod simulation;
mod stale;

type Users = Cache<u64, String, BoxError>;
type Got = Result<Option<Arc<String>>, Error<BoxError>>;

/// What the loader does with one call.
#[derive(Clone, Debug)]
enum Step {
    Found(&'static str),
    Missing,
    Fail(&'static str),
    Panic,
    Hang,
}

/// A source of truth whose every load waits to be let go.
#[derive(Clone)]
struct Database {
    begun: Arc<Semaphore>,
    go: Arc<Semaphore>,
    calls: Arc<AtomicUsize>,
    running: Arc<AtomicUsize>,
    most: Arc<AtomicUsize>,
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
            most: Arc::default(),
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
        self.most.fetch_max(running, Ordering::SeqCst);
        let _running = Running(Arc::clone(&self.running));
        // Taken at the beginning: what was read is what was there when the load began.
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

fn node(source: &Database, tier: &InProcess) -> Users {
    settings(source).l2(tier.clone()).build().unwrap()
}

/// Nothing is drawn: the tests count milliseconds.
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

const KEY: &[u8] = b"tidegate:users:1";

/// What somebody with `redis-cli` would see.
fn raw_kind(tier: &InProcess, key: &[u8]) -> Option<Kind> {
    tier.raw(key).map(|record| {
        record::Header::parse(&record, record::key_hash(key))
            .unwrap()
            .0
            .kind
    })
}

/// What must be true after every test.
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

/// Lets everything run that can run, without moving the clock.
async fn settle() {
    for _ in 0..50 {
        tokio::task::yield_now().await;
    }
}
