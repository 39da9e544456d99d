//! Nodes, traffic, faults, and a look at what is left.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use tidegate::{BoxError, Cache, Channel, Error, Loaded, Read, Redis, loader_fn};
use tokio::task::JoinSet;
use tokio::time::sleep;

use super::faults::{Dice, strike};
use super::oracle::Oracle;
use crate::redis_proxy::eventually;
use crate::redis_proxy::proxy::Proxy;
use crate::redis_proxy::server::{Server, is_lease};

const NODES: usize = 3;
const TASKS: u64 = 6;
const KEYS: u64 = 200;
const LEASE: Duration = Duration::from_secs(1);
const DEGRADED: Duration = Duration::from_secs(1);

type Node = Cache<u64, u64, BoxError>;

/// What the tasks share.
struct World {
    oracle: Oracle,
    nodes: Vec<Node>,
    /// Look-ups that were answered, by node.
    answered: Vec<AtomicU64>,
    /// The commands that hang somewhere have been carried out, if they ever are.
    calm: AtomicBool,
    over: AtomicBool,
    wrong: Mutex<Vec<String>>,
    begun: Instant,
}

impl World {
    fn complain(&self, what: String) {
        let mut wrong = self.wrong.lock().unwrap_or_else(PoisonError::into_inner);
        wrong.push(format!("after {:?}: {what}", self.begun.elapsed()));
    }
}

/// What a process uses.
#[derive(Clone, Copy, Debug)]
struct Use {
    rss_kib: u64,
    descriptors: usize,
    tasks: usize,
}

impl Use {
    fn now() -> Self {
        let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
        let rss = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
        let rss = rss.and_then(|rss| rss.split_whitespace().next()?.parse().ok());
        Self {
            rss_kib: rss.unwrap_or(0),
            descriptors: std::fs::read_dir("/proc/self/fd").map_or(0, Iterator::count),
            tasks: tokio::runtime::Handle::current()
                .metrics()
                .num_alive_tasks(),
        }
    }
}

/// Runs for so long; says what was wrong.
pub(crate) async fn run(seed: u64, lasts: Duration, talks: bool) -> Vec<String> {
    let mut server = Server::start();
    let mut wires = Vec::new();
    for _ in 0..NODES {
        wires.push(Proxy::to(server.port()).await);
    }
    let before = Use::now();
    let world = Arc::new(world(seed, &wires).await);
    let mut workers = JoinSet::new();
    for node in 0..NODES {
        for task in 0..TASKS {
            let dice = Dice::new(seed ^ (1 + task + TASKS * node as u64) << 32);
            workers.spawn(work(Arc::clone(&world), node, dice));
        }
    }
    // What is used is compared with what is used when all is well, and warm.
    sleep(Duration::from_secs(2).min(lasts / 4)).await;
    let warm = Use::now();
    let (mut dice, mut faults, mut unreadable) = (Dice::new(seed), 0, 0);
    while world.begun.elapsed() < lasts {
        world.calm.store(false, Ordering::SeqCst);
        let fault = strike(&mut server, &wires, &mut dice).await;
        faults += 1;
        if talks {
            println!("{:>7.1} s  {fault}", world.begun.elapsed().as_secs_f64());
        }
        // Longer than the timeout of a command and the making of connections.
        sleep(Duration::from_millis(1_000)).await;
        world.calm.store(true, Ordering::SeqCst);
        sleep(Duration::from_millis(200 + dice.roll(800))).await;
        let nodes = world.nodes.iter();
        let now: u64 = nodes.map(|node| node.stats().decode_failures).sum();
        if talks && now > unreadable {
            println!(
                "           after which {} records were unreadable",
                now - unreadable
            );
        }
        unreadable = now;
    }
    world.over.store(true, Ordering::SeqCst);
    while let Some(ended) = workers.join_next().await {
        if let Err(error) = ended {
            world.complain(format!("a task: {error}"));
        }
    }
    settle(&world).await;
    agree(&world).await;
    let rest = Use::now();
    report(&world, faults, [before, warm, rest], talks);
    compare(&world, warm, rest);
    close(&world).await;
    look_into(&server, &world);
    let Some(world) = Arc::into_inner(world) else {
        return vec!["a task still has the nodes".to_owned()];
    };
    let mut wrong = world
        .wrong
        .into_inner()
        .unwrap_or_else(PoisonError::into_inner);
    drop(world.nodes);
    wrong.extend(gone(before).await);
    wrong
}

async fn world(seed: u64, wires: &[Proxy]) -> World {
    let oracle = Oracle::new(LEASE + DEGRADED);
    let mut nodes = Vec::new();
    for (at, mode) in wires.iter().enumerate() {
        let url = format!("redis://127.0.0.1:{}", mode.port());
        let redis = Redis::connect(&url).await.expect("the server is there");
        let (rows, dice) = (oracle.clone(), Mutex::new(Dice::new(seed ^ (at as u64))));
        let load = loader_fn(move |key: u64| {
            let version = rows.read(key);
            let mut dice = dice.lock().unwrap_or_else(PoisonError::into_inner);
            let (takes, fate) = (1 + dice.roll(5), dice.roll(300));
            let ttl = Duration::from_secs(1 + dice.roll(20));
            async move {
                sleep(Duration::from_millis(takes)).await;
                match fate {
                    0 => Err(BoxError::new("the source fails now and then")),
                    _ => Ok(Loaded::found(version).version(version).ttl(ttl)),
                }
            }
        });
        let builder = Cache::builder("soak", load)
            .ttl(Duration::from_secs(3))
            .stale_while_revalidate(Duration::from_secs(2))
            .stale_if_error(Duration::from_secs(4))
            .channel_lease(LEASE)
            .degraded_l1_ttl(DEGRADED)
            .error_backoff(Duration::from_millis(50))
            .lease_ttl(Duration::from_millis(500));
        nodes.push(builder.l2(redis).build().expect("sound settings"));
    }
    World {
        oracle,
        nodes,
        answered: (0..NODES).map(|_| AtomicU64::new(0)).collect(),
        calm: AtomicBool::new(true),
        over: AtomicBool::new(false),
        wrong: Mutex::default(),
        begun: Instant::now(),
    }
}

async fn work(world: Arc<World>, node: usize, mut dice: Dice) {
    while !world.over.load(Ordering::SeqCst) {
        // Zipf, nearly: half of all for few keys.
        let most = 1 << dice.roll(8);
        let key = dice.roll(most).min(KEYS - 1);
        match dice.roll(100) {
            0..85 => look(&world, node, key, &mut dice).await,
            change => write(&world, node, key, change).await,
        }
        sleep(Duration::from_millis(1 + dice.roll(8))).await;
    }
}

async fn look(world: &World, node: usize, key: u64, dice: &mut Dice) {
    let (read, past_l1) = match dice.roll(10) {
        0 => (Read::new().skip_l1(), true),
        1 => (Read::fresh().skip_l1(), true),
        2 => (Read::fresh(), false),
        _ => (Read::new(), false),
    };
    let floor = world.oracle.floor(key, node, past_l1);
    let got = world.nodes[node].get_entry_with(&key, read).await;
    world.answered[node].fetch_add(1, Ordering::SeqCst);
    let judged = match got {
        Ok(Some(entry)) => {
            let judged = world
                .oracle
                .judge(key, floor, **entry.value(), entry.freshness());
            judged.map_err(|error| format!("{error}, from {:?}", entry.source()))
        }
        Ok(None) => Err(format!("key {key} is not missing")),
        // The source's own.
        Err(Error::Load(_) | Error::LoadFailedElsewhere) => Ok(()),
        Err(error) => Err(format!("key {key}: {error}")),
    };
    if let Err(error) = judged {
        world.complain(format!("node {node}, {read:?}: {error}"));
    }
}

/// A commit, and then somebody says so.
async fn write(world: &World, node: usize, key: u64, change: u64) {
    let (oracle, cache) = (&world.oracle, &world.nodes[node]);
    if !oracle.begin_write(key) {
        return;
    }
    let (confirmed, soft, stores, version) = match change {
        85..92 => {
            let version = oracle.commit(key);
            (cache.invalidate(&key).await.is_ok(), false, false, version)
        }
        92..95 => {
            let version = oracle.commit(key);
            (cache.expire(&key).await.is_ok(), true, false, version)
        }
        95..98 => {
            let version = oracle.commit(key);
            let row = Loaded::found(version).version(version);
            (cache.insert(key, row).await.is_ok(), false, true, version)
        }
        _ => {
            let rows = oracle.clone();
            let update = async move {
                let version = rows.commit(key);
                Ok::<_, BoxError>(Loaded::found(version).version(version))
            };
            let written = cache.write(key, update).await.is_ok();
            (written, false, true, oracle.read(key))
        }
    };
    if stores && !confirmed {
        // It may hang somewhere, and be carried out later: no later version before it is.
        while !world.calm.load(Ordering::SeqCst) || cache.invalidate(&key).await.is_err() {
            sleep(Duration::from_millis(20)).await;
        }
        oracle.announced(key, version, node, true, false);
    } else {
        oracle.announced(key, version, node, confirmed, soft);
    }
    oracle.end_write(key);
}

/// Trouble is over: everybody is well.
async fn settle(world: &World) {
    for (node, answered) in world.nodes.iter().zip(&world.answered) {
        eventually("a node is well again", async || {
            let _ = node.get(&0).await;
            answered.fetch_add(1, Ordering::SeqCst);
            let health = node.health();
            health.channel == Channel::Proven && health.pending_repairs == 0
        })
        .await;
    }
}

/// Everybody answers the newest version.
async fn agree(world: &World) {
    for (at, node) in world.nodes.iter().enumerate() {
        for key in 0..KEYS {
            let newest = world.oracle.read(key);
            let mut last = None;
            for _ in 0..100 {
                last = Some(node.get_with(&key, Read::fresh()).await);
                world.answered[at].fetch_add(1, Ordering::SeqCst);
                match &last {
                    Some(Ok(Some(version))) if **version == newest => break,
                    _ => sleep(Duration::from_millis(50)).await,
                }
            }
            if !matches!(&last, Some(Ok(Some(version))) if **version == newest) {
                world.complain(format!(
                    "node {at} ends with {last:?} for key {key}, not {newest}"
                ));
            }
        }
        let (counted, answered) = (
            node.stats().lookups(),
            world.answered[at].load(Ordering::SeqCst),
        );
        if counted != answered {
            world.complain(format!(
                "{answered} look-ups, counted {counted}: {:?}",
                node.stats()
            ));
        }
    }
}

fn report(world: &World, faults: u32, used: [Use; 3], talks: bool) {
    if !talks {
        return;
    }
    let answered: u64 = world
        .answered
        .iter()
        .map(|of| of.load(Ordering::SeqCst))
        .sum();
    println!(
        "{answered} look-ups, {faults} faults in {:?}",
        world.begun.elapsed()
    );
    for node in &world.nodes {
        println!("{:?}", node.stats());
    }
    let [before, warm, rest] = used;
    println!("used before: {before:?}\nused when warm: {warm:?}\nused at rest: {rest:?}");
}

fn compare(world: &World, warm: Use, rest: Use) {
    if rest.rss_kib > warm.rss_kib + 64 * 1024 {
        world.complain(format!("memory has grown: {warm:?}, {rest:?}"));
    }
    if rest.descriptors > warm.descriptors + 2 * NODES {
        world.complain(format!("descriptors are left: {warm:?}, {rest:?}"));
    }
    if rest.tasks > warm.tasks + 2 * NODES {
        world.complain(format!("tasks are left: {warm:?}, {rest:?}"));
    }
}

/// No flight and no task is left.
async fn close(world: &World) {
    for node in &world.nodes {
        node.close().await;
        let state = format!("{node:?}");
        if !(state.contains("flights: 0,") && state.contains("tasks: 0,")) {
            world.complain(format!("something is left: {state}"));
        }
    }
}

/// Without the caches there are as many tasks and descriptors as before them.
async fn gone(before: Use) -> Option<String> {
    for _ in 0..200 {
        let now = Use::now();
        if now.tasks <= before.tasks && now.descriptors <= before.descriptors {
            return None;
        }
        sleep(Duration::from_millis(50)).await;
    }
    Some(format!(
        "something outlives the caches: {before:?}, {:?}",
        Use::now()
    ))
}

/// Every key has an expiry, and none is a lease.
fn look_into(server: &Server, world: &World) {
    let mut raw = server.raw();
    for key in raw.keys("tidegate*") {
        let pttl = raw.pttl(&key);
        // -2: it has just expired.
        if pttl <= 0 && pttl != -2 {
            world.complain(format!("{key} has no expiry"));
        }
        if !key.contains("::{marks}") && raw.get(&key).is_some_and(|record| is_lease(&record)) {
            world.complain(format!("a lease is left on {key}"));
        }
    }
}
