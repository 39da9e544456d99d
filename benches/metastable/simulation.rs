//! A cache that is lost under full load, in front of a source that can serve a tenth of it. Simulated
//! time: a run of two minutes takes seconds.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tidegate::testing::Faults;
use tidegate::{BoxError, Cache, InProcess, Loaded, loader_fn};
use tokio::sync::{OnceCell, Semaphore, oneshot};
use tokio::time::{Instant, sleep, timeout};

/// What is offered, and what can be borne.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Scene {
    /// Requests per second, in the whole fleet.
    pub(crate) rate: u32,
    /// Zipf-distributed, with an exponent of 0.9.
    pub(crate) keys: u64,
    /// The source answers so many queries at a time, each after `service`; others wait in line.
    pub(crate) servers: usize,
    pub(crate) service: Duration,
    pub(crate) nodes: usize,
    /// After so long a client goes away. What it asked the source for is carried out all the same.
    pub(crate) patience: Duration,
    pub(crate) ttl: Duration,
    /// When the cache is lost, and when the run ends, in seconds.
    pub(crate) lost_at: usize,
    pub(crate) ends_at: usize,
}

impl Scene {
    /// 3,000 requests a second for 6,000 keys; the source serves 300.
    pub(crate) const FULL: Self = Self {
        rate: 3_000,
        keys: 6_000,
        servers: 30,
        service: Duration::from_millis(100),
        nodes: 4,
        patience: Duration::from_secs(1),
        ttl: Duration::from_secs(300),
        lost_at: 20,
        ends_at: 120,
    };

    /// A tenth of it.
    pub(crate) const SMALL: Self = Self {
        rate: 300,
        keys: 600,
        servers: 3,
        nodes: 3,
        ends_at: 80,
        ..Self::FULL
    };
}

/// How the fleet looks things up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Way {
    /// `GET`; on a miss `SELECT`, then `SETEX`; all of it ends when the client goes away.
    Textbook,
    /// The same, and callers of one process share a query.
    Coalescing,
    /// The same, with a pool of connections that is no larger than what the source can work on.
    Pooled,
    /// This crate, without a limit: what a load costs is not bounded, but it runs to its end.
    Unlimited,
    /// With `max_concurrent_loads` and a `load_timeout`.
    Limited,
    /// The same with `stale_while_revalidate`; entries are not lost, but past their TTL, all at once.
    Stale,
}

impl Way {
    pub(crate) const ALL: [Self; 6] = [
        Self::Textbook,
        Self::Coalescing,
        Self::Pooled,
        Self::Unlimited,
        Self::Limited,
        Self::Stale,
    ];
}

/// What came of it.
#[derive(Clone, Debug)]
pub(crate) struct Outcome {
    /// For each second: requests, and those among them that were answered in time.
    pub(crate) seconds: Vec<(u32, u32)>,
    pub(crate) queries: u64,
    /// Queries whose asker had gone when the answer was there.
    pub(crate) wasted: u64,
    /// Most queries that waited in line.
    pub(crate) longest_line: u64,
    lost_at: usize,
}

impl Outcome {
    /// The share of a second's requests that were answered.
    pub(crate) fn good(&self, second: usize) -> f64 {
        let (asked, answered) = self.seconds.get(second).copied().unwrap_or_default();
        f64::from(answered) / f64::from(asked.max(1))
    }

    /// Seconds from the loss until 95 per cent are answered, from then on in every second.
    pub(crate) fn recovered_after(&self) -> Option<usize> {
        let last_bad = (0..self.seconds.len()).rfind(|second| self.good(*second) < 0.95);
        let good_from = last_bad.map_or(self.lost_at, |bad| bad + 1);
        (good_from < self.seconds.len()).then(|| good_from.saturating_sub(self.lost_at))
    }

    /// Requests that failed, since the loss.
    pub(crate) fn failed(&self) -> u32 {
        let since = self.seconds.iter().skip(self.lost_at);
        since.map(|(asked, answered)| asked - answered).sum()
    }
}

/// Runs it from the beginning to the end.
pub(crate) fn run(scene: Scene, way: Way, seed: u64) -> Result<Outcome, BoxError> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .start_paused(true)
        .build()
        .map_err(BoxError::new)?;
    runtime.block_on(drive(scene, way, seed))
}

async fn drive(scene: Scene, way: Way, seed: u64) -> Result<Outcome, BoxError> {
    let source = Source::new(scene);
    let mut dice = Dice(seed.max(1));
    let fleet = Arc::new(Fleet::new(scene, way, &source, &mut dice).await?);
    let zipf = Zipf::new(scene.keys);
    let seconds = Arc::new(Mutex::new(vec![(0, 0); scene.ends_at]));
    let queries_before = source.0.queries.load(Ordering::Relaxed);
    let (begun, period) = (Instant::now(), Duration::from_secs(3) / scene.rate);
    let mut ticks = tokio::time::interval(period);
    let (mut lost, mut request) = (false, 0);
    loop {
        let now = ticks.tick().await - begun;
        let second = usize::try_from(now.as_secs()).unwrap_or(usize::MAX);
        if second >= scene.ends_at {
            break;
        }
        if !lost && second >= scene.lost_at {
            lost = true;
            fleet.lose(way, scene.ttl);
        }
        for _ in 0..3 {
            request += 1;
            let (fleet, seconds) = (Arc::clone(&fleet), Arc::clone(&seconds));
            let (key, node) = (zipf.draw(&mut dice), request % scene.nodes);
            lock(&seconds)[second].0 += 1;
            tokio::spawn(async move {
                if timeout(scene.patience, fleet.get(node, key)).await == Ok(true) {
                    lock(&seconds)[second].1 += 1;
                }
            });
        }
    }
    sleep(scene.patience * 2).await;
    let seconds = lock(&seconds).clone();
    let of = |number: &AtomicU64| number.load(Ordering::Relaxed);
    Ok(Outcome {
        seconds,
        queries: of(&source.0.queries) - queries_before,
        wasted: of(&source.0.wasted),
        longest_line: of(&source.0.longest),
        lost_at: scene.lost_at,
    })
}

/// A database: what has been asked for is carried out, in turn, whoever still waits for it.
#[derive(Clone)]
struct Source(Arc<Servers>);

struct Servers {
    servers: Semaphore,
    service: Duration,
    waiting: AtomicU64,
    longest: AtomicU64,
    queries: AtomicU64,
    wasted: AtomicU64,
}

impl Source {
    fn new(scene: Scene) -> Self {
        Self(Arc::new(Servers {
            servers: Semaphore::new(scene.servers),
            service: scene.service,
            waiting: AtomicU64::new(0),
            longest: AtomicU64::new(0),
            queries: AtomicU64::new(0),
            wasted: AtomicU64::new(0),
        }))
    }

    async fn query(&self, key: u64) -> Result<u64, BoxError> {
        let (reply, answer) = oneshot::channel();
        let source = Arc::clone(&self.0);
        tokio::spawn(async move {
            let waiting = source.waiting.fetch_add(1, Ordering::Relaxed) + 1;
            source.longest.fetch_max(waiting, Ordering::Relaxed);
            let server = source.servers.acquire().await;
            source.waiting.fetch_sub(1, Ordering::Relaxed);
            sleep(source.service).await;
            source.queries.fetch_add(1, Ordering::Relaxed);
            if reply.send(key).is_err() {
                source.wasted.fetch_add(1, Ordering::Relaxed);
            }
            drop(server);
        });
        answer.await.map_err(BoxError::new)
    }
}

enum Fleet {
    Textbook(Vec<Textbook>),
    Tidegate(Vec<Cache<u64, u64, BoxError>>, Faults),
}

impl Fleet {
    /// All entries are there, and will expire at different times.
    async fn new(
        scene: Scene,
        way: Way,
        source: &Source,
        dice: &mut Dice,
    ) -> Result<Self, BoxError> {
        let ttl_ms = u64::try_from(scene.ttl.as_millis()).unwrap_or(u64::MAX);
        let mut lives = (0..scene.keys).map(|key| (key, Duration::from_millis(dice.roll(ttl_ms))));
        if matches!(way, Way::Textbook | Way::Coalescing | Way::Pooled) {
            let now = Instant::now();
            let entries: HashMap<u64, Instant> =
                lives.map(|(key, life)| (key, now + life)).collect();
            let shared = Arc::new(Mutex::new(entries));
            let per_node = scene.servers / scene.nodes;
            let nodes = (0..scene.nodes).map(|_| Textbook {
                shared: Arc::clone(&shared),
                source: source.clone(),
                ttl: scene.ttl,
                flights: (way != Way::Textbook).then(Mutex::default),
                pool: (way == Way::Pooled).then(|| Semaphore::new(per_node)),
            });
            return Ok(Self::Textbook(nodes.collect()));
        }
        let (tier, faults) = InProcess::with_faults();
        let node = || {
            let source = source.clone();
            let load = loader_fn(move |key: u64| {
                let source = source.clone();
                async move { source.query(key).await }
            });
            let mut builder = Cache::builder("things", load).ttl(scene.ttl);
            if way != Way::Unlimited {
                builder = builder
                    .max_concurrent_loads(scene.servers / scene.nodes)
                    .load_timeout(scene.patience);
            }
            if way == Way::Stale {
                // L1 goes by this process's clock: nothing is past its TTL there.
                builder = builder.stale_while_revalidate(scene.ttl * 2).l1_capacity(0);
            }
            builder.l2(tier.clone()).build().map_err(BoxError::new)
        };
        let nodes: Vec<_> = (0..scene.nodes).map(|_| node()).collect::<Result<_, _>>()?;
        for (key, life) in &mut lives {
            let entry = Loaded::found(key).ttl(life + Duration::from_millis(1));
            nodes[0].insert(key, entry).await.map_err(BoxError::new)?;
        }
        Ok(Self::Tidegate(nodes, faults))
    }

    async fn get(&self, node: usize, key: u64) -> bool {
        match self {
            Self::Textbook(nodes) => nodes[node].get(key).await,
            Self::Tidegate(nodes, _) => nodes[node].get(&key).await.is_ok(),
        }
    }

    fn lose(&self, way: Way, ttl: Duration) {
        match self {
            Self::Textbook(nodes) => lock(&nodes[0].shared).clear(),
            Self::Tidegate(_, faults) if way == Way::Stale => faults.clock_ahead(ttl),
            Self::Tidegate(_, faults) => faults.flush(),
        }
    }
}

/// What a team writes in an afternoon.
struct Textbook {
    shared: Arc<Mutex<HashMap<u64, Instant>>>,
    source: Source,
    ttl: Duration,
    flights: Option<Mutex<HashMap<u64, Arc<OnceCell<()>>>>>,
    pool: Option<Semaphore>,
}

impl Textbook {
    async fn get(&self, key: u64) -> bool {
        if lock(&self.shared)
            .get(&key)
            .is_some_and(|until| *until > Instant::now())
        {
            return true;
        }
        let Some(flights) = &self.flights else {
            return self.load(key).await.is_ok();
        };
        let flight = Arc::clone(lock(flights).entry(key).or_default());
        // Where the one who loads goes away, one of those who wait begins anew.
        let result = flight.get_or_try_init(|| self.load(key)).await;
        lock(flights).remove(&key);
        result.is_ok()
    }

    async fn load(&self, key: u64) -> Result<(), BoxError> {
        let connection = match &self.pool {
            Some(pool) => Some(pool.acquire().await.map_err(BoxError::new)?),
            None => None,
        };
        self.source.query(key).await?;
        drop(connection);
        lock(&self.shared).insert(key, Instant::now() + self.ttl);
        Ok(())
    }
}

fn lock<T>(of: &Mutex<T>) -> MutexGuard<'_, T> {
    of.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Random enough, and the same in every run.
struct Dice(u64);

impl Dice {
    fn roll(&mut self, sides: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % sides
    }
}

struct Zipf(Vec<f64>);

#[expect(clippy::cast_precision_loss, reason = "small numbers")]
impl Zipf {
    fn new(keys: u64) -> Self {
        let mut sum = 0.0;
        let sums = (1..=keys).map(|rank| {
            sum += (rank as f64).powf(-0.9);
            sum
        });
        Self(sums.collect())
    }

    fn draw(&self, dice: &mut Dice) -> u64 {
        let most = self.0.last().copied().unwrap_or(1.0);
        let drawn = dice.roll(1 << 32) as f64 / 2f64.powi(32) * most;
        self.0.partition_point(|sum| *sum < drawn) as u64
    }
}
