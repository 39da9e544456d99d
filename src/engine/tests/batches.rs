//! What batches come to when keys come and go while they wait.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;

use crate::l2::When;
use crate::{BatchLoader, Batching, BoxError, Cache, Error, InProcess, Loaded, Loader};

/// Notes its calls; the first of them panics if it is told to.
#[derive(Clone, Default)]
struct Noted {
    calls: Arc<Mutex<Vec<Vec<u64>>>>,
    panics: bool,
}

impl Loader for Noted {
    type Key = u64;
    type Value = u64;
    type Error = BoxError;

    async fn load(&self, key: &u64) -> Result<Loaded<u64>, BoxError> {
        let loaded = self.load_many(&[*key]).await?;
        Ok(loaded.into_values().next().unwrap_or_else(Loaded::missing))
    }
}

impl BatchLoader for Noted {
    async fn load_many(&self, keys: &[u64]) -> Result<HashMap<u64, Loaded<u64>>, BoxError> {
        self.calls.lock().push(keys.to_vec());
        assert!(!self.panics, "it was told to");
        Ok(keys.iter().map(|key| (*key, (key * 10).into())).collect())
    }
}

/// A cache in which look-ups wait until three have come.
fn threes(loader: &Noted) -> Cache<u64, u64, BoxError> {
    let batching = Batching::new()
        .max_size(3)
        .window(Duration::from_secs(1))
        .wait_when_idle(true);
    let builder = Cache::builder("threes", loader.clone());
    builder.batched(batching).build().unwrap()
}

async fn begin(
    cache: &Cache<u64, u64, BoxError>,
    key: u64,
) -> tokio::task::JoinHandle<Result<Option<Arc<u64>>, Error<BoxError>>> {
    let cache = cache.clone();
    let asked = tokio::spawn(async move { cache.get(&key).await });
    for _ in 0..10 {
        tokio::task::yield_now().await;
    }
    asked
}

#[tokio::test(start_paused = true)]
async fn a_key_that_is_invalidated_while_it_waits_is_loaded_for_both_who_want_it() {
    let noted = Noted::default();
    let cache = threes(&noted);
    let (first, other) = (begin(&cache, 1).await, begin(&cache, 2).await);
    cache.invalidate(&1).await.unwrap();
    let second = begin(&cache, 1).await;
    for (asked, value) in [(first, 10), (other, 20), (second, 10)] {
        assert_eq!(asked.await.unwrap().unwrap().as_deref(), Some(&value));
    }
    assert_eq!(*noted.calls.lock(), [vec![1, 2], vec![1]]);
}

#[tokio::test(start_paused = true)]
async fn a_panic_reaches_those_too_who_were_to_be_loaded_after_it() {
    let noted = Noted {
        panics: true,
        ..Noted::default()
    };
    let cache = threes(&noted);
    let (first, other) = (begin(&cache, 1).await, begin(&cache, 2).await);
    cache.invalidate(&1).await.unwrap();
    let second = begin(&cache, 1).await;
    let began = tokio::time::Instant::now();
    for asked in [first, other, second] {
        assert!(matches!(asked.await.unwrap(), Err(Error::LoadPanicked)));
    }
    assert!(
        began.elapsed() < Duration::from_secs(1),
        "nobody was cut off"
    );
}

#[tokio::test(start_paused = true)]
async fn a_warm_up_that_is_dropped_while_its_turn_is_granted_keeps_no_turn() {
    let tier = InProcess::new();
    let builder = Cache::builder("warm", Noted::default()).l2(tier.clone());
    let cache = builder.build().unwrap();
    let granted = tier.gate("acquire", When::After);
    let warming = tokio::spawn(cache.warm([1]).into_future());
    granted.reached().await;
    assert_eq!(tier.len(), 1, "the lease is there, and nobody knows of it");
    warming.abort();
    warming.await.unwrap_err();
    granted.open();
    for _ in 0..20 {
        tokio::task::yield_now().await;
    }
    assert!(tier.is_empty());
}
