//! Held errors: after a failed load a key is not loaded again for a while, here and in the fleet.

use super::*;

#[tokio::test(start_paused = true)]
async fn a_failed_refresh_is_held_for_the_fleet_and_grows() {
    let (tier, source) = (
        InProcess::new(),
        Database::new(false, [Step::Found("old"), Step::Fail("down")]),
    );
    let backoff = MS * 100;
    let build = || {
        stale_settings(&source, &tier)
            .error_backoff(backoff)
            .build()
            .unwrap()
    };
    let nodes = [build(), build(), build()];
    for node in &nodes {
        node.get(&1).await.unwrap();
    }
    tokio::time::advance(TTL).await;
    let (begun, mut attempts) = (Instant::now(), Vec::new());
    while begun.elapsed() < MS * 4_000 {
        for node in &nodes {
            assert_eq!(sourced_entry(node).await.2, Freshness::Stale);
        }
        let calls = source.calls();
        tokio::time::sleep(MS * 5).await;
        if source.calls() > calls {
            attempts.push(begun.elapsed().as_millis());
        }
    }
    let pauses: Vec<_> = attempts.windows(2).map(|pair| pair[1] - pair[0]).collect();
    let expected = [100, 100, 100, 200, 400, 800, 1_600];
    assert!(pauses.len() >= 6, "{pauses:?}");
    for (pause, expected) in pauses.iter().zip(expected) {
        assert!((expected..expected + 40).contains(pause), "{pauses:?}");
    }
    let failures: u64 = nodes.iter().map(|node| node.stats().load_failures).sum();
    assert_eq!(failures + 1, source.calls() as u64);
    validate(&nodes.iter().collect::<Vec<_>>(), &tier).await;
}

#[tokio::test(start_paused = true)]
async fn a_success_ends_a_row_of_failures() {
    let down = Step::Fail("down");
    let mut all = vec![down.clone(); 4];
    all.extend([Step::Found("value"), down]);
    let source = Database::new(false, all);
    let backoff = MS * 100;
    let cache = settings(&source).error_backoff(backoff).build().unwrap();
    for hold in [1, 1, 1, 2] {
        assert!(cache.refresh(&1).await.is_err());
        tokio::time::advance(backoff * hold).await;
    }
    cache.refresh(&1).await.unwrap();
    assert!(cache.refresh(&1).await.is_err());
    assert_eq!(source.calls(), 6);
    tokio::time::advance(backoff).await;
    assert!(cache.refresh(&1).await.is_err());
    assert_eq!(source.calls(), 7, "the first of another row");
    validate(&[&cache], &InProcess::new()).await;
}

/// The failed load was a caller's, so it did not postpone the refresh of the entry in L1.
#[tokio::test(start_paused = true)]
async fn a_hit_begins_no_refresh_while_an_error_is_held() {
    let source = Database::new(false, [Step::Found("old"), Step::Fail("down")]);
    let cache = with_stale_windows(settings(&source)).build().unwrap();
    cache.get(&1).await.unwrap();
    tokio::time::advance(TTL).await;
    assert!(cache.refresh(&1).await.is_err());
    for _ in 0..3 {
        assert_eq!(entry(&cache).await, ("old".to_owned(), Freshness::Stale));
        settle().await;
    }
    assert_eq!(source.calls(), 2);
    tokio::time::advance(MS * 200).await;
    entry(&cache).await;
    settle().await;
    assert_eq!(source.calls(), 3);
    validate(&[&cache], &InProcess::new()).await;
}

/// If there is an entry, the failure is recorded in the key of the claim, else in the key of the
/// record.
#[tokio::test(start_paused = true)]
async fn a_row_of_failures_goes_on_in_another_process() {
    for with_entry in [true, false] {
        let (tier, source) = (InProcess::new(), Database::new(false, [Step::Fail("down")]));
        let backoff = MS * 100;
        let build = || {
            let settings = settings(&source).error_backoff(backoff);
            settings.l2(tier.clone()).build().unwrap()
        };
        let (a, b) = (build(), build());
        if with_entry {
            a.insert(1, "old".to_owned()).await.unwrap();
        }
        for hold in [1, 1, 1, 2] {
            assert!(a.refresh(&1).await.is_err());
            tokio::time::advance(backoff * hold).await;
        }
        assert!(matches!(b.refresh(&1).await, Err(Error::Load(_))));
        assert_eq!(source.calls(), 5);
        for (after, calls) in [(3, 5), (1, 6)] {
            tokio::time::advance(backoff * after).await;
            assert!(b.refresh(&1).await.is_err());
            assert_eq!(source.calls(), calls, "with an entry: {with_entry}");
        }
        validate(&[&a, &b], &tier).await;
    }
}

#[tokio::test(start_paused = true)]
async fn without_l1_a_held_error_is_answered_with_what_l2_has_and_loads_nothing() {
    let (tier, source) = (
        InProcess::new(),
        Database::new(false, [Step::Found("old"), Step::Fail("down")]),
    );
    let cache = settings(&source)
        .ttl(TTL)
        .stale_if_error(TTL)
        .error_backoff(MS * 1_000)
        .l1_capacity(0)
        .l2(tier.clone())
        .build()
        .unwrap();
    cache.get(&1).await.unwrap();
    tokio::time::advance(TTL).await;
    for _ in 0..3 {
        let expected = ("old".to_owned(), Freshness::StaleOnError);
        assert_eq!(entry(&cache).await, expected);
        assert_eq!(source.calls(), 2);
    }
    assert_eq!(cache.stats().errors_held, 0, "no caller got an error");
    assert!(cache.get_with(&1, Read::fresh()).await.is_err());
    // The record of the failure is gone too, but this process remembers the failure by itself.
    tier.delete_raw(KEY);
    tier.delete_raw(&claim_key());
    assert!(cache.get(&1).await.is_err());
    assert_eq!(source.calls(), 2, "it failed a moment ago");
    assert_eq!(cache.stats().errors_held, 2);
    tokio::time::advance(MS * 1_000).await;
    assert!(cache.get(&1).await.is_err());
    assert_eq!(source.calls(), 3);
    validate(&[&cache], &tier).await;
}
