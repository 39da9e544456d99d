//! cachet: its memory tier over a tier of ours, for which there is none to be had, and which returns its
//! errors as the trait invites.

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
use crate::peer::{Draws, Fault, Instance, Later, Opening, Peer, Setup, TTL};
use crate::source::{Held, Source, id_of};

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

impl<K: Display + Send + Sync + 'static> CacheTier<K, Held> for Tier {
    async fn get(&self, key: &K) -> Result<Option<CacheEntry<Held>>, Error> {
        let found = read(&self.redis, self.key(key)).await;
        Ok(found.map_err(Error::from_source)?.map(CacheEntry::new))
    }

    async fn insert(&self, key: K, entry: CacheEntry<Held>) -> Result<InsertOutcome, Error> {
        let written = write(&self.redis, self.key(key), entry.value()).await;
        written.map_err(Error::from_source)?;
        Ok(InsertOutcome::Accepted)
    }

    async fn invalidate(&self, key: &K) -> Result<(), Error> {
        let gone = self.redis.del::<(), _>(self.key(key)).await;
        gone.map_err(Error::from_source)
    }

    async fn clear(&self) -> Result<(), Error> {
        Err(Error::from_message("nobody asks for it here"))
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

fn build<K>(kind: &'static str, redis: &Client, capacity: u64) -> Cache<K, Held>
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
    ids: Cache<u64, Held>,
    names: Cache<String, Held>,
    source: &'static Source,
}

impl Peer for Cachet {
    fn get(&self, id: u64) -> Later<'_, Result<Held, Fault>> {
        Box::pin(async move {
            let found = self.ids.try_get_or_insert(&id, || self.source.held(id));
            Ok(found.await?.into_value())
        })
    }

    fn get_by_name<'a>(&'a self, name: &'a str) -> Later<'a, Result<Held, Fault>> {
        Box::pin(async move {
            let load = || self.source.held(id_of(name));
            Ok(self.names.try_get_or_insert(name, load).await?.into_value())
        })
    }

    fn invalidate(&self, id: u64) -> Later<'_, Result<(), Fault>> {
        Box::pin(async move { Ok(self.ids.invalidate(&id).await?) })
    }

    fn hits(&self, draws: &Draws<'_>) -> Result<Duration, Fault> {
        draws.spin(
            |id| async move {
                let load = || self.source.held(id);
                self.ids.try_get_or_insert(&id, load).await
            },
            |name, id| async move {
                let load = || self.source.held(id);
                self.names.try_get_or_insert(name, load).await
            },
        )
    }
}
