//! What changes a key on purpose: `invalidate` and `insert`.
//!
//! The order is: database (the caller), L2, then L1. Evicting L1 first would let a reader put L2's
//! old value back. The work is a task of its own: a caller that goes away does not leave it half
//! done.

use std::sync::Arc;
use std::time::Duration;

use tokio::runtime::Handle;
use tokio::task::JoinSet;

use super::Engine;
use super::flight::{Flight, Id};
use super::shared::Shared;
use crate::error::{RemoteError, RemoteKind};
use crate::key::CacheKey;
use crate::l1::Meta;
use crate::l2::message::Operation;
use crate::loader::Loaded;
use crate::ttl;

/// Keys of one call that are under way at once.
const PIPELINED: usize = 256;

impl<K, V, E> Engine<K, V, E>
where
    K: CacheKey,
    V: Send + Sync + 'static,
    E: Send + Sync + 'static,
{
    pub(crate) async fn invalidate(self: &Arc<Self>, key: K) -> Result<(), RemoteError> {
        self.owned("invalidate", move |engine| async move {
            engine.invalidate_one(&key).await
        })
        .await
    }

    pub(crate) async fn invalidate_many(self: &Arc<Self>, keys: Vec<K>) -> Result<(), RemoteError> {
        self.owned("invalidate_many", move |engine| async move {
            let (mut under_way, mut first_error) = (JoinSet::new(), None);
            for key in keys {
                if under_way.len() >= PIPELINED {
                    keep_first(&mut first_error, under_way.join_next().await);
                }
                let engine = Arc::clone(&engine);
                under_way.spawn(async move { engine.invalidate_one(&key).await });
            }
            while let Some(ended) = under_way.join_next().await {
                keep_first(&mut first_error, Some(ended));
            }
            first_error.map_or(Ok(()), Err)
        })
        .await
    }

    pub(crate) async fn insert(
        self: &Arc<Self>,
        key: K,
        loaded: Loaded<V>,
    ) -> Result<(), RemoteError> {
        self.owned("insert", move |engine| async move {
            engine.insert_one(key, loaded).await
        })
        .await
    }

    /// Runs work that changes something in a task of its own, to its end.
    async fn owned<Fut>(
        self: &Arc<Self>,
        doing: &'static str,
        work: impl FnOnce(Arc<Self>) -> Fut,
    ) -> Result<(), RemoteError>
    where
        Fut: Future<Output = Result<(), RemoteError>> + Send + 'static,
    {
        let Some(running) = self.tasks.enter() else {
            return Err(RemoteError::new(RemoteKind::Closed, doing));
        };
        let Ok(runtime) = Handle::try_current() else {
            let cause = "this future must be polled inside a tokio runtime";
            return Err(RemoteError::because(RemoteKind::Unreachable, doing, cause));
        };
        let work = work(Arc::clone(self));
        let done = runtime.spawn(async move {
            let _running = running;
            work.await
        });
        match done.await {
            Ok(result) => result,
            Err(ended) => Err(RemoteError::because(RemoteKind::Unreachable, doing, ended)),
        }
    }

    async fn invalidate_one(&self, key: &K) -> Result<(), RemoteError> {
        let id = self.id(key);
        self.stats.invalidations.add();
        let Some(shared) = &self.shared else {
            self.evict(key, &id);
            return Ok(());
        };
        let remote = shared.key(&id);
        let notice = shared.notice(Operation::Invalidate, &id);
        let result = self.tier(shared.tier.invalidate(&remote.bytes, notice).await);
        // After the reply, and whatever it was.
        let detached = self.evict(key, &id);
        if let (Err(_), Some(flight)) = (&result, detached) {
            flight.revoke();
        }
        result
    }

    async fn insert_one(self: &Arc<Self>, key: K, loaded: Loaded<V>) -> Result<(), RemoteError> {
        let (answer, life) = self.answer(loaded);
        let Some(life) = life else {
            // Nothing to keep, so the old value goes.
            return self.invalidate_one(&key).await;
        };
        self.stats.inserts.add();
        if let Some(shared) = &self.shared {
            self.attach(shared).await;
        }
        let epoch = self.fence.epoch();
        let insert = Insert::begin(self, self.id(&key));
        if let Some(shared) = &self.shared {
            let result = match self.inserted(shared, &insert.id, answer.value.as_deref(), life) {
                Ok(record) => {
                    let remote = shared.key(&insert.id);
                    let notice = shared.notice(Operation::Insert, &insert.id);
                    self.tier(
                        shared
                            .tier
                            .insert(&remote.bytes, record, ttl::millis(life), notice)
                            .await,
                    )
                }
                Err(unencodable) => {
                    // The old value must not stay in its place.
                    self.invalidate_one(&key).await?;
                    Err(unencodable)
                }
            };
            if let Err(error) = result {
                if let Some(flight) = self.evict(&key, &insert.id) {
                    flight.revoke();
                }
                return Err(error);
            }
        }
        let hash = insert.id.hash;
        let mut shard = self.flights.lock(hash);
        // What is stored here is only as good as the order of things: whatever changed the key
        // before the reply came may have been first or last in L2.
        let undisturbed = shard.end_insert(&insert.id);
        shard.detach(hash, &insert.id.encoded);
        if undisturbed {
            let meta = Meta {
                stored: answer.at,
                age: Duration::ZERO,
                deadline: ttl::deadline(answer.at, self.config.l1_life(life)),
                stamp: self.fence.stamp_in(hash, epoch),
            };
            self.l1.store(key, answer.value.as_ref(), meta);
        } else {
            self.l1.remove(&key);
        }
        drop(shard);
        Ok(())
    }

    fn inserted(
        &self,
        shared: &Shared<V>,
        id: &Id,
        value: Option<&V>,
        life: Duration,
    ) -> Result<Vec<u8>, RemoteError> {
        let now_ms = shared.now_ms()?;
        self.seal(
            shared,
            &shared.key(id),
            rand::random(),
            value,
            now_ms,
            life,
            Duration::ZERO,
        )
    }

    /// From now on nothing older is answered or joined here.
    fn evict(&self, key: &K, id: &Id) -> Option<Arc<Flight<V, E>>> {
        let mut shard = self.flights.lock(id.hash);
        let detached = shard.detach(id.hash, &id.encoded);
        self.l1.remove(key);
        detached
    }
}

/// An insert that is under way; taken out of the table when it is over, however that is.
struct Insert<'a, K, V, E> {
    engine: &'a Engine<K, V, E>,
    id: Arc<Id>,
}

impl<'a, K, V, E> Insert<'a, K, V, E> {
    fn begin(engine: &'a Engine<K, V, E>, id: Id) -> Self {
        let id = Arc::new(id);
        engine.flights.lock(id.hash).begin_insert(&id);
        Self { engine, id }
    }
}

impl<K, V, E> Drop for Insert<'_, K, V, E> {
    fn drop(&mut self) {
        self.engine.flights.lock(self.id.hash).end_insert(&self.id);
    }
}

fn keep_first(
    first: &mut Option<RemoteError>,
    ended: Option<Result<Result<(), RemoteError>, tokio::task::JoinError>>,
) {
    let error = match ended {
        Some(Ok(Err(error))) => error,
        Some(Err(ended)) => RemoteError::because(RemoteKind::Unreachable, "invalidate_many", ended),
        Some(Ok(Ok(()))) | None => return,
    };
    first.get_or_insert(error);
}
