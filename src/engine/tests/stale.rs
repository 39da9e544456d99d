//! Entries past their TTL: when they are answered stale, and when as a fallback.

use super::*;

#[tokio::test(start_paused = true)]
async fn past_its_ttl_everyone_is_answered_at_once_and_one_node_loads() {
    let (tier, source) = fixture(true, &["old", "new"]);
    let nodes: Vec<_> = (0..4)
        .map(|_| stale_settings(&source, &tier).build().unwrap())
        .collect();
    source.answer();
    for node in &nodes {
        node.get(&1).await.unwrap();
    }
    source.loading().await;
    tokio::time::advance(TTL + MS).await;
    for node in &nodes {
        for _ in 0..20 {
            let old = ("old".to_owned(), Source::L1, Freshness::Stale);
            assert_eq!(sourced_entry(node).await, old);
        }
        settle().await;
    }
    assert_eq!(source.calls(), 2);
    assert_eq!(raw_kind(&tier, &claim_key()), Some(Kind::Lease));
    let before = tier.commands();
    for node in &nodes {
        sourced_entry(node).await;
    }
    settle().await;
    assert_eq!(
        tier.commands(),
        before,
        "a node that waits sends nothing, nor does a hit meanwhile"
    );
    source.answer();
    settle().await;
    for node in &nodes {
        let new = ("new".to_owned(), Source::L1, Freshness::Fresh);
        assert_eq!(sourced_entry(node).await, new);
        assert_eq!(node.stats().stale_hits, 21);
    }
    assert_eq!((source.calls(), tier.len()), (2, 1));
    validate(&nodes.iter().collect::<Vec<_>>(), &tier).await;
}

#[tokio::test(start_paused = true)]
async fn a_node_that_has_nothing_is_answered_stale_from_l2_at_once() {
    for l1 in [0, 100] {
        let (tier, source) = fixture(true, &["old", "new"]);
        let a = stale_settings(&source, &tier).build().unwrap();
        let b = stale_settings(&source, &tier)
            .l1_capacity(l1)
            .build()
            .unwrap();
        source.answer();
        a.get(&1).await.unwrap();
        tokio::time::advance(TTL + MS).await;
        for _ in 0..3 {
            let (value, _, freshness) = sourced_entry(&b).await;
            assert_eq!((value.as_str(), freshness), ("old", Freshness::Stale));
        }
        settle().await;
        assert_eq!(source.calls(), 2);
        source.answer();
        settle().await;
        assert_eq!(sourced_entry(&b).await.2, Freshness::Fresh);
        assert_eq!(b.stats().stale_hits, 3);
        validate(&[&a, &b], &tier).await;
    }
}

#[tokio::test(start_paused = true)]
async fn the_windows_end_where_they_should() {
    let (tier, source) = (
        InProcess::new(),
        Database::new(false, [Step::Found("old"), Step::Fail("down")]),
    );
    let cache = stale_settings(&source, &tier)
        .error_backoff(MS)
        .build()
        .unwrap();
    cache.get(&1).await.unwrap();
    for (after, freshness) in [
        (TTL - MS, Some(Freshness::Fresh)),
        (TTL, Some(Freshness::Stale)),
        (TTL * 2 - MS, Some(Freshness::Stale)),
        (TTL * 2, Some(Freshness::StaleOnError)),
        (TTL * 3 - MS, Some(Freshness::StaleOnError)),
        (TTL * 3, None),
    ] {
        let created_at = cache.engine().created_at;
        tokio::time::advance((created_at + after) - Instant::now()).await;
        let got = cache.get_entry(&1).await;
        settle().await;
        let got = got.ok().flatten().map(|entry| entry.freshness());
        assert_eq!(got, freshness, "{after:?} after it was loaded");
    }
    validate(&[&cache], &tier).await;
}

#[tokio::test(start_paused = true)]
async fn an_error_a_panic_and_a_timeout_are_answered_with_what_is_there() {
    for step in [Step::Fail("down"), Step::Panic, Step::Hang] {
        let (tier, source) = (
            InProcess::new(),
            Database::new(false, [Step::Found("old"), step]),
        );
        let settings = || {
            settings(&source)
                .ttl(TTL)
                .stale_if_error(TTL)
                .load_timeout(TTL / 10)
                .l2(tier.clone())
        };
        let (a, cold) = (settings().build().unwrap(), settings().build().unwrap());
        a.get(&1).await.unwrap();
        tokio::time::advance(TTL).await;
        for cache in [&a, &cold] {
            let expected = ("old".to_owned(), Freshness::StaleOnError);
            let (value, _, freshness) = sourced_entry(cache).await;
            assert_eq!((value, freshness), expected);
        }
        assert_eq!(source.calls(), 2, "the other node knows of the failure");
        // For a strict look-up it is an error.
        assert!(a.get_with(&1, Read::fresh()).await.is_err());
        validate(&[&a, &cold], &tier).await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_late_load_is_not_waited_for_where_there_is_something_and_is_stored_all_the_same() {
    let (tier, source) = fixture(true, &["old", "new"]);
    let soft = MS * 50;
    let build = || {
        let settings = settings(&source).ttl(TTL).stale_if_error(TTL);
        settings
            .load_soft_timeout(soft)
            .l2(tier.clone())
            .build()
            .unwrap()
    };
    let (a, cold) = (build(), build());
    let first = spawn_get(&a, 1);
    tokio::time::sleep(soft * 4).await;
    assert!(!first.is_finished(), "there is no stale entry");
    source.answer();
    first.await.unwrap().unwrap();
    tokio::time::advance(TTL).await;
    for cache in [&a, &cold] {
        let begun = Instant::now();
        assert_eq!(sourced_entry(cache).await.2, Freshness::Stale);
        assert_eq!(begun.elapsed(), soft);
        let begun = Instant::now();
        assert_eq!(sourced_entry(cache).await.2, Freshness::Stale);
        assert_eq!(begun.elapsed(), Duration::ZERO, "it is known to be late");
    }
    source.answer();
    settle().await;
    assert_eq!(
        sourced_entry(&a).await,
        ("new".to_owned(), Source::L1, Freshness::Fresh)
    );
    assert_eq!(source.calls(), 2);
    validate(&[&a, &cold], &tier).await;
}

#[tokio::test(start_paused = true)]
async fn what_was_expired_is_a_fallback_on_every_node_and_what_was_invalidated_on_none() {
    for shared in [true, false] {
        let (tier, source) = (
            InProcess::new(),
            Database::new(
                false,
                [Step::Found("old"), Step::Found("old"), Step::Fail("down")],
            ),
        );
        let build = || {
            let settings = settings(&source).ttl(TTL).stale_while_revalidate(TTL);
            let settings = settings.stale_if_error(TTL).error_backoff(Duration::ZERO);
            if shared {
                settings.l2(tier.clone()).build().unwrap()
            } else {
                settings.build().unwrap()
            }
        };
        let (a, cold) = (build(), build());
        a.get(&1).await.unwrap();
        if !shared {
            cold.get(&1).await.unwrap();
        } else {
            cold.get(&2).await.unwrap();
        }
        a.expire(&1).await.unwrap();
        assert!(a.peek(&1).is_none());
        if !shared {
            cold.expire(&1).await.unwrap();
        }
        for cache in [&a, &cold] {
            let (value, _, freshness) = sourced_entry(cache).await;
            assert_eq!(
                (value.as_str(), freshness),
                ("old", Freshness::StaleOnError)
            );
        }
        a.invalidate(&1).await.unwrap();
        cold.invalidate(&1).await.unwrap();
        for cache in [&a, &cold] {
            assert!(cache.get(&1).await.is_err());
        }
        validate(&[&a, &cold], &tier).await;
    }
}

/// Without L2 the stale windows are the same.
#[tokio::test(start_paused = true)]
async fn without_a_shared_tier_a_stale_value_is_answered_refreshed_and_a_fallback() {
    let source = Database::new(
        true,
        [
            Step::Found("old"),
            Step::Fail("down"),
            Step::Found("new"),
            Step::Fail("down"),
        ],
    );
    let cache = settings(&source)
        .ttl(TTL)
        .stale_while_revalidate(TTL)
        .stale_if_error(TTL * 2)
        .build()
        .unwrap();
    source.answer();
    cache.get(&1).await.unwrap();
    tokio::time::advance(TTL).await;
    assert_eq!(sourced_entry(&cache).await.2, Freshness::Stale);
    source.answer();
    settle().await;
    for _ in 0..20 {
        assert_eq!(sourced_entry(&cache).await.2, Freshness::Stale);
    }
    settle().await;
    assert_eq!(source.calls(), 2, "it failed a moment ago");
    tokio::time::advance(MS * 200).await;
    assert_eq!(sourced_entry(&cache).await.2, Freshness::Stale);
    source.answer();
    settle().await;
    assert_eq!(
        sourced_entry(&cache).await,
        ("new".to_owned(), Source::L1, Freshness::Fresh)
    );
    tokio::time::advance(TTL * 2 + MS).await;
    source.answer();
    assert_eq!(sourced_entry(&cache).await.2, Freshness::StaleOnError);
    tokio::time::advance(TTL).await;
    source.answer();
    assert!(cache.get(&1).await.is_err());
    validate(&[&cache], &InProcess::new()).await;
}

#[tokio::test(start_paused = true)]
async fn absences_have_no_stale_windows() {
    let (tier, source) = (
        InProcess::new(),
        Database::new(false, [Step::Missing, Step::Fail("down")]),
    );
    let cache = stale_settings(&source, &tier)
        .negative_ttl(TTL)
        .build()
        .unwrap();
    assert_eq!(cache.get(&1).await.unwrap(), None);
    tokio::time::advance(TTL).await;
    assert!(cache.get(&1).await.is_err());
    validate(&[&cache], &tier).await;
}

#[tokio::test(start_paused = true)]
async fn an_absence_has_no_stale_windows_where_it_was_read_from_l2_either() {
    let (tier, source) = (
        InProcess::new(),
        Database::new(false, [Step::Missing, Step::Fail("down")]),
    );
    let build = || {
        stale_settings(&source, &tier)
            .negative_ttl(TTL)
            .build()
            .unwrap()
    };
    let (a, b) = (build(), build());
    assert_eq!(a.get(&1).await.unwrap(), None);
    tokio::time::advance(TTL / 2).await;
    assert_eq!(b.get(&1).await.unwrap(), None);
    assert_eq!(source.calls(), 1);
    tokio::time::advance(TTL / 2).await;
    assert!(b.get(&1).await.is_err());
    validate(&[&a, &b], &tier).await;
}
