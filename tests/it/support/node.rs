//! One cache as one process of a fleet, with a count of its look-ups.

use std::ops::Deref;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::Poll;

use tidegate::{BoxError, Cache, Entry, Error, Read};
use tokio::sync::oneshot;
use tokio::task::JoinHandle;

use super::{eventually, within};

/// The result of a look-up.
pub(crate) type GetResult<V = String> = Result<Option<Arc<V>>, Error<BoxError>>;

pub(crate) struct Node<V = String> {
    cache: Cache<u64, V, BoxError>,
    answered: Arc<AtomicU64>,
}

impl<V> Clone for Node<V> {
    fn clone(&self) -> Self {
        Self {
            cache: self.cache.clone(),
            answered: Arc::clone(&self.answered),
        }
    }
}

impl<V> Deref for Node<V> {
    type Target = Cache<u64, V, BoxError>;

    fn deref(&self) -> &Self::Target {
        &self.cache
    }
}

impl<V: Send + Sync + 'static> Node<V> {
    pub(crate) fn new(cache: Cache<u64, V, BoxError>) -> Self {
        Self {
            cache,
            answered: Arc::default(),
        }
    }

    pub(crate) async fn get(&self, key: u64) -> GetResult<V> {
        self.counted(self.cache.get(&key).await)
    }

    pub(crate) async fn get_entry(&self, key: u64) -> Result<Option<Entry<V>>, Error<BoxError>> {
        self.counted(self.cache.get_entry(&key).await)
    }

    pub(crate) async fn get_with(&self, key: u64, read: Read) -> GetResult<V> {
        self.counted(self.cache.get_with(&key, read).await)
    }

    pub(crate) async fn get_entry_with(
        &self,
        key: u64,
        read: Read,
    ) -> Result<Option<Entry<V>>, Error<BoxError>> {
        self.counted(self.cache.get_entry_with(&key, read).await)
    }

    pub(crate) async fn get_many(&self, keys: &[u64]) -> Vec<GetResult<V>> {
        let got = self.cache.get_many(keys).await;
        got.into_iter().map(|got| self.counted(got)).collect()
    }

    fn counted<T>(&self, got: Result<T, Error<BoxError>>) -> Result<T, Error<BoxError>> {
        if !matches!(got, Err(Error::Closed)) {
            self.answered.fetch_add(1, Ordering::SeqCst);
        }
        got
    }

    /// Callers in tasks of their own. When this returns, each of them leads a flight or has joined
    /// one.
    pub(crate) async fn callers(&self, how_many: usize, key: u64) -> Vec<JoinHandle<GetResult<V>>> {
        let mut callers = Vec::with_capacity(how_many);
        for _ in 0..how_many {
            callers.push(self.caller(key).await);
        }
        callers
    }

    pub(crate) async fn caller(&self, key: u64) -> JoinHandle<GetResult<V>> {
        let node = self.clone();
        begin(async move { node.get(key).await }).await
    }

    /// The same with options of the read.
    pub(crate) async fn caller_with(&self, key: u64, read: Read) -> JoinHandle<GetResult<V>> {
        let node = self.clone();
        begin(async move { node.get_with(key, read).await }).await
    }

    /// A caller of `refresh`.
    pub(crate) async fn refresher(&self, key: u64) -> JoinHandle<GetResult<V>> {
        let node = self.clone();
        begin(async move { node.refresh(&key).await }).await
    }

    /// A caller of `get_many` that has asked for all its keys when this returns.
    pub(crate) async fn many_caller(&self, keys: &[u64]) -> JoinHandle<Vec<GetResult<V>>> {
        let (node, keys) = (self.clone(), keys.to_vec());
        begin(async move { node.get_many(&keys).await }).await
    }

    /// Asserts that no flight and no task is left, and that every look-up was counted once.
    pub(crate) async fn check(&self) {
        eventually("no flight and no task is left", async || {
            let state = format!("{:?}", self.cache);
            state.contains("flights: 0,") && state.contains("tasks: 0,")
        })
        .await;
        let (counted, answered) = (
            self.cache.stats().lookups(),
            self.answered.load(Ordering::SeqCst),
        );
        assert_eq!(
            counted,
            answered,
            "look-ups do not add up: {:?}",
            self.cache.stats()
        );
    }
}

/// Runs a future in a task of its own and returns when it has been polled once.
pub(crate) async fn begin<T: Send + 'static>(
    future: impl Future<Output = T> + Send + 'static,
) -> JoinHandle<T> {
    let (polled, was_polled) = oneshot::channel();
    let task = tokio::spawn(async move {
        let mut future = pin!(future);
        let at_once = std::future::poll_fn(|cx| Poll::Ready(future.as_mut().poll(cx))).await;
        let _ = polled.send(());
        match at_once {
            Poll::Ready(output) => output,
            Poll::Pending => future.await,
        }
    });
    within("a task is polled", was_polled)
        .await
        .expect("the task was polled");
    task
}

/// The result of a task.
pub(crate) async fn answer<T>(caller: JoinHandle<T>) -> T {
    within("a caller is answered", caller)
        .await
        .expect("the caller was not dropped")
}

/// The value that a look-up found.
pub(crate) fn value(got: GetResult) -> String {
    let found = got.unwrap_or_else(|error| panic!("a look-up failed: {error:?}"));
    found.expect("the key exists").as_str().to_owned()
}

/// The values that a call for many keys found, with "-" for an absence.
pub(crate) fn values(got: Vec<GetResult>) -> Vec<String> {
    let found = got.into_iter().map(|got| {
        let found = got.unwrap_or_else(|error| panic!("a look-up failed: {error:?}"));
        found.map_or("-".to_owned(), |value| value.as_str().to_owned())
    });
    found.collect()
}
