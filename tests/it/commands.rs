//! The commands that a cache sends to its server: which, and how many.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Waker};
use std::time::Duration;

use futures_util::future::join_all;
use tidegate::{BoxError, Cache, CacheBuilder, Freshness, Source};
use tokio::time::sleep;

use crate::support::aging::{
    fresh, has_fresh, make_stale, old, with_freshness, with_stale_if_error,
    with_stale_while_revalidate,
};
use crate::support::backend::{Backend, users};
use crate::support::eventually;
use crate::support::loader::{Behaviour, Db};
use crate::support::node::{Node, answer, value};
use crate::support::server::{Monitor, Server};

/// A server that knows the scripts, two processes connected and subscribed to it, and a monitor of
/// the commands that they send from now on.
struct Fixture {
    backend: Backend,
    db: Db,
    a: Node,
    b: Node,
    monitor: Monitor,
}

impl Fixture {
    async fn new() -> Self {
        Self::with(|builder| builder).await
    }

    async fn with(settings: fn(CacheBuilder<Db>) -> CacheBuilder<Db>) -> Self {
        let server = Server::start();
        let monitor = server.monitor();
        let (backend, db) = (Backend::Redis(server), Db::default());
        // No heartbeat runs during a test: the server counts the commands of heartbeat scripts as
        // well.
        let lease = Duration::from_secs(600);
        let a = backend.node_with(&db, |builder| settings(builder).channel_lease(lease));
        let b = backend.node_with(&db, |builder| settings(builder).channel_lease(lease));
        let (a, b) = (a.await, b.await);
        for node in [&a, &b] {
            node.get(100).await.expect("a look-up");
            node.invalidate(&100).await.expect("an invalidation");
            node.insert(100, "by hand".to_owned())
                .await
                .expect("an insert");
        }
        let mut fixture = Self {
            backend,
            db,
            a,
            b,
            monitor,
        };
        // The first `do_not_store` teaches the server the script that releases a lease.
        fixture.db.behave(Behaviour {
            do_not_store: true,
            ..Behaviour::default()
        });
        fixture.a.get(101).await.expect("a load");
        fixture.db.behave(Behaviour::default());
        fixture.a.refresh(&100).await.expect("a load");
        fixture.db.reset_counts();
        fixture.monitor.command_names();
        fixture
    }

    /// Another cache on a handle of its own, which has had one hit in Redis.
    async fn another(&self) -> Cache<u64, String, BoxError> {
        let redis = self
            .server()
            .long_timeout_builder()
            .timeout(Duration::from_millis(300));
        let redis = redis.connect().await.expect("connect");
        let cache = Cache::builder("users", self.db.clone()).l2(redis);
        let cache = cache.build().expect("a cache");
        cache.get(&200).await.expect("a hit");
        cache
    }

    fn server(&self) -> &Server {
        self.backend.server().expect("a server")
    }

    async fn end(self) {
        self.backend.check(&[&self.a, &self.b]).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_miss_is_a_read_a_lease_and_a_fill_an_l2_hit_is_a_read_an_l1_hit_is_nothing() {
    let mut fixture = Fixture::new().await;
    fixture.a.get(1).await.expect("a load");
    assert_eq!(
        fixture.monitor.command_names(),
        ["GET", "EVALSHA", "EVALSHA"]
    );
    fixture.b.get(1).await.expect("a hit");
    assert_eq!(fixture.monitor.command_names(), ["GET"]);
    for _ in 0..10 {
        fixture.a.get(1).await.expect("a hit");
        fixture.b.get(1).await.expect("a hit");
    }
    assert!(fixture.monitor.command_names().is_empty());
    fixture.end().await;
}

/// One thread: look-ups that begin together send their reads together.
#[tokio::test]
async fn look_ups_at_the_same_time_share_their_reads() {
    let mut fixture = Fixture::new().await;
    for id in 200..500 {
        fixture.a.get(id).await.expect("a load");
    }
    fixture.monitor.command_names();
    let before = fixture.b.stats().l2_hits;
    let got = join_all((200..500).map(|id| fixture.b.get(id))).await;
    for (id, got) in (200..500).zip(got) {
        assert_eq!(value(got), format!("row {id}"));
    }
    assert_eq!(fixture.b.stats().l2_hits, before + 300);
    let mut keys: Vec<usize> = fixture
        .monitor
        .commands()
        .iter()
        .map(|sent| sent.matches("tidegate:users:").count())
        .collect();
    keys.sort_unstable();
    // The first reads go out alone. From then on reads are collected and sent with one command when
    // they are half of all reads under way, at most 64 at once, and the last of them when no more
    // reads come.
    assert_eq!(keys, [1, 1, 1, 1, 4, 8, 16, 32, 44, 64, 64, 64]);
    // One after the other, look-ups are single reads.
    for id in 500..510 {
        fixture.a.get(id).await.expect("a load");
        fixture.b.get(id).await.expect("a hit");
    }
    let sent = fixture.monitor.command_names();
    assert!(sent.iter().all(|name| name != "MGET"), "{sent:?}");
    fixture.end().await;
}

/// Look-ups that come while others are under way share a later command, and no key is read twice.
#[tokio::test]
async fn look_ups_that_keep_coming_share_their_reads() {
    const CALLERS: u64 = 32;
    let mut fixture = Fixture::new().await;
    for id in 1_000..1_000 + CALLERS * 20 {
        fixture.a.get(id).await.expect("a load");
    }
    fixture.monitor.command_names();
    join_all((0..CALLERS).map(async |caller| {
        for id in (0..20).map(|at| 1_000 + caller * 20 + at) {
            assert_eq!(value(fixture.b.get(id).await), format!("row {id}"));
        }
    }))
    .await;
    let sent = fixture.monitor.commands();
    let keys: usize = sent
        .iter()
        .map(|sent| sent.matches("tidegate:users:").count())
        .sum();
    assert_eq!(keys, 32 * 20, "each key is asked for once");
    assert!(sent.len() < 100, "{} commands", sent.len());
    fixture.end().await;
}

/// A key of another type is an absence for MGET and an error for GET.
#[tokio::test]
async fn reads_that_share_a_command_do_not_share_their_errors() {
    let fixture = Fixture::new().await;
    for id in 200..220 {
        fixture.a.get(id).await.expect("a load");
    }
    let mut raw = fixture.server().raw();
    raw.ask("DEL tidegate:users:210");
    raw.ask("LPUSH tidegate:users:210 alien");
    raw.ask("SET tidegate:users:211 garbage PX 60000");
    let before = fixture.b.stats().loads;
    let got = join_all((200..220).map(|id| fixture.b.get(id))).await;
    for (id, got) in (200..220).zip(got) {
        assert_eq!(value(got), format!("row {id}"));
    }
    assert_eq!(fixture.b.stats().loads, before + 2);
    raw.ask("DEL tidegate:users:210");
    fixture.end().await;
}

type Get =
    Pin<Box<dyn Future<Output = Result<Option<Arc<String>>, tidegate::Error<BoxError>>> + Send>>;

/// Begins look-ups of these keys and polls each of them once.
fn begin(cache: &Cache<u64, String, BoxError>, ids: std::ops::Range<u64>) -> Vec<Get> {
    ids.map(|id| {
        let cache = cache.clone();
        let mut get: Get = Box::pin(async move { cache.get(&id).await });
        let cx = &mut Context::from_waker(Waker::noop());
        assert!(get.as_mut().poll(cx).is_pending());
        get
    })
    .collect()
}

/// Reads that were collected on a runtime that ends are sent by the callers that wait for them. A
/// runtime that stands still delays no caller on another runtime.
#[tokio::test]
async fn reads_are_not_lost_with_the_runtime_that_would_send_them() {
    let fixture = Fixture::new().await;
    for id in 200..214 {
        fixture.a.get(id).await.expect("a load");
    }
    for ends in [true, false] {
        let cache = fixture.another().await;
        let other = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .expect("a runtime");
        // Enough reads to be collected, on a runtime that never gets to send them.
        let mut begun = {
            let _inside = other.enter();
            begin(&cache, 201..210)
        };
        let late = join_all([210, 211, 212, 213].map(async |id| cache.get(&id).await));
        let (late, ()) = tokio::join!(late, async {
            tokio::task::yield_now().await;
            if ends {
                other.shutdown_background();
            } else {
                // Never driven again.
                std::mem::forget(other);
            }
        });
        for (id, got) in (210..).zip(late) {
            assert_eq!(value(got), format!("row {id}"));
        }
        if ends {
            // This read was to be sent with others, and its timer ended with the runtime.
            assert_eq!(value(begun.remove(7).await), "row 208");
        }
        let stats = cache.stats();
        let hits = 1 + 4 + u64::from(ends);
        assert_eq!((stats.l2_hits, stats.l2_failures), (hits, 0));
    }
    fixture.end().await;
}

/// Reads that wait for a blocked thread of the same runtime cost one timeout. After that, other
/// threads send their own.
#[tokio::test]
async fn reads_do_not_wait_for_a_thread_that_stands_still() {
    let fixture = Fixture::new().await;
    for id in 200..220 {
        fixture.a.get(id).await.expect("a load");
    }
    let cache = fixture.another().await;
    let other = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .expect("a runtime");
    let (go_on, stands) = std::sync::mpsc::channel::<()>();
    let (begun, begins) = std::sync::mpsc::channel();
    let blocked = {
        let cache = cache.clone();
        other.spawn(async move {
            // Four reads go out alone and four together, which the other thread sends. Two remain
            // that only this thread would send.
            let gets = begin(&cache, 201..211);
            begun.send(()).expect("the test waits");
            stands.recv().expect("the test lets it go on");
            join_all(gets).await
        })
    };
    // The client's tasks run on this thread, so no answer comes before all reads are under way.
    begins.recv().expect("they are under way");
    let late = {
        let cache = cache.clone();
        // The first of the two look-ups watches the timeout, the second does not.
        other.spawn(async move { join_all([211, 212].map(async |id| cache.get(&id).await)).await })
    };
    let late = tokio::time::timeout(Duration::from_secs(10), late).await;
    let late = late.expect("one timeout, and no more").expect("a task");
    for (id, got) in (211..).zip(late) {
        assert_eq!(value(got), format!("row {id}"));
    }
    let stats = cache.stats();
    assert_eq!((stats.l2_hits, stats.l2_failures), (2, 1));
    go_on.send(()).expect("it waits");
    for (id, got) in (201..).zip(blocked.await.expect("a task")) {
        assert_eq!(value(got), format!("row {id}"));
    }
    other.shutdown_background();
    fixture.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_change_of_a_key_is_one_command() {
    let mut fixture = Fixture::new().await;
    fixture.a.get(1).await.expect("a load");
    fixture.b.get(1).await.expect("a hit");
    fixture.monitor.command_names();
    fixture.a.invalidate(&1).await.expect("an invalidation");
    eventually("the change has arrived", async || {
        fixture.b.peek(&1).is_none()
    })
    .await;
    assert_eq!(
        fixture.monitor.command_names(),
        ["EVALSHA"],
        "invalidate, what it causes elsewhere included"
    );
    fixture
        .a
        .insert(1, "by hand".to_owned())
        .await
        .expect("an insert");
    assert_eq!(fixture.monitor.command_names(), ["EVALSHA"], "insert");
    fixture
        .a
        .invalidate_many(&[1, 2, 3])
        .await
        .expect("an invalidation");
    assert_eq!(
        fixture.monitor.command_names(),
        ["EVALSHA"; 3],
        "invalidate_many"
    );
    fixture.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_failed_load_and_one_that_is_not_stored_are_three_commands_too() {
    let mut fixture = Fixture::new().await;
    fixture.db.behave(Behaviour {
        fails: true,
        ..Behaviour::default()
    });
    assert!(fixture.a.get(1).await.is_err());
    assert_eq!(
        fixture.monitor.command_names(),
        ["GET", "EVALSHA", "EVALSHA"]
    );
    fixture.db.behave(Behaviour {
        do_not_store: true,
        ..Behaviour::default()
    });
    fixture.a.get(2).await.expect("a load");
    assert_eq!(
        fixture.monitor.command_names(),
        ["GET", "EVALSHA", "EVALSHA"]
    );
    fixture.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_waiter_sends_nothing_while_it_waits_and_one_read_when_it_is_woken() {
    let mut fixture = Fixture::new().await;
    let gate = fixture.db.gate();
    let holder = fixture.a.caller(1).await;
    gate.reached().await;
    assert_eq!(fixture.monitor.command_names(), ["GET", "EVALSHA"]);
    let waiters = fixture.b.callers(100, 1).await;
    eventually("the other process waits", async || {
        fixture.b.stats().lease_waits == 1
    })
    .await;
    assert_eq!(fixture.monitor.command_names(), ["GET", "EVALSHA"]);
    sleep(Duration::from_millis(300)).await;
    assert!(fixture.monitor.command_names().is_empty(), "it polls");
    gate.open();
    for waiter in waiters {
        assert_eq!(value(answer(waiter).await), "row 1");
    }
    assert_eq!(value(answer(holder).await), "row 1");
    assert_eq!(
        fixture.monitor.command_names(),
        ["EVALSHA", "GET"],
        "the fill, and the read that it caused"
    );
    fixture.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn scripts_that_the_server_has_forgotten_are_sent_again() {
    let mut fixture = Fixture::new().await;
    let Backend::Redis(server) = &fixture.backend else {
        unreachable!("a fixture has a server")
    };
    let mut raw = server.raw();
    raw.ask("SCRIPT FLUSH");
    fixture.monitor.command_names();
    assert_eq!(value(fixture.a.get(1).await), "row 1");
    assert_eq!(
        fixture.monitor.command_names(),
        ["GET", "EVALSHA", "EVAL", "EVALSHA", "EVAL"]
    );
    assert!(raw.get(&users(1)).is_some());
    raw.ask("SCRIPT FLUSH");
    fixture.b.get(1).await.expect("a hit");
    fixture.a.invalidate(&1).await.expect("an invalidation");
    eventually("the change has arrived", async || {
        fixture.b.peek(&1).is_none()
    })
    .await;
    assert_eq!(
        (fixture.a.stats().l2_failures, fixture.b.stats().l2_failures),
        (0, 0)
    );
    fixture.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_servers_own_statistics_agree() {
    let fixture = Fixture::new().await;
    let Backend::Redis(server) = &fixture.backend else {
        unreachable!("a fixture has a server")
    };
    let mut raw = server.raw();
    raw.ask("CONFIG RESETSTAT");
    fixture.a.get(1).await.expect("a load");
    fixture.b.get(1).await.expect("a hit");
    fixture.b.get(1).await.expect("a hit");
    // The acquire script reads the record and the claim.
    assert_eq!(
        (raw.calls("get"), raw.calls("evalsha"), raw.calls("eval")),
        (4, 2, 0)
    );
    fixture.a.invalidate(&1).await.expect("an invalidation");
    assert_eq!(
        (raw.calls("evalsha"), raw.calls("publish"), raw.calls("del")),
        (3, 1, 1)
    );
    fixture.end().await;
}

/// The commands of a refresh: a read, a claim and a fill.
const REFRESH: [&str; 3] = ["GET", "EVALSHA", "EVALSHA"];

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_refresh_is_a_read_a_claim_and_a_fill() {
    let mut fixture = Fixture::with(with_stale_while_revalidate).await;
    fixture.a.get(1).await.expect("a load");
    fixture.monitor.command_names();
    fixture.a.refresh(&1).await.expect("a load");
    assert_eq!(fixture.monitor.command_names(), REFRESH, "by hand");
    make_stale(&fixture.db, &[&fixture.a], 2).await;
    fixture.monitor.command_names();
    for _ in 0..10 {
        fixture.a.get(2).await.expect("a hit");
    }
    eventually("it is refreshed", async || {
        fixture
            .a
            .peek(&2)
            .is_some_and(|entry| entry.freshness() == Freshness::Fresh)
    })
    .await;
    fixture.a.get(2).await.expect("a hit");
    assert_eq!(fixture.monitor.command_names(), REFRESH, "past its TTL");
    fixture.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_process_that_leaves_a_refresh_to_another_sends_nothing_while_it_runs() {
    let mut fixture = Fixture::with(with_stale_while_revalidate).await;
    make_stale(&fixture.db, &[&fixture.a, &fixture.b], 1).await;
    fixture.monitor.command_names();
    fixture.db.write(1, "new");
    let gate = fixture.db.gate();
    fixture.a.get(1).await.expect("a hit");
    gate.reached().await;
    assert_eq!(fixture.monitor.command_names(), ["GET", "EVALSHA"]);
    fixture.b.get(1).await.expect("a hit");
    eventually("the other process waits", async || {
        fixture.b.stats().lease_waits == 1
    })
    .await;
    assert_eq!(fixture.monitor.command_names(), ["GET", "EVALSHA"]);
    for _ in 0..100 {
        for node in [&fixture.a, &fixture.b] {
            assert_eq!(
                with_freshness(node.get_entry(1).await),
                old(Freshness::Stale)
            );
        }
        sleep(Duration::from_millis(3)).await;
    }
    assert!(fixture.monitor.command_names().is_empty(), "it polls");
    gate.open();
    for node in [&fixture.a, &fixture.b] {
        eventually("it has the new value", async || has_fresh(node, 1, "new")).await;
    }
    assert_eq!(
        fixture.monitor.command_names(),
        ["EVALSHA", "GET"],
        "the fill, and the read that it caused"
    );
    fixture.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_hit_late_in_the_ttl_sends_nothing_but_the_refresh_that_it_begins() {
    let mut fixture = Fixture::with(|builder| builder.refresh_ahead(1000.0)).await;
    let ttl = Duration::from_secs(4);
    fixture.db.behave(Behaviour {
        takes: Duration::from_millis(20),
        ..Behaviour::ttl(ttl)
    });
    fixture.a.get(1).await.expect("a load");
    fixture.db.behave(Behaviour::default());
    fixture.monitor.command_names();
    for _ in 0..100 {
        fixture.a.get(1).await.expect("a hit");
    }
    assert!(
        fixture.monitor.command_names().is_empty(),
        "in the first half of its life"
    );
    sleep(ttl / 2 + ttl / 20).await;
    eventually("a hit begins a refresh", async || {
        let entry = fixture
            .a
            .get_entry(1)
            .await
            .expect("a hit")
            .expect("an entry");
        assert_eq!(entry.source(), Source::L1);
        fixture.a.stats().refreshes == 1
    })
    .await;
    fixture.a.check().await;
    assert_eq!(fixture.db.loads(), 2);
    fixture.a.get(1).await.expect("a hit");
    assert_eq!(fixture.monitor.command_names(), REFRESH);
    fixture.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn after_a_failure_hits_send_nothing_until_the_next_attempt() {
    for (settings, freshness) in [
        (with_stale_while_revalidate as fn(_) -> _, Freshness::Stale),
        (with_stale_if_error, Freshness::StaleOnError),
    ] {
        let mut fixture = Fixture::with(settings).await;
        make_stale(&fixture.db, &[&fixture.a, &fixture.b], 1).await;
        fixture.monitor.command_names();
        fixture.db.behave(Behaviour::fails());
        // Process a: a read, a claim, and a failure mark in place of the claim. Process b: a read,
        // and a claim that is answered with the mark.
        for (node, sends) in [(&fixture.a, 3), (&fixture.b, 2)] {
            assert_eq!(with_freshness(node.get_entry(1).await), old(freshness));
            node.check().await;
            assert_eq!(fixture.monitor.command_names(), REFRESH[..sends]);
            for _ in 0..20 {
                assert_eq!(with_freshness(node.get_entry(1).await), old(freshness));
            }
            assert!(node.refresh(&1).await.is_err());
            assert!(fixture.monitor.command_names().is_empty());
        }
        assert_eq!(fixture.db.loads(), 1);
        fixture.end().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_unchanged_value_is_not_sent_again() {
    const ROW: &str = "a row that must not be sent twice";
    let mut fixture = Fixture::with(with_stale_while_revalidate).await;
    let Backend::Redis(server) = &fixture.backend else {
        unreachable!("a fixture has a server")
    };
    let mut raw = server.raw();
    fixture.db.write(1, ROW);
    fixture.a.get(1).await.expect("a load");
    let sent = fixture.monitor.commands();
    assert!(sent.iter().any(|command| command.contains(ROW)));
    let before = raw.get(&users(1)).expect("a record");
    sleep(Duration::from_millis(50)).await;
    fixture.db.behave(Behaviour {
        unchanged: true,
        ..Behaviour::default()
    });
    let begun = raw.pttl(&users(1));
    // The same process, because the clocks of two processes differ by part of a round trip.
    assert_eq!(value(fixture.a.refresh(&1).await), ROW);
    let sent = fixture.monitor.commands();
    assert!(
        !sent.iter().any(|command| command.contains(ROW)),
        "{sent:?}"
    );
    let after = raw.get(&users(1)).expect("a record");
    assert_eq!(after[104..], before[104..], "the payload");
    assert_eq!(after[..4], before[..4], "a value, as it was");
    assert_ne!(after[4..20], before[4..20], "the token");
    let created =
        |record: &[u8]| u64::from_le_bytes(record[52..60].try_into().expect("eight bytes"));
    assert!(created(&after) >= created(&before) + 45);
    assert!(raw.pttl(&users(1)) > begun, "a new life");
    assert_eq!(with_freshness(fixture.b.get_entry(1).await), fresh(ROW));
    fixture.end().await;
}
