//! A cache that is lost under full load, in front of a source that can serve a tenth of it. Time is
//! simulated: a run of two minutes takes seconds.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tidegate::testing::Faults;
use tidegate::{BoxError, Cache, InProcess, Loaded, loader_fn};
use tokio::sync::{OnceCell, Semaphore, oneshot};
use tokio::time::{Instant, sleep, timeout};

/// The load, and the capacity of the source.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Scenario {
    /// Requests per second in the whole fleet.
    pub(crate) rate: u32,
    /// Zipf-distributed, with an exponent of 0.9.
    pub(crate) keys: u64,
    /// Concurrent queries of the source. Each takes `service`, and others wait in a queue.
    pub(crate) servers: usize,
    pub(crate) service: Duration,
    pub(crate) nodes: usize,
    /// A client gives up after this time. The source carries its query out all the same.
    pub(crate) client_timeout: Duration,
    pub(crate) ttl: Duration,
    /// When the cache is lost and when the run ends, in seconds.
    pub(crate) lost_at: usize,
    pub(crate) ends_at: usize,
}

impl Scenario {
    /// 3,000 requests a second for 6,000 keys, of which the source can serve 300.
    pub(crate) const FULL: Self = Self {
        rate: 3_000,
        keys: 6_000,
        servers: 30,
        service: Duration::from_millis(100),
        nodes: 4,
        client_timeout: Duration::from_secs(1),
        ttl: Duration::from_secs(300),
        lost_at: 20,
        ends_at: 120,
    };

    /// A tenth of the full load.
    pub(crate) const SMALL: Self = Self {
        rate: 300,
        keys: 600,
        servers: 3,
        nodes: 3,
        ends_at: 80,
        ..Self::FULL
    };
}

/// How the fleet looks keys up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Design {
    /// `GET`, and on a miss `SELECT` and `SETEX`. All of it ends when the client gives up.
    Textbook,
    /// The same, and callers of one process share a query.
    Coalescing,
    /// The same, with a connection pool no larger than the concurrency of the source.
    Pooled,
    /// This crate without a limit: loads are not bounded, but each runs to its end.
    Unlimited,
    /// This crate with `max_concurrent_loads` and a `load_timeout`.
    Limited,
    /// The same with `stale_while_revalidate`. Entries are not lost but pass their TTL, all at
    /// once.
    Stale,
}

impl Design {
    pub(crate) const ALL: [Self; 6] = [
        Self::Textbook,
        Self::Coalescing,
        Self::Pooled,
        Self::Unlimited,
        Self::Limited,
        Self::Stale,
    ];
}

/// The result of a run.
#[derive(Clone, Debug)]
pub(crate) struct Outcome {
    /// Requests of each second, and how many of them were answered in time.
    pub(crate) seconds: Vec<(u32, u32)>,
    pub(crate) queries: u64,
    /// Queries whose client had given up before the answer.
    pub(crate) wasted: u64,
    /// The longest queue of queries.
    pub(crate) longest_queue: u64,
    lost_at: usize,
}

impl Outcome {
    /// The share of a second's requests that were answered.
    pub(crate) fn good(&self, second: usize) -> f64 {
        let (asked, answered) = self.seconds.get(second).copied().unwrap_or_default();
        f64::from(answered) / f64::from(asked.max(1))
    }

    /// The seconds from the loss until every later second answers 95 per cent.
    pub(crate) fn recovered_after(&self) -> Option<usize> {
        let last_bad = (0..self.seconds.len()).rfind(|second| self.good(*second) < 0.95);
        let good_from = last_bad.map_or(self.lost_at, |bad| bad + 1);
        (good_from < self.seconds.len()).then(|| good_from.saturating_sub(self.lost_at))
    }

    /// Requests that failed since the loss.
    pub(crate) fn failed(&self) -> u32 {
        let since = self.seconds.iter().skip(self.lost_at);
        since.map(|(asked, answered)| asked - answered).sum()
    }
}

/// Runs the simulation from its beginning to its end.
pub(crate) fn run(scenario: Scenario, design: Design, seed: u64) -> Result<Outcome, BoxError> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .start_paused(true)
        .build()
        .map_err(BoxError::new)?;
    runtime.block_on(drive(scenario, design, seed))
}

async fn drive(scenario: Scenario, design: Design, seed: u64) -> Result<Outcome, BoxError> {
    let source = Source::new(scenario);
    let mut rng = Rng(seed.max(1));
    let fleet = Arc::new(Fleet::new(scenario, design, &source, &mut rng).await?);
    let zipf = Zipf::new(scenario.keys);
    let seconds = Arc::new(Mutex::new(vec![(0, 0); scenario.ends_at]));
    let queries_before = source.0.queries.load(Ordering::Relaxed);
    let (begun, period) = (Instant::now(), Duration::from_secs(3) / scenario.rate);
    let mut ticks = tokio::time::interval(period);
    let (mut lost, mut request) = (false, 0);
    loop {
        let now = ticks.tick().await - begun;
        let second = usize::try_from(now.as_secs()).unwrap_or(usize::MAX);
        if second >= scenario.ends_at {
            break;
        }
        if !lost && second >= scenario.lost_at {
            lost = true;
            fleet.lose(design, scenario.ttl);
        }
        for _ in 0..3 {
            request += 1;
            let (fleet, seconds) = (Arc::clone(&fleet), Arc::clone(&seconds));
            let (key, node) = (zipf.draw(&mut rng), request % scenario.nodes);
            lock(&seconds)[second].0 += 1;
            tokio::spawn(async move {
                if timeout(scenario.client_timeout, fleet.get(node, key)).await == Ok(true) {
                    lock(&seconds)[second].1 += 1;
                }
            });
        }
    }
    sleep(scenario.client_timeout * 2).await;
    let seconds = lock(&seconds).clone();
    let of = |number: &AtomicU64| number.load(Ordering::Relaxed);
    Ok(Outcome {
        seconds,
        queries: of(&source.0.queries) - queries_before,
        wasted: of(&source.0.wasted),
        longest_queue: of(&source.0.longest),
        lost_at: scenario.lost_at,
    })
}

/// A database. It carries every query out in turn, whether a client still waits for it or not.
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
    fn new(scenario: Scenario) -> Self {
        Self(Arc::new(Servers {
            servers: Semaphore::new(scenario.servers),
            service: scenario.service,
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
    /// All entries are cached at first and expire at different times.
    async fn new(
        scenario: Scenario,
        design: Design,
        source: &Source,
        rng: &mut Rng,
    ) -> Result<Self, BoxError> {
        let ttl_ms = u64::try_from(scenario.ttl.as_millis()).unwrap_or(u64::MAX);
        let mut ttls =
            (0..scenario.keys).map(|key| (key, Duration::from_millis(rng.below(ttl_ms))));
        if matches!(
            design,
            Design::Textbook | Design::Coalescing | Design::Pooled
        ) {
            let now = Instant::now();
            let entries: HashMap<u64, Instant> = ttls.map(|(key, ttl)| (key, now + ttl)).collect();
            let shared = Arc::new(Mutex::new(entries));
            let per_node = scenario.servers / scenario.nodes;
            let nodes = (0..scenario.nodes).map(|_| Textbook {
                shared: Arc::clone(&shared),
                source: source.clone(),
                ttl: scenario.ttl,
                flights: (design != Design::Textbook).then(Mutex::default),
                pool: (design == Design::Pooled).then(|| Semaphore::new(per_node)),
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
            let mut builder = Cache::builder("things", load).ttl(scenario.ttl);
            if design != Design::Unlimited {
                builder = builder
                    .max_concurrent_loads(scenario.servers / scenario.nodes)
                    .load_timeout(scenario.client_timeout);
            }
            if design == Design::Stale {
                // L1 uses this process's clock, by which no entry is past its TTL.
                builder = builder
                    .stale_while_revalidate(scenario.ttl * 2)
                    .l1_capacity(0);
            }
            builder.l2(tier.clone()).build().map_err(BoxError::new)
        };
        let nodes: Vec<_> = (0..scenario.nodes)
            .map(|_| node())
            .collect::<Result<_, _>>()?;
        for (key, ttl) in &mut ttls {
            let entry = Loaded::found(key).ttl(ttl + Duration::from_millis(1));
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

    fn lose(&self, design: Design, ttl: Duration) {
        match self {
            Self::Textbook(nodes) => lock(&nodes[0].shared).clear(),
            Self::Tidegate(_, faults) if design == Design::Stale => faults.clock_ahead(ttl),
            Self::Tidegate(_, faults) => faults.flush(),
        }
    }
}

/// The cache-aside code of a textbook.
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
        // When the loading caller gives up, one of the waiters begins again.
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

/// A xorshift generator with a fixed seed: the same numbers in every run.
struct Rng(u64);

impl Rng {
    fn below(&mut self, sides: u64) -> u64 {
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

    fn draw(&self, rng: &mut Rng) -> u64 {
        let most = self.0.last().copied().unwrap_or(1.0);
        let drawn = rng.below(1 << 32) as f64 / 2f64.powi(32) * most;
        self.0.partition_point(|sum| *sum < drawn) as u64
    }
}
