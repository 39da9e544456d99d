//! tidegate with its defaults.

use std::sync::Arc;
use std::time::Duration;

use tidegate::{Cache, Redis, loader_fn};

use crate::peer::{BoxError, BoxFuture, Draws, Instance, Opening, Peer, Setup, TTL};
use crate::source::{CachedUser, Failed, User, id_of};

pub(crate) fn open(setup: Setup) -> Opening {
    Box::pin(async move {
        let redis = Redis::connect(&setup.url).await?;
        let source = setup.source;
        let ids = Cache::builder("ids", loader_fn(move |id: u64| source.load(id)))
            .ttl(TTL)
            .negative_ttl(TTL)
            .l1_capacity(setup.capacity)
            .l2(redis.clone())
            .build()?;
        let by_name = move |name: String| async move { source.load(id_of(&name)).await };
        let names = Cache::builder("names", loader_fn(by_name))
            .ttl(TTL)
            .negative_ttl(TTL)
            .l1_capacity(setup.capacity)
            .l2(redis)
            .build()?;
        Ok(Arc::new(Tidegate { ids, names }) as Instance)
    })
}

struct Tidegate {
    ids: Cache<u64, User, Failed>,
    names: Cache<String, User, Failed>,
}

impl Peer for Tidegate {
    fn get(&self, id: u64) -> BoxFuture<'_, Result<CachedUser, BoxError>> {
        Box::pin(async move { Ok(self.ids.get(&id).await?) })
    }

    fn get_by_name<'a>(&'a self, name: &'a str) -> BoxFuture<'a, Result<CachedUser, BoxError>> {
        Box::pin(async move { Ok(self.names.get(name).await?) })
    }

    fn invalidate(&self, id: u64) -> BoxFuture<'_, Result<(), BoxError>> {
        Box::pin(async move { Ok(self.ids.invalidate(&id).await?) })
    }

    fn get_many(&self, ids: Vec<u64>) -> Option<BoxFuture<'_, Result<usize, BoxError>>> {
        Some(Box::pin(async move {
            let answers = self.ids.get_many(&ids).await;
            Ok(answers
                .iter()
                .filter(|one| matches!(one, Ok(Some(_))))
                .count())
        }))
    }

    fn hits(&self, draws: &Draws<'_>) -> Result<Duration, BoxError> {
        draws.spin(
            |id| async move { self.ids.get(&id).await },
            |name, _| self.names.get(name),
        )
    }

    fn close(&self) -> BoxFuture<'_, ()> {
        Box::pin(async move {
            self.ids.close().await;
            self.names.close().await;
        })
    }
}
