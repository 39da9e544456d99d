//! What the two tiers keep, and for how long: TTLs, absences, inserts, and what is not stored.

use super::*;

#[tokio::test(start_paused = true)]
async fn l1_answers_until_the_ttl_and_l2_fills_it_with_what_remains() {
    let (tier, source) = (InProcess::new(), Database::new(false, [Step::Found("v")]));
    let ttl = Duration::from_secs(10);
    let build = || settings(&source).ttl(ttl).l2(tier.clone()).build().unwrap();
    let (a, b) = (build(), build());
    a.get(&1).await.unwrap();
    tokio::time::advance(Duration::from_secs(6)).await;
    let entry = b.get_entry(&1).await.unwrap().unwrap();
    assert_eq!(
        (entry.source(), entry.age()),
        (Source::L2, Duration::from_secs(6))
    );
    tokio::time::advance(Duration::from_millis(3_999)).await;
    let entry = b.get_entry(&1).await.unwrap().unwrap();
    assert_eq!(
        (entry.source(), entry.age()),
        (Source::L1, Duration::from_millis(9_999))
    );
    assert_eq!(source.calls(), 1);
    tokio::time::advance(Duration::from_millis(1)).await;
    assert!(
        b.peek(&1).is_none() && a.peek(&1).is_none(),
        "no tier outlives the ttl"
    );
    assert_eq!(
        b.get_entry(&1).await.unwrap().unwrap().source(),
        Source::Loader
    );
    assert_eq!(source.calls(), 2);
    validate(&[&a, &b], &tier).await;
}

/// A value that is read from L2 just before its TTL ends gets no new TTL in L1.
#[tokio::test(start_paused = true)]
async fn a_value_read_in_its_last_millisecond_ends_with_its_ttl() {
    let (tier, source) = (InProcess::new(), Database::new(false, [Step::Found("v")]));
    let build = || {
        settings(&source)
            .ttl(Duration::from_secs(10))
            .l2(tier.clone())
            .build()
            .unwrap()
    };
    let (a, b) = (build(), build());
    a.get(&1).await.unwrap();
    tokio::time::advance(Duration::from_millis(9_999)).await;
    assert_eq!(b.get_entry(&1).await.unwrap().unwrap().source(), Source::L2);
    tokio::time::advance(Duration::from_millis(1)).await;
    assert!(b.peek(&1).is_none());
}

#[tokio::test(start_paused = true)]
async fn l1_ttl_bounds_l1_alone() {
    let (tier, source) = (InProcess::new(), Database::new(false, [Step::Found("v")]));
    let cache = settings(&source)
        .l1_ttl(Duration::from_secs(1))
        .l2(tier.clone())
        .build()
        .unwrap();
    cache.get(&1).await.unwrap();
    assert!(cache.peek(&1).is_some());
    tokio::time::advance(Duration::from_secs(1)).await;
    assert!(cache.peek(&1).is_none());
    assert_eq!(
        cache.get_entry(&1).await.unwrap().unwrap().source(),
        Source::L2
    );
    assert_eq!(source.calls(), 1);
}

/// A loader that returns the same thing for every call.
#[derive(Clone)]
struct Always(fn() -> Loaded<String>, Arc<AtomicUsize>);

impl Loader for Always {
    type Key = u64;
    type Value = String;
    type Error = BoxError;

    async fn load(&self, _: &u64) -> Result<Loaded<String>, BoxError> {
        self.1.fetch_add(1, Ordering::SeqCst);
        Ok((self.0)())
    }
}

fn always(what: fn() -> Loaded<String>) -> (Always, Arc<AtomicUsize>) {
    let calls = Arc::<AtomicUsize>::default();
    (Always(what, Arc::clone(&calls)), calls)
}

#[tokio::test(start_paused = true)]
async fn a_value_with_its_own_ttl_is_kept_that_long_in_both_tiers() {
    for secs in [2_u64, 3_600] {
        let (loader, calls) = if secs == 2 {
            always(|| Loaded::found("v".to_owned()).ttl(Duration::from_secs(2)))
        } else {
            always(|| Loaded::found("v".to_owned()).ttl(Duration::from_secs(3_600)))
        };
        let tier = InProcess::new();
        let build = || {
            Cache::builder("users", loader.clone())
                .ttl_jitter(0.0)
                .l2(tier.clone())
                .build()
                .unwrap()
        };
        let (a, b) = (build(), build());
        a.get(&1).await.unwrap();
        b.get(&1).await.unwrap();
        tokio::time::advance(Duration::from_millis(secs * 1_000 - 1)).await;
        assert!(a.peek(&1).is_some() && b.peek(&1).is_some());
        tokio::time::advance(Duration::from_millis(1)).await;
        assert!(a.peek(&1).is_none() && b.peek(&1).is_none());
        assert!(tier.is_empty());
        assert_eq!(calls.load(Ordering::SeqCst), 1);
    }
}

#[tokio::test(start_paused = true)]
async fn an_absence_is_a_hit_for_its_own_ttl() {
    let (tier, source) = (
        InProcess::new(),
        Database::new(false, [Step::Missing, Step::Found("v")]),
    );
    let (a, b) = (node(&source, &tier), node(&source, &tier));
    assert_eq!(text(&a.get(&1).await), None);
    assert_eq!(text(&a.get(&1).await), None);
    assert_eq!(text(&b.get(&1).await), None);
    assert_eq!(source.calls(), 1);
    assert_eq!((a.stats().negative_hits, a.stats().l1_hits), (1, 1));
    assert_eq!((b.stats().negative_hits, b.stats().l2_hits), (1, 1));
    assert!(a.peek(&1).is_none() && a.peek(&2).is_none());
    tokio::time::advance(Duration::from_millis(29_999)).await;
    assert_eq!(text(&a.get(&1).await), None);
    tokio::time::advance(Duration::from_millis(1)).await;
    assert_eq!(text(&a.get(&1).await), Some("v"));
    validate(&[&a, &b], &tier).await;
}

#[tokio::test(start_paused = true)]
async fn no_absence_is_kept_where_its_ttl_is_zero() {
    let (tier, source) = (InProcess::new(), Database::new(false, [Step::Missing]));
    let cache = settings(&source)
        .negative_ttl(Duration::ZERO)
        .l2(tier.clone())
        .build()
        .unwrap();
    for calls in 1..4 {
        assert_eq!(text(&cache.get(&1).await), None);
        assert_eq!(source.calls(), calls);
    }
    assert!(tier.is_empty());
    validate(&[&cache], &tier).await;
}

#[tokio::test(start_paused = true)]
async fn do_not_store_answers_everyone_who_waits_and_stores_nowhere() {
    let (loader, calls) = always(|| Loaded::found("v".to_owned()).do_not_store());
    let tier = InProcess::new();
    let cache = Cache::builder("users", loader)
        .l2(tier.clone())
        .build()
        .unwrap();
    let all: Vec<_> = (0..10).map(|_| spawn_get(&cache, 1)).collect();
    for got in all {
        assert_eq!(text(&got.await.unwrap()), Some("v"));
    }
    assert_eq!(calls.load(Ordering::SeqCst), 1);
    assert!(tier.is_empty() && cache.peek(&1).is_none());
    cache.get(&1).await.unwrap();
    assert_eq!(calls.load(Ordering::SeqCst), 2);
    validate(&[&cache], &tier).await;
}

#[tokio::test(start_paused = true)]
async fn absurd_durations_neither_overflow_nor_panic() {
    let (loader, calls) = always(|| Loaded::found("v".to_owned()).ttl(Duration::MAX));
    let tier = InProcess::new();
    let cache = Cache::builder("users", loader)
        .ttl(Duration::MAX)
        .l1_ttl(Duration::MAX)
        .negative_ttl(Duration::MAX)
        .degraded_l1_ttl(Duration::MAX)
        .load_timeout(Duration::MAX)
        .error_backoff(Duration::MAX)
        .lease_ttl(Duration::MAX)
        .lease_wait(Duration::MAX)
        .cold_start_spread(true)
        .l2(tier.clone())
        .build()
        .unwrap();
    for _ in 0..3 {
        assert_eq!(text(&cache.get(&1).await), Some("v"));
    }
    cache
        .insert(
            2,
            Loaded::found("w".to_owned()).ttl(Duration::from_nanos(1)),
        )
        .await
        .unwrap();
    cache.invalidate(&1).await.unwrap();
    assert_eq!(calls.load(Ordering::SeqCst), 1);
    validate(&[&cache], &tier).await;
}

#[tokio::test(start_paused = true)]
async fn entries_that_are_filled_together_expire_over_the_whole_band() {
    let (loader, _) = always(|| Loaded::found("v".to_owned()));
    let tier = InProcess::new();
    let ttl = Duration::from_secs(1_000);
    let spread = |builder: CacheBuilder<Always>| builder.ttl(ttl).l2(tier.clone()).build().unwrap();
    let jittered = spread(Cache::builder("jittered", loader.clone()).ttl_jitter(0.2));
    let cold = spread(Cache::builder("cold", loader).cold_start_spread(true));
    for key in 0..1_000 {
        jittered.get(&key).await.unwrap();
        cold.get(&key).await.unwrap();
    }
    let alive = |cache: &Users| (0..1_000).filter(|key| cache.peek(key).is_some()).count();
    tokio::time::advance(Duration::from_millis(49_999)).await;
    assert_eq!((alive(&jittered), alive(&cold)), (1_000, 1_000));
    tokio::time::advance(Duration::from_secs(475)).await;
    // Halfway through the band of the spread first TTLs: half of the entries, within six standard
    // deviations.
    assert_eq!(alive(&jittered), 1_000);
    assert!((400..600).contains(&alive(&cold)), "{}", alive(&cold));
    tokio::time::advance(Duration::from_secs(375)).await;
    // Halfway through the band of the jitter.
    assert!(
        (400..600).contains(&alive(&jittered)),
        "{}",
        alive(&jittered)
    );
    tokio::time::advance(Duration::from_millis(100_001)).await;
    assert_eq!(
        (alive(&jittered), alive(&cold)),
        (0, 0),
        "never later than the ttl"
    );
    // The cache is older than a TTL: the entry has its whole TTL again.
    cold.get(&1).await.unwrap();
    tokio::time::advance(Duration::from_secs(850)).await;
    assert!(cold.peek(&1).is_some());
}

/// The whole path of absences; the bound itself is tested in `negative_budget`.
#[tokio::test(start_paused = true)]
async fn a_flood_of_absent_keys_evicts_no_value_and_is_bounded_in_both_tiers() {
    let (tier, source) = (InProcess::new(), Database::new(false, [Step::Missing]));
    let cache = settings(&source)
        .l1_capacity(1_000)
        .negative_capacity(100)
        .negative_ttl(Duration::from_secs(10))
        .l2(tier.clone())
        .build()
        .unwrap();
    for key in 0..500 {
        cache.insert(key, "useful".to_owned()).await.unwrap();
    }
    let mut max_absences = 0;
    for flood in 0..20_000 {
        assert_eq!(text(&cache.get(&(1_000_000 + flood)).await), None);
        if flood % 100 == 0 {
            tokio::time::advance(Duration::from_millis(100)).await;
            max_absences = max_absences.max(tier.len() - 500);
        }
    }
    assert!(max_absences <= 200, "{max_absences} absences in L2 at once");
    assert!(cache.stats().negatives_not_stored > 15_000);
    let kept = (0..500).filter(|key| cache.peek(key).is_some()).count();
    assert_eq!(kept, 500);
    validate(&[&cache], &tier).await;
}

#[tokio::test(start_paused = true)]
async fn names_keep_caches_apart_on_one_tier() {
    let tier = InProcess::new();
    let cache = |name: &str, value: &'static str| {
        let source = Database::new(false, [Step::Found(value)]);
        Cache::builder(name, source)
            .l2(tier.clone())
            .build()
            .unwrap()
    };
    let (users, nested) = (cache("users", "a"), cache("users:1", "b"));
    assert_eq!(text(&users.get(&1).await), Some("a"));
    assert_eq!(text(&nested.get(&1).await), Some("b"));
    users.invalidate(&1).await.unwrap();
    assert!(nested.peek(&1).is_some());
    assert_eq!(tier.len(), 1);
}

#[tokio::test(start_paused = true)]
async fn an_insert_is_seen_at_once_here_and_by_one_message_elsewhere() {
    let (tier, source) = (
        InProcess::new(),
        Database::new(false, [Step::Found("loaded")]),
    );
    let (a, b) = (node(&source, &tier), node(&source, &tier));
    b.get(&1).await.unwrap();
    a.insert(1, "inserted".to_owned()).await.unwrap();
    assert_eq!(a.peek(&1).unwrap().value().as_str(), "inserted");
    assert!(b.peek(&1).is_none());
    assert_eq!(text(&b.get(&1).await), Some("inserted"));
    a.insert(1, None).await.unwrap();
    assert_eq!(text(&a.get(&1).await), None);
    assert_eq!(text(&b.get(&1).await), None);
    a.insert(1, Loaded::found("unkept".to_owned()).do_not_store())
        .await
        .unwrap();
    assert_eq!(text(&b.get(&1).await), Some("loaded"));
    assert_eq!(
        (
            a.stats().remote_invalidations,
            b.stats().remote_invalidations
        ),
        (0, 3)
    );
    validate(&[&a, &b], &tier).await;
}

#[tokio::test(start_paused = true)]
async fn l1_can_be_turned_off() {
    let (tier, source) = (InProcess::new(), Database::new(false, [Step::Found("v")]));
    let cache = settings(&source)
        .l1_capacity(0)
        .l2(tier.clone())
        .build()
        .unwrap();
    for _ in 0..3 {
        assert_eq!(text(&cache.get(&1).await), Some("v"));
    }
    assert_eq!(
        (cache.stats().l2_hits, cache.stats().l1_hits, source.calls()),
        (2, 0, 1)
    );
    assert!(cache.peek(&1).is_none());
}
