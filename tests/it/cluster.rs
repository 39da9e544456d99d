//! A cluster of real servers: every primary is heard, and proven.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use tidegate::{Cache, CacheBuilder, Channel, Redis, Source};

use crate::support::eventually;
use crate::support::ground::users;
use crate::support::loader::Db;
use crate::support::node::{Node, value};
use crate::support::server::{Reply, Server};

/// The channel lease: longer than a busy machine stops a test for.
const LEASE: Duration = Duration::from_secs(1);
const NODES: usize = 3;
const SLOTS: usize = 16_384;

pub(crate) struct Cluster {
    pub(crate) nodes: Vec<Server>,
}

impl Cluster {
    pub(crate) async fn start() -> Self {
        let nodes: Vec<Server> = (0..NODES).map(|_| Server::start_in_cluster()).collect();
        for (at, node) in nodes.iter().enumerate() {
            let mut raw = node.raw();
            let slots: Vec<String> = Self::slots_of(at).map(|slot| slot.to_string()).collect();
            for some in slots.chunks(1000) {
                raw.ask(&format!("CLUSTER ADDSLOTS {}", some.join(" ")));
            }
            raw.ask(&format!("CLUSTER SET-CONFIG-EPOCH {}", at + 1));
        }
        for node in &nodes[1..] {
            nodes[0]
                .raw()
                .ask(&format!("CLUSTER MEET 127.0.0.1 {}", node.port()));
        }
        let cluster = Self { nodes };
        eventually("every node knows every slot", async || {
            cluster.nodes.iter().all(|node| {
                let Reply::Bytes(info) = node.raw().ask("CLUSTER INFO") else {
                    panic!("CLUSTER INFO answers text")
                };
                let info = String::from_utf8_lossy(&info).into_owned();
                info.contains("cluster_state:ok")
                    && info.contains("cluster_slots_assigned:16384")
                    && info.contains("cluster_known_nodes:3")
            })
        })
        .await;
        cluster
    }

    fn slots_of(node: usize) -> std::ops::Range<usize> {
        node * SLOTS / NODES..(node + 1) * SLOTS / NODES
    }

    pub(crate) fn slot(&self, key: u64) -> usize {
        let slot = self.nodes[0]
            .raw()
            .ask(&format!("CLUSTER KEYSLOT {}", users(key)));
        let Reply::Number(slot) = slot else {
            panic!("a slot: {slot:?}")
        };
        usize::try_from(slot).expect("a slot")
    }

    /// The node that a key was given to at first.
    pub(crate) fn home(&self, key: u64) -> usize {
        self.slot(key) * NODES / SLOTS
    }

    /// A key on each node, in their order.
    pub(crate) fn keys(&self) -> Vec<u64> {
        (0..NODES)
            .map(|node| (0..).find(|key| self.home(*key) == node).expect("a key"))
            .collect()
    }

    async fn process(&self, db: &Db) -> Node {
        let lease = |builder: CacheBuilder<Db>| builder.channel_lease(LEASE);
        self.process_with(db, Duration::from_millis(500), lease)
            .await
    }

    pub(crate) async fn process_with(
        &self,
        db: &Db,
        timeout: Duration,
        settings: impl FnOnce(CacheBuilder<Db>) -> CacheBuilder<Db>,
    ) -> Node {
        let url = format!("redis-cluster://127.0.0.1:{}", self.nodes[0].port());
        let redis = Redis::builder(&url).timeout(timeout);
        let redis = redis.connect().await.expect("connect");
        let builder = Cache::builder("users", db.clone()).ttl_jitter(0.0);
        let node = settings(builder).l2(redis).build();
        let node = Node::new(node.expect("settings that make sense"));
        node.get(1_000_000).await.expect("a look-up");
        proven(&node).await;
        node
    }

    fn id(&self, node: usize) -> String {
        let Reply::Bytes(id) = self.nodes[node].raw().ask("CLUSTER MYID") else {
            panic!("a node has an id")
        };
        String::from_utf8(id).expect("an id is ASCII")
    }
}

async fn proven(node: &Node) {
    eventually("the channel is proven", async || {
        node.health().channel == Channel::Proven
    })
    .await;
}

async fn source(node: &Node, key: u64) -> Source {
    let entry = node.get_entry(key).await.expect("a look-up");
    entry.expect("the key exists").source()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_one_process_changes_on_any_node_the_other_drops() {
    let (cluster, db) = (Cluster::start().await, Db::default());
    let (a, b) = (cluster.process(&db).await, cluster.process(&db).await);
    let keys: Vec<u64> = (0..60).collect();
    let homes: HashSet<usize> = keys.iter().map(|key| cluster.home(*key)).collect();
    assert_eq!(homes.len(), NODES, "every node has some");
    for key in &keys {
        assert_eq!(value(a.get(*key).await), format!("row {key}"));
        assert_eq!(source(&b, *key).await, Source::L2);
        assert_eq!(source(&b, *key).await, Source::L1);
        db.write(*key, "new");
    }
    a.invalidate_many(&keys).await.expect("invalidations");
    for key in &keys {
        eventually("the other process has dropped it", async || {
            b.peek(key).is_none()
        })
        .await;
        assert_eq!(value(b.get(*key).await), "new");
    }
    for key in &keys {
        a.get(*key).await.expect("a look-up");
    }
    b.invalidate_all().await.expect("an invalidation");
    eventually("everything is dropped", async || {
        keys.iter().all(|key| a.peek(key).is_none())
    })
    .await;
    a.insert(7, "by hand".to_owned()).await.expect("an insert");
    assert_eq!(value(b.get(7).await), "by hand");
    b.check().await;
    a.check().await;
}

/// The marks are on one node, the key on another: nothing of it is answered from L1 while its own
/// node is silent.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn l1_is_not_used_while_any_primary_is_silent() {
    let (cluster, db) = (Cluster::start().await, Db::default());
    let a = cluster.process(&db).await;
    let keys = cluster.keys();
    for silent in 0..NODES {
        for key in &keys {
            a.get(*key).await.expect("a look-up");
            eventually("L1 answers", async || a.peek(key).is_some()).await;
            a.get(*key).await.expect("a look-up");
        }
        cluster.nodes[silent].stop();
        eventually("the channel is not proven any more", async || {
            a.health().channel != Channel::Proven
        })
        .await;
        for key in &keys {
            let got = value(a.get(*key).await);
            assert_eq!(got, format!("row {key}"));
        }
        cluster.nodes[silent].resume();
        proven(&a).await;
    }
    a.check().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_slot_that_moves_fails_no_look_up_and_its_key_is_still_heard_of() {
    let (cluster, db) = (Cluster::start().await, Db::default());
    let (a, b) = (cluster.process(&db).await, cluster.process(&db).await);
    let key = cluster.keys()[0];
    let (from, to) = (cluster.id(0), cluster.id(1));
    assert_eq!(value(a.get(key).await), format!("row {key}"));
    assert_eq!(value(b.get(key).await), format!("row {key}"));
    let gaps = b.stats().gaps;
    let slot = cluster.slot(key);
    let ask = |node: usize, words: String| cluster.nodes[node].raw().ask(&words);
    ask(1, format!("CLUSTER SETSLOT {slot} IMPORTING {from}"));
    ask(0, format!("CLUSTER SETSLOT {slot} MIGRATING {to}"));
    assert_eq!(value(a.get(key).await), format!("row {key}"));
    let Reply::List(moved) = ask(0, format!("CLUSTER GETKEYSINSLOT {slot} 100")) else {
        panic!("the keys of a slot")
    };
    for key in moved {
        let Reply::Bytes(key) = key else {
            panic!("a key")
        };
        let key = String::from_utf8(key).expect("keys are ASCII");
        let port = cluster.nodes[1].port();
        ask(0, format!("MIGRATE 127.0.0.1 {port} {key} 0 5000"));
    }
    // Between the two nodes a script may find neither: then it is an error, and repeated.
    db.write(key, "new");
    let told = a.invalidate(&key).await;
    for node in [1, 0, 2] {
        ask(node, format!("CLUSTER SETSLOT {slot} NODE {to}"));
    }
    eventually("the invalidation is confirmed", async || {
        a.health().pending_repairs == 0
    })
    .await;
    assert!(told.is_ok() || a.stats().repairs == 1);
    eventually("b has noticed that the slot moved", async || {
        b.stats().gaps > gaps
    })
    .await;
    assert_eq!(value(b.get(key).await), "new");
    proven(&b).await;
    assert_eq!(value(b.get(key).await), "new");
    db.write(key, "newer");
    a.invalidate(&key).await.expect("an invalidation");
    eventually("b hears of it from the new node", async || {
        value(b.get(key).await) == "newer"
    })
    .await;
    b.check().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_primary_that_is_killed_fails_no_look_up() {
    let (mut cluster, db) = (Cluster::start().await, Db::default());
    let a = cluster.process(&db).await;
    let keys = cluster.keys();
    for key in &keys {
        a.get(*key).await.expect("a look-up");
    }
    cluster.nodes[2].kill();
    for _ in 0..20 {
        for key in &keys {
            assert_eq!(value(a.get(*key).await), format!("row {key}"));
        }
    }
    eventually(
        "L1 does not answer for nodes that live either",
        async || a.health().channel != Channel::Proven,
    )
    .await;
    let entry = a.get_entry(keys[0]).await.expect("a look-up");
    assert_eq!(
        entry.map(|entry| Arc::clone(entry.value())),
        Some(Arc::new(format!("row {}", keys[0])))
    );
    a.check().await;
}
