//! cached: its sharded LRU in memory, and its store in Redis. It composes no tiers: hits in memory are the
//! former's, everything else is the latter's, and loads are not shared.

use std::sync::Arc;
use std::time::Duration;

use cached::ConcurrentCachedAsync;
use cached::stores::{AsyncRedisCache, ShardedLruTtlCache};

use crate::peer::{Draws, Fault, Instance, Later, Opening, Peer, Setup, TTL};
use crate::source::{Held, Source, id_of};

pub(crate) fn open(setup: Setup) -> Opening {
    Box::pin(async move {
        let memory = usize::try_from(setup.capacity)?;
        let redis = AsyncRedisCache::builder("bench")
            .connection_string(&setup.url)
            .connection_manager(true)
            .ttl(TTL)
            .build()
            .await?;
        Ok(Arc::new(Cached {
            ids: ShardedLruTtlCache::new(memory, TTL),
            names: ShardedLruTtlCache::new(memory, TTL),
            redis,
            source: setup.source,
        }) as Instance)
    })
}

struct Cached {
    ids: ShardedLruTtlCache<u64, Held>,
    names: ShardedLruTtlCache<String, Held>,
    redis: AsyncRedisCache<u64, Held>,
    source: &'static Source,
}

impl Peer for Cached {
    fn get(&self, id: u64) -> Later<'_, Result<Held, Fault>> {
        Box::pin(async move {
            if let Some(held) = self.redis.async_cache_get(&id).await? {
                return Ok(held);
            }
            let held = self.source.held(id).await?;
            self.redis.async_cache_set(id, held.clone()).await?;
            // For the hits in memory; nothing else reads it.
            self.ids.set(id, held.clone());
            Ok(held)
        })
    }

    fn get_by_name<'a>(&'a self, name: &'a str) -> Later<'a, Result<Held, Fault>> {
        Box::pin(async move {
            let held = self.source.held(id_of(name)).await?;
            self.names.set(name.to_owned(), held.clone());
            Ok(held)
        })
    }

    fn invalidate(&self, id: u64) -> Later<'_, Result<(), Fault>> {
        Box::pin(async move {
            self.redis.async_cache_delete(&id).await?;
            Ok(())
        })
    }

    fn hits(&self, draws: &Draws<'_>) -> Result<Duration, Fault> {
        let look_up = |held: Option<Held>, id: u64| async move {
            match held {
                Some(held) => Ok(held),
                None => self.source.held(id).await,
            }
        };
        draws.spin(
            |id| look_up(self.ids.get(&id), id),
            |name, id| look_up(self.names.get(name), id),
        )
    }
}
