//! One load per fleet: a lease in the shared tier elects the process that loads.

use std::time::Duration;

use tidegate::{BoxError, Error, Loaded, Source, loader_fn};
use tokio::time::{Instant, sleep};

use crate::support::backend::{Backend, on_both_tiers};
use crate::support::eventually;
use crate::support::loader::{Behaviour, Db};
use crate::support::node::{Node, answer, value};

on_both_tiers! {
    processes_that_want_one_key_share_one_load
    waiters_are_woken_by_the_fill
    a_load_longer_than_its_lease_keeps_it
    a_failed_load_frees_its_lease_and_the_others_do_not_take_turns
    a_panic_leaves_no_lease
    a_load_that_all_callers_left_leaves_no_lease
    a_value_that_cannot_be_encoded_is_answered_and_leaves_no_lease
    a_lease_that_was_lost_is_not_given_back_for_its_new_holder
    a_waiter_that_has_waited_enough_loads_by_itself_and_does_not_fill
    caches_of_different_names_do_not_share_leases
}

const AT_ONCE: Duration = Duration::from_secs(5);

async fn processes_that_want_one_key_share_one_load(backend: Backend) {
    let db = Db::default();
    let mut nodes = Vec::new();
    for _ in 0..4 {
        nodes.push(backend.node(&db).await);
    }
    let gate = db.gate();
    let mut callers = Vec::new();
    for node in &nodes {
        callers.extend(node.callers(50, 1).await);
    }
    gate.reached().await;
    eventually("the others wait for the lease", async || {
        nodes
            .iter()
            .map(|node| node.stats().lease_waits)
            .sum::<u64>()
            == 3
    })
    .await;
    gate.open();
    for caller in callers {
        assert_eq!(value(answer(caller).await), "row 1");
    }
    assert_eq!(db.loads(), 1);
    backend.check(&nodes.iter().collect::<Vec<_>>()).await;
}

async fn waiters_are_woken_by_the_fill(backend: Backend) {
    let db = Db::default();
    let (a, b) = (backend.node(&db).await, backend.node(&db).await);
    let gate = db.gate();
    let holder = a.caller(1).await;
    gate.reached().await;
    let waiters = b.callers(100, 1).await;
    eventually("the other process waits", async || {
        b.stats().lease_waits == 1
    })
    .await;
    let filled = Instant::now();
    gate.open();
    for waiter in waiters {
        assert_eq!(value(answer(waiter).await), "row 1");
    }
    // Without the wake-up, the waiters would wait for a minute, the TTL of the lease.
    assert!(filled.elapsed() < AT_ONCE, "{:?}", filled.elapsed());
    assert_eq!(value(answer(holder).await), "row 1");
    assert_eq!((db.loads(), b.stats().l2_hits), (1, 100));
    backend.check(&[&a, &b]).await;
}

async fn a_load_longer_than_its_lease_keeps_it(backend: Backend) {
    let db = Db::default();
    let lease = Duration::from_millis(600);
    let a = backend
        .node_with(&db, |builder| builder.lease_ttl(lease))
        .await;
    let b = backend
        .node_with(&db, |builder| builder.lease_ttl(lease))
        .await;
    let gate = db.gate();
    let holder = a.caller(1).await;
    gate.reached().await;
    let waiter = b.caller(1).await;
    sleep(lease * 2 + lease / 2).await;
    assert_eq!(db.loads(), 1);
    gate.open();
    assert_eq!(value(answer(holder).await), "row 1");
    assert_eq!(value(answer(waiter).await), "row 1");
    assert_eq!((db.loads(), a.stats().fills, b.stats().l2_hits), (1, 1, 1));
    backend.check(&[&a, &b]).await;
}

async fn a_failed_load_frees_its_lease_and_the_others_do_not_take_turns(backend: Backend) {
    let db = Db::default();
    let backoff = Duration::from_secs(60);
    let a = backend
        .node_with(&db, |builder| builder.error_backoff(backoff))
        .await;
    let b = backend
        .node_with(&db, |builder| builder.error_backoff(backoff))
        .await;
    db.behave(Behaviour {
        fails: true,
        ..Behaviour::default()
    });
    let gate = db.gate();
    let holder = a.caller(1).await;
    gate.reached().await;
    let waiters = b.callers(20, 1).await;
    eventually("the other process waits", async || {
        b.stats().lease_waits == 1
    })
    .await;
    gate.open();
    assert!(matches!(answer(holder).await, Err(Error::Load(_))));
    for waiter in waiters {
        assert!(matches!(
            answer(waiter).await,
            Err(Error::LoadFailedElsewhere)
        ));
    }
    assert!(matches!(b.get(1).await, Err(Error::LoadFailedElsewhere)));
    assert_eq!(db.loads(), 1);
    db.behave(Behaviour::default());
    a.invalidate(&1).await.expect("an invalidation");
    eventually("the change has arrived", async || {
        let got = b.get(1).await;
        got.is_ok_and(|found| found.is_some_and(|row| *row == "row 1"))
    })
    .await;
    assert_eq!(value(a.get(1).await), "row 1");
    assert_eq!(db.loads(), 2);
    backend.check(&[&a, &b]).await;
}

async fn a_panic_leaves_no_lease(backend: Backend) {
    let db = Db::default();
    let a = backend
        .node_with(&db, |builder| builder.error_backoff(Duration::ZERO))
        .await;
    let b = backend.node(&db).await;
    db.behave(Behaviour {
        panics: true,
        ..Behaviour::default()
    });
    assert!(matches!(a.get(1).await, Err(Error::LoadPanicked)));
    db.behave(Behaviour::default());
    assert_eq!(value(b.get(1).await), "row 1");
    assert_eq!(b.stats().lease_waits, 0);
    backend.check(&[&a, &b]).await;
}

async fn a_load_that_all_callers_left_leaves_no_lease(backend: Backend) {
    let db = Db::default();
    let (a, b) = (backend.node(&db).await, backend.node(&db).await);
    db.behave(Behaviour {
        do_not_store: true,
        ..Behaviour::default()
    });
    let gate = db.gate();
    for caller in a.callers(3, 1).await {
        caller.abort();
    }
    gate.reached().await;
    gate.open();
    a.check().await;
    let entry = b.get_entry(1).await.expect("a look-up").expect("an entry");
    assert_eq!((entry.source(), b.stats().lease_waits), (Source::Loader, 0));
    backend.check(&[&a, &b]).await;
}

/// A value that its codec refuses to encode when the field is `true`.
#[derive(Debug, serde::Deserialize)]
struct Unencodable(bool);

impl serde::Serialize for Unencodable {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        if self.0 {
            Err(serde::ser::Error::custom("not this one"))
        } else {
            serializer.serialize_bool(self.0)
        }
    }
}

async fn a_value_that_cannot_be_encoded_is_answered_and_leaves_no_lease(backend: Backend) {
    let loader = || {
        loader_fn(|key: u64| async move { Ok::<_, BoxError>(Loaded::found(Unencodable(key == 1))) })
    };
    let a: Node<Unencodable> = backend.named("picky", loader(), |builder| builder).await;
    let b: Node<Unencodable> = backend.named("picky", loader(), |builder| builder).await;
    for node in [&a, &b] {
        let unencodable = node.get(1).await.expect("an answer").expect("a value");
        assert!(unencodable.0);
        assert!(
            node.peek(&1).is_none(),
            "it is kept in L1 although no other process can have it"
        );
        let stats = node.stats();
        assert_eq!(
            (stats.encode_failures, stats.lease_waits, stats.fills),
            (1, 0, 0)
        );
        assert!(!node.get(2).await.expect("an answer").expect("a value").0);
    }
    assert_eq!(b.stats().l2_hits, 1, "the other values are shared");
    backend.check(&[&a, &b]).await;
}

async fn a_lease_that_was_lost_is_not_given_back_for_its_new_holder(backend: Backend) {
    let db = Db::default();
    let (a, b) = (backend.node(&db).await, backend.node(&db).await);
    let (first, second) = (db.gate(), db.gate());
    // The loader asks not to store the value, so the holder releases its lease instead of a fill.
    db.behave(Behaviour {
        do_not_store: true,
        ..Behaviour::default()
    });
    let loses = a.caller(1).await;
    first.reached().await;
    db.behave(Behaviour::default());
    b.invalidate(&1).await.expect("an invalidation");
    let holds = b.caller(1).await;
    second.reached().await;
    first.open();
    assert_eq!(value(answer(loses).await), "row 1");
    second.open();
    assert_eq!(value(answer(holds).await), "row 1");
    assert_eq!((b.stats().fills, b.stats().fills_refused), (1, 0));
    backend.check(&[&a, &b]).await;
}

async fn a_waiter_that_has_waited_enough_loads_by_itself_and_does_not_fill(backend: Backend) {
    let db = Db::default();
    let wait = Duration::from_millis(300);
    let a = backend.node(&db).await;
    let b = backend
        .node_with(&db, |builder| builder.lease_wait(wait))
        .await;
    let gate = db.gate();
    let holder = a.caller(1).await;
    gate.reached().await;
    db.write(1, "newer");
    let begun = Instant::now();
    assert_eq!(value(b.get(1).await), "newer");
    assert!(begun.elapsed() >= wait);
    assert_eq!((b.stats().lease_wait_exceeded, b.stats().fills), (1, 0));
    gate.open();
    assert_eq!(value(answer(holder).await), "row 1");
    assert_eq!(
        (a.stats().fills, a.stats().fills_refused),
        (1, 0),
        "it has kept its lease"
    );
    backend.check(&[&a, &b]).await;
}

async fn caches_of_different_names_do_not_share_leases(backend: Backend) {
    let (users, orders) = (Db::default(), Db::default());
    let a = backend.node(&users).await;
    let b = backend
        .named("orders", orders.clone(), |builder| builder)
        .await;
    let gate = users.gate();
    let holder = a.caller(1).await;
    gate.reached().await;
    assert_eq!(value(b.get(1).await), "row 1");
    assert_eq!((orders.loads(), b.stats().lease_waits), (1, 0));
    gate.open();
    assert_eq!(value(answer(holder).await), "row 1");
    backend.check(&[&a, &b]).await;
}
