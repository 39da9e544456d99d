//! The cost of `get_many`, as ratios within one run.
//!
//! ```text
//! cargo bench --bench batches
//! ```
//!
//! Each line alternates between a limit or an alternative and `get_many`, round by round, and
//! prints the medians. Needs a `redis-server` on the PATH, or named in `TIDEGATE_REDIS_SERVER`.
//! `-- --test` only checks that everything runs.

use std::collections::HashMap;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use fred::clients::Client;
use fred::interfaces::ClientLike;
use fred::types::config::Config;
use fred::types::{Builder, ClusterHash, CustomCommand, Value};
use serde::{Deserialize, Serialize};
use tidegate::{BatchLoader, Batching, BoxError, Cache, CacheBuilder, Loaded, Loader, Redis};
use tokio::task::JoinSet;

use self::support::{Server, median, time};

mod support;

/// Keys of one call.
const MANY: u64 = 100;
/// Keys in the cache.
const KEYS: u64 = 10_000;

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

/// A loader that answers at once.
struct Users;

impl Loader for Users {
    type Key = u64;
    type Value = User;
    type Error = BoxError;

    async fn load(&self, id: &u64) -> Result<Loaded<User>, BoxError> {
        Ok(user(*id).into())
    }
}

impl BatchLoader for Users {
    async fn load_many(&self, ids: &[u64]) -> Result<HashMap<u64, Loaded<User>>, BoxError> {
        Ok(ids.iter().map(|id| (*id, user(*id).into())).collect())
    }
}

type Cached = Cache<u64, User, BoxError>;

fn main() -> ExitCode {
    let quick = std::env::args().any(|arg| arg == "--test");
    let runtime = tokio::runtime::Runtime::new().map_err(BoxError::new);
    let run = runtime.and_then(|runtime| runtime.block_on(run(quick)));
    match run {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("batches: {error}");
            ExitCode::FAILURE
        }
    }
}

struct Bench {
    bare: Client,
    /// A cache without L1.
    remote: Cached,
    /// The first key that was not looked up yet.
    next: u64,
    rounds: u32,
    times: u32,
}

async fn run(quick: bool) -> Result<(), BoxError> {
    let server = Server::start()?;
    let config = Config::from_url(&server.url()).map_err(BoxError::new)?;
    let bare = Builder::from_config(config)
        .build()
        .map_err(BoxError::new)?;
    bare.init().await.map_err(BoxError::new)?;
    let redis = Redis::builder(&server.url()).timeout(Duration::from_secs(5));
    let redis = redis.connect().await.map_err(BoxError::new)?;
    let remote = builder("users").l1_capacity(0).l2(redis.clone());
    let local = builder("users").l1_capacity(2 * KEYS).l2(redis);
    let local = local.build().map_err(BoxError::new)?;
    let mut bench = Bench {
        bare,
        remote: remote.build().map_err(BoxError::new)?,
        next: KEYS,
        rounds: if quick { 1 } else { 15 },
        times: if quick { 2 } else { 50 },
    };
    bench.fill(&local).await?;
    println!("| {MANY} keys | compared with | its time | `get_many` | ratio |");
    println!("|---|---|---|---|---|");
    bench.l2(&local).await?;
    bench.cold().await
}

fn builder(name: &str) -> CacheBuilder<Users> {
    let builder = Cache::builder(name, Users).ttl(Duration::from_secs(3_600));
    builder.batched(Batching::new().window(Duration::ZERO))
}

fn line(what: &str, against: &str, rounds: &[(f64, f64)]) {
    let of = |pick: fn(&(f64, f64)) -> f64| median(rounds.iter().map(pick).collect());
    let ratio = of(|(that, ours)| ours / that);
    let (that, ours) = (of(|round| round.0), of(|round| round.1));
    println!(
        "| {what} | {against} | {} | {} | {ratio:.2} × |",
        time(that),
        time(ours)
    );
}

impl Bench {
    async fn fill(&self, local: &Cached) -> Result<(), BoxError> {
        let all: Vec<u64> = (0..KEYS).collect();
        for ids in all.chunks(1_000) {
            found(self.remote.get_many(ids).await)?;
            found(local.get_many(ids).await)?;
            for id in ids {
                let bytes = bincode::serde::encode_to_vec(user(*id), bincode::config::standard())
                    .map_err(BoxError::new)?;
                let args = vec![bare_key(*id), Value::Bytes(bytes.into())];
                self.command("SET", args).await?;
            }
        }
        Ok(())
    }

    async fn command(&self, name: &'static str, args: Vec<Value>) -> Result<Value, BoxError> {
        let command = CustomCommand::new_static(name, ClusterHash::FirstKey, false);
        self.bare.custom(command, args).await.map_err(BoxError::new)
    }

    /// MGET and decoding, the least work that an answer needs.
    async fn mget(&self, ids: &[u64]) -> Result<Vec<User>, BoxError> {
        let keys = ids.iter().copied().map(bare_key).collect();
        let replies = self.command("MGET", keys).await?.into_array();
        let decode = |reply: Value| {
            let bytes = reply.into_bytes().ok_or("no such key")?;
            let decoded = bincode::serde::decode_from_slice(&bytes, bincode::config::standard());
            decoded.map(|(user, _)| user).map_err(BoxError::new)
        };
        replies.into_iter().map(decode).collect()
    }

    fn ids(&self, at: u32) -> Vec<u64> {
        let first = u64::from(at) * MANY % (KEYS - MANY);
        (first..first + MANY).collect()
    }

    async fn l2(&self, local: &Cached) -> Result<(), BoxError> {
        let (mut limit, mut singles, mut in_l1) = (Vec::new(), Vec::new(), Vec::new());
        for _ in 0..self.rounds {
            let (mut bare, mut ours, mut each) = (0.0, 0.0, 0.0);
            let (mut hits, mut gets) = (0.0, 0.0);
            for at in 0..self.times {
                let ids = self.ids(at);
                bare += timed(self.mget(&ids)).await?;
                ours += timed(async { found(self.remote.get_many(&ids).await) }).await?;
                each += timed(concurrently(&self.remote, &ids)).await?;
                hits += timed(async { found(local.get_many(&ids).await) }).await?;
                gets += timed(one_by_one(local, &ids)).await?;
            }
            let per = f64::from(self.times);
            limit.push((bare / per, ours / per));
            singles.push((each / per, ours / per));
            in_l1.push((gets / per, hits / per));
        }
        if self.remote.stats().loads != KEYS || local.stats().loads > 0 {
            return Err("these were not hits".into());
        }
        line("in L2", "fred MGET + bincode", &limit);
        line("in L2", "the same number of concurrent `get`s", &singles);
        line("in L1", "the same number of `get`s", &in_l1);
        Ok(())
    }

    async fn cold(&mut self) -> Result<(), BoxError> {
        let mut rounds = Vec::new();
        for _ in 0..self.rounds {
            let (mut each, mut ours) = (0.0, 0.0);
            for _ in 0..self.times {
                let ids: Vec<u64> = (self.next..self.next + 2 * MANY).collect();
                self.next += 2 * MANY;
                let (first, second) = ids.split_at(ids.len() / 2);
                each += timed(concurrently(&self.remote, first)).await?;
                ours += timed(async { found(self.remote.get_many(second).await) }).await?;
            }
            let per = f64::from(self.times);
            rounds.push((each / per, ours / per));
        }
        if self.remote.stats().loads != self.next {
            return Err("these were not misses".into());
        }
        line("cold", "the same number of concurrent `get`s", &rounds);
        Ok(())
    }
}

fn bare_key(id: u64) -> Value {
    format!("bare:users:{id}").into()
}

type GetResult = Result<Option<std::sync::Arc<User>>, tidegate::Error<BoxError>>;

fn found(got: Vec<GetResult>) -> Result<(), BoxError> {
    for got in got {
        got.map_err(BoxError::new)?.ok_or("no such key")?;
    }
    Ok(())
}

async fn concurrently(cache: &Cached, ids: &[u64]) -> Result<(), BoxError> {
    let mut running = JoinSet::new();
    for &id in ids {
        let cache = cache.clone();
        running.spawn(async move { cache.get(&id).await });
    }
    while let Some(got) = running.join_next().await {
        found(vec![got.map_err(BoxError::new)?])?;
    }
    Ok(())
}

async fn one_by_one(cache: &Cached, ids: &[u64]) -> Result<(), BoxError> {
    for id in ids {
        found(vec![cache.get(id).await])?;
    }
    Ok(())
}

/// Runs a future and returns the seconds that it took.
async fn timed<T>(what: impl Future<Output = Result<T, BoxError>>) -> Result<f64, BoxError> {
    let begun = Instant::now();
    what.await?;
    Ok(begun.elapsed().as_secs_f64())
}
