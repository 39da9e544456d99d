//! Refreshes: ahead of the end of the TTL, by a call of `refresh`, and of unchanged values.

use std::time::Duration;

use tidegate::{CacheBuilder, Error, Freshness, Source};
use tokio::time::{Instant, sleep};

use crate::support::aging::{
    LONG, TTL, fresh, has_fresh, intervals, make_stale, old, with_freshness, with_stale_if_error,
    with_stale_while_revalidate,
};
use crate::support::backend::{Backend, on_both_tiers};
use crate::support::loader::{Behaviour, Db};
use crate::support::node::{answer, value};
use crate::support::{eventually, within};

on_both_tiers! {
    no_caller_waits_for_a_key_that_is_asked_for_often
    a_refresh_before_the_end_that_fails_is_tried_again_and_the_entry_stays
    nothing_is_refreshed_in_the_first_half_of_its_ttl
    a_refresh_loads_now_and_others_are_answered_the_old_value
    refreshes_of_one_key_share_a_load
    a_refresh_of_a_key_that_is_in_neither_tier_is_a_load
    a_refresh_that_fails_is_an_error_and_the_entry_stays
    a_refresh_that_takes_longer_than_its_entry_lasts_is_stored
    close_ends_refreshes_at_once_and_leaves_no_claim
}

/// The TTL, the eagerness of refresh-ahead, and the number of TTLs for which the test asks.
fn busy_key(backend: &Backend) -> (Duration, f64, u32) {
    if backend.server().is_some() {
        // A refresh this early ends in time also on a loaded machine.
        (Duration::from_secs(2), 20.0, 3)
    } else {
        (Duration::from_secs(2), 1.0, 20)
    }
}

async fn no_caller_waits_for_a_key_that_is_asked_for_often(backend: Backend) {
    let db = Db::default();
    let (ttl, eagerness, ttls) = busy_key(&backend);
    let settings = |builder: CacheBuilder<Db>| builder.ttl(ttl).refresh_ahead(eagerness);
    let a = backend.node_with(&db, settings).await;
    let b = backend.node_with(&db, settings).await;
    let c = backend.node_with(&db, settings).await;
    db.behave(Behaviour {
        takes: Duration::from_millis(50),
        ..Behaviour::default()
    });
    for node in [&a, &b, &c] {
        node.get(1).await.expect("a look-up");
    }
    let (began, mut waited) = (Instant::now(), Vec::new());
    while began.elapsed() < ttl * ttls {
        for node in [&a, &b, &c] {
            let entry = node.get_entry(1).await.expect("a look-up");
            let entry = entry.expect("an entry");
            assert_eq!(entry.freshness(), Freshness::Fresh);
            if matches!(entry.source(), Source::Loader | Source::Coalesced) {
                waited.push(began.elapsed());
            }
        }
        sleep(Duration::from_millis(2)).await;
    }
    assert!(waited.is_empty(), "callers have waited: {waited:?}");
    let loads = db.load_starts();
    // One load per TTL, and none in its first half.
    for gap in intervals(&loads) {
        assert!(gap >= ttl / 2, "{gap:?} apart");
    }
    assert!(loads.len() > ttls as usize, "{} loads", loads.len());
    assert_eq!(db.reloads().len(), loads.len() - 1);
    backend.check(&[&a, &b, &c]).await;
}

async fn a_refresh_before_the_end_that_fails_is_tried_again_and_the_entry_stays(backend: Backend) {
    let db = Db::default();
    let (ttl, backoff) = (Duration::from_secs(3), Duration::from_millis(200));
    let settings = |builder: CacheBuilder<Db>| {
        builder
            .ttl(ttl)
            .refresh_ahead(1000.0)
            .error_backoff(backoff)
    };
    let a = backend.node_with(&db, settings).await;
    let b = backend.node_with(&db, settings).await;
    let takes = Duration::from_millis(20);
    db.behave(Behaviour {
        takes,
        ..Behaviour::default()
    });
    a.get(1).await.expect("a load");
    let loaded = Instant::now();
    db.behave(Behaviour::fails());
    let mut answered = false;
    while db.loads() < 4 {
        for node in [&a, &b] {
            let asked = Instant::now();
            let got = node.get_entry(1).await;
            if asked.elapsed() + (asked - loaded) + takes * 2 < ttl {
                assert_eq!(with_freshness(got), fresh("row 1"));
                answered = true;
            }
        }
        assert!(loaded.elapsed() < ttl * 2, "it is not tried again");
        sleep(Duration::from_millis(5)).await;
    }
    assert!(answered);
    for gap in intervals(&db.load_starts()) {
        assert!(gap >= backoff - Duration::from_millis(3), "{gap:?}");
    }
    backend.check(&[&a, &b]).await;
}

/// A load takes a quarter of the TTL. Neither the process that holds the entry, nor the process
/// that refreshed it, nor a process without L1 begins a refresh.
async fn nothing_is_refreshed_in_the_first_half_of_its_ttl(backend: Backend) {
    let db = Db::default();
    let (ttl, takes) = (Duration::from_secs(4), Duration::from_secs(1));
    let settings = |builder: CacheBuilder<Db>| builder.ttl(ttl).refresh_ahead(1000.0);
    let a = backend.node_with(&db, settings).await;
    let without_l1 = backend
        .node_with(&db, |builder| settings(builder).l1_capacity(0))
        .await;
    db.behave(Behaviour {
        takes,
        ..Behaviour::default()
    });
    for refreshed in [false, true] {
        if refreshed {
            a.refresh(&1).await.expect("a load");
        } else {
            a.get(1).await.expect("a load");
        }
        let loaded = Instant::now();
        db.reset_counts();
        for _ in 0..20 {
            for node in [&a, &without_l1] {
                node.get(1).await.expect("a hit");
            }
            // Past the pause that L1 makes after a refresh, and far from the middle of the TTL.
            sleep(Duration::from_millis(5)).await;
        }
        if loaded.elapsed() < ttl / 2 {
            assert_eq!(db.loads(), 0, "after a refresh: {refreshed}");
        }
    }
    backend.check(&[&a, &without_l1]).await;
}

async fn a_refresh_loads_now_and_others_are_answered_the_old_value(backend: Backend) {
    let db = Db::default();
    db.write(1, "old");
    let a = backend.node_with(&db, with_stale_while_revalidate).await;
    let b = backend.node_with(&db, with_stale_while_revalidate).await;
    for node in [&a, &b] {
        node.get(1).await.expect("a look-up");
    }
    db.write(1, "new");
    let gate = db.gate();
    let refresher = a.refresher(1).await;
    gate.reached().await;
    for node in [&a, &b] {
        assert_eq!(with_freshness(node.get_entry(1).await), fresh("old"));
    }
    assert!(!refresher.is_finished());
    gate.open();
    assert_eq!(value(answer(refresher).await), "new");
    assert_eq!(with_freshness(a.get_entry(1).await), fresh("new"));
    let cold = backend.node_with(&db, with_stale_while_revalidate).await;
    assert_eq!(value(cold.get(1).await), "new");
    assert_eq!((db.loads(), a.stats().fills), (2, 2));
    backend.check(&[&a, &b, &cold]).await;
}

async fn refreshes_of_one_key_share_a_load(backend: Backend) {
    let db = Db::default();
    let a = backend.node_with(&db, with_stale_while_revalidate).await;
    let b = backend.node_with(&db, with_stale_while_revalidate).await;
    for node in [&a, &b] {
        node.get(1).await.expect("a look-up");
    }
    db.write(1, "new");
    let gate = db.gate();
    let mut refreshers = Vec::new();
    for _ in 0..20 {
        refreshers.push(a.refresher(1).await);
    }
    gate.reached().await;
    for _ in 0..20 {
        refreshers.push(b.refresher(1).await);
    }
    eventually("the other process waits", async || {
        b.stats().lease_waits == 1
    })
    .await;
    gate.open();
    for refresher in refreshers {
        assert_eq!(value(answer(refresher).await), "new");
    }
    assert_eq!(db.loads(), 2);
    assert!(has_fresh(&a, 1, "new") && has_fresh(&b, 1, "new"));
    backend.check(&[&a, &b]).await;
}

async fn a_refresh_of_a_key_that_is_in_neither_tier_is_a_load(backend: Backend) {
    let db = Db::default();
    let a = backend.node_with(&db, with_stale_while_revalidate).await;
    let b = backend.node_with(&db, with_stale_while_revalidate).await;
    assert_eq!(value(a.refresh(&1).await), "row 1");
    assert_eq!(with_freshness(b.get_entry(1).await), fresh("row 1"));
    db.delete(1);
    assert_eq!(b.refresh(&1).await.expect("a load"), None);
    assert_eq!((db.loads(), db.reloads().len()), (2, 1));
    // A caller of `get` and a caller of `refresh` share one load.
    let gate = db.gate();
    let caller = a.caller(2).await;
    gate.reached().await;
    let refresher = a.refresher(2).await;
    gate.open();
    assert_eq!(value(answer(refresher).await), "row 2");
    assert_eq!(value(answer(caller).await), "row 2");
    assert_eq!(db.loads(), 3);
    backend.check(&[&a, &b]).await;
}

async fn a_refresh_that_fails_is_an_error_and_the_entry_stays(backend: Backend) {
    let db = Db::default();
    let settings = |builder| with_stale_if_error(with_stale_while_revalidate(builder));
    let a = backend.node_with(&db, settings).await;
    let b = backend.node_with(&db, settings).await;
    for node in [&a, &b] {
        node.get(1).await.expect("a look-up");
    }
    make_stale(&db, &[&a, &b], 2).await;
    db.reset_counts();
    db.behave(Behaviour::fails());
    for key in [1, 2] {
        for _ in 0..3 {
            assert!(matches!(a.refresh(&key).await, Err(Error::Load(_))));
            let elsewhere = b.refresh(&key).await;
            assert!(matches!(elsewhere, Err(Error::LoadFailedElsewhere)));
        }
    }
    for node in [&a, &b] {
        assert_eq!(with_freshness(node.get_entry(1).await), fresh("row 1"));
        assert_eq!(
            with_freshness(node.get_entry(2).await),
            old(Freshness::Stale)
        );
    }
    assert_eq!(db.loads(), 2, "one for each key");
    backend.check(&[&a, &b]).await;
}

async fn close_ends_refreshes_at_once_and_leaves_no_claim(backend: Backend) {
    let db = Db::default();
    let settings = |builder| with_stale_while_revalidate(builder).load_timeout(LONG);
    let a = backend.node_with(&db, settings).await;
    let b = backend.node_with(&db, settings).await;
    make_stale(&db, &[&a, &b], 1).await;
    db.write(1, "new");
    let gate = db.gate();
    assert_eq!(with_freshness(a.get_entry(1).await), old(Freshness::Stale));
    gate.reached().await;
    // A refresh that waits for another process's claim ends as well.
    assert_eq!(with_freshness(b.get_entry(1).await), old(Freshness::Stale));
    eventually("the other process waits", async || {
        b.stats().lease_waits == 1
    })
    .await;
    let closed = Instant::now();
    within("it closes", b.close()).await;
    within("it closes", a.close()).await;
    assert!(closed.elapsed() < Duration::from_secs(5));
    assert!(matches!(a.get(1).await, Err(Error::Closed)));
    let c = backend.node_with(&db, settings).await;
    eventually("it has the new value", async || {
        with_freshness(c.get_entry(1).await) == fresh("new")
    })
    .await;
    assert_eq!((db.loads(), c.stats().lease_waits), (2, 0));
    assert_eq!(
        a.stats().load_failures,
        0,
        "the end of a refresh is no failure"
    );
    backend.check(&[&a, &b, &c]).await;
}

async fn a_refresh_that_takes_longer_than_its_entry_lasts_is_stored(backend: Backend) {
    let db = Db::default();
    let short = Duration::from_millis(600);
    let settings = |builder: CacheBuilder<Db>| builder.refresh_ahead(0.0).lease_ttl(short);
    let a = backend.node_with(&db, settings).await;
    let b = backend.node_with(&db, settings).await;
    db.behave(Behaviour::ttl(TTL));
    a.get(1).await.expect("a load");
    db.behave(Behaviour::default());
    let gate = db.gate();
    let refresher = a.refresher(1).await;
    gate.reached().await;
    // Longer than the claim lasts without a renewal, and longer than the record lasts.
    sleep(short * 2 + TTL).await;
    let waits = b.caller(1).await;
    eventually("the other process waits", async || {
        b.stats().lease_waits == 1
    })
    .await;
    gate.open();
    assert_eq!(value(answer(refresher).await), "row 1");
    assert_eq!(value(answer(waits).await), "row 1");
    assert_eq!((db.loads(), a.stats().fills), (2, 2));
    backend.check(&[&a, &b]).await;
}
