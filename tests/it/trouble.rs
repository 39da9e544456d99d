//! Trouble with Redis does not become trouble of look-ups.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use tidegate::{Cache, Redis, Source};
use tokio::time::{Instant, sleep};

use crate::support::backend::{check_records, users};
use crate::support::eventually;
use crate::support::loader::{Behaviour, Db};
use crate::support::node::{Node, answer, value};
use crate::support::proxy::{Proxy, ProxyMode};
use crate::support::server::{Raw, Reply, Server, is_lease, long_timeout_builder};

/// What a busy machine may add to any bound.
const SLACK: Duration = Duration::from_secs(2);

struct Fixture {
    server: Server,
    raw: Raw,
    proxy: Proxy,
    db: Db,
    a: Node,
}

impl Fixture {
    /// A cache that reaches its server through a proxy and has used its scripts once.
    async fn new(timeout: Duration) -> Self {
        let server = Server::start();
        let raw = server.raw();
        let proxy = Proxy::to(server.port()).await;
        let redis = long_timeout_builder(proxy.port())
            .timeout(timeout)
            .connect()
            .await
            .expect("connect");
        let db = Db::default();
        let a = node(&db, &redis);
        a.get(100).await.expect("a load");
        a.invalidate(&100).await.expect("an invalidation");
        Self {
            server,
            raw,
            proxy,
            db,
            a,
        }
    }

    /// Cold keys one after the other, with 20 callers each. All callers are answered within
    /// `bound`, by one load per key.
    async fn look_ups_succeed(&self, keys: std::ops::Range<u64>, bound: Duration) {
        for key in keys {
            let loads = self.db.loads();
            let begun = Instant::now();
            for caller in self.a.callers(20, key).await {
                assert_eq!(value(answer(caller).await), format!("row {key}"));
            }
            let took = begun.elapsed();
            assert!(took < bound + SLACK, "key {key} took {took:?}");
            assert_eq!(self.db.loads(), loads + 1, "key {key} was not coalesced");
        }
    }

    /// Waits until loads fill L2 again and L1 is used again. The cache recovers by itself.
    async fn heals(&mut self, first: u64) {
        let mut key = first;
        eventually("loads fill L2 again", async || {
            key += 1;
            assert_eq!(value(self.a.get(key).await), format!("row {key}"));
            self.raw
                .get(&users(key))
                .is_some_and(|record| !is_lease(&record))
        })
        .await;
        eventually("L1 is used again", async || {
            value(self.a.get(key).await);
            self.a
                .get_entry(key)
                .await
                .is_ok_and(|entry| entry.is_some_and(|entry| entry.source() == Source::L1))
        })
        .await;
    }

    async fn end(self) {
        self.a.check().await;
        check_records(&self.server);
    }
}

fn node(db: &Db, redis: &Redis) -> Node {
    let builder = Cache::builder("users", db.clone())
        .ttl_jitter(0.0)
        .lease_ttl(Duration::from_millis(500));
    Node::new(builder.l2(redis.clone()).build().expect("a cache"))
}

const TIMEOUT: Duration = Duration::from_millis(300);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn connections_that_are_refused_cost_each_get_one_timeout_at_most_and_heal() {
    let mut fixture = Fixture::new(TIMEOUT).await;
    fixture.proxy.set(ProxyMode::Refuse).await;
    fixture.look_ups_succeed(0..20, TIMEOUT).await;
    fixture.proxy.set(ProxyMode::Pass).await;
    fixture.heals(1_000).await;
    fixture.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_black_hole_costs_each_get_one_timeout_at_most_and_heals() {
    let mut fixture = Fixture::new(TIMEOUT).await;
    fixture.proxy.set(ProxyMode::BlackHole).await;
    fixture.look_ups_succeed(0..4, TIMEOUT).await;
    assert!(fixture.a.stats().l2_failures >= 4);
    fixture.proxy.set(ProxyMode::Pass).await;
    fixture.heals(1_000).await;
    fixture.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_black_hole_that_opens_during_a_load_costs_one_timeout_and_leaves_no_lease() {
    let mut fixture = Fixture::new(TIMEOUT).await;
    let gate = fixture.db.gate();
    let caller = fixture.a.caller(1).await;
    gate.reached().await;
    fixture.proxy.set(ProxyMode::BlackHole).await;
    let begun = Instant::now();
    gate.open();
    assert_eq!(value(answer(caller).await), "row 1");
    assert!(begun.elapsed() < TIMEOUT + SLACK, "{:?}", begun.elapsed());
    assert!(
        fixture.a.peek(&1).is_none(),
        "the outcome of the fill is unknown"
    );
    fixture.proxy.set(ProxyMode::Pass).await;
    eventually("the lease ends", async || {
        !fixture
            .raw
            .get(&users(1))
            .is_some_and(|record| is_lease(&record))
    })
    .await;
    fixture.heals(1_000).await;
    fixture.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_slower_than_the_timeout_costs_each_get_one_timeout_at_most() {
    let mut fixture = Fixture::new(TIMEOUT).await;
    fixture.proxy.set(ProxyMode::Slow(TIMEOUT * 3)).await;
    fixture.look_ups_succeed(0..3, TIMEOUT).await;
    fixture.proxy.set(ProxyMode::Pass).await;
    fixture.heals(1_000).await;
    fixture.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn connections_that_are_cut_fail_no_get() {
    let mut fixture = Fixture::new(Duration::from_secs(2)).await;
    fixture.db.behave(Behaviour {
        takes: Duration::from_millis(1),
        ..Behaviour::default()
    });
    for round in 0..10 {
        let mut callers = Vec::new();
        for key in 0..20 {
            callers.extend(fixture.a.callers(2, round * 100 + key).await);
            if key == 10 {
                fixture.proxy.cut();
            }
        }
        for caller in callers {
            answer(caller).await.expect("an answer");
        }
    }
    fixture.heals(10_000).await;
    eventually("leases of those moments have ended", async || {
        let keys = fixture.raw.keys("tidegate*");
        !keys
            .iter()
            .any(|key| fixture.raw.get(key).is_some_and(|record| is_lease(&record)))
    })
    .await;
    fixture.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_is_stopped_costs_one_timeout_and_heals_when_it_goes_on() {
    let mut fixture = Fixture::new(TIMEOUT).await;
    fixture.server.stop();
    fixture.look_ups_succeed(0..4, TIMEOUT).await;
    assert!(
        fixture
            .a
            .invalidate(&1)
            .await
            .is_err_and(|error| error.is_timeout() || error.is_unreachable())
    );
    fixture.server.resume();
    fixture.heals(1_000).await;
    eventually("leases of those moments have ended", async || {
        !(0..4).any(|key| {
            fixture
                .raw
                .get(&users(key))
                .is_some_and(|record| is_lease(&record))
        })
    })
    .await;
    fixture.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_is_killed_during_traffic_fails_no_get() {
    let mut server = Server::start();
    let redis = server
        .long_timeout_builder()
        .connect()
        .await
        .expect("connect");
    let db = Db::default();
    let a = node(&db, &redis);
    let ends = Arc::new(AtomicBool::new(false));
    let mut traffic = Vec::new();
    for first in 0..8_u64 {
        let (a, ends) = (a.clone(), Arc::clone(&ends));
        traffic.push(tokio::spawn(async move {
            let mut gets = 0;
            while !ends.load(Ordering::SeqCst) {
                let key = (first * 7 + gets) % 500;
                assert_eq!(value(a.get(key).await), format!("row {key}"));
                gets += 1;
                sleep(Duration::from_millis(1)).await;
            }
            gets
        }));
    }
    let lookups = || a.stats().lookups();
    eventually("there is traffic", async || lookups() > 200).await;
    server.kill();
    let killed = lookups();
    eventually("it goes on without the server", async || {
        lookups() > killed + 500
    })
    .await;
    server.restart();
    let fills = a.stats().fills;
    eventually("the new server is used", async || a.stats().fills > fills).await;
    ends.store(true, Ordering::SeqCst);
    for task in traffic {
        assert!(answer(task).await > 0);
    }
    a.check().await;
    check_records(&server);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_out_of_memory_answers_no_get_with_an_error_and_keeps_no_lease() {
    let mut fixture = Fixture::new(Duration::from_secs(2)).await;
    // The memory is full when the load begins.
    fixture.raw.ask("CONFIG SET maxmemory-policy noeviction");
    fixture.raw.ask("CONFIG SET maxmemory 1");
    fixture.look_ups_succeed(0..3, Duration::ZERO).await;
    fixture.raw.ask("CONFIG SET maxmemory 0");
    assert!(fixture.raw.entries("tidegate*").is_empty());
    // The memory is full when the load ends.
    let gate = fixture.db.gate();
    let callers = fixture.a.callers(5, 10).await;
    gate.reached().await;
    fixture.raw.ask("CONFIG SET maxmemory 1");
    gate.open();
    for caller in callers {
        assert_eq!(value(answer(caller).await), "row 10");
    }
    assert_eq!(
        fixture.raw.get(&users(10)),
        None,
        "a lease without a load holds others up"
    );
    fixture
        .a
        .invalidate(&10)
        .await
        .expect("removing needs no memory");
    fixture.raw.ask("CONFIG SET maxmemory 0");
    fixture.heals(1_000).await;
    fixture.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_is_a_replica_fails_no_get() {
    let mut fixture = Fixture::new(Duration::from_secs(2)).await;
    assert_eq!(value(fixture.a.get(50).await), "row 50");
    fixture.raw.ask("REPLICAOF 127.0.0.1 1");
    fixture.look_ups_succeed(0..5, Duration::ZERO).await;
    assert!(
        fixture
            .a
            .invalidate(&50)
            .await
            .is_err_and(|error| error.is_refused())
    );
    assert!(fixture.a.peek(&50).is_none());
    fixture.raw.ask("REPLICAOF NO ONE");
    fixture.heals(1_000).await;
    fixture.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_key_of_another_type_fails_no_get_and_is_removed_by_an_invalidation() {
    let mut fixture = Fixture::new(Duration::from_secs(2)).await;
    fixture.raw.ask(&format!("RPUSH {} what is this", users(1)));
    fixture.look_ups_succeed(1..2, Duration::ZERO).await;
    fixture.a.invalidate(&1).await.expect("an invalidation");
    fixture.look_ups_succeed(1..2, Duration::ZERO).await;
    assert!(fixture.raw.get(&users(1)).is_some());
    fixture.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_read_before_the_subscription_was_lost_is_answered_from_l1_afterwards() {
    let mut fixture = Fixture::new(Duration::from_secs(2)).await;
    let other = fixture
        .server
        .long_timeout_builder()
        .connect()
        .await
        .expect("connect");
    let b = node(&fixture.db, &other);
    for key in 0..100 {
        assert_eq!(value(fixture.a.get(key).await), format!("row {key}"));
    }
    assert_eq!(value(b.get(1).await), "row 1");
    fixture.db.write(1, "new");
    // No process receives a message of this change.
    fixture.raw.ask("CLIENT KILL TYPE pubsub");
    fixture.raw.ask(&format!("DEL {}", users(1)));
    eventually("the loss is noticed", async || {
        (0..100).all(|key| fixture.a.peek(&key).is_none())
    })
    .await;
    assert_eq!(value(fixture.a.get(1).await), "new");
    let loads = fixture.db.loads();
    for key in 2..100 {
        let entry = fixture
            .a
            .get_entry(key)
            .await
            .expect("a look-up")
            .expect("an entry");
        assert_eq!(entry.source(), Source::L2, "revalidated, not loaded");
    }
    assert_eq!(fixture.db.loads(), loads);
    fixture.heals(1_000).await;
    // The new subscription works.
    fixture.a.get(1).await.expect("a look-up");
    b.invalidate(&1).await.expect("an invalidation");
    eventually("the change has arrived", async || {
        fixture.a.peek(&1).is_none()
    })
    .await;
    b.check().await;
    fixture.end().await;
}

/// The client library reports a subscription before the server has confirmed it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn l1_is_not_used_before_the_server_has_confirmed_the_subscription() {
    let mut fixture = Fixture::new(Duration::from_millis(500)).await;
    let redis = long_timeout_builder(fixture.proxy.port())
        .connect()
        .await
        .expect("connect");
    // A long channel lease, so that the test does not pass only because the proof runs out.
    let builder = Cache::builder("users", fixture.db.clone()).ttl_jitter(0.0);
    let builder = builder.channel_lease(Duration::from_secs(60));
    let b = Node::new(builder.l2(redis).build().expect("a cache"));
    fixture.proxy.set(ProxyMode::Hold("SUBSCRIBE")).await;
    assert_eq!(value(b.get(1).await), "row 1");
    let entry = b.get_entry(1).await.expect("a look-up").expect("an entry");
    assert_eq!(entry.source(), Source::L2);
    assert_eq!(value(b.get(2).await), "row 2");
    // The subscription does not exist yet, so no message of these changes reaches process b.
    for key in [1, 2] {
        fixture.db.write(key, "new");
        fixture.a.invalidate(&key).await.expect("an invalidation");
    }
    assert_eq!(value(b.get(1).await), "new");
    fixture.proxy.set(ProxyMode::Pass).await;
    eventually("L1 is used", async || {
        assert_eq!(value(b.get(1).await), "new");
        b.peek(&1).is_some()
    })
    .await;
    // This entry was read before the subscription existed, and not since.
    assert_eq!(value(b.get(2).await), "new");
    b.check().await;
    fixture.heals(1_000).await;
    fixture.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_wrong_password_fails_connect_and_no_get() {
    let server = Server::start();
    let mut raw = server.raw();
    raw.ask("CONFIG SET requirepass secret");
    assert!(
        server.long_timeout_builder().connect().await.is_err(),
        "no password"
    );
    let url = |password: &str| format!("redis://:{password}@127.0.0.1:{}", server.port());
    let wrong = Redis::builder(&url("guess")).timeout(TIMEOUT);
    assert!(wrong.clone().connect().await.is_err(), "a wrong password");
    let db = Db::default();
    let a = node(&db, &wrong.open().expect("a handle"));
    for key in 0..3 {
        let begun = Instant::now();
        assert_eq!(value(a.get(key).await), format!("row {key}"));
        assert!(
            begun.elapsed() < TIMEOUT * 2 + SLACK,
            "{:?}",
            begun.elapsed()
        );
    }
    assert!(raw.keys("*").is_empty());
    let right = Redis::builder(&url("secret"))
        .timeout(Duration::from_secs(2))
        .connect()
        .await;
    let b = node(&db, &right.expect("the right password"));
    assert_eq!(value(b.get(1).await), "row 1");
    assert!(raw.get(&users(1)).is_some());
    for node in [&a, &b] {
        node.check().await;
    }
}

/// The ACL rules that `guide::operations` names are enough.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_user_with_the_rights_that_the_guide_names_can_do_everything() {
    const RIGHTS: &str = "~tidegate:* &tidegate:* +get +mget +set +del +unlink +getrange +setrange +pttl +pexpire \
                          +zadd +zcard +zrange +zremrangebyscore +zscore +eval +evalsha +publish \
                          +subscribe +unsubscribe +time";
    let server = Server::start();
    let mut raw = server.raw();
    let user = format!("ACL SETUSER app reset on >secret {RIGHTS}");
    if matches!(raw.try_ask(&user), Reply::Error(_)) {
        // Redis 6.0 has no permissions for channels.
        raw.ask(&user.replace("&tidegate:* ", ""));
    }
    let url = format!("redis://app:secret@127.0.0.1:{}", server.port());
    let redis = Redis::builder(&url).timeout(Duration::from_secs(2));
    let (db, redis) = (Db::default(), redis.connect().await.expect("connect"));
    let a = node(&db, &redis);
    db.tag(1, &["tag"]);
    a.get(1).await.expect("a load");
    eventually("L1 is used", async || {
        let entry = a.get_entry(1).await.expect("a look-up");
        entry.expect("an entry").source() == Source::L1
    })
    .await;
    a.refresh(&1).await.expect("a refresh");
    a.expire(&1).await.expect("an expiry");
    a.get(1).await.expect("a load");
    a.insert(2, "two".to_owned()).await.expect("an insert");
    a.invalidate_tag("tag").await.expect("an invalidation");
    a.invalidate(&2).await.expect("an invalidation");
    a.invalidate_all().await.expect("an invalidation");
    a.get(1).await.expect("a load");
    assert_eq!(a.stats().l2_failures, 0);
    a.check().await;
    check_records(&server);
}
