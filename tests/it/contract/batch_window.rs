//! Single look-ups that share one batch load.

use std::time::Duration;

use tidegate::{Batching, CacheBuilder, Source};

use crate::support::aging::{LONG, make_stale, with_stale_while_revalidate};
use crate::support::backend::{Backend, on_both_tiers};
use crate::support::eventually;
use crate::support::loader::{Behaviour, Db};
use crate::support::node::{Node, answer, value};

on_both_tiers! {
    look_ups_that_come_together_are_one_load
    a_full_batch_does_not_wait
    a_lone_look_up_is_loaded_at_once_and_as_one
    a_lone_look_up_waits_for_others_with_wait_when_idle
    look_ups_during_a_batch_load_are_the_next_batch
    a_window_that_ends_begins_the_load_of_those_that_wait
    look_ups_that_need_no_load_delay_no_batch
    a_window_of_zero_batches_no_single_look_ups
    refreshes_are_loaded_together
    look_ups_of_one_key_are_one_load_within_a_batch
    callers_that_go_away_delay_no_batch
}

/// A window of a second, which is longer than any test here: a test that ends earlier did not wait
/// for it.
fn with_long_window(batching: Batching) -> impl Fn(CacheBuilder<Db>) -> CacheBuilder<Db> {
    let batching = batching.window(Duration::from_secs(1));
    move |builder| {
        builder
            .batched(batching.clone())
            .lease_ttl(LONG)
            .l1_capacity(1_000)
    }
}

async fn begin_look_ups(
    node: &Node,
    keys: std::ops::Range<u64>,
) -> Vec<tokio::task::JoinHandle<crate::support::node::GetResult>> {
    let mut callers = Vec::new();
    for key in keys {
        callers.push(node.caller(key).await);
    }
    callers
}

async fn look_ups_that_come_together_are_one_load(backend: Backend) {
    let db = Db::default();
    let waits = Batching::new()
        .window(Duration::from_secs(1))
        .wait_when_idle(true);
    let a = backend
        .node_with(&db, |builder| builder.batched(waits))
        .await;
    let callers = begin_look_ups(&a, 0..20).await;
    for (key, caller) in callers.into_iter().enumerate() {
        assert_eq!(value(answer(caller).await), format!("row {key}"));
    }
    let batches = db.batches();
    assert_eq!((batches.len(), db.loads()), (1, 20), "{batches:?}");
    backend.check(&[&a]).await;
}

async fn a_full_batch_does_not_wait(backend: Backend) {
    let db = Db::default();
    let waits = Batching::new().max_size(5).wait_when_idle(true);
    let a = backend.node_with(&db, with_long_window(waits)).await;
    let began = tokio::time::Instant::now();
    let callers = begin_look_ups(&a, 0..10).await;
    for caller in callers {
        answer(caller).await.expect("a load");
    }
    let sizes: Vec<usize> = db.batches().iter().map(Vec::len).collect();
    assert_eq!(sizes, [5, 5]);
    assert!(
        began.elapsed() < Duration::from_secs(1),
        "no caller has waited for the window"
    );
    backend.check(&[&a]).await;
}

async fn a_lone_look_up_is_loaded_at_once_and_as_one(backend: Backend) {
    let db = Db::default();
    let a = backend
        .node_with(&db, with_long_window(Batching::new()))
        .await;
    let began = tokio::time::Instant::now();
    for key in 0..3 {
        assert_eq!(value(a.get(key).await), format!("row {key}"));
    }
    assert!(began.elapsed() < Duration::from_secs(1));
    assert_eq!(
        (db.loads(), db.batches().len()),
        (3, 0),
        "`load` does for one"
    );
    assert_eq!((a.stats().loads, a.stats().batch_loads), (3, 0));
    backend.check(&[&a]).await;
}

async fn a_lone_look_up_waits_for_others_with_wait_when_idle(backend: Backend) {
    let db = Db::default();
    let a = backend
        .node_with(&db, with_long_window(Batching::new().wait_when_idle(true)))
        .await;
    let began = tokio::time::Instant::now();
    assert_eq!(value(a.get(1).await), "row 1");
    assert!(
        began.elapsed() >= Duration::from_secs(1),
        "as long as the window"
    );
    assert_eq!(db.loads(), 1);
    backend.check(&[&a]).await;
}

async fn look_ups_during_a_batch_load_are_the_next_batch(backend: Backend) {
    let db = Db::default();
    let a = backend
        .node_with(&db, with_long_window(Batching::new()))
        .await;
    let (gate, next) = (db.gate(), db.gate());
    let first = a.caller(0).await;
    gate.reached().await;
    let callers = begin_look_ups(&a, 1..6).await;
    // Time for look-ups that must wait to begin a load by mistake.
    tokio::time::sleep(Duration::from_millis(20)).await;
    assert_eq!(db.loads(), 1);
    gate.open();
    next.reached().await;
    next.open();
    answer(first).await.expect("a load");
    for caller in callers {
        answer(caller).await.expect("a load");
    }
    let batches = db.batches();
    assert_eq!((batches.len(), db.loads()), (1, 6), "{batches:?}");
    backend.check(&[&a]).await;
}

async fn a_window_that_ends_begins_the_load_of_those_that_wait(backend: Backend) {
    let db = Db::default();
    let short = Batching::new().window(Duration::from_millis(20));
    let a = backend
        .node_with(&db, |builder| builder.batched(short))
        .await;
    let gate = db.gate();
    let first = a.caller(0).await;
    gate.reached().await;
    // The first load still runs when these three are answered.
    for caller in begin_look_ups(&a, 1..4).await {
        answer(caller).await.expect("a load");
    }
    gate.open();
    answer(first).await.expect("a load");
    assert_eq!(db.loads(), 4);
    backend.check(&[&a]).await;
}

async fn look_ups_that_need_no_load_delay_no_batch(backend: Backend) {
    let db = Db::default();
    let (a, b) = (
        backend
            .node_with(&db, with_long_window(Batching::new()))
            .await,
        backend.node(&db).await,
    );
    for key in 0..5 {
        b.get(key).await.expect("a load");
    }
    db.reset_counts();
    let began = tokio::time::Instant::now();
    let callers = begin_look_ups(&a, 0..7).await;
    for caller in callers {
        answer(caller).await.expect("a look-up");
    }
    assert!(began.elapsed() < Duration::from_secs(1));
    assert_eq!((db.loads(), a.stats().l2_hits), (2, 5));
    backend.check(&[&a, &b]).await;
}

async fn a_window_of_zero_batches_no_single_look_ups(backend: Backend) {
    let db = Db::default();
    let alone = Batching::new().window(Duration::ZERO);
    let a = backend
        .node_with(&db, |builder| builder.batched(alone))
        .await;
    let gates = [db.gate(), db.gate()];
    let callers = begin_look_ups(&a, 0..2).await;
    for gate in &gates {
        gate.reached().await;
        gate.open();
    }
    for caller in callers {
        answer(caller).await.expect("a load");
    }
    assert!(db.batches().is_empty());
    a.get_many(&[5, 6]).await;
    assert_eq!(db.batches(), [[5, 6]]);
    backend.check(&[&a]).await;
}

async fn refreshes_are_loaded_together(backend: Backend) {
    let db = Db::default();
    let waits = Batching::new().wait_when_idle(true);
    let settings = |builder: CacheBuilder<Db>| with_stale_while_revalidate(builder).batched(waits);
    let a = backend.node_with(&db, settings).await;
    for key in [1, 2] {
        make_stale(&db, &[&a], key).await;
        db.write(key, "new");
    }
    for key in [1, 2] {
        let entry = a.get_entry(key).await.expect("a look-up");
        assert_eq!(entry.expect("an entry").source(), Source::L1);
    }
    eventually("both are new", async || {
        [1, 2].iter().all(|key| {
            a.peek(key)
                .is_some_and(|entry| entry.value().as_str() == "new")
        })
    })
    .await;
    assert_eq!(db.loads(), 2);
    assert!(db.batches().len() <= 1, "{:?}", db.batches());
    backend.check(&[&a]).await;
}

async fn look_ups_of_one_key_are_one_load_within_a_batch(backend: Backend) {
    let db = Db::default();
    let waits = Batching::new()
        .window(Duration::from_millis(50))
        .wait_when_idle(true);
    let a = backend
        .node_with(&db, |builder| builder.batched(waits))
        .await;
    let mut callers = a.callers(10, 1).await;
    callers.extend(a.callers(10, 2).await);
    for caller in callers {
        answer(caller).await.expect("a load");
    }
    assert_eq!(db.loads(), 2);
    assert_eq!(a.stats().coalesced, 18);
    backend.check(&[&a]).await;
}

async fn callers_that_go_away_delay_no_batch(backend: Backend) {
    let db = Db::default();
    let a = backend
        .node_with(&db, with_long_window(Batching::new()))
        .await;
    db.behave(Behaviour {
        takes: Duration::from_millis(1),
        ..Behaviour::default()
    });
    let callers = begin_look_ups(&a, 0..10).await;
    for caller in &callers {
        caller.abort();
    }
    for caller in callers {
        let _ = caller.await;
    }
    eventually("all are loaded", async || {
        (0..10).all(|key| a.peek(&key).is_some())
    })
    .await;
    assert_eq!(db.loads(), 10);
}
