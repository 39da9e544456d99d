//! The circuit breaker: it stops commands to a server that does not answer, and finds the server
//! again.

use std::time::Duration;

use tidegate::{Breaker, Cache, Event, Redis};
use tokio::time::Instant;

use crate::support::backend::{check_records, users};
use crate::support::events::Events;
use crate::support::eventually;
use crate::support::loader::Db;
use crate::support::node::{Node, value};
use crate::support::proxy::{Proxy, ProxyMode};
use crate::support::server::{Server, is_lease, url};

/// Long, so that a command that is sent shows in the time that a look-up takes.
const TIMEOUT: Duration = Duration::from_millis(500);

struct Fixture {
    server: Server,
    proxy: Proxy,
    db: Db,
    events: Events,
    a: Node,
}

impl Fixture {
    async fn new(breaker: Breaker) -> Self {
        let server = Server::start();
        let proxy = Proxy::to(server.port()).await;
        let redis = Redis::builder(&url(proxy.port()))
            .timeout(TIMEOUT)
            .breaker(breaker);
        let redis = redis.connect().await.expect("connect");
        let (db, events) = (Db::default(), Events::default());
        let builder = Cache::builder("users", db.clone())
            .ttl_jitter(0.0)
            .on_event(events.callback())
            .l2(redis);
        let a = Node::new(builder.build().expect("a cache"));
        a.get(100).await.expect("a load");
        Self {
            server,
            proxy,
            db,
            events,
            a,
        }
    }

    /// Looks up cold keys until the breaker has opened.
    async fn opens(&self) {
        for key in 1_000..1_100 {
            assert_eq!(value(self.a.get(key).await), format!("row {key}"));
            if self.events.count(Event::BreakerOpened) == 1 {
                return;
            }
        }
        panic!("it never opened");
    }

    /// The breaker closes by itself, and loads fill L2 again.
    async fn closes(&self) {
        eventually("it closes", async || {
            self.events.count(Event::BreakerClosed) == 1
        })
        .await;
        let (mut key, mut raw) = (2_000, self.server.raw());
        eventually("loads fill L2 again", async || {
            key += 1;
            assert_eq!(value(self.a.get(key).await), format!("row {key}"));
            raw.get(&users(key))
                .is_some_and(|record| !is_lease(&record))
        })
        .await;
        assert_eq!(self.events.count(Event::BreakerOpened), 1);
    }

    async fn end(self) {
        self.a.check().await;
        check_records(&self.server);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn while_it_is_open_the_server_costs_nothing_and_a_repair_waits_until_it_closes() {
    let fixture = Fixture::new(Breaker::new()).await;
    fixture.proxy.set(ProxyMode::BlackHole).await;
    fixture.opens().await;
    let begun = Instant::now();
    for key in 0..40 {
        assert_eq!(value(fixture.a.get(key).await), format!("row {key}"));
    }
    let error = fixture
        .a
        .invalidate(&100)
        .await
        .expect_err("the server is unreachable");
    assert!(error.is_unreachable(), "{error}");
    let took = begun.elapsed();
    assert!(
        took < TIMEOUT * 8,
        "41 calls, each with its timeout, took {took:?}"
    );
    assert_eq!(fixture.a.health().pending_repairs, 1);
    fixture.proxy.set(ProxyMode::Pass).await;
    fixture.closes().await;
    eventually("the invalidation was repeated", async || {
        fixture.a.health().pending_repairs == 0
    })
    .await;
    fixture.end().await;
}

/// Nothing ends the dead connection, so that only the breaker can replace it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_connection_that_receives_nothing_is_replaced() {
    let fixture = Fixture::new(Breaker::new()).await;
    fixture.proxy.set(ProxyMode::DeadConnections).await;
    fixture.opens().await;
    fixture.closes().await;
    fixture.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn errors_that_the_server_answers_do_not_open_it() {
    let fixture = Fixture::new(Breaker::new().least_failures(1).failure_rate(0.01)).await;
    let mut raw = fixture.server.raw();
    raw.ask("CONFIG SET maxmemory 1");
    for key in 0..20 {
        assert_eq!(value(fixture.a.get(key).await), format!("row {key}"));
    }
    assert!(fixture.a.stats().l2_failures > 0, "the server refused");
    assert_eq!(fixture.events.count(Event::BreakerOpened), 0);
    raw.ask("CONFIG SET maxmemory 0");
    fixture.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_a_breaker_every_look_up_waits_for_its_timeout() {
    let fixture = Fixture::new(Breaker::off()).await;
    fixture.proxy.set(ProxyMode::BlackHole).await;
    let begun = Instant::now();
    for key in 0..5 {
        assert_eq!(value(fixture.a.get(key).await), format!("row {key}"));
    }
    assert!(begun.elapsed() >= TIMEOUT * 5, "{:?}", begun.elapsed());
    assert_eq!(fixture.events.count(Event::BreakerOpened), 0);
    assert_eq!(fixture.db.loads(), 6);
    fixture.proxy.set(ProxyMode::Pass).await;
    fixture.end().await;
}

#[test]
fn settings_that_make_no_sense_are_refused_by_name() {
    let says = |breaker: Breaker| {
        let opened = Redis::builder("redis://127.0.0.1:1")
            .breaker(breaker)
            .open();
        opened.expect_err("refused").to_string()
    };
    for (breaker, part) in [
        (Breaker::new().window(Duration::ZERO), "window 0ns"),
        (Breaker::new().failure_rate(0.0), "failure_rate 0.0"),
        (Breaker::new().failure_rate(f64::NAN), "failure_rate NaN"),
        (Breaker::new().least_failures(0), "least_failures 0"),
        (Breaker::new().longest_pause(Duration::MAX), "longest_pause"),
    ] {
        let text = says(breaker);
        assert!(text.contains("breaker(") && text.contains(part), "{text}");
    }
}
