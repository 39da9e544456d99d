//! Interim values: the stale value with which a flight answers while it loads, and what ends it.

use super::*;

/// A message is lost with the connection. An interim value from L1 is answered only while L1 may
/// answer.
#[tokio::test(start_paused = true)]
async fn the_interim_value_of_a_refresh_is_answered_only_while_l1_may_answer() {
    let tier = InProcess::wired(0);
    let source = Database::new(false, steps(&["old", "new"]));
    let build = || {
        let settings = settings(&source).ttl(MS * 500).stale_while_revalidate(TTL);
        settings.l2(tier.clone()).build().unwrap()
    };
    let (cache, writer) = (build(), build());
    for (wire, node) in [&cache, &writer].into_iter().enumerate() {
        let engine = node.engine();
        engine.attach(engine.remote.as_ref().unwrap()).await;
        tier.connect(wire);
    }
    tokio::time::sleep(MS * 100).await;
    tier.hand_over_all();
    cache.get(&1).await.unwrap();
    tokio::time::sleep(MS * 500).await;
    let gate = tier.gate("get", When::Before);
    assert_eq!(entry(&cache).await.1, Freshness::Stale);
    gate.reached().await;
    writer.invalidate(&1).await.unwrap();
    tier.cut(0);
    assert!(cache.peek(&1).is_none());
    let got = spawn_get(&cache, 1);
    settle().await;
    assert!(!got.is_finished());
    gate.open();
    assert_eq!(text(&got.await.unwrap()), Some("new"));
    validate(&[&cache, &writer], &tier).await;
}

/// The flight has not begun to read, so the gap leaves it in the table. Its interim value from L1
/// is older than the gap.
#[tokio::test(start_paused = true)]
async fn the_interim_value_of_a_flight_does_not_survive_a_gap() {
    let (tier, source) = fixture(false, &["old"]);
    let (cache, writer) = (
        stale_settings(&source, &tier).build().unwrap(),
        node(&source, &tier),
    );
    cache.get(&1).await.unwrap();
    let gate = tier.gate("marks", When::Before);
    // A strict flight has an interim value for the callers that join it.
    let past = spawn_get_with(&cache, Read::fresh().skip_l1());
    gate.reached().await;
    tier.mute();
    writer.insert(1, "inserted".to_owned()).await.unwrap();
    cache.engine().start_new_epoch();
    let got = spawn_get(&cache, 1);
    settle().await;
    assert!(!got.is_finished());
    assert_eq!(cache.engine().flights.len(), 1, "it has joined");
    gate.open();
    for got in [past, got] {
        assert_eq!(text(&got.await.unwrap()), Some("inserted"));
    }
    validate(&[&cache, &writer], &tier).await;
}

#[tokio::test(start_paused = true)]
async fn an_interim_value_is_not_answered_after_its_tag_was_invalidated() {
    let source = Database::new(true, steps(&["old", "new"]));
    let cache = etags(&source).build().unwrap();
    source.answer();
    cache.get(&1).await.unwrap();
    source.loading().await;
    tokio::time::advance(TTL).await;
    assert_eq!(entry(&cache).await.1, Freshness::Stale);
    source.loading().await;
    cache.invalidate_tag("team:7").await.unwrap();
    let got = spawn_get(&cache, 1);
    settle().await;
    assert!(!got.is_finished());
    source.go.add_permits(2);
    assert_eq!(text(&got.await.unwrap()), Some("new"));
    validate(&[&cache], &InProcess::new()).await;
}

/// A flight reads a stale record from L2. The key is invalidated before the value becomes the
/// flight's interim value.
#[tokio::test(start_paused = true)]
async fn a_stale_record_that_is_invalidated_while_it_is_read_does_not_enter_l1() {
    let (tier, source) = fixture(true, &["old", "new"]);
    let (a, cold) = (
        stale_settings(&source, &tier).build().unwrap(),
        stale_settings(&source, &tier).build().unwrap(),
    );
    source.answer();
    a.get(&1).await.unwrap();
    tokio::time::advance(TTL).await;
    let gate = tier.gate("get", When::After);
    let early = spawn_get(&cold, 1);
    gate.reached().await;
    cold.invalidate(&1).await.unwrap();
    gate.open();
    assert_eq!(text(&early.await.unwrap()), Some("old"), "it began before");
    assert!(cold.peek(&1).is_none());
    let late = spawn_get(&cold, 1);
    settle().await;
    assert!(!late.is_finished());
    source.go.add_permits(2);
    assert_eq!(text(&late.await.unwrap()), Some("new"));
    validate(&[&a, &cold], &tier).await;
}

/// A hit looks at L1, the key is invalidated, and then the hit begins its refresh. Its interim
/// value would outlive the invalidation.
#[tokio::test(start_paused = true)]
async fn a_background_refresh_has_no_interim_value_that_was_invalidated_meanwhile() {
    let (tier, source) = fixture(true, &["old", "new"]);
    let cache = stale_settings(&source, &tier).build().unwrap();
    source.answer();
    cache.get(&1).await.unwrap();
    tokio::time::advance(TTL).await;
    let local = cache
        .engine()
        .l1_entry(&cache.shell.key(1), Instant::now())
        .unwrap();
    cache.invalidate(&1).await.unwrap();
    cache
        .engine()
        .refresh_in_background(cache.shell.key(1), &local);
    let got = spawn_get(&cache, 1);
    settle().await;
    source.answer();
    assert_eq!(text(&got.await.unwrap()), Some("new"));
    validate(&[&cache], &tier).await;
}
