//! Leases: of the processes that miss a key, one loads it and the others wait for its fill.

use super::*;
use crate::protocol::record::Header;

#[tokio::test(start_paused = true)]
async fn nodes_wait_for_the_holder_without_a_command_and_are_woken_by_its_fill() {
    let (tier, source) = (InProcess::new(), Database::new(true, [Step::Found("v")]));
    let nodes: Vec<_> = (0..8).map(|_| node(&source, &tier)).collect();
    let holder = spawn_get(&nodes[0], 1);
    source.loading().await;
    let waiting: Vec<_> = nodes[1..]
        .iter()
        .flat_map(|node| (0..20).map(|_| spawn_get(node, 1)))
        .collect();
    settle().await;
    let before = tier.commands();
    tokio::time::advance(Duration::from_millis(500)).await;
    settle().await;
    assert_eq!(tier.commands(), before, "waiting sends nothing");
    let ended = Instant::now();
    source.answer();
    for got in waiting.into_iter().chain([holder]) {
        assert_eq!(text(&got.await.unwrap()), Some("v"));
    }
    assert_eq!(ended.elapsed(), Duration::ZERO, "woken, not timed out");
    assert_eq!(source.calls(), 1);
    assert_eq!(
        tier.commands(),
        before + 1 + 7,
        "the fill, and one GET for each node"
    );
    validate(&nodes.iter().collect::<Vec<_>>(), &tier).await;
}

/// The fill happens after the tier answered that the lease is held, and before that answer arrives.
#[tokio::test(start_paused = true)]
async fn a_wake_up_that_overtakes_the_answer_to_its_waiter_is_not_missed() {
    let (tier, source) = (InProcess::new(), Database::new(true, [Step::Found("v")]));
    let (holder, waiter) = (node(&source, &tier), node(&source, &tier));
    let held = spawn_get(&holder, 1);
    source.loading().await;
    let gate = tier.gate("acquire", When::After);
    let waiting = spawn_get(&waiter, 1);
    gate.reached().await;
    source.answer();
    assert_eq!(text(&held.await.unwrap()), Some("v"));
    let begun = Instant::now();
    gate.open();
    assert_eq!(text(&waiting.await.unwrap()), Some("v"));
    assert_eq!(begun.elapsed(), Duration::ZERO, "woken, not timed out");
    validate(&[&holder, &waiter], &tier).await;
}

/// A gap detaches a flight and leaves its lease. The next flight of the same cache waits for it.
#[tokio::test(start_paused = true)]
async fn a_flight_is_woken_by_the_fill_of_a_detached_one_of_its_own_cache() {
    use crate::l2::Listener;
    let (tier, source) = (InProcess::new(), Database::new(true, [Step::Found("v")]));
    let cache = node(&source, &tier);
    let detached = spawn_get(&cache, 1);
    source.loading().await;
    cache.engine().on_gap();
    let waiting = spawn_get(&cache, 1);
    settle().await;
    assert_eq!(cache.stats().lease_waits, 1);
    let begun = Instant::now();
    source.answer();
    assert_eq!(text(&detached.await.unwrap()), Some("v"));
    assert_eq!(text(&waiting.await.unwrap()), Some("v"));
    assert_eq!((begun.elapsed(), source.calls()), (Duration::ZERO, 1));
    validate(&[&cache], &tier).await;
}

#[tokio::test(start_paused = true)]
async fn a_lost_wake_up_is_replaced_by_the_end_of_the_lease() {
    let (tier, source) = (InProcess::new(), Database::new(true, [Step::Found("v")]));
    let (holder, waiter) = (node(&source, &tier), node(&source, &tier));
    let held = spawn_get(&holder, 1);
    source.loading().await;
    let waiting = spawn_get(&waiter, 1);
    settle().await;
    tier.mute();
    source.answer();
    held.await.unwrap().unwrap();
    let begun = Instant::now();
    assert_eq!(text(&waiting.await.unwrap()), Some("v"));
    assert!(
        begun.elapsed() <= Duration::from_millis(2_000 + 25 + 1),
        "{:?}",
        begun.elapsed()
    );
    assert_eq!(source.calls(), 1);
    validate(&[&holder, &waiter], &tier).await;
}

#[tokio::test(start_paused = true)]
async fn a_lease_is_renewed_while_its_load_runs() {
    let (tier, source) = (InProcess::new(), Database::new(true, [Step::Found("v")]));
    let (holder, waiter) = (node(&source, &tier), node(&source, &tier));
    let held = spawn_get(&holder, 1);
    source.loading().await;
    for _ in 0..16 {
        tokio::time::sleep(Duration::from_millis(500)).await;
        assert_eq!(raw_kind(&tier, KEY), Some(Kind::Lease));
    }
    let waiting = spawn_get(&waiter, 1);
    tokio::time::sleep(Duration::from_secs(5)).await;
    source.answer();
    assert_eq!(text(&held.await.unwrap()), Some("v"));
    assert_eq!(text(&waiting.await.unwrap()), Some("v"));
    assert_eq!(source.calls(), 1);
    validate(&[&holder, &waiter], &tier).await;
}

#[tokio::test(start_paused = true)]
async fn a_renewal_leaves_what_has_replaced_the_lease_as_it_is() {
    let (tier, source) = (InProcess::new(), Database::new(true, [Step::Found("old")]));
    let (holder, writer) = (node(&source, &tier), node(&source, &tier));
    let held = spawn_get(&holder, 1);
    source.loading().await;
    writer.insert(1, "new".to_owned()).await.unwrap();
    tokio::time::sleep(Duration::from_secs(1)).await;
    source.answer();
    assert_eq!(text(&held.await.unwrap()), Some("old"));
    // Longer than a lease.
    tokio::time::sleep(Duration::from_secs(3)).await;
    assert_eq!(raw_kind(&tier, KEY), Some(Kind::Value));
    validate(&[&holder, &writer], &tier).await;
}

/// The holder died, so its lease is not renewed.
#[tokio::test(start_paused = true)]
async fn a_dead_holder_is_replaced_when_its_lease_ends() {
    let (tier, source) = (InProcess::new(), Database::new(false, [Step::Found("v")]));
    let cache = node(&source, &tier);
    cache.get(&2).await.unwrap();
    let mut dead = Header::plain(Kind::Lease, [7; 16], record::key_hash(KEY), 0);
    dead.baseline = cache.engine().watermarks.baseline();
    tier.set_raw(KEY, &dead.to_record(), 2_000);
    let begun = Instant::now();
    assert_eq!(text(&cache.get(&1).await), Some("v"));
    let took = begun.elapsed();
    assert!((2_000..=2_026).contains(&took.as_millis()), "{took:?}");
    assert_eq!(raw_kind(&tier, KEY), Some(Kind::Value));
    assert_eq!((cache.stats().lease_waits, cache.stats().fills), (1, 2));
    validate(&[&cache], &tier).await;
}

#[tokio::test(start_paused = true)]
async fn after_lease_wait_a_waiter_loads_by_itself_and_does_not_fill_l2() {
    let (tier, source) = (
        InProcess::new(),
        Database::new(true, [Step::Found("slow"), Step::Found("own")]),
    );
    let holder = node(&source, &tier);
    let waiter = settings(&source)
        .lease_wait(Duration::from_millis(300))
        .l2(tier.clone())
        .build()
        .unwrap();
    let held = spawn_get(&holder, 1);
    source.loading().await;
    let begun = Instant::now();
    let waiting = spawn_get(&waiter, 1);
    source.loading().await;
    assert_eq!(begun.elapsed(), Duration::from_millis(300));
    assert_eq!(
        raw_kind(&tier, KEY),
        Some(Kind::Lease),
        "the holder's lease stands"
    );
    source.go.add_permits(2);
    assert_eq!(text(&waiting.await.unwrap()), Some("own"));
    assert_eq!(text(&held.await.unwrap()), Some("slow"));
    assert_eq!(
        (waiter.stats().fills, waiter.stats().lease_wait_exceeded),
        (0, 1)
    );
    validate(&[&holder, &waiter], &tier).await;
}

#[tokio::test(start_paused = true)]
async fn a_failed_load_is_recorded_and_other_nodes_do_not_repeat_it() {
    let (tier, source) = (
        InProcess::new(),
        Database::new(true, [Step::Fail("down"), Step::Found("up")]),
    );
    let nodes: Vec<_> = (0..5).map(|_| node(&source, &tier)).collect();
    let first = spawn_get(&nodes[0], 1);
    source.loading().await;
    let others: Vec<_> = nodes[1..].iter().map(|node| spawn_get(node, 1)).collect();
    settle().await;
    let ended = Instant::now();
    source.answer();
    assert!(matches!(first.await.unwrap(), Err(Error::Load(_))));
    for other in others {
        assert!(matches!(
            other.await.unwrap(),
            Err(Error::LoadFailedElsewhere)
        ));
    }
    assert!(matches!(
        nodes[1].get(&1).await,
        Err(Error::LoadFailedElsewhere)
    ));
    assert_eq!((ended.elapsed(), source.calls()), (Duration::ZERO, 1));
    assert_eq!(raw_kind(&tier, KEY), Some(Kind::Failed));
    tokio::time::advance(Duration::from_millis(201)).await;
    source.answer();
    assert_eq!(text(&nodes[1].get(&1).await), Some("up"));
    validate(&nodes.iter().collect::<Vec<_>>(), &tier).await;
}

#[tokio::test(start_paused = true)]
async fn a_waiter_whose_holder_is_invalidated_does_not_wait_for_it_any_longer() {
    let (tier, source) = (
        InProcess::new(),
        Database::new(true, [Step::Found("old"), Step::Found("new")]),
    );
    let (holder, waiter, writer) = (
        node(&source, &tier),
        node(&source, &tier),
        node(&source, &tier),
    );
    let held = spawn_get(&holder, 1);
    source.loading().await;
    let waiting = spawn_get(&waiter, 1);
    settle().await;
    let begun = Instant::now();
    writer.invalidate(&1).await.unwrap();
    source.loading().await;
    source.go.add_permits(2);
    assert_eq!(text(&waiting.await.unwrap()), Some("new"));
    assert_eq!(text(&held.await.unwrap()), Some("old"));
    assert_eq!(begun.elapsed(), Duration::ZERO);
    validate(&[&holder, &waiter, &writer], &tier).await;
}
