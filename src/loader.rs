//! The loader: the user's code that reads the source of truth, and what it returns.

use std::collections::HashMap;
use std::future::Future;
use std::marker::PhantomData;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use crate::Cache;
use crate::entry::AnyEntry;
use crate::entry::Entry;
use crate::erased::{self, AnyError, AnyKey, AnyValue};
use crate::key::CacheKey;

/// Reads one kind of thing from the source of truth.
///
/// One loader belongs to one cache, so that every call coalesces with every other one, and a
/// background refresh needs no caller. A loader is called at most once at a time for a key in one
/// process, and with a shared tier in the whole fleet. It runs in a task of its own: callers that
/// go away do not cancel it. It may be dropped at any await point when
/// [`load_timeout`](crate::CacheBuilder::load_timeout) has passed.
///
/// Two things it must not do: ask its own cache for the key that it is loading (that answers
/// [`Error::LoadCycle`](crate::Error::LoadCycle)), and read from a replica that may lag behind the
/// write that an invalidation announced, unless [`hold_off`](crate::CacheBuilder::hold_off) is set
/// to that lag.
///
/// ```
/// use tidegate::{Cache, Loaded, Loader};
///
/// struct Users; // would hold a connection pool
///
/// impl Loader for Users {
///     type Key = u64;
///     type Value = String;
///     type Error = std::io::Error;
///
///     async fn load(&self, id: &u64) -> Result<Loaded<String>, std::io::Error> {
///         let row = (*id < 100).then(|| format!("user {id}")); // SELECT … WHERE id = …
///         Ok(row.into()) // None becomes a negative entry
///     }
/// }
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let users = Cache::builder("users", Users).build()?;
/// assert_eq!(users.get(&7).await?.as_deref(), Some(&"user 7".to_owned()));
/// assert_eq!(users.get(&700).await?, None);
/// # Ok(())
/// # }
/// ```
pub trait Loader: Send + Sync + 'static {
    /// The name of a thing.
    type Key: CacheKey;
    /// The thing. It is handed out as `Arc<Value>`, so it need not be `Clone`. Only a shared tier
    /// needs serde's traits.
    type Value: Send + Sync + 'static;
    /// The error of a load that failed.
    type Error: std::error::Error + Send + Sync + 'static;

    /// Reads the thing, or says that there is none ([`Loaded::missing`]). If the source could not
    /// be asked, return an error, never "missing": an absence is cached.
    fn load(
        &self,
        key: &Self::Key,
    ) -> impl Future<Output = Result<Loaded<Self::Value>, Self::Error>> + Send;

    /// Reads a thing again whose entry is to be refreshed. If the source can tell cheaply that
    /// nothing has changed (by an ETag, a version or a timestamp), return [`Loaded::unchanged`]:
    /// the entry gets a new lifetime in both tiers, and its payload is neither decoded nor sent
    /// again.
    ///
    /// Called instead of [`load`](Self::load) where the previous value is at hand: before the TTL
    /// ends, within the stale windows, after [`expire`](Cache::expire). Never after
    /// [`invalidate`](Cache::invalidate).
    ///
    /// Default: calls `load`.
    ///
    /// ```
    /// use tidegate::{Entry, Loaded, Loader};
    ///
    /// struct Catalogue; // would hold an HTTP client
    ///
    /// #[derive(Clone, Debug)]
    /// struct Page { etag: u64, html: String }
    ///
    /// impl Loader for Catalogue {
    ///     type Key = u64;
    ///     type Value = Page;
    ///     type Error = std::io::Error;
    ///
    ///     async fn load(&self, id: &u64) -> Result<Loaded<Page>, std::io::Error> {
    ///         Ok(Page { etag: 1, html: format!("<h1>{id}</h1>") }.into())
    ///     }
    ///
    ///     async fn reload(&self, id: &u64, previous: &Entry<Page>) -> Result<Loaded<Page>, std::io::Error> {
    ///         let etag = 1; // GET …, If-None-Match: the etag of the previous one
    ///         if etag == previous.value().etag {
    ///             return Ok(Loaded::unchanged());
    ///         }
    ///         self.load(id).await
    ///     }
    /// }
    /// ```
    fn reload(
        &self,
        key: &Self::Key,
        previous: &Entry<Self::Value>,
    ) -> impl Future<Output = Result<Loaded<Self::Value>, Self::Error>> + Send {
        let _ = previous;
        self.load(key)
    }
}

/// A loader that can read many things with one query.
///
/// Given to [`CacheBuilder::batched`](crate::CacheBuilder::batched), it loads the keys that
/// [`get_many`](Cache::get_many) finds in neither tier. It also loads single look-ups that come
/// within one [`window`](crate::Batching::window), unless that is zero. Every key keeps its own
/// lease, fence and outcome: a key that is invalidated while its batch is loaded is not stored, and
/// the others are.
///
/// Like [`Loader::load`], it must not ask its own cache for any of the keys, nor read from a
/// replica that may lag behind.
///
/// ```
/// use std::collections::HashMap;
/// use tidegate::{BatchLoader, Batching, Cache, Loaded, Loader};
///
/// struct Users; // would hold a connection pool
///
/// impl Loader for Users {
///     type Key = u64;
///     type Value = String;
///     type Error = std::io::Error;
///
///     async fn load(&self, id: &u64) -> Result<Loaded<String>, std::io::Error> {
///         Ok(self.load_many(&[*id]).await?.remove(id).unwrap_or_else(Loaded::missing))
///     }
/// }
///
/// impl BatchLoader for Users {
///     async fn load_many(&self, ids: &[u64]) -> Result<HashMap<u64, Loaded<String>>, std::io::Error> {
///         // SELECT id, name FROM users WHERE id = ANY($1)
///         let rows = ids.iter().filter(|id| **id < 100).map(|id| (*id, format!("user {id}")));
///         Ok(rows.map(|(id, name)| (id, name.into())).collect()) // the others are "not found"
///     }
/// }
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let users = Cache::builder("users", Users).batched(Batching::new()).build()?;
/// let found = users.get_many(&[7, 700, 8]).await; // one query
/// let names = found.iter().map(|user| user.as_ref().ok().and_then(|user| user.as_deref()));
/// assert!(names.eq([Some(&"user 7".to_owned()), None, Some(&"user 8".to_owned())]));
/// # Ok(())
/// # }
/// ```
pub trait BatchLoader: Loader {
    /// Reads the things with these keys. No key is given twice. A key that the answer lacks is "not
    /// found", and becomes a negative entry; if the source did not say so, return an error.
    ///
    /// An error is the error of every key of the batch, and of no other key. [`Loader::reload`] is
    /// not called for a key that is refreshed in a batch; for such a key [`Loaded::unchanged`]
    /// keeps the previous entry here too.
    #[expect(clippy::type_complexity, reason = "a name for it would say less")]
    fn load_many(
        &self,
        keys: &[Self::Key],
    ) -> impl Future<Output = Result<HashMap<Self::Key, Loaded<Self::Value>>, Self::Error>> + Send;
}

/// The cache of a loader: `CacheFor<Users>` is `Cache<u64, User, sqlx::Error>`.
pub type CacheFor<L> = Cache<<L as Loader>::Key, <L as Loader>::Value, <L as Loader>::Error>;

/// What a loader found, and how the cache treats it.
///
/// `value.into()` and `option.into()` make one: `None` is "there is no such thing".
///
/// ```
/// use std::time::Duration;
/// use tidegate::Loaded;
///
/// let found = Loaded::found("Ada").ttl(Duration::from_secs(60)).version(7).tag("team:7");
/// let absent: Loaded<&str> = None.into();
/// let secret = Loaded::found("one-time code").do_not_store();
/// # let _ = (found, absent, secret);
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
#[must_use = "a loader returns it, `insert` takes it"]
pub struct Loaded<V> {
    pub(crate) value: Option<V>,
    pub(crate) ttl: Option<Duration>,
    pub(crate) store: bool,
    pub(crate) unchanged: bool,
    pub(crate) version: u64,
    /// The hashes of its tags.
    pub(crate) tags: Vec<u64>,
}

impl<V> Loaded<V> {
    /// The thing exists.
    pub fn found(value: V) -> Self {
        Self::new(Some(value))
    }

    fn new(value: Option<V>) -> Self {
        Self {
            value,
            ttl: None,
            store: true,
            unchanged: false,
            version: 0,
            tags: Vec::new(),
        }
    }

    /// The source of truth says that there is no such thing. The absence is kept for
    /// [`negative_ttl`](crate::CacheBuilder::negative_ttl).
    pub fn missing() -> Self {
        Self::new(None)
    }

    /// The thing has not changed. The previous entry gets a new lifetime, and keeps its value, its
    /// tags and, unless [`version`](Self::version) sets one, its version. Only [`Loader::reload`]
    /// may return it. Anywhere else there is no previous entry, and it is an
    /// [error](crate::Error::UnchangedWithoutPrevious).
    pub fn unchanged() -> Self {
        Self {
            unchanged: true,
            ..Self::new(None)
        }
    }

    /// How long the entry is fresh, instead of [`ttl`](crate::CacheBuilder::ttl) or `negative_ttl`.
    /// `ttl_jitter` still shortens it for a value that was found. Zero is the same as
    /// [`do_not_store`](Self::do_not_store).
    pub fn ttl(mut self, ttl: Duration) -> Self {
        self.ttl = Some(ttl);
        self
    }

    /// The version of the row: a number that grows with every write, such as a counter or a
    /// timestamp that the database keeps. An [`insert`](Cache::insert) with a version does not
    /// replace an entry of a later one. Zero is the same as none.
    pub fn version(mut self, version: u64) -> Self {
        self.version = version;
        self
    }

    /// Names a group that the value belongs to, such as `"team:7"`:
    /// [`invalidate_tag`](Cache::invalidate_tag) drops the whole group. An absence can have tags
    /// too. A value may have up to 64 tags. A value with more is answered and not stored, because
    /// it could not be dropped with each of them.
    pub fn tag(mut self, tag: impl AsRef<[u8]>) -> Self {
        let tag = tag_hash(tag.as_ref());
        if !self.tags.contains(&tag) {
            self.tags.push(tag);
        }
        self
    }

    /// Answers all callers that wait, and keeps nothing in either tier.
    pub fn do_not_store(mut self) -> Self {
        self.store = false;
        self
    }

    /// The same without the type of the value, for the engine.
    pub(crate) fn erased(self) -> Loaded<AnyValue>
    where
        V: Send + Sync + 'static,
    {
        Loaded {
            value: self.value.map(|value| Arc::new(value) as AnyValue),
            ttl: self.ttl,
            store: self.store,
            unchanged: self.unchanged,
            version: self.version,
            tags: self.tags,
        }
    }
}

/// The hash of a tag. Records and watermarks hold this hash, not the tag. Two tags that share a
/// hash are dropped together.
pub(crate) fn tag_hash(tag: &[u8]) -> u64 {
    xxhash_rust::xxh3::xxh3_64(tag)
}

impl<V> From<V> for Loaded<V> {
    fn from(value: V) -> Self {
        Self::found(value)
    }
}

impl<V> From<Option<V>> for Loaded<V> {
    fn from(value: Option<V>) -> Self {
        value.map_or_else(Self::missing, Self::found)
    }
}

/// Makes a [`Loader`] from a closure that takes the key by value and returns a value, an option, or
/// a [`Loaded`]. Because it may be any of the three, the type of the cache's value must be written
/// somewhere, as here:
///
/// ```
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// use tidegate::{Cache, loader_fn};
///
/// let squares: Cache<u32, u32, std::num::TryFromIntError> =
///     Cache::builder("squares", loader_fn(|n: u32| async move { u32::try_from(u64::from(n).pow(2)) }))
///         .build()?;
/// assert_eq!(squares.get(&9).await?.as_deref(), Some(&81));
/// # Ok(())
/// # }
/// ```
pub fn loader_fn<K, V, E, R, F, Fut>(f: F) -> impl Loader<Key = K, Value = V, Error = E>
where
    K: CacheKey,
    V: Send + Sync + 'static,
    E: std::error::Error + Send + Sync + 'static,
    R: Into<Loaded<V>> + 'static,
    F: Fn(K) -> Fut + Send + Sync + 'static,
    Fut: Future<Output = Result<R, E>> + Send + 'static,
{
    FnLoader {
        f,
        types: PhantomData,
    }
}

/// The types of a closure's arguments and results, without a value of any.
type Types<K, V, E, R> = fn(K) -> (V, E, R);

struct FnLoader<K, V, E, R, F> {
    f: F,
    types: PhantomData<Types<K, V, E, R>>,
}

impl<K, V, E, R, F, Fut> Loader for FnLoader<K, V, E, R, F>
where
    K: CacheKey,
    V: Send + Sync + 'static,
    E: std::error::Error + Send + Sync + 'static,
    R: Into<Loaded<V>> + 'static,
    F: Fn(K) -> Fut + Send + Sync + 'static,
    Fut: Future<Output = Result<R, E>> + Send + 'static,
{
    type Key = K;
    type Value = V;
    type Error = E;

    fn load(&self, key: &K) -> impl Future<Output = Result<Loaded<V>, E>> + Send {
        let loading = (self.f)(key.clone());
        async move { loading.await.map(Into::into) }
    }
}

/// One running load, for the engine.
pub(crate) type Loading<'a> =
    Pin<Box<dyn Future<Output = Result<Loaded<AnyValue>, AnyError>> + Send + 'a>>;

/// The running load of a batch. Its outcomes are in the order of the keys.
pub(crate) type LoadingMany<'a> =
    Pin<Box<dyn Future<Output = Result<Vec<Loaded<AnyValue>>, AnyError>> + Send + 'a>>;

/// A loader without its types. Its future is boxed once for each load, so that neither the engine
/// nor the futures of a cache carry the loader's state.
pub(crate) trait ErasedLoader: Send + Sync {
    fn load<'a>(&'a self, key: &'a AnyKey, previous: Option<AnyEntry>) -> Loading<'a>;
}

impl<L: Loader> ErasedLoader for L {
    fn load<'a>(&'a self, key: &'a AnyKey, previous: Option<AnyEntry>) -> Loading<'a> {
        // The calls are inside the future, because the engine catches a panic only while it polls
        // the future: a loader may panic before its first await.
        Box::pin(async move {
            let Some(key) = key.typed::<L::Key>() else {
                return erased::other_type(Ok(Loaded::missing().do_not_store()));
            };
            let loaded = match previous.and_then(AnyEntry::typed) {
                Some(previous) => self.reload(key, &previous).await,
                None => Loader::load(self, key).await,
            };
            loaded.map(Loaded::erased).map_err(AnyError::new)
        })
    }
}

/// A batch loader without its types.
pub(crate) trait ErasedBatchLoader: Send + Sync {
    fn load_many<'a>(&'a self, keys: &'a [AnyKey]) -> LoadingMany<'a>;
}

impl<L: BatchLoader> ErasedBatchLoader for L {
    fn load_many<'a>(&'a self, keys: &'a [AnyKey]) -> LoadingMany<'a> {
        Box::pin(async move {
            let keys: Vec<L::Key> = keys.iter().filter_map(AnyKey::typed).cloned().collect();
            let loaded = BatchLoader::load_many(self, &keys).await;
            let mut loaded = loaded.map_err(AnyError::new)?;
            let each = keys.iter().map(|key| {
                let loaded = loaded.remove(key).unwrap_or_else(Loaded::missing);
                loaded.erased()
            });
            Ok(each.collect())
        })
    }
}
