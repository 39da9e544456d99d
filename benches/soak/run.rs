//! The run of the soak: nodes, traffic, faults, and the checks at the end.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use tidegate::{BoxError, Cache, Channel, Error, Loaded, Read, Redis, loader_fn};
use tokio::task::JoinSet;
use tokio::time::sleep;

use super::faults::{Rng, make_fault};
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

/// The state that all tasks share.
struct Soak {
    oracle: Oracle,
    nodes: Vec<Node>,
    /// Answered look-ups by node.
    answered: Vec<AtomicU64>,
    /// No command of an earlier fault can still be carried out.
    settled: AtomicBool,
    ends: AtomicBool,
    wrong: Mutex<Vec<String>>,
    begun: Instant,
}

impl Soak {
    fn report_error(&self, what: String) {
        let mut wrong = self.wrong.lock().unwrap_or_else(PoisonError::into_inner);
        wrong.push(format!("after {:?}: {what}", self.begun.elapsed()));
    }
}

/// The resources of this process.
#[derive(Clone, Copy, Debug)]
struct Resources {
    rss_kib: u64,
    descriptors: usize,
    tasks: usize,
}

impl Resources {
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

/// Runs for `lasts`. Returns what was wrong.
pub(crate) async fn run(seed: u64, lasts: Duration, verbose: bool) -> Vec<String> {
    let mut server = Server::start();
    let mut proxies = Vec::new();
    for _ in 0..NODES {
        proxies.push(Proxy::to(server.port()).await);
    }
    let before = Resources::now();
    let soak = Arc::new(soak(seed, &proxies).await);
    let mut workers = JoinSet::new();
    for node in 0..NODES {
        for task in 0..TASKS {
            let rng = Rng::new(seed ^ (1 + task + TASKS * node as u64) << 32);
            workers.spawn(work(Arc::clone(&soak), node, rng));
        }
    }
    // The baseline of resources: a healthy fleet after a warm-up.
    sleep(Duration::from_secs(2).min(lasts / 4)).await;
    let warm = Resources::now();
    let (mut rng, mut faults, mut unreadable) = (Rng::new(seed), 0, 0);
    while soak.begun.elapsed() < lasts {
        soak.settled.store(false, Ordering::SeqCst);
        let fault = make_fault(&mut server, &proxies, &mut rng).await;
        faults += 1;
        if verbose {
            println!("{:>7.1} s  {fault}", soak.begun.elapsed().as_secs_f64());
        }
        // Longer than the timeout of a command and the making of a connection.
        sleep(Duration::from_millis(1_000)).await;
        soak.settled.store(true, Ordering::SeqCst);
        sleep(Duration::from_millis(200 + rng.below(800))).await;
        let nodes = soak.nodes.iter();
        let now: u64 = nodes.map(|node| node.stats().decode_failures).sum();
        if verbose && now > unreadable {
            println!(
                "           after which {} records were unreadable",
                now - unreadable
            );
        }
        unreadable = now;
    }
    soak.ends.store(true, Ordering::SeqCst);
    while let Some(ended) = workers.join_next().await {
        if let Err(error) = ended {
            soak.report_error(format!("a task: {error}"));
        }
    }
    wait_until_healthy(&soak).await;
    check_agreement(&soak).await;
    let rest = Resources::now();
    report(&soak, faults, [before, warm, rest], verbose);
    compare(&soak, warm, rest);
    close(&soak).await;
    check_keys(&server, &soak);
    let Some(soak) = Arc::into_inner(soak) else {
        return vec!["a task still has the nodes".to_owned()];
    };
    let mut wrong = soak
        .wrong
        .into_inner()
        .unwrap_or_else(PoisonError::into_inner);
    drop(soak.nodes);
    wrong.extend(wait_until_gone(before).await);
    wrong
}

async fn soak(seed: u64, proxies: &[Proxy]) -> Soak {
    let oracle = Oracle::new(LEASE + DEGRADED);
    let mut nodes = Vec::new();
    for (at, proxy) in proxies.iter().enumerate() {
        let url = format!("redis://127.0.0.1:{}", proxy.port());
        let redis = Redis::connect(&url).await.expect("the server is there");
        let (rows, rng) = (oracle.clone(), Mutex::new(Rng::new(seed ^ (at as u64))));
        let load = loader_fn(move |key: u64| {
            let version = rows.read(key);
            let mut rng = rng.lock().unwrap_or_else(PoisonError::into_inner);
            let (takes, outcome) = (1 + rng.below(5), rng.below(300));
            let ttl = Duration::from_secs(1 + rng.below(20));
            async move {
                sleep(Duration::from_millis(takes)).await;
                match outcome {
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
    Soak {
        oracle,
        nodes,
        answered: (0..NODES).map(|_| AtomicU64::new(0)).collect(),
        settled: AtomicBool::new(true),
        ends: AtomicBool::new(false),
        wrong: Mutex::default(),
        begun: Instant::now(),
    }
}

async fn work(soak: Arc<Soak>, node: usize, mut rng: Rng) {
    while !soak.ends.load(Ordering::SeqCst) {
        // Close to Zipf's law: few keys get half of the look-ups.
        let most = 1 << rng.below(8);
        let key = rng.below(most).min(KEYS - 1);
        match rng.below(100) {
            0..85 => look_up(&soak, node, key, &mut rng).await,
            change => write(&soak, node, key, change).await,
        }
        sleep(Duration::from_millis(1 + rng.below(8))).await;
    }
}

async fn look_up(soak: &Soak, node: usize, key: u64, rng: &mut Rng) {
    let (read, past_l1) = match rng.below(10) {
        0 => (Read::new().skip_l1(), true),
        1 => (Read::fresh().skip_l1(), true),
        2 => (Read::fresh(), false),
        _ => (Read::new(), false),
    };
    let floor = soak.oracle.floor(key, node, past_l1);
    let got = soak.nodes[node].get_entry_with(&key, read).await;
    soak.answered[node].fetch_add(1, Ordering::SeqCst);
    let judged = match got {
        Ok(Some(entry)) => {
            let judged = soak
                .oracle
                .judge(key, floor, **entry.value(), entry.freshness());
            judged.map_err(|error| format!("{error}, from {:?}", entry.source()))
        }
        Ok(None) => Err(format!("key {key} is not missing")),
        // The source's own errors.
        Err(Error::Load(_) | Error::LoadFailedElsewhere) => Ok(()),
        Err(error) => Err(format!("key {key}: {error}")),
    };
    if let Err(error) = judged {
        soak.report_error(format!("node {node}, {read:?}: {error}"));
    }
}

/// A commit and the change of the cache that follows it.
async fn write(soak: &Soak, node: usize, key: u64, change: u64) {
    let (oracle, cache) = (&soak.oracle, &soak.nodes[node]);
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
        // The insert may still be on its way and be carried out later. No later version may be
        // written before that.
        while !soak.settled.load(Ordering::SeqCst) || cache.invalidate(&key).await.is_err() {
            sleep(Duration::from_millis(20)).await;
        }
        oracle.announced(key, version, node, true, false);
    } else {
        oracle.announced(key, version, node, confirmed, soft);
    }
    oracle.end_write(key);
}

/// Waits until all nodes are healthy after the last fault.
async fn wait_until_healthy(soak: &Soak) {
    for (node, answered) in soak.nodes.iter().zip(&soak.answered) {
        eventually("a node is well again", async || {
            let _ = node.get(&0).await;
            answered.fetch_add(1, Ordering::SeqCst);
            let health = node.health();
            health.channel == Channel::Proven && health.pending_repairs == 0
        })
        .await;
    }
}

/// Checks that all nodes answer the newest version.
async fn check_agreement(soak: &Soak) {
    for (at, node) in soak.nodes.iter().enumerate() {
        for key in 0..KEYS {
            let newest = soak.oracle.read(key);
            let mut last = None;
            for _ in 0..100 {
                last = Some(node.get_with(&key, Read::fresh()).await);
                soak.answered[at].fetch_add(1, Ordering::SeqCst);
                match &last {
                    Some(Ok(Some(version))) if **version == newest => break,
                    _ => sleep(Duration::from_millis(50)).await,
                }
            }
            if !matches!(&last, Some(Ok(Some(version))) if **version == newest) {
                soak.report_error(format!(
                    "node {at} ends with {last:?} for key {key}, not {newest}"
                ));
            }
        }
        let (counted, answered) = (
            node.stats().lookups(),
            soak.answered[at].load(Ordering::SeqCst),
        );
        if counted != answered {
            soak.report_error(format!(
                "{answered} look-ups, counted {counted}: {:?}",
                node.stats()
            ));
        }
    }
}

fn report(soak: &Soak, faults: u32, used: [Resources; 3], verbose: bool) {
    if !verbose {
        return;
    }
    let answered: u64 = soak
        .answered
        .iter()
        .map(|of| of.load(Ordering::SeqCst))
        .sum();
    println!(
        "{answered} look-ups, {faults} faults in {:?}",
        soak.begun.elapsed()
    );
    for node in &soak.nodes {
        println!("{:?}", node.stats());
    }
    let [before, warm, rest] = used;
    println!("used before: {before:?}\nused when warm: {warm:?}\nused at rest: {rest:?}");
}

fn compare(soak: &Soak, warm: Resources, rest: Resources) {
    if rest.rss_kib > warm.rss_kib + 64 * 1024 {
        soak.report_error(format!("memory has grown: {warm:?}, {rest:?}"));
    }
    if rest.descriptors > warm.descriptors + 2 * NODES {
        soak.report_error(format!("descriptors are left: {warm:?}, {rest:?}"));
    }
    if rest.tasks > warm.tasks + 2 * NODES {
        soak.report_error(format!("tasks are left: {warm:?}, {rest:?}"));
    }
}

/// Checks that no flight and no task is left.
async fn close(soak: &Soak) {
    for node in &soak.nodes {
        node.close().await;
        let state = format!("{node:?}");
        if !(state.contains("flights: 0,") && state.contains("tasks: 0,")) {
            soak.report_error(format!("something is left: {state}"));
        }
    }
}

/// Checks that tasks and descriptors are as few as before the caches.
async fn wait_until_gone(before: Resources) -> Option<String> {
    for _ in 0..200 {
        let now = Resources::now();
        if now.tasks <= before.tasks && now.descriptors <= before.descriptors {
            return None;
        }
        sleep(Duration::from_millis(50)).await;
    }
    Some(format!(
        "something outlives the caches: {before:?}, {:?}",
        Resources::now()
    ))
}

/// Checks that every key has an expiry and that none is a lease.
fn check_keys(server: &Server, soak: &Soak) {
    let mut raw = server.raw();
    for key in raw.keys("tidegate*") {
        let pttl = raw.pttl(&key);
        // -2: the key has just expired.
        if pttl <= 0 && pttl != -2 {
            soak.report_error(format!("{key} has no expiry"));
        }
        if !key.contains("::{marks}") && raw.get(&key).is_some_and(|record| is_lease(&record)) {
            soak.report_error(format!("a lease is left on {key}"));
        }
    }
}
