//! Batches whose keys are invalidated or asked for again while they wait to be loaded.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;

use crate::{BatchLoader, Batching, BoxError, Cache, Error, Loaded, Loader};

/// A batch loader that records the keys of each call. If `panics` is set, each call panics.
#[derive(Clone, Default)]
struct RecordingLoader {
    calls: Arc<Mutex<Vec<Vec<u64>>>>,
    panics: bool,
}

impl Loader for RecordingLoader {
    type Key = u64;
    type Value = u64;
    type Error = BoxError;

    async fn load(&self, key: &u64) -> Result<Loaded<u64>, BoxError> {
        let loaded = self.load_many(&[*key]).await?;
        Ok(loaded.into_values().next().unwrap_or_else(Loaded::missing))
    }
}

impl BatchLoader for RecordingLoader {
    async fn load_many(&self, keys: &[u64]) -> Result<HashMap<u64, Loaded<u64>>, BoxError> {
        self.calls.lock().push(keys.to_vec());
        assert!(!self.panics, "the loader panics, as the test asks");
        Ok(keys.iter().map(|key| (*key, (key * 10).into())).collect())
    }
}

/// A cache whose look-ups wait until three have come, for a second at most.
fn batches_of_three(loader: &RecordingLoader) -> Cache<u64, u64, BoxError> {
    let batching = Batching::new()
        .max_size(3)
        .window(Duration::from_secs(1))
        .wait_when_idle(true);
    let builder = Cache::builder("threes", loader.clone());
    builder.batched(batching).build().unwrap()
}

/// Begins a look-up and lets it run until it waits.
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
async fn a_key_that_is_invalidated_while_it_waits_is_loaded_for_both_look_ups() {
    let loader = RecordingLoader::default();
    let cache = batches_of_three(&loader);
    let (first, other) = (begin(&cache, 1).await, begin(&cache, 2).await);
    cache.invalidate(&1).await.unwrap();
    let second = begin(&cache, 1).await;
    for (asked, value) in [(first, 10), (other, 20), (second, 10)] {
        assert_eq!(asked.await.unwrap().unwrap().as_deref(), Some(&value));
    }
    assert_eq!(*loader.calls.lock(), [vec![1, 2], vec![1]]);
}

#[tokio::test(start_paused = true)]
async fn a_panic_reaches_the_look_ups_too_that_were_to_be_loaded_after_it() {
    let loader = RecordingLoader {
        panics: true,
        ..RecordingLoader::default()
    };
    let cache = batches_of_three(&loader);
    let (first, other) = (begin(&cache, 1).await, begin(&cache, 2).await);
    cache.invalidate(&1).await.unwrap();
    let second = begin(&cache, 1).await;
    let began = tokio::time::Instant::now();
    for asked in [first, other, second] {
        assert!(matches!(asked.await.unwrap(), Err(Error::LoadPanicked)));
    }
    assert!(
        began.elapsed() < Duration::from_secs(1),
        "no look-up waited for the window"
    );
}
