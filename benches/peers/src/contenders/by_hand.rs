//! What a team writes in thirty lines: moka's `try_get_with` around fred's `GET` and `SET`.

use std::sync::Arc;
use std::time::Duration;

use fred::clients::Client;
use fred::interfaces::KeysInterface;
use moka::future::Cache;

use super::client::{connect, read, write};
use crate::peer::{Draws, Fault, Instance, Later, Opening, Peer, Setup, TTL};
use crate::source::{Failed, Held, Source, id_of, name_of};

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
    ids: Cache<u64, Held>,
    names: Cache<String, Held>,
    redis: Client,
    source: &'static Source,
}

impl ByHand {
    /// A Redis that fails is a miss.
    async fn load(&self, id: u64) -> Result<Held, Failed> {
        if let Ok(Some(held)) = read(&self.redis, name_of(id)).await {
            return Ok(held);
        }
        let held = self.source.held(id).await?;
        let _ = write(&self.redis, name_of(id), &held).await;
        Ok(held)
    }
}

impl Peer for ByHand {
    fn get(&self, id: u64) -> Later<'_, Result<Held, Fault>> {
        Box::pin(async move { Ok(self.ids.try_get_with(id, self.load(id)).await?) })
    }

    fn get_by_name<'a>(&'a self, name: &'a str) -> Later<'a, Result<Held, Fault>> {
        Box::pin(async move {
            let load = self.load(id_of(name));
            Ok(self.names.try_get_with_by_ref(name, load).await?)
        })
    }

    fn invalidate(&self, id: u64) -> Later<'_, Result<(), Fault>> {
        Box::pin(async move {
            self.ids.invalidate(&id).await;
            Ok(self.redis.del::<(), _>(name_of(id)).await?)
        })
    }

    fn hits(&self, draws: &Draws<'_>) -> Result<Duration, Fault> {
        draws.spin(
            |id| self.ids.try_get_with(id, self.load(id)),
            |name, id| self.names.try_get_with_by_ref(name, self.load(id)),
        )
    }
}
