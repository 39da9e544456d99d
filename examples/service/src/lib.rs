//! An example of a web service with tidegate.
//!
//! It serves users, a list of products and an expensive report, has `/metrics` and `/health`, and
//! shuts down without losing requests or writes. With `--demo` it also has a live page and a load
//! generator.

mod cache_status;
mod caches;
mod database;
mod demo;
mod error;
mod events;
mod live;
mod routes;
mod settings;
mod telemetry;
mod tier;
mod traffic;

use std::future::IntoFuture;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::task::JoinHandle;

pub use settings::{Demo, HELP, RedisChoice, Settings, SettingsError, sqlite};

/// How long a shutdown waits for running requests. No request takes longer.
const DRAIN: Duration = Duration::from_secs(10);

/// The state of the request handlers.
#[derive(Debug)]
pub(crate) struct Shop {
    pub(crate) database: database::Database,
    pub(crate) tier: tier::Tier,
    pub(crate) caches: caches::Caches,
    pub(crate) events: Arc<events::Events>,
}

#[derive(Debug, thiserror::Error)]
pub enum StartError {
    #[error("the database")]
    Database(#[from] sqlx::Error),
    #[error("the shared tier")]
    Tier(#[from] tier::TierError),
    #[error("a cache")]
    Cache(#[from] tidegate::BuildError),
    #[error("the address {0}")]
    Listen(SocketAddr, #[source] std::io::Error),
}

/// A service that is running.
#[derive(Debug)]
pub struct Service {
    address: SocketAddr,
    shop: Arc<Shop>,
    stop: watch::Sender<bool>,
    server: JoinHandle<std::io::Result<()>>,
    background: Vec<JoinHandle<()>>,
}

impl Service {
    pub async fn start(settings: Settings) -> Result<Self, StartError> {
        telemetry::recorder();
        let listener = TcpListener::bind(settings.listen)
            .await
            .map_err(|error| StartError::Listen(settings.listen, error))?;
        let address = listener
            .local_addr()
            .map_err(|error| StartError::Listen(settings.listen, error))?;
        let database =
            database::Database::open(&settings.database_url, settings.query_delay).await?;
        let tier = tier::Tier::open(&settings.redis).await?;
        let events = Arc::new(events::Events::default());
        let log = Arc::clone(&events);
        let caches = caches::Caches::build(&database, &tier, move |cache, event| {
            log.record(cache, event)
        })?;
        let shop = Arc::new(Shop {
            database,
            tier,
            caches,
            events,
        });

        let (stop, stopped) = watch::channel(false);
        let mut router = routes::router(Arc::clone(&shop));
        let caches = shop.caches.clone();
        let warm = tokio::spawn(async move { caches.warm().await });
        let mut background = vec![warm, tokio::spawn(telemetry::upkeep())];
        if let Some(demo) = settings.demo {
            let (page, tasks) = demo::start(demo, &shop, address, &settings, &stopped);
            router = router.merge(page);
            background.extend(tasks);
        }
        let served = axum::serve(listener, router).with_graceful_shutdown(until_stopped(stopped));
        Ok(Self {
            address,
            shop,
            stop,
            server: tokio::spawn(served.into_future()),
            background,
        })
    }

    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// The URL of the redis-server that this service started, for a second instance. `None` if it
    /// started none.
    pub fn redis_url(&self) -> Option<String> {
        self.shop.tier.server().map(tier::OwnServer::url)
    }

    pub fn database(&self) -> &'static str {
        self.shop.database.kind()
    }

    pub fn shared_tier(&self) -> &'static str {
        self.shop.tier.kind()
    }

    /// Shuts down: refuses new requests, answers the running ones, and closes the caches, then the
    /// database, then Redis.
    pub async fn stop(mut self) {
        self.stop.send_replace(true);
        for task in self.background {
            task.abort();
        }
        if tokio::time::timeout(DRAIN, &mut self.server).await.is_err() {
            eprintln!("requests still ran after {DRAIN:?}");
            self.server.abort();
        }
        self.shop.caches.close().await;
        self.shop.database.close().await;
        if let Some(server) = self.shop.tier.server()
            && let Err(error) = server.kill().await
        {
            eprintln!("redis-server: {error}");
        }
    }
}

/// Waits until the service stops. It also returns when the sender is dropped.
pub(crate) async fn until_stopped(mut stopped: watch::Receiver<bool>) {
    let _ = stopped.wait_for(|stopped| *stopped).await;
}
