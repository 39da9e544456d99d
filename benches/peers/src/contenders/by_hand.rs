//! The cache that a team writes in thirty lines: moka's `try_get_with` around fred's `GET` and
//! `SET`.

use std::sync::Arc;
use std::time::Duration;

use fred::clients::Client;
use fred::interfaces::KeysInterface;
use moka::future::Cache;

use super::client::{connect, read, write};
use crate::peer::{BoxError, BoxFuture, Draws, Instance, Opening, Peer, Setup, TTL};
use crate::source::{CachedUser, Failed, Source, id_of, name_of};

pub(crate) fn open(setup: Setup) -> Opening {
    Box::pin(async move {
        Ok(Arc::new(ByHand {
            ids: Cache::builder()
                .max_capacity(setup.capacity)
                .time_to_live(TTL)
                .build(),
            names: Cache::builder()
                .max_capacity(setup.capacity)
                .time_to_live(TTL)
                .build(),
            redis: connect(&setup.url).await?,
            source: setup.source,
        }) as Instance)
    })
}

struct ByHand {
    ids: Cache<u64, CachedUser>,
    names: Cache<String, CachedUser>,
    redis: Client,
    source: &'static Source,
}

impl ByHand {
    /// An error of Redis is a miss.
    async fn load(&self, id: u64) -> Result<CachedUser, Failed> {
        if let Ok(Some(cached)) = read(&self.redis, name_of(id)).await {
            return Ok(cached);
        }
        let cached = self.source.load_shared(id).await?;
        let _ = write(&self.redis, name_of(id), &cached).await;
        Ok(cached)
    }
}

impl Peer for ByHand {
    fn get(&self, id: u64) -> BoxFuture<'_, Result<CachedUser, BoxError>> {
        Box::pin(async move { Ok(self.ids.try_get_with(id, self.load(id)).await?) })
    }

    fn get_by_name<'a>(&'a self, name: &'a str) -> BoxFuture<'a, Result<CachedUser, BoxError>> {
        Box::pin(async move {
            let load = self.load(id_of(name));
            Ok(self.names.try_get_with_by_ref(name, load).await?)
        })
    }

    fn invalidate(&self, id: u64) -> BoxFuture<'_, Result<(), BoxError>> {
        Box::pin(async move {
            self.ids.invalidate(&id).await;
            Ok(self.redis.del::<(), _>(name_of(id)).await?)
        })
    }

    fn hits(&self, draws: &Draws<'_>) -> Result<Duration, BoxError> {
        draws.spin(
            |id| self.ids.try_get_with(id, self.load(id)),
            |name, id| self.names.try_get_with_by_ref(name, self.load(id)),
        )
    }
}
