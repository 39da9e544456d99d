//! The handle.

use std::borrow::Borrow;
use std::fmt;
use std::hash::Hash;
use std::sync::Arc;

use tokio::time::Instant;

use crate::builder::CacheBuilder;
use crate::engine::Engine;
use crate::entry::{Entry, Freshness};
use crate::error::{BoxError, Error, RemoteError};
use crate::health::Health;
use crate::key::CacheKey;
use crate::l1::Answer;
use crate::loader::{Loaded, Loader};
use crate::stats::Stats;

/// A cache of one kind of thing: a handle that is cheap to clone, and that needs no `Arc` around it.
///
/// Made by [`builder`](Cache::builder). All handles share one state; the cache works until the last
/// one is dropped or [`close`](Self::close) is called. Its futures must be polled inside a tokio
/// runtime.
///
/// Look-ups take borrowed forms of the key, as those of a `HashMap` do: `&str` for `String`.
///
/// # Cancel safety
///
/// Every future may be dropped at any time. A read or load that was begun goes on and is stored,
/// for whoever asks next; an `insert` or `invalidate` that was begun is carried out.
pub struct Cache<K, V, E = BoxError> {
    engine: Arc<Engine<K, V, E>>,
}

impl Cache<(), (), BoxError> {
    /// Settings of a cache over this loader, to be finished with
    /// [`build`](CacheBuilder::build).
    ///
    /// The name is the cache's namespace in Redis (keys read `tidegate:name:key`) and its label in
    /// what it reports. Caches of one name on one Redis share their entries, so the name must mean
    /// the same thing in every process.
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
    pub(crate) fn from_engine(engine: Arc<Engine<K, V, E>>) -> Self {
        Self { engine }
    }

    /// The value of a key: from L1, or L2, or the loader. `None` means that the source of truth
    /// says there is none.
    ///
    /// Coalesces: however many calls want one key, in this process or, with a shared tier, in the
    /// fleet, there is one load, and its value or error is everyone's.
    ///
    /// # Errors
    ///
    /// The loader's, or why there was no load: see [`Error`]. Trouble with the shared tier is not
    /// among them.
    pub async fn get<Q>(&self, key: &Q) -> Result<Option<Arc<V>>, Error<E>>
    where
        K: Borrow<Q>,
        Q: Hash + Eq + ToOwned<Owned = K> + ?Sized,
    {
        self.engine.get(key).await.map(|answer| answer.value)
    }

    /// Like [`get`](Self::get), with what is known about the entry: which tier answered, its age,
    /// its freshness.
    ///
    /// # Errors
    ///
    /// Those of [`get`](Self::get).
    pub async fn get_entry<Q>(&self, key: &Q) -> Result<Option<Entry<V>>, Error<E>>
    where
        K: Borrow<Q>,
        Q: Hash + Eq + ToOwned<Owned = K> + ?Sized,
    {
        self.engine.get(key).await.map(entry)
    }

    /// What L1 could answer at this moment: no I/O, no load, no counting. `None` when it could not,
    /// or when it knows that there is no such thing.
    pub fn peek<Q>(&self, key: &Q) -> Option<Entry<V>>
    where
        K: Borrow<Q>,
        Q: Hash + Eq + ?Sized,
    {
        if self.engine.is_closed() {
            return None;
        }
        self.engine.l1_hit(key, Instant::now()).and_then(entry)
    }

    /// Puts a value into both tiers, for every process. Loads that are running are not stored over
    /// it.
    ///
    /// Two inserts of one key race like two writers to any cache: the last one in Redis stays,
    /// which need not be the last one in the database. Unless the value is expensive to load,
    /// prefer [`invalidate`](Self::invalidate) after the write has been committed, or give the rows
    /// [versions](Loaded::version).
    ///
    /// # Errors
    ///
    /// [`RemoteError`] when the shared tier did not confirm; then the key is evicted here, may hold
    /// the old or the new value in Redis, and is invalidated there as soon as that can be done. A
    /// value that cannot be encoded is refused, and the key invalidated. An insert of an older
    /// version than what is there [is superseded](RemoteError::is_superseded) and changes nothing.
    pub async fn insert(&self, key: K, value: impl Into<Loaded<V>>) -> Result<(), RemoteError> {
        // Not held across the await: the future is `Send` whatever `value` is.
        let loaded = value.into();
        self.engine.insert(key, loaded).await
    }

    /// Drops a key from both tiers, in every process. Call it **after** the write has been
    /// committed: before, a load may read the old row and store it.
    ///
    /// After this returned `Ok`, no value whose load began before is stored anywhere, and no `get`
    /// in this process joins such a load. In other processes L1 drops the key when the message
    /// arrives, within a moment, and within the
    /// [channel lease](crate::CacheBuilder::channel_lease) at most: see
    /// [`guide::consistency`](crate::guide::consistency).
    ///
    /// # Errors
    ///
    /// [`RemoteError`] when the shared tier did not confirm: it may still hold the old value, and
    /// others may answer it. The key is evicted here in any case, is not read from the shared tier,
    /// and the invalidation is repeated until it is confirmed
    /// ([`pending_repairs`](Health::pending_repairs)). Repeating the call is safe, and not needed.
    pub async fn invalidate<Q>(&self, key: &Q) -> Result<(), RemoteError>
    where
        K: Borrow<Q>,
        Q: ToOwned<Owned = K> + ?Sized,
    {
        self.engine.invalidate(key.to_owned()).await
    }

    /// [`invalidate`](Self::invalidate) for many keys at once, pipelined.
    ///
    /// # Errors
    ///
    /// The first one; the other keys are invalidated all the same.
    pub async fn invalidate_many(&self, keys: &[K]) -> Result<(), RemoteError> {
        self.engine.invalidate_many(keys.to_vec()).await
    }

    /// Drops a key as [`invalidate`](Self::invalidate) does, and returns when no process can answer
    /// the old value any more, connected or not: after
    /// [`channel_lease`](crate::CacheBuilder::channel_lease) +
    /// [`degraded_l1_ttl`](crate::CacheBuilder::degraded_l1_ttl) (7 seconds with the defaults). The
    /// invalidation itself is done at once; whoever drops this future only stops waiting.
    ///
    /// Every process must have the same two settings.
    ///
    /// # Errors
    ///
    /// Those of [`invalidate`](Self::invalidate), without waiting.
    pub async fn invalidate_everywhere<Q>(&self, key: &Q) -> Result<(), RemoteError>
    where
        K: Borrow<Q>,
        Q: ToOwned<Owned = K> + ?Sized,
    {
        self.engine.invalidate_everywhere(key.to_owned()).await
    }

    /// Says that an entry is not fresh any more, in every process: the next look-up loads. Unlike
    /// after [`invalidate`](Self::invalidate) the old value stays in the shared tier, as a fallback
    /// for the case that the load fails. Fenced in the same way: a load that began before is not
    /// stored.
    ///
    /// # Errors
    ///
    /// Those of [`invalidate`](Self::invalidate).
    pub async fn expire<Q>(&self, key: &Q) -> Result<(), RemoteError>
    where
        K: Borrow<Q>,
        Q: ToOwned<Owned = K> + ?Sized,
    {
        self.engine.expire(key.to_owned()).await
    }

    /// Drops every entry of this cache, in every process, in constant time: a mark is set in the
    /// shared tier, and records from before it are dead. Fenced: a load that began before is not
    /// answered to calls that begin after. A process that was down meanwhile finds the mark.
    ///
    /// Others hear of it as of [`invalidate`](Self::invalidate): within a moment, and within the
    /// channel lease at most, for what they read from L2 too.
    ///
    /// # Errors
    ///
    /// Those of [`invalidate`](Self::invalidate); until the shared tier has confirmed it, this
    /// process reads nothing from there.
    pub async fn invalidate_all(&self) -> Result<(), RemoteError> {
        self.engine.invalidate_all().await
    }

    /// Drops every entry with this [tag](Loaded::tag), in every process, in constant time, as
    /// [`invalidate_all`](Self::invalidate_all) does for all.
    ///
    /// The shared tier remembers the last 100,000 tags that were invalidated. What is older than the
    /// oldest of them counts as invalidated if it has any tag.
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
        self.engine.invalidate_tag(tag).await
    }

    /// How the cache and its shared tier get on: the state of the invalidation bus, invalidations
    /// that are being repeated. No I/O.
    pub fn health(&self) -> Health {
        self.engine.health()
    }

    /// What has happened so far.
    pub fn stats(&self) -> Stats {
        self.engine.stats.snapshot()
    }

    /// Shuts the cache down: calls from now on are answered [`Error::Closed`], what runs is waited
    /// for (loads no longer than [`load_timeout`](CacheBuilder::load_timeout)), so that no lease
    /// and no half-done write is left behind. For every handle.
    pub async fn close(&self) {
        self.engine.close().await;
    }
}

fn entry<V>(answer: Answer<V>) -> Option<Entry<V>> {
    let age = answer.age + answer.at.elapsed();
    let (source, value) = (answer.source, answer.value?);
    Some(Entry {
        value,
        source,
        age,
        freshness: Freshness::Fresh,
    })
}

impl<K, V, E> Clone for Cache<K, V, E> {
    fn clone(&self) -> Self {
        Self {
            engine: Arc::clone(&self.engine),
        }
    }
}

impl<K, V, E> fmt::Debug for Cache<K, V, E> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.engine.fmt(f)
    }
}

#[cfg(all(test, feature = "bincode"))]
impl<K, V, E> Cache<K, V, E> {
    pub(crate) fn engine(&self) -> &Arc<Engine<K, V, E>> {
        &self.engine
    }
}
