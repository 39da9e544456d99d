//! Stale answers when processes die, when servers go away, and without a shared tier.

use std::time::Duration;

use tidegate::{Cache, Error, Freshness, Loaded, Read, WriteError};
use tokio::time::{Instant, sleep};

use crate::support::aging::{
    LONG, TTL, fresh, has_fresh, intervals, make_stale, old, with_freshness, with_stale_if_error,
    with_stale_while_revalidate,
};
use crate::support::backend::{Backend, check_records, users};
use crate::support::eventually;
use crate::support::fleet::{Settings, Worker};
use crate::support::loader::{Behaviour, Db};
use crate::support::node::{Node, answer, value};
use crate::support::proxy::{Proxy, ProxyMode};
use crate::support::server::{Raw, Server, long_timeout_builder};

/// What a busy machine may add to any bound.
const SLACK: Duration = Duration::from_secs(2);
const LEASE: Duration = Duration::from_millis(600);

/// A process that refreshes "old", and a process that leaves the refresh to it. The source holds
/// "new".
struct Fleet {
    backend: Backend,
    refresher: Worker,
    db: Db,
    b: Node,
}

impl Fleet {
    async fn new() -> Self {
        let (backend, db) = (Backend::redis(), Db::default());
        let port = backend.server().expect("a server").port();
        let mut refresher = Worker::with(Settings {
            stale: LONG,
            ..Settings::new(port, LEASE)
        })
        .await;
        let b = backend
            .node_with(&db, |builder| {
                with_stale_while_revalidate(builder).lease_ttl(LEASE)
            })
            .await;
        let short = Loaded::found("old".to_owned()).ttl(TTL);
        b.insert(1, short).await.expect("an insert");
        sleep(TTL).await;
        refresher.send("get 1 10").await;
        refresher.expect_line("loading 1").await;
        // Callers of the stale entry do not wait for the refresh.
        refresher.send("get 1 10").await;
        assert_eq!(refresher.expect_line("got 1").await, "old");
        db.write(1, "new");
        Self {
            backend,
            refresher,
            db,
            b,
        }
    }

    async fn waits(&self) {
        assert_eq!(
            with_freshness(self.b.get_entry(1).await),
            old(Freshness::Stale)
        );
        eventually("the other process leaves it to the first", async || {
            self.b.stats().lease_waits == 1
        })
        .await;
        assert_eq!(self.db.loads(), 0);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_refresher_that_is_killed_is_replaced_and_no_caller_waits() {
    let mut fleet = Fleet::new().await;
    fleet.waits().await;
    let gate = fleet.db.gate();
    let died = Instant::now();
    fleet.refresher.kill().await;
    eventually("it is replaced", async || {
        assert_eq!(
            with_freshness(fleet.b.get_entry(1).await),
            old(Freshness::Stale)
        );
        fleet.db.loads() == 1
    })
    .await;
    let replaced = died.elapsed();
    println!("replaced after {replaced:?}");
    assert!(replaced < LEASE + SLACK, "{replaced:?}");
    gate.open();
    eventually("it has the new value", async || {
        with_freshness(fleet.b.get_entry(1).await) == fresh("new")
    })
    .await;
    assert_eq!(fleet.db.loads(), 1);
    fleet.backend.check(&[&fleet.b]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_refresher_that_is_stopped_is_replaced_and_cannot_fill_when_it_goes_on() {
    let mut fleet = Fleet::new().await;
    fleet.waits().await;
    fleet.refresher.stop();
    eventually("it is replaced", async || {
        let answer_now = with_freshness(fleet.b.get_entry(1).await);
        assert!([old(Freshness::Stale), fresh("new")].contains(&answer_now));
        answer_now == fresh("new")
    })
    .await;
    fleet.refresher.resume();
    fleet.refresher.send("row older").await;
    eventually("its fill is refused", async || {
        let stats = fleet.refresher.stats().await;
        stats[0] == 1 && stats[2..] == [0, 1]
    })
    .await;
    eventually("it has the new value", async || {
        fleet.refresher.send("get 1 1").await;
        let got = fleet.refresher.expect_line("got 1").await;
        assert_ne!(got, "older", "what was refused is answered");
        got == "new"
    })
    .await;
    assert_eq!((fleet.refresher.stats().await[0], fleet.db.loads()), (1, 1));
    fleet.backend.check(&[&fleet.b]).await;
}

/// A node that reaches its server through a proxy.
async fn behind_proxy(
    db: &Db,
    server: &Server,
    settings: impl FnOnce(tidegate::CacheBuilder<Db>) -> tidegate::CacheBuilder<Db>,
) -> (Proxy, Node) {
    let proxy = Proxy::to(server.port()).await;
    let redis = long_timeout_builder(proxy.port()).timeout(Duration::from_millis(300));
    let builder = Cache::builder("users", db.clone())
        .ttl_jitter(0.0)
        .l2(redis.connect().await.expect("connect"));
    let cache = settings(builder).build();
    (proxy, Node::new(cache.expect("a cache")))
}

async fn outage(mode: ProxyMode) {
    let (server, db) = (Server::start(), Db::default());
    let backoff = Duration::from_millis(300);
    let (channel, degraded) = (Duration::from_millis(900), Duration::from_millis(1500));
    let (proxy, a) = behind_proxy(&db, &server, |builder| {
        with_stale_if_error(builder)
            .channel_lease(channel)
            .degraded_l1_ttl(degraded)
            .error_backoff(backoff)
    })
    .await;
    make_stale(&db, &[&a], 1).await;
    db.behave(Behaviour::fails());
    proxy.set(mode).await;
    let (began, mut stale_answers) = (Instant::now(), 0);
    loop {
        match a.get_entry(1).await {
            Ok(Some(entry)) => {
                assert_eq!(entry.freshness(), Freshness::StaleOnError);
                stale_answers += 1;
            }
            Ok(None) => panic!("the key exists"),
            Err(error) => {
                assert!(matches!(error, Error::Load(_)), "{error:?}");
                break;
            }
        }
        assert!(began.elapsed() < channel + degraded + SLACK);
        sleep(Duration::from_millis(10)).await;
    }
    assert!(stale_answers > 10, "only {stale_answers} times");
    // After the grace period each look-up is an error, and loads follow the error backoff.
    while began.elapsed() < channel + degraded + SLACK {
        for caller in a.callers(20, 1).await {
            let got = answer(caller).await;
            assert!(matches!(got, Err(Error::Load(_))), "{got:?}");
        }
        sleep(Duration::from_millis(10)).await;
    }
    for gap in intervals(&db.load_starts()) {
        assert!(gap >= backoff - Duration::from_millis(3), "{gap:?}");
    }
    proxy.set(ProxyMode::Pass).await;
    db.behave(Behaviour::default());
    db.write(1, "new");
    eventually("all is well", async || {
        a.get_entry(1).await.is_ok_and(|entry| {
            entry.is_some_and(|entry| {
                entry.value().as_str() == "new" && entry.freshness() == Freshness::Fresh
            })
        })
    })
    .await;
    a.check().await;
    check_records(&server);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_source_and_server_the_old_value_is_answered_for_the_grace_and_then_one_error() {
    outage(ProxyMode::Refuse).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_source_and_with_a_silent_server_the_old_value_is_answered_for_the_grace_too() {
    outage(ProxyMode::BlackHole).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_read_that_skips_l1_sees_a_change_that_l1_has_not_received() {
    let (backend, db) = (Backend::redis(), Db::default());
    let (proxy, a) = behind_proxy(&db, backend.server().expect("a server"), |builder| {
        with_stale_while_revalidate(builder).channel_lease(Duration::from_secs(600))
    })
    .await;
    let b = backend.node_with(&db, with_stale_while_revalidate).await;
    eventually("L1 is used", async || {
        a.get(1).await.expect("a look-up");
        a.peek(&1).is_some()
    })
    .await;
    proxy.set(ProxyMode::DeadSubscriptions).await;
    for read in [Read::new().skip_l1(), Read::fresh().skip_l1()] {
        let before = value(a.get(1).await);
        let new = format!("{read:?}");
        b.insert(1, new.clone()).await.expect("an insert");
        assert_eq!(value(a.get(1).await), before, "the change has not arrived");
        assert_eq!(value(a.get_with(1, Read::fresh()).await), before);
        assert_eq!(value(a.get_with(1, read).await), new);
        assert_eq!(value(a.get(1).await), new, "and L1 keeps it");
    }
    a.check().await;
    backend.check(&[&b]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_write_whose_invalidation_fails_is_an_error_and_is_repaired() {
    let (backend, db) = (Backend::redis(), Db::default());
    let (proxy, a) = behind_proxy(
        &db,
        backend.server().expect("a server"),
        with_stale_if_error,
    )
    .await;
    let b = backend.node_with(&db, with_stale_if_error).await;
    for key in 1..=3 {
        db.write(key, "old");
        for node in [&a, &b] {
            node.get(key).await.expect("a look-up");
        }
    }
    proxy.set(ProxyMode::Refuse).await;
    for key in 1..=3 {
        let commit = {
            let db = db.clone();
            async move {
                db.write(key, "new");
                Ok::<_, std::io::Error>("new".to_owned())
            }
        };
        let failed = match key {
            1 => a.write(key, commit).await,
            2 => a.invalidate_after(key, commit).await.map(drop),
            _ => a.refresh_after(key, commit).await.map(drop),
        };
        assert!(matches!(failed, Err(WriteError::Remote(_))), "{failed:?}");
        assert_eq!(value(a.get(key).await), "new", "here it is gone at once");
    }
    assert_eq!((a.stats().writes, a.health().pending_repairs), (3, 3));
    proxy.set(ProxyMode::Pass).await;
    eventually("all is repaired", async || a.health().pending_repairs == 0).await;
    for key in 1..=3 {
        for node in [&a, &b] {
            eventually("the change has arrived", async || {
                value(node.get(key).await) == "new"
            })
            .await;
        }
    }
    a.check().await;
    backend.check(&[&b]).await;
}

/// Another client deletes the key, which is not announced to any cache.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_refresh_whose_entry_was_deleted_is_refused_and_one_whose_claim_was_is_not() {
    let (backend, db) = (Backend::redis(), Db::default());
    let mut raw = backend.server().expect("a server").raw();
    let a = backend.node_with(&db, with_stale_while_revalidate).await;
    for (deleted, filled) in [(users(1), 0), (format!("{{{}}}", users(1)), 1)] {
        db.write(1, "older");
        a.get(1).await.expect("a look-up");
        let (gate, before) = (db.gate(), a.stats());
        let refresher = a.refresher(1).await;
        gate.reached().await;
        db.write(1, "new");
        raw.send(&[b"DEL", deleted.as_bytes()]);
        gate.open();
        assert_eq!(value(answer(refresher).await), "older");
        let since = a.stats().since(&before);
        assert_eq!((since.fills, since.fills_refused), (filled, 1 - filled));
        assert_eq!(raw.entries("*tidegate*").len() as u64, filled);
        a.invalidate(&1).await.expect("an invalidation");
        assert_eq!(value(a.get(1).await), "new");
    }
    backend.check(&[&a]).await;
}

/// Asserts that the server keeps a key for this long at most, and not much less.
fn assert_expiry(raw: &mut Raw, key: &str, most: Duration) {
    let (pttl, most) = (raw.pttl(key), i64::try_from(most.as_millis()).expect("few"));
    let least = most - i64::try_from(SLACK.as_millis()).expect("few") * 5;
    assert!((least..=most).contains(&pttl), "{key}: {pttl} of {most}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_server_keeps_a_value_for_its_ttl_and_the_longer_window_and_nothing_for_ever() {
    let (ttl, minute) = (Duration::from_secs(100), Duration::from_secs(60));
    for (key, while_revalidate, if_error) in [(1, 1, 5), (2, 5, 1), (3, 0, 0)] {
        let (backend, db) = (Backend::redis(), Db::default());
        let mut raw = backend.server().expect("a server").raw();
        let a = backend
            .node_with(&db, |builder| {
                builder
                    .ttl(ttl)
                    .negative_ttl(minute)
                    .stale_while_revalidate(minute * while_revalidate)
                    .stale_if_error(minute * if_error)
                    .error_backoff(minute)
                    .lease_ttl(minute)
            })
            .await;
        let longest = ttl + minute * while_revalidate.max(if_error);
        let (record, claim) = (users(key), format!("tidegate:users::{{{}}}", users(key)));
        let gate = db.gate();
        let caller = a.caller(key).await;
        gate.reached().await;
        assert_expiry(&mut raw, &record, minute);
        gate.open();
        answer(caller).await.expect("a load");
        assert_expiry(&mut raw, &record, longest);
        for behaviour in [Behaviour::fails(), Behaviour::default()] {
            a.insert(key, "by hand".to_owned())
                .await
                .expect("an insert");
            assert_expiry(&mut raw, &record, longest);
            raw.send(&[b"PEXPIRE", record.as_bytes(), b"30000"]);
            db.behave(behaviour);
            let gate = db.gate();
            let refresher = a.refresher(key).await;
            gate.reached().await;
            // The entry stays until its refresh ends.
            assert_expiry(&mut raw, &record, minute);
            assert_expiry(&mut raw, &claim, minute);
            check_expiries(&mut raw);
            gate.open();
            let refreshed = answer(refresher).await;
            assert_eq!(refreshed.is_err(), behaviour.fails);
            check_expiries(&mut raw);
        }
        assert_expiry(&mut raw, &record, longest);
        a.expire(&key).await.expect("an expiry");
        assert_expiry(&mut raw, &record, longest);
        db.delete(key);
        a.refresh(&key).await.expect("a load");
        assert_expiry(&mut raw, &record, minute);
        backend.check(&[&a]).await;
    }
}

fn check_expiries(raw: &mut Raw) {
    for key in raw.keys("*") {
        assert!(raw.pttl(&key) > 0, "{key} has no expiry");
    }
}

#[tokio::test(start_paused = true)]
async fn without_a_shared_tier_the_old_value_is_answered_by_the_same_rules() {
    let db = Db::default();
    let node = |cache: Result<_, tidegate::BuildError>| Node::new(cache.expect("a cache"));
    let builder = || Cache::builder("users", db.clone()).ttl_jitter(0.0);
    let a = node(with_stale_while_revalidate(builder()).build());
    let b = node(
        with_stale_if_error(builder())
            .load_soft_timeout(Duration::from_millis(100))
            .build(),
    );
    make_stale(&db, &[&a], 1).await;
    make_stale(&db, &[&b], 2).await;
    db.write(1, "new");
    db.write(2, "new");
    let (first, second) = (db.gate(), db.gate());
    assert_eq!(with_freshness(a.get_entry(1).await), old(Freshness::Stale));
    first.reached().await;
    assert_eq!(with_freshness(b.get_entry(2).await), old(Freshness::Stale));
    second.reached().await;
    first.open();
    second.open();
    eventually("both are new", async || {
        has_fresh(&a, 1, "new") && has_fresh(&b, 2, "new")
    })
    .await;
    make_stale(&db, &[&b], 3).await;
    db.behave(Behaviour::fails());
    assert_eq!(
        with_freshness(b.get_entry(3).await),
        old(Freshness::StaleOnError)
    );
    assert!(b.refresh(&3).await.is_err());
    assert_eq!(
        with_freshness(b.get_entry(3).await),
        old(Freshness::StaleOnError)
    );
    b.expire(&3).await.expect("an expiry");
    assert_eq!(
        with_freshness(b.get_entry(3).await),
        old(Freshness::StaleOnError)
    );
    b.invalidate(&3).await.expect("an invalidation");
    assert!(b.get(3).await.is_err());
    assert_eq!((db.loads(), db.reloads().len()), (3, 2));
    for node in [&a, &b] {
        node.check().await;
    }
}
