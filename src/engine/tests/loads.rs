//! Loads: how they coalesce, fail, panic and time out, and how many run at once.

use super::*;

#[tokio::test(start_paused = true)]
async fn however_many_miss_at_once_there_is_one_read_and_one_load() {
    for callers in [10_usize, 1_000, 10_000] {
        let (tier, source) = (InProcess::new(), Database::new(true, [Step::Found("v")]));
        let cache = node(&source, &tier);
        let all: Vec<_> = (0..callers).map(|_| spawn_get(&cache, 1)).collect();
        source.loading().await;
        settle().await;
        source.answer();
        for got in all {
            assert_eq!(text(&got.await.unwrap()), Some("v"));
        }
        assert_eq!(source.calls(), 1);
        assert_eq!(tier.commands(), 3, "GET, acquire, fill");
        let stats = cache.stats();
        assert_eq!(
            (stats.misses, stats.coalesced),
            (callers as u64, callers as u64 - 1)
        );
        validate(&[&cache], &tier).await;
    }
}

#[tokio::test(start_paused = true)]
async fn an_error_is_everyones_and_held_for_its_backoff() {
    let (tier, source) = (
        InProcess::new(),
        Database::new(true, [Step::Fail("down"), Step::Found("up")]),
    );
    let cache = node(&source, &tier);
    let all: Vec<_> = (0..50).map(|_| spawn_get(&cache, 1)).collect();
    source.loading().await;
    settle().await;
    // A caller that comes while the load runs joins it.
    let late = spawn_get(&cache, 1);
    settle().await;
    source.answer();
    for got in all.into_iter().chain([late]) {
        assert!(
            matches!(got.await.unwrap(), Err(Error::Load(error)) if error.to_string() == "down")
        );
    }
    for _ in 0..100 {
        assert!(matches!(cache.get(&1).await, Err(Error::Load(_))));
        tokio::time::advance(Duration::from_millis(1)).await;
    }
    assert_eq!(source.calls(), 1);
    assert_eq!(cache.stats().errors_held, 100);
    tokio::time::advance(Duration::from_millis(101)).await;
    source.answer();
    assert_eq!(text(&cache.get(&1).await), Some("up"));
    assert_eq!(source.calls(), 2);
    assert_eq!(cache.stats().lookups(), 152);
    validate(&[&cache], &tier).await;
}

#[tokio::test(start_paused = true)]
async fn an_invalidation_or_an_insert_ends_a_held_error() {
    let source = Database::new(false, [Step::Fail("down"), Step::Found("up")]);
    let cache = settings(&source)
        .error_backoff(Duration::from_secs(3600))
        .build()
        .unwrap();
    assert!(cache.get(&1).await.is_err());
    assert!(cache.get(&1).await.is_err());
    assert_eq!(source.calls(), 1);
    cache.invalidate(&1).await.unwrap();
    assert_eq!(text(&cache.get(&1).await), Some("up"));
}

#[tokio::test(start_paused = true)]
async fn without_a_backoff_the_next_get_loads_again_at_once() {
    let (tier, source) = (
        InProcess::new(),
        Database::new(false, [Step::Fail("down"), Step::Panic, Step::Found("up")]),
    );
    let cache = settings(&source)
        .error_backoff(Duration::ZERO)
        .l2(tier.clone())
        .build()
        .unwrap();
    assert!(matches!(cache.get(&1).await, Err(Error::Load(_))));
    assert!(matches!(cache.get(&1).await, Err(Error::LoadPanicked)));
    assert_eq!(text(&cache.get(&1).await), Some("up"));
    validate(&[&cache], &tier).await;
}

#[tokio::test(start_paused = true)]
async fn a_panic_is_an_error_for_everyone_who_waits_and_nothing_more() {
    let (tier, source) = (
        InProcess::new(),
        Database::new(true, [Step::Panic, Step::Found("v")]),
    );
    let cache = node(&source, &tier);
    let all: Vec<_> = (0..20).map(|_| spawn_get(&cache, 1)).collect();
    source.loading().await;
    settle().await;
    source.answer();
    for got in all {
        assert!(matches!(got.await.unwrap(), Err(Error::LoadPanicked)));
    }
    assert!(matches!(cache.get(&1).await, Err(Error::LoadPanicked)));
    tokio::time::advance(Duration::from_millis(201)).await;
    source.answer();
    assert_eq!(text(&cache.get(&1).await), Some("v"));
    assert_eq!(source.calls(), 2);
    validate(&[&cache], &tier).await;
}

#[tokio::test(start_paused = true)]
async fn a_load_that_never_ends_is_cut_off_and_the_key_is_free_again() {
    for shared in [false, true] {
        let (tier, source) = (
            InProcess::new(),
            Database::new(false, [Step::Hang, Step::Found("v")]),
        );
        let settings = settings(&source).load_timeout(Duration::from_secs(3));
        let cache = if shared {
            settings.l2(tier.clone()).build()
        } else {
            settings.build()
        }
        .unwrap();
        let begun = Instant::now();
        let timeout = Duration::from_secs(3);
        assert!(matches!(cache.get(&1).await, Err(Error::LoadTimedOut(after)) if after == timeout));
        assert_eq!(begun.elapsed(), timeout);
        settle().await;
        assert_eq!(
            source.running.load(Ordering::SeqCst),
            0,
            "the loader's future was dropped"
        );
        tokio::time::advance(Duration::from_millis(201)).await;
        assert_eq!(text(&cache.get(&1).await), Some("v"));
        validate(&[&cache], &tier).await;
    }
}

#[tokio::test(start_paused = true)]
async fn loads_are_bounded_and_queueing_counts_towards_the_timeout() {
    let (tier, source) = (InProcess::new(), Database::new(true, [Step::Found("v")]));
    let cache = settings(&source)
        .max_concurrent_loads(2)
        .load_timeout(Duration::from_secs(5))
        .l2(tier.clone())
        .build()
        .unwrap();
    let all: Vec<_> = (0..4).map(|key| spawn_get(&cache, key)).collect();
    source.loading().await;
    source.loading().await;
    settle().await;
    assert_eq!(source.calls(), 2);
    tokio::time::advance(Duration::from_secs(2)).await;
    source.go.add_permits(1);
    source.loading().await;
    tokio::time::advance(Duration::from_secs(3)).await;
    let mut outcomes: Vec<_> = Vec::new();
    for got in all {
        outcomes.push(match got.await.unwrap() {
            Ok(_) => "value",
            Err(Error::LoadTimedOut(_)) => "timed out",
            Err(Error::Overloaded) => "overloaded",
            Err(other) => panic!("{other:?}"),
        });
    }
    outcomes.sort_unstable();
    // One load was answered. The one beside it timed out, and so did the one that took over the
    // permit, because its timeout began when it queued. The last one never got a permit.
    assert_eq!(outcomes, ["overloaded", "timed out", "timed out", "value"]);
    assert_eq!(source.max_running.load(Ordering::SeqCst), 2);
    assert_eq!(cache.stats().overloaded, 1);
    validate(&[&cache], &tier).await;
}

#[tokio::test(start_paused = true)]
async fn ten_thousand_cold_keys_never_run_more_loads_than_allowed() {
    let (tier, source) = (InProcess::new(), Database::new(false, [Step::Found("v")]));
    let cache = settings(&source)
        .max_concurrent_loads(7)
        .l2(tier.clone())
        .build()
        .unwrap();
    let all: Vec<_> = (0..10_000).map(|key| spawn_get(&cache, key)).collect();
    for got in all {
        assert_eq!(text(&got.await.unwrap()), Some("v"));
    }
    assert_eq!(source.calls(), 10_000);
    assert!(source.max_running.load(Ordering::SeqCst) <= 7);
    validate(&[&cache], &tier).await;
}

/// A loader that asks its own cache for another key. The cache is set when it is built.
struct NestedLoader {
    cache: Arc<std::sync::OnceLock<Cache<u64, String, BoxError>>>,
    key: fn(u64) -> u64,
}

impl Loader for NestedLoader {
    type Key = u64;
    type Value = String;
    type Error = BoxError;

    async fn load(&self, key: &u64) -> Result<Loaded<String>, BoxError> {
        if *key == 0 {
            return Ok(Loaded::found("root".to_owned()));
        }
        let asked = self
            .cache
            .get()
            .unwrap()
            .get(&(self.key)(*key))
            .await
            .map_err(BoxError::new)?;
        Ok(Loaded::found(format!("{key} of {}", asked.unwrap())))
    }
}

/// A cache whose loader asks it for `key` of the key that it loads.
fn nested(key: fn(u64) -> u64) -> Cache<u64, String, BoxError> {
    let itself = Arc::<std::sync::OnceLock<_>>::default();
    let cache = Cache::builder(
        "nested",
        NestedLoader {
            cache: Arc::clone(&itself),
            key,
        },
    )
    .l2(InProcess::new())
    .build()
    .unwrap();
    itself.set(cache.clone()).unwrap();
    cache
}

#[tokio::test(start_paused = true)]
async fn a_loader_that_asks_for_its_own_key_gets_an_error_and_for_another_key_a_value() {
    let begun = Instant::now();
    let own = nested(|key| key);
    let Err(Error::Load(error)) = own.get(&1).await else {
        panic!("expected the loader's error")
    };
    assert_eq!(
        error
            .get_ref()
            .downcast_ref::<Error<BoxError>>()
            .map(ToString::to_string)
            .unwrap(),
        Error::<BoxError>::LoadCycle.to_string()
    );
    let around = nested(|key| key % 3 + 1);
    assert!(
        matches!(around.get(&1).await, Err(Error::Load(_))),
        "1 asks for 2, 2 for 3, 3 for 1"
    );
    assert_eq!(
        begun.elapsed(),
        Duration::ZERO,
        "no look-up waited for a timeout"
    );
    let down = nested(|key| key - 1);
    assert_eq!(
        down.get(&2).await.unwrap().as_deref(),
        Some(&"2 of 1 of root".to_owned())
    );
}

#[test]
fn outside_a_runtime_a_future_is_an_error_and_not_a_panic() {
    let source = Database::new(false, [Step::Found("v")]);
    let cache = settings(&source).build().unwrap();
    let mut get = std::pin::pin!(cache.get(&1));
    let mut context = std::task::Context::from_waker(std::task::Waker::noop());
    let polled = Future::poll(get.as_mut(), &mut context);
    assert!(matches!(
        polled,
        std::task::Poll::Ready(Err(Error::NoRuntime))
    ));
}

thread_local! {
    /// Runs on this thread while the next key is encoded.
    static ON_ENCODE: std::cell::RefCell<Option<Box<dyn FnOnce()>>> = const { std::cell::RefCell::new(None) };
}

/// A key with a hook in its encoding, which happens after the look at L1 and before the look at the
/// flight table.
#[derive(Clone, PartialEq, Eq, Hash)]
struct SlowKey;

impl crate::CacheKey for SlowKey {
    fn encode(&self, key: &mut crate::KeyBuf) {
        if let Some(hook) = ON_ENCODE.take() {
            hook();
        }
        key.push_str("slow");
    }
}

struct SlowKeyLoader(Database);

impl Loader for SlowKeyLoader {
    type Key = SlowKey;
    type Value = String;
    type Error = BoxError;

    async fn load(&self, _: &SlowKey) -> Result<Loaded<String>, BoxError> {
        self.0.load(&1).await
    }
}

#[test]
fn a_flight_that_completes_between_the_look_at_l1_and_the_look_at_the_flights_is_not_repeated() {
    let source = Database::new(true, [Step::Found("v")]);
    let cache = Cache::builder("slow", SlowKeyLoader(source.clone()))
        .build()
        .unwrap();
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .enable_all()
        .build()
        .unwrap();
    let first = runtime.spawn({
        let cache = cache.clone();
        async move { cache.get(&SlowKey).await }
    });
    runtime.block_on(source.loading());
    let source_of_first = source.clone();
    ON_ENCODE.set(Some(Box::new(move || {
        source_of_first.answer();
        while !first.is_finished() {
            std::thread::yield_now();
        }
    })));
    let _inside = runtime.enter();
    let mut get = std::pin::pin!(cache.get(&SlowKey));
    let mut context = std::task::Context::from_waker(std::task::Waker::noop());
    let std::task::Poll::Ready(got) = Future::poll(get.as_mut(), &mut context) else {
        panic!("it loads again")
    };
    assert_eq!(text(&got), Some("v"));
    assert_eq!(cache.engine().flights.len(), 0, "it flies again");
    assert_eq!((source.calls(), cache.stats().l1_hits), (1, 1));
}

/// actix gives every worker a runtime of its own, so a flight's callers may outlive the runtime of
/// its task.
#[test]
fn when_the_runtime_of_a_load_ends_its_waiters_elsewhere_load_for_themselves() {
    let source = Database::new(true, [Step::Found("first"), Step::Found("second")]);
    let cache = settings(&source).build().unwrap();
    let runtime = || {
        tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap()
    };
    let (one, other) = (runtime(), runtime());
    one.block_on(async {
        spawn_get(&cache, 1);
        source.loading().await;
    });
    let waiting = other.spawn({
        let cache = cache.clone();
        async move { cache.get(&1).await }
    });
    other.block_on(settle());
    drop(one);
    source.answer();
    let got = other.block_on(waiting).unwrap();
    assert_eq!(text(&got), Some("second"));
    assert_eq!(cache.engine().flights.len(), 0);
}

#[tokio::test(start_paused = true)]
async fn the_future_of_a_get_is_small_whatever_the_loader_holds() {
    struct Large;
    impl Loader for Large {
        type Key = u64;
        type Value = String;
        type Error = BoxError;
        async fn load(&self, key: &u64) -> Result<Loaded<String>, BoxError> {
            let large = [*key; 10_000];
            tokio::task::yield_now().await;
            Ok(Loaded::found(large.len().to_string()))
        }
    }
    let cache = Cache::builder("large", Large).build().unwrap();
    assert!(
        size_of_val(&cache.get(&1)) <= 384,
        "{}",
        size_of_val(&cache.get(&1))
    );
    assert_eq!(
        cache.get(&1).await.unwrap().as_deref(),
        Some(&"10000".to_owned())
    );
}
