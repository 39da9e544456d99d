//! Stale answers while a new value is loaded.

use std::time::Duration;

use tidegate::{Error, Freshness, Source};
use tokio::time::{Instant, sleep};

use crate::support::aging::{
    LONG, TTL, fresh, has_fresh, make_stale, old, with_freshness, with_stale_if_error,
    with_stale_while_revalidate,
};
use crate::support::backend::{Backend, on_both_tiers};
use crate::support::eventually;
use crate::support::loader::{Behaviour, Db};
use crate::support::node::{answer, value};

on_both_tiers! {
    all_callers_are_answered_at_once_while_one_process_loads
    a_process_without_the_entry_answers_what_the_shared_tier_has
    an_entry_is_not_answered_after_its_window_while_it_is_loaded
    what_the_source_has_deleted_is_gone_after_the_refresh
    an_absence_is_never_answered_past_its_ttl
    no_process_with_the_old_value_loads_by_itself_however_long_the_wait
    a_hung_refresh_does_not_keep_the_old_value_for_ever
    both_windows_begin_where_the_ttl_ends
}

const SOON: Duration = Duration::from_millis(100);

async fn all_callers_are_answered_at_once_while_one_process_loads(backend: Backend) {
    let db = Db::default();
    let a = backend.node_with(&db, with_stale_while_revalidate).await;
    let b = backend.node_with(&db, with_stale_while_revalidate).await;
    let c = backend.node_with(&db, with_stale_while_revalidate).await;
    let nodes = [&a, &b, &c];
    make_stale(&db, &nodes, 1).await;
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
        assert_eq!(
            with_freshness(node.get_entry(1).await),
            old(Freshness::Stale)
        );
    }
    assert_eq!(db.loads(), 1);
    gate.open();
    for node in nodes {
        eventually("it has the new value", async || has_fresh(node, 1, "new")).await;
        assert_eq!(with_freshness(node.get_entry(1).await), fresh("new"));
    }
    assert_eq!(db.loads(), 1);
    backend.check(&nodes).await;
}

async fn a_process_without_the_entry_answers_what_the_shared_tier_has(backend: Backend) {
    let db = Db::default();
    let a = backend.node_with(&db, with_stale_while_revalidate).await;
    make_stale(&db, &[&a], 1).await;
    db.write(1, "new");
    let gate = db.gate();
    let cold = backend.node_with(&db, with_stale_while_revalidate).await;
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
    backend.check(&[&a, &cold]).await;
}

async fn an_entry_is_not_answered_after_its_window_while_it_is_loaded(backend: Backend) {
    let db = Db::default();
    let a = backend
        .node_with(&db, |builder| {
            with_stale_while_revalidate(builder).stale_while_revalidate(SOON)
        })
        .await;
    make_stale(&db, &[&a], 1).await;
    sleep(SOON).await;
    db.write(1, "new");
    let gate = db.gate();
    let caller = a.caller(1).await;
    gate.reached().await;
    assert!(!caller.is_finished() && a.peek(&1).is_none());
    gate.open();
    assert_eq!(value(answer(caller).await), "new");
    assert_eq!(a.stats().stale_hits, 0);
    backend.check(&[&a]).await;
}

async fn what_the_source_has_deleted_is_gone_after_the_refresh(backend: Backend) {
    let db = Db::default();
    let a = backend.node_with(&db, with_stale_while_revalidate).await;
    let b = backend.node_with(&db, with_stale_while_revalidate).await;
    make_stale(&db, &[&a, &b], 1).await;
    db.delete(1);
    for node in [&a, &b] {
        eventually("it is gone", async || {
            node.get(1).await.expect("a look-up").is_none()
        })
        .await;
    }
    assert_eq!(db.loads(), 1);
    backend.check(&[&a, &b]).await;
}

async fn an_absence_is_never_answered_past_its_ttl(backend: Backend) {
    let db = Db::default();
    let settings = |builder| {
        with_stale_if_error(with_stale_while_revalidate(builder)).error_backoff(Duration::ZERO)
    };
    let a = backend
        .node_with(&db, |builder| settings(builder).negative_ttl(TTL))
        .await;
    let b = backend
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
    backend.check(&[&a, &b]).await;
}

async fn a_hung_refresh_does_not_keep_the_old_value_for_ever(backend: Backend) {
    let db = Db::default();
    let settings = |builder| {
        with_stale_while_revalidate(builder)
            .load_timeout(Duration::from_millis(300))
            .error_backoff(SOON)
    };
    let a = backend.node_with(&db, settings).await;
    let b = backend.node_with(&db, settings).await;
    make_stale(&db, &[&a, &b], 1).await;
    db.write(1, "new");
    db.behave(Behaviour {
        hangs: true,
        ..Behaviour::default()
    });
    let began = Instant::now();
    for node in [&a, &b] {
        assert_eq!(
            with_freshness(node.get_entry(1).await),
            old(Freshness::Stale)
        );
    }
    eventually("one loads and hangs", async || db.loads() == 1).await;
    db.behave(Behaviour::default());
    for node in [&a, &b] {
        eventually("it has the new value", async || {
            with_freshness(node.get_entry(1).await) == fresh("new")
        })
        .await;
    }
    let begun = db.load_starts();
    assert_eq!(begun.len(), 2);
    assert!(
        begun[1] - began >= Duration::from_millis(300) + SOON,
        "after the timeout and the hold"
    );
    let failures = a.stats().load_failures + b.stats().load_failures;
    assert_eq!(failures, 1);
    backend.check(&[&a, &b]).await;
}

async fn both_windows_begin_where_the_ttl_ends(backend: Backend) {
    let db = Db::default();
    let windows = |while_revalidate, if_error| {
        backend.node_with(&db, move |builder| {
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
        make_stale(&db, &[node], key).await;
        sleep(short).await;
        db.behave(Behaviour::fails());
        match key {
            1 => assert_eq!(
                with_freshness(node.get_entry(1).await),
                old(Freshness::StaleOnError)
            ),
            2 => assert_eq!(
                with_freshness(node.get_entry(2).await),
                old(Freshness::Stale)
            ),
            _ => assert!(
                node.get(key).await.is_err(),
                "one does not follow the other"
            ),
        }
    }
    backend.check(&[&first, &second, &both]).await;
}

async fn no_process_with_the_old_value_loads_by_itself_however_long_the_wait(backend: Backend) {
    let db = Db::default();
    let a = backend.node_with(&db, with_stale_while_revalidate).await;
    let b = backend
        .node_with(&db, |builder| {
            with_stale_while_revalidate(builder).lease_wait(SOON)
        })
        .await;
    make_stale(&db, &[&a, &b], 1).await;
    db.write(1, "new");
    let gate = db.gate();
    assert_eq!(with_freshness(a.get_entry(1).await), old(Freshness::Stale));
    gate.reached().await;
    eventually("it has given up waiting, more than once", async || {
        assert_eq!(with_freshness(b.get_entry(1).await), old(Freshness::Stale));
        b.stats().lease_waits >= 3
    })
    .await;
    assert_eq!((db.loads(), b.stats().lease_wait_exceeded), (1, 0));
    gate.open();
    eventually("it has the new value", async || {
        with_freshness(b.get_entry(1).await) == fresh("new")
    })
    .await;
    assert_eq!(db.loads(), 1);
    backend.check(&[&a, &b]).await;
}
