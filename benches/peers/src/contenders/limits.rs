//! The limits: the libraries underneath, alone. A cache that is built on them cannot be faster.

use std::sync::Arc;
use std::time::Duration;

use fred::clients::Client;
use fred::interfaces::KeysInterface;
use fred::types::Value;

use super::client::{connect, read, write};
use crate::peer::{BoxError, BoxFuture, Draws, Instance, Opening, Peer, Setup, unsupported};
use crate::source::{CachedUser, Source, id_of, name_of};

pub(crate) fn moka(setup: Setup) -> Opening {
    Box::pin(async move {
        Ok(Arc::new(Moka {
            ids: moka::sync::Cache::new(setup.capacity),
            names: moka::sync::Cache::new(setup.capacity),
            source: setup.source,
        }) as Instance)
    })
}

struct Moka {
    ids: moka::sync::Cache<u64, CachedUser>,
    names: moka::sync::Cache<String, CachedUser>,
    source: &'static Source,
}

impl Peer for Moka {
    fn get(&self, id: u64) -> BoxFuture<'_, Result<CachedUser, BoxError>> {
        Box::pin(async move {
            if let Some(cached) = self.ids.get(&id) {
                return Ok(cached);
            }
            let cached = self.source.load_shared(id).await?;
            self.ids.insert(id, cached.clone());
            Ok(cached)
        })
    }

    fn get_by_name<'a>(&'a self, name: &'a str) -> BoxFuture<'a, Result<CachedUser, BoxError>> {
        Box::pin(async move {
            if let Some(cached) = self.names.get(name) {
                return Ok(cached);
            }
            let cached = self.source.load_shared(id_of(name)).await?;
            self.names.insert(name.to_owned(), cached.clone());
            Ok(cached)
        })
    }

    fn invalidate(&self, id: u64) -> BoxFuture<'_, Result<(), BoxError>> {
        self.ids.invalidate(&id);
        Box::pin(async { Ok(()) })
    }

    fn hits(&self, draws: &Draws<'_>) -> Result<Duration, BoxError> {
        Ok(draws.spin_blocking(|id| self.ids.get(&id), |name, _| self.names.get(name)))
    }
}

pub(crate) fn quick_cache(setup: Setup) -> Opening {
    Box::pin(async move {
        let capacity = usize::try_from(setup.capacity)?;
        Ok(Arc::new(Quick {
            ids: quick_cache::sync::Cache::new(capacity),
            names: quick_cache::sync::Cache::new(capacity),
            source: setup.source,
        }) as Instance)
    })
}

struct Quick {
    ids: quick_cache::sync::Cache<u64, CachedUser>,
    names: quick_cache::sync::Cache<String, CachedUser>,
    source: &'static Source,
}

impl Peer for Quick {
    fn get(&self, id: u64) -> BoxFuture<'_, Result<CachedUser, BoxError>> {
        Box::pin(async move {
            if let Some(cached) = self.ids.get(&id) {
                return Ok(cached);
            }
            let cached = self.source.load_shared(id).await?;
            self.ids.insert(id, cached.clone());
            Ok(cached)
        })
    }

    fn get_by_name<'a>(&'a self, name: &'a str) -> BoxFuture<'a, Result<CachedUser, BoxError>> {
        Box::pin(async move {
            if let Some(cached) = self.names.get(name) {
                return Ok(cached);
            }
            let cached = self.source.load_shared(id_of(name)).await?;
            self.names.insert(name.to_owned(), cached.clone());
            Ok(cached)
        })
    }

    fn invalidate(&self, id: u64) -> BoxFuture<'_, Result<(), BoxError>> {
        self.ids.remove(&id);
        Box::pin(async { Ok(()) })
    }

    fn hits(&self, draws: &Draws<'_>) -> Result<Duration, BoxError> {
        Ok(draws.spin_blocking(|id| self.ids.get(&id), |name, _| self.names.get(name)))
    }
}

pub(crate) fn fred(setup: Setup) -> Opening {
    Box::pin(async move {
        let redis = connect(&setup.url).await?;
        let source = setup.source;
        Ok(Arc::new(Fred { redis, source }) as Instance)
    })
}

/// `GET`, and on a miss the load and `SET`, without L1 and without coalescing.
struct Fred {
    redis: Client,
    source: &'static Source,
}

impl Peer for Fred {
    fn get(&self, id: u64) -> BoxFuture<'_, Result<CachedUser, BoxError>> {
        Box::pin(async move {
            if let Some(cached) = read(&self.redis, name_of(id)).await? {
                return Ok(cached);
            }
            let cached = self.source.load_shared(id).await?;
            write(&self.redis, name_of(id), &cached).await?;
            Ok(cached)
        })
    }

    fn get_by_name<'a>(&'a self, name: &'a str) -> BoxFuture<'a, Result<CachedUser, BoxError>> {
        self.get(id_of(name))
    }

    fn invalidate(&self, id: u64) -> BoxFuture<'_, Result<(), BoxError>> {
        Box::pin(async move { Ok(self.redis.del::<(), _>(name_of(id)).await?) })
    }

    fn get_many(&self, ids: Vec<u64>) -> Option<BoxFuture<'_, Result<usize, BoxError>>> {
        Some(Box::pin(async move {
            let keys: Vec<String> = ids.into_iter().map(name_of).collect();
            let values: Vec<Value> = self.redis.mget(keys).await?;
            let decoded = values.into_iter().filter_map(|value| {
                let bytes = value.into_bytes()?;
                crate::source::decode(&bytes)
            });
            Ok(decoded.collect::<Vec<CachedUser>>().len())
        }))
    }

    fn hits(&self, _: &Draws<'_>) -> Result<Duration, BoxError> {
        unsupported("fred holds nothing in this process")
    }
}
