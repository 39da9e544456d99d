//! Repairs: changes that did not reach the server are repeated until it has them.

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
    /// Reaches the server through a proxy.
    a: Node,
    /// Reaches the server directly.
    b: Node,
}

impl Fixture {
    /// The keys 1 to 3 are "old" in all tiers of both processes.
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

    /// A commit in the database that the server is not told of.
    fn write(&self, key: u64, row: &str) {
        self.db.write(key, row);
    }

    /// The server is reachable again. Until the repair is done, this process does not answer the
    /// old value.
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
            eventually("the change has arrived", async || {
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
    // Commands may work again before the subscription does, or after it.
    eventually("the bus is back", async || fixture.a.stats().gaps == 1).await;
    fixture.everyone_answers_new().await;
    fixture.end().await;
}

/// The server answers reads and refuses writes. Only the key that failed is not read from it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn only_the_key_that_could_not_be_invalidated_is_not_read_from_the_server() {
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

/// No look-up comes before the repair, so that the record shows what the repair did.
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
async fn a_later_success_is_not_undone_by_an_older_repair() {
    let mut fixture = Fixture::new().await;
    // A replica refuses at once, so the repair has had its first attempts when the server takes
    // writes again.
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
    // Unless an attempt at the repair was under way at that very moment, no further attempt is
    // made.
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
            eventually("the change has arrived", async || {
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
async fn an_invalidation_of_a_tag_that_failed_is_repeated_and_no_tagged_entry_is_answered_before() {
    let fixture = Fixture::new().await;
    // Both processes hold the entry with the tag.
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

/// The caller gives the call up before it is answered.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_invalidation_whose_caller_goes_away_is_repeated_too() {
    let fixture = Fixture::new().await;
    fixture.proxy.set(ProxyMode::BlackHole).await;
    fixture.write(1, "new");
    let call = {
        let a = fixture.a.clone();
        begin(async move { a.invalidate(&1).await }).await
    };
    call.abort();
    assert!(call.await.is_err_and(|ended| ended.is_cancelled()));
    // The key is evicted here when the abandoned call has ended.
    eventually("it has failed, is on the list and has ended", async || {
        let ended = format!("{:?}", *fixture.a).contains("tasks: 0,");
        fixture.a.health().pending_repairs == 1 && ended
    })
    .await;
    fixture.heals().await;
    fixture.everyone_answers_new().await;
    fixture.end().await;
}

/// The load began before the invalidation, under a lease that the server still holds when the load
/// ends.
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
async fn pending_repairs_are_tried_once_more_when_the_cache_closes() {
    let mut fixture = Fixture::new().await;
    fixture.raw.ask("REPLICAOF 127.0.0.1 1");
    assert!(fixture.a.invalidate(&1).await.is_err());
    fixture.raw.ask("REPLICAOF NO ONE");
    fixture.a.close().await;
    assert_eq!(fixture.raw.get(&users(1)), None);
    fixture.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn more_failures_than_the_list_holds_become_one_invalidation_of_everything() {
    let fixture = Fixture::new().await;
    fixture.proxy.set(ProxyMode::Refuse).await;
    for key in 1..=3 {
        fixture.write(key, "new");
    }
    // The keys 1 to 3 are among them, but no test relies on that.
    let keys: Vec<u64> = (1..=10_001).collect();
    assert!(fixture.a.invalidate_many(&keys).await.is_err());
    assert_eq!(fixture.events.count(Event::RepairsOverflowed), 1);
    assert_eq!(fixture.a.stats().repairs_overflowed, 1);
    fixture.heals().await;
    for node in [&fixture.a, &fixture.b] {
        for key in 1..=3 {
            eventually("the change has arrived", async || {
                value(node.get(key).await) == "new"
            })
            .await;
        }
    }
    fixture.end().await;
}

/// The three processes know three different versions, and two of them have repairs to do.
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
        eventually("the change has arrived", async || {
            value(node.get(1).await) == "2"
        })
        .await;
        node.check().await;
    }
}
