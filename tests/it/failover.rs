//! Fail-overs under a steady load, and which changes they lose.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use tidegate::{Cache, Channel, Event, Redis, Source};
use tokio::time::{Instant, sleep};

use crate::support::backend::users;
use crate::support::cluster::{Cluster, cluster_info};
use crate::support::events::Events;
use crate::support::eventually;
use crate::support::loader::{Behaviour, Db};
use crate::support::node::{Node, answer, value};
use crate::support::proxy::{Proxy, ProxyMode};
use crate::support::server::{Raw, Reply, Server, is_value};
use crate::support::traffic::{HOT, Traffic, why};

const TIMEOUT: Duration = Duration::from_millis(300);
/// The channel lease: longer than a busy machine pauses a test.
const LEASE: Duration = Duration::from_secs(1);
/// The bound of the tests of server trouble.
const LONGEST: Duration = Duration::from_secs(3);

/// A process of the fleet whose L1 answers only while its channel is proven.
async fn process(url: &str, db: &Db, events: &Events) -> Node {
    let redis = Redis::builder(url).timeout(TIMEOUT);
    let redis = redis.connect().await.expect("connect");
    let builder = Cache::builder("users", db.clone())
        .ttl_jitter(0.0)
        .lease_ttl(Duration::from_millis(500))
        .channel_lease(LEASE)
        .degraded_l1_ttl(Duration::ZERO)
        .on_event(events.callback());
    let node = Node::new(builder.l2(redis).build().expect("a cache"));
    node.get(999).await.expect("a look-up");
    proven(&node).await;
    node
}

async fn proven(node: &Node) {
    eventually("the channel is proven", async || {
        node.health().channel == Channel::Proven
    })
    .await;
}

/// Whether a replica has everything that the server has carried out so far: a write, then `WAIT` on
/// the same connection. Replication is one stream, so the write comes last.
fn is_replicated(raw: &mut Raw, key: &str) -> bool {
    let wrote = raw.ask_if_there(&format!("SET {key} 1 PX 60000"));
    matches!(wrote, Some(Reply::Text(_)))
        && matches!(raw.ask_if_there("WAIT 1 1000"), Some(Reply::Number(1..)))
}

/// Whether the server is a primary. A connection may be closed meanwhile: the sentinel closes the
/// connections to a server that it promotes.
fn is_primary(server: &Server) -> bool {
    let role = server.raw().ask_if_there("ROLE");
    let Some(Reply::List(role)) = role else {
        return false;
    };
    role.first() == Some(&Reply::Bytes(b"master".to_vec()))
}

/// Asserts that L1 does not answer while the channel is not proven, and counts the answers of that
/// time.
struct UnprovenWatch {
    ends: Arc<AtomicBool>,
    unproven: Arc<AtomicU64>,
    task: tokio::task::JoinHandle<()>,
}

impl UnprovenWatch {
    fn begin(node: &Node, events: &Events) -> Self {
        let (ends, unproven) = (
            Arc::new(AtomicBool::new(false)),
            Arc::new(AtomicU64::new(0)),
        );
        let task = {
            let (node, events) = (node.clone(), events.clone());
            let (ends, unproven) = (Arc::clone(&ends), Arc::clone(&unproven));
            tokio::spawn(async move {
                for round in 0.. {
                    if ends.load(Ordering::SeqCst) {
                        return;
                    }
                    let silent = || node.health().channel != Channel::Proven;
                    let (before, ups) = (silent(), events.count(Event::ChannelUp));
                    let entry = node.get_entry(round % HOT).await.expect("a look-up");
                    // The channel was not proven before the look-up, nor at any time since.
                    if before && silent() && events.count(Event::ChannelUp) == ups {
                        unproven.fetch_add(1, Ordering::SeqCst);
                        let source = entry.expect("an entry").source();
                        assert_ne!(source, Source::L1, "L1 answers without proof");
                    }
                    sleep(Duration::from_millis(2)).await;
                }
            })
        };
        Self {
            ends,
            unproven,
            task,
        }
    }

    /// The number of answers without proof. None of them came from L1.
    async fn end(self) -> u64 {
        self.ends.store(true, Ordering::SeqCst);
        answer(self.task).await;
        self.unproven.load(Ordering::SeqCst)
    }
}

/// After the fail-over the processes agree, and no answer is older than the last replicated
/// invalidation.
async fn assert_recovered(db: &Db, a: &Node, b: &Node, traffic: Traffic, what: &str) {
    let fills = a.stats().fills;
    eventually("loads fill L2 again", async || a.stats().fills > fills + 20).await;
    for node in [a, b] {
        proven(node).await;
    }
    eventually("nothing is left to be repaired", async || {
        a.health().pending_repairs == 0
    })
    .await;
    for key in 0..HOT {
        // Read before the look-up: the floor may rise until the answer arrives.
        let floor = traffic.observed().floor(key);
        let version: u64 = value(a.get(key).await).parse().expect("a version");
        assert!(version >= floor, "key {key} is {version}, not {floor}");
        eventually("the change has arrived", async || {
            let version: u64 = value(b.get(key).await).parse().expect("a version");
            version >= floor
        })
        .await;
    }
    traffic.end(what, LONGEST).await;
    for key in 0..HOT {
        a.invalidate(&key).await.expect("an invalidation");
        eventually("they agree", async || {
            value(a.get(key).await) == db.row(key) && value(b.get(key).await) == db.row(key)
        })
        .await;
    }
    a.check().await;
    b.check().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_primary_of_a_cluster_is_killed_and_its_replica_takes_over() {
    let mut cluster = Cluster::replicated(3, Duration::from_millis(1500)).await;
    let (db, events) = (Db::default(), Events::default());
    let a = process(&cluster.url(), &db, &Events::default()).await;
    let b = process(&cluster.url(), &db, &events).await;
    let homes: Vec<usize> = (0..HOT).map(|key| cluster.primary_of(key)).collect();
    let killed_node = 1;
    assert!(homes.contains(&killed_node), "no hot key is there");
    // A change on another node cannot be lost. A change on the killed node survives if its replica
    // has it.
    let mut raw = cluster.nodes[killed_node].raw();
    let ours = cluster.keys()[killed_node];
    let on = homes.clone();
    let traffic = Traffic::begin(&a, &db, move |key| {
        let home = on[usize::try_from(key).expect("a hot key")];
        home != killed_node || is_replicated(&mut raw, &format!("x{{{}}}", users(ours)))
    });
    let watch = UnprovenWatch::begin(&b, &events);
    traffic.wait_for_look_ups(200).await;
    cluster.nodes[killed_node].kill();
    let killed = Instant::now();
    eventually("the replica has taken over", async || {
        is_primary(&cluster.replicas[killed_node])
    })
    .await;
    let took_over = killed.elapsed();
    eventually("the cluster is whole", async || {
        cluster_info(&cluster.nodes[0]).contains("cluster_slots_ok:16384")
    })
    .await;
    traffic.wait_for_look_ups(100).await;
    assert_recovered(&db, &a, &b, traffic, "a cluster's fail-over").await;
    let unproven = watch.end().await;
    println!("took over after {took_over:?}; {unproven} answers without proof, none from L1");
    assert!(unproven > 0, "the fail-over was not noticed");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn slots_of_a_cluster_move_for_good() {
    let cluster = Cluster::start(3).await;
    let db = Db::default();
    let a = process(&cluster.url(), &db, &Events::default()).await;
    let b = process(&cluster.url(), &db, &Events::default()).await;
    let traffic = Traffic::begin(&a, &db, |_| true);
    traffic.wait_for_look_ups(100).await;
    let many: Vec<u64> = (0..60).collect();
    for key in 0..HOT {
        let (slot, home) = (cluster.slot(key), cluster.primary_of(key));
        let to = (home + 1) % 3;
        cluster.begin_slot_migration(slot, home, to);
        traffic.wait_for_look_ups(10).await;
        // Keys on all nodes, and keys of the slot that is between two nodes.
        let _ = a.invalidate_many(&many).await;
        cluster.move_keys_of_slot(slot, home, to);
        traffic.wait_for_look_ups(10).await;
        cluster.assign_slot(slot, to);
    }
    assert_recovered(&db, &a, &b, traffic, "slots").await;
}

/// A primary with a replica and a sentinel that know each other.
async fn with_sentinel() -> (Server, Server, Server) {
    let primary = Server::start();
    let replica = Server::replica_of(primary.port());
    eventually("the replica is in step", async || {
        replica.raw().info("master_link_status").as_deref() == Some("up")
    })
    .await;
    let sentinel = Server::sentinel_of(primary.port());
    eventually("the sentinel knows the replica", async || {
        let Reply::List(known) = sentinel.raw().ask("SENTINEL REPLICAS main") else {
            panic!("a list of replicas")
        };
        !known.is_empty()
    })
    .await;
    (primary, replica, sentinel)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_primary_is_killed_and_the_sentinel_promotes_its_replica() {
    let (mut primary, replica, sentinel) = with_sentinel().await;
    let port = sentinel.port();
    let url = format!("redis-sentinel://127.0.0.1:{port}?sentinelServiceName=main");
    let (db, events) = (Db::default(), Events::default());
    let a = process(&url, &db, &Events::default()).await;
    let b = process(&url, &db, &events).await;
    let mut raw = primary.raw();
    let traffic = Traffic::begin(&a, &db, move |_| is_replicated(&mut raw, "x"));
    let watch = UnprovenWatch::begin(&b, &events);
    traffic.wait_for_look_ups(200).await;
    primary.kill();
    let killed = Instant::now();
    eventually("the replica has taken over", async || is_primary(&replica)).await;
    let took_over = killed.elapsed();
    traffic.wait_for_look_ups(100).await;
    assert_recovered(&db, &a, &b, traffic, "a sentinel's fail-over").await;
    let unproven = watch.end().await;
    println!("took over after {took_over:?}; {unproven} answers without proof, none from L1");
    assert!(unproven > 0, "the fail-over was not noticed");
}

/// A primary and its replica. The replica has received nothing since before an invalidation
/// returned.
struct PartitionedReplica {
    primary: Server,
    /// Between the two.
    proxy: Proxy,
    replica: Server,
    db: Db,
    /// The process that wrote and invalidated.
    a: Node,
    /// When the old record has expired at the latest.
    expires: Instant,
}

impl PartitionedReplica {
    async fn new(ttl: Duration) -> Self {
        let primary = Server::start();
        let proxy = Proxy::to(primary.port()).await;
        let replica = Server::replica_of(proxy.port());
        eventually("the replica is in step", async || {
            replica.raw().info("master_link_status").as_deref() == Some("up")
        })
        .await;
        let db = Db::default();
        db.behave(Behaviour::ttl(ttl));
        db.write(1, "old");
        let a = process(&primary.url(), &db, &Events::default()).await;
        assert_eq!(value(a.get(1).await), "old");
        let expires = Instant::now() + ttl;
        eventually("the replica has it", async || {
            let record = replica.raw().get(&users(1));
            record.is_some_and(|record| is_value(&record))
        })
        .await;
        proxy.set(ProxyMode::BlackHole).await;
        db.write(1, "new");
        a.invalidate(&1).await.expect("an invalidation");
        assert_eq!(primary.raw().get(&users(1)), None);
        Self {
            primary,
            proxy,
            replica,
            db,
            a,
            expires,
        }
    }

    /// The primary dies and the replica takes its place. Returns two processes that use the
    /// replica.
    async fn fails_over(&mut self) -> (Node, Node) {
        self.primary.kill();
        self.replica.raw().ask("REPLICAOF NO ONE");
        let (url, events) = (self.replica.url(), Events::default());
        let b = process(&url, &self.db, &events).await;
        (b, process(&url, &self.db, &events).await)
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_invalidation_that_a_fail_over_loses_is_bounded_by_the_ttl() {
    let mut partitioned = PartitionedReplica::new(Duration::from_secs(6)).await;
    let (b, c) = partitioned.fails_over().await;
    let loads = partitioned.db.loads_of(1);
    for node in [&b, &c] {
        assert_eq!(value(node.get(1).await), "old", "it was lost");
    }
    assert_eq!(partitioned.db.loads_of(1), loads);
    tokio::time::sleep_until(partitioned.expires).await;
    for node in [&b, &c] {
        assert_eq!(value(node.get(1).await), "new");
        node.check().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_invalidation_that_is_repeated_after_a_fail_over_ends_what_it_lost() {
    let mut partitioned = PartitionedReplica::new(Duration::from_secs(60)).await;
    let (b, c) = partitioned.fails_over().await;
    for node in [&b, &c] {
        assert_eq!(value(node.get(1).await), "old", "it was lost");
    }
    b.invalidate(&1).await.expect("an invalidation");
    assert_eq!(value(b.get(1).await), "new");
    eventually("the change has arrived", async || {
        value(c.get(1).await) == "new"
    })
    .await;
    for node in [&b, &c] {
        node.check().await;
    }
}

/// What `guide::operations` says about `WAIT`.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_write_and_wait_on_another_connection_say_whether_an_invalidation_is_on_a_replica() {
    let mut partitioned = PartitionedReplica::new(Duration::from_secs(60)).await;
    let mut raw = partitioned.primary.raw();
    raw.ask("SET x 1");
    assert_eq!(raw.ask("WAIT 1 200"), Reply::Number(0), "it is not");
    partitioned.proxy.set(ProxyMode::Pass).await;
    assert_eq!(raw.ask("WAIT 1 20000"), Reply::Number(1), "it is");
    let (b, c) = partitioned.fails_over().await;
    for node in [&b, &c] {
        assert_eq!(value(node.get(1).await), "new");
        node.check().await;
    }
}

/// What `guide::operations` says about `min-replicas-to-write`.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_primary_that_may_not_write_alone_refuses_an_invalidation_and_it_is_repeated() {
    let partitioned = PartitionedReplica::new(Duration::from_secs(60)).await;
    let mut raw = partitioned.primary.raw();
    raw.ask("CONFIG SET min-replicas-to-write 1");
    raw.ask("CONFIG SET min-replicas-max-lag 1");
    eventually("it is alone", async || {
        let result = partitioned.a.invalidate(&1).await;
        result.is_err_and(|error| why(&error).contains("NOREPLICAS"))
    })
    .await;
    assert_eq!(value(partitioned.a.get(1).await), "new");
    partitioned.proxy.set(ProxyMode::Pass).await;
    eventually("nothing is left to be repaired", async || {
        partitioned.a.health().pending_repairs == 0
    })
    .await;
    partitioned.a.check().await;
}
