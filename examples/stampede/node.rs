//! One process of a service, and the four ways in which it may answer a request.

use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use tidegate::{BoxError, Cache, CacheFor, InProcess, Loaded, Loader, SharedTier};

use crate::database::{BestSellers, Database};
use crate::kv::Kv;

/// How a process protects its database.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Strategy {
    NoCache,
    CacheAside,
    Lock,
    Tidegate,
}

impl Strategy {
    pub(crate) const ALL: [Self; 4] = [Self::NoCache, Self::CacheAside, Self::Lock, Self::Tidegate];

    pub(crate) fn title(self) -> &'static str {
        match self {
            Self::NoCache => "no cache",
            Self::CacheAside => "GET, load, SET EX",
            Self::Lock => "SET NX lock, 50 ms polls",
            Self::Tidegate => "tidegate",
        }
    }

    pub(crate) fn word(self) -> &'static str {
        match self {
            Self::NoCache => "none",
            Self::CacheAside => "aside",
            Self::Lock => "lock",
            Self::Tidegate => "tidegate",
        }
    }
}

impl FromStr for Strategy {
    type Err = String;

    fn from_str(word: &str) -> Result<Self, String> {
        let found = Self::ALL
            .into_iter()
            .find(|strategy| strategy.word() == word);
        found.ok_or_else(|| format!("there is no strategy {word:?}"))
    }
}

/// How a process reaches the tier that it shares with the others.
pub(crate) enum Tier {
    None,
    Kv(Kv),
    InProcess(InProcess),
    Redis(tidegate::Redis),
}

/// One process.
pub(crate) struct Node {
    database: Arc<Database>,
    /// The city whose report all requests want, and its key for the textbook strategies.
    city: u32,
    key: String,
    ttl: Duration,
    how: How,
}

enum How {
    NoCache,
    CacheAside(Kv),
    Lock(Kv),
    Tidegate(CacheFor<Reports>),
}

impl Node {
    /// `name` keeps the entries of different runs apart.
    pub(crate) fn new(
        strategy: Strategy,
        tier: Tier,
        database: Database,
        name: &str,
        ttl: Duration,
    ) -> Result<Self, BoxError> {
        let database = Arc::new(database);
        let cache = || {
            Cache::builder(
                name,
                Reports {
                    database: Arc::clone(&database),
                },
            )
        };
        let how = match (strategy, tier) {
            (Strategy::NoCache, _) => How::NoCache,
            (Strategy::CacheAside, Tier::Kv(kv)) => How::CacheAside(kv),
            (Strategy::Lock, Tier::Kv(kv)) => How::Lock(kv),
            (Strategy::Tidegate, Tier::InProcess(tier)) => {
                How::Tidegate(build(cache(), tier, ttl)?)
            }
            (Strategy::Tidegate, Tier::Redis(tier)) => How::Tidegate(build(cache(), tier, ttl)?),
            (strategy, _) => return Err(format!("{strategy:?} needs another tier").into()),
        };
        let city = 1;
        Ok(Self {
            database,
            city,
            key: format!("{name}:{city}"),
            ttl,
            how,
        })
    }

    pub(crate) fn database(&self) -> &Database {
        &self.database
    }

    /// Answers one request.
    pub(crate) async fn answer(&self) -> Result<(), BoxError> {
        let products = match &self.how {
            How::NoCache => self.database.best_sellers(self.city).await?.0.len(),
            How::CacheAside(kv) => self.cache_aside(kv).await?.0.len(),
            How::Lock(kv) => self.lock_and_poll(kv).await?.0.len(),
            How::Tidegate(cache) => {
                let report = cache.get(&self.city).await.map_err(BoxError::new)?;
                report.map_or(0, |report| report.0.len())
            }
        };
        if products != crate::database::TOP {
            return Err(format!("a report names {products} products").into());
        }
        Ok(())
    }

    /// The first version by hand: look up, load, store.
    async fn cache_aside(&self, kv: &Kv) -> Result<BestSellers, BoxError> {
        if let Some(report) = kv.get(&self.key).await? {
            return decode(&report);
        }
        self.load_and_store(kv).await
    }

    /// The version after the first stampede: one request loads, the others sleep and look again.
    async fn lock_and_poll(&self, kv: &Kv) -> Result<BestSellers, BoxError> {
        const POLL: Duration = Duration::from_millis(50);
        const LOCK_TTL: Duration = Duration::from_secs(10);

        let lock = format!("{}:lock", self.key);
        loop {
            if let Some(report) = kv.get(&self.key).await? {
                return decode(&report);
            }
            if !kv.set_nx_px(&lock, b"locked".to_vec(), LOCK_TTL).await? {
                tokio::time::sleep(POLL).await;
                continue;
            }
            // Another look, as careful versions do: the holder before may have stored and unlocked
            // between the two commands above.
            let report = match kv.get(&self.key).await? {
                Some(report) => decode(&report),
                None => self.load_and_store(kv).await,
            };
            kv.del(&lock).await?;
            return report;
        }
    }

    async fn load_and_store(&self, kv: &Kv) -> Result<BestSellers, BoxError> {
        let report = self.database.best_sellers(self.city).await?;
        let encoded = serde_json::to_vec(&report).map_err(BoxError::new)?;
        kv.set_ex(&self.key, encoded, self.ttl).await?;
        Ok(report)
    }
}

fn decode(report: &[u8]) -> Result<BestSellers, BoxError> {
    serde_json::from_slice(report).map_err(BoxError::new)
}

/// All that a service writes for tidegate: this loader, and the builder below.
struct Reports {
    database: Arc<Database>,
}

impl Loader for Reports {
    type Key = u32;
    type Value = BestSellers;
    type Error = BoxError;

    async fn load(&self, city: &u32) -> Result<Loaded<BestSellers>, BoxError> {
        self.database.best_sellers(*city).await.map(Loaded::found)
    }
}

fn build(
    cache: tidegate::CacheBuilder<Reports>,
    tier: impl SharedTier,
    ttl: Duration,
) -> Result<CacheFor<Reports>, BoxError> {
    cache
        .ttl(ttl)
        .ttl_jitter(0.0) // the same TTL as the others have, for the comparison
        .l2(tier)
        .build()
        .map_err(BoxError::new)
}
