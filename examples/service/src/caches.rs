//! What is cached, and how: one loader and one cache for each kind of thing.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use tidegate::{
    BatchLoader, Batching, BuildError, Cache, CacheFor, Event, Health, Loaded, Loader, Stats,
};

use crate::database::{Database, Product, Report, User};
use crate::tier::Tier;

const SECOND: Duration = Duration::from_secs(1);
const HOUR: Duration = Duration::from_secs(3_600);

#[derive(Debug)]
pub(crate) struct Users(Database);

impl Loader for Users {
    type Key = i64;
    type Value = User;
    type Error = sqlx::Error;

    async fn load(&self, id: &i64) -> Result<Loaded<User>, sqlx::Error> {
        Ok(self.0.user(*id).await?.into())
    }
}

#[derive(Debug)]
pub(crate) struct Products(Database);

impl Loader for Products {
    type Key = i64;
    type Value = Product;
    type Error = sqlx::Error;

    async fn load(&self, id: &i64) -> Result<Loaded<Product>, sqlx::Error> {
        Ok(self.0.products(&[*id]).await?.remove(id).into())
    }
}

impl BatchLoader for Products {
    async fn load_many(&self, ids: &[i64]) -> Result<HashMap<i64, Loaded<Product>>, sqlx::Error> {
        let found = self.0.products(ids).await?;
        Ok(found
            .into_iter()
            .map(|(id, one)| (id, one.into()))
            .collect())
    }
}

/// The ids of a page of the list of products.
#[derive(Debug)]
pub(crate) struct Pages(Database);

impl Loader for Pages {
    type Key = i64;
    type Value = Vec<i64>;
    type Error = sqlx::Error;

    async fn load(&self, page: &i64) -> Result<Loaded<Vec<i64>>, sqlx::Error> {
        let ids = self.0.page(*page).await?;
        Ok((!ids.is_empty()).then_some(ids).into())
    }
}

/// By their number of days.
#[derive(Debug)]
pub(crate) struct Reports(Database);

impl Loader for Reports {
    type Key = i64;
    type Value = Report;
    type Error = sqlx::Error;

    async fn load(&self, days: &i64) -> Result<Loaded<Report>, sqlx::Error> {
        Ok(self.0.report(*days).await?.into())
    }
}

#[derive(Clone, Debug)]
pub(crate) struct Caches {
    pub(crate) users: CacheFor<Users>,
    pub(crate) products: CacheFor<Products>,
    pub(crate) pages: CacheFor<Pages>,
    pub(crate) reports: CacheFor<Reports>,
}

impl Caches {
    /// `tell` hears of what operators want to hear of, with the name of the cache.
    pub(crate) fn build(
        database: &Database,
        tier: &Tier,
        tell: impl Fn(&'static str, Event) + Send + Sync + 'static,
    ) -> Result<Self, BuildError> {
        let tell = Arc::new(tell);
        let heard = |cache: &'static str| {
            let tell = Arc::clone(&tell);
            move |event: &Event| tell(cache, *event)
        };
        let users = Cache::builder("users", Users(database.clone()))
            .ttl(60 * SECOND)
            .stale_while_revalidate(60 * SECOND)
            .stale_if_error(HOUR)
            .l1_capacity(1_000) // small, so that L2 has something to do
            .on_event(heard("users"));
        let products = Cache::builder("products", Products(database.clone()))
            .ttl(60 * SECOND)
            .stale_if_error(HOUR)
            .l1_capacity(500)
            .batched(Batching::new().max_size(500))
            .on_event(heard("products"));
        // Which products there are may be a little old; what they cost is not.
        let pages = Cache::builder("pages", Pages(database.clone()))
            .ttl(10 * SECOND)
            .stale_while_revalidate(30 * SECOND)
            .stale_if_error(HOUR)
            .on_event(heard("pages"));
        // Nobody waits for a report but the first one: late in the TTL a hit begins the next load, and
        // past it the old one is answered while the new one is made.
        let reports = Cache::builder("reports", Reports(database.clone()))
            .ttl(20 * SECOND)
            .refresh_ahead(1.0)
            .stale_while_revalidate(HOUR)
            .stale_if_error(24 * HOUR)
            .load_timeout(60 * SECOND)
            .max_concurrent_loads(2)
            .on_event(heard("reports"));
        Ok(Self {
            users: tier.attach(users).build()?,
            products: tier.attach(products).build()?,
            pages: tier.attach(pages).build()?,
            reports: tier.attach(reports).build()?,
        })
    }

    /// Loads what will be asked for first, so that nobody waits for it; and a cache listens to the others from
    /// its first look-up on.
    pub(crate) async fn warm(&self) {
        // What does not work now is loaded when somebody asks.
        let _ = tokio::join!(
            self.users.get(&1),
            self.products.get(&1),
            self.pages.get(&1),
            self.reports.get(&30),
        );
    }

    pub(crate) fn stats(&self) -> [(&'static str, Stats); 4] {
        [
            ("users", self.users.stats()),
            ("products", self.products.stats()),
            ("pages", self.pages.stats()),
            ("reports", self.reports.stats()),
        ]
    }

    pub(crate) fn health(&self) -> [(&'static str, Health); 4] {
        [
            ("users", self.users.health()),
            ("products", self.products.health()),
            ("pages", self.pages.health()),
            ("reports", self.reports.health()),
        ]
    }

    /// Brings what Prometheus is told up to date.
    pub(crate) fn publish_metrics(&self) {
        self.users.publish_metrics();
        self.products.publish_metrics();
        self.pages.publish_metrics();
        self.reports.publish_metrics();
    }

    /// What runs is waited for; no lease and no half-done write stays behind.
    pub(crate) async fn close(&self) {
        tokio::join!(
            self.users.close(),
            self.products.close(),
            self.pages.close(),
            self.reports.close(),
        );
    }
}
