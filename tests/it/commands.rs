//! What a server sees of a cache: which commands, and how many.

use std::time::Duration;

use tidegate::{CacheBuilder, Freshness, Source};
use tokio::time::sleep;

use crate::support::eventually;
use crate::support::ground::{Ground, users};
use crate::support::life::{aged, falls_back, fresh, has_fresh, old, revalidates, seen};
use crate::support::loader::{Behaviour, Db};
use crate::support::node::{Node, answer, value};
use crate::support::server::{Monitor, Server};

/// A server that knows the scripts, two processes that are connected to it and listen, and what
/// they send from now on.
struct Scene {
    ground: Ground,
    db: Db,
    a: Node,
    b: Node,
    monitor: Monitor,
}

impl Scene {
    async fn new() -> Self {
        Self::with(|builder| builder).await
    }

    async fn with(settings: fn(CacheBuilder<Db>) -> CacheBuilder<Db>) -> Self {
        let server = Server::start();
        let monitor = server.monitor();
        let (ground, db) = (Ground::Redis(server), Db::default());
        // No beat in a test: the server counts what they run, too.
        let lease = Duration::from_secs(600);
        let a = ground.node_with(&db, |builder| settings(builder).channel_lease(lease));
        let b = ground.node_with(&db, |builder| settings(builder).channel_lease(lease));
        let (a, b) = (a.await, b.await);
        for node in [&a, &b] {
            node.get(100).await.expect("a look-up");
            node.invalidate(&100).await.expect("an invalidation");
            node.insert(100, "by hand".to_owned())
                .await
                .expect("an insert");
        }
        let mut scene = Self {
            ground,
            db,
            a,
            b,
            monitor,
        };
        // The first refusal teaches the server the script that releases a lease.
        scene.db.behave(Behaviour {
            do_not_store: true,
            ..Behaviour::default()
        });
        scene.a.get(101).await.expect("a load");
        scene.db.behave(Behaviour::default());
        scene.a.refresh(&100).await.expect("a load");
        scene.db.forget();
        scene.monitor.seen();
        scene
    }

    async fn end(self) {
        self.ground.check(&[&self.a, &self.b]).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_miss_is_a_read_a_lease_and_a_fill_an_l2_hit_is_a_read_an_l1_hit_is_nothing() {
    let mut scene = Scene::new().await;
    scene.a.get(1).await.expect("a load");
    assert_eq!(scene.monitor.seen(), ["GET", "EVALSHA", "EVALSHA"]);
    scene.b.get(1).await.expect("a hit");
    assert_eq!(scene.monitor.seen(), ["GET"]);
    for _ in 0..10 {
        scene.a.get(1).await.expect("a hit");
        scene.b.get(1).await.expect("a hit");
    }
    assert!(scene.monitor.seen().is_empty());
    scene.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_changes_a_key_is_one_command() {
    let mut scene = Scene::new().await;
    scene.a.get(1).await.expect("a load");
    scene.b.get(1).await.expect("a hit");
    scene.monitor.seen();
    scene.a.invalidate(&1).await.expect("an invalidation");
    eventually("the other process has heard", async || {
        scene.b.peek(&1).is_none()
    })
    .await;
    assert_eq!(
        scene.monitor.seen(),
        ["EVALSHA"],
        "invalidate, what it causes elsewhere included"
    );
    scene
        .a
        .insert(1, "by hand".to_owned())
        .await
        .expect("an insert");
    assert_eq!(scene.monitor.seen(), ["EVALSHA"], "insert");
    scene
        .a
        .invalidate_many(&[1, 2, 3])
        .await
        .expect("an invalidation");
    assert_eq!(scene.monitor.seen(), ["EVALSHA"; 3], "invalidate_many");
    scene.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_failed_load_and_one_that_is_not_stored_are_three_commands_too() {
    let mut scene = Scene::new().await;
    scene.db.behave(Behaviour {
        fails: true,
        ..Behaviour::default()
    });
    assert!(scene.a.get(1).await.is_err());
    assert_eq!(scene.monitor.seen(), ["GET", "EVALSHA", "EVALSHA"]);
    scene.db.behave(Behaviour {
        do_not_store: true,
        ..Behaviour::default()
    });
    scene.a.get(2).await.expect("a load");
    assert_eq!(scene.monitor.seen(), ["GET", "EVALSHA", "EVALSHA"]);
    scene.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_waiter_sends_nothing_while_it_waits_and_one_read_when_it_is_woken() {
    let mut scene = Scene::new().await;
    let gate = scene.db.gate();
    let holder = scene.a.caller(1).await;
    gate.reached().await;
    assert_eq!(scene.monitor.seen(), ["GET", "EVALSHA"]);
    let waiters = scene.b.callers(100, 1).await;
    eventually("the other process waits", async || {
        scene.b.stats().lease_waits == 1
    })
    .await;
    assert_eq!(scene.monitor.seen(), ["GET", "EVALSHA"]);
    sleep(Duration::from_millis(300)).await;
    assert!(scene.monitor.seen().is_empty(), "it polls");
    gate.open();
    for waiter in waiters {
        assert_eq!(value(answer(waiter).await), "row 1");
    }
    assert_eq!(value(answer(holder).await), "row 1");
    assert_eq!(
        scene.monitor.seen(),
        ["EVALSHA", "GET"],
        "the fill, and the read that it caused"
    );
    scene.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn scripts_that_the_server_has_forgotten_are_sent_again() {
    let mut scene = Scene::new().await;
    let Ground::Redis(server) = &scene.ground else {
        unreachable!("a scene has a server")
    };
    let mut raw = server.raw();
    raw.ask("SCRIPT FLUSH");
    scene.monitor.seen();
    assert_eq!(value(scene.a.get(1).await), "row 1");
    assert_eq!(
        scene.monitor.seen(),
        ["GET", "EVALSHA", "EVAL", "EVALSHA", "EVAL"]
    );
    assert!(raw.get(&users(1)).is_some());
    raw.ask("SCRIPT FLUSH");
    scene.b.get(1).await.expect("a hit");
    scene.a.invalidate(&1).await.expect("an invalidation");
    eventually("the other process has heard", async || {
        scene.b.peek(&1).is_none()
    })
    .await;
    assert_eq!(
        (scene.a.stats().l2_failures, scene.b.stats().l2_failures),
        (0, 0)
    );
    scene.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_servers_own_statistics_agree() {
    let scene = Scene::new().await;
    let Ground::Redis(server) = &scene.ground else {
        unreachable!("a scene has a server")
    };
    let mut raw = server.raw();
    raw.ask("CONFIG RESETSTAT");
    scene.a.get(1).await.expect("a load");
    scene.b.get(1).await.expect("a hit");
    scene.b.get(1).await.expect("a hit");
    // The script that acquires reads as well: the record and its claim.
    assert_eq!(
        (raw.calls("get"), raw.calls("evalsha"), raw.calls("eval")),
        (4, 2, 0)
    );
    scene.a.invalidate(&1).await.expect("an invalidation");
    assert_eq!(
        (raw.calls("evalsha"), raw.calls("publish"), raw.calls("del")),
        (3, 1, 1)
    );
    scene.end().await;
}

/// A read, a claim, a fill.
const REFRESH: [&str; 3] = ["GET", "EVALSHA", "EVALSHA"];

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_refresh_is_a_read_a_claim_and_a_fill() {
    let mut scene = Scene::with(revalidates).await;
    scene.a.get(1).await.expect("a load");
    scene.monitor.seen();
    scene.a.refresh(&1).await.expect("a load");
    assert_eq!(scene.monitor.seen(), REFRESH, "by hand");
    aged(&scene.db, &[&scene.a], 2).await;
    scene.monitor.seen();
    for _ in 0..10 {
        scene.a.get(2).await.expect("a hit");
    }
    eventually("it is refreshed", async || {
        scene
            .a
            .peek(&2)
            .is_some_and(|entry| entry.freshness() == Freshness::Fresh)
    })
    .await;
    scene.a.get(2).await.expect("a hit");
    assert_eq!(scene.monitor.seen(), REFRESH, "past its TTL");
    scene.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whoever_leaves_a_refresh_to_another_process_sends_nothing_while_it_runs() {
    let mut scene = Scene::with(revalidates).await;
    aged(&scene.db, &[&scene.a, &scene.b], 1).await;
    scene.monitor.seen();
    scene.db.write(1, "new");
    let gate = scene.db.gate();
    scene.a.get(1).await.expect("a hit");
    gate.reached().await;
    assert_eq!(scene.monitor.seen(), ["GET", "EVALSHA"]);
    scene.b.get(1).await.expect("a hit");
    eventually("the other process waits", async || {
        scene.b.stats().lease_waits == 1
    })
    .await;
    assert_eq!(scene.monitor.seen(), ["GET", "EVALSHA"]);
    for _ in 0..100 {
        for node in [&scene.a, &scene.b] {
            assert_eq!(seen(node.get_entry(1).await), old(Freshness::Stale));
        }
        sleep(Duration::from_millis(3)).await;
    }
    assert!(scene.monitor.seen().is_empty(), "it polls");
    gate.open();
    for node in [&scene.a, &scene.b] {
        eventually("it has the new value", async || has_fresh(node, 1, "new")).await;
    }
    assert_eq!(
        scene.monitor.seen(),
        ["EVALSHA", "GET"],
        "the fill, and the read that it caused"
    );
    scene.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_hit_late_in_a_life_sends_nothing_but_the_refresh_that_it_begins() {
    let mut scene = Scene::with(|builder| builder.refresh_ahead(1000.0)).await;
    let ttl = Duration::from_secs(4);
    scene.db.behave(Behaviour {
        takes: Duration::from_millis(20),
        ..Behaviour::ttl(ttl)
    });
    scene.a.get(1).await.expect("a load");
    scene.db.behave(Behaviour::default());
    scene.monitor.seen();
    for _ in 0..100 {
        scene.a.get(1).await.expect("a hit");
    }
    assert!(
        scene.monitor.seen().is_empty(),
        "in the first half of its life"
    );
    sleep(ttl / 2 + ttl / 20).await;
    eventually("a hit begins a refresh", async || {
        let entry = scene
            .a
            .get_entry(1)
            .await
            .expect("a hit")
            .expect("an entry");
        assert_eq!(entry.source(), Source::L1);
        scene.a.stats().refreshes == 1
    })
    .await;
    scene.a.check().await;
    assert_eq!(scene.db.loads(), 2);
    scene.a.get(1).await.expect("a hit");
    assert_eq!(scene.monitor.seen(), REFRESH);
    scene.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn after_a_failure_hits_send_nothing_until_the_next_attempt() {
    for (settings, freshness) in [
        (revalidates as fn(_) -> _, Freshness::Stale),
        (falls_back, Freshness::StaleOnError),
    ] {
        let mut scene = Scene::with(settings).await;
        aged(&scene.db, &[&scene.a, &scene.b], 1).await;
        scene.monitor.seen();
        scene.db.behave(Behaviour::fails());
        // A read, a claim, and a mark in its place; a read and the answer that there is a mark.
        for (node, sends) in [(&scene.a, 3), (&scene.b, 2)] {
            assert_eq!(seen(node.get_entry(1).await), old(freshness));
            node.check().await;
            assert_eq!(scene.monitor.seen(), REFRESH[..sends]);
            for _ in 0..20 {
                assert_eq!(seen(node.get_entry(1).await), old(freshness));
            }
            assert!(node.refresh(&1).await.is_err());
            assert!(scene.monitor.seen().is_empty());
        }
        assert_eq!(scene.db.loads(), 1);
        scene.end().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_has_not_changed_is_not_sent_again() {
    const ROW: &str = "a row that nobody would want to send twice";
    let mut scene = Scene::with(revalidates).await;
    let Ground::Redis(server) = &scene.ground else {
        unreachable!("a scene has a server")
    };
    let mut raw = server.raw();
    scene.db.write(1, ROW);
    scene.a.get(1).await.expect("a load");
    let sent = scene.monitor.commands();
    assert!(sent.iter().any(|command| command.contains(ROW)));
    let before = raw.get(&users(1)).expect("a record");
    sleep(Duration::from_millis(50)).await;
    scene.db.behave(Behaviour {
        unchanged: true,
        ..Behaviour::default()
    });
    let begun = raw.pttl(&users(1));
    // By the same process: the clocks of two differ by a part of a round trip.
    assert_eq!(value(scene.a.refresh(&1).await), ROW);
    let sent = scene.monitor.commands();
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
    assert_eq!(seen(scene.b.get_entry(1).await), fresh(ROW));
    scene.end().await;
}
