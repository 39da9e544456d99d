//! Closing a cache: what it waits for, what it ends, and what is answered afterwards.

use super::*;

#[tokio::test(start_paused = true)]
async fn close_waits_for_what_runs_and_answers_closed_from_then_on() {
    let (tier, source) = (InProcess::new(), Database::new(true, [Step::Found("v")]));
    let cache = node(&source, &tier);
    let running = spawn_get(&cache, 1);
    source.loading().await;
    let closing = {
        let cache = cache.clone();
        tokio::spawn(async move { cache.close().await })
    };
    settle().await;
    assert!(!closing.is_finished());
    assert!(matches!(cache.get(&2).await, Err(Error::Closed)));
    assert!(cache.invalidate(&1).await.unwrap_err().is_closed());
    assert!(
        cache
            .insert(1, "x".to_owned())
            .await
            .unwrap_err()
            .is_closed()
    );
    assert!(cache.invalidate_many(&[1]).await.unwrap_err().is_closed());
    source.answer();
    assert_eq!(text(&running.await.unwrap()), Some("v"));
    closing.await.unwrap();
    assert!(
        matches!(cache.get(&1).await, Err(Error::Closed)),
        "a hit, too"
    );
    assert!(cache.peek(&1).is_none());
    cache.close().await;
    validate(&[&cache], &tier).await;
}

#[tokio::test(start_paused = true)]
async fn closing_ends_background_refreshes_and_leaves_no_claim() {
    let (tier, source) = fixture(true, &["old", "new"]);
    let (a, b) = (
        stale_settings(&source, &tier).build().unwrap(),
        stale_settings(&source, &tier).build().unwrap(),
    );
    source.answer();
    a.get(&1).await.unwrap();
    b.get(&1).await.unwrap();
    source.loading().await;
    tokio::time::advance(TTL).await;
    sourced_entry(&a).await;
    source.loading().await;
    // The refresh of `b` waits for the claim.
    sourced_entry(&b).await;
    settle().await;
    let begun = Instant::now();
    b.close().await;
    a.close().await;
    assert_eq!(begun.elapsed(), Duration::ZERO);
    assert_eq!((tier.raw(&claim_key()), tier.len()), (None, 1));
    assert_eq!(source.running.load(Ordering::SeqCst), 0);
    validate(&[&a, &b], &tier).await;
}

#[tokio::test(start_paused = true)]
async fn closing_ends_a_refresh_that_waits_for_a_permit() {
    let source = Database::new(true, steps(&["old", "new"]));
    let settings = with_stale_windows(settings(&source)).max_concurrent_loads(1);
    let cache = settings.build().unwrap();
    cache.insert(1, "old".to_owned()).await.unwrap();
    tokio::time::advance(TTL).await;
    let cold = spawn_get(&cache, 2);
    source.loading().await;
    assert_eq!(entry(&cache).await.1, Freshness::Stale);
    settle().await;
    assert_eq!(cache.engine().flights.len(), 2);
    let closing = tokio::spawn({
        let cache = cache.clone();
        async move { cache.close().await }
    });
    settle().await;
    assert_eq!(cache.engine().flights.len(), 1);
    assert!(
        !closing.is_finished(),
        "a caller waits for the other flight"
    );
    source.answer();
    cold.await.unwrap().unwrap();
    closing.await.unwrap();
    assert_eq!(source.calls(), 1);
    validate(&[&cache], &InProcess::new()).await;
}

#[tokio::test(start_paused = true)]
async fn closing_waits_for_a_refresh_that_a_caller_has_joined() {
    let tier = InProcess::new();
    let source = Database::new(true, [Step::Found("old"), Step::Found("new")]);
    let settings = settings(&source).ttl(Duration::from_secs(10));
    let settings = settings.stale_while_revalidate(Duration::from_secs(10));
    let cache = settings.l2(tier.clone()).build().unwrap();
    source.answer();
    cache.get(&1).await.unwrap();
    source.loading().await;
    tokio::time::advance(Duration::from_secs(11)).await;
    cache.get(&1).await.unwrap();
    source.loading().await;
    let waits = {
        let cache = cache.clone();
        tokio::spawn(async move { cache.get_with(&1, Read::fresh()).await })
    };
    settle().await;
    let closes = {
        let cache = cache.clone();
        tokio::spawn(async move { cache.close().await })
    };
    settle().await;
    assert!(!closes.is_finished());
    source.answer();
    assert_eq!(text(&waits.await.unwrap()), Some("new"));
    closes.await.unwrap();
    validate(&[&cache], &tier).await;
}
