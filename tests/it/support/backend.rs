//! The backend of a contract test: the embedded tier under paused time, or a real server.

use std::time::Duration;

use tidegate::{BoxError, Cache, CacheBuilder, InProcess, Loader};

use super::loader::Db;
use super::node::Node;
use super::server::{Monitor, Server, is_lease};

pub(crate) enum Backend {
    InProcess(InProcess),
    Redis(Server),
}

/// The key of the watermarks of the cache `users`.
pub(crate) const WATERMARKS_KEY: &str = "tidegate:users::{marks}";

/// The Redis key of an entry of the cache `users`.
pub(crate) fn users(key: u64) -> String {
    format!("tidegate:users:{key}")
}

impl Backend {
    pub(crate) fn in_process() -> Self {
        Self::InProcess(InProcess::new())
    }

    pub(crate) fn redis() -> Self {
        Self::Redis(Server::start())
    }

    /// A process of the fleet, with connections of its own.
    pub(crate) async fn node(&self, db: &Db) -> Node {
        self.node_with(db, |builder| builder).await
    }

    /// The same with settings.
    pub(crate) async fn node_with(
        &self,
        db: &Db,
        settings: impl FnOnce(CacheBuilder<Db>) -> CacheBuilder<Db>,
    ) -> Node {
        self.named("users", db.clone(), settings).await
    }

    /// The same with another name or loader. The lease outlasts the test, so that a process which
    /// waits for it goes on only when it is woken.
    pub(crate) async fn named<L>(
        &self,
        name: &str,
        loader: L,
        settings: impl FnOnce(CacheBuilder<L>) -> CacheBuilder<L>,
    ) -> Node<L::Value>
    where
        L: Loader<Key = u64, Error = BoxError>,
        L::Value: serde::Serialize + serde::de::DeserializeOwned,
    {
        let builder = Cache::builder(name, loader).ttl_jitter(0.0);
        let builder = builder
            .lease_ttl(Duration::from_secs(60))
            .lease_wait(Duration::from_secs(60));
        let builder = match self {
            Self::InProcess(tier) => builder.l2(tier.clone()),
            Self::Redis(server) => builder.l2(server
                .long_timeout_builder()
                .connect()
                .await
                .expect("connect")),
        };
        Node::new(settings(builder).build().expect("settings that make sense"))
    }

    pub(crate) fn server(&self) -> Option<&Server> {
        match self {
            Self::InProcess(_) => None,
            Self::Redis(server) => Some(server),
        }
    }

    /// The number of entries, leases and failure marks.
    pub(crate) fn records(&self) -> usize {
        match self {
            Self::InProcess(tier) => tier.len(),
            Self::Redis(server) => server.raw().entries("tidegate*").len(),
        }
    }

    /// Counts the commands to the tier from now on.
    pub(crate) fn command_counter(&self) -> CommandCounter {
        match self {
            Self::InProcess(tier) => CommandCounter::InProcess(tier.clone(), tier.commands()),
            Self::Redis(server) => CommandCounter::Redis(server.monitor()),
        }
    }

    /// Asserts that every node is idle, that every key of the tier has an expiry, and that no lease
    /// is left.
    pub(crate) async fn check<V: Send + Sync + 'static>(&self, nodes: &[&Node<V>]) {
        for node in nodes {
            node.check().await;
        }
        if let Self::Redis(server) = self {
            check_records(server);
        }
    }
}

/// Asserts that every key has an expiry, and that no lease and no claim is left.
pub(crate) fn check_records(server: &Server) {
    let mut raw = server.raw();
    for key in raw.keys("tidegate*") {
        let pttl = raw.pttl(&key);
        // -2: the key has just expired.
        assert!(pttl > 0 || pttl == -2, "{key} has no expiry");
    }
    for key in raw.entries("tidegate*") {
        assert!(
            !raw.get(&key).is_some_and(|record| is_lease(&record)),
            "a lease is left on {key}"
        );
    }
}

pub(crate) enum CommandCounter {
    InProcess(InProcess, u64),
    Redis(Monitor),
}

impl CommandCounter {
    /// The number of commands since the last call.
    pub(crate) fn commands(&mut self) -> u64 {
        match self {
            Self::InProcess(tier, before) => {
                let now = tier.commands();
                now - std::mem::replace(before, now)
            }
            Self::Redis(monitor) => monitor.command_names().len() as u64,
        }
    }
}

/// Makes two tests of each function: one on the embedded tier under paused time, one on a server.
macro_rules! on_both_tiers {
    ($($test:ident)*) => {
        mod in_process {
            $(#[tokio::test(start_paused = true)]
            async fn $test() {
                super::$test($crate::support::backend::Backend::in_process()).await;
            })*
        }
        mod redis {
            $(#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $test() {
                super::$test($crate::support::backend::Backend::redis()).await;
            })*
        }
    };
}
pub(crate) use on_both_tiers;
