//! The constants of the model: the measured cost of each operation for a server.

use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use tidegate::{BoxError, Cache, Channel, Redis, loader_fn};
use tokio::task::JoinSet;

use super::server::{Resources, Subscribers, process};
use crate::redis_proxy::server::Server;

pub(crate) type Numbers = Cache<u64, u64, BoxError>;

/// The channel of the cache `numbers`.
const CHANNEL: &str = "tidegate:numbers::bus";
/// The channel lease, in which three heartbeats are sent.
pub(crate) const LEASE: Duration = Duration::from_secs(2);
/// The shortest lease, so that few processes send the heartbeats of many.
const SHORT: Duration = Duration::from_millis(100);
/// One process: a handle with connections of its own, and a cache without L1, so that every look-up
/// reaches the server.
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

/// Makes `times` calls, `at_once` of them concurrently.
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

/// The cost of each operation for the server, with `at_once` concurrent calls.
#[derive(Clone, Debug, Default)]
pub(crate) struct Costs {
    pub(crate) at_once: u64,
    pub(crate) hit: Resources,
    pub(crate) miss: Resources,
    /// Without CPU, and without any receiver.
    pub(crate) invalidation: Resources,
    /// Bytes of its message to one process.
    pub(crate) message: f64,
    /// Invalidations by the number of receivers.
    pub(crate) fan_out: Vec<(f64, Resources)>,
}

/// The cost of an idle process for the server.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Idle {
    pub(crate) heartbeat: Resources,
    /// Bytes of memory.
    pub(crate) process: f64,
    /// Microseconds of CPU in a process that receives an invalidation.
    pub(crate) received: f64,
}

/// Keys of the hits.
pub(crate) const HOT: u64 = 1_000;

/// The medians of three measurements, because the machine may be busy. `share`: the divisor of the
/// usual number of repetitions.
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
    let before = Resources::of(&mut raw);
    let callers = fleet.clone();
    drive(times, at_once, move |at| get(callers.one(at), at)).await?;
    let after = Resources::of(&mut raw);
    costs.miss = after.since(before, times as f64);
    let (hot, callers) = (HOT.min(times), fleet.clone());
    drive(times, at_once, move |at| get(callers.one(at), at % hot)).await?;
    costs.hit = Resources::of(&mut raw).since(after, times as f64);

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
    costs.invalidation = Resources {
        output: alone.output - costs.message,
        cpu: 0.0,
        ..alone
    };
    Ok(costs)
}

/// Processes that call in turns.
const WRITERS: u64 = 16;

/// Processes that are used in turns.
#[derive(Clone)]
pub(crate) struct Fleet(pub(crate) Vec<Numbers>);

impl Fleet {
    pub(crate) fn one(&self, at: u64) -> Numbers {
        let index = usize::try_from(at).unwrap_or(0) % self.0.len();
        self.0[index].clone()
    }
}

impl Costs {
    /// The cost of an invalidation that this fleet and `listeners` bare connections receive.
    async fn fan_out(
        &mut self,
        server: &Server,
        fleet: &Fleet,
        listeners: u64,
        share: u64,
    ) -> Result<Resources, BoxError> {
        let mut raw = server.raw();
        let subscribers = Subscribers::new(server.port(), CHANNEL, listeners).await?;
        let most = if self.at_once > 1 { 400_000 } else { 100_000 };
        let times = (most / (listeners + 20)).clamp(500, 10_000) / share;
        let (before, callers) = (Resources::of(&mut raw), fleet.clone());
        let call = move |at| invalidate(callers.one(at), 1_000_000 + at);
        drive(times, self.at_once, call).await?;
        subscribers.settled().await;
        let each = Resources::of(&mut raw).since(before, times as f64);
        let receivers = listeners as f64 + fleet.0.len() as f64;
        self.fan_out.push((receivers, each));
        Ok(each)
    }
}

/// The cost of idle processes, and of receiving a message.
pub(crate) async fn idle(share: u64) -> Result<Idle, BoxError> {
    let server = Server::start();
    let (mut raw, url) = (server.raw(), server.url());
    let many = if share > 1 { 4 } else { 32 };
    let pause = Duration::from_millis(4_000 / share.min(10));
    // The server's own background work.
    let (empty, begun) = (Resources::of(&mut raw), Instant::now());
    tokio::time::sleep(pause).await;
    let own = Resources::of(&mut raw).since(empty, begun.elapsed().as_secs_f64());

    let fast = nodes(&url, many, SHORT).await?;
    let (before, begun) = (Resources::of(&mut raw), Instant::now());
    tokio::time::sleep(pause).await;
    let seconds = begun.elapsed().as_secs_f64();
    let used_resources = Resources::of(&mut raw).since(before, 1.0);
    let mut heartbeat = used_resources.plus(-seconds, own);
    let heartbeats = heartbeat.publishes;
    heartbeat = heartbeat.since(Resources::default(), heartbeats);
    drop(fast);
    tokio::time::sleep(Duration::from_millis(500)).await;

    let before = Resources::of(&mut raw);
    let nodes = nodes(&url, many, LEASE).await?;
    let process = Resources::of(&mut raw).since(before, many as f64).memory;
    // The cost of a message for its receiver: the number of receivers is the only difference.
    let times = 4_000 / share;
    let with_many = used(&nodes[0], times).await?;
    let one = nodes.into_iter().next().ok_or("a node")?;
    tokio::time::sleep(Duration::from_millis(500)).await;
    let received = (with_many - used(&one, times).await?) / (many - 1) as f64;
    Ok(Idle {
        heartbeat,
        process,
        received,
    })
}

/// The CPU of this process for one invalidation, in microseconds.
async fn used(node: &Numbers, times: u64) -> Result<f64, BoxError> {
    let (before, node) = (process("self").0, node.clone());
    drive(times, 1, move |at| invalidate(node.clone(), at)).await?;
    tokio::time::sleep(Duration::from_millis(200)).await;
    Ok((process("self").0 - before) / times as f64)
}

impl Costs {
    /// The CPU of an invalidation with this many receivers, interpolated, and extrapolated beyond
    /// the last measurement.
    pub(crate) fn invalidation_cpu(&self, receivers: f64) -> f64 {
        let at = |pair: &[(f64, Resources)]| {
            let ((from, low), (to, high)) = (pair[0], pair[1]);
            low.cpu + (receivers - from) * (high.cpu - low.cpu) / (to - from)
        };
        let pairs = self.fan_out.windows(2);
        let fits = pairs.clone().find(|pair| receivers <= pair[1].0);
        fits.or(pairs.last()).map_or(0.0, at)
    }

    pub(crate) fn print(&self, idle: Option<Idle>) {
        println!(
            "| receivers of an invalidation, {} at once | server CPU, µs | of it PUBLISH, µs | bytes out |",
            self.at_once
        );
        println!("|---|---|---|---|");
        for (receivers, each) in &self.fan_out {
            println!(
                "| {receivers} | {:.1} | {:.1} | {:.0} |",
                each.cpu, each.publish, each.output
            );
        }
        println!();
        println!(
            "| operation, {} at once | commands | server CPU, µs | bytes in | bytes out |",
            self.at_once
        );
        println!("|---|---|---|---|---|");
        let invalidation = Resources {
            cpu: self.invalidation_cpu(1.0),
            ..self.invalidation
        };
        let message = Resources {
            output: self.message,
            cpu: (self.invalidation_cpu(1_000.0) - self.invalidation_cpu(1.0)) / 999.0,
            ..Resources::default()
        };
        for (what, of) in [
            ("an L2 hit", Some(self.hit)),
            ("a miss: GET, acquire, fill", Some(self.miss)),
            ("an invalidation", Some(invalidation)),
            ("its message to one process of 1,000", Some(message)),
            ("a heartbeat", idle.map(|idle| idle.heartbeat)),
        ] {
            if let Some(of) = of {
                println!(
                    "| {what} | {:.1} | {:.2} | {:.0} | {:.0} |",
                    of.commands, of.cpu, of.input, of.output
                );
            }
        }
        println!();
        if let Some(idle) = idle {
            println!("| an idle process, a key, a receiver | amount |");
            println!("|---|---|");
            println!(
                "| server memory of a process, KiB | {:.1} |",
                idle.process / 1024.0
            );
            println!(
                "| server memory of a key beyond its payload, bytes | {:.0} |",
                self.key()
            );
            println!(
                "| CPU of a process that receives an invalidation, µs | {:.1} |\n",
                idle.received
            );
        }
    }

    /// Bytes of memory beyond the payload, which has at most 5 bytes here.
    pub(crate) fn key(&self) -> f64 {
        self.miss.memory - 4.0
    }
}
