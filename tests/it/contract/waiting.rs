//! Invalidations that wait until no process can answer the old value, and hold-offs after them.

use std::time::Duration;

use tidegate::Source;
use tokio::time::{Instant, sleep_until};

use crate::support::backend::{Backend, on_both_tiers};
use crate::support::eventually;
use crate::support::loader::Db;
use crate::support::node::{answer, begin, value};

on_both_tiers! {
    invalidate_everywhere_returns_when_a_lease_and_a_grace_are_over_and_invalidates_at_once
    invalidate_everywhere_completes_when_its_caller_goes_away
    during_a_hold_off_loads_are_answered_and_stored_nowhere_and_afterwards_they_are
    a_load_that_began_before_a_hold_off_is_not_stored_during_it
    an_insert_is_not_held_off
}

const LEASE: Duration = Duration::from_secs(1);
const GRACE: Duration = Duration::from_secs(1);

async fn invalidate_everywhere_returns_when_a_lease_and_a_grace_are_over_and_invalidates_at_once(
    backend: Backend,
) {
    let db = Db::default();
    let a = backend
        .node_with(&db, |builder| {
            builder.channel_lease(LEASE).degraded_l1_ttl(GRACE)
        })
        .await;
    let b = backend.node(&db).await;
    for node in [&a, &b] {
        node.get(1).await.expect("a look-up");
    }
    db.write(1, "new");
    let begun = Instant::now();
    let waits = {
        let a = a.clone();
        begin(async move { a.invalidate_everywhere(&1).await }).await
    };
    eventually("the other process has dropped it", async || {
        b.peek(&1).is_none()
    })
    .await;
    assert!(!waits.is_finished(), "it did not wait");
    assert_eq!(value(b.get(1).await), "new");
    eventually("here it is gone too", async || {
        a.peek(&1)
            .is_none_or(|entry| entry.value().as_str() == "new")
    })
    .await;
    answer(waits).await.expect("an invalidation");
    let took = begun.elapsed();
    assert!(took >= LEASE + GRACE, "after {took:?}");
    assert!(took < (LEASE + GRACE) * 3, "after {took:?}");
    backend.check(&[&a, &b]).await;
}

async fn invalidate_everywhere_completes_when_its_caller_goes_away(backend: Backend) {
    let db = Db::default();
    let (a, b) = (backend.node(&db).await, backend.node(&db).await);
    for node in [&a, &b] {
        node.get(1).await.expect("a look-up");
    }
    let waits = {
        let a = a.clone();
        begin(async move { a.invalidate_everywhere(&1).await }).await
    };
    waits.abort();
    for node in [&a, &b] {
        eventually("it is gone", async || node.peek(&1).is_none()).await;
    }
    assert_eq!(backend.records(), 0);
    backend.check(&[&a, &b]).await;
}

const HELD: Duration = Duration::from_secs(3);

async fn during_a_hold_off_loads_are_answered_and_stored_nowhere_and_afterwards_they_are(
    backend: Backend,
) {
    let db = Db::default();
    let a = backend
        .node_with(&db, |builder| builder.hold_off(HELD))
        .await;
    let b = backend
        .node_with(&db, |builder| builder.hold_off(HELD))
        .await;
    for node in [&a, &b] {
        node.get(1).await.expect("a look-up");
    }
    // A replica of the source would still return this row for a while.
    db.write(1, "old");
    let loads = db.loads();
    a.invalidate(&1).await.expect("an invalidation");
    let ends = Instant::now() + HELD;
    assert_eq!(backend.records(), 1, "a record that says so");
    let cold = backend
        .node_with(&db, |builder| builder.hold_off(HELD))
        .await;
    eventually("the change has arrived", async || b.peek(&1).is_none()).await;
    for node in [&a, &b, &cold, &a, &b, &cold] {
        assert_eq!(value(node.get(1).await), "old");
        assert!(node.peek(&1).is_none(), "it is kept in L1");
    }
    assert_eq!(db.loads(), loads + 6);
    assert_eq!(backend.records(), 1, "the record that says so");
    // Other keys are not held off.
    assert_eq!(value(a.get(2).await), "row 2");
    assert!(a.peek(&2).is_some());

    db.write(1, "new");
    // A margin: the hold-off began in the tier before the call returned here.
    sleep_until(ends + Duration::from_millis(100)).await;
    assert_eq!(value(a.get(1).await), "new");
    let entry = a.get_entry(1).await.expect("a look-up").expect("an entry");
    assert_eq!(entry.source(), Source::L1);
    for node in [&b, &cold] {
        assert_eq!(value(node.get(1).await), "new");
    }
    assert_eq!(db.loads(), loads + 8, "once, and key 2");
    backend.check(&[&a, &b, &cold]).await;
}

async fn a_load_that_began_before_a_hold_off_is_not_stored_during_it(backend: Backend) {
    let db = Db::default();
    let a = backend
        .node_with(&db, |builder| builder.hold_off(HELD))
        .await;
    db.write(1, "old");
    let gate = db.gate();
    let caller = a.caller(1).await;
    gate.reached().await;
    a.invalidate(&1).await.expect("an invalidation");
    gate.open();
    assert_eq!(value(answer(caller).await), "old");
    assert!(a.peek(&1).is_none());
    assert_eq!((a.stats().fills, a.stats().fills_refused), (0, 1));
    backend.check(&[&a]).await;
}

async fn an_insert_is_not_held_off(backend: Backend) {
    let db = Db::default();
    let a = backend
        .node_with(&db, |builder| builder.hold_off(HELD))
        .await;
    a.invalidate(&1).await.expect("an invalidation");
    a.insert(1, "by hand".to_owned()).await.expect("an insert");
    let cold = backend.node(&db).await;
    assert_eq!(value(cold.get(1).await), "by hand");
    assert_eq!(value(a.get(1).await), "by hand");
    assert_eq!(db.loads(), 0);
    backend.check(&[&a, &cold]).await;
}
