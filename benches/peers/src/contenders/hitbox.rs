//! hitbox: moka over Redis with refills and one upstream call at a time. The connection is made
//! before the tiers are composed, because the composition would make a new one for every command.

use std::sync::Arc;
use std::time::Duration;

use hitbox::concurrency::BroadcastConcurrencyManager;
use hitbox::offload::OffloadManager;
use hitbox::policy::{ConcurrencyLimit, PolicyConfig};
use hitbox::{CacheKey, Extractor};
use hitbox_backend::composition::policy::RefillPolicy;
use hitbox_backend::{Backend, CacheBackend, Compose};
use hitbox_fn::{Arg, Args, Cache, CacheableResponse, FnExtractor, cached};
use hitbox_moka::MokaBackend;
use hitbox_redis::{ConnectionMode, RedisBackend};
use serde::{Deserialize, Serialize};

use crate::peer::{BoxError, BoxFuture, Draws, Instance, Opening, Peer, Setup, TTL};
use crate::source::{CachedUser, Failed, Source, id_of};

#[derive(Clone, Debug, Serialize, Deserialize, CacheableResponse)]
struct Answer {
    cached: CachedUser,
}

type Answered = Result<Answer, Failed>;

/// The source, which is no part of the key.
#[derive(Clone, Copy, Debug)]
struct Loads(&'static Source);

const IDS: &str = "ids";

#[cached(prefix = "ids", skip(from))]
async fn by_id(id: u64, from: Loads) -> Result<Answer, Failed> {
    let cached = from.0.load_shared(id).await?;
    Ok(Answer { cached })
}

#[cached(prefix = "names", skip(from))]
async fn by_name(name: String, from: Loads) -> Result<Answer, Failed> {
    let cached = from.0.load_shared(id_of(&name)).await?;
    Ok(Answer { cached })
}

pub(crate) fn open(setup: Setup) -> Opening {
    Box::pin(async move {
        let moka = MokaBackend::builder().max_entries(setup.capacity).build();
        let redis = RedisBackend::builder()
            .connection(ConnectionMode::single(setup.url))
            .build()?;
        let key = CacheKey::from_str("first", "connection");
        let first = redis.read(&key).await;
        first.map_err(|error| error.to_string())?;
        let both = moka
            .compose(redis, OffloadManager::with_defaults())
            .refill(RefillPolicy::Always);
        let one = ConcurrencyLimit::new(1).ok_or("a limit of one")?;
        let policy = PolicyConfig::builder().ttl(TTL).concurrency(one).build();
        let cache = Cache::builder()
            .backend(both)
            .policy(policy)
            .concurrency_manager(BroadcastConcurrencyManager::<Answered>::new())
            .offload(OffloadManager::with_defaults())
            .build();
        let from = Loads(setup.source);
        Ok(Arc::new(Hitbox { cache, from }) as Instance)
    })
}

struct Hitbox<B> {
    cache: Cache<B, BroadcastConcurrencyManager<Answered>, OffloadManager>,
    from: Loads,
}

impl<B: Backend + CacheBackend + Send + Sync + 'static> Peer for Hitbox<B> {
    fn get(&self, id: u64) -> BoxFuture<'_, Result<CachedUser, BoxError>> {
        Box::pin(async move { Ok(by_id(id, self.from).cache(&self.cache).await?.cached) })
    }

    fn get_by_name<'a>(&'a self, name: &'a str) -> BoxFuture<'a, Result<CachedUser, BoxError>> {
        Box::pin(async move {
            let found = by_name(name.to_owned(), self.from).cache(&self.cache);
            Ok(found.await?.cached)
        })
    }

    /// The crate has no call for this, so the key is made again from its parts.
    fn invalidate(&self, id: u64) -> BoxFuture<'_, Result<(), BoxError>> {
        Box::pin(async move {
            let extractor = FnExtractor::<Args<(Arg<u64>,)>>::new(IDS);
            let parts = extractor.get(Args((Arg::new("id", id),))).await;
            let (_, key) = parts.into_cache_key();
            let gone = self.cache.backend().remove(&key).await;
            gone.map_err(|error| error.to_string())?;
            Ok(())
        })
    }

    fn hits(&self, draws: &Draws<'_>) -> Result<Duration, BoxError> {
        draws.spin(
            |id| async move { by_id(id, self.from).cache(&self.cache).await },
            |name, _| async move {
                let found = by_name(name.to_owned(), self.from);
                found.cache(&self.cache).await
            },
        )
    }
}
