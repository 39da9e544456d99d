//! How soon another process sees an invalidation, and what it costs to drop many entries at once.
//!
//! ```text
//! cargo bench --bench invalidation
//! ```
//!
//! Two caches with connections and runtimes of their own stand for two processes. A third thread
//! polls for the end of the entry. The limit is a bare `PUBLISH` to a bare subscriber, polled in
//! the same way, in alternation. Needs a `redis-server` on the PATH, or named in
//! `TIDEGATE_REDIS_SERVER`. `-- --test` only checks that everything runs.

use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use fred::clients::Client;
use fred::interfaces::{ClientLike, EventInterface, PubsubInterface};
use fred::types::Builder;
use fred::types::config::Config;
use tidegate::{
    BoxError, Cache, CacheBuilder, Channel, InProcess, Loaded, Loader, Redis, loader_fn,
};
use tokio::runtime::Runtime;

use self::support::{Server, median, time};

mod support;

type Numbers = Cache<u64, u64, BoxError>;

/// A cache whose values are tagged with one of ten groups.
fn builder() -> CacheBuilder<impl Loader<Key = u64, Value = u64, Error = BoxError> + use<>> {
    let load = loader_fn(|id: u64| async move { Ok::<_, BoxError>(tagged(id)) });
    Cache::builder("numbers", load).ttl(Duration::from_secs(3_600))
}

fn tagged(id: u64) -> Loaded<u64> {
    Loaded::found(id).tag(group(id)).tag("all")
}

fn group(id: u64) -> String {
    format!("group:{}", id % GROUPS)
}

const GROUPS: u64 = 10;

fn main() -> ExitCode {
    let quick = std::env::args().any(|arg| arg == "--test");
    match run(if quick { 100 } else { 1 }) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("invalidation: {error}");
            ExitCode::FAILURE
        }
    }
}

/// `share`: the divisor of the usual number of repetitions.
fn run(share: u64) -> Result<(), BoxError> {
    let server = Server::start()?;
    let mut lines = seen_elsewhere(&server.url(), 10_000 / share)?;
    let few = drop_many(1_000 / share)?;
    for entries in [100_000, 1_000_000] {
        let many = drop_many(entries / share)?;
        for (what, few, many) in [
            ("invalidate_tag", few.0, many.0),
            ("invalidate_all", few.1, many.1),
        ] {
            let what = format!("`{what}`, {entries} entries");
            lines.push(line(&what, "of 1,000 entries", few, many, "≤ 1.5 ×"));
        }
    }
    println!("| operation | limit | time of the limit | time of tidegate | ratio | goal |");
    println!("|---|---|---|---|---|---|");
    for line in lines {
        println!("{line}");
    }
    Ok(())
}

fn line(what: &str, limit: &str, bare: f64, ours: f64, yardstick: &str) -> String {
    let (ratio, bare, ours) = (ours / bare, time(bare), time(ours));
    format!("| {what} | {limit} | {bare} | {ours} | {ratio:.2} × | {yardstick} |")
}

/// From the call in one process until L1 of the other does not answer.
fn seen_elsewhere(url: &str, times: u64) -> Result<Vec<String>, BoxError> {
    let (writes, reads) = (one_thread()?, one_thread()?);
    let bare = Bare::new(url, &writes, &reads)?;
    let writer = writes.block_on(connected(url))?;
    let reader = reads.block_on(connected(url))?;
    let (mut limit, mut ours) = (Vec::new(), Vec::new());
    for turn in 1..=times {
        limit.push(bare.received(&writes, turn)?);
        reads.block_on(reader.get(&turn)).map_err(BoxError::new)?;
        if reader.peek(&turn).is_none() {
            return Err("the entry is not in L1".into());
        }
        let begun = Instant::now();
        let task = writes.spawn({
            let writer = writer.clone();
            async move { writer.invalidate(&turn).await }
        });
        while reader.peek(&turn).is_some() {
            std::thread::yield_now();
        }
        ours.push(begun.elapsed().as_secs_f64());
        let task = writes.block_on(task).map_err(BoxError::new)?;
        task.map_err(BoxError::new)?;
    }
    // Each entry must have been ended by a message.
    let stats = reader.stats();
    if stats.remote_invalidations != times || stats.gaps > 0 {
        return Err(format!("{times} invalidations, but {stats:?}").into());
    }
    let (what, of) = ("invalidation seen elsewhere", "PUBLISH to subscriber");
    Ok([(50, "–"), (99, "≤ 20 ms and ≤ 3 ×")]
        .map(|(share, yardstick)| {
            let (limit, ours) = (percentile(&mut limit, share), percentile(&mut ours, share));
            line(&format!("{what}, p{share}"), of, limit, ours, yardstick)
        })
        .into())
}

fn one_thread() -> Result<Runtime, BoxError> {
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .enable_all()
        .build()
        .map_err(BoxError::new)
}

/// A cache with connections of its own and a proven channel.
async fn connected(url: &str) -> Result<Numbers, BoxError> {
    let redis = Redis::builder(url).timeout(Duration::from_secs(5));
    let redis = redis.connect().await.map_err(BoxError::new)?;
    let cache = builder().l2(redis).build().map_err(BoxError::new)?;
    cache.get(&0).await.map_err(BoxError::new)?;
    for _ in 0..1_000 {
        if cache.health().channel == Channel::Proven {
            return Ok(cache);
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    Err("the channel is not proven".into())
}

/// A bare publisher and a bare subscriber.
struct Bare {
    publisher: Client,
    received: Arc<AtomicU64>,
    _subscriber: Client,
}

impl Bare {
    fn new(url: &str, writes: &Runtime, reads: &Runtime) -> Result<Self, BoxError> {
        let client = |runtime: &Runtime| {
            runtime.block_on(async {
                let config = Config::from_url(url).map_err(BoxError::new)?;
                let client = Builder::from_config(config).build();
                let client = client.map_err(BoxError::new)?;
                client.init().await.map_err(BoxError::new)?;
                Ok::<_, BoxError>(client)
            })
        };
        let (publisher, subscriber) = (client(writes)?, client(reads)?);
        let received = Arc::new(AtomicU64::new(0));
        let mut messages = subscriber.message_rx();
        reads.spawn({
            let received = Arc::clone(&received);
            async move {
                while let Ok(message) = messages.recv().await {
                    let turn = message.value.as_u64().unwrap_or_default();
                    received.store(turn, Ordering::Release);
                }
            }
        });
        let subscribed = async {
            subscriber.subscribe("bare").await?;
            // fred returns before the server has confirmed the subscription.
            subscriber.ping::<fred::types::Value>(None).await
        };
        reads.block_on(subscribed).map_err(BoxError::new)?;
        Ok(Self {
            publisher,
            received,
            _subscriber: subscriber,
        })
    }

    fn received(&self, writes: &Runtime, turn: u64) -> Result<f64, BoxError> {
        let begun = Instant::now();
        let task = writes.spawn({
            let publisher = self.publisher.clone();
            async move {
                publisher
                    .publish::<u64, _, _>("bare", turn.to_string())
                    .await
            }
        });
        while self.received.load(Ordering::Acquire) != turn {
            std::thread::yield_now();
        }
        let took = begun.elapsed().as_secs_f64();
        let task = writes.block_on(task).map_err(BoxError::new)?;
        task.map_err(BoxError::new)?;
        Ok(took)
    }
}

fn percentile(of: &mut [f64], share: usize) -> f64 {
    of.sort_by(f64::total_cmp);
    of[(of.len() * share / 100).min(of.len() - 1)]
}

/// Seconds of one `invalidate_tag` and one `invalidate_all` with this many entries in both tiers.
fn drop_many(entries: u64) -> Result<(f64, f64), BoxError> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(BoxError::new)?;
    runtime.block_on(async {
        let tier = InProcess::new();
        let cache = builder().l1_capacity(entries * 2).l2(tier.clone());
        let cache: Numbers = cache.build().map_err(BoxError::new)?;
        for id in 0..entries {
            cache.insert(id, tagged(id)).await.map_err(BoxError::new)?;
        }
        let in_l1 = || (0..entries).filter(|id| cache.peek(id).is_some()).count() as u64;
        if tier.len() as u64 != entries || in_l1() != entries {
            return Err("they are not in both tiers".into());
        }
        let mut tags = Vec::new();
        for id in 0..GROUPS {
            let (tag, begun) = (group(id), Instant::now());
            cache.invalidate_tag(&tag).await.map_err(BoxError::new)?;
            tags.push(begun.elapsed().as_secs_f64());
        }
        if in_l1() != 0 {
            return Err("some are still answered".into());
        }
        let mut all = Vec::new();
        for _ in 0..GROUPS {
            let begun = Instant::now();
            cache.invalidate_all().await.map_err(BoxError::new)?;
            all.push(begun.elapsed().as_secs_f64());
        }
        Ok::<_, BoxError>((median(tags), median(all)))
    })
}
