//! The caches of the service: one loader and one cache for each kind of data.

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

/// Loads a user by id.
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

/// Loads products by id, one or many with one query.
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

/// Loads the product ids on a page of the list, by the number of the page.
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

/// Loads the sales report of the last days, by the number of days.
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
    /// Builds the four caches. `listener` receives their events, each with the name of its cache.
    pub(crate) fn build(
        database: &Database,
        tier: &Tier,
        listener: impl Fn(&'static str, Event) + Send + Sync + 'static,
    ) -> Result<Self, BuildError> {
        let listener = Arc::new(listener);
        let listen = |cache: &'static str| {
            let listener = Arc::clone(&listener);
            move |event: &Event| listener(cache, *event)
        };
        let users = Cache::builder("users", Users(database.clone()))
            .ttl(60 * SECOND)
            .stale_while_revalidate(60 * SECOND)
            .stale_if_error(HOUR)
            .l1_capacity(1_000) // small on purpose: the live page shows L2 hits
            .on_event(listen("users"));
        let products = Cache::builder("products", Products(database.clone()))
            .ttl(60 * SECOND)
            .stale_if_error(HOUR)
            .l1_capacity(500)
            .batched(Batching::new().max_size(500))
            .on_event(listen("products"));
        // The list may lag a little behind the database. Prices come from the cache of products,
        // which is invalidated when they change.
        let pages = Cache::builder("pages", Pages(database.clone()))
            .ttl(10 * SECOND)
            .stale_while_revalidate(30 * SECOND)
            .stale_if_error(HOUR)
            .on_event(listen("pages"));
        // A report takes long, so only the first caller waits for one. A hit late in the TTL starts
        // the next load in the background, and after the TTL the old report is the answer until the
        // new one is there.
        let reports = Cache::builder("reports", Reports(database.clone()))
            .ttl(20 * SECOND)
            .refresh_ahead(1.0)
            .stale_while_revalidate(HOUR)
            .stale_if_error(24 * HOUR)
            .load_timeout(60 * SECOND)
            .max_concurrent_loads(2)
            .on_event(listen("reports"));
        Ok(Self {
            users: tier.attach(users).build()?,
            products: tier.attach(products).build()?,
            pages: tier.attach(pages).build()?,
            reports: tier.attach(reports).build()?,
        })
    }

    /// Loads one entry of each cache, so that the first requests find them. A cache subscribes to
    /// the invalidation channel with its first look-up.
    pub(crate) async fn warm(&self) {
        // An error does not matter here: the first request loads again.
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

    /// Updates the gauges and counters that Prometheus scrapes.
    pub(crate) fn publish_metrics(&self) {
        self.users.publish_metrics();
        self.products.publish_metrics();
        self.pages.publish_metrics();
        self.reports.publish_metrics();
    }

    /// Waits for running loads and writes, so that no lease and no half-done write is left.
    pub(crate) async fn close(&self) {
        tokio::join!(
            self.users.close(),
            self.products.close(),
            self.pages.close(),
            self.reports.close(),
        );
    }
}
