//! The fence in L2, without any message: a fill is refused once its lease is gone, however it went.

use std::time::{Duration, Instant};

use crate::support::backend::{Backend, users};
use crate::support::eventually;
use crate::support::loader::Db;
use crate::support::node::{Node, answer, value};
use crate::support::server::{Raw, Server, is_lease};

/// `meanwhile` changes the key in Redis while a load waits at its gate. The fill of that load must
/// be refused.
async fn refused(meanwhile: impl FnOnce(&mut Raw)) -> (Backend, Db, Node) {
    let server = Server::start();
    let mut raw = server.raw();
    let (backend, db) = (Backend::Redis(server), Db::default());
    let a = backend.node(&db).await;
    db.write(1, "old");
    let gate = db.gate();
    let callers = a.callers(5, 1).await;
    gate.reached().await;
    assert!(raw.get(&users(1)).is_some_and(|record| is_lease(&record)));
    db.write(1, "new");
    meanwhile(&mut raw);
    gate.open();
    for caller in callers {
        assert_eq!(value(answer(caller).await), "old", "they asked before");
    }
    assert_eq!((a.stats().fills, a.stats().fills_refused), (0, 1));
    assert!(a.peek(&1).is_none(), "a refused value is kept in L1");
    assert_eq!(value(a.get(1).await), "new");
    (backend, db, a)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_plain_del_by_another_client_during_a_load_refuses_its_fill() {
    let (backend, db, a) = refused(|raw| {
        raw.ask(&format!("DEL {}", users(1)));
    })
    .await;
    assert_eq!((db.loads(), a.stats().fills), (2, 1));
    backend.check(&[&a]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_flush_of_the_server_during_a_load_refuses_its_fill() {
    let (backend, db, a) = refused(|raw| {
        raw.ask("FLUSHALL");
    })
    .await;
    assert_eq!((db.loads(), a.stats().fills), (2, 1));
    backend.check(&[&a]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lease_that_the_server_evicts_refuses_its_fill() {
    let (backend, db, a) = refused(|raw| {
        raw.ask("CONFIG SET maxmemory-policy allkeys-lru");
        raw.ask("CONFIG SET maxmemory 1");
        let deadline = Instant::now() + Duration::from_secs(20);
        while raw.get(&users(1)).is_some() {
            assert!(Instant::now() < deadline, "it was never evicted");
        }
        raw.ask("CONFIG SET maxmemory 0");
    })
    .await;
    assert_eq!((db.loads(), a.stats().fills), (2, 1));
    backend.check(&[&a]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_plain_set_by_another_client_during_a_load_refuses_its_fill() {
    let (backend, db, a) = refused(|raw| raw.set(&users(1), b"something else")).await;
    assert_eq!((db.loads(), a.stats().decode_failures), (2, 1));
    backend.check(&[&a]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lease_that_was_lost_is_not_released_for_its_new_holder() {
    let server = Server::start();
    let mut raw = server.raw();
    let (backend, db) = (Backend::Redis(server), Db::default());
    let (a, b) = (backend.node(&db).await, backend.node(&db).await);
    let (first, second) = (db.gate(), db.gate());
    let loses = a.caller(1).await;
    first.reached().await;
    raw.ask(&format!("DEL {}", users(1)));
    let holds = b.caller(1).await;
    second.reached().await;
    let lease = raw.get(&users(1)).expect("the second lease");
    first.open();
    assert_eq!(value(answer(loses).await), "row 1");
    assert_eq!(raw.get(&users(1)).expect("still there"), lease);
    second.open();
    assert_eq!(value(answer(holds).await), "row 1");
    assert_eq!((a.stats().fills_refused, b.stats().fills), (1, 1));
    backend.check(&[&a, &b]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_renewal_leaves_what_has_replaced_the_lease_as_it_is() {
    let server = Server::start();
    let mut raw = server.raw();
    let (backend, db) = (Backend::Redis(server), Db::default());
    let lease = Duration::from_millis(600);
    let a = backend
        .node_with(&db, |builder| builder.lease_ttl(lease))
        .await;
    let b = backend.node(&db).await;
    let gate = db.gate();
    let loses = a.caller(1).await;
    gate.reached().await;
    b.insert(1, "new".to_owned()).await.expect("an insert");
    // Heartbeats run scripts as well. Two processes send four in two heartbeat periods, and a
    // period is three times as long as the time to the first renewal.
    let before = raw.calls("evalsha");
    eventually("a renewal has been tried", async || {
        raw.calls("evalsha") > before + 4
    })
    .await;
    assert!(raw.pttl(&users(1)) > 60_000, "its expiry was changed");
    gate.open();
    assert_eq!(value(answer(loses).await), "row 1");
    assert_eq!(a.stats().fills_refused, 1);
    backend.check(&[&a, &b]).await;
}

/// The entry may be in L1 alone.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_invalidation_is_announced_where_l2_holds_nothing_too() {
    let server = Server::start();
    let mut raw = server.raw();
    let (backend, db) = (Backend::Redis(server), Db::default());
    let (a, b) = (backend.node(&db).await, backend.node(&db).await);
    a.get(1).await.expect("a load");
    assert!(a.peek(&1).is_some());
    raw.ask(&format!("DEL {}", users(1)));
    b.invalidate(&1).await.expect("an invalidation");
    eventually("the other process has dropped it", async || {
        a.peek(&1).is_none()
    })
    .await;
    backend.check(&[&a, &b]).await;
}
