//! `warm`: loads of many keys ahead of time.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use tidegate::{Batching, CacheBuilder, WarmProgress};
use tokio::time::Instant;

use crate::support::backend::{Backend, on_both_tiers};
use crate::support::eventually;
use crate::support::loader::{Behaviour, Db};
use crate::support::node::{Node, answer, begin};

on_both_tiers! {
    what_neither_tier_has_is_loaded_and_the_rest_is_not
    processes_take_turns_and_each_key_is_loaded_once
    a_process_that_gives_up_leaves_its_turn_to_the_next
    no_more_is_loaded_in_a_second_than_is_asked_for
    keys_that_fail_are_counted_and_the_rest_is_loaded
}

fn batched(builder: CacheBuilder<Db>) -> CacheBuilder<Db> {
    builder.batched(Batching::new())
}

async fn assert_idle(node: &Node) {
    eventually("nothing is left behind", async || {
        let state = format!("{node:?}", node = **node);
        state.contains("flights: 0,") && state.contains("tasks: 0,")
    })
    .await;
}

async fn what_neither_tier_has_is_loaded_and_the_rest_is_not(backend: Backend) {
    let db = Db::default();
    let (a, b) = (
        backend.node_with(&db, batched).await,
        backend.node(&db).await,
    );
    a.get(1).await.expect("a load");
    b.get(2).await.expect("a load");
    db.delete(3);
    db.reset_counts();
    let reports = Arc::new(Mutex::new(Vec::new()));
    let report = Arc::clone(&reports);
    let warmed = a
        .warm(0..2_000)
        .on_progress(move |progress| report.lock().expect("no panic").push(*progress))
        .await;
    let counts = |of: &WarmProgress| (of.done, of.total, of.cached, of.loaded, of.failed);
    assert_eq!(counts(&warmed), (2_000, Some(2_000), 2, 1_998, 0));
    assert!(!warmed.waiting);
    let reports = reports.lock().expect("no panic").clone();
    assert_eq!(reports.len(), 2);
    assert_eq!(counts(&reports[0]), (1_000, Some(2_000), 2, 998, 0));
    assert_eq!(reports[1], warmed);
    assert_eq!((db.loads(), db.batches().len()), (1_998, 2));
    assert!(a.peek(&1_999).is_some());
    // Another process finds all keys in the shared tier.
    let warmed = b.warm(0..2_000).await;
    assert_eq!((warmed.cached, db.loads()), (2_000, 1_998));
    assert_idle(&a).await;
}

async fn processes_take_turns_and_each_key_is_loaded_once(backend: Backend) {
    let db = Db::default();
    let (a, b) = (
        backend.node_with(&db, batched).await,
        backend.node_with(&db, batched).await,
    );
    let gate = db.gate();
    let first = {
        let a = a.clone();
        begin(async move { a.warm(0..10).await }).await
    };
    gate.reached().await;
    let waits = Arc::new(Mutex::new(false));
    let second = {
        let (b, waits) = (b.clone(), Arc::clone(&waits));
        let report =
            move |progress: &WarmProgress| *waits.lock().expect("no panic") |= progress.waiting;
        begin(async move { b.warm(0..10).on_progress(report).await }).await
    };
    eventually("the second waits for its turn", async || {
        *waits.lock().expect("no panic")
    })
    .await;
    assert_eq!((db.loads(), b.stats().lookups()), (10, 0));
    gate.open();
    assert_eq!(answer(first).await.loaded, 10);
    let second = answer(second).await;
    assert_eq!(
        (second.cached, second.loaded, second.waiting),
        (10, 0, false)
    );
    assert_eq!(db.loads(), 10);
    for node in [&a, &b] {
        assert_idle(node).await;
    }
    assert_eq!(backend.records(), 10, "no turn is left");
}

async fn a_process_that_gives_up_leaves_its_turn_to_the_next(backend: Backend) {
    let db = Db::default();
    let (a, b) = (backend.node(&db).await, backend.node(&db).await);
    let gate = db.gate();
    let first = {
        let a = a.clone();
        begin(async move { a.warm([1]).await }).await
    };
    gate.reached().await;
    first.abort();
    first.await.expect_err("it was dropped");
    // The lease of the turn lasts a minute. A second process that waited for its end would fail
    // below.
    let began = Instant::now();
    let second = b.warm([2]).await;
    assert_eq!(second.loaded, 1);
    assert!(began.elapsed() < Duration::from_secs(30));
    gate.open();
    for node in [&a, &b] {
        assert_idle(node).await;
    }
}

async fn no_more_is_loaded_in_a_second_than_is_asked_for(backend: Backend) {
    let db = Db::default();
    let a = backend.node_with(&db, batched).await;
    let began = Instant::now();
    let warmed = a.warm(0..60).loads_per_second(100).await;
    assert_eq!((warmed.done, warmed.loaded), (60, 60));
    assert!(
        began.elapsed() >= Duration::from_millis(600),
        "{:?}",
        began.elapsed()
    );
    assert!(db.batches().iter().all(|batch| batch.len() <= 10));
    // Keys that are cached already do not count towards the rate.
    let began = Instant::now();
    a.warm(0..60).loads_per_second(1).await;
    assert!(began.elapsed() < Duration::from_secs(30));
}

async fn keys_that_fail_are_counted_and_the_rest_is_loaded(backend: Backend) {
    let db = Db::default();
    let a = backend.node(&db).await;
    db.behave(Behaviour::fails());
    let warmed = a.warm([1, 2]).await;
    assert_eq!((warmed.done, warmed.failed), (2, 2));
    db.behave(Behaviour::default());
    let warmed = a.warm([3]).await;
    assert_eq!((warmed.loaded, warmed.failed), (1, 0));
}
