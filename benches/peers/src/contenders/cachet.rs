//! cachet: its memory tier over a Redis tier of ours, because it has none. The tier returns its
//! errors, as the trait allows.

use std::fmt::Display;
use std::hash::Hash;
use std::sync::Arc;
use std::time::Duration;

use cachet::{Cache, CacheEntry, CacheTier, Error};
use cachet_tier::InsertOutcome;
use fred::clients::Client;
use fred::interfaces::KeysInterface;
use tick::Clock;

use super::client::{connect, read, write};
use crate::peer::{BoxError, BoxFuture, Draws, Instance, Opening, Peer, Setup, TTL};
use crate::source::{CachedUser, Source, id_of};

/// `GET`, `SET` and `DEL` of one kind of keys.
struct Tier {
    kind: &'static str,
    redis: Client,
}

impl Tier {
    fn key(&self, key: impl Display) -> String {
        format!("{}:{key}", self.kind)
    }
}

impl<K: Display + Send + Sync + 'static> CacheTier<K, CachedUser> for Tier {
    async fn get(&self, key: &K) -> Result<Option<CacheEntry<CachedUser>>, Error> {
        let found = read(&self.redis, self.key(key)).await;
        Ok(found.map_err(Error::from_source)?.map(CacheEntry::new))
    }

    async fn insert(&self, key: K, entry: CacheEntry<CachedUser>) -> Result<InsertOutcome, Error> {
        let written = write(&self.redis, self.key(key), entry.value()).await;
        written.map_err(Error::from_source)?;
        Ok(InsertOutcome::Accepted)
    }

    async fn invalidate(&self, key: &K) -> Result<(), Error> {
        let gone = self.redis.del::<(), _>(self.key(key)).await;
        gone.map_err(Error::from_source)
    }

    async fn clear(&self) -> Result<(), Error> {
        Err(Error::from_message("not used here"))
    }
}

pub(crate) fn open(setup: Setup) -> Opening {
    Box::pin(async move {
        let redis = connect(&setup.url).await?;
        Ok(Arc::new(Cachet {
            ids: build("ids", &redis, setup.capacity),
            names: build("names", &redis, setup.capacity),
            source: setup.source,
        }) as Instance)
    })
}

fn build<K>(kind: &'static str, redis: &Client, capacity: u64) -> Cache<K, CachedUser>
where
    K: Hash + Eq + Clone + Display + Send + Sync + 'static,
{
    let clock = Clock::new_tokio();
    let redis = redis.clone();
    let l2 = Cache::builder(clock.clone()).storage(Tier { kind, redis });
    Cache::builder(clock)
        .memory_with(|memory| memory.max_capacity(capacity))
        .ttl(TTL)
        .fallback(l2)
        .stampede_protection()
        .build()
}

struct Cachet {
    ids: Cache<u64, CachedUser>,
    names: Cache<String, CachedUser>,
    source: &'static Source,
}

impl Peer for Cachet {
    fn get(&self, id: u64) -> BoxFuture<'_, Result<CachedUser, BoxError>> {
        Box::pin(async move {
            let found = self
                .ids
                .try_get_or_insert(&id, || self.source.load_shared(id));
            Ok(found.await?.into_value())
        })
    }

    fn get_by_name<'a>(&'a self, name: &'a str) -> BoxFuture<'a, Result<CachedUser, BoxError>> {
        Box::pin(async move {
            let load = || self.source.load_shared(id_of(name));
            Ok(self.names.try_get_or_insert(name, load).await?.into_value())
        })
    }

    fn invalidate(&self, id: u64) -> BoxFuture<'_, Result<(), BoxError>> {
        Box::pin(async move { Ok(self.ids.invalidate(&id).await?) })
    }

    fn hits(&self, draws: &Draws<'_>) -> Result<Duration, BoxError> {
        draws.spin(
            |id| async move {
                let load = || self.source.load_shared(id);
                self.ids.try_get_or_insert(&id, load).await
            },
            |name, id| async move {
                let load = || self.source.load_shared(id);
                self.names.try_get_or_insert(name, load).await
            },
        )
    }
}
