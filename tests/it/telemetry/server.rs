//! Statistics of real servers.

use std::time::Duration;

use tidegate::{Redis, Role};
use tokio::time::Instant;

use crate::support::cluster::Cluster;
use crate::support::eventually;
use crate::support::server::Server;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn server_statistics_match_the_server() {
    let server = Server::start();
    let mut raw = server.raw();
    raw.ask("CONFIG SET maxmemory 64mb");
    let redis = server
        .long_timeout_builder()
        .connect()
        .await
        .expect("connect");
    // Without the commands of the connection itself.
    raw.ask("CONFIG RESETSTAT");
    raw.ask("SET here 1");
    for _ in 0..3 {
        raw.ask("GET here");
    }
    raw.ask("GET nowhere");
    let stats = redis.server_stats().await;
    assert_eq!((stats.nodes.len(), stats.unanswered), (1, 0));
    let node = &stats.nodes[0];
    assert_eq!(node.address, format!("127.0.0.1:{}", server.port()));
    assert!(node.used_memory > 100_000, "{node:?}");
    assert_eq!(node.max_memory, Some(64 << 20));
    assert!(
        node.memory_ratio()
            .is_some_and(|share| share > 0.0 && share < 1.0)
    );
    assert_eq!((node.keyspace_hits, node.keyspace_misses), (3, 1));
    assert!((node.keyspace_hit_ratio() - 0.75).abs() < 1e-9);
    assert!(node.connected_clients >= 2, "{node:?}");
    assert_eq!((node.role, node.connected_replicas), (Role::Primary, 0));
    assert_eq!((node.evicted_keys, node.replication_lag), (0, None));
    let mut total = node.clone();
    total.address.clear();
    assert_eq!(stats.total(), total);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn memory_that_is_full_shows_as_evictions() {
    let server = Server::start();
    let mut raw = server.raw();
    let redis = server
        .long_timeout_builder()
        .connect()
        .await
        .expect("connect");
    let used = redis.server_stats().await.total().used_memory;
    raw.ask("CONFIG SET maxmemory-policy allkeys-lru");
    raw.ask(&format!("CONFIG SET maxmemory {}", used + (1 << 20)));
    for key in 0..64 {
        raw.set(&format!("filler:{key}"), &[0; 64 << 10]);
    }
    let stats = redis.server_stats().await.total();
    assert!(stats.evicted_keys > 0, "{stats:?}");
    assert!(stats.memory_ratio().is_some_and(|share| share > 0.5));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_replica_reports_its_role_and_its_primary_reports_the_lag() {
    let primary = Server::start();
    let replica = Server::replica_of(primary.port());
    let of_primary = primary
        .long_timeout_builder()
        .connect()
        .await
        .expect("connect");
    let of_replica = replica
        .long_timeout_builder()
        .connect()
        .await
        .expect("connect");
    eventually("it follows", async || {
        of_replica.server_stats().await.total().primary_link_up == Some(true)
    })
    .await;
    let node = of_replica.server_stats().await.total();
    assert_eq!(node.role, Role::Replica);
    eventually("its primary knows its offset", async || {
        let node = of_primary.server_stats().await.total();
        assert_eq!(node.role, Role::Primary);
        node.connected_replicas == 1 && node.replication_lag == Some(0)
    })
    .await;
    // A stopped replica no longer confirms what it has received.
    replica.stop();
    primary.raw().set("large", &[0; 10_000]);
    let node = of_primary.server_stats().await.total();
    assert!(node.replication_lag >= Some(10_000), "{node:?}");
    replica.resume();
}

/// The call ends within its timeout, and the caches of the handle do not notice.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_does_not_answer_is_counted_in_time() {
    let server = Server::start();
    let builder = Redis::builder(&server.url()).timeout(Duration::from_millis(200));
    let redis = builder.connect().await.expect("connect");
    server.stop();
    let asked = Instant::now();
    let stats = redis.server_stats().await;
    assert_eq!((stats.nodes.len(), stats.unanswered), (0, 1));
    assert!(asked.elapsed() < Duration::from_secs(10), "it has an end");
    assert_eq!(stats.total(), tidegate::NodeStats::default());
    server.resume();
    eventually("it is there again", async || {
        redis.server_stats().await.unanswered == 0
    })
    .await;
    let nowhere = Redis::open("redis://127.0.0.1:1").expect("a URL that makes sense");
    assert_eq!(nowhere.server_stats().await.unanswered, 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_a_cluster_every_primary_is_asked() {
    let cluster = Cluster::start(3).await;
    let redis = Redis::builder(&cluster.url()).timeout(Duration::from_millis(500));
    let redis = redis.connect().await.expect("connect");
    for (at, key) in cluster.keys().into_iter().enumerate() {
        let mut raw = cluster.nodes[at].raw();
        raw.ask("CONFIG RESETSTAT");
        for _ in 0..=at {
            raw.ask(&format!("GET {}", crate::support::backend::users(key)));
        }
    }
    let stats = redis.server_stats().await;
    assert_eq!((stats.nodes.len(), stats.unanswered), (3, 0));
    for (at, server) in cluster.nodes.iter().enumerate() {
        let address = format!("127.0.0.1:{}", server.port());
        let node = stats.nodes.iter().find(|node| node.address == address);
        let node = node.unwrap_or_else(|| panic!("{address} is not among {stats:?}"));
        assert_eq!(node.keyspace_misses, at as u64 + 1);
        assert_eq!(node.role, Role::Primary);
    }
    let total = stats.total();
    assert_eq!(total.keyspace_misses, 6);
    let used: u64 = stats.nodes.iter().map(|node| node.used_memory).sum();
    assert_eq!((total.used_memory, total.role), (used, Role::Primary));
    cluster.nodes[1].stop();
    let stats = redis.server_stats().await;
    cluster.nodes[1].resume();
    assert_eq!((stats.nodes.len(), stats.unanswered), (2, 1), "{stats:?}");
}
