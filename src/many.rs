//! Look-ups of many keys: as a stream, and ahead of time.

use std::fmt;
use std::future::IntoFuture;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use futures_core::Stream;

use crate::Cache;
use crate::error::Error;
use crate::key::CacheKey;

/// Keys that are looked up together.
const TOGETHER: usize = 1_000;

type Found<K, V, E> = (K, Result<Option<Arc<V>>, Error<E>>);
type LookUp<K, V, E> = Pin<Box<dyn Future<Output = Vec<Found<K, V, E>>> + Send>>;

/// The outcomes of [`Cache::get_stream`], each with its key.
///
/// Cancel safe: look-ups that have begun go on and are stored. Keys that were taken from the stream
/// of keys and not answered are lost.
#[must_use = "streams do nothing unless polled"]
pub struct GetStream<K, V, E, S> {
    cache: Cache<K, V, E>,
    /// `None` when the stream of keys has ended.
    keys: Option<Pin<Box<S>>>,
    under_way: Option<LookUp<K, V, E>>,
    found: std::vec::IntoIter<Found<K, V, E>>,
}

/// Only boxed fields are pinned.
impl<K, V, E, S> Unpin for GetStream<K, V, E, S> {}

impl<K, V, E, S> GetStream<K, V, E, S> {
    pub(crate) fn new(cache: Cache<K, V, E>, keys: S) -> Self {
        Self {
            cache,
            keys: Some(Box::pin(keys)),
            under_way: None,
            found: Vec::new().into_iter(),
        }
    }
}

impl<K, V, E, S> GetStream<K, V, E, S>
where
    K: CacheKey,
    V: Send + Sync + 'static,
    E: Send + Sync + 'static,
    S: Stream<Item = K>,
{
    /// Takes the keys that are ready now.
    fn gather(&mut self, cx: &mut Context<'_>) -> Vec<K> {
        let mut gathered = Vec::new();
        while let (Some(keys), true) = (&mut self.keys, gathered.len() < TOGETHER) {
            match keys.as_mut().poll_next(cx) {
                Poll::Ready(Some(key)) => gathered.push(key),
                Poll::Ready(None) => self.keys = None,
                Poll::Pending => break,
            }
        }
        gathered
    }
}

impl<K, V, E, S> Stream for GetStream<K, V, E, S>
where
    K: CacheKey,
    V: Send + Sync + 'static,
    E: Send + Sync + 'static,
    S: Stream<Item = K>,
{
    type Item = Found<K, V, E>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let this = &mut *self;
        loop {
            if let Some(found) = this.found.next() {
                return Poll::Ready(Some(found));
            }
            if let Some(under_way) = &mut this.under_way {
                let Poll::Ready(found) = under_way.as_mut().poll(cx) else {
                    return Poll::Pending;
                };
                this.under_way = None;
                this.found = found.into_iter();
                continue;
            }
            let keys = this.gather(cx);
            if keys.is_empty() {
                return match this.keys {
                    Some(_) => Poll::Pending,
                    None => Poll::Ready(None),
                };
            }
            let cache = this.cache.clone();
            this.under_way = Some(Box::pin(async move {
                let found = cache.get_many(&keys).await;
                keys.into_iter().zip(found).collect()
            }));
        }
    }
}

impl<K, V, E, S> fmt::Debug for GetStream<K, V, E, S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("GetStream")
            .field("cache", &self.cache)
            .finish_non_exhaustive()
    }
}

type Tell = Box<dyn FnMut(&WarmProgress) + Send>;

/// A warm-up that begins when it is awaited: see [`Cache::warm`].
///
/// It looks the keys up as [`get_many`](Cache::get_many) does, up to 1,000 at a time. Afterwards
/// they are in both tiers, as far as L1 has room, and count as look-ups. With a shared tier one
/// process of the fleet does so at a time. The others wait for their turn, and then find the loaded
/// values in L2. A process that dies is replaced within
/// [`lease_ttl`](crate::CacheBuilder::lease_ttl). While the shared tier cannot be asked, no process
/// waits.
///
/// A warm-up that is dropped before it has ended loads no further keys, and gives up its turn.
#[must_use = "a warm-up does nothing until it is awaited"]
pub struct Warm<K, V, E, I> {
    cache: Cache<K, V, E>,
    keys: I,
    loads_per_second: u32,
    tell: Option<Tell>,
}

impl<K, V, E, I> Warm<K, V, E, I> {
    pub(crate) fn new(cache: Cache<K, V, E>, keys: I) -> Self {
        Self {
            cache,
            keys,
            loads_per_second: 0,
            tell: None,
        }
    }

    /// Loads no more keys a second than this on average, and a tenth of them at once. Keys that one
    /// of the tiers has do not count.
    ///
    /// Default: zero: only the limits of the cache apply.
    pub fn loads_per_second(mut self, loads: u32) -> Self {
        self.loads_per_second = loads;
        self
    }

    /// A function that is called after every group of keys, and every time that the warm-up finds
    /// that it is another process's turn.
    pub fn on_progress(mut self, tell: impl FnMut(&WarmProgress) + Send + 'static) -> Self {
        self.tell = Some(Box::new(tell));
        self
    }
}

/// The progress of a warm-up.
#[non_exhaustive]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct WarmProgress {
    /// Keys that have been looked up.
    pub done: u64,
    /// The number of all keys, if the iterator knows it.
    pub total: Option<u64>,
    /// Of those done: in one of the tiers already.
    pub cached: u64,
    /// Of those done: loaded, by this warm-up or by a load that it joined.
    pub loaded: u64,
    /// Of those done: failed. The next look-up tries again.
    pub failed: u64,
    /// It is the turn of another process.
    pub waiting: bool,
}

impl<K, V, E, I> IntoFuture for Warm<K, V, E, I>
where
    K: CacheKey,
    V: Send + Sync + 'static,
    E: Send + Sync + 'static,
    I: Iterator<Item = K> + Send + 'static,
{
    type Output = WarmProgress;
    type IntoFuture = Pin<Box<dyn Future<Output = WarmProgress> + Send>>;

    fn into_future(self) -> Self::IntoFuture {
        let Self {
            cache,
            keys,
            loads_per_second,
            tell,
        } = self;
        let mut tell = tell.unwrap_or_else(|| Box::new(|_| {}));
        Box::pin(async move {
            let mut keys = keys.map(|key| cache.shell.key(key));
            let engine = &cache.shell.engine;
            engine.warm(&mut keys, loads_per_second, &mut *tell).await
        })
    }
}

impl<K, V, E, I> fmt::Debug for Warm<K, V, E, I> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Warm")
            .field("cache", &self.cache)
            .field("loads_per_second", &self.loads_per_second)
            .finish_non_exhaustive()
    }
}
