//! The handle of a cache, with all its operations.

use std::borrow::Borrow;
use std::fmt;
use std::hash::Hash;
use std::sync::Arc;

use futures_core::Stream;

use crate::builder::CacheBuilder;
use crate::engine::change::write::{AfterWrite, Written};
use crate::entry::{Entry, Read};
use crate::error::{BoxError, Error, RemoteError, WriteError};
use crate::health::Health;
use crate::key::CacheKey;
use crate::loader::{Loaded, Loader};
use crate::many::{GetStream, Warm};
use crate::shell::{LookedUp, Shell, entry_of, value_of};
use crate::stats::Stats;

/// A cache of one kind of value: a handle that is cheap to clone and needs no `Arc` around it.
///
/// [`builder`](Cache::builder) makes one. All handles share one state. The cache works until the
/// last handle is dropped or [`close`](Self::close) is called. Its futures must be polled inside a
/// tokio runtime.
///
/// Look-ups take borrowed forms of the key, as those of a `HashMap` do: `&str` for `String`.
///
/// # Cancel safety
///
/// Every future may be dropped at any time. A read or load that has begun goes on and is stored for
/// later callers. An `insert` or `invalidate` that has begun is completed.
pub struct Cache<K, V, E = BoxError> {
    pub(crate) shell: Shell<K, V, E>,
}

impl Cache<(), (), BoxError> {
    /// The settings of a cache over this loader. [`build`](CacheBuilder::build) makes the cache.
    ///
    /// The name is the cache's namespace in Redis (keys are called `tidegate:name:key`) and its
    /// label in metrics and traces. Caches of one name on one Redis share their entries, so the
    /// name must mean the same thing in every process.
    pub fn builder<L: Loader>(name: &str, loader: L) -> CacheBuilder<L> {
        CacheBuilder::new(name, loader)
    }
}

impl<K, V, E> Cache<K, V, E>
where
    K: CacheKey,
    V: Send + Sync + 'static,
    E: Send + Sync + 'static,
{
    pub(crate) fn new(shell: Shell<K, V, E>) -> Self {
        Self { shell }
    }

    /// The value of a key: from L1, or L2, or the loader. `None` means that the source of truth has
    /// none.
    ///
    /// Calls coalesce. When many calls want one key, in this process or, with a shared tier, in the
    /// fleet, there is one load, and all of them get its value or error.
    ///
    /// ```
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # use tidegate::{Cache, loader_fn};
    /// # let load = loader_fn(|id: u64| async move {
    /// #     Ok::<_, std::io::Error>((id < 100).then(|| format!("user {id}")))
    /// # });
    /// # let users: Cache<u64, String, std::io::Error> = Cache::builder("users", load).build()?;
    /// use tidegate::Error;
    ///
    /// match users.get(&7).await {
    ///     Ok(Some(user)) => assert_eq!(*user, "user 7"),
    ///     Ok(None) => println!("there is no such user"), // the source of truth said so
    ///     Err(Error::Load(error)) => println!("the database: {error}"), // for all callers
    ///     Err(error) => println!("{error}"),
    /// }
    /// assert!(users.get(&700).await?.is_none());
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    ///
    /// The loader's error, or the reason why there was no load: see [`Error`]. Trouble with the
    /// shared tier is not an error of a look-up.
    pub async fn get<Q>(&self, key: &Q) -> Result<Option<Arc<V>>, Error<E>>
    where
        K: Borrow<Q>,
        Q: Hash + Eq + ToOwned<Owned = K> + ?Sized,
    {
        let wait = match self
            .shell
            .look_up(key, |hit, _| hit.value.clone(), value_of)?
        {
            LookedUp::Answered(value) => return Ok(value),
            LookedUp::Waits(wait) => wait,
        };
        let got = self.shell.engine.wait(wait).await;
        got.map(value_of).map_err(Error::typed)
    }

    /// [`get`](Self::get) with other rules for this call: nothing stale, or past L1. See [`Read`].
    ///
    /// Whether a look-up may see an old value depends on the caller, not on the cache: the page
    /// that shows a price may be stale, the order that charges it may not. The call therefore says
    /// it. Both kinds of call coalesce.
    ///
    /// ```
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # use tidegate::{Cache, Loaded, Read, loader_fn};
    /// # let load = loader_fn(|id: u64| async move {
    /// #     Ok::<_, std::io::Error>(Loaded::found(id * 100))
    /// # });
    /// # let prices: Cache<u64, u64, std::io::Error> = Cache::builder("prices", load).build()?;
    /// let shown = prices.get(&7).await?;
    /// let charged = prices.get_with(&7, Read::fresh().skip_l1()).await?;
    /// # assert_eq!(shown, charged);
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    ///
    /// Those of [`get`](Self::get); with [`Read::fresh`] also where `get` would have answered a
    /// stale value.
    pub async fn get_with<Q>(&self, key: &Q, read: Read) -> Result<Option<Arc<V>>, Error<E>>
    where
        K: Borrow<Q>,
        Q: Hash + Eq + ToOwned<Owned = K> + ?Sized,
    {
        let wait = match self.shell.look_up_with(key, read)? {
            LookedUp::Answered(answer) => return Ok(value_of(answer)),
            LookedUp::Waits(wait) => wait,
        };
        let got = self.shell.engine.wait(wait).await;
        got.map(value_of).map_err(Error::typed)
    }

    /// Like [`get`](Self::get), and also says which tier answered, and the entry's age and
    /// freshness.
    ///
    /// ```
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # use tidegate::{Cache, loader_fn};
    /// # let load = loader_fn(|id: u64| async move {
    /// #     Ok::<_, std::io::Error>((id < 100).then(|| format!("user {id}")))
    /// # });
    /// # let users: Cache<u64, String, std::io::Error> = Cache::builder("users", load).build()?;
    /// use tidegate::{Freshness, Source};
    ///
    /// let entry = users.get_entry(&7).await?.expect("it exists");
    /// assert_eq!((entry.source(), entry.freshness()), (Source::Loader, Freshness::Fresh));
    /// let again = users.get_entry(&7).await?.expect("it exists");
    /// assert_eq!(again.source(), Source::L1);
    /// println!("{} is {:?} old", again.value(), again.age());
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    ///
    /// Those of [`get`](Self::get).
    pub async fn get_entry<Q>(&self, key: &Q) -> Result<Option<Entry<V>>, Error<E>>
    where
        K: Borrow<Q>,
        Q: Hash + Eq + ToOwned<Owned = K> + ?Sized,
    {
        let wait = match self
            .shell
            .look_up(key, |hit, now| hit.entry(now), entry_of)?
        {
            LookedUp::Answered(entry) => return Ok(entry),
            LookedUp::Waits(wait) => wait,
        };
        let got = self.shell.engine.wait(wait).await;
        got.map(entry_of).map_err(Error::typed)
    }

    /// Like [`get_with`](Self::get_with), and also says which tier answered, and the entry's age
    /// and freshness.
    ///
    /// # Errors
    ///
    /// Those of [`get_with`](Self::get_with).
    pub async fn get_entry_with<Q>(&self, key: &Q, read: Read) -> Result<Option<Entry<V>>, Error<E>>
    where
        K: Borrow<Q>,
        Q: Hash + Eq + ToOwned<Owned = K> + ?Sized,
    {
        let wait = match self.shell.look_up_with(key, read)? {
            LookedUp::Answered(answer) => return Ok(entry_of(answer)),
            LookedUp::Waits(wait) => wait,
        };
        let got = self.shell.engine.wait(wait).await;
        got.map(entry_of).map_err(Error::typed)
    }

    /// [`get`](Self::get) for many keys: one outcome for each, in their order, duplicates included.
    ///
    /// Keys in L1 are answered from there. Keys that are already being read or loaded are joined.
    /// Keys in L2 are read with one `MGET` (in a cluster, one round trip to every node). The rest
    /// is loaded. Where the cache is [`batched`](CacheBuilder::batched), one call of
    /// [`load_many`](crate::BatchLoader::load_many) loads up to
    /// [`max_size`](crate::Batching::max_size) keys. Otherwise keys are loaded one by one, 64 at
    /// once and within [`max_concurrent_loads`](CacheBuilder::max_concurrent_loads).
    ///
    /// Every key has its own outcome, its own lease and its own fence. A key that fails, is
    /// invalidated meanwhile, or is being loaded by another process does not affect the others,
    /// except that the call takes as long as its slowest key. The call coalesces like `get`, key by
    /// key, with single look-ups too. For more keys than should be in memory at once, see
    /// [`get_stream`](Self::get_stream).
    ///
    /// ```
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # use tidegate::{Cache, Loaded, loader_fn};
    /// # let load = loader_fn(|id: u64| async move {
    /// #     Ok::<_, std::io::Error>((id < 100).then(|| id * id))
    /// # });
    /// # let squares: Cache<u64, u64, std::io::Error> = Cache::builder("squares", load).build()?;
    /// let found = squares.get_many(&[3, 500, 4]).await;
    /// let found: Vec<_> = found.into_iter().collect::<Result<_, _>>()?; // or look at each
    /// let found: Vec<_> = found.iter().map(Option::as_deref).collect();
    /// assert_eq!(found, [Some(&9), None, Some(&16)]);
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    ///
    /// Those of [`get`](Self::get), for each key by itself. When a `load_many` fails, every key
    /// that it was given gets the error.
    pub async fn get_many(&self, keys: &[K]) -> Vec<Result<Option<Arc<V>>, Error<E>>> {
        self.shell.look_up_many(keys, value_of).await
    }

    /// Like [`get_many`](Self::get_many), and also says, for each entry, which tier answered, and
    /// its age and freshness.
    ///
    /// # Errors
    ///
    /// Those of [`get_many`](Self::get_many).
    pub async fn get_many_entries(&self, keys: &[K]) -> Vec<Result<Option<Entry<V>>, Error<E>>> {
        self.shell.look_up_many(keys, entry_of).await
    }

    /// [`get_many`](Self::get_many) for more keys than should be in memory at once. It takes keys
    /// from a stream and answers them in the order of the stream, with up to 1,000 under way. While
    /// the stream has no further keys ready, the keys that have arrived are looked up, however few
    /// they are.
    ///
    /// Nothing happens until the returned stream is polled. It must be polled inside a tokio
    /// runtime.
    ///
    /// ```
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # use tidegate::{Cache, Loaded, loader_fn};
    /// # let load = loader_fn(|id: u64| async move {
    /// #     Ok::<_, std::io::Error>(Loaded::found(id * 2))
    /// # });
    /// # let doubles: Cache<u64, u64, std::io::Error> = Cache::builder("doubles", load).build()?;
    /// use futures_util::{StreamExt, stream};
    ///
    /// let mut doubles = doubles.get_stream(stream::iter(0..100_000));
    /// let mut sum = 0;
    /// while let Some((id, double)) = doubles.next().await {
    ///     sum += double?.map_or(0, |double| *double) - id;
    /// }
    /// assert_eq!(sum, 4_999_950_000);
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    ///
    /// Those of [`get`](Self::get), for each key by itself.
    pub fn get_stream<S>(&self, keys: S) -> GetStream<K, V, E, S>
    where
        S: Stream<Item = K>,
    {
        GetStream::new(self.clone(), keys)
    }

    /// Loads the keys that neither tier has, before they are asked for: after a deploy, or before a
    /// sale. See [`Warm`] for the rate, the progress, and how the processes of a fleet take turns.
    ///
    /// ```
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # use tidegate::{Cache, Loaded, loader_fn};
    /// # let load = loader_fn(|id: u64| async move { Ok::<_, std::io::Error>(Loaded::found(id)) });
    /// # let products: Cache<u64, u64, std::io::Error> = Cache::builder("products", load).build()?;
    /// let best_sellers = 1..=100; // SELECT id FROM products ORDER BY sold DESC LIMIT 100
    /// let warmed = products
    ///     .warm(best_sellers)
    ///     .loads_per_second(2_000)
    ///     .on_progress(|so_far| println!("{} of {:?}", so_far.done, so_far.total))
    ///     .await;
    /// assert_eq!((warmed.done, warmed.loaded, warmed.failed), (100, 100, 0));
    /// # Ok(())
    /// # }
    /// ```
    pub fn warm<I>(&self, keys: I) -> Warm<K, V, E, I::IntoIter>
    where
        I: IntoIterator<Item = K>,
    {
        Warm::new(self.clone(), keys.into_iter())
    }

    /// Loads the value now, whatever the tiers hold, and puts it into both. Other callers in every
    /// process are answered from the present entry meanwhile. [`Loader::reload`] gets the entry
    /// that is refreshed.
    ///
    /// The call coalesces: it joins a load that is under way, here or in another process. Such a
    /// load may have begun before this call. After a write use
    /// [`refresh_after`](Self::refresh_after), or call [`expire`](Self::expire) first. A refresh
    /// does not count as a look-up.
    ///
    /// ```
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # use tidegate::{Cache, loader_fn};
    /// # let load = loader_fn(|id: u64| async move {
    /// #     Ok::<_, std::io::Error>((id < 100).then(|| format!("user {id}")))
    /// # });
    /// # let users: Cache<u64, String, std::io::Error> = Cache::builder("users", load).build()?;
    /// users.get(&7).await?;
    /// users.refresh(&7).await?; // a load, whatever the tiers hold
    /// assert_eq!(users.stats().loads, 2);
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    ///
    /// The loader's error, also where `get` would answer a stale value. For
    /// [`error_backoff`](CacheBuilder::error_backoff) after a failure the same error again, without
    /// a load. The entry stays unchanged.
    pub async fn refresh<Q>(&self, key: &Q) -> Result<Option<Arc<V>>, Error<E>>
    where
        K: Borrow<Q>,
        Q: Hash + Eq + ToOwned<Owned = K> + ?Sized,
    {
        let (key, admission) = self.shell.admit(key)?;
        let got = self.shell.engine.refresh(key, admission).await;
        got.map(value_of).map_err(Error::typed)
    }

    /// The entry that L1 can answer at this moment: no I/O, no load, no counting. `None` when L1
    /// has no usable entry, or when it knows that the value is absent.
    ///
    /// ```
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # use tidegate::{Cache, loader_fn};
    /// # let load = loader_fn(|id: u64| async move {
    /// #     Ok::<_, std::io::Error>((id < 100).then(|| format!("user {id}")))
    /// # });
    /// # let users: Cache<u64, String, std::io::Error> = Cache::builder("users", load).build()?;
    /// assert!(users.peek(&7).is_none()); // nobody has asked for it yet
    /// users.get(&7).await?;
    /// assert_eq!(users.peek(&7).map(|user| user.value().to_string()).as_deref(), Some("user 7"));
    /// # Ok(())
    /// # }
    /// ```
    pub fn peek<Q>(&self, key: &Q) -> Option<Entry<V>>
    where
        K: Borrow<Q>,
        Q: Hash + Eq + ?Sized,
    {
        if self.shell.engine.is_closed() {
            return None;
        }
        self.shell.peek_l1(key)
    }

    /// Puts a value into both tiers, for every process. Running loads do not overwrite it.
    ///
    /// Two inserts of one key race like two writers to any cache: the last one in Redis stays,
    /// which need not be the last one in the database. Unless the value is expensive to load,
    /// prefer [`invalidate`](Self::invalidate) after the commit of the write, or give the rows
    /// [versions](Loaded::version).
    ///
    /// ```
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # use tidegate::{Cache, loader_fn};
    /// # let load = loader_fn(|id: u64| async move {
    /// #     Ok::<_, std::io::Error>((id < 100).then(|| format!("user {id}")))
    /// # });
    /// # let users: Cache<u64, String, std::io::Error> = Cache::builder("users", load).build()?;
    /// use std::time::Duration;
    /// use tidegate::Loaded;
    ///
    /// users.insert(7, "Ada".to_owned()).await?;
    /// users.insert(8, Loaded::found("Grace".to_owned()).ttl(Duration::from_secs(30))).await?;
    /// users.insert(9, None).await?; // an absence is a value, too
    /// assert_eq!(users.get(&7).await?.as_deref(), Some(&"Ada".to_owned()));
    /// assert!(users.get(&9).await?.is_none());
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    ///
    /// [`RemoteError`] when the shared tier did not confirm. The key is then evicted here, may hold
    /// the old or the new value in Redis, and is invalidated there as soon as possible. A value
    /// that cannot be encoded is refused, and the key is invalidated. The same holds for
    /// [`Loaded::unchanged`], which is not a value. An insert of an older version than that of the
    /// stored entry [is superseded](RemoteError::is_superseded) and changes nothing.
    pub async fn insert(&self, key: K, value: impl Into<Loaded<V>>) -> Result<(), RemoteError> {
        // Not held across the await: the future is `Send` whatever `value` is.
        let loaded = value.into().erased();
        self.shell.engine.insert(self.shell.key(key), loaded).await
    }

    /// [`insert`](Self::insert) for many values at once, pipelined: up to 256 are under way.
    ///
    /// ```
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # use tidegate::{Cache, loader_fn};
    /// # let load = loader_fn(|id: u64| async move {
    /// #     Ok::<_, std::io::Error>((id < 100).then(|| format!("user {id}")))
    /// # });
    /// # let users: Cache<u64, String, std::io::Error> = Cache::builder("users", load).build()?;
    /// users.insert_many([(7, "Ada".to_owned()), (8, "Grace".to_owned())]).await?;
    /// assert_eq!(users.get(&8).await?.as_deref(), Some(&"Grace".to_owned()));
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    ///
    /// The first error. The other values are inserted all the same.
    pub async fn insert_many<T>(
        &self,
        entries: impl IntoIterator<Item = (K, T)>,
    ) -> Result<(), RemoteError>
    where
        T: Into<Loaded<V>>,
    {
        let entries = entries
            .into_iter()
            .map(|(key, value)| (self.shell.key(key), value.into().erased()))
            .collect();
        self.shell.engine.insert_many(entries).await
    }

    /// **Write-through**: runs a write, and puts the value that it answers into both tiers, for
    /// every process. The database comes first. The next look-up is a hit.
    ///
    /// `write` is a future that commits and then answers the written value (`Ok(value)`, or a
    /// [`Loaded`] with TTL, tags, version). It runs in one task together with the insert: a caller
    /// that goes away leaves nothing half done. Running loads do not overwrite the value.
    ///
    /// Two writers of one key sometimes reach the cache in another order than the database. Give
    /// the value its [`version`](Loaded::version), a number that every write of the row increases.
    /// The later version then stays, and a write that comes second with the older one is `Ok` and
    /// changes nothing (unless the later entry has been evicted meanwhile). Without versions prefer
    /// [`invalidate_after`](Self::invalidate_after), to which the order does not matter.
    ///
    /// ```
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # use tidegate::{Cache, Loaded, loader_fn};
    /// # let load = loader_fn(|id: u64| async move {
    /// #     Ok::<_, std::io::Error>(Loaded::found(String::new()))
    /// # });
    /// # let users: Cache<u64, String, std::io::Error> = Cache::builder("users", load).build()?;
    /// users
    ///     .write(42, async {
    ///         // UPDATE users SET name = …, version = version + 1 … RETURNING version; COMMIT
    ///         let version = 7;
    ///         Ok::<_, std::io::Error>(Loaded::found("Ada".to_owned()).version(version))
    ///     })
    ///     .await?;
    /// assert_eq!(users.get(&42).await?.as_deref(), Some(&"Ada".to_owned()));
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    ///
    /// [`WriteError`]: the write's own error (the key is then invalidated, because the source may
    /// have executed the write), or that the shared tier did not confirm (which is repaired). After
    /// either no process of this cache answers the old value for longer than after a failed
    /// `invalidate`.
    pub async fn write<T, X>(
        &self,
        key: K,
        write: impl Future<Output = Result<T, X>> + Send + 'static,
    ) -> Result<(), WriteError<X>>
    where
        T: Into<Loaded<V>>,
        X: Send + 'static,
    {
        let written = |value: T| Written::Value(value.into().erased());
        let write = async move { write.await.map(written) };
        let done = self
            .shell
            .write_through(key, AfterWrite::Insert, write)
            .await;
        done.map(drop)
    }

    /// **Invalidate-after-write**, the default pattern: runs a write, then
    /// [invalidates](Self::invalidate) the key, whatever the outcome of the write. Returns the
    /// answer of the write.
    ///
    /// Two calls one after the other would do the same, except that here both run in one task. A
    /// caller that goes away between the commit and the invalidation does not leave the old value
    /// behind. Neither does a write that was executed and nevertheless answers an error.
    ///
    /// ```
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # use tidegate::{Cache, Loaded, loader_fn};
    /// # let load = loader_fn(|id: u64| async move {
    /// #     Ok::<_, std::io::Error>(Loaded::found(String::new()))
    /// # });
    /// # let users: Cache<u64, String, std::io::Error> = Cache::builder("users", load).build()?;
    /// let rows = users
    ///     .invalidate_after(42, async {
    ///         let rows = 1; // UPDATE users SET …; COMMIT
    ///         Ok::<_, std::io::Error>(rows)
    ///     })
    ///     .await?;
    /// assert_eq!(rows, 1);
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    ///
    /// Those of [`write`](Self::write).
    pub async fn invalidate_after<T, X>(
        &self,
        key: K,
        write: impl Future<Output = Result<T, X>> + Send + 'static,
    ) -> Result<T, WriteError<X>>
    where
        T: Send + 'static,
        X: Send + 'static,
    {
        self.shell
            .write_then(key, AfterWrite::Invalidate, write)
            .await
    }

    /// **Refresh-after-write**: runs a write, [expires](Self::expire) the key, and
    /// [refreshes](Self::refresh) it, so that the next look-up finds what the loader makes of the
    /// write. Use it for values that differ from what was written: joins, counts, rendered pages.
    /// Loads that began before the write are neither joined nor stored.
    ///
    /// Returns when the refresh has ended. A failed refresh is not an error: the key stays expired,
    /// and the next look-up loads it, or answers the old value within `stale_if_error`. Where the
    /// old value must not be answered, invalidate.
    ///
    /// ```
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # use tidegate::{Cache, Loaded, loader_fn};
    /// # let load = loader_fn(|id: u64| async move {
    /// #     Ok::<_, std::io::Error>(Loaded::found(id * 10))
    /// # });
    /// # let totals: Cache<u64, u64, std::io::Error> = Cache::builder("totals", load).build()?;
    /// totals
    ///     .refresh_after(42, async {
    ///         // INSERT INTO orders …; COMMIT
    ///         Ok::<_, std::io::Error>(())
    ///     })
    ///     .await?;
    /// assert_eq!(totals.peek(&42).map(|total| **total.value()), Some(420));
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    ///
    /// Those of [`write`](Self::write).
    pub async fn refresh_after<T, X>(
        &self,
        key: K,
        write: impl Future<Output = Result<T, X>> + Send + 'static,
    ) -> Result<T, WriteError<X>>
    where
        T: Send + 'static,
        X: Send + 'static,
    {
        self.shell.write_then(key, AfterWrite::Refresh, write).await
    }

    /// Drops a key from both tiers, in every process. Call it **after** the commit of the write:
    /// before the commit a load may read the old row and store it.
    ///
    /// After this returned `Ok`, no value whose load began before is stored anywhere, and no `get`
    /// in this process joins such a load. In other processes L1 drops the key when the message
    /// arrives, usually within a moment, and within the [channel
    /// lease](crate::CacheBuilder::channel_lease) at most: see
    /// [`guide::consistency`](crate::guide::consistency).
    ///
    /// ```
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # use tidegate::{Cache, loader_fn};
    /// # let load = loader_fn(|id: u64| async move {
    /// #     Ok::<_, std::io::Error>((id < 100).then(|| format!("user {id}")))
    /// # });
    /// # let users: Cache<u64, String, std::io::Error> = Cache::builder("users", load).build()?;
    /// users.get(&7).await?;
    /// // UPDATE users SET … WHERE id = 7; COMMIT; and only then:
    /// if let Err(error) = users.invalidate(&7).await {
    ///     // The write is committed. The request does not fail, the call is repeated.
    ///     eprintln!("{error}");
    /// }
    /// assert!(users.peek(&7).is_none());
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    ///
    /// [`RemoteError`] when the shared tier did not confirm: it may still hold the old value, and
    /// other processes may answer it. The key is evicted here in any case, and is not read from the
    /// shared tier. The invalidation is repeated until it is confirmed
    /// ([`pending_repairs`](Health::pending_repairs)). Repeating the call is safe, and not needed.
    pub async fn invalidate<Q>(&self, key: &Q) -> Result<(), RemoteError>
    where
        K: Borrow<Q>,
        Q: ToOwned<Owned = K> + ?Sized,
    {
        self.shell
            .engine
            .invalidate(self.shell.key(key.to_owned()))
            .await
    }

    /// [`invalidate`](Self::invalidate) for many keys at once, pipelined: up to 256 are under way.
    ///
    /// ```
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # use tidegate::{Cache, loader_fn};
    /// # let load = loader_fn(|id: u64| async move {
    /// #     Ok::<_, std::io::Error>((id < 100).then(|| format!("user {id}")))
    /// # });
    /// # let users: Cache<u64, String, std::io::Error> = Cache::builder("users", load).build()?;
    /// // UPDATE users SET … WHERE team = 3 RETURNING id; COMMIT
    /// users.invalidate_many(&[7, 8, 9]).await?;
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    ///
    /// The first error. The other keys are invalidated all the same.
    pub async fn invalidate_many(&self, keys: &[K]) -> Result<(), RemoteError> {
        self.shell
            .engine
            .invalidate_many(self.shell.keys(keys))
            .await
    }

    /// Drops a key as [`invalidate`](Self::invalidate) does, and returns when no process, connected
    /// or not, can answer the old value any more. That is after
    /// [`channel_lease`](crate::CacheBuilder::channel_lease) +
    /// [`degraded_l1_ttl`](crate::CacheBuilder::degraded_l1_ttl) (7 seconds with the defaults). The
    /// invalidation itself is sent at once: a caller that drops this future only stops waiting.
    ///
    /// Every process must have the same two settings.
    ///
    /// ```
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # use tidegate::{Cache, loader_fn};
    /// # let load = loader_fn(|id: u64| async move {
    /// #     Ok::<_, std::io::Error>((id < 100).then(|| format!("user {id}")))
    /// # });
    /// # let users: Cache<u64, String, std::io::Error> = Cache::builder("users", load).build()?;
    /// # async fn withdraw(
    /// #     users: &Cache<u64, String, std::io::Error>,
    /// # ) -> Result<(), tidegate::RemoteError> {
    /// // UPDATE users SET may_pay = false WHERE id = 7; COMMIT
    /// users.invalidate_everywhere(&7).await?;
    /// // From here on no process pays for user 7.
    /// # Ok(())
    /// # }
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    ///
    /// Those of [`invalidate`](Self::invalidate), returned without waiting.
    pub async fn invalidate_everywhere<Q>(&self, key: &Q) -> Result<(), RemoteError>
    where
        K: Borrow<Q>,
        Q: ToOwned<Owned = K> + ?Sized,
    {
        self.shell
            .engine
            .invalidate_everywhere(self.shell.key(key.to_owned()))
            .await
    }

    /// Marks an entry as no longer fresh, in every process: the next look-up loads. Unlike after
    /// [`invalidate`](Self::invalidate) the old value stays in the shared tier, as a fallback for
    /// the case that the load fails. The call is fenced like `invalidate`: a load that began before
    /// it is not stored.
    ///
    /// ```
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
    /// use std::time::Duration;
    /// use tidegate::{Cache, Freshness, InProcess, loader_fn};
    ///
    /// static DOWN: AtomicBool = AtomicBool::new(false);
    /// let load = loader_fn(|id: u64| async move {
    ///     if DOWN.load(Relaxed) {
    ///         return Err(std::io::Error::other("no connection"));
    ///     }
    ///     Ok(id * 100)
    /// });
    /// let rates: Cache<u64, u64, std::io::Error> = Cache::builder("rates", load)
    ///     .stale_if_error(Duration::from_secs(3600))
    ///     .l2(InProcess::new())
    ///     .build()?;
    /// rates.get(&7).await?;
    /// rates.expire(&7).await?; // the next look-up loads …
    /// DOWN.store(true, Relaxed); // … and here it cannot
    /// let rate = rates.get_entry(&7).await?.expect("the old one");
    /// assert_eq!((**rate.value(), rate.freshness()), (700, Freshness::StaleOnError));
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    ///
    /// Those of [`invalidate`](Self::invalidate).
    pub async fn expire<Q>(&self, key: &Q) -> Result<(), RemoteError>
    where
        K: Borrow<Q>,
        Q: ToOwned<Owned = K> + ?Sized,
    {
        self.shell
            .engine
            .expire(self.shell.key(key.to_owned()))
            .await
    }

    /// Drops every entry of this cache, in every process, in constant time: it advances a watermark
    /// in the shared tier, and records from before it are dead. The call is fenced: a load that
    /// began before it is not answered to calls that begin after it. A process that was down
    /// meanwhile finds the watermark.
    ///
    /// Other processes hear of it as of [`invalidate`](Self::invalidate): usually within a moment,
    /// and within the channel lease at most. This bound holds for their reads of L2 too.
    ///
    /// ```
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # use tidegate::{Cache, loader_fn};
    /// # let load = loader_fn(|id: u64| async move {
    /// #     Ok::<_, std::io::Error>((id < 100).then(|| format!("user {id}")))
    /// # });
    /// # let users: Cache<u64, String, std::io::Error> = Cache::builder("users", load).build()?;
    /// users.get(&7).await?;
    /// users.invalidate_all().await?; // after an import
    /// assert!(users.peek(&7).is_none());
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    ///
    /// Those of [`invalidate`](Self::invalidate). Until the shared tier has confirmed the call,
    /// this process reads nothing from there.
    pub async fn invalidate_all(&self) -> Result<(), RemoteError> {
        self.shell.engine.invalidate_all().await
    }

    /// Drops every entry with this [tag](Loaded::tag), in every process, in constant time, as
    /// [`invalidate_all`](Self::invalidate_all) does for all.
    ///
    /// The shared tier remembers the last 100,000 tags that were invalidated. An entry that has any
    /// tag and is older than the oldest of these counts as invalidated.
    ///
    /// ```
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// use tidegate::{Cache, Loaded, loader_fn};
    ///
    /// let load = loader_fn(|id: u64| async move {
    ///     let team = id % 10; // SELECT name, team_id FROM users …
    ///     Ok::<_, std::io::Error>(Loaded::found(format!("user {id}")).tag(format!("team:{team}")))
    /// });
    /// let users: Cache<u64, String, std::io::Error> = Cache::builder("users", load).build()?;
    /// users.get(&17).await?;
    /// users.invalidate_tag("team:7").await?;
    /// assert!(users.peek(&17).is_none());
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    ///
    /// Those of [`invalidate`](Self::invalidate).
    pub async fn invalidate_tag(&self, tag: impl AsRef<[u8]>) -> Result<(), RemoteError> {
        let tag = crate::loader::tag_hash(tag.as_ref());
        self.shell.engine.invalidate_tag(tag).await
    }

    /// The health of the cache and of its shared tier: the state of the invalidation bus, and the
    /// invalidations that are being repeated. No I/O.
    ///
    /// ```
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # use tidegate::{Cache, loader_fn};
    /// # let load = loader_fn(|id: u64| async move {
    /// #     Ok::<_, std::io::Error>((id < 100).then(|| format!("user {id}")))
    /// # });
    /// # let users: Cache<u64, String, std::io::Error> = Cache::builder("users", load).build()?;
    /// use tidegate::Channel;
    ///
    /// let health = users.health();
    /// assert_eq!(health.channel, Channel::None); // no shared tier, so nobody to hear from
    /// assert_eq!(health.pending_repairs, 0);
    /// # Ok(())
    /// # }
    /// ```
    pub fn health(&self) -> Health {
        self.shell.engine.health()
    }

    /// The counters of this cache since it was built.
    ///
    /// ```
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # use tidegate::{Cache, loader_fn};
    /// # let load = loader_fn(|id: u64| async move {
    /// #     Ok::<_, std::io::Error>((id < 100).then(|| format!("user {id}")))
    /// # });
    /// # let users: Cache<u64, String, std::io::Error> = Cache::builder("users", load).build()?;
    /// users.get(&7).await?; // a miss
    /// users.get(&7).await?; // a hit
    /// let stats = users.stats();
    /// assert_eq!((stats.misses, stats.loads, stats.l1_hits), (1, 1, 1));
    /// # Ok(())
    /// # }
    /// ```
    pub fn stats(&self) -> Stats {
        self.shell.engine.stats.snapshot()
    }

    /// Publishes the [metrics](crate::guide::telemetry) now. They are published once a second from
    /// the first look-up past L1 on, and by [`close`](Self::close). A service that answers scrapes
    /// itself calls this before each answer.
    #[cfg(feature = "metrics")]
    #[cfg_attr(docsrs, doc(cfg(feature = "metrics")))]
    pub fn publish_metrics(&self) {
        self.shell.engine.publish();
    }

    /// Shuts the cache down, for every handle. Calls from now on are answered [`Error::Closed`].
    /// The method waits for running work (for loads no longer than
    /// [`load_timeout`](CacheBuilder::load_timeout)), so that it leaves no lease and no half-done
    /// write behind.
    ///
    /// ```
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # use tidegate::{Cache, loader_fn};
    /// # let load = loader_fn(|id: u64| async move {
    /// #     Ok::<_, std::io::Error>((id < 100).then(|| format!("user {id}")))
    /// # });
    /// # let users: Cache<u64, String, std::io::Error> = Cache::builder("users", load).build()?;
    /// users.close().await; // when the service has stopped taking requests
    /// assert!(matches!(users.get(&7).await, Err(tidegate::Error::Closed)));
    /// # Ok(())
    /// # }
    /// ```
    pub async fn close(&self) {
        self.shell.engine.close().await;
    }
}

impl<K, V, E> Clone for Cache<K, V, E> {
    fn clone(&self) -> Self {
        Self {
            shell: self.shell.clone(),
        }
    }
}

impl<K, V, E> fmt::Debug for Cache<K, V, E> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.shell.engine.fmt(f)
    }
}

#[cfg(all(test, feature = "bincode"))]
impl<K, V, E> Cache<K, V, E> {
    pub(crate) fn engine(&self) -> &Arc<crate::engine::Engine> {
        &self.shell.engine
    }
}
