//! `expire`: an entry is no longer fresh for any process, and its value stays in the shared tier.

use tidegate::Source;

use crate::support::backend::{Backend, on_both_tiers};
use crate::support::eventually;
use crate::support::loader::Db;
use crate::support::node::{Node, answer, value};

on_both_tiers! {
    an_expired_entry_is_loaded_again_by_every_process
    an_expiry_keeps_the_record_and_an_invalidation_keeps_none
    a_load_from_before_an_expiry_is_stored_nowhere
    a_load_from_before_an_expiry_by_another_process_is_stored_nowhere
    a_second_expiry_during_the_load_after_the_first_refuses_it
    an_own_expiry_evicts_nothing_that_was_loaded_after_it
    an_absence_that_expired_is_asked_for_again
    an_expiry_of_an_absent_key_leaves_nothing
}

async fn source(node: &Node, key: u64) -> Source {
    let entry = node.get_entry(key).await.expect("a look-up");
    entry.expect("an entry").source()
}

async fn an_expired_entry_is_loaded_again_by_every_process(backend: Backend) {
    let db = Db::default();
    let (a, b) = (backend.node(&db).await, backend.node(&db).await);
    for node in [&a, &b] {
        node.get(1).await.expect("a look-up");
    }
    db.write(1, "new");
    a.expire(&1).await.expect("an expiry");
    assert!(a.peek(&1).is_none(), "here it is gone at once");
    eventually("the other process has dropped it", async || {
        b.peek(&1).is_none()
    })
    .await;
    assert_eq!(b.stats().remote_invalidations, 1);
    assert_eq!(value(b.get(1).await), "new");
    assert_eq!(value(a.get(1).await), "new");
    assert_eq!(
        (db.loads(), a.stats().expirations, b.stats().fills),
        (2, 1, 1),
        "the record was replaced, once"
    );
    let cold = backend.node(&db).await;
    assert_eq!(source(&cold, 1).await, Source::L2);
    backend.check(&[&a, &b, &cold]).await;
}

async fn an_expiry_keeps_the_record_and_an_invalidation_keeps_none(backend: Backend) {
    let db = Db::default();
    let a = backend.node(&db).await;
    for key in [1, 2] {
        a.get(key).await.expect("a load");
    }
    assert_eq!(backend.records(), 2);
    a.expire(&1).await.expect("an expiry");
    assert_eq!(backend.records(), 2);
    a.invalidate(&2).await.expect("an invalidation");
    assert_eq!(backend.records(), 1);
    a.invalidate(&1).await.expect("an invalidation");
    assert_eq!(backend.records(), 0);
    backend.check(&[&a]).await;
}

/// Process `by` expires the key while a load of process `a` waits at its gate.
async fn expired_meanwhile(backend: &Backend, db: &Db, a: &Node, by: &Node) {
    db.write(1, "old");
    let gate = db.gate();
    let caller = a.caller(1).await;
    gate.reached().await;
    db.write(1, "new");
    let invalidations_before = a.stats().remote_invalidations;
    by.expire(&1).await.expect("an expiry");
    gate.open();
    assert_eq!(value(answer(caller).await), "old", "it asked before");
    assert_eq!((a.stats().fills, a.stats().fills_refused), (0, 1));
    if by.stats().expirations > a.stats().expirations {
        eventually("the message has arrived", async || {
            a.stats().remote_invalidations > invalidations_before
        })
        .await;
    }
    assert!(a.peek(&1).is_none());
    assert_eq!(backend.records(), 0);
    assert_eq!(value(a.get(1).await), "new");
    assert_eq!(db.loads(), 2);
}

async fn a_load_from_before_an_expiry_is_stored_nowhere(backend: Backend) {
    let db = Db::default();
    let a = backend.node(&db).await;
    expired_meanwhile(&backend, &db, &a, &a).await;
    backend.check(&[&a]).await;
}

async fn a_load_from_before_an_expiry_by_another_process_is_stored_nowhere(backend: Backend) {
    let db = Db::default();
    let (a, b) = (backend.node(&db).await, backend.node(&db).await);
    expired_meanwhile(&backend, &db, &a, &b).await;
    backend.check(&[&a, &b]).await;
}

async fn a_second_expiry_during_the_load_after_the_first_refuses_it(backend: Backend) {
    let db = Db::default();
    let a = backend.node(&db).await;
    db.write(1, "first");
    a.get(1).await.expect("a load");
    a.expire(&1).await.expect("an expiry");
    db.write(1, "second");
    let gate = db.gate();
    let caller = a.caller(1).await;
    gate.reached().await;
    db.write(1, "third");
    a.expire(&1).await.expect("an expiry");
    gate.open();
    assert_eq!(value(answer(caller).await), "second");
    assert!(a.peek(&1).is_none());
    assert_eq!(value(a.get(1).await), "third");
    assert_eq!((db.loads(), a.stats().fills_refused), (3, 1));
    backend.check(&[&a]).await;
}

async fn an_own_expiry_evicts_nothing_that_was_loaded_after_it(backend: Backend) {
    let db = Db::default();
    let (a, b) = (backend.node(&db).await, backend.node(&db).await);
    for node in [&a, &b] {
        node.get(2).await.expect("a look-up");
    }
    a.expire(&1).await.expect("an expiry");
    a.get(1).await.expect("a load");
    // The messages that the other process has received have reached this process as well.
    a.expire(&2).await.expect("an expiry");
    eventually("the messages have arrived", async || b.peek(&2).is_none()).await;
    assert!(a.peek(&1).is_some());
    assert_eq!(a.stats().remote_invalidations, 0);
    backend.check(&[&a, &b]).await;
}

async fn an_absence_that_expired_is_asked_for_again(backend: Backend) {
    let db = Db::default();
    let (a, b) = (backend.node(&db).await, backend.node(&db).await);
    db.delete(1);
    assert_eq!(a.get(1).await.expect("a look-up"), None);
    db.write(1, "here now");
    a.expire(&1).await.expect("an expiry");
    assert_eq!(value(b.get(1).await), "here now");
    assert_eq!(value(a.get(1).await), "here now");
    assert_eq!(db.loads(), 2);
    backend.check(&[&a, &b]).await;
}

async fn an_expiry_of_an_absent_key_leaves_nothing(backend: Backend) {
    let db = Db::default();
    let a = backend.node(&db).await;
    a.expire(&1).await.expect("an expiry");
    assert_eq!(backend.records(), 0);
    a.get(1).await.expect("a load");
    assert!(a.peek(&1).is_some());
    backend.check(&[&a]).await;
}
