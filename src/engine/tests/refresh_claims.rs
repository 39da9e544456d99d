//! The claim, the lease of a refresh: who gets it, what ends it, and which fill counts.

use super::*;
use crate::protocol::record::Header;

/// A change between the load of a refresh and its fill, by this node or by another one.
#[tokio::test(start_paused = true)]
async fn a_refresh_from_before_a_change_is_stored_nowhere() {
    #[derive(Clone, Copy, Debug)]
    enum Change {
        Invalidate,
        Insert,
        SameValue,
        Expire,
        All,
        Deleted,
    }
    use Change::{All, Deleted, Expire, Insert, Invalidate, SameValue};
    for change in [Invalidate, Insert, SameValue, Expire, All, Deleted] {
        for by_another in [false, true] {
            let (tier, source) = fixture(true, &["old", "too late", "newest"]);
            let (a, b) = (
                stale_settings(&source, &tier).build().unwrap(),
                node(&source, &tier),
            );
            source.answer();
            a.get(&1).await.unwrap();
            source.loading().await;
            tokio::time::advance(TTL).await;
            assert_eq!(sourced_entry(&a).await.2, Freshness::Stale);
            source.loading().await;
            let by = if by_another { &b } else { &a };
            match change {
                Invalidate => by.invalidate(&1).await.unwrap(),
                Insert => by.insert(1, "inserted".to_owned()).await.unwrap(),
                SameValue => by.insert(1, "old".to_owned()).await.unwrap(),
                Expire => by.expire(&1).await.unwrap(),
                All => by.invalidate_all().await.unwrap(),
                Deleted => tier.delete_raw(KEY),
            }
            let before = tier.raw(KEY);
            source.answer();
            settle().await;
            let refused = a.stats().fills_refused;
            match change {
                // The record is still in L2, and dead.
                All => assert_eq!(refused, 0, "{change:?}"),
                _ => {
                    assert_eq!(refused, 1, "{change:?} by another: {by_another}");
                    assert_eq!(tier.raw(KEY), before, "{change:?} by another: {by_another}");
                }
            }
            let in_l1 = a.peek(&1).map(|entry| entry.value().to_string());
            assert_ne!(in_l1.as_deref(), Some("too late"), "{change:?}");
            source.answer();
            let got = a.get(&1).await;
            let expected = match change {
                Insert => "inserted",
                SameValue => "old",
                _ => "newest",
            };
            assert_eq!(
                text(&got),
                Some(expected),
                "{change:?} by another: {by_another}"
            );
            source.answer();
            validate(&[&a], &tier).await;
        }
    }
}

#[tokio::test(start_paused = true)]
async fn after_a_change_no_caller_waits_for_the_refresh_from_before_it() {
    for change in ["invalidate", "insert", "expire"] {
        let (tier, source) = fixture(true, &["old", "too late", "new"]);
        let (a, b) = (
            stale_settings(&source, &tier).build().unwrap(),
            node(&source, &tier),
        );
        source.answer();
        a.get(&1).await.unwrap();
        source.loading().await;
        tokio::time::advance(TTL).await;
        assert_eq!(entry(&a).await.1, Freshness::Stale);
        source.loading().await;
        match change {
            "invalidate" => b.invalidate(&1).await.unwrap(),
            "insert" => b.insert(1, "inserted".to_owned()).await.unwrap(),
            _ => b.expire(&1).await.unwrap(),
        }
        let got = spawn_refresh(&b);
        let begun = tokio::time::timeout(MS * 100, source.loading()).await;
        assert!(begun.is_ok(), "{change}");
        source.go.add_permits(2);
        assert_eq!(text(&got.await.unwrap()), Some("new"), "{change}");
        validate(&[&a, &b], &tier).await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_claim_is_granted_only_for_what_was_read() {
    let (tier, source) = fixture(false, &["old", "new", "newer"]);
    let (a, b) = (
        stale_settings(&source, &tier).build().unwrap(),
        stale_settings(&source, &tier).build().unwrap(),
    );
    a.get(&1).await.unwrap();
    b.get(&1).await.unwrap();
    tokio::time::advance(TTL).await;
    let gate = tier.gate("acquire", When::Before);
    entry(&a).await;
    gate.reached().await;
    entry(&b).await;
    settle().await;
    assert_eq!(entry(&b).await, ("new".to_owned(), Freshness::Fresh));
    gate.open();
    settle().await;
    assert_eq!(entry(&a).await, ("new".to_owned(), Freshness::Fresh));
    assert_eq!(source.calls(), 2);
    validate(&[&a, &b], &tier).await;
}

/// A refresher lost its claim and fills late. The first fill counts, also if it is that of the
/// other refresher.
#[tokio::test(start_paused = true)]
async fn the_second_of_two_refreshes_removes_nothing_of_the_first() {
    let (tier, source) = fixture(true, &["old", "first", "second"]);
    let (a, b) = (
        stale_settings(&source, &tier).build().unwrap(),
        stale_settings(&source, &tier).build().unwrap(),
    );
    source.answer();
    a.get(&1).await.unwrap();
    source.loading().await;
    tokio::time::advance(TTL).await;
    sourced_entry(&a).await;
    source.loading().await;
    // Its claim is gone, as if its process had been suspended.
    tier.delete_raw(&claim_key());
    sourced_entry(&b).await;
    source.loading().await;
    let of_b = tier.raw(&claim_key());
    assert!(of_b.is_some());
    source.answer();
    settle().await;
    assert_eq!(tier.raw(&claim_key()), of_b, "the claim of `b` stays");
    let first = tier.raw(KEY);
    source.answer();
    settle().await;
    assert_eq!((tier.raw(KEY), tier.raw(&claim_key())), (first, None));
    let refused = a.stats().fills_refused + b.stats().fills_refused;
    assert_eq!((refused, source.calls()), (1, 3));
    validate(&[&a, &b], &tier).await;
}

#[tokio::test(start_paused = true)]
async fn a_refresher_that_dies_is_replaced_when_its_claim_ends() {
    let (tier, source) = fixture(false, &["old", "new"]);
    let cache = stale_settings(&source, &tier).build().unwrap();
    cache.get(&1).await.unwrap();
    let mut dead = Header::plain(Kind::Lease, [7; 16], record::key_hash(&claim_key()), 0);
    dead.baseline = cache.engine().watermarks.baseline();
    tokio::time::advance(TTL).await;
    tier.set_raw(&claim_key(), &dead.to_record(), 2_000);
    let begun = Instant::now();
    while sourced_entry(&cache).await.2 == Freshness::Stale {
        tokio::time::sleep(MS).await;
    }
    let took = begun.elapsed().as_millis();
    assert!((2_000..=2_030).contains(&took), "{took}");
    assert_eq!((source.calls(), tier.len()), (2, 1));
    validate(&[&cache], &tier).await;
}

#[tokio::test(start_paused = true)]
async fn a_refresh_that_hangs_does_not_pin_the_old_value() {
    let (tier, source) = (
        InProcess::new(),
        Database::new(false, [Step::Found("old"), Step::Hang, Step::Found("new")]),
    );
    let build = || {
        stale_settings(&source, &tier)
            .load_timeout(TTL / 5)
            .build()
            .unwrap()
    };
    let (a, b) = (build(), build());
    a.get(&1).await.unwrap();
    b.get(&1).await.unwrap();
    tokio::time::advance(TTL).await;
    let begun = Instant::now();
    for cache in [&a, &b] {
        while sourced_entry(cache).await.2 == Freshness::Stale {
            tokio::time::sleep(MS * 5).await;
        }
    }
    let took = begun.elapsed();
    assert!(took >= TTL / 5 && took < TTL / 5 + MS * 300, "{took:?}");
    assert_eq!(source.calls(), 3);
    validate(&[&a, &b], &tier).await;
}

/// A record is kept in L2 while it is refreshed, even past its time. So the fill has a record to be
/// compared with, and no other process takes the key for a miss.
#[tokio::test(start_paused = true)]
async fn a_load_that_outlasts_the_entry_is_the_only_one_and_fills() {
    let (tier, source) = fixture(true, &["old", "new"]);
    let build = || {
        let settings = settings(&source).ttl(TTL).stale_while_revalidate(MS * 500);
        settings.l2(tier.clone()).build().unwrap()
    };
    let (a, b) = (build(), build());
    source.answer();
    a.get(&1).await.unwrap();
    source.loading().await;
    tokio::time::advance(TTL).await;
    assert_eq!(sourced_entry(&a).await.2, Freshness::Stale);
    source.loading().await;
    for _ in 0..8 {
        tokio::time::sleep(MS * 500).await;
        assert!(a.peek(&1).is_none(), "its window is over");
    }
    let waiting = [spawn_get(&a, 1), spawn_get(&b, 1)];
    settle().await;
    assert_eq!(source.calls(), 2);
    source.answer();
    for got in waiting {
        assert_eq!(text(&got.await.unwrap()), Some("new"));
    }
    let fills = a.stats().fills + b.stats().fills;
    assert_eq!((source.calls(), fills, a.stats().fills_refused), (2, 2, 0));
    validate(&[&a, &b], &tier).await;
}

#[tokio::test(start_paused = true)]
async fn a_background_refresh_does_not_load_without_its_claim() {
    let (tier, source) = fixture(false, &["old", "new"]);
    let cache = stale_settings(&source, &tier)
        .lease_wait(MS * 500)
        .build()
        .unwrap();
    cache.get(&1).await.unwrap();
    let mut others = Header::plain(Kind::Lease, [7; 16], record::key_hash(&claim_key()), 0);
    others.baseline = cache.engine().watermarks.baseline();
    tokio::time::advance(TTL).await;
    tier.set_raw(&claim_key(), &others.to_record(), 5_000);
    for _ in 0..40 {
        assert_eq!(entry(&cache).await.1, Freshness::Stale);
        tokio::time::sleep(MS * 100).await;
    }
    let stats = cache.stats();
    assert_eq!((source.calls(), stats.lease_wait_exceeded), (1, 0));
    tokio::time::sleep(MS * 2_000).await;
    entry(&cache).await;
    settle().await;
    assert_eq!(entry(&cache).await.1, Freshness::Fresh);
    validate(&[&cache], &tier).await;
}
