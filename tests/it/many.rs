//! `get_many` on real servers: round trips, clusters, several processes, and a server that is gone.

use std::collections::HashSet;
use std::time::Duration;

use tidegate::{Batching, Cache, CacheBuilder, Channel};

use crate::cluster::process_with;
use crate::support::backend::{Backend, check_records, users};
use crate::support::cluster::Cluster;
use crate::support::eventually;
use crate::support::fleet::{Settings, Worker};
use crate::support::loader::Db;
use crate::support::node::{Node, answer, values};
use crate::support::proxy::{Proxy, ProxyMode};
use crate::support::server::{Monitor, Server, long_timeout_builder};

const MINUTE: Duration = Duration::from_secs(60);
/// The timeout of commands in tests in which none should time out.
const LONG_TIMEOUT: Duration = Duration::from_secs(10);

fn rows(keys: impl IntoIterator<Item = u64>) -> Vec<String> {
    keys.into_iter().map(|key| format!("row {key}")).collect()
}

fn batched(builder: CacheBuilder<Db>) -> CacheBuilder<Db> {
    // No heartbeat runs during a test, and no window delays a load.
    let alone = Batching::new().window(Duration::ZERO);
    builder.batched(alone).channel_lease(10 * MINUTE)
}

/// A process whose commands and replies alternate in turns: everything that it sends in one turn
/// was sent before any reply to it.
struct Lockstep {
    proxy: Proxy,
    monitor: Monitor,
    node: Node,
    turn: u64,
}

impl Lockstep {
    async fn new(server: &Server, db: &Db) -> Self {
        let proxy = Proxy::to(server.port()).await;
        let redis = long_timeout_builder(proxy.port())
            .connect()
            .await
            .expect("connect");
        let builder = Cache::builder("users", db.clone()).ttl_jitter(0.0);
        let builder = batched(builder).lease_ttl(MINUTE).l2(redis);
        let node = Node::new(builder.build().expect("settings that make sense"));
        // The server knows the scripts, and the process the watermarks.
        node.get(1_000_000).await.expect("a load");
        eventually("the channel is proven", async || {
            node.health().channel == Channel::Proven
        })
        .await;
        let mut monitor = server.monitor();
        monitor.command_names();
        proxy.set(ProxyMode::Lockstep(0)).await;
        Self {
            proxy,
            monitor,
            node,
            turn: 0,
        }
    }

    /// Waits until exactly these commands have arrived, and lets the server answer them.
    async fn turn(&mut self, command: &str, count: usize) {
        let mut names = Vec::new();
        eventually("all is sent before anything is answered", async || {
            let of_the_cache = |name: &String| !["PING", "TIME"].contains(&name.as_str());
            names.extend(
                self.monitor
                    .command_names()
                    .into_iter()
                    .filter(of_the_cache),
            );
            names.len() >= count
        })
        .await;
        assert!(names.iter().all(|name| name == command), "{names:?}");
        assert_eq!(names.len(), count);
        self.turn += 1;
        self.proxy.set(ProxyMode::Lockstep(self.turn)).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_thousand_keys_are_one_round_trip_from_l2_and_three_if_they_are_cold() {
    let (server, db) = (Server::start(), Db::default());
    let (mut a, mut b) = (
        Lockstep::new(&server, &db).await,
        Lockstep::new(&server, &db).await,
    );
    db.reset_counts();
    a.monitor.command_names();
    let keys: Vec<u64> = (0..1_000).collect();
    let cold = a.node.many_caller(&keys).await;
    a.turn("MGET", 1).await;
    a.turn("EVALSHA", 1_000).await;
    a.turn("EVALSHA", 1_000).await;
    assert_eq!(values(answer(cold).await), rows(keys.clone()));
    assert_eq!((db.batches().len(), db.loads()), (1, 1_000));
    b.monitor.command_names();
    let warm = b.node.many_caller(&keys).await;
    b.turn("MGET", 1).await;
    assert_eq!(values(answer(warm).await), rows(keys));
    assert!(a.monitor.command_names().iter().all(|name| name == "MGET"));
    check_records(&server);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn keys_on_all_nodes_of_a_cluster_are_loaded_once_and_read_where_they_are() {
    let (cluster, db) = (Cluster::start(3).await, Db::default());
    let process = || process_with(&cluster, &db, LONG_TIMEOUT, batched);
    let (a, b) = (process().await, process().await);
    db.reset_counts();
    let keys: Vec<u64> = (0..300).collect();
    let homes: HashSet<usize> = keys.iter().map(|key| cluster.primary_of(*key)).collect();
    assert_eq!(homes.len(), 3, "every node has some");
    // Both at once, one of them in reverse order.
    let backwards: Vec<u64> = keys.iter().rev().copied().collect();
    let (first, second) = (a.many_caller(&keys).await, b.many_caller(&backwards).await);
    assert_eq!(values(answer(first).await), rows(keys.clone()));
    assert_eq!(values(answer(second).await), rows(backwards.clone()));
    assert_eq!(db.loads(), 300, "each of them once");
    let c = process().await;
    db.reset_counts();
    let mut monitors: Vec<Monitor> = cluster.nodes.iter().map(Server::monitor).collect();
    assert_eq!(values(c.get_many(&backwards).await), rows(backwards));
    for monitor in &mut monitors {
        let mut names = monitor.command_names();
        assert!(
            !names.iter().any(|name| name.starts_with("EVAL")),
            "{names:?}"
        );
        names.retain(|name| name == "GET" || name == "MGET");
        assert!((50..=150).contains(&names.len()), "{names:?}");
    }
    assert_eq!(db.loads(), 0);
    // A change by one process on any node reaches the L1 of the others.
    let changed: Vec<(u64, String)> = keys.iter().map(|key| (*key, "new".to_owned())).collect();
    a.insert_many(changed).await.expect("inserts");
    eventually("the change has arrived", async || {
        keys.iter().all(|key| c.peek(key).is_none())
    })
    .await;
    assert_eq!(values(c.get_many(&keys).await), vec!["new"; 300]);
    c.invalidate_many(&keys).await.expect("invalidations");
    assert_eq!(values(c.get_many(&keys).await), rows(keys));
    for node in [&a, &b, &c] {
        node.check().await;
    }
}

/// Keys of a batch are changed while the batch is loaded, one on each node of the cluster.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn in_a_cluster_a_key_that_is_changed_while_its_batch_is_loaded_is_not_stored() {
    let (cluster, db) = (Cluster::start(3).await, Db::default());
    let process = || process_with(&cluster, &db, LONG_TIMEOUT, batched);
    let (a, b) = (process().await, process().await);
    let changed = cluster.keys();
    let keys: Vec<u64> = (0..50)
        .chain(changed.iter().map(|key| key + 1_000))
        .collect();
    let gate = db.gate();
    let asked = a.many_caller(&keys).await;
    gate.reached().await;
    for key in &changed {
        db.write(*key, "new");
    }
    b.invalidate_many(&changed).await.expect("invalidations");
    gate.open();
    assert_eq!(values(answer(asked).await), rows(keys.clone()));
    for node in [&a, &b] {
        let got = values(node.get_many(&keys).await);
        for (key, got) in keys.iter().zip(got) {
            let is_new = changed.contains(key);
            assert_eq!(
                got,
                if is_new {
                    "new".to_owned()
                } else {
                    format!("row {key}")
                }
            );
        }
        node.check().await;
    }
    for node in &cluster.nodes {
        check_records(node);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn eight_processes_with_overlapping_batches_load_each_of_1000_keys_once() {
    let server = Server::start();
    let mut workers = Vec::new();
    for _ in 0..8 {
        workers.push(Worker::with(Settings::new(server.port(), MINUTE)).await);
    }
    for worker in &mut workers {
        worker.send("many 0 1000 6").await;
    }
    let mut loads = 0;
    for worker in &mut workers {
        assert_eq!(
            worker.expect_line("many").await,
            "3000",
            "answers that were right"
        );
    }
    for worker in &mut workers {
        loads += worker.stats().await[0];
    }
    let there = server.raw().entries("tidegate:users:*").len() as u64;
    assert_eq!(loads, there, "each key was loaded once");
    assert!(there > 900, "{there}");
    check_records(&server);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_is_gone_costs_a_batch_no_error_and_one_load() {
    let (backend, db) = (Backend::redis(), Db::default());
    let a = backend.node_with(&db, batched).await;
    let keys: Vec<u64> = (0..200).collect();
    a.get_many(&keys[..100]).await;
    let Backend::Redis(mut server) = backend else {
        unreachable!("it was made a moment ago")
    };
    db.reset_counts();
    server.kill();
    assert_eq!(values(a.get_many(&keys).await), rows(keys.clone()));
    let loaded: HashSet<u64> = db.batches().into_iter().flatten().collect();
    assert_eq!((db.batches().len(), db.loads()), (1, loaded.len() as u64));
    assert!(
        loaded.len() == 100 || loaded.len() == 200,
        "L1 answers for a while: {loaded:?}"
    );
    server.restart();
    let fresh: Vec<u64> = (1_000..1_100).collect();
    eventually("L2 is used again", async || {
        a.invalidate_many(&fresh).await.is_ok() && {
            a.get_many(&fresh).await;
            server.raw().get(&users(1_050)).is_some()
        }
    })
    .await;
    a.check().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_of_a_cluster_that_is_silent_costs_the_keys_of_the_others_nothing_but_time() {
    let (cluster, db) = (Cluster::start(3).await, Db::default());
    let process = || process_with(&cluster, &db, Duration::from_millis(500), batched);
    let (a, b) = (process().await, process().await);
    let keys: Vec<u64> = (0..60).collect();
    a.get_many(&keys).await;
    db.reset_counts();
    cluster.nodes[2].stop();
    let got = b.get_many(&keys).await;
    cluster.nodes[2].resume();
    assert_eq!(values(got), rows(keys.clone()));
    let loaded: HashSet<u64> = db.batches().into_iter().flatten().collect();
    assert!(
        loaded.iter().all(|key| cluster.primary_of(*key) == 2),
        "{loaded:?}"
    );
    b.check().await;
}
