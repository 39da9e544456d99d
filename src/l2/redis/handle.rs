//! The handle: how it connects, what it starts, and what it shows to users.

use std::fmt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};

use fred::clients::{Client, Pool};
use fred::error::Error as FredError;
use fred::interfaces::{ClientLike, EventInterface};
use fred::types::Builder;
use fred::types::config::Config;
#[cfg(doc)]
use fred::types::config::ConnectionConfig;
use parking_lot::Mutex;
use tokio::sync::Notify;
use tokio::task::JoinHandle;
use tokio::time::Instant;

use super::acl;
use super::acl::denials::Acl;
use super::breaker::BreakerState;
use super::breaker_probe::run_probes;
use super::builder::RedisBuilder;
use super::bus;
use super::bus_cluster::watch_cluster;
use super::bus_connections::BusConnections;
use super::client_config::{bus_client, command_options, connection};
use super::clock::Clock;
use super::clock_sync::keep_clock_in_sync;
use super::mget_batcher::MgetBatcher;
use super::reconnect_policy::reconnect_policy;
use super::shared::Shared;
use crate::error::{BuildError, RemoteError, RemoteKind};

/// A Redis or Valkey server, sentinel set-up or cluster: the shared tier of a fleet.
///
/// Make one handle per process and clone it into all caches: it owns the connection for commands
/// and the one for the invalidation bus. Redis 6.0 or later, Valkey 8 or later.
///
/// | URL | |
/// |---|---|
/// | `redis://user:password@host:6379/3` | a server; the path is the number of a database |
/// | `redis-cluster://user:password@host:6379?node=other:6379` | a cluster; there is no database but 0 |
/// | `redis-sentinel://user:password@host:26379/3?sentinelServiceName=name` | what the sentinels call its primary; they are given the same credentials |
/// | `redis+unix:///path/to/socket` | a server on this machine |
/// | `rediss://`, `rediss-cluster://`, `rediss-sentinel://` | the same with TLS: the feature `tls` |
///
/// `valkey` may stand for `redis`. In a URL, all characters of user and password but letters,
/// digits, `-`, `.`, `_` and `~` are percent-encoded; [`user`](RedisBuilder::user) takes both as
/// they are. They appear in no error, no event and no `Debug`.
///
/// ```no_run
/// # use tidegate::{Cache, Loaded, Redis, loader_fn};
/// # async fn run() -> Result<(), Box<dyn std::error::Error>> {
/// let redis = Redis::connect("redis://127.0.0.1:6379").await?;
/// # let load = loader_fn(|id: u64| async move { Ok::<_, std::io::Error>(Loaded::found(id)) });
/// let users: Cache<u64, u64, std::io::Error> = Cache::builder("users", load).l2(redis.clone()).build()?;
/// # Ok(())
/// # }
/// ```
#[derive(Clone)]
pub struct Redis {
    pub(super) shared: Arc<Shared>,
}

impl Redis {
    /// Connects to a server with the default settings.
    ///
    /// # Errors
    ///
    /// The same as of [`RedisBuilder::connect`]. A service that should start while Redis is down
    /// calls [`open`](Self::open).
    pub async fn connect(url: &str) -> Result<Self, RemoteError> {
        Self::builder(url).connect().await
    }

    /// Makes a handle without I/O. It connects in the background, from its first use on.
    ///
    /// ```
    /// # use tidegate::Redis;
    /// let redis = Redis::open("redis://127.0.0.1:6379")?; // starts while Redis is down
    /// # drop(redis);
    /// # Ok::<_, tidegate::BuildError>(())
    /// ```
    ///
    /// # Errors
    ///
    /// [`BuildError`] if the URL makes no sense.
    pub fn open(url: &str) -> Result<Self, BuildError> {
        Self::builder(url).open()
    }

    /// Settings, to be finished with [`connect`](RedisBuilder::connect) or
    /// [`open`](RedisBuilder::open).
    pub fn builder(url: &str) -> RedisBuilder {
        RedisBuilder::new(url)
    }

    /// Uses connections that the service has already. The service still connects and closes them.
    /// The invalidation bus gets a connection of its own with the same configuration. Prefix and
    /// timeout are the defaults of [`RedisBuilder`].
    ///
    /// For a cluster, set `max_redirections: 0` in the pool's [`ConnectionConfig`]: while a slot is
    /// moved to another node, fred 10.1 mixes up replies when it follows a redirection.
    ///
    /// ```no_run
    /// use tidegate::Redis;
    /// use tidegate::fred::prelude::*;
    ///
    /// # async fn run() -> Result<(), Box<dyn std::error::Error>> {
    /// let config = Config::from_url("redis://127.0.0.1:6379")?;
    /// let pool = Builder::from_config(config).build_pool(2)?;
    /// pool.init().await?;
    /// let redis = Redis::from_pool(pool.clone());
    /// # Ok(())
    /// # }
    /// ```
    pub fn from_pool(pool: Pool) -> Self {
        let client = pool.next();
        let mut bus = Builder::from_config(client.client_config());
        bus.set_connection_config(client.connection_config().clone());
        let settings = RedisBuilder::new("");
        Self::assemble(&settings, pool.clone(), false, bus_client(bus, false))
    }

    async fn connect_with(settings: RedisBuilder) -> Result<Self, RemoteError> {
        let unusable =
            |error: BuildError| RemoteError::because(RemoteKind::Unreachable, "connect", error);
        let (settings, config) = settings.check_blocking().await?;
        let redis = Self::from_config(&settings, config.map_err(unusable)?, true);
        let redis = redis.map_err(unusable)?;
        // If one of the following fails, `Drop` ends the tasks.
        let shared = &redis.shared;
        let connected = |error| shared.explain_failure(error);
        let pool = shared.pool.init().await.map_err(connected)?;
        shared.tasks.lock().push(pool.abort_handle());
        if !shared.clustered {
            let bus = shared.bus.init().await.map_err(connected)?;
            shared.tasks.lock().push(bus.abort_handle());
        }
        shared.check_acl().await?;
        shared.sync_clock().await?;
        redis.start();
        Ok(redis)
    }

    fn from_config(
        settings: &RedisBuilder,
        mut config: Config,
        fail_fast: bool,
    ) -> Result<Self, BuildError> {
        // Whether the first failure to connect is final.
        config.fail_fast = fail_fast;
        let url = |error: FredError| BuildError::Url {
            reason: error.details().to_owned(),
        };
        let connection = connection(settings.connect_timeout);
        let mut builder = Builder::from_config(config.clone());
        builder
            .set_policy(reconnect_policy())
            .set_connection_config(connection.clone());
        let pool = builder.build_pool(settings.connections).map_err(url)?;
        let mut bus = Builder::from_config(config);
        bus.set_connection_config(connection);
        let bus = bus_client(bus, fail_fast);
        Ok(Self::assemble(settings, pool, true, bus))
    }

    fn assemble(settings: &RedisBuilder, pool: Pool, owns_pool: bool, bus: Client) -> Self {
        let clustered = bus.client_config().server.is_clustered();
        let mut bus_connections = BusConnections::default();
        let inbox = (!clustered).then(|| bus_connections.add(bus.clone(), &settings.prefix));
        Self {
            shared: Arc::new(Shared {
                prefix: settings.prefix.clone(),
                options: command_options(settings.timeout),
                timeout: settings.timeout,
                pool,
                owns_pool,
                clock: Clock::new(),
                breaker: BreakerState::new(settings.breaker.clone()),
                mget: MgetBatcher::default(),
                acl: Acl::default(),
                started: OnceLock::new(),
                first_attempt_ended: AtomicBool::new(false),
                first_attempt_notify: Notify::new(),
                listeners: Mutex::default(),
                inbox: Mutex::new(inbox),
                bus,
                clustered,
                bus_connections: Mutex::new(bus_connections),
                tasks: Mutex::default(),
            }),
        }
    }

    /// Connects and listens in the background, from the first call on.
    pub(super) fn start(&self) {
        let shared = &self.shared;
        if shared.started.get().is_some() {
            return;
        }
        let Ok(runtime) = tokio::runtime::Handle::try_current() else {
            return;
        };
        if shared.started.set(Instant::now()).is_err() {
            return;
        }
        let mut tasks = shared.tasks.lock();
        let weak = || Arc::downgrade(shared);
        let connected = shared.pool.next().reconnect_rx();
        let failed = shared.pool.next().error_rx();
        // `connect` has connected already.
        let needs_connect = !shared.clock.is_known();
        if shared.owns_pool && needs_connect {
            let connecting = shared.pool.connect_pool();
            tasks.extend(connecting.iter().map(JoinHandle::abort_handle));
        }
        let mut spawn = |task| tasks.push(task);
        let clock = keep_clock_in_sync(weak(), connected, failed);
        spawn(runtime.spawn(clock).abort_handle());
        let probes = run_probes(weak(), Arc::clone(&shared.breaker.opened));
        spawn(runtime.spawn(probes).abort_handle());
        let acl_watch = acl::watch(
            weak(),
            shared.pool.next().reconnect_rx(),
            shared.pool.next().error_rx(),
            Arc::clone(&shared.acl.recheck),
            // `connect` has checked already.
            needs_connect,
        );
        spawn(runtime.spawn(acl_watch).abort_handle());
        if let Some((id, inbox)) = shared.inbox.lock().take() {
            let task = bus::run(weak(), id, shared.bus.clone(), inbox, needs_connect);
            spawn(runtime.spawn(task).abort_handle());
        }
        if shared.clustered {
            let watch = watch_cluster(weak());
            spawn(runtime.spawn(watch).abort_handle());
        }
    }

    /// Starts, and waits for the first attempt to connect: for one command's timeout at most, and
    /// only right after the start.
    pub(super) async fn ensure_started(&self) {
        if !self.shared.clock.is_known() {
            self.start();
            self.wait_for_first_attempt().await;
        }
    }

    async fn wait_for_first_attempt(&self) {
        let shared = &self.shared;
        let Some(started) = shared.started.get() else {
            return;
        };
        let until = *started + shared.timeout;
        while !shared.clock.is_known() {
            let ended = shared.first_attempt_notify.notified();
            if shared.clock.is_known() || shared.first_attempt_ended.load(Ordering::SeqCst) {
                return;
            }
            if tokio::time::timeout_at(until, ended).await.is_err() {
                return;
            }
        }
    }

    /// Another client with the same configuration. It is not connected yet. The first failure to
    /// connect it is final.
    #[cfg(feature = "inspect")]
    pub(crate) fn another_client(&self) -> Client {
        let client = self.shared.pool.next();
        let mut builder = Builder::from_config(client.client_config());
        builder.set_connection_config(client.connection_config().clone());
        bus_client(builder, true)
    }
}

impl RedisBuilder {
    /// Connects now, and tries every permission that the shared tier needs, without a change to any
    /// key.
    ///
    /// # Errors
    ///
    /// [`RemoteError`]:
    /// - [`is_unreachable`](RemoteError::is_unreachable) or
    ///   [`is_timeout`](RemoteError::is_timeout): the server cannot be reached; or a setting makes
    ///   no sense, and the source is the [`BuildError`];
    /// - [`is_tls`](RemoteError::is_tls): there is no TLS connection, or none to this server;
    /// - [`is_denied`](RemoteError::is_denied): the password is wrong, or the user lacks a
    ///   permission. The source names it, and the ACL rules that grant it. In a cluster one node is
    ///   asked;
    /// - [`is_refused`](RemoteError::is_refused): the server refuses, for instance the database.
    pub async fn connect(self) -> Result<Redis, RemoteError> {
        // Boxed: the future is large, and the futures that await it should not be.
        Box::pin(Redis::connect_with(self)).await
    }

    /// Makes the handle without I/O. It connects in the background from its first use on, and tries
    /// again for ever when the connection is lost. (With `rediss://` and without `Tls::ca` the
    /// system's CA certificates are read, which takes some milliseconds.)
    ///
    /// Where [`connect`](Self::connect) would fail, look-ups go on without Redis.
    /// [`Health::denied`](crate::Health::denied) says what the server denies, until it is granted.
    ///
    /// # Errors
    ///
    /// [`BuildError`] if the URL or a setting makes no sense.
    pub fn open(self) -> Result<Redis, BuildError> {
        let config = self.check()?;
        Redis::from_config(&self, config, false)
    }
}

impl fmt::Debug for Redis {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // No address and no credentials.
        f.debug_struct("Redis")
            .field("prefix", &self.shared.prefix)
            .field("connected", &self.shared.pool.next().is_connected())
            .finish_non_exhaustive()
    }
}
