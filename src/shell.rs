//! The generic shell of a cache: the part of its operations that knows the types of keys and
//! values.
//!
//! The shell answers a plain hit itself: a fresh entry of L1 with which nothing is to be done but
//! to answer it. Everything else goes to the engine, which knows no types: the shell erases the
//! types of the key and the values on their way in, and gives the answers their types on their way
//! out. It is compiled for every type of cache, so it is kept small.

use std::any::Any;
use std::borrow::Borrow;
use std::hash::Hash;
use std::marker::PhantomData;
use std::sync::Arc;

use tokio::time::Instant;

use crate::answer::Answer;
use crate::engine::change::write::{AfterWrite, Written};
use crate::engine::get_many::LookUp;
use crate::engine::{Admission, Engine, FlightWait};
use crate::entry::AnyEntry;
use crate::entry::{Entry, Read};
use crate::erased::{self, AnyError, AnyKey};
use crate::error::{Error, WriteError};
use crate::key::{self, CacheKey};
use crate::l1::{HitView, SAMPLE, Slot, TypedL1};

/// What L1 holds for a look-up without conditions.
pub(crate) enum PlainHit<T> {
    /// A plain hit, answered.
    Hit(T),
    /// An entry whose times, tags or fence the engine must check.
    NeedsCheck(Arc<Slot>),
    /// No entry.
    Nothing,
}

/// The outcome of a look-up's first step, which never waits.
pub(crate) enum LookedUp<T> {
    Answered(T),
    /// The engine answers when a flight has completed.
    Waits(FlightWait),
}

/// One cache's engine, and the types that the engine does not know.
pub(crate) struct Shell<K, V, E> {
    pub(crate) engine: Arc<Engine>,
    pub(crate) typed: Arc<TypedL1<K, V>>,
    errors: PhantomData<fn() -> E>,
}

impl<K, V, E> Clone for Shell<K, V, E> {
    fn clone(&self) -> Self {
        Self {
            engine: Arc::clone(&self.engine),
            typed: Arc::clone(&self.typed),
            errors: PhantomData,
        }
    }
}

impl<K, V, E> Shell<K, V, E>
where
    K: CacheKey,
    V: Send + Sync + 'static,
    E: Send + Sync + 'static,
{
    pub(crate) fn new(engine: Arc<Engine>, typed: Arc<TypedL1<K, V>>) -> Self {
        Self {
            engine,
            typed,
            errors: PhantomData,
        }
    }

    /// The key without its type. `hash` is its hash in L1.
    pub(crate) fn hashed_key(&self, key: K, hash: u64) -> AnyKey {
        AnyKey::new(self.engine.id(key::encode(&key)), hash, key)
    }

    /// The key without its type.
    pub(crate) fn key(&self, key: K) -> AnyKey {
        let hash = self.typed.hash(&key);
        self.hashed_key(key, hash)
    }

    /// The keys without their type.
    pub(crate) fn keys(&self, keys: &[K]) -> Vec<AnyKey> {
        keys.iter().map(|key| self.key(key.clone())).collect()
    }

    /// A plain hit of the hot slots, counted.
    #[inline]
    pub(crate) fn hot_hit<Q, T>(
        &self,
        (key, hash): (&Q, u64),
        now: impl FnOnce() -> Instant,
        answer: impl FnOnce(&HitView<'_, V>, Instant) -> T,
    ) -> Option<T>
    where
        K: Borrow<Q>,
        Q: Hash + Eq + ?Sized,
    {
        let engine = &*self.engine;
        let hot = self.typed.hot(hash, key)?;
        let (view, now) = (hot.view()?, now());
        if !engine.is_plain_hit(&view, now) {
            return None;
        }
        let answer = answer(&view, now);
        if engine.stats.hot_hits.add() % SAMPLE == 0 {
            self.typed
                .touch(&engine.l1, hash, &hot, engine.time_base.nanos(now));
        }
        Some(answer)
    }

    /// A plain hit of the hot slots or of the map, counted.
    pub(crate) fn plain_hit<Q, T>(
        &self,
        (key, hash): (&Q, u64),
        now: impl Fn() -> Instant,
        answer: impl Fn(&HitView<'_, V>, Instant) -> T,
    ) -> PlainHit<T>
    where
        K: Borrow<Q>,
        Q: Hash + Eq + ToOwned<Owned = K> + ?Sized,
    {
        if let Some(answer) = self.hot_hit((key, hash), &now, &answer) {
            return PlainHit::Hit(answer);
        }
        let Some(slot) = self.engine.l1.slot(hash) else {
            return PlainHit::Nothing;
        };
        let Some(view) = self.typed.view(&slot, key) else {
            return PlainHit::Nothing;
        };
        let now = now();
        if !self.engine.is_plain_hit(&view, now) {
            return PlainHit::NeedsCheck(slot);
        }
        if self.engine.stats.plain_hits.add() % SAMPLE == SAMPLE - 1 && self.typed.may_promote(hash)
        {
            let key = self.hashed_key(key.to_owned(), hash);
            self.engine.promote(&key);
        }
        PlainHit::Hit(answer(&view, now))
    }

    /// The first step of a look-up without conditions.
    pub(crate) fn look_up<Q, T>(
        &self,
        key: &Q,
        hit: impl Fn(&HitView<'_, V>, Instant) -> T,
        answer: impl FnOnce(Answer) -> T,
    ) -> Result<LookedUp<T>, Error<E>>
    where
        K: Borrow<Q>,
        Q: Hash + Eq + ToOwned<Owned = K> + ?Sized,
    {
        let hash = self.typed.hash(key);
        let slot = match self.plain_hit((key, hash), Instant::now, hit) {
            PlainHit::Hit(answer) => return Ok(LookedUp::Answered(answer)),
            PlainHit::NeedsCheck(slot) => Some(slot),
            PlainHit::Nothing => None,
        };
        Ok(match self.check_or_begin((key, hash), Read::new(), slot)? {
            LookedUp::Answered(found) => LookedUp::Answered(answer(found)),
            LookedUp::Waits(wait) => LookedUp::Waits(wait),
        })
    }

    /// The first step of a look-up with conditions.
    pub(crate) fn look_up_with<Q>(&self, key: &Q, read: Read) -> Result<LookedUp<Answer>, Error<E>>
    where
        K: Borrow<Q>,
        Q: Hash + Eq + ToOwned<Owned = K> + ?Sized,
    {
        let hash = self.typed.hash(key);
        let slot = (!read.skip_l1).then(|| self.engine.l1.slot(hash)).flatten();
        self.check_or_begin((key, hash), read, slot)
    }

    /// The rest of a look-up's first step, if it was no plain hit. `slot` is the entry that L1 has.
    fn check_or_begin<Q>(
        &self,
        (key, hash): (&Q, u64),
        read: Read,
        slot: Option<Arc<Slot>>,
    ) -> Result<LookedUp<Answer>, Error<E>>
    where
        K: Borrow<Q>,
        Q: Hash + Eq + ToOwned<Owned = K> + ?Sized,
    {
        if self.engine.is_closed() {
            return Err(Error::Closed);
        }
        let hit = slot.and_then(|slot| self.hit((key, hash), &slot, read, Instant::now()));
        if let Some(answer) = hit {
            return Ok(LookedUp::Answered(answer));
        }
        let admission = self.engine.admit().map_err(Error::typed)?;
        let key = self.hashed_key(key.to_owned(), hash);
        match self.engine.begin(key, read, admission) {
            Ok(wait) => Ok(LookedUp::Waits(wait)),
            Err(answered) => answered.map(LookedUp::Answered).map_err(Error::typed),
        }
    }

    /// Admits a call that goes past L1.
    pub(crate) fn admit<Q>(&self, key: &Q) -> Result<(AnyKey, Admission), Error<E>>
    where
        Q: ToOwned<Owned = K> + ?Sized,
    {
        if self.engine.is_closed() {
            return Err(Error::Closed);
        }
        let admission = self.engine.admit().map_err(Error::typed)?;
        Ok((self.key(key.to_owned()), admission))
    }

    /// A hit of an entry that the engine must check, counted.
    fn hit<Q>(
        &self,
        (key, hash): (&Q, u64),
        slot: &Slot,
        read: Read,
        now: Instant,
    ) -> Option<Answer>
    where
        K: Borrow<Q>,
        Q: Eq + ToOwned<Owned = K> + ?Sized,
    {
        let view = self.typed.view(slot, key)?;
        let found = (view.answer(now), *view.meta);
        let key = || self.hashed_key(key.to_owned(), hash);
        self.engine.hit(found, read, now, &key)
    }

    /// The first step of a look-up of many keys: the hits of L1 are answered.
    fn probe_l1(&self, keys: &[K]) -> Vec<LookUp> {
        let (closed, now) = (self.engine.is_closed(), Instant::now());
        let look = |key: &K| {
            let hash = self.typed.hash(key);
            let hit = || match self.plain_hit((key, hash), || now, |hit, now| hit.answer(now)) {
                PlainHit::Hit(answer) => Some(answer),
                PlainHit::NeedsCheck(slot) => self.hit((key, hash), &slot, Read::new(), now),
                PlainHit::Nothing => None,
            };
            match (!closed).then(hit).flatten() {
                Some(answer) => LookUp::Hit(answer),
                None => LookUp::Key(self.hashed_key(key.clone(), hash)),
            }
        };
        keys.iter().map(look).collect()
    }

    /// Looks up many keys. One outcome for each key, in their order.
    pub(crate) async fn look_up_many<T>(
        &self,
        keys: &[K],
        answer: impl Fn(Answer) -> T,
    ) -> Vec<Result<T, Error<E>>> {
        let look_ups = self.probe_l1(keys);
        let got = self.engine.get_many(look_ups).await;
        let typed = |got: Result<Answer, Error<AnyError>>| got.map(&answer).map_err(Error::typed);
        got.into_iter().map(typed).collect()
    }

    /// The entry that L1 may answer now. The look-up is not counted.
    pub(crate) fn peek_l1<Q>(&self, key: &Q) -> Option<Entry<V>>
    where
        K: Borrow<Q>,
        Q: Hash + Eq + ?Sized,
    {
        let slot = self.engine.l1.slot(self.typed.hash(key))?;
        let (view, now) = (self.typed.view(&slot, key)?, Instant::now());
        let answer = self.engine.peek((view.answer(now), *view.meta), now)?;
        entry_of(answer)
    }

    /// A write to the source, and the change of the cache that follows it.
    pub(crate) async fn write_through<X>(
        &self,
        key: K,
        then: AfterWrite,
        write: impl Future<Output = Result<Written, X>> + Send + 'static,
    ) -> Result<Written, WriteError<X>>
    where
        X: Send + 'static,
    {
        let erased = |error: X| Box::new(error) as Box<dyn Any + Send>;
        let write = async move { write.await.map_err(erased) };
        let key = self.key(key);
        let done = self.engine.write(key, then, Box::pin(write)).await;
        done.map_err(|error| match error {
            WriteError::Source(error) => match error.downcast() {
                Ok(error) => WriteError::Source(*error),
                Err(_) => erased::other_type(WriteError::Panicked),
            },
            WriteError::Panicked => WriteError::Panicked,
            WriteError::Remote(error) => WriteError::Remote(error),
        })
    }

    /// A write that returns something to its caller, and the change of the cache that follows it.
    pub(crate) async fn write_then<T, X>(
        &self,
        key: K,
        then: AfterWrite,
        write: impl Future<Output = Result<T, X>> + Send + 'static,
    ) -> Result<T, WriteError<X>>
    where
        T: Send + 'static,
        X: Send + 'static,
    {
        let other = |written: T| Written::Other(Box::new(written));
        let write = async move { write.await.map(other) };
        match self.write_through(key, then, write).await? {
            Written::Other(written) => match written.downcast() {
                Ok(written) => Ok(*written),
                Err(_) => erased::other_type(Err(WriteError::Panicked)),
            },
            Written::Value(_) => erased::other_type(Err(WriteError::Panicked)),
        }
    }
}

/// The value of an answer; `None` is an absence.
pub(crate) fn value_of<V: Send + Sync + 'static>(answer: Answer) -> Option<Arc<V>> {
    answer.value.and_then(erased::typed)
}

/// The entry of an answer; `None` is an absence.
pub(crate) fn entry_of<V: Send + Sync + 'static>(answer: Answer) -> Option<Entry<V>> {
    answer.into_entry().and_then(AnyEntry::typed)
}
