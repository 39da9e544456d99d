//! Handles to a server: how they are made, kept apart and dropped.

use std::time::Duration;

use tidegate::fred::clients::Pool;
use tidegate::fred::interfaces::ClientLike;
use tidegate::fred::types::Builder;
use tidegate::fred::types::config::Config;
use tidegate::{Cache, Redis, Source};
use tokio::time::Instant;

use crate::support::backend::{check_records, users};
use crate::support::loader::Db;
use crate::support::node::{Node, value};
use crate::support::server::{Server, free_port, long_timeout_builder, url};
use crate::support::{eventually, within};

fn node(db: &Db, redis: &Redis) -> Node {
    Node::new(
        Cache::builder("users", db.clone())
            .l2(redis.clone())
            .build()
            .expect("a cache"),
    )
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn connecting_to_a_closed_port_is_an_error_and_not_a_wait() {
    let url = url(free_port());
    let error = within("an answer", Redis::connect(&url))
        .await
        .expect_err("no server on this port");
    assert!(error.is_unreachable(), "{error:?}");
    assert!(
        std::error::Error::source(&error).is_some(),
        "the cause is kept"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_prefixes_on_one_server_never_meet() {
    let server = Server::start();
    let (one, other) = (Db::default(), Db::default());
    one.write(1, "one");
    other.write(1, "other");
    let a = server
        .long_timeout_builder()
        .prefix("tidegate-a")
        .connect()
        .await
        .expect("connect");
    let b = server
        .long_timeout_builder()
        .prefix("tidegate-b")
        .connect()
        .await
        .expect("connect");
    let (a, b) = (node(&one, &a), node(&other, &b));
    let gate = one.gate();
    let holder = a.caller(1).await;
    gate.reached().await;
    assert_eq!(value(b.get(1).await), "other", "no lease is shared");
    gate.open();
    assert_eq!(value(crate::support::node::answer(holder).await), "one");
    let mut keys = server.raw().entries("*");
    keys.sort_unstable();
    assert_eq!(keys, ["tidegate-a:users:1", "tidegate-b:users:1"]);
    b.invalidate(&1).await.expect("an invalidation");
    // One connection delivers messages in order, so what b said first has arrived when this
    // returns.
    a.invalidate(&2).await.expect("an invalidation");
    assert!(a.peek(&1).is_some());
    assert_eq!(a.stats().remote_invalidations, 0);
    assert_eq!(server.raw().entries("*"), ["tidegate-a:users:1"]);
    for node in [&a, &b] {
        node.check().await;
    }
    check_records(&server);
}

fn pool(server: &Server) -> Pool {
    let config = Config::from_url(&server.url()).expect("a URL");
    Builder::from_config(config).build_pool(2).expect("a pool")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_pool_that_the_service_has_already_is_used_and_survives() {
    let server = Server::start();
    let pool = pool(&server);
    pool.init().await.expect("connect");
    let db = Db::default();
    let redis = Redis::from_pool(pool.clone());
    let (a, b) = (
        node(&db, &redis),
        node(
            &db,
            &server
                .long_timeout_builder()
                .connect()
                .await
                .expect("connect"),
        ),
    );
    assert_eq!(value(a.get(1).await), "row 1");
    let entry = b.get_entry(1).await.expect("a look-up").expect("an entry");
    assert_eq!(entry.source(), Source::L2);
    b.invalidate(&1).await.expect("an invalidation");
    eventually("it hears of it", async || a.peek(&1).is_none()).await;
    for node in [&a, &b] {
        node.check().await;
    }
    check_records(&server);
    drop((a, b, redis));
    pool.ping::<String>(None)
        .await
        .expect("closing the pool is the service's business");
    pool.quit().await.expect("it is still open");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn dropping_all_handles_closes_their_connections() {
    let server = Server::start();
    let mut raw = server.raw();
    let db = Db::default();
    let connected = server
        .long_timeout_builder()
        .connections(2)
        .connect()
        .await
        .expect("connect");
    let opened = server.long_timeout_builder().open().expect("a handle");
    let (a, b) = (node(&db, &connected), node(&db, &opened));
    for node in [&a, &b] {
        assert_eq!(value(node.get(1).await), "row 1");
    }
    // This client, two connections and a subscription of one handle, one and a subscription of the
    // other.
    assert_eq!(raw.clients(), 6);
    for node in [&a, &b] {
        node.check().await;
    }
    drop((connected, opened));
    assert_eq!(raw.clients(), 6, "the caches still use them");
    drop((a, b));
    eventually("only this client is left", async || raw.clients() == 1).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_closed_cache_answers_closed_and_does_not_end_the_others() {
    let server = Server::start();
    let db = Db::default();
    let redis = server
        .long_timeout_builder()
        .connect()
        .await
        .expect("connect");
    let (a, b) = (node(&db, &redis), node(&db, &redis));
    let gate = db.gate();
    let caller = a.caller(1).await;
    gate.reached().await;
    let closing = {
        let a = a.clone();
        crate::support::node::begin(async move { a.close().await }).await
    };
    assert!(matches!(a.get(1).await, Err(tidegate::Error::Closed)));
    gate.open();
    within("closing ends with the load", closing)
        .await
        .expect("closed");
    assert_eq!(value(crate::support::node::answer(caller).await), "row 1");
    assert!(a.invalidate(&1).await.is_err_and(|error| error.is_closed()));
    let entry = b.get_entry(1).await.expect("a look-up").expect("an entry");
    assert_eq!(entry.source(), Source::L2);
    for node in [&a, &b] {
        node.check().await;
    }
    check_records(&server);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_handle_to_a_server_that_is_not_there_works_without_it_and_heals() {
    let port = free_port();
    let redis = long_timeout_builder(port)
        .timeout(Duration::from_secs(15))
        .open()
        .expect("a handle");
    let db = Db::default();
    let a = node(&db, &redis);
    let begun = Instant::now();
    let gate = db.gate();
    let callers = a.callers(50, 1).await;
    gate.reached().await;
    gate.open();
    for caller in callers {
        assert_eq!(value(crate::support::node::answer(caller).await), "row 1");
    }
    assert_eq!(db.loads(), 1, "coalesced");
    for key in 2..20 {
        assert_eq!(value(a.get(key).await), format!("row {key}"));
    }
    assert!(
        begun.elapsed() < Duration::from_secs(5),
        "a refused connection is no reason to wait"
    );
    assert!(
        a.invalidate(&1).await.is_err(),
        "no other process can have received it"
    );
    assert!(a.peek(&1).is_none());

    let server = Server::start_on(port);
    let mut raw = server.raw();
    let mut key = 100;
    eventually("loads fill L2", async || {
        key += 1;
        assert_eq!(value(a.get(key).await), format!("row {key}"));
        raw.get(&users(key)).is_some()
    })
    .await;
    let b = node(
        &db,
        &server
            .long_timeout_builder()
            .connect()
            .await
            .expect("connect"),
    );
    eventually("invalidations of others arrive", async || {
        assert_eq!(value(a.get(key).await), format!("row {key}"));
        b.invalidate(&key).await.expect("an invalidation");
        a.stats().remote_invalidations > 0
    })
    .await;
    for node in [&a, &b] {
        node.check().await;
    }
    check_records(&server);
}
