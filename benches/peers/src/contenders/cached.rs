//! cached: its sharded LRU in memory, and its store in Redis. It composes no tiers: hits in memory
//! are those of the LRU, everything else is the store. Loads are not shared.

use std::sync::Arc;
use std::time::Duration;

use cached::ConcurrentCachedAsync;
use cached::stores::{AsyncRedisCache, ShardedLruTtlCache};

use crate::peer::{BoxError, BoxFuture, Draws, Instance, Opening, Peer, Setup, TTL};
use crate::source::{CachedUser, Source, id_of};

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
    ids: ShardedLruTtlCache<u64, CachedUser>,
    names: ShardedLruTtlCache<String, CachedUser>,
    redis: AsyncRedisCache<u64, CachedUser>,
    source: &'static Source,
}

impl Peer for Cached {
    fn get(&self, id: u64) -> BoxFuture<'_, Result<CachedUser, BoxError>> {
        Box::pin(async move {
            if let Some(cached) = self.redis.async_cache_get(&id).await? {
                return Ok(cached);
            }
            let cached = self.source.load_shared(id).await?;
            self.redis.async_cache_set(id, cached.clone()).await?;
            // Only the measurement of hits in memory reads this.
            self.ids.set(id, cached.clone());
            Ok(cached)
        })
    }

    fn get_by_name<'a>(&'a self, name: &'a str) -> BoxFuture<'a, Result<CachedUser, BoxError>> {
        Box::pin(async move {
            let cached = self.source.load_shared(id_of(name)).await?;
            self.names.set(name.to_owned(), cached.clone());
            Ok(cached)
        })
    }

    fn invalidate(&self, id: u64) -> BoxFuture<'_, Result<(), BoxError>> {
        Box::pin(async move {
            self.redis.async_cache_delete(&id).await?;
            Ok(())
        })
    }

    fn hits(&self, draws: &Draws<'_>) -> Result<Duration, BoxError> {
        let look_up = |cached: Option<CachedUser>, id: u64| async move {
            match cached {
                Some(cached) => Ok(cached),
                None => self.source.load_shared(id).await,
            }
        };
        draws.spin(
            |id| look_up(self.ids.get(&id), id),
            |name, id| look_up(self.names.get(name), id),
        )
    }
}
