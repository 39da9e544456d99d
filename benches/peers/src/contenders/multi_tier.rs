//! multi-tier-cache: moka over redis-rs, with invalidations by pub/sub.

use std::sync::Arc;
use std::time::Duration;

use multi_tier_cache::error::CacheError;
use multi_tier_cache::{
    CacheManager, CacheStrategy, InvalidationConfig, L1Cache, L2Cache, MokaCacheConfig,
};

use crate::peer::{BoxError, BoxFuture, Draws, Instance, Opening, Peer, Setup, TTL};
use crate::source::{CachedUser, Source, User, id_of, name_of};

pub(crate) fn open(setup: Setup) -> Opening {
    Box::pin(async move {
        let l1 = L1Cache::new(MokaCacheConfig {
            max_capacity: setup.capacity,
            time_to_live: TTL,
            time_to_idle: TTL,
        })?;
        let l2 = L2Cache::with_url(&setup.url).await?;
        let config = InvalidationConfig::default();
        let (l1, l2) = (Arc::new(l1), Arc::new(l2));
        let cache = CacheManager::new_with_invalidation(l1, l2, &setup.url, config).await?;
        let source = setup.source;
        Ok(Arc::new(MultiTier { cache, source }) as Instance)
    })
}

struct MultiTier {
    cache: CacheManager,
    source: &'static Source,
}

impl MultiTier {
    async fn load(&self, name: &str, id: u64) -> Result<Option<User>, CacheError> {
        let load = || async move {
            let loaded = self.source.load(id).await;
            loaded.map_err(|error| CacheError::BackendError(error.to_string()))
        };
        self.cache
            .get_or_compute_typed(name, CacheStrategy::Custom(TTL), load)
            .await
    }
}

impl Peer for MultiTier {
    fn get(&self, id: u64) -> BoxFuture<'_, Result<CachedUser, BoxError>> {
        Box::pin(async move { Ok(self.load(&name_of(id), id).await?.map(Arc::new)) })
    }

    fn get_by_name<'a>(&'a self, name: &'a str) -> BoxFuture<'a, Result<CachedUser, BoxError>> {
        Box::pin(async move { Ok(self.load(name, id_of(name)).await?.map(Arc::new)) })
    }

    fn invalidate(&self, id: u64) -> BoxFuture<'_, Result<(), BoxError>> {
        Box::pin(async move { Ok(self.cache.invalidate(&name_of(id)).await?) })
    }

    fn hits(&self, draws: &Draws<'_>) -> Result<Duration, BoxError> {
        draws.spin(
            |id| async move { self.load(&name_of(id), id).await },
            |name, id| self.load(name, id),
        )
    }
}
