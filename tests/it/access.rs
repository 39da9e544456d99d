//! Credentials and database numbers: by URL and by builder, and a password that changes at run
//! time.

use std::time::Duration;

use tidegate::{BuildError, Cache, Channel, Event, Redis, RedisBuilder, RemoteError};
use tokio::time::Instant;

use crate::support::backend::{check_records, users};
use crate::support::cluster::Cluster;
use crate::support::events::Events;
use crate::support::eventually;
use crate::support::loader::Db;
use crate::support::node::{Node, value};
use crate::support::server::{Reply, Server};

const TIMEOUT: Duration = Duration::from_millis(300);
/// What a busy machine may add to any bound.
const SLACK: Duration = Duration::from_secs(2);
/// Contains every character that has a meaning in a URL.
const PASSWORD: &str = "p@ss:w/r#d?%41 +ä\"'\\\r\nQUIT";
const ENCODED: &str = "p%40ss%3Aw%2Fr%23d%3F%2541%20%2B%C3%A4%22%27%5C%0D%0AQUIT";

fn node(db: &Db, redis: &Redis, events: &Events) -> Node {
    let builder = Cache::builder("users", db.clone()).ttl_jitter(0.0);
    let builder = builder.on_event(events.callback());
    Node::new(builder.l2(redis.clone()).build().expect("a cache"))
}

/// Look-ups are answered by the loader, within two timeouts.
async fn answers_in_time(node: &Node, keys: std::ops::Range<u64>) {
    for key in keys {
        let begun = Instant::now();
        assert_eq!(value(node.get(key).await), format!("row {key}"));
        let took = begun.elapsed();
        assert!(took < TIMEOUT * 2 + SLACK, "{took:?}");
    }
}

fn source(error: &RemoteError) -> String {
    std::error::Error::source(error)
        .map(ToString::to_string)
        .unwrap_or_default()
}

fn long_timeout_builder(url: &str) -> RedisBuilder {
    Redis::builder(url).timeout(Duration::from_secs(2))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_user_logs_in_by_url_and_by_builder_with_any_password() {
    let server = Server::start();
    let mut raw = server.raw();
    let word = format!(">{PASSWORD}");
    let rule: [&[u8]; 7] = [
        b"ACL",
        b"SETUSER",
        b"app",
        b"on",
        word.as_bytes(),
        b"allkeys",
        b"+@all",
    ];
    raw.send(&rule);
    if let Reply::Error(error) = raw.try_ask("ACL SETUSER app allchannels") {
        // Redis 6.0 has no permissions for channels.
        assert!(error.contains("allchannels"), "{error}");
    }
    raw.ask("ACL SETUSER default off");
    let (port, db) = (server.port(), Db::default());
    let by_url = format!("redis://app:{ENCODED}@127.0.0.1:{port}");
    for builder in [
        long_timeout_builder(&by_url),
        long_timeout_builder(&server.url()).user("app", PASSWORD),
    ] {
        let redis = builder.clone().connect().await;
        let redis = redis.unwrap_or_else(|error| panic!("{builder:?}: {error:?}"));
        let a = node(&db, &redis, &Events::default());
        assert_eq!(value(a.get(1).await), "row 1");
        eventually("the bus is there too", async || {
            a.health().channel == Channel::Proven
        })
        .await;
        assert_eq!(a.stats().l2_failures, 0);
        a.check().await;
    }
    for builder in [
        long_timeout_builder(&server.url()),
        long_timeout_builder(&server.url()).user("app", ENCODED),
        long_timeout_builder(&server.url()).user("nobody", PASSWORD),
        long_timeout_builder(&format!("redis://:{ENCODED}@127.0.0.1:{port}")),
    ] {
        let error = builder.connect().await.expect_err("wrong credentials");
        assert!(error.is_denied() && error.is_refused(), "{error:?}");
    }
}

#[test]
fn credentials_that_contradict_each_other_are_refused_by_name() {
    let open = |builder: RedisBuilder| builder.open().expect_err("a contradiction");
    for url in ["redis://other:word@host", "redis://:word@host"] {
        let error = open(Redis::builder(url).user("app", "word"));
        assert!(
            matches!(&error, BuildError::Clash { setter: "user", .. }),
            "{error}"
        );
    }
    let sentinels = "redis-sentinel://host?sentinelServiceName=main";
    let error = open(Redis::builder(sentinels).user("app", "two words"));
    assert!(error.to_string().contains("without spaces"), "{error}");
    for (name, password) in [("", "word"), ("app", "")] {
        let error = open(Redis::builder("redis://host").user(name, password));
        assert!(
            matches!(&error, BuildError::OutOfRange { setter: "user", .. }),
            "{error}"
        );
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_database_is_named_by_its_url_and_a_wrong_one_is_an_error_of_connect() {
    let server = Server::start();
    let (mut raw, db) = (server.raw(), Db::default());
    let redis = long_timeout_builder(&format!("{}/3", server.url()))
        .connect()
        .await;
    let a = node(&db, &redis.expect("connect"), &Events::default());
    assert_eq!(value(a.get(1).await), "row 1");
    assert!(raw.get(&users(1)).is_none());
    raw.ask("SELECT 3");
    assert!(raw.get(&users(1)).is_some());
    a.check().await;

    let wrong = Redis::builder(&format!("{}/99", server.url())).timeout(TIMEOUT);
    let error = wrong.clone().connect().await.expect_err("there are 16");
    assert!(error.is_refused(), "{error:?}");
    assert_eq!(
        error.to_string(),
        "select the database: the shared tier refused"
    );
    assert!(
        source(&error).contains("DB index is out of range"),
        "{error:?}"
    );
    let b = node(&db, &wrong.open().expect("a handle"), &Events::default());
    answers_in_time(&b, 2..5).await;
    eventually("health says it", async || {
        let denied = b.health().denied;
        denied.is_some_and(|denied| denied.contains("DB index"))
    })
    .await;
    b.check().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_database_of_a_cluster_is_refused_by_name() {
    let cluster = Cluster::start(3).await;
    let url = format!("redis-cluster://127.0.0.1:{}/3", cluster.nodes[0].port());
    let error = Redis::connect(&url).await.expect_err("no database 3");
    assert!(
        source(&error).contains("a cluster has no other than 0"),
        "{error:?}"
    );
    let url = format!("redis-cluster://127.0.0.1:{}/0", cluster.nodes[0].port());
    long_timeout_builder(&url).connect().await.expect("connect");
    // One node of the cluster, connected to as a single server.
    let error = long_timeout_builder(&format!("{}/3", cluster.nodes[0].url()))
        .connect()
        .await;
    let error = error.expect_err("no database 3");
    assert_eq!(
        error.to_string(),
        "select the database: the shared tier refused"
    );
}

/// The server asks new connections for the password, but not connections that are open already.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_password_that_changes_costs_the_shared_tier_until_it_changes_back() {
    let server = Server::start();
    let (mut raw, db) = (server.raw(), Db::default());
    raw.ask("CONFIG SET requirepass secret");
    let url = format!("redis://:secret@127.0.0.1:{}", server.port());
    let redis = Redis::builder(&url)
        .timeout(TIMEOUT)
        .connect()
        .await
        .expect("connect");
    let events = Events::default();
    let a = node(&db, &redis, &events);
    assert_eq!(value(a.get(0).await), "row 0");
    for first in [1_000, 2_000] {
        raw.ask("CONFIG SET requirepass other");
        raw.ask("CLIENT KILL TYPE normal SKIPME yes");
        raw.ask("CLIENT KILL TYPE pubsub");
        eventually("health says it", async || {
            let denied = a.health().denied;
            denied.is_some_and(|denied| denied.contains("WRONGPASS"))
        })
        .await;
        answers_in_time(&a, first..first + 10).await;
        assert!((first..first + 10).all(|key| raw.get(&users(key)).is_none()));

        raw.ask("CONFIG SET requirepass secret");
        let mut key = first + 100;
        eventually("loads fill L2 again", async || {
            key += 1;
            assert_eq!(value(a.get(key).await), format!("row {key}"));
            raw.get(&users(key)).is_some()
        })
        .await;
        eventually("nothing is denied any more", async || {
            let health = a.health();
            health.denied.is_none() && health.channel == Channel::Proven
        })
        .await;
    }
    assert_eq!(
        (events.count(Event::Denied), events.count(Event::Granted)),
        (2, 2)
    );
    a.check().await;
    raw.send(&[b"CONFIG", b"SET", b"requirepass", b""]);
    check_records(&server);
}
