//! cachekit-rs with its preset `production` and the loop that its documentation shows for a
//! closure.

use std::sync::Arc;
use std::time::Duration;

use cachekit::CacheKit;

use crate::peer::{BoxError, BoxFuture, Draws, Instance, Opening, Peer, Setup, TTL};
use crate::source::{CachedUser, Failed, Source, User, id_of, name_of};

pub(crate) fn open(setup: Setup) -> Opening {
    Box::pin(async move {
        let cache = CacheKit::production(&setup.url)
            .await?
            .namespace("bench")
            .default_ttl(TTL)
            .l1_capacity(usize::try_from(setup.capacity)?)
            .build()?;
        let source = setup.source;
        Ok(Arc::new(Kit { cache, source }) as Instance)
    })
}

struct Kit {
    cache: CacheKit,
    source: &'static Source,
}

impl Kit {
    /// Like the crate's macro, it continues when Redis fails.
    async fn load(&self, name: &str, id: u64) -> Result<Option<User>, Failed> {
        if let Ok(Some(found)) = self.cache.get(name).await {
            return Ok(found);
        }
        let mut flight = self.cache.single_flight(name).await;
        while flight.wait_for_fill().await {
            if let Ok(Some(found)) = self.cache.get(name).await {
                flight.release().await;
                return Ok(found);
            }
        }
        let loaded = self.source.load(id).await;
        if let Ok(found) = &loaded {
            let _ = self.cache.set(name, found).await;
        }
        flight.release().await;
        loaded
    }
}

impl Peer for Kit {
    fn get(&self, id: u64) -> BoxFuture<'_, Result<CachedUser, BoxError>> {
        Box::pin(async move { Ok(self.load(&name_of(id), id).await?.map(Arc::new)) })
    }

    fn get_by_name<'a>(&'a self, name: &'a str) -> BoxFuture<'a, Result<CachedUser, BoxError>> {
        Box::pin(async move { Ok(self.load(name, id_of(name)).await?.map(Arc::new)) })
    }

    fn invalidate(&self, id: u64) -> BoxFuture<'_, Result<(), BoxError>> {
        Box::pin(async move {
            self.cache.delete(&name_of(id)).await?;
            Ok(())
        })
    }

    fn hits(&self, draws: &Draws<'_>) -> Result<Duration, BoxError> {
        draws.spin(
            |id| async move { self.load(&name_of(id), id).await },
            |name, id| async move { self.load(name, id).await },
        )
    }
}
