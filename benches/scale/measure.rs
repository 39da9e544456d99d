//! The constants of the model: what each thing costs a server, measured.

use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use tidegate::{BoxError, Cache, Channel, Redis, loader_fn};
use tokio::task::JoinSet;

use super::server::{Listeners, Spent, process};
use crate::redis_proxy::server::Server;

pub(crate) type Numbers = Cache<u64, u64, BoxError>;

/// The channel of the cache `numbers`.
const CHANNEL: &str = "tidegate:numbers::bus";
/// How long a channel lease is; three beats are sent in each.
pub(crate) const LEASE: Duration = Duration::from_secs(2);
/// As short as it may be: beats of many processes, from few.
const SHORT: Duration = Duration::from_millis(100);
/// Process number so and so: a handle with connections of its own, and a cache without L1, so that every
/// look-up asks the server.
pub(crate) async fn node(url: &str, lease: Duration) -> Result<Numbers, BoxError> {
    let redis = Redis::builder(url).timeout(Duration::from_secs(10));
    let redis = redis.connect().await.map_err(BoxError::new)?;
    let load = loader_fn(|id: u64| async move { Ok::<_, BoxError>(id) });
    let cache = Cache::builder("numbers", load)
        .ttl(Duration::from_secs(3_600))
        .l1_capacity(0)
        .channel_lease(lease)
        .l2(redis)
        .build()
        .map_err(BoxError::new)?;
    cache.get(&u64::MAX).await.map_err(BoxError::new)?;
    for _ in 0..1_000 {
        if cache.health().channel == Channel::Proven {
            return Ok(cache);
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    Err("the channel is not proven".into())
}

pub(crate) async fn nodes(url: &str, many: u64, lease: Duration) -> Result<Vec<Numbers>, BoxError> {
    let mut nodes = Vec::new();
    for _ in 0..many {
        nodes.push(node(url, lease).await?);
    }
    Ok(nodes)
}

/// So many calls, so many of them under way at once.
pub(crate) async fn drive<F>(
    times: u64,
    at_once: u64,
    call: impl Fn(u64) -> F + Send + Sync + 'static,
) -> Result<(), BoxError>
where
    F: Future<Output = Result<(), BoxError>> + Send + 'static,
{
    let (next, call) = (Arc::new(AtomicU64::new(0)), Arc::new(call));
    let mut running = JoinSet::new();
    for _ in 0..at_once {
        let (next, call) = (Arc::clone(&next), Arc::clone(&call));
        running.spawn(async move {
            loop {
                let at = next.fetch_add(1, Ordering::Relaxed);
                if at >= times {
                    return Ok::<_, BoxError>(());
                }
                call(at).await?;
            }
        });
    }
    while let Some(ended) = running.join_next().await {
        ended.map_err(BoxError::new)??;
    }
    Ok(())
}

pub(crate) async fn get(cache: Numbers, key: u64) -> Result<(), BoxError> {
    cache.get(&key).await.map(drop).map_err(BoxError::new)
}

pub(crate) async fn invalidate(cache: Numbers, key: u64) -> Result<(), BoxError> {
    cache.invalidate(&key).await.map_err(BoxError::new)
}

/// What the server spends on each, with so many calls under way at once.
#[derive(Clone, Debug, Default)]
pub(crate) struct Costs {
    pub(crate) at_once: u64,
    pub(crate) hit: Spent,
    pub(crate) miss: Spent,
    /// Without CPU, and without anybody who hears of it.
    pub(crate) invalidation: Spent,
    /// Bytes of its message to one process.
    pub(crate) message: f64,
    /// An invalidation that so many processes hear of.
    pub(crate) fan_out: Vec<(f64, Spent)>,
}

/// What a process costs the server that does nothing.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Idle {
    pub(crate) beat: Spent,
    /// Bytes of memory.
    pub(crate) process: f64,
    /// Microseconds of CPU in a process that hears of an invalidation.
    pub(crate) heard: f64,
}

/// Keys of the hits.
pub(crate) const HOT: u64 = 1_000;

/// The medians of three, for the machine has other things to do. `share`: one of how many of the usual
/// repetitions.
pub(crate) async fn costs(share: u64, at_once: u64) -> Result<Costs, BoxError> {
    let mut three = Vec::new();
    for _ in 0..3 {
        three.push(measured(share, at_once).await?);
    }
    let mut costs = three[0].clone();
    let of = |pick: &dyn Fn(&Costs) -> f64| median(three.iter().map(pick).collect());
    costs.hit.cpu = of(&|costs| costs.hit.cpu);
    costs.miss.cpu = of(&|costs| costs.miss.cpu);
    for (at, (_, each)) in costs.fan_out.iter_mut().enumerate() {
        each.cpu = of(&|costs| costs.fan_out[at].1.cpu);
        each.publish = of(&|costs| costs.fan_out[at].1.publish);
    }
    Ok(costs)
}

pub(crate) fn median(mut of: Vec<f64>) -> f64 {
    of.sort_by(f64::total_cmp);
    of[of.len() / 2]
}

async fn measured(share: u64, at_once: u64) -> Result<Costs, BoxError> {
    let times = if at_once > 1 { 20_000 } else { 5_000 } / share;
    let server = Server::start();
    let (mut raw, url) = (server.raw(), server.url());
    let mut costs = Costs {
        at_once,
        ..Costs::default()
    };
    let fleet = Fleet(nodes(&url, WRITERS, LEASE).await?);
    let before = Spent::of(&mut raw);
    let at_work = fleet.clone();
    drive(times, at_once, move |at| get(at_work.one(at), at)).await?;
    let after = Spent::of(&mut raw);
    costs.miss = after.since(before, times as f64);
    let (hot, at_work) = (HOT.min(times), fleet.clone());
    drive(times, at_once, move |at| get(at_work.one(at), at % hot)).await?;
    costs.hit = Spent::of(&mut raw).since(after, times as f64);

    let alone = Server::start();
    let one = Fleet(nodes(&alone.url(), 1, LEASE).await?);
    let alone = costs.fan_out(&alone, &one, 0, share).await?;
    let mut last = alone;
    for listeners in [0, 100 - WRITERS, 1_000 - WRITERS] {
        let listeners = listeners.div_ceil(share);
        last = costs.fan_out(&server, &fleet, listeners, share).await?;
    }
    let most = costs.fan_out.last().map_or(1.0, |last| last.0);
    costs.message = (last.output - alone.output) / (most - 1.0);
    costs.invalidation = Spent {
        output: alone.output - costs.message,
        cpu: 0.0,
        ..alone
    };
    Ok(costs)
}

/// Processes that call in turns.
const WRITERS: u64 = 16;

/// Processes that take turns.
#[derive(Clone)]
pub(crate) struct Fleet(pub(crate) Vec<Numbers>);

impl Fleet {
    pub(crate) fn one(&self, at: u64) -> Numbers {
        let index = usize::try_from(at).unwrap_or(0) % self.0.len();
        self.0[index].clone()
    }
}

impl Costs {
    /// What an invalidation costs that these hear of, and so many bare connections.
    async fn fan_out(
        &mut self,
        server: &Server,
        fleet: &Fleet,
        listeners: u64,
        share: u64,
    ) -> Result<Spent, BoxError> {
        let mut raw = server.raw();
        let ears = Listeners::new(server.port(), CHANNEL, listeners).await?;
        let most = if self.at_once > 1 { 400_000 } else { 100_000 };
        let times = (most / (listeners + 20)).clamp(500, 10_000) / share;
        let (before, at_work) = (Spent::of(&mut raw), fleet.clone());
        let call = move |at| invalidate(at_work.one(at), 1_000_000 + at);
        drive(times, self.at_once, call).await?;
        ears.settled().await;
        let each = Spent::of(&mut raw).since(before, times as f64);
        let hear = listeners as f64 + fleet.0.len() as f64;
        self.fan_out.push((hear, each));
        Ok(each)
    }
}

/// Processes that are there and do nothing, but to hear.
pub(crate) async fn idle(share: u64) -> Result<Idle, BoxError> {
    let server = Server::start();
    let (mut raw, url) = (server.raw(), server.url());
    let many = if share > 1 { 4 } else { 32 };
    let pause = Duration::from_millis(4_000 / share.min(10));
    // What the server does on its own account.
    let (empty, begun) = (Spent::of(&mut raw), Instant::now());
    tokio::time::sleep(pause).await;
    let own = Spent::of(&mut raw).since(empty, begun.elapsed().as_secs_f64());

    let quick = nodes(&url, many, SHORT).await?;
    let (before, begun) = (Spent::of(&mut raw), Instant::now());
    tokio::time::sleep(pause).await;
    let seconds = begun.elapsed().as_secs_f64();
    let spent = Spent::of(&mut raw).since(before, 1.0);
    let mut beat = spent.plus(-seconds, own);
    let beats = beat.publishes;
    beat = beat.since(Spent::default(), beats);
    drop(quick);
    tokio::time::sleep(Duration::from_millis(500)).await;

    let before = Spent::of(&mut raw);
    let nodes = nodes(&url, many, LEASE).await?;
    let process = Spent::of(&mut raw).since(before, many as f64).memory;
    // What a message costs whoever hears it: one process more or less makes no other difference.
    let times = 4_000 / share;
    let with_many = used(&nodes[0], times).await?;
    let one = nodes.into_iter().next().ok_or("a node")?;
    tokio::time::sleep(Duration::from_millis(500)).await;
    let heard = (with_many - used(&one, times).await?) / (many - 1) as f64;
    Ok(Idle {
        beat,
        process,
        heard,
    })
}

/// CPU of this process for an invalidation, in microseconds.
async fn used(node: &Numbers, times: u64) -> Result<f64, BoxError> {
    let (before, node) = (process("self").0, node.clone());
    drive(times, 1, move |at| invalidate(node.clone(), at)).await?;
    tokio::time::sleep(Duration::from_millis(200)).await;
    Ok((process("self").0 - before) / times as f64)
}

impl Costs {
    /// CPU of an invalidation that so many hear of: between what was measured, and on from there.
    pub(crate) fn invalidation_cpu(&self, hear: f64) -> f64 {
        let at = |pair: &[(f64, Spent)]| {
            let ((from, low), (to, high)) = (pair[0], pair[1]);
            low.cpu + (hear - from) * (high.cpu - low.cpu) / (to - from)
        };
        let pairs = self.fan_out.windows(2);
        let fits = pairs.clone().find(|pair| hear <= pair[1].0);
        fits.or(pairs.last()).map_or(0.0, at)
    }

    pub(crate) fn print(&self, idle: Option<Idle>) {
        println!(
            "| an invalidation, {} at once, that so many connections hear of | server CPU | of it PUBLISH itself | bytes out |",
            self.at_once
        );
        println!("|---|---|---|---|");
        for (hear, each) in &self.fan_out {
            println!(
                "| {hear} | {:.1} µs | {:.1} µs | {:.0} |",
                each.cpu, each.publish, each.output
            );
        }
        println!();
        println!(
            "| the server's part, {} at once | commands | CPU | bytes in | bytes out |",
            self.at_once
        );
        println!("|---|---|---|---|---|");
        let invalidation = Spent {
            cpu: self.invalidation_cpu(1.0),
            ..self.invalidation
        };
        let message = Spent {
            output: self.message,
            cpu: (self.invalidation_cpu(1_000.0) - self.invalidation_cpu(1.0)) / 999.0,
            ..Spent::default()
        };
        for (what, of) in [
            ("an L2 hit", Some(self.hit)),
            ("a miss: GET, acquire, fill", Some(self.miss)),
            ("an invalidation", Some(invalidation)),
            ("its message to one process of 1,000", Some(message)),
            ("a beat", idle.map(|idle| idle.beat)),
        ] {
            if let Some(of) = of {
                println!(
                    "| {what} | {:.1} | {:.2} µs | {:.0} | {:.0} |",
                    of.commands, of.cpu, of.input, of.output
                );
            }
        }
        println!();
        if let Some(idle) = idle {
            println!(
                "memory of the server: {:.1} KiB a process, {:.0} bytes a key beside its payload; CPU of a process \
                 that hears an invalidation: {:.1} µs\n",
                idle.process / 1024.0,
                self.key(),
                idle.heard
            );
        }
    }

    /// Bytes of memory beside the payload, which here is no longer than 5 bytes.
    pub(crate) fn key(&self) -> f64 {
        self.miss.memory - 4.0
    }
}
