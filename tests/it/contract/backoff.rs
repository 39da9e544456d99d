//! A failing source: the whole fleet tries it once per backoff window.

use std::time::Duration;

use tidegate::{Error, Freshness};
use tokio::time::{Instant, sleep};

use crate::support::aging::{
    LONG, TTL, fresh, intervals, make_stale, old, with_freshness, with_stale_if_error,
    with_stale_while_revalidate,
};
use crate::support::backend::{Backend, on_both_tiers};
use crate::support::eventually;
use crate::support::loader::{Behaviour, Db};
use crate::support::node::{Node, answer, value};

on_both_tiers! {
    a_cold_key_whose_source_fails_is_tried_once_per_window_by_the_whole_fleet
    an_entry_that_expired_long_ago_is_tried_once_per_window_by_the_whole_fleet
    an_old_value_is_answered_meanwhile_and_tried_once_per_window_by_the_whole_fleet
    the_process_whose_load_failed_answers_that_error_and_the_others_that_it_was_elsewhere
    further_failures_are_further_apart_and_a_success_ends_that
    an_insert_or_an_invalidation_by_another_process_ends_it_early
    a_change_of_an_old_entry_by_another_process_ends_it_early
    a_failed_refresh_frees_its_claim_at_once_and_the_others_do_not_take_turns
    without_an_error_backoff_the_next_hit_tries_again
}

const WINDOW: Duration = Duration::from_millis(200);

/// All nodes look the key up for five windows. Each outcome must be `right`. Returns when loads
/// began.
async fn ask_during_five_windows(
    db: &Db,
    nodes: &[&Node],
    key: u64,
    right: fn(&Outcome) -> bool,
) -> Vec<Instant> {
    db.behave(Behaviour::fails());
    db.reset_counts();
    let until = Instant::now() + WINDOW * 5;
    while Instant::now() < until {
        for node in nodes {
            let outcome = match node.get_entry(key).await {
                Ok(Some(entry)) => Outcome::Found(entry.freshness()),
                Ok(None) => Outcome::Nothing,
                Err(error) => Outcome::Failed(error),
            };
            assert!(right(&outcome), "{outcome:?}");
        }
        sleep(Duration::from_millis(5)).await;
    }
    let begun = db.load_starts();
    assert!(begun.len() >= 3, "it was tried again: {}", begun.len());
    for gap in intervals(&begun) {
        // Redis keeps the expiry of leases and of failure marks in whole milliseconds.
        assert!(gap >= WINDOW - Duration::from_millis(3), "{gap:?}");
    }
    begun
}

#[derive(Debug)]
enum Outcome {
    Found(Freshness),
    Nothing,
    Failed(Error),
}

fn failed(outcome: &Outcome) -> bool {
    matches!(
        outcome,
        Outcome::Failed(Error::Load(_) | Error::LoadFailedElsewhere)
    )
}

fn is_stale_on_error(outcome: &Outcome) -> bool {
    matches!(outcome, Outcome::Found(Freshness::StaleOnError))
}

async fn a_cold_key_whose_source_fails_is_tried_once_per_window_by_the_whole_fleet(
    backend: Backend,
) {
    for windows in [Duration::ZERO, LONG] {
        let db = Db::default();
        let mut nodes = Vec::new();
        for _ in 0..3 {
            let node = backend.node_with(&db, |builder| {
                with_stale_if_error(builder)
                    .stale_if_error(windows)
                    .error_backoff(WINDOW)
            });
            nodes.push(node.await);
        }
        let key = if windows.is_zero() { 1 } else { 2 };
        let nodes: Vec<&Node> = nodes.iter().collect();
        ask_during_five_windows(&db, &nodes, key, failed).await;
        let elsewhere: u64 = nodes.iter().map(|node| node.stats().loads).sum();
        assert_eq!(elsewhere, db.loads(), "every load is counted");
        backend.check(&nodes).await;
    }
}

async fn an_entry_that_expired_long_ago_is_tried_once_per_window_by_the_whole_fleet(
    backend: Backend,
) {
    let db = Db::default();
    let settings = |builder| {
        with_stale_if_error(builder)
            .stale_if_error(TTL / 4)
            .error_backoff(WINDOW)
    };
    let a = backend.node_with(&db, settings).await;
    let b = backend.node_with(&db, settings).await;
    let c = backend.node_with(&db, settings).await;
    make_stale(&db, &[&a, &b, &c], 1).await;
    sleep(TTL).await;
    ask_during_five_windows(&db, &[&a, &b, &c], 1, failed).await;
    assert!(db.reloads().is_empty(), "there is nothing left");
    backend.check(&[&a, &b, &c]).await;
}

async fn an_old_value_is_answered_meanwhile_and_tried_once_per_window_by_the_whole_fleet(
    backend: Backend,
) {
    let db = Db::default();
    let settings = |builder| with_stale_if_error(builder).error_backoff(WINDOW);
    let a = backend.node_with(&db, settings).await;
    let b = backend.node_with(&db, settings).await;
    let c = backend.node_with(&db, settings).await;
    make_stale(&db, &[&a, &b], 1).await;
    let attempts = ask_during_five_windows(&db, &[&a, &b, &c], 1, is_stale_on_error).await;
    assert_eq!(db.reloads().len(), attempts.len());
    db.behave(Behaviour::default());
    db.write(1, "new");
    for node in [&a, &b, &c] {
        eventually("it has the new value", async || {
            with_freshness(node.get_entry(1).await) == fresh("new")
        })
        .await;
    }
    backend.check(&[&a, &b, &c]).await;
}

async fn the_process_whose_load_failed_answers_that_error_and_the_others_that_it_was_elsewhere(
    backend: Backend,
) {
    let db = Db::default();
    for (key, window) in [(1, Duration::ZERO), (2, LONG)] {
        let settings = |builder| with_stale_if_error(builder).stale_if_error(window);
        let a = backend.node_with(&db, settings).await;
        let b = backend.node_with(&db, settings).await;
        db.behave(Behaviour::fails());
        db.reset_counts();
        for _ in 0..3 {
            assert!(matches!(a.get(key).await, Err(Error::Load(_))));
            let elsewhere = b.get(key).await;
            assert!(matches!(elsewhere, Err(Error::LoadFailedElsewhere)));
        }
        assert_eq!((db.loads(), a.stats().errors_held), (1, 2));
        backend.check(&[&a, &b]).await;
    }
}

/// Looks key 1 up on all nodes until the source has begun this many loads.
async fn ask_until(db: &Db, nodes: &[&Node], loads: u64) {
    eventually("the source is asked", async || {
        for node in nodes {
            let _ = node.get(1).await;
        }
        db.loads() >= loads
    })
    .await;
}

async fn further_failures_are_further_apart_and_a_success_ends_that(backend: Backend) {
    let db = Db::default();
    // A failure later than two windows after the one before counts as a first failure again.
    let window = Duration::from_millis(700);
    let settings = |builder| with_stale_if_error(builder).error_backoff(window);
    let a = backend.node_with(&db, settings).await;
    let b = backend.node_with(&db, settings).await;
    db.behave(Behaviour::fails());
    ask_until(&db, &[&a, &b], 5).await;
    let apart = intervals(&db.load_starts());
    let exact = Duration::from_millis(3);
    for (gap, least) in apart.iter().zip([1, 1, 1, 2]) {
        assert!(*gap >= window * least - exact, "{apart:?}");
    }
    // The window after the fifth failure is four times as long.
    db.behave(Behaviour {
        do_not_store: true,
        ..Behaviour::default()
    });
    a.invalidate(&1).await.expect("an invalidation");
    for node in [&a, &b] {
        assert_eq!(value(node.get(1).await), "row 1");
    }
    db.behave(Behaviour::fails());
    db.reset_counts();
    ask_until(&db, &[&a, &b], 2).await;
    let again = intervals(&db.load_starts())[0];
    assert!(again >= window - exact && again < window * 4, "{again:?}");
    backend.check(&[&a, &b]).await;
}

async fn an_insert_or_an_invalidation_by_another_process_ends_it_early(backend: Backend) {
    let db = Db::default();
    let settings = |builder| with_stale_if_error(builder).error_backoff(LONG);
    let a = backend.node_with(&db, settings).await;
    let b = backend.node_with(&db, settings).await;
    for key in [1, 2] {
        db.behave(Behaviour::fails());
        assert!(matches!(a.get(key).await, Err(Error::Load(_))));
        assert!(matches!(a.get(key).await, Err(Error::Load(_))));
        db.behave(Behaviour::default());
        let ended = if key == 1 {
            b.invalidate(&key).await
        } else {
            b.insert(key, format!("row {key}")).await
        };
        ended.expect("a change");
        eventually("the change has arrived", async || {
            let got = a.get(key).await;
            got.is_ok_and(|found| found.is_some_and(|row| *row == format!("row {key}")))
        })
        .await;
    }
    assert_eq!(db.loads(), 3);
    backend.check(&[&a, &b]).await;
}

async fn a_change_of_an_old_entry_by_another_process_ends_it_early(backend: Backend) {
    let db = Db::default();
    let a = backend.node_with(&db, with_stale_if_error).await;
    let b = backend.node_with(&db, with_stale_if_error).await;
    for key in 1..=3 {
        make_stale(&db, &[&a, &b], key).await;
        db.behave(Behaviour::fails());
        assert_eq!(
            with_freshness(a.get_entry(key).await),
            old(Freshness::StaleOnError)
        );
        db.behave(Behaviour::default());
        db.write(key, "new");
        let ended = match key {
            1 => b.invalidate(&key).await,
            2 => b.insert(key, "new".to_owned()).await,
            _ => b.expire(&key).await,
        };
        ended.expect("a change");
        eventually("the change has arrived", async || {
            with_freshness(a.get_entry(key).await) == fresh("new")
        })
        .await;
        assert_eq!(db.loads(), if key == 2 { 1 } else { 2 });
    }
    backend.check(&[&a, &b]).await;
}

async fn a_failed_refresh_frees_its_claim_at_once_and_the_others_do_not_take_turns(
    backend: Backend,
) {
    let db = Db::default();
    let a = backend.node_with(&db, with_stale_while_revalidate).await;
    let b = backend.node_with(&db, with_stale_while_revalidate).await;
    let c = backend.node_with(&db, with_stale_while_revalidate).await;
    make_stale(&db, &[&a, &b], 1).await;
    db.behave(Behaviour::fails());
    let gate = db.gate();
    assert_eq!(with_freshness(a.get_entry(1).await), old(Freshness::Stale));
    gate.reached().await;
    assert_eq!(with_freshness(b.get_entry(1).await), old(Freshness::Stale));
    eventually("the other process waits", async || {
        b.stats().lease_waits == 1
    })
    .await;
    let waits_for_the_error = c.refresher(1).await;
    eventually("the third waits, too", async || c.stats().lease_waits == 1).await;
    gate.open();
    // Without the release, the claim would have ended a minute later.
    assert!(matches!(
        answer(waits_for_the_error).await,
        Err(Error::LoadFailedElsewhere)
    ));
    for node in [&a, &b, &c] {
        node.check().await;
        for _ in 0..10 {
            assert_eq!(
                with_freshness(node.get_entry(1).await),
                old(Freshness::Stale)
            );
        }
    }
    assert!(matches!(a.refresh(&1).await, Err(Error::Load(_))));
    assert!(matches!(
        b.refresh(&1).await,
        Err(Error::LoadFailedElsewhere)
    ));
    assert_eq!(db.loads(), 1);
    backend.check(&[&a, &b, &c]).await;
}

async fn without_an_error_backoff_the_next_hit_tries_again(backend: Backend) {
    let db = Db::default();
    let a = backend
        .node_with(&db, |builder| {
            with_stale_while_revalidate(builder).error_backoff(Duration::ZERO)
        })
        .await;
    make_stale(&db, &[&a], 1).await;
    db.behave(Behaviour::fails());
    eventually("it is tried again and again", async || {
        assert_eq!(with_freshness(a.get_entry(1).await), old(Freshness::Stale));
        db.loads() >= 5
    })
    .await;
    backend.check(&[&a]).await;
}
