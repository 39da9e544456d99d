//! A cluster of real servers: L1 depends on the channel of every primary.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use tidegate::{Cache, CacheBuilder, Channel, Redis, Source};

use crate::support::cluster::Cluster;
use crate::support::eventually;
use crate::support::loader::Db;
use crate::support::node::{Node, value};

/// The channel lease: longer than a busy machine pauses a test.
const LEASE: Duration = Duration::from_secs(1);
const NODES: usize = 3;

async fn process(cluster: &Cluster, db: &Db) -> Node {
    let lease = |builder: CacheBuilder<Db>| builder.channel_lease(LEASE);
    process_with(cluster, db, Duration::from_millis(500), lease).await
}

/// A process with this timeout for its commands.
pub(crate) async fn process_with(
    cluster: &Cluster,
    db: &Db,
    timeout: Duration,
    settings: impl FnOnce(CacheBuilder<Db>) -> CacheBuilder<Db>,
) -> Node {
    let redis = Redis::builder(&cluster.url()).timeout(timeout);
    let redis = redis.connect().await.expect("connect");
    let builder = Cache::builder("users", db.clone()).ttl_jitter(0.0);
    let node = settings(builder).l2(redis).build();
    let node = Node::new(node.expect("settings that make sense"));
    node.get(1_000_000).await.expect("a look-up");
    proven(&node).await;
    node
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
async fn a_change_by_one_process_on_any_node_reaches_the_other() {
    let (cluster, db) = (Cluster::start(NODES).await, Db::default());
    let (a, b) = (process(&cluster, &db).await, process(&cluster, &db).await);
    let keys: Vec<u64> = (0..60).collect();
    let homes: HashSet<usize> = keys.iter().map(|key| cluster.primary_of(*key)).collect();
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
    // Every command went to the node of its key.
    for node in &cluster.nodes {
        assert_eq!(node.raw().info("errorstat_MOVED"), None);
    }
    b.check().await;
    a.check().await;
}

/// The watermarks are on one node and the key on another. No entry is answered from L1 while the
/// node of its key is silent.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn l1_is_not_used_while_any_primary_is_silent() {
    let (cluster, db) = (Cluster::start(NODES).await, Db::default());
    let a = process(&cluster, &db).await;
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
async fn a_slot_that_moves_fails_no_look_up_and_changes_of_its_key_still_arrive() {
    let (cluster, db) = (Cluster::start(NODES).await, Db::default());
    let (a, b) = (process(&cluster, &db).await, process(&cluster, &db).await);
    let key = cluster.keys()[0];
    assert_eq!(value(a.get(key).await), format!("row {key}"));
    assert_eq!(value(b.get(key).await), format!("row {key}"));
    let gaps = b.stats().gaps;
    let slot = cluster.slot(key);
    cluster.begin_slot_migration(slot, 0, 1);
    assert_eq!(value(a.get(key).await), format!("row {key}"));
    cluster.move_keys_of_slot(slot, 0, 1);
    // While the slot moves, a script may find it on neither node. The call then fails and is
    // repeated.
    db.write(key, "new");
    let result = a.invalidate(&key).await;
    cluster.assign_slot(slot, 1);
    eventually("the invalidation is confirmed", async || {
        a.health().pending_repairs == 0
    })
    .await;
    assert!(result.is_ok() || a.stats().repairs == 1);
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
    let (mut cluster, db) = (Cluster::start(NODES).await, Db::default());
    let a = process(&cluster, &db).await;
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
