//! No stale fill: a value that a load read before an invalidation or an insert is not stored after
//! it. Gates force each order of events.

use tidegate::Source;

use crate::support::backend::{Backend, on_both_tiers};
use crate::support::eventually;
use crate::support::loader::Db;
use crate::support::node::{Node, answer, value};

on_both_tiers! {
    an_invalidation_during_a_load_keeps_its_value_out_of_both_tiers
    a_get_after_an_invalidation_begins_a_new_load
    a_load_from_before_an_invalidation_neither_fills_nor_frees_what_the_next_load_holds
    a_load_from_before_an_invalidation_does_not_replace_what_the_next_load_filled
    an_insert_during_a_load_wins
    an_invalidation_by_another_process_keeps_the_value_of_a_running_load_out
    an_insert_by_another_process_wins_over_a_running_load
    an_invalidation_frees_the_waiters_of_another_process
}

/// The answer of a process that has not looked the key up before.
async fn elsewhere(backend: &Backend, db: &Db) -> (String, Source) {
    let node = backend.node(db).await;
    let entry = node
        .get_entry(1)
        .await
        .expect("a look-up")
        .expect("an entry");
    node.check().await;
    (entry.value().as_str().to_owned(), entry.source())
}

async fn an_invalidation_during_a_load_keeps_its_value_out_of_both_tiers(backend: Backend) {
    let db = Db::default();
    let a = backend.node(&db).await;
    db.write(1, "old");
    let gate = db.gate();
    let caller = a.caller(1).await;
    gate.reached().await;
    db.write(1, "new");
    a.invalidate(&1).await.expect("an invalidation");
    gate.open();
    assert_eq!(value(answer(caller).await), "old", "it asked before");
    assert!(a.peek(&1).is_none());
    assert_eq!(
        elsewhere(&backend, &db).await,
        ("new".to_owned(), Source::Loader)
    );
    assert_eq!(value(a.get(1).await), "new");
    assert_eq!(db.loads(), 2);
    backend.check(&[&a]).await;
}

async fn a_get_after_an_invalidation_begins_a_new_load(backend: Backend) {
    let db = Db::default();
    let a = backend.node(&db).await;
    db.write(1, "old");
    let (first, second) = (db.gate(), db.gate());
    let early = a.caller(1).await;
    first.reached().await;
    db.write(1, "new");
    a.invalidate(&1).await.expect("an invalidation");
    let late = a.caller(1).await;
    // The first load still runs.
    second.reached().await;
    second.open();
    assert_eq!(value(answer(late).await), "new");
    first.open();
    assert_eq!(value(answer(early).await), "old");
    assert_eq!(db.loads(), 2);
    backend.check(&[&a]).await;
}

/// A load, an invalidation, and a second load that begins while the first one runs.
async fn two_loads(backend: &Backend, db: &Db, a: &Node, the_first_ends_first: bool) {
    db.write(1, "old");
    let (first, second) = (db.gate(), db.gate());
    let early = a.caller(1).await;
    first.reached().await;
    db.write(1, "new");
    a.invalidate(&1).await.expect("an invalidation");
    let late = a.caller(1).await;
    second.reached().await;
    let (early, late) = if the_first_ends_first {
        first.open();
        let early = answer(early).await;
        assert!(a.peek(&1).is_none(), "the first load was stored");
        second.open();
        (early, answer(late).await)
    } else {
        second.open();
        let late = answer(late).await;
        first.open();
        (answer(early).await, late)
    };
    assert_eq!(
        (value(early).as_str(), value(late).as_str()),
        ("old", "new")
    );
    let entry = a.peek(&1).expect("the second load was stored");
    assert_eq!(entry.value().as_str(), "new");
    assert_eq!(elsewhere(backend, db).await, ("new".to_owned(), Source::L2));
    assert_eq!((db.loads(), a.stats().fills), (2, 1));
    backend.check(&[a]).await;
}

async fn a_load_from_before_an_invalidation_neither_fills_nor_frees_what_the_next_load_holds(
    backend: Backend,
) {
    let db = Db::default();
    let a = backend.node(&db).await;
    two_loads(&backend, &db, &a, true).await;
}

async fn a_load_from_before_an_invalidation_does_not_replace_what_the_next_load_filled(
    backend: Backend,
) {
    let db = Db::default();
    let a = backend.node(&db).await;
    two_loads(&backend, &db, &a, false).await;
}

async fn an_insert_during_a_load_wins(backend: Backend) {
    let db = Db::default();
    let a = backend.node(&db).await;
    db.write(1, "old");
    let gate = db.gate();
    let caller = a.caller(1).await;
    gate.reached().await;
    a.insert(1, "inserted".to_owned()).await.expect("an insert");
    gate.open();
    assert_eq!(value(answer(caller).await), "old");
    assert_eq!(value(a.get(1).await), "inserted");
    assert_eq!(
        elsewhere(&backend, &db).await,
        ("inserted".to_owned(), Source::L2)
    );
    assert_eq!(db.loads(), 1);
    backend.check(&[&a]).await;
}

async fn an_invalidation_by_another_process_keeps_the_value_of_a_running_load_out(
    backend: Backend,
) {
    let db = Db::default();
    let (a, b) = (backend.node(&db).await, backend.node(&db).await);
    db.write(1, "old");
    let (first, second) = (db.gate(), db.gate());
    let caller = a.caller(1).await;
    first.reached().await;
    db.write(1, "new");
    b.invalidate(&1).await.expect("an invalidation");
    eventually("the message has arrived", async || {
        a.stats().remote_invalidations == 1
    })
    .await;
    // The next look-up begins a load of its own although the first load still runs.
    let late = a.caller(1).await;
    second.reached().await;
    first.open();
    assert_eq!(value(answer(caller).await), "old");
    assert!(a.peek(&1).is_none());
    second.open();
    assert_eq!(value(answer(late).await), "new");
    assert_eq!(value(b.get(1).await), "new");
    assert_eq!((db.loads(), b.stats().l2_hits), (2, 1));
    backend.check(&[&a, &b]).await;
}

async fn an_insert_by_another_process_wins_over_a_running_load(backend: Backend) {
    let db = Db::default();
    let (a, b) = (backend.node(&db).await, backend.node(&db).await);
    let gate = db.gate();
    let caller = a.caller(1).await;
    gate.reached().await;
    b.insert(1, "inserted".to_owned()).await.expect("an insert");
    gate.open();
    assert_eq!(value(answer(caller).await), "row 1");
    assert_eq!(value(a.get(1).await), "inserted");
    assert_eq!(value(b.get(1).await), "inserted");
    assert_eq!(db.loads(), 1);
    backend.check(&[&a, &b]).await;
}

async fn an_invalidation_frees_the_waiters_of_another_process(backend: Backend) {
    let db = Db::default();
    let (a, b) = (backend.node(&db).await, backend.node(&db).await);
    let (first, second) = (db.gate(), db.gate());
    let holder = a.caller(1).await;
    first.reached().await;
    let waiter = b.caller(1).await;
    eventually("the other process waits", async || {
        b.stats().lease_waits == 1
    })
    .await;
    a.invalidate(&1).await.expect("an invalidation");
    // The lease that the process waited for is gone. The process loads long before that lease would
    // end.
    second.reached().await;
    second.open();
    assert_eq!(value(answer(waiter).await), "row 1");
    first.open();
    assert_eq!(value(answer(holder).await), "row 1");
    backend.check(&[&a, &b]).await;
}
