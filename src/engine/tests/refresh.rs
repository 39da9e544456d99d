//! Refreshes: which of them load, how many run, and what they leave in the tiers.

use super::*;
use crate::engine::core::MAX_BACKGROUND;
use crate::engine::memory::RETRY_AFTER;
use crate::protocol::record::{HEADER, Header};

/// Takes all permits of background refreshes.
fn all_background_permits(cache: &Users) -> tokio::sync::OwnedSemaphorePermit {
    let background = Arc::clone(&cache.engine().background);
    let all = u32::try_from(MAX_BACKGROUND).unwrap();
    background.try_acquire_many_owned(all).unwrap()
}

#[tokio::test(start_paused = true)]
async fn a_refresh_loads_whatever_there_is_and_coalesces() {
    let (tier, source) = (
        InProcess::new(),
        Database::new(
            true,
            [Step::Found("old"), Step::Found("new"), Step::Fail("down")],
        ),
    );
    let (a, b) = (node(&source, &tier), node(&source, &tier));
    source.answer();
    a.get(&1).await.unwrap();
    b.get(&1).await.unwrap();
    source.loading().await;
    let refresh = |cache: &Users| {
        let cache = cache.clone();
        tokio::spawn(async move { cache.refresh(&1).await })
    };
    let first = refresh(&a);
    source.loading().await;
    let others = [refresh(&a), refresh(&b), refresh(&b)];
    settle().await;
    assert_eq!(
        sourced_entry(&a).await,
        ("old".to_owned(), Source::L1, Freshness::Fresh)
    );
    source.answer();
    for got in [first].into_iter().chain(others) {
        assert_eq!(text(&got.await.unwrap()), Some("new"));
    }
    assert_eq!(source.calls(), 2);
    assert_eq!(
        (sourced_entry(&a).await.0, sourced_entry(&b).await.0),
        ("new".to_owned(), "new".to_owned())
    );
    source.answer();
    assert!(matches!(a.refresh(&1).await, Err(Error::Load(_))));
    assert!(matches!(a.refresh(&1).await, Err(Error::Load(_))), "held");
    assert!(matches!(
        b.refresh(&1).await,
        Err(Error::LoadFailedElsewhere)
    ));
    assert_eq!(
        (source.calls(), sourced_entry(&a).await.0),
        (3, "new".to_owned())
    );
    validate(&[&a, &b], &tier).await;
}

#[tokio::test(start_paused = true)]
async fn a_refresh_joins_no_flight_that_only_reads() {
    let (tier, source) = fixture(false, &["old", "new"]);
    let (a, cold) = (node(&source, &tier), node(&source, &tier));
    a.get(&1).await.unwrap();
    let gate = tier.gate("get", When::After);
    let read = spawn_get(&cold, 1);
    gate.reached().await;
    let refresh = spawn_refresh(&cold);
    settle().await;
    gate.open();
    assert_eq!(text(&read.await.unwrap()), Some("old"));
    assert_eq!(text(&refresh.await.unwrap()), Some("new"));
    validate(&[&a, &cold], &tier).await;
}

#[tokio::test(start_paused = true)]
async fn an_early_refresh_is_one_load_in_the_background() {
    let (tier, source) = fixture(true, &["old", "new"]);
    let build = || {
        let settings = settings(&source).ttl(TTL).refresh_ahead(4.0);
        settings.l2(tier.clone()).build().unwrap()
    };
    let nodes: Vec<_> = (0..3).map(|_| build()).collect();
    let first = spawn_get(&nodes[0], 1);
    source.loading().await;
    // The load takes 100 ms, which is what the draw of an early refresh depends on.
    tokio::time::sleep(MS * 100).await;
    source.answer();
    first.await.unwrap().unwrap();
    let begun = Instant::now();
    while source.calls() == 1 {
        for node in &nodes {
            assert_eq!(sourced_entry(node).await.2, Freshness::Fresh);
        }
        tokio::time::sleep(MS * 5).await;
        assert!(begun.elapsed() < TTL, "it was not early");
    }
    assert!(begun.elapsed() > TTL / 2, "not in the first half");
    for _ in 0..20 {
        for node in &nodes {
            assert_eq!(sourced_entry(node).await.0, "old");
        }
        tokio::time::sleep(MS * 5).await;
    }
    assert_eq!(source.calls(), 2);
    source.answer();
    settle().await;
    assert_eq!(source.calls(), 2);
    let filled: u64 = nodes.iter().map(|node| node.stats().fills).sum();
    assert_eq!(filled, 2);
    validate(&nodes.iter().collect::<Vec<_>>(), &tier).await;
}

#[tokio::test(start_paused = true)]
async fn without_l2_nothing_is_refreshed_before_its_time() {
    let (tier, source) = fixture(false, &["old", "new"]);
    let cache = stale_settings(&source, &tier).build().unwrap();
    cache.get(&1).await.unwrap();
    for time in [TTL / 2, TTL / 2] {
        let loads = source.calls();
        tokio::time::advance(time).await;
        let local = cache
            .engine()
            .l1_entry(&cache.shell.key(1), Instant::now())
            .unwrap();
        tier.fail("get", When::Before, RemoteKind::Unreachable);
        cache
            .engine()
            .refresh_in_background(cache.shell.key(1), &local);
        settle().await;
        let due = Instant::now() - cache.engine().created_at >= TTL;
        assert_eq!(source.calls() - loads, usize::from(due));
    }
    validate(&[&cache], &tier).await;
}

#[tokio::test(start_paused = true)]
async fn background_refreshes_are_bounded() {
    const KEYS: u64 = 1_500;
    let source = Database::new(true, steps(&["old", "new"]));
    let cache = settings(&source)
        .ttl(TTL)
        .stale_while_revalidate(TTL)
        .build()
        .unwrap();
    for key in 0..KEYS {
        cache.insert(key, "old".to_owned()).await.unwrap();
    }
    tokio::time::advance(TTL).await;
    for key in 0..KEYS {
        assert_eq!(text(&cache.get(&key).await), Some("old"));
    }
    for _ in 0..40 {
        settle().await;
    }
    assert_eq!(source.calls(), MAX_BACKGROUND);
    // The others are refreshed by a later hit.
    source.go.add_permits(KEYS as usize);
    tokio::time::advance(RETRY_AFTER).await;
    for _ in 0..40 {
        settle().await;
    }
    for key in 0..KEYS {
        cache.get(&key).await.unwrap();
    }
    for _ in 0..40 {
        settle().await;
    }
    assert_eq!(source.calls(), KEYS as usize);
    validate(&[&cache], &InProcess::new()).await;
}

/// A flight without a background permit completes with the stale entry that it has found. A strict
/// look-up that joined it does not take that answer.
#[tokio::test(start_paused = true)]
async fn without_a_permit_a_stale_entry_of_l2_is_answered_and_refreshed_for_strict_look_ups() {
    let (tier, source) = fixture(false, &["old", "new"]);
    let cache = stale_settings(&source, &tier)
        .l1_capacity(0)
        .build()
        .unwrap();
    cache.get(&1).await.unwrap();
    tokio::time::advance(TTL).await;
    let permits = all_background_permits(&cache);
    for _ in 0..3 {
        assert_eq!(entry(&cache).await, ("old".to_owned(), Freshness::Stale));
        settle().await;
    }
    assert_eq!(source.calls(), 1);
    let gate = tier.gate("get", When::After);
    let usual = spawn_get(&cache, 1);
    gate.reached().await;
    let strict = spawn_get_with(&cache, Read::fresh());
    settle().await;
    gate.open();
    assert_eq!(text(&usual.await.unwrap()), Some("old"));
    assert_eq!(text(&strict.await.unwrap()), Some("new"));
    assert_eq!(source.calls(), 2);
    drop(permits);
    validate(&[&cache], &tier).await;
}

#[tokio::test(start_paused = true)]
async fn an_unchanged_entry_is_another_record_with_the_same_value() {
    let (tier, source) = (
        InProcess::new(),
        Database::new(
            true,
            [Step::Found("old"), Step::Missing, Step::Found("new")],
        ),
    );
    let build = || etags(&source).l2(tier.clone()).build().unwrap();
    let (a, b, cold) = (build(), build(), build());
    source.answer();
    a.get(&1).await.unwrap();
    b.get(&1).await.unwrap();
    let first = tier.raw(KEY).unwrap();
    tokio::time::advance(TTL).await;
    for cache in [&a, &b] {
        assert_eq!(entry(cache).await, ("old".to_owned(), Freshness::Stale));
        settle().await;
    }
    source.answer();
    settle().await;
    for cache in [&a, &b, &cold] {
        assert_eq!(entry(cache).await, ("old".to_owned(), Freshness::Fresh));
    }
    settle().await;
    assert_eq!(
        source.calls(),
        2,
        "the node that waited does not load again"
    );
    let unchanged: u64 = [&a, &b].map(|cache| cache.stats().unchanged).iter().sum();
    assert_eq!(unchanged, 1);
    let second = tier.raw(KEY).unwrap();
    assert_eq!(first[HEADER..], second[HEADER..]);
    let parse = |record: &[u8]| Header::parse(record, record::key_hash(KEY)).unwrap().0;
    let (first, second) = (parse(&first), parse(&second));
    assert_ne!(first.token, second.token);
    assert_eq!(second.created_ms - first.created_ms, 10_000);
    assert_eq!((second.version, second.tags), (7, 1));
    // L1 has its tags too.
    cold.invalidate_tag("team:7").await.unwrap();
    source.answer();
    for cache in [&a, &b, &cold] {
        assert!(cache.peek(&1).is_none());
        assert_eq!(text(&cache.get(&1).await), Some("new"));
    }
    validate(&[&a, &b, &cold], &tier).await;
}

#[tokio::test(start_paused = true)]
async fn unchanged_without_a_previous_one_is_an_error() {
    struct Lazy;
    impl Loader for Lazy {
        type Key = u64;
        type Value = String;
        type Error = BoxError;

        async fn load(&self, _: &u64) -> Result<Loaded<String>, BoxError> {
            Ok(Loaded::unchanged())
        }
    }
    for tier in [None, Some(InProcess::new())] {
        let mut settings = Cache::builder("users", Lazy);
        if let Some(tier) = &tier {
            settings = settings.l2(tier.clone());
        }
        let cache = settings.build().unwrap();
        let got = cache.get(&1).await;
        assert!(
            matches!(got, Err(Error::UnchangedWithoutPrevious)),
            "{got:?}"
        );
        let insert = cache.insert(1, Loaded::unchanged()).await;
        assert!(insert.is_err());
        assert!(cache.peek(&1).is_none());
        let tier = tier.unwrap_or_default();
        assert_ne!(raw_kind(&tier, KEY), Some(Kind::Negative));
        validate(&[&cache], &tier).await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_refresh_whose_value_is_not_to_be_stored_takes_the_old_one_out_of_l2() {
    #[derive(Clone)]
    struct Once(Database);
    impl Loader for Once {
        type Key = u64;
        type Value = String;
        type Error = BoxError;

        async fn load(&self, key: &u64) -> Result<Loaded<String>, BoxError> {
            self.0.load(key).await
        }

        async fn reload(&self, key: &u64, _: &Entry<String>) -> Result<Loaded<String>, BoxError> {
            Ok(self.0.load(key).await?.do_not_store())
        }
    }
    let (tier, source) = fixture(false, &["old", "secret"]);
    let settings = Cache::builder("users", Once(source.clone())).ttl_jitter(0.0);
    let cache = with_stale_windows(settings)
        .l2(tier.clone())
        .build()
        .unwrap();
    cache.get(&1).await.unwrap();
    tokio::time::advance(TTL).await;
    let got = cache.get_with(&1, Read::fresh()).await;
    assert_eq!(text(&got), Some("secret"));
    assert!(tier.is_empty());
    validate(&[&cache], &tier).await;
}

/// The stale entry is not answered again, even though its successor may not be kept.
#[tokio::test(start_paused = true)]
async fn a_refresh_whose_outcome_is_not_kept_leaves_nothing_old_behind() {
    for shared in [true, false] {
        let tier = InProcess::new();
        let source = Database::new(false, [Step::Found("old"), Step::Missing]);
        let settings = settings(&source)
            .ttl(Duration::from_secs(10))
            .stale_while_revalidate(Duration::from_secs(10))
            .negative_ttl(Duration::ZERO);
        let cache = if shared {
            settings.l2(tier.clone()).build().unwrap()
        } else {
            settings.build().unwrap()
        };
        assert_eq!(text(&cache.get(&1).await), Some("old"));
        tokio::time::advance(Duration::from_secs(11)).await;
        let strict = Read::fresh();
        assert_eq!(cache.get_with(&1, strict).await.unwrap(), None);
        assert_eq!(cache.get(&1).await.unwrap(), None, "shared: {shared}");
        assert!(tier.is_empty());
        validate(&[&cache], &tier).await;
    }
}
