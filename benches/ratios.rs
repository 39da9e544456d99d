//! The cost of tidegate, as ratios against limits measured in the same run.
//!
//! ```text
//! cargo bench --bench ratios
//! ```
//!
//! Absolute times mean nothing on a shared machine. Each line alternates between the limit (bare
//! moka, bare fred) and tidegate, round by round, and prints the medians of their times and of the
//! rounds' ratios. Needs a `redis-server` on the PATH, or named in `TIDEGATE_REDIS_SERVER`.
//! `-- --test` only checks that everything runs.

use std::future::Future;
use std::process::ExitCode;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Barrier};
use std::time::{Duration, Instant};

use bytes::Bytes;
use fred::clients::Client;
use fred::interfaces::ClientLike;
use fred::types::config::Config;
use fred::types::{Builder, ClusterHash, CustomCommand, Value};
use serde::{Deserialize, Serialize};
use tidegate::{BoxError, Cache, CacheBuilder, Channel, InProcess, Loader, Redis, loader_fn};
use tokio::runtime::Runtime;

use self::support::{Server, median, time};

mod support;

const KEYS: u64 = 1_000;
const CALLERS: u64 = 64;
/// The first of the keys that fill an L1.
const FILLED: u64 = 1 << 40;

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct User {
    id: u64,
    name: String,
    mail: String,
    roles: Vec<String>,
}

fn user(id: u64) -> User {
    User {
        id,
        name: format!("User number {id}"),
        mail: format!("user-{id}@example.com"),
        roles: vec!["reader".to_owned(), "writer".to_owned()],
    }
}

type Users = Cache<u64, User, BoxError>;

fn builder(
    name: &str,
) -> CacheBuilder<impl Loader<Key = u64, Value = User, Error = BoxError> + use<>> {
    let load = loader_fn(|id: u64| async move { Ok::<_, BoxError>(Some(user(id))) });
    Cache::builder(name, load).ttl(Duration::from_secs(3_600))
}

fn main() -> ExitCode {
    let quick = std::env::args().any(|arg| arg == "--test");
    match run(if quick { 100 } else { 1 }) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("ratios: {error}");
            ExitCode::FAILURE
        }
    }
}

/// `share`: the divisor of the usual number of repetitions.
fn run(share: u64) -> Result<(), BoxError> {
    let rounds = if share > 1 { 1 } else { 21 };
    let server = Server::start()?;
    let mut lines = Vec::new();
    for threads in [1, 2] {
        for choice in [KeyChoice::One, KeyChoice::OneEach, KeyChoice::All] {
            if threads > 1 || choice != KeyChoice::OneEach {
                lines.push(l1_hit(rounds, 500_000 / share, threads, choice)?);
            }
        }
    }
    let runtime = Runtime::new().map_err(BoxError::new)?;
    runtime.block_on(async {
        let bench = Remote::new(&server.url()).await?;
        lines.push(bench.l2_hit(rounds, 2_000 / share).await?);
        lines.push(bench.l2_hits(rounds, 400 / share.min(20)).await?);
        for store_in in [StoreIn::Nowhere, StoreIn::Moka] {
            let each = 160 / share.min(20);
            lines.push(bench.l2_fills(rounds, each, store_in).await?);
        }
        lines.push(bench.miss(rounds, 1_000 / share).await?);
        Ok::<_, BoxError>(())
    })?;
    println!("| operation | limit | time of the limit | time of tidegate | ratio | goal |");
    println!("|---|---|---|---|---|---|");
    for line in lines {
        println!("{line}");
    }
    Ok(())
}

/// Times of the limit and of tidegate for one operation, round by round.
#[derive(Default)]
struct Rounds(Vec<(f64, f64)>);

impl Rounds {
    fn line(&self, what: &str, limit: &str, yardstick: &str, throughput: bool) -> String {
        let of = |pick: fn(&(f64, f64)) -> f64| median(self.0.iter().map(pick).collect());
        let (bare, ours) = (of(|round| round.0), of(|round| round.1));
        // Throughput is better when higher, so this is the share of the limit that is reached.
        let (ratio, bare, ours) = if throughput {
            let per_second = |seconds: f64| format!("{:.0}/s", 1.0 / seconds);
            (
                of(|round| round.0 / round.1),
                per_second(bare),
                per_second(ours),
            )
        } else {
            (of(|round| round.1 / round.0), time(bare), time(ours))
        };
        format!("| {what} | {limit} | {bare} | {ours} | {ratio:.2} × | {yardstick} |")
    }
}

#[expect(
    clippy::cast_precision_loss,
    reason = "counts of repetitions are small"
)]
fn each(took: Duration, times: u64) -> f64 {
    took.as_secs_f64() / times as f64
}

/// The keys that the threads look up.
#[derive(Clone, Copy, PartialEq)]
enum KeyChoice {
    One,
    OneEach,
    All,
}

impl KeyChoice {
    fn key(self, thread: u64, at: u64) -> u64 {
        match self {
            Self::One => 0,
            Self::OneEach => thread,
            Self::All => at % KEYS,
        }
    }
}

/// L1 hits on this many threads, with the check of the subscription.
fn l1_hit(rounds: usize, times: u64, threads: u64, choice: KeyChoice) -> Result<String, BoxError> {
    let runtime = Runtime::new().map_err(BoxError::new)?;
    let bare = moka::sync::Cache::new(10_000);
    let ours: Users = builder("hits")
        .l2(InProcess::new())
        .build()
        .map_err(BoxError::new)?;
    for id in 0..KEYS {
        bare.insert(id, Arc::new(user(id)));
        runtime.block_on(ours.get(&id)).map_err(BoxError::new)?;
    }
    let mut measured = Rounds::default();
    for _ in 0..rounds {
        let limit = side_by_side(threads, |thread| {
            for at in 0..times {
                std::hint::black_box(bare.get(&choice.key(thread, at)));
            }
        });
        let tidegate = side_by_side(threads, |thread| {
            let runtime = tokio::runtime::Builder::new_current_thread().build();
            runtime.map(|runtime| {
                runtime.block_on(async {
                    for at in 0..times {
                        let _ = std::hint::black_box(ours.get(&choice.key(thread, at)).await);
                    }
                })
            })
        });
        measured.0.push((each(limit, times), each(tidegate, times)));
    }
    if ours.stats().loads != KEYS {
        return Err("these were not L1 hits".into());
    }
    let (keys, yardstick) = match choice {
        KeyChoice::One => ("one key".to_owned(), "≤ 0.5 ×"),
        KeyChoice::OneEach => ("a key each".to_owned(), "≤ 0.5 ×"),
        KeyChoice::All => (format!("{KEYS} keys"), "≤ 1 ×"),
    };
    let what = format!("L1 hit, {keys}, {threads} thread(s)");
    Ok(measured.line(&what, "`moka::sync::Cache::get`", yardstick, false))
}

/// The time until the slowest thread is done.
fn side_by_side<T>(threads: u64, what: impl Fn(u64) -> T + Sync) -> Duration {
    let barrier = Barrier::new(usize::try_from(threads).unwrap_or(1));
    std::thread::scope(|scope| {
        let running: Vec<_> = (0..threads)
            .map(|thread| {
                let (barrier, what) = (&barrier, &what);
                scope.spawn(move || {
                    barrier.wait();
                    let begun = Instant::now();
                    what(thread);
                    begun.elapsed()
                })
            })
            .collect();
        running
            .into_iter()
            .filter_map(|thread| thread.join().ok())
            .max()
            .unwrap_or_default()
    })
}

/// What the limit does with a value that it has read.
#[derive(Clone, Copy, PartialEq)]
enum StoreIn {
    Nowhere,
    /// Puts it into an empty `moka::sync::Cache`.
    Moka,
}

/// Both sides on one server, each with one connection for commands.
struct Remote {
    bare: Client,
    redis: Redis,
    ours: Users,
    next: AtomicU64,
}

impl Remote {
    async fn new(url: &str) -> Result<Self, BoxError> {
        let config = Config::from_url(url).map_err(BoxError::new)?;
        let bare = Builder::from_config(config)
            .build()
            .map_err(BoxError::new)?;
        bare.init().await.map_err(BoxError::new)?;
        let redis = Redis::builder(url).timeout(Duration::from_secs(5));
        let redis = redis.connect().await.map_err(BoxError::new)?;
        let ours = builder("users").l1_capacity(0).l2(redis.clone());
        let remote = Self {
            bare,
            redis,
            ours: ours.build().map_err(BoxError::new)?,
            next: AtomicU64::new(KEYS),
        };
        for id in 0..KEYS {
            remote.ours.get(&id).await.map_err(BoxError::new)?;
            remote.set(id, None).await?;
        }
        Ok(remote)
    }

    async fn command(&self, name: &'static str, args: Vec<Value>) -> Result<Value, BoxError> {
        let command = CustomCommand::new_static(name, ClusterHash::FirstKey, false);
        self.bare.custom(command, args).await.map_err(BoxError::new)
    }

    async fn read(&self, id: u64) -> Result<Option<User>, BoxError> {
        let reply = self.command("GET", vec![key(id)]).await?;
        let Some(bytes) = reply.into_bytes() else {
            return Ok(None);
        };
        let (user, _) = bincode::serde::decode_from_slice(
            &bytes,
            bincode::config::standard().with_limit::<MIB>(),
        )
        .map_err(BoxError::new)?;
        Ok(Some(user))
    }

    async fn set(&self, id: u64, only: Option<&'static str>) -> Result<(), BoxError> {
        let bytes = bincode::serde::encode_to_vec(user(id), bincode::config::standard())
            .map_err(BoxError::new)?;
        let mut args = vec![
            key(id),
            Bytes::from(bytes).into(),
            "PX".into(),
            "600000".into(),
        ];
        args.extend(only.map(Value::from));
        self.command("SET", args).await.map(drop)
    }

    /// One look-up after the other.
    async fn l2_hit(&self, rounds: usize, times: u64) -> Result<String, BoxError> {
        let mut measured = Rounds::default();
        for _ in 0..rounds {
            let begun = Instant::now();
            for at in 0..times {
                assert!(self.read(at % KEYS).await?.is_some(), "a value");
            }
            let limit = begun.elapsed();
            let begun = Instant::now();
            for at in 0..times {
                let found = self.ours.get(&(at % KEYS)).await.map_err(BoxError::new)?;
                assert!(found.is_some(), "a value");
            }
            measured
                .0
                .push((each(limit, times), each(begun.elapsed(), times)));
        }
        self.check()?;
        Ok(measured.line(
            "L2 hit, latency, c = 1",
            "fred GET + bincode",
            "≤ 1.3 ×",
            false,
        ))
    }

    /// Many concurrent callers, each with keys of its own, so that nothing is coalesced.
    async fn l2_hits(&self, rounds: usize, times: u64) -> Result<String, BoxError> {
        let mut measured = Rounds::default();
        for _ in 0..rounds {
            let limit = at_once(|caller| {
                let bare = self.clone();
                async move {
                    for at in 0..times {
                        bare.read(own_key(caller, at)).await?;
                    }
                    Ok(())
                }
            })
            .await?;
            let tidegate = at_once(|caller| {
                let ours = self.ours.clone();
                async move {
                    for at in 0..times {
                        let got = ours.get(&own_key(caller, at)).await;
                        got.map_err(BoxError::new)?;
                    }
                    Ok(())
                }
            })
            .await?;
            let all = CALLERS * times;
            measured.0.push((each(limit, all), each(tidegate, all)));
        }
        self.check()?;
        let what = format!("L2 hits, throughput, c = {CALLERS}");
        Ok(measured.line(&what, "fred GET + bincode", "≥ 0.85 ×", true))
    }

    /// The same by a cache with an empty L1, which the answers fill.
    async fn l2_fills(
        &self,
        rounds: usize,
        times: u64,
        store_in: StoreIn,
    ) -> Result<String, BoxError> {
        // Numbers that no other measurement uses.
        let key = move |caller, at| FILLED + caller * times + at;
        let filled = builder("users").l1_capacity(0).l2(self.redis.clone());
        let filled = filled.build().map_err(BoxError::new)?;
        for id in FILLED..key(CALLERS, 0) {
            filled.get(&id).await.map_err(BoxError::new)?;
            self.set(id, None).await?;
        }
        let mut measured = Rounds::default();
        for _ in 0..rounds {
            let l1 = moka::sync::Cache::new(100_000);
            let limit = at_once(|caller| {
                let (bare, l1) = (self.clone(), l1.clone());
                async move {
                    for id in (0..times).map(|at| key(caller, at)) {
                        if store_in == StoreIn::Moka && l1.get(&id).is_some() {
                            continue;
                        }
                        let user = bare.read(id).await?.ok_or("it is not there")?;
                        if store_in == StoreIn::Moka {
                            l1.insert(id, Arc::new(user));
                        }
                    }
                    Ok(())
                }
            })
            .await?;
            let ours = builder("users").l1_capacity(100_000);
            let ours = ours.l2(self.redis.clone()).build();
            let ours: Users = ours.map_err(BoxError::new)?;
            while ours.health().channel != Channel::Proven {
                ours.get(&0).await.map_err(BoxError::new)?;
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
            let tidegate = at_once(|caller| {
                let ours = ours.clone();
                async move {
                    for id in (0..times).map(|at| key(caller, at)) {
                        ours.get(&id).await.map_err(BoxError::new)?;
                    }
                    Ok(())
                }
            })
            .await?;
            let (all, stats) = (CALLERS * times, ours.stats());
            if stats.loads > 0 || ours.peek(&key(0, 0)).is_none() {
                return Err("L2 did not fill L1".into());
            }
            measured.0.push((each(limit, all), each(tidegate, all)));
        }
        self.check()?;
        let what = format!("L2 hits that fill an L1, c = {CALLERS}");
        let (limit, yardstick) = match store_in {
            StoreIn::Nowhere => ("fred GET + bincode", "≥ 0.85 ×"),
            StoreIn::Moka => ("and moka's `get` and `insert`", "≥ 0.85 ×"),
        };
        Ok(measured.line(&what, limit, yardstick, true))
    }

    /// Cold keys, with a loader that answers at once.
    async fn miss(&self, rounds: usize, times: u64) -> Result<String, BoxError> {
        let mut measured = Rounds::default();
        for _ in 0..rounds {
            let first = self.next.fetch_add(times, Ordering::Relaxed);
            let begun = Instant::now();
            for id in first..first + times {
                assert!(self.read(id).await?.is_none(), "nothing");
                self.set(id, Some("NX")).await?;
                self.set(id, None).await?;
            }
            let limit = begun.elapsed();
            let begun = Instant::now();
            for id in first..first + times {
                self.ours.get(&id).await.map_err(BoxError::new)?;
            }
            measured
                .0
                .push((each(limit, times), each(begun.elapsed(), times)));
        }
        self.check()?;
        Ok(measured.line("miss", "GET, SET NX, SET", "≤ 1.2 ×", false))
    }

    /// Checks that the counters confirm what the table says.
    fn check(&self) -> Result<(), BoxError> {
        let (stats, keys) = (self.ours.stats(), self.next.load(Ordering::Relaxed));
        if stats.loads == keys && stats.fills == keys && stats.coalesced == 0 && stats.l1_hits == 0
        {
            Ok(())
        } else {
            Err(format!("{keys} keys, but {stats:?}").into())
        }
    }
}

impl Clone for Remote {
    fn clone(&self) -> Self {
        Self {
            bare: self.bare.clone(),
            redis: self.redis.clone(),
            ours: self.ours.clone(),
            next: AtomicU64::new(self.next.load(Ordering::Relaxed)),
        }
    }
}

const MIB: usize = 1 << 20;

fn key(id: u64) -> Value {
    format!("bare:users:{id}").into()
}

fn own_key(caller: u64, at: u64) -> u64 {
    let own = KEYS / CALLERS;
    caller * own + at % own
}

/// The time until all callers are done.
async fn at_once<F>(caller: impl Fn(u64) -> F) -> Result<Duration, BoxError>
where
    F: Future<Output = Result<(), BoxError>> + Send + 'static,
{
    let begun = Instant::now();
    let mut running = tokio::task::JoinSet::new();
    for number in 0..CALLERS {
        running.spawn(caller(number));
    }
    while let Some(ended) = running.join_next().await {
        ended.map_err(BoxError::new)??;
    }
    Ok(begun.elapsed())
}
