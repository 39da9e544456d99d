//! amalgam-cache with postcard, its backplane and its breaker at two seconds, with and without its
//! lock.

use std::sync::Arc;
use std::time::Duration;

use amalgam::provider::{
    Backplane, DistributedCache, DistributedLocker, DistributedSerializer, PostcardSerializer,
    RedisBackplane, RedisDistributedCache, RedisDistributedLocker,
};
use amalgam::{Cache, EntryOptions};

use crate::peer::{BoxError, BoxFuture, Draws, Instance, Opening, Peer, Setup, TTL};
use crate::source::{CachedUser, Source, id_of, name_of};

pub(crate) fn open(setup: Setup) -> Opening {
    Box::pin(build(setup, false, BREAKER))
}

pub(crate) fn open_with_lock(setup: Setup) -> Opening {
    Box::pin(build(setup, true, BREAKER))
}

pub(crate) fn open_without_breaker(setup: Setup) -> Opening {
    Box::pin(build(setup, false, Duration::ZERO))
}

const BREAKER: Duration = Duration::from_secs(2);

async fn build(setup: Setup, lock: bool, breaker: Duration) -> Result<Instance, BoxError> {
    let url = setup.url;
    let l2 = RedisDistributedCache::connect(url.clone()).await?;
    let backplane = RedisBackplane::connect(url.clone()).await?;
    let mut builder = Cache::builder()
        .distributed(Arc::new(l2) as Arc<dyn DistributedCache>)
        .serializer(Arc::new(PostcardSerializer) as Arc<dyn DistributedSerializer<CachedUser>>)
        .backplane(Arc::new(backplane) as Arc<dyn Backplane>)
        .distributed_circuit_breaker(breaker)
        .backplane_circuit_breaker(breaker)
        .max_capacity(setup.capacity)
        .default_options(EntryOptions::new(TTL));
    if lock {
        let locker = RedisDistributedLocker::connect(url).await?;
        builder = builder.distributed_locker(Arc::new(locker) as Arc<dyn DistributedLocker>);
    }
    let cache = builder.try_build_ready().await?;
    let source = setup.source;
    Ok(Arc::new(Amalgam { cache, source }))
}

struct Amalgam {
    cache: Cache<CachedUser>,
    source: &'static Source,
}

impl Amalgam {
    async fn load(&self, name: impl AsRef<str>, id: u64) -> amalgam::Result<CachedUser> {
        let source = self.source;
        self.cache
            .get_or_set(name, move |_| async move { source.load_shared(id).await })
            .await
    }
}

impl Peer for Amalgam {
    fn get(&self, id: u64) -> BoxFuture<'_, Result<CachedUser, BoxError>> {
        Box::pin(async move { Ok(self.load(name_of(id), id).await?) })
    }

    fn get_by_name<'a>(&'a self, name: &'a str) -> BoxFuture<'a, Result<CachedUser, BoxError>> {
        Box::pin(async move { Ok(self.load(name, id_of(name)).await?) })
    }

    fn invalidate(&self, id: u64) -> BoxFuture<'_, Result<(), BoxError>> {
        Box::pin(async move { Ok(self.cache.remove(name_of(id)).await?) })
    }

    fn hits(&self, draws: &Draws<'_>) -> Result<Duration, BoxError> {
        let source = self.source;
        draws.spin(
            |id| async move {
                let load = move |_| async move { source.load_shared(id).await };
                self.cache.get_or_set(name_of(id), load).await
            },
            |name, id| async move {
                let load = move |_| async move { source.load_shared(id).await };
                self.cache.get_or_set(name, load).await
            },
        )
    }

    fn close(&self) -> BoxFuture<'_, ()> {
        Box::pin(async move {
            let _ = self.cache.shutdown().await;
        })
    }
}
