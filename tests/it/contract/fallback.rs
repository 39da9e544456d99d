//! Stale values as the answer when a load fails or takes too long.

use std::time::Duration;

use tidegate::{Error, Freshness};
use tokio::time::{Instant, sleep};

use crate::support::aging::{
    fresh, has_fresh, make_stale, old, with_freshness, with_stale_if_error,
    with_stale_while_revalidate,
};
use crate::support::backend::{Backend, on_both_tiers};
use crate::support::eventually;
use crate::support::loader::{Behaviour, Db};
use crate::support::node::{answer, value};

on_both_tiers! {
    a_failed_load_is_answered_with_the_old_value
    a_panic_and_a_timeout_are_answered_with_the_old_value
    waiters_for_a_load_elsewhere_that_fails_get_the_old_value_at_once
    after_its_window_the_error_is_answered
    after_an_expiry_every_process_has_the_old_value_for_the_case_of_an_error
    after_an_expiry_nothing_old_is_answered_while_it_is_loaded
    after_an_invalidation_no_process_has_anything_to_fall_back_on
    past_the_soft_timeout_the_old_value_is_answered_and_the_late_one_stored
    without_an_old_value_the_soft_timeout_ends_no_wait
    a_process_that_keeps_nothing_itself_has_what_the_shared_tier_has
}

const SOON: Duration = Duration::from_millis(100);

async fn a_failed_load_is_answered_with_the_old_value(backend: Backend) {
    let db = Db::default();
    let a = backend.node_with(&db, with_stale_if_error).await;
    let b = backend.node_with(&db, with_stale_if_error).await;
    make_stale(&db, &[&a, &b], 1).await;
    let cold = backend.node_with(&db, with_stale_if_error).await;
    db.behave(Behaviour::fails());
    for node in [&a, &b, &cold] {
        assert!(node.peek(&1).is_none(), "not to be had without an error");
        for _ in 0..10 {
            assert_eq!(
                with_freshness(node.get_entry(1).await),
                old(Freshness::StaleOnError)
            );
        }
        assert_eq!(node.stats().stale_hits, 10);
    }
    assert_eq!(db.loads(), 1, "the others do not take turns");
    backend.check(&[&a, &b, &cold]).await;
}

async fn a_panic_and_a_timeout_are_answered_with_the_old_value(backend: Backend) {
    let db = Db::default();
    let a = backend
        .node_with(&db, |builder| {
            with_stale_if_error(builder)
                .load_timeout(Duration::from_millis(300))
                .error_backoff(Duration::ZERO)
        })
        .await;
    make_stale(&db, &[&a], 1).await;
    let panics = Behaviour {
        panics: true,
        ..Behaviour::default()
    };
    let hangs = Behaviour {
        hangs: true,
        ..Behaviour::default()
    };
    for behaviour in [panics, hangs] {
        db.behave(behaviour);
        assert_eq!(
            with_freshness(a.get_entry(1).await),
            old(Freshness::StaleOnError)
        );
    }
    db.behave(Behaviour::default());
    db.write(1, "new");
    assert_eq!(with_freshness(a.get_entry(1).await), fresh("new"));
    assert_eq!((db.loads(), a.stats().load_failures), (3, 2));
    backend.check(&[&a]).await;
}

async fn waiters_for_a_load_elsewhere_that_fails_get_the_old_value_at_once(backend: Backend) {
    let db = Db::default();
    let a = backend.node_with(&db, with_stale_if_error).await;
    let b = backend.node_with(&db, with_stale_if_error).await;
    make_stale(&db, &[&a, &b], 1).await;
    db.behave(Behaviour::fails());
    let gate = db.gate();
    let mut callers = a.callers(20, 1).await;
    gate.reached().await;
    callers.extend(b.callers(20, 1).await);
    eventually("the other process waits", async || {
        b.stats().lease_waits == 1
    })
    .await;
    assert!(callers.iter().all(|caller| !caller.is_finished()));
    gate.open();
    for caller in callers {
        assert_eq!(value(answer(caller).await), "old");
    }
    assert_eq!(db.loads(), 1);
    backend.check(&[&a, &b]).await;
}

async fn after_its_window_the_error_is_answered(backend: Backend) {
    let db = Db::default();
    let settings = |builder| with_stale_if_error(builder).stale_if_error(SOON);
    let a = backend.node_with(&db, settings).await;
    let b = backend.node_with(&db, settings).await;
    make_stale(&db, &[&a, &b], 1).await;
    sleep(SOON).await;
    db.behave(Behaviour::fails());
    assert!(matches!(a.get(1).await, Err(Error::Load(_))));
    assert!(matches!(b.get(1).await, Err(Error::LoadFailedElsewhere)));
    assert_eq!(db.loads(), 1);
    backend.check(&[&a, &b]).await;
}

async fn after_an_expiry_every_process_has_the_old_value_for_the_case_of_an_error(
    backend: Backend,
) {
    let db = Db::default();
    db.write(1, "old");
    let a = backend.node_with(&db, with_stale_if_error).await;
    let b = backend.node_with(&db, with_stale_if_error).await;
    for node in [&a, &b] {
        node.get(1).await.expect("a look-up");
    }
    let cold = backend.node_with(&db, with_stale_if_error).await;
    b.expire(&1).await.expect("an expiry");
    eventually("the change has arrived", async || a.peek(&1).is_none()).await;
    db.behave(Behaviour::fails());
    for node in [&a, &b, &cold] {
        assert_eq!(
            with_freshness(node.get_entry(1).await),
            old(Freshness::StaleOnError)
        );
    }
    assert_eq!(db.loads(), 2);
    let reloads = db.reloads();
    assert_eq!((reloads.len(), reloads[0].previous.as_str()), (1, "old"));
    assert_eq!(reloads[0].freshness, Freshness::Stale);
    backend.check(&[&a, &b, &cold]).await;
}

async fn after_an_expiry_nothing_old_is_answered_while_it_is_loaded(backend: Backend) {
    let db = Db::default();
    let settings = |builder| with_stale_if_error(with_stale_while_revalidate(builder));
    let a = backend.node_with(&db, settings).await;
    let b = backend.node_with(&db, settings).await;
    db.write(1, "old");
    for node in [&a, &b] {
        node.get(1).await.expect("a look-up");
    }
    a.expire(&1).await.expect("an expiry");
    eventually("the change has arrived", async || b.peek(&1).is_none()).await;
    db.write(1, "new");
    let gate = db.gate();
    let mut callers = a.callers(5, 1).await;
    gate.reached().await;
    callers.extend(b.callers(5, 1).await);
    eventually("the other process waits", async || {
        b.stats().lease_waits == 1
    })
    .await;
    assert!(callers.iter().all(|caller| !caller.is_finished()));
    gate.open();
    for caller in callers {
        assert_eq!(value(answer(caller).await), "new");
    }
    assert_eq!(db.loads(), 2);
    backend.check(&[&a, &b]).await;
}

async fn after_an_invalidation_no_process_has_anything_to_fall_back_on(backend: Backend) {
    let db = Db::default();
    let settings = |builder| {
        with_stale_if_error(with_stale_while_revalidate(builder)).error_backoff(Duration::ZERO)
    };
    let a = backend.node_with(&db, settings).await;
    let b = backend.node_with(&db, settings).await;
    make_stale(&db, &[&a, &b], 1).await;
    b.invalidate(&1).await.expect("an invalidation");
    eventually("the change has arrived", async || a.peek(&1).is_none()).await;
    db.behave(Behaviour::fails());
    let cold = backend.node_with(&db, settings).await;
    for node in [&a, &b, &cold] {
        assert!(matches!(node.get(1).await, Err(Error::Load(_))));
    }
    assert!(db.reloads().is_empty());
    backend.check(&[&a, &b, &cold]).await;
}

async fn past_the_soft_timeout_the_old_value_is_answered_and_the_late_one_stored(backend: Backend) {
    let db = Db::default();
    let settings = |builder| with_stale_if_error(builder).load_soft_timeout(SOON);
    let a = backend.node_with(&db, settings).await;
    let b = backend.node_with(&db, settings).await;
    make_stale(&db, &[&a, &b], 1).await;
    let cold = backend.node_with(&db, settings).await;
    db.write(1, "new");
    let gate = db.gate();
    for node in [&a, &b, &cold] {
        let asked = Instant::now();
        assert_eq!(
            with_freshness(node.get_entry(1).await),
            old(Freshness::Stale)
        );
        assert!(asked.elapsed() >= SOON, "{:?}", asked.elapsed());
    }
    gate.reached().await;
    gate.open();
    for node in [&a, &b, &cold] {
        eventually("the late value is stored", async || {
            has_fresh(node, 1, "new")
        })
        .await;
    }
    assert_eq!(db.loads(), 1);
    backend.check(&[&a, &b, &cold]).await;
}

async fn without_an_old_value_the_soft_timeout_ends_no_wait(backend: Backend) {
    let db = Db::default();
    let a = backend
        .node_with(&db, |builder| {
            with_stale_if_error(builder).load_soft_timeout(SOON)
        })
        .await;
    let gate = db.gate();
    let caller = a.caller(1).await;
    gate.reached().await;
    sleep(SOON * 3).await;
    assert!(!caller.is_finished());
    gate.open();
    assert_eq!(value(answer(caller).await), "row 1");
    backend.check(&[&a]).await;
}

async fn a_process_that_keeps_nothing_itself_has_what_the_shared_tier_has(backend: Backend) {
    let db = Db::default();
    let a = backend.node_with(&db, with_stale_if_error).await;
    let b = backend.node_with(&db, |builder| with_stale_if_error(builder).l1_capacity(0));
    let (b, c) = (
        b.await,
        backend
            .node_with(&db, |builder| {
                with_stale_while_revalidate(builder).l1_capacity(0)
            })
            .await,
    );
    make_stale(&db, &[&a], 1).await;
    db.write(1, "new");
    db.behave(Behaviour::fails());
    for _ in 0..5 {
        assert_eq!(
            with_freshness(b.get_entry(1).await),
            old(Freshness::StaleOnError)
        );
        assert_eq!(with_freshness(c.get_entry(1).await), old(Freshness::Stale));
    }
    eventually("nothing is under way", async || {
        format!("{:?}", *c).contains("flights: 0,")
    })
    .await;
    assert_eq!(db.loads(), 1);
    db.behave(Behaviour::default());
    a.expire(&1).await.expect("an expiry");
    eventually("the change has arrived", async || {
        with_freshness(b.get_entry(1).await) == fresh("new")
    })
    .await;
    assert_eq!(with_freshness(c.get_entry(1).await), fresh("new"));
    assert_eq!(db.loads(), 2);
    backend.check(&[&a, &b, &c]).await;
}
