//! A fail-over by a sentinel from a real primary to its replica.

use std::time::Duration;

use tidegate::{Cache, Channel, Redis};

use crate::support::eventually;
use crate::support::loader::Db;
use crate::support::node::{Node, value};
use crate::support::server::{Reply, Server};

async fn process(db: &Db, sentinel: u16) -> Node {
    let url = format!("redis-sentinel://127.0.0.1:{sentinel}?sentinelServiceName=main");
    let redis = Redis::builder(&url).timeout(Duration::from_millis(500));
    let redis = redis.connect().await.expect("connect");
    let builder = Cache::builder("users", db.clone()).ttl_jitter(0.0);
    let builder = builder.channel_lease(Duration::from_secs(1));
    let node = builder.l2(redis).build();
    Node::new(node.expect("settings that make sense"))
}

async fn proven(node: &Node) {
    eventually("the channel is proven", async || {
        node.health().channel == Channel::Proven
    })
    .await;
}

fn role(server: &Server) -> String {
    let Reply::List(role) = server.raw().ask("ROLE") else {
        panic!("ROLE answers a list")
    };
    let Some(Reply::Bytes(role)) = role.into_iter().next() else {
        panic!("a role has a name")
    };
    String::from_utf8(role).expect("a name")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_fail_over_fails_no_look_up_and_coherence_comes_back_with_the_new_primary() {
    let primary = Server::start();
    let replica = Server::replica_of(primary.port());
    eventually("the replica is in step", async || {
        let Reply::Bytes(info) = primary.raw().ask("INFO replication") else {
            panic!("INFO answers text")
        };
        String::from_utf8_lossy(&info).contains("state=online")
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

    let db = Db::default();
    let a = process(&db, sentinel.port()).await;
    let b = process(&db, sentinel.port()).await;
    for node in [&a, &b] {
        assert_eq!(value(node.get(1).await), "row 1");
        proven(node).await;
    }
    let gaps = b.stats().gaps;
    // The sentinel looks at the replicas every ten seconds.
    eventually("the sentinel has a replica to promote", async || {
        let reply = sentinel.raw().try_ask("SENTINEL FAILOVER main");
        !matches!(reply, Reply::Error(_))
    })
    .await;
    let mut key = 100;
    eventually("the replica has taken over", async || {
        key += 1;
        assert_eq!(value(a.get(key).await), format!("row {key}"));
        assert_eq!(value(b.get(key).await), format!("row {key}"));
        role(&replica) == "master"
    })
    .await;
    eventually("the processes have noticed", async || {
        key += 1;
        assert_eq!(value(a.get(key).await), format!("row {key}"));
        assert_eq!(value(b.get(key).await), format!("row {key}"));
        b.stats().gaps > gaps && a.stats().gaps > 0
    })
    .await;
    for node in [&a, &b] {
        proven(node).await;
    }
    assert_eq!(value(b.get(1).await), "row 1");
    db.write(1, "new");
    // The first attempt may reach a server that takes no more writes.
    let result = a.invalidate(&1).await;
    eventually("the invalidation is confirmed", async || {
        a.health().pending_repairs == 0
    })
    .await;
    assert!(result.is_ok() || a.stats().repairs > 0);
    eventually("the other process hears of it", async || {
        value(b.get(1).await) == "new"
    })
    .await;
    a.check().await;
    b.check().await;
}
