//! Answers past the TTL: while a new value is loaded, and when it cannot be.

use std::time::Duration;

use tidegate::{Error, Freshness, Source};
use tokio::time::{Instant, sleep};

use crate::support::eventually;
use crate::support::ground::{Ground, on_both_tiers};
use crate::support::life::{LONG, TTL, aged, falls_back, fresh, has_fresh, old, revalidates, seen};
use crate::support::loader::{Behaviour, Db};
use crate::support::node::{answer, value};

on_both_tiers! {
    everyone_is_answered_at_once_while_one_process_loads
    a_process_without_the_entry_answers_what_the_shared_tier_has
    an_entry_is_not_answered_after_its_window_while_it_is_loaded
    what_the_source_has_deleted_is_gone_after_the_refresh
    an_absence_is_never_answered_past_its_ttl
    a_hung_refresh_does_not_keep_the_old_value_for_ever
    a_failed_load_is_answered_with_the_old_value
    a_panic_and_a_timeout_are_answered_with_the_old_value
    whoever_waits_for_a_load_elsewhere_that_fails_has_the_old_value_at_once
    after_its_window_the_error_is_answered
    both_windows_begin_where_the_ttl_ends
    after_an_expiry_every_process_has_the_old_value_for_the_case_of_an_error
    after_an_expiry_nothing_old_is_answered_while_it_is_loaded
    after_an_invalidation_no_process_has_anything_to_fall_back_on
    past_the_soft_timeout_the_old_value_is_answered_and_the_late_one_stored
    without_an_old_value_the_soft_timeout_ends_no_wait
}

const SOON: Duration = Duration::from_millis(100);

async fn everyone_is_answered_at_once_while_one_process_loads(ground: Ground) {
    let db = Db::default();
    let a = ground.node_with(&db, revalidates).await;
    let b = ground.node_with(&db, revalidates).await;
    let c = ground.node_with(&db, revalidates).await;
    let nodes = [&a, &b, &c];
    aged(&db, &nodes, 1).await;
    db.write(1, "new");
    let gate = db.gate();
    for node in nodes {
        let before = node.stats();
        for caller in node.callers(50, 1).await {
            assert_eq!(value(answer(caller).await), "old");
        }
        let since = node.stats().since(&before);
        assert_eq!(
            (since.l1_hits, since.stale_hits, since.refreshes),
            (50, 50, 1)
        );
    }
    gate.reached().await;
    eventually("the others leave it to the one", async || {
        nodes
            .iter()
            .map(|node| node.stats().lease_waits)
            .sum::<u64>()
            == 2
    })
    .await;
    for node in nodes {
        assert_eq!(seen(node.get_entry(1).await), old(Freshness::Stale));
    }
    assert_eq!(db.loads(), 1);
    gate.open();
    for node in nodes {
        eventually("it has the new value", async || has_fresh(node, 1, "new")).await;
        assert_eq!(seen(node.get_entry(1).await), fresh("new"));
    }
    assert_eq!(db.loads(), 1);
    ground.check(&nodes).await;
}

async fn a_process_without_the_entry_answers_what_the_shared_tier_has(ground: Ground) {
    let db = Db::default();
    let a = ground.node_with(&db, revalidates).await;
    aged(&db, &[&a], 1).await;
    db.write(1, "new");
    let gate = db.gate();
    let cold = ground.node_with(&db, revalidates).await;
    let callers = cold.callers(10, 1).await;
    for caller in callers {
        assert_eq!(value(answer(caller).await), "old");
    }
    gate.reached().await;
    let entry = cold
        .get_entry(1)
        .await
        .expect("a look-up")
        .expect("an entry");
    assert_eq!(
        (entry.source(), entry.freshness()),
        (Source::L1, Freshness::Stale)
    );
    assert!(entry.age() >= TTL, "{:?}", entry.age());
    gate.open();
    eventually("it has the new value", async || has_fresh(&cold, 1, "new")).await;
    assert_eq!((db.loads(), cold.stats().stale_hits), (1, 11));
    ground.check(&[&a, &cold]).await;
}

async fn an_entry_is_not_answered_after_its_window_while_it_is_loaded(ground: Ground) {
    let db = Db::default();
    let a = ground
        .node_with(&db, |builder| {
            revalidates(builder).stale_while_revalidate(SOON)
        })
        .await;
    aged(&db, &[&a], 1).await;
    sleep(SOON).await;
    db.write(1, "new");
    let gate = db.gate();
    let caller = a.caller(1).await;
    gate.reached().await;
    assert!(!caller.is_finished() && a.peek(&1).is_none());
    gate.open();
    assert_eq!(value(answer(caller).await), "new");
    assert_eq!(a.stats().stale_hits, 0);
    ground.check(&[&a]).await;
}

async fn what_the_source_has_deleted_is_gone_after_the_refresh(ground: Ground) {
    let db = Db::default();
    let a = ground.node_with(&db, revalidates).await;
    let b = ground.node_with(&db, revalidates).await;
    aged(&db, &[&a, &b], 1).await;
    db.delete(1);
    for node in [&a, &b] {
        eventually("it is gone", async || {
            node.get(1).await.expect("a look-up").is_none()
        })
        .await;
    }
    assert_eq!(db.loads(), 1);
    ground.check(&[&a, &b]).await;
}

async fn an_absence_is_never_answered_past_its_ttl(ground: Ground) {
    let db = Db::default();
    let settings = |builder| falls_back(revalidates(builder)).error_backoff(Duration::ZERO);
    let a = ground
        .node_with(&db, |builder| settings(builder).negative_ttl(TTL))
        .await;
    let b = ground
        .node_with(&db, |builder| settings(builder).negative_ttl(TTL))
        .await;
    db.delete(1);
    for node in [&a, &b] {
        assert_eq!(node.get(1).await.expect("a look-up"), None);
    }
    sleep(TTL + SOON).await;
    db.behave(Behaviour::fails());
    for node in [&a, &b] {
        assert!(matches!(node.get(1).await, Err(Error::Load(_))));
    }
    db.behave(Behaviour::default());
    db.write(1, "here now");
    let gate = db.gate();
    let caller = b.caller(1).await;
    gate.reached().await;
    assert!(!caller.is_finished());
    gate.open();
    assert_eq!(value(answer(caller).await), "here now");
    assert!(db.reloads().is_empty(), "there is nothing to compare with");
    ground.check(&[&a, &b]).await;
}

async fn a_hung_refresh_does_not_keep_the_old_value_for_ever(ground: Ground) {
    let db = Db::default();
    let settings = |builder| {
        revalidates(builder)
            .load_timeout(Duration::from_millis(300))
            .error_backoff(SOON)
    };
    let a = ground.node_with(&db, settings).await;
    let b = ground.node_with(&db, settings).await;
    aged(&db, &[&a, &b], 1).await;
    db.write(1, "new");
    db.behave(Behaviour {
        hangs: true,
        ..Behaviour::default()
    });
    let began = Instant::now();
    for node in [&a, &b] {
        assert_eq!(seen(node.get_entry(1).await), old(Freshness::Stale));
    }
    eventually("one loads and hangs", async || db.loads() == 1).await;
    db.behave(Behaviour::default());
    for node in [&a, &b] {
        eventually("it has the new value", async || {
            seen(node.get_entry(1).await) == fresh("new")
        })
        .await;
    }
    let begun = db.begun();
    assert_eq!(begun.len(), 2);
    assert!(
        begun[1] - began >= Duration::from_millis(300) + SOON,
        "after the timeout and the hold"
    );
    let failures = a.stats().load_failures + b.stats().load_failures;
    assert_eq!(failures, 1);
    ground.check(&[&a, &b]).await;
}

async fn a_failed_load_is_answered_with_the_old_value(ground: Ground) {
    let db = Db::default();
    let a = ground.node_with(&db, falls_back).await;
    let b = ground.node_with(&db, falls_back).await;
    aged(&db, &[&a, &b], 1).await;
    let cold = ground.node_with(&db, falls_back).await;
    db.behave(Behaviour::fails());
    for node in [&a, &b, &cold] {
        assert!(node.peek(&1).is_none(), "not to be had without an error");
        for _ in 0..10 {
            assert_eq!(seen(node.get_entry(1).await), old(Freshness::StaleOnError));
        }
        assert_eq!(node.stats().stale_hits, 10);
    }
    assert_eq!(db.loads(), 1, "the others do not take turns");
    ground.check(&[&a, &b, &cold]).await;
}

async fn a_panic_and_a_timeout_are_answered_with_the_old_value(ground: Ground) {
    let db = Db::default();
    let a = ground
        .node_with(&db, |builder| {
            falls_back(builder)
                .load_timeout(Duration::from_millis(300))
                .error_backoff(Duration::ZERO)
        })
        .await;
    aged(&db, &[&a], 1).await;
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
        assert_eq!(seen(a.get_entry(1).await), old(Freshness::StaleOnError));
    }
    db.behave(Behaviour::default());
    db.write(1, "new");
    assert_eq!(seen(a.get_entry(1).await), fresh("new"));
    assert_eq!((db.loads(), a.stats().load_failures), (3, 2));
    ground.check(&[&a]).await;
}

async fn whoever_waits_for_a_load_elsewhere_that_fails_has_the_old_value_at_once(ground: Ground) {
    let db = Db::default();
    let a = ground.node_with(&db, falls_back).await;
    let b = ground.node_with(&db, falls_back).await;
    aged(&db, &[&a, &b], 1).await;
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
    ground.check(&[&a, &b]).await;
}

async fn after_its_window_the_error_is_answered(ground: Ground) {
    let db = Db::default();
    let settings = |builder| falls_back(builder).stale_if_error(SOON);
    let a = ground.node_with(&db, settings).await;
    let b = ground.node_with(&db, settings).await;
    aged(&db, &[&a, &b], 1).await;
    sleep(SOON).await;
    db.behave(Behaviour::fails());
    assert!(matches!(a.get(1).await, Err(Error::Load(_))));
    assert!(matches!(b.get(1).await, Err(Error::LoadFailedElsewhere)));
    assert_eq!(db.loads(), 1);
    ground.check(&[&a, &b]).await;
}

async fn both_windows_begin_where_the_ttl_ends(ground: Ground) {
    let db = Db::default();
    let windows = |while_revalidate, if_error| {
        ground.node_with(&db, move |builder| {
            builder
                .refresh_ahead(0.0)
                .stale_while_revalidate(while_revalidate)
                .stale_if_error(if_error)
                .error_backoff(Duration::ZERO)
        })
    };
    let short = TTL / 2;
    let (first, second) = (windows(short, LONG).await, windows(LONG, short).await);
    let both = windows(short, short).await;
    for (node, key) in [(&first, 1), (&second, 2), (&both, 3)] {
        aged(&db, &[node], key).await;
        sleep(short).await;
        db.behave(Behaviour::fails());
        match key {
            1 => assert_eq!(seen(node.get_entry(1).await), old(Freshness::StaleOnError)),
            2 => assert_eq!(seen(node.get_entry(2).await), old(Freshness::Stale)),
            _ => assert!(
                node.get(key).await.is_err(),
                "one does not follow the other"
            ),
        }
    }
    ground.check(&[&first, &second, &both]).await;
}

async fn after_an_expiry_every_process_has_the_old_value_for_the_case_of_an_error(ground: Ground) {
    let db = Db::default();
    db.write(1, "old");
    let a = ground.node_with(&db, falls_back).await;
    let b = ground.node_with(&db, falls_back).await;
    for node in [&a, &b] {
        node.get(1).await.expect("a look-up");
    }
    let cold = ground.node_with(&db, falls_back).await;
    b.expire(&1).await.expect("an expiry");
    eventually("the other process has heard", async || a.peek(&1).is_none()).await;
    db.behave(Behaviour::fails());
    for node in [&a, &b, &cold] {
        assert_eq!(seen(node.get_entry(1).await), old(Freshness::StaleOnError));
    }
    assert_eq!(db.loads(), 2);
    let told = db.reloads();
    assert_eq!((told.len(), told[0].previous.as_str()), (1, "old"));
    assert_eq!(told[0].freshness, Freshness::Stale);
    ground.check(&[&a, &b, &cold]).await;
}

async fn after_an_expiry_nothing_old_is_answered_while_it_is_loaded(ground: Ground) {
    let db = Db::default();
    let settings = |builder| falls_back(revalidates(builder));
    let a = ground.node_with(&db, settings).await;
    let b = ground.node_with(&db, settings).await;
    db.write(1, "old");
    for node in [&a, &b] {
        node.get(1).await.expect("a look-up");
    }
    a.expire(&1).await.expect("an expiry");
    eventually("the other process has heard", async || b.peek(&1).is_none()).await;
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
    ground.check(&[&a, &b]).await;
}

async fn after_an_invalidation_no_process_has_anything_to_fall_back_on(ground: Ground) {
    let db = Db::default();
    let settings = |builder| falls_back(revalidates(builder)).error_backoff(Duration::ZERO);
    let a = ground.node_with(&db, settings).await;
    let b = ground.node_with(&db, settings).await;
    aged(&db, &[&a, &b], 1).await;
    b.invalidate(&1).await.expect("an invalidation");
    eventually("the other process has heard", async || a.peek(&1).is_none()).await;
    db.behave(Behaviour::fails());
    let cold = ground.node_with(&db, settings).await;
    for node in [&a, &b, &cold] {
        assert!(matches!(node.get(1).await, Err(Error::Load(_))));
    }
    assert!(db.reloads().is_empty());
    ground.check(&[&a, &b, &cold]).await;
}

async fn past_the_soft_timeout_the_old_value_is_answered_and_the_late_one_stored(ground: Ground) {
    let db = Db::default();
    let settings = |builder| falls_back(builder).load_soft_timeout(SOON);
    let a = ground.node_with(&db, settings).await;
    let b = ground.node_with(&db, settings).await;
    aged(&db, &[&a, &b], 1).await;
    let cold = ground.node_with(&db, settings).await;
    db.write(1, "new");
    let gate = db.gate();
    for node in [&a, &b, &cold] {
        let asked = Instant::now();
        assert_eq!(seen(node.get_entry(1).await), old(Freshness::Stale));
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
    ground.check(&[&a, &b, &cold]).await;
}

async fn without_an_old_value_the_soft_timeout_ends_no_wait(ground: Ground) {
    let db = Db::default();
    let a = ground
        .node_with(&db, |builder| falls_back(builder).load_soft_timeout(SOON))
        .await;
    let gate = db.gate();
    let caller = a.caller(1).await;
    gate.reached().await;
    sleep(SOON * 3).await;
    assert!(!caller.is_finished());
    gate.open();
    assert_eq!(value(answer(caller).await), "row 1");
    ground.check(&[&a]).await;
}
