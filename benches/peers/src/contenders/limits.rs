//! What the libraries underneath do alone: nobody who stands on them can be faster.

use std::sync::Arc;
use std::time::Duration;

use fred::clients::Client;
use fred::interfaces::KeysInterface;
use fred::types::Value;

use super::client::{connect, read, write};
use crate::peer::{Draws, Fault, Instance, Later, Opening, Peer, Setup, unable};
use crate::source::{Held, Source, id_of, name_of};

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
    ids: moka::sync::Cache<u64, Held>,
    names: moka::sync::Cache<String, Held>,
    source: &'static Source,
}

impl Peer for Moka {
    fn get(&self, id: u64) -> Later<'_, Result<Held, Fault>> {
        Box::pin(async move {
            if let Some(held) = self.ids.get(&id) {
                return Ok(held);
            }
            let held = self.source.held(id).await?;
            self.ids.insert(id, held.clone());
            Ok(held)
        })
    }

    fn get_by_name<'a>(&'a self, name: &'a str) -> Later<'a, Result<Held, Fault>> {
        Box::pin(async move {
            if let Some(held) = self.names.get(name) {
                return Ok(held);
            }
            let held = self.source.held(id_of(name)).await?;
            self.names.insert(name.to_owned(), held.clone());
            Ok(held)
        })
    }

    fn invalidate(&self, id: u64) -> Later<'_, Result<(), Fault>> {
        self.ids.invalidate(&id);
        Box::pin(async { Ok(()) })
    }

    fn hits(&self, draws: &Draws<'_>) -> Result<Duration, Fault> {
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
    ids: quick_cache::sync::Cache<u64, Held>,
    names: quick_cache::sync::Cache<String, Held>,
    source: &'static Source,
}

impl Peer for Quick {
    fn get(&self, id: u64) -> Later<'_, Result<Held, Fault>> {
        Box::pin(async move {
            if let Some(held) = self.ids.get(&id) {
                return Ok(held);
            }
            let held = self.source.held(id).await?;
            self.ids.insert(id, held.clone());
            Ok(held)
        })
    }

    fn get_by_name<'a>(&'a self, name: &'a str) -> Later<'a, Result<Held, Fault>> {
        Box::pin(async move {
            if let Some(held) = self.names.get(name) {
                return Ok(held);
            }
            let held = self.source.held(id_of(name)).await?;
            self.names.insert(name.to_owned(), held.clone());
            Ok(held)
        })
    }

    fn invalidate(&self, id: u64) -> Later<'_, Result<(), Fault>> {
        self.ids.remove(&id);
        Box::pin(async { Ok(()) })
    }

    fn hits(&self, draws: &Draws<'_>) -> Result<Duration, Fault> {
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

/// `GET`, and where nothing is there, the load and `SET`: neither L1 nor coalescing.
struct Fred {
    redis: Client,
    source: &'static Source,
}

impl Peer for Fred {
    fn get(&self, id: u64) -> Later<'_, Result<Held, Fault>> {
        Box::pin(async move {
            if let Some(held) = read(&self.redis, name_of(id)).await? {
                return Ok(held);
            }
            let held = self.source.held(id).await?;
            write(&self.redis, name_of(id), &held).await?;
            Ok(held)
        })
    }

    fn get_by_name<'a>(&'a self, name: &'a str) -> Later<'a, Result<Held, Fault>> {
        self.get(id_of(name))
    }

    fn invalidate(&self, id: u64) -> Later<'_, Result<(), Fault>> {
        Box::pin(async move { Ok(self.redis.del::<(), _>(name_of(id)).await?) })
    }

    fn get_many(&self, ids: Vec<u64>) -> Option<Later<'_, Result<usize, Fault>>> {
        Some(Box::pin(async move {
            let keys: Vec<String> = ids.into_iter().map(name_of).collect();
            let values: Vec<Value> = self.redis.mget(keys).await?;
            let decoded = values.into_iter().filter_map(|value| {
                let bytes = value.into_bytes()?;
                crate::source::decode(&bytes)
            });
            Ok(decoded.collect::<Vec<Held>>().len())
        }))
    }

    fn hits(&self, _: &Draws<'_>) -> Result<Duration, Fault> {
        unable("fred holds nothing in this process")
    }
}
