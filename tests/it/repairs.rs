//! Invalidations that the server could not be told of.

use std::time::Duration;

use tidegate::{Cache, Event, Source};

use crate::support::backend::{check_records, users};
use crate::support::events::Events;
use crate::support::eventually;
use crate::support::loader::Db;
use crate::support::node::{Node, answer, begin, value};
use crate::support::proxy::{Proxy, ProxyMode};
use crate::support::server::{Raw, Server, is_value, long_timeout_builder};

const TIMEOUT: Duration = Duration::from_millis(300);

struct Fixture {
    server: Server,
    raw: Raw,
    proxy: Proxy,
    db: Db,
    events: Events,
    /// Reaches the server through a wire.
    a: Node,
    /// Reaches it directly.
    b: Node,
}

impl Fixture {
    /// The keys 1 to 3 are "old" everywhere.
    async fn new() -> Self {
        let server = Server::start();
        let raw = server.raw();
        let proxy = Proxy::to(server.port()).await;
        let (db, events) = (Db::default(), Events::default());
        let cut_off = long_timeout_builder(proxy.port())
            .timeout(TIMEOUT)
            .connect()
            .await;
        let direct = server.long_timeout_builder().connect().await;
        let node = |redis, events: &Events| {
            let builder = Cache::builder("users", db.clone())
                .ttl_jitter(0.0)
                .channel_lease(Duration::from_millis(600))
                .degraded_l1_ttl(Duration::ZERO)
                .lease_ttl(Duration::from_millis(500))
                .on_event(events.callback());
            Node::new(builder.l2(redis).build().expect("a cache"))
        };
        let a = node(cut_off.expect("connect"), &events);
        let b = node(direct.expect("connect"), &Events::default());
        for key in 1..=3 {
            db.write(key, "old");
            a.get(key).await.expect("a load");
            eventually("L1 is used", async || {
                b.get(key).await.expect("a look-up");
                b.peek(&key).is_some()
            })
            .await;
        }
        Self {
            server,
            raw,
            proxy,
            db,
            events,
            a,
            b,
        }
    }

    /// A write that the database has and the server does not hear of.
    fn write(&self, key: u64, row: &str) {
        self.db.write(key, row);
    }

    /// Until then the old value is answered by nobody here, wherever the server has it.
    async fn heals(&self) {
        self.proxy.set(ProxyMode::Pass).await;
        eventually("all is repaired", async || {
            let got = value(self.a.get(1).await);
            assert_eq!(got, "new", "read before it was repaired");
            self.a.health().pending_repairs == 0
        })
        .await;
    }

    async fn everyone_answers_new(&self) {
        for node in [&self.a, &self.b] {
            eventually("it has heard", async || {
                node.peek(&1)
                    .is_none_or(|entry| entry.value().as_str() == "new")
            })
            .await;
            assert_eq!(value(node.get(1).await), "new");
        }
    }

    async fn end(self) {
        for node in [&self.a, &self.b] {
            node.check().await;
        }
        eventually("leases of those moments have ended", async || {
            let mut raw = self.server.raw();
            !raw.entries("tidegate*").iter().any(|key| {
                raw.get(key)
                    .is_some_and(|record| crate::support::server::is_lease(&record))
            })
        })
        .await;
        check_records(&self.server);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_invalidation_that_failed_is_repeated_until_the_server_has_it() {
    let mut fixture = Fixture::new().await;
    fixture.proxy.set(ProxyMode::Refuse).await;
    fixture.write(1, "new");
    let failed = fixture.a.invalidate(&1).await.expect_err("no server");
    assert!(failed.is_unreachable() || failed.is_timeout(), "{failed:?}");
    assert!(fixture.a.peek(&1).is_none());
    assert_eq!(fixture.a.health().pending_repairs, 1);
    assert_eq!(fixture.events.count(Event::RepairPending), 1);
    assert!(
        fixture
            .raw
            .get(&users(1))
            .is_some_and(|record| is_value(&record)),
        "the server has the old value"
    );
    assert_eq!(value(fixture.a.get(1).await), "new");
    fixture.heals().await;
    assert_eq!(fixture.a.stats().repairs, 1);
    // Commands are through again before the bus is, or after it.
    eventually("the bus is back", async || fixture.a.stats().gaps == 1).await;
    fixture.everyone_answers_new().await;
    fixture.end().await;
}

/// Reads are answered, writes are refused: that key alone is not read.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn only_what_could_not_be_invalidated_is_not_read_from_the_server() {
    let mut fixture = Fixture::new().await;
    fixture.raw.ask("REPLICAOF 127.0.0.1 1");
    fixture.write(1, "new");
    fixture.write(2, "new");
    let failed = fixture.a.invalidate(&1).await.expect_err("a replica");
    assert!(failed.is_refused(), "{failed:?}");
    for _ in 0..3 {
        let entry = fixture.a.get_entry(1).await.expect("a look-up");
        let entry = entry.expect("an entry");
        assert_eq!(
            (entry.value().as_str(), entry.source()),
            ("new", Source::Loader)
        );
    }
    fixture.raw.ask("CLIENT KILL TYPE pubsub");
    eventually("L1 is not used", async || fixture.a.peek(&2).is_none()).await;
    let entry = fixture.a.get_entry(2).await.expect("a look-up");
    let entry = entry.expect("an entry");
    assert_eq!(
        (entry.value().as_str(), entry.source()),
        ("old", Source::L2)
    );
    assert_eq!(fixture.a.health().pending_repairs, 1);
    fixture.raw.ask("REPLICAOF NO ONE");
    fixture.heals().await;
    fixture.everyone_answers_new().await;
    fixture.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_insert_that_failed_becomes_an_invalidation() {
    let fixture = Fixture::new().await;
    fixture.proxy.set(ProxyMode::Refuse).await;
    fixture.write(1, "new");
    let failed = fixture.a.insert(1, "new by hand".to_owned()).await;
    assert!(failed.is_err());
    assert!(fixture.a.peek(&1).is_none());
    assert_eq!(fixture.a.health().pending_repairs, 1);
    fixture.heals().await;
    fixture.everyone_answers_new().await;
    fixture.end().await;
}

/// Nobody asks before it is repaired, so the record says what was done.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_expiry_that_failed_is_repeated_and_keeps_the_value() {
    let mut fixture = Fixture::new().await;
    fixture.proxy.set(ProxyMode::Refuse).await;
    fixture.write(1, "new");
    assert!(fixture.a.expire(&1).await.is_err());
    assert_eq!(fixture.a.health().pending_repairs, 1);
    fixture.proxy.set(ProxyMode::Pass).await;
    eventually("it is repaired", async || {
        fixture.a.health().pending_repairs == 0
    })
    .await;
    let record = fixture.raw.get(&users(1)).expect("the value is kept");
    assert!(is_value(&record) && record[20..36] != [0; 16]);
    fixture.everyone_answers_new().await;
    fixture.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn calls_for_one_key_become_one_repair_and_an_invalidation_is_not_weakened() {
    let mut fixture = Fixture::new().await;
    fixture.proxy.set(ProxyMode::Refuse).await;
    fixture.write(1, "new");
    fixture.write(2, "new");
    for _ in 0..3 {
        assert!(fixture.a.expire(&1).await.is_err());
        assert!(fixture.a.invalidate(&1).await.is_err());
        assert!(fixture.a.invalidate(&2).await.is_err());
        assert!(fixture.a.expire(&2).await.is_err());
    }
    assert_eq!(fixture.a.health().pending_repairs, 2);
    fixture.proxy.set(ProxyMode::Pass).await;
    eventually("all is repaired", async || {
        fixture.a.health().pending_repairs == 0
    })
    .await;
    for key in [1, 2] {
        assert_eq!(fixture.raw.get(&users(key)), None);
    }
    assert_eq!(fixture.a.stats().repairs, 2);
    fixture.everyone_answers_new().await;
    fixture.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_succeeds_later_is_not_undone_by_an_older_repair() {
    let mut fixture = Fixture::new().await;
    // Refused at once, so the repair has had its first attempts when the server takes writes again.
    fixture.raw.ask("REPLICAOF 127.0.0.1 1");
    fixture.write(1, "new");
    assert!(fixture.a.invalidate(&1).await.is_err());
    assert_eq!(fixture.a.health().pending_repairs, 1);
    let deleted = fixture.raw.calls("del");
    fixture.raw.ask("REPLICAOF NO ONE");
    fixture
        .a
        .insert(1, "new".to_owned())
        .await
        .expect("an insert");
    eventually("nothing is pending", async || {
        fixture.a.health().pending_repairs == 0
    })
    .await;
    // Unless another attempt at the repair was under way at that very moment, whether its answer has come or
    // not, it was never made.
    if fixture.raw.calls("del") == deleted {
        let record = fixture.raw.get(&users(1)).expect("the insert stands");
        assert!(is_value(&record));
    }
    fixture.everyone_answers_new().await;
    fixture.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_invalidation_of_everything_that_failed_keeps_this_process_from_the_server() {
    let fixture = Fixture::new().await;
    fixture.proxy.set(ProxyMode::Refuse).await;
    for key in 1..=3 {
        fixture.write(key, "new");
    }
    assert!(fixture.a.invalidate_all().await.is_err());
    assert_eq!(fixture.a.health().pending_repairs, 1);
    for key in 1..=3 {
        assert!(fixture.a.peek(&key).is_none());
        assert_eq!(value(fixture.a.get(key).await), "new");
    }
    fixture.heals().await;
    for node in [&fixture.a, &fixture.b] {
        for key in 1..=3 {
            eventually("it has heard", async || {
                node.peek(&key)
                    .is_none_or(|entry| entry.value().as_str() == "new")
            })
            .await;
            assert_eq!(value(node.get(key).await), "new");
        }
    }
    fixture.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_invalidation_of_a_tag_that_failed_is_repeated_and_nothing_with_it_is_alive_before() {
    let fixture = Fixture::new().await;
    // What carries the tag, in both.
    fixture.db.tag(1, &["t"]);
    fixture.a.invalidate(&1).await.expect("an invalidation");
    for node in [&fixture.a, &fixture.b] {
        eventually("L1 is used", async || {
            assert_eq!(value(node.get(1).await), "old");
            node.peek(&1).is_some()
        })
        .await;
    }
    fixture.proxy.set(ProxyMode::Refuse).await;
    fixture.write(1, "new");
    assert!(fixture.a.invalidate_tag("t").await.is_err());
    assert_eq!(fixture.a.health().pending_repairs, 1);
    assert!(fixture.a.peek(&1).is_none());
    assert_eq!(value(fixture.a.get(1).await), "new");
    fixture.heals().await;
    fixture.everyone_answers_new().await;
    fixture.end().await;
}

/// Somebody gives the call up while nobody knows whether it will be answered.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_invalidation_that_nobody_waits_for_is_repeated_too() {
    let fixture = Fixture::new().await;
    fixture.proxy.set(ProxyMode::BlackHole).await;
    fixture.write(1, "new");
    let call = {
        let a = fixture.a.clone();
        begin(async move { a.invalidate(&1).await }).await
    };
    call.abort();
    assert!(call.await.is_err_and(|ended| ended.is_cancelled()));
    // Nobody is told when it has ended: only then is the key evicted here.
    eventually("it has failed, is on the list and has ended", async || {
        let ended = format!("{:?}", *fixture.a).contains("tasks: 0,");
        fixture.a.health().pending_repairs == 1 && ended
    })
    .await;
    fixture.heals().await;
    fixture.everyone_answers_new().await;
    fixture.end().await;
}

/// The load began before, under a lease that the server still has when it ends.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_load_from_before_an_invalidation_that_failed_fills_nothing() {
    let mut fixture = Fixture::new().await;
    fixture.a.invalidate(&1).await.expect("an invalidation");
    let fills = fixture.a.stats().fills;
    let gate = fixture.db.gate();
    let caller = fixture.a.caller(1).await;
    gate.reached().await;
    fixture.raw.ask("REPLICAOF 127.0.0.1 1");
    fixture.write(1, "new");
    assert!(fixture.a.invalidate(&1).await.is_err());
    fixture.raw.ask("REPLICAOF NO ONE");
    gate.open();
    assert_eq!(value(answer(caller).await), "old", "it asked before");
    assert_eq!(fixture.a.stats().fills, fills, "the old value is back");
    assert!(fixture.a.peek(&1).is_none());
    eventually("it is repaired", async || {
        assert_eq!(value(fixture.a.get(1).await), "new");
        fixture.a.health().pending_repairs == 0
    })
    .await;
    fixture.everyone_answers_new().await;
    fixture.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_pending_is_tried_once_more_when_the_cache_closes() {
    let mut fixture = Fixture::new().await;
    fixture.raw.ask("REPLICAOF 127.0.0.1 1");
    assert!(fixture.a.invalidate(&1).await.is_err());
    fixture.raw.ask("REPLICAOF NO ONE");
    fixture.a.close().await;
    assert_eq!(fixture.raw.get(&users(1)), None);
    fixture.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn more_failures_than_are_kept_apart_become_one_invalidation_of_everything() {
    let fixture = Fixture::new().await;
    fixture.proxy.set(ProxyMode::Refuse).await;
    for key in 1..=3 {
        fixture.write(key, "new");
    }
    // The keys 1 to 3 are among them, and nobody counts on that.
    let keys: Vec<u64> = (1..=10_001).collect();
    assert!(fixture.a.invalidate_many(&keys).await.is_err());
    assert_eq!(fixture.events.count(Event::RepairsOverflowed), 1);
    assert_eq!(fixture.a.stats().repairs_overflowed, 1);
    fixture.heals().await;
    for node in [&fixture.a, &fixture.b] {
        for key in 1..=3 {
            eventually("it has heard", async || value(node.get(key).await) == "new").await;
        }
    }
    fixture.end().await;
}

/// Each knows another version, and two of them have something to tell.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn three_processes_that_disagreed_agree_when_the_server_is_back() {
    let (server, db) = (Server::start(), Db::default());
    let (mut proxies, mut nodes) = (Vec::new(), Vec::new());
    db.write(1, "0");
    for _ in 0..3 {
        let proxy = Proxy::to(server.port()).await;
        let redis = long_timeout_builder(proxy.port())
            .timeout(TIMEOUT)
            .connect()
            .await;
        let builder = Cache::builder("users", db.clone())
            .ttl_jitter(0.0)
            .degraded_l1_ttl(Duration::from_secs(60));
        let node = builder.l2(redis.expect("connect")).build();
        let node = Node::new(node.expect("a cache"));
        eventually("L1 is used", async || {
            assert_eq!(value(node.get(1).await), "0");
            node.peek(&1).is_some()
        })
        .await;
        proxies.push(proxy);
        nodes.push(node);
    }
    for proxy in &proxies {
        proxy.set(ProxyMode::Refuse).await;
    }
    for (node, version) in nodes.iter().zip(["1", "2"]) {
        db.write(1, version);
        assert!(node.invalidate(&1).await.is_err());
        assert_eq!(value(node.get(1).await), version);
    }
    for (node, version) in nodes.iter().zip(["1", "2", "0"]) {
        assert_eq!(value(node.get(1).await), version, "they disagree");
    }
    for proxy in &proxies {
        proxy.set(ProxyMode::Pass).await;
    }
    for node in &nodes {
        eventually("all is repaired", async || {
            node.health().pending_repairs == 0
        })
        .await;
    }
    for node in &nodes {
        eventually("it has heard", async || value(node.get(1).await) == "2").await;
        node.check().await;
    }
}
