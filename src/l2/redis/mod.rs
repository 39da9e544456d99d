//! The shared tier on Redis or Valkey. This folder is the only place that talks to fred.
//!
//! What fred does by default does not suit a cache, so every command is sent with `fail_fast` (an
//! error at once when disconnected, instead of a queue), fred's own timeout (a tokio timeout would
//! drop the future and leave the command in the queue, to be executed minutes later), and one
//! attempt (a retry may execute it twice).

use std::collections::HashMap;
use std::fmt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock, Weak};
use std::time::Duration;

use bytes::Bytes;
use fred::clients::{Client, Pool, WithOptions};
use fred::error::Error as FredError;
use fred::interfaces::{ClientLike, EventInterface};
use fred::types::config::{Config, ConnectionConfig, Options, PerformanceConfig, TcpConfig};
use fred::types::{Builder, ClusterHash, CustomCommand, RespVersion, Value};
use parking_lot::Mutex;
use tokio::sync::Notify;
use tokio::task::AbortHandle;
use tokio::time::Instant;

pub use self::breaker::Breaker;
pub use self::builder::RedisBuilder;
use self::clock::Clock;
use self::errors::{is_no_answer, remote_error};
#[cfg(feature = "inspect")]
pub(crate) use self::operations::{tag_member, tags_key};
use self::reconnect_policy::reconnect_policy;
pub use self::server::{NodeStats, Role, ServerStats};
#[cfg(feature = "tls")]
pub use self::tls::Tls;
use super::Listener;
use crate::error::{BuildError, RemoteError, RemoteKind};
use crate::random;

mod acl;
mod breaker;
mod builder;
mod bus;
mod clock;
mod credentials;
mod errors;
mod mget;
mod operations;
#[cfg(feature = "write-behind")]
pub(crate) mod queue;
mod reconnect_policy;
mod scripts;
mod server;
#[cfg(feature = "tls")]
mod tls;
mod url;

/// Messages that may wait to be processed before one is lost (which is noticed, and costs a look at
/// L2 for every entry). fred's default of 32 is a burst of one `invalidate_many`.
const BUS_CAPACITY: usize = 8192;

/// How often the server's clock is asked for.
const CLOCK_SYNC_INTERVAL: Duration = Duration::from_secs(60);
/// And while it is not known.
const CLOCK_RETRY_DELAY: Duration = Duration::from_millis(200);

/// A Redis or Valkey server, sentinel set-up or cluster: the shared tier of a fleet.
///
/// One handle per process, cloned into all its caches: it owns the connection for commands and the
/// one for the invalidation bus. Redis 6.0 or later, Valkey 8 or later.
///
/// | URL | |
/// |---|---|
/// | `redis://user:password@host:6379/3` | a server; the path is the number of a database |
/// | `redis-cluster://user:password@host:6379?node=other:6379` | a cluster; there is no database but 0 |
/// | `redis-sentinel://user:password@host:26379/3?sentinelServiceName=name` | what the sentinels call its primary; they are given the same credentials |
/// | `redis+unix:///path/to/socket` | a server on this machine |
/// | `rediss://`, `rediss-cluster://`, `rediss-sentinel://` | the same with TLS: the feature `tls` |
///
/// `valkey` may stand for `redis`. User and password are percent-encoded where they hold anything but
/// letters, digits, `-`, `.`, `_` and `~`; [`user`](RedisBuilder::user) takes them as they are. They
/// appear in no error, no event and no `Debug`.
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
    shared: Arc<Shared>,
}

struct Shared {
    prefix: String,
    options: Options,
    timeout: Duration,
    pool: Pool,
    /// Whether the pool is ours to connect.
    owns_pool: bool,
    /// The connection to the bus, where there is one server; in a cluster only its configuration is used.
    bus: Client,
    clustered: bool,
    bus_connections: Mutex<bus::BusConnections>,
    clock: Clock,
    breaker: breaker::BreakerState,
    mget: mget::MgetBatcher,
    acl: acl::Acl,
    started: OnceLock<Instant>,
    /// The first attempt to connect has come to an end, one way or the other.
    first_attempt_ended: AtomicBool,
    first_attempt_notify: Notify,
    listeners: Mutex<HashMap<Bytes, Vec<bus::Subscriber>>>,
    /// Of the connection, until it is run.
    inbox: Mutex<Option<(u64, bus::Inbox)>>,
    tasks: Mutex<Vec<AbortHandle>>,
}

impl Redis {
    /// Connects to a server with the default settings.
    ///
    /// # Errors
    ///
    /// As [`RedisBuilder::connect`]. A service that should start while Redis is down takes
    /// [`open`](Self::open).
    pub async fn connect(url: &str) -> Result<Self, RemoteError> {
        Self::builder(url).connect().await
    }

    /// Makes a handle without I/O; it connects in the background, from its first use on.
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
    /// [`BuildError`] when the URL makes no sense.
    pub fn open(url: &str) -> Result<Self, BuildError> {
        Self::builder(url).open()
    }

    /// Settings, to be finished with [`connect`](RedisBuilder::connect) or
    /// [`open`](RedisBuilder::open).
    pub fn builder(url: &str) -> RedisBuilder {
        RedisBuilder::new(url)
    }

    /// Uses connections that the service has already; connecting and closing them stays its
    /// business. The invalidation bus gets a connection of its own with the same configuration.
    /// Prefix and timeout are the defaults of [`RedisBuilder`].
    ///
    /// For a cluster its [`ConnectionConfig`] must say `max_redirections: 0`: while a slot is on its
    /// way to another node, fred 10.1 mixes up replies when it follows a redirection.
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
        // Cleaned up by `Drop` when this fails.
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
        let mut builder = Builder::from_config(config.clone());
        builder
            .set_policy(reconnect_policy())
            .set_connection_config(connection(settings));
        let pool = builder.build_pool(settings.connections).map_err(url)?;
        let mut bus = Builder::from_config(config);
        bus.set_connection_config(connection(settings));
        Ok(Self::assemble(
            settings,
            pool,
            true,
            bus_client(bus, fail_fast),
        ))
    }

    fn assemble(settings: &RedisBuilder, pool: Pool, owns_pool: bool, bus: Client) -> Self {
        let clustered = bus.client_config().server.is_clustered();
        let mut connections = bus::BusConnections::default();
        let inbox = (!clustered).then(|| connections.add(bus.clone(), &settings.prefix));
        Self {
            shared: Arc::new(Shared {
                prefix: settings.prefix.clone(),
                options: Options {
                    // What was lost with its connection is not sent again.
                    max_attempts: Some(1),
                    timeout: Some(settings.timeout),
                    fail_fast: true,
                    ..Options::default()
                },
                timeout: settings.timeout,
                pool,
                owns_pool,
                clock: Clock::new(),
                breaker: breaker::BreakerState::new(settings.breaker.clone()),
                mget: mget::MgetBatcher::default(),
                acl: acl::Acl::default(),
                started: OnceLock::new(),
                first_attempt_ended: AtomicBool::new(false),
                first_attempt_notify: Notify::new(),
                listeners: Mutex::default(),
                inbox: Mutex::new(inbox),
                bus,
                clustered,
                bus_connections: Mutex::new(connections),
                tasks: Mutex::default(),
            }),
        }
    }

    /// Connects and listens in the background, from the first call on.
    fn start(&self) {
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
        let connected = shared.pool.next().reconnect_rx();
        let failed = shared.pool.next().error_rx();
        // `connect` has done so already.
        let needs_connect = !shared.clock.is_known();
        if shared.owns_pool && needs_connect {
            tasks.extend(
                shared
                    .pool
                    .connect_pool()
                    .iter()
                    .map(tokio::task::JoinHandle::abort_handle),
            );
        }
        tasks.push(
            runtime
                .spawn(keep_clock_in_sync(
                    Arc::downgrade(shared),
                    connected,
                    failed,
                ))
                .abort_handle(),
        );
        let probes = run_probes(Arc::downgrade(shared), Arc::clone(&shared.breaker.opened));
        tasks.push(runtime.spawn(probes).abort_handle());
        let acl_watch = acl::watch(
            Arc::downgrade(shared),
            shared.pool.next().reconnect_rx(),
            shared.pool.next().error_rx(),
            Arc::clone(&shared.acl.recheck),
            // `connect` has looked.
            needs_connect,
        );
        tasks.push(runtime.spawn(acl_watch).abort_handle());
        if let Some((number, inbox)) = shared.inbox.lock().take() {
            let (weak, client) = (Arc::downgrade(shared), shared.bus.clone());
            let connection = bus::run(weak, number, client, inbox, needs_connect);
            tasks.push(runtime.spawn(connection).abort_handle());
        }
        if shared.clustered {
            let watch = bus::watch_cluster(Arc::downgrade(shared));
            tasks.push(runtime.spawn(watch).abort_handle());
        }
    }

    /// Waits for the first attempt to connect, for one command's timeout at most and only right
    /// after the start.
    async fn wait_for_first_attempt(&self) {
        let shared = &self.shared;
        let Some(started) = shared.started.get() else {
            return;
        };
        let until = *started + shared.timeout;
        while !shared.clock.is_known() {
            let changed = shared.first_attempt_notify.notified();
            if shared.clock.is_known() || shared.first_attempt_ended.load(Ordering::SeqCst) {
                return;
            }
            if tokio::time::timeout_at(until, changed).await.is_err() {
                return;
            }
        }
    }

    async fn ensure_started(&self) {
        if !self.shared.clock.is_known() {
            self.start();
            self.wait_for_first_attempt().await;
        }
    }

    pub(crate) fn prefix(&self) -> &str {
        &self.shared.prefix
    }

    /// A client of its own with the same configuration, not connected yet; it gives up when at first it
    /// cannot be.
    #[cfg(feature = "inspect")]
    pub(crate) fn another_client(&self) -> Client {
        let client = self.shared.pool.next();
        let mut builder = Builder::from_config(client.client_config());
        builder.set_connection_config(client.connection_config().clone());
        bus_client(builder, true)
    }

    pub(crate) fn timeout(&self) -> Duration {
        self.shared.timeout
    }

    pub(crate) fn now_ms(&self) -> Option<u64> {
        self.shared.clock.now_ms()
    }

    pub(crate) fn denied(&self) -> Option<Arc<str>> {
        self.shared.acl.denied()
    }

    pub(crate) fn listen(&self, channel: &Bytes, listener: Weak<dyn Listener>) {
        self.start();
        let subscriber = bus::Subscriber {
            listener,
            up: false,
        };
        self.shared
            .listeners
            .lock()
            .entry(channel.clone())
            .or_default()
            .push(subscriber);
        let command = bus::BusCommand::Subscribe(channel.clone());
        self.shared.bus_connections.lock().send_all(&command);
    }

    pub(crate) fn unlisten(&self, channel: &Bytes) {
        let mut listeners = self.shared.listeners.lock();
        if let Some(here) = listeners.get_mut(channel) {
            here.retain(|subscriber| subscriber.listener.strong_count() > 0);
            if here.is_empty() {
                listeners.remove(channel);
                let command = bus::BusCommand::Unsubscribe(channel.clone());
                self.shared.bus_connections.lock().send_all(&command);
            }
        }
    }
}

impl Shared {
    /// As it was given.
    fn config(&self) -> Config {
        self.pool.next().client_config()
    }

    fn client(&self) -> WithOptions<Client> {
        self.pool.next_connected().with_options(&self.options)
    }

    /// Whether a command may be sent: not while the breaker is open.
    fn admit(&self, operation: &'static str) -> Result<(), RemoteError> {
        if self.breaker.is_open() {
            let cause = "the breaker is open: the server has not answered of late";
            return Err(RemoteError::because(
                RemoteKind::Unreachable,
                operation,
                cause,
            ));
        }
        Ok(())
    }

    /// Tells the breaker what came of a command.
    fn report_to_breaker<T>(&self, result: &Result<T, RemoteError>) {
        let answered = result
            .as_ref()
            .err()
            .is_none_or(|error| !is_no_answer(error));
        if self.breaker.record(answered, Instant::now()) {
            self.notify_breaker(true);
        }
    }

    /// Makes the connections for commands anew.
    async fn reconnect(&self) {
        if self.owns_pool {
            // It answers when the new connection stands, which may never be.
            let again = self.pool.force_reconnection();
            let _ = tokio::time::timeout(self.timeout, again).await;
        }
    }

    fn notify_breaker(&self, open: bool) {
        for listener in self.all_listeners() {
            listener.on_breaker(open);
        }
    }

    fn notify_denied(&self, denied: bool) {
        for listener in self.all_listeners() {
            listener.on_denied(denied);
        }
    }

    async fn sync_clock(&self) -> Result<(), RemoteError> {
        let command = CustomCommand::new_static("TIME", ClusterHash::Random, false);
        let asked = Instant::now();
        let reply: Vec<u64> = self
            .client()
            .custom(command, Vec::<Value>::new())
            .await
            .map_err(|error| self.explain("read the clock", "TIME", error))?;
        let [seconds, micros] = reply[..] else {
            return Err(RemoteError::because(
                RemoteKind::Refused,
                "read the clock",
                "unexpected reply",
            ));
        };
        self.clock.set(
            asked,
            Duration::from_secs(seconds) + Duration::from_micros(micros),
        );
        self.end_first_attempt();
        Ok(())
    }

    fn end_first_attempt(&self) {
        self.first_attempt_ended.store(true, Ordering::SeqCst);
        self.first_attempt_notify.notify_waiters();
    }
}

impl Drop for Shared {
    fn drop(&mut self) {
        for task in self.tasks.get_mut().drain(..) {
            task.abort();
        }
        let connections = self.bus_connections.get_mut().take();
        // fred's own tasks outlive its handles; `quit` ends them.
        if let Ok(runtime) = tokio::runtime::Handle::try_current() {
            let pool = self.owns_pool.then(|| self.pool.clone());
            runtime.spawn(async move {
                for connection in connections {
                    let _ = connection.quit().await;
                }
                if let Some(pool) = pool {
                    let _ = pool.quit().await;
                }
            });
        }
    }
}

/// Learns the server's clock at every connection and once a minute.
async fn keep_clock_in_sync(
    shared: Weak<Shared>,
    mut connected: tokio::sync::broadcast::Receiver<fred::types::config::Server>,
    mut failed: tokio::sync::broadcast::Receiver<(FredError, Option<fred::types::config::Server>)>,
) {
    loop {
        let every = {
            let Some(shared) = shared.upgrade() else {
                return;
            };
            let _ = shared.sync_clock().await;
            if shared.clock.is_known() {
                CLOCK_SYNC_INTERVAL
            } else {
                CLOCK_RETRY_DELAY
            }
        };
        tokio::select! {
            event = connected.recv() => {
                if matches!(event, Err(tokio::sync::broadcast::error::RecvError::Closed)) {
                    return;
                }
            }
            event = failed.recv() => {
                let Some(shared) = shared.upgrade() else { return };
                shared.end_first_attempt();
                if event.is_err() {
                    tokio::time::sleep(CLOCK_RETRY_DELAY).await;
                }
            }
            () = tokio::time::sleep(every) => {}
        }
    }
}

/// How long after it has opened the breaker probes for the first time.
const FIRST_PROBE_DELAY: Duration = Duration::from_millis(50);
/// Probes that must be answered in a row.
const PROBES_TO_CLOSE: u32 = 2;
/// After so long without an answer a connection counts as dead.
const DEAD_AFTER: Duration = Duration::from_secs(1);

/// Probes while the breaker is open, and closes it.
async fn run_probes(shared: Weak<Shared>, opened: Arc<Notify>) {
    loop {
        opened.notified().await;
        let (mut pause, mut answered, mut silent_since) = (FIRST_PROBE_DELAY, 0, Instant::now());
        while answered < PROBES_TO_CLOSE {
            tokio::time::sleep(random::duration(pause.mul_f64(0.75), pause.mul_f64(1.25))).await;
            let Some(shared) = shared.upgrade() else {
                return;
            };
            match shared.sync_clock().await {
                Err(error) if is_no_answer(&error) => {
                    answered = 0;
                    pause = (pause * 2).min(shared.breaker.settings().max_probe_interval());
                    if silent_since.elapsed() >= DEAD_AFTER {
                        silent_since = Instant::now();
                        shared.reconnect().await;
                    }
                }
                _ => {
                    answered += 1;
                    pause = Duration::ZERO;
                }
            }
        }
        let Some(shared) = shared.upgrade() else {
            return;
        };
        shared.breaker.close();
        shared.notify_breaker(false);
    }
}

fn connection(settings: &RedisBuilder) -> ConnectionConfig {
    ConnectionConfig {
        connection_timeout: settings.connect_timeout,
        internal_command_timeout: settings.connect_timeout,
        max_command_attempts: 1,
        // Nothing is sent on to another node: see `Redis::send`.
        max_redirections: 0,
        reconnect_on_auth_error: true,
        tcp: TcpConfig {
            nodelay: Some(true),
            ..TcpConfig::default()
        },
        ..ConnectionConfig::default()
    }
}

/// The bus has a client of its own: a refused SUBSCRIBE shifts the replies of its connection. RESP3,
/// so that commands work on a connection that is subscribed.
fn bus_client(mut builder: Builder, fail_fast: bool) -> Client {
    builder.set_policy(reconnect_policy());
    builder.with_config(|config| {
        config.fail_fast = fail_fast;
        config.version = RespVersion::RESP3;
        credentials::quote(config);
    });
    builder.set_performance_config(PerformanceConfig {
        broadcast_channel_capacity: BUS_CAPACITY,
        ..PerformanceConfig::default()
    });
    // Fails only without a configuration.
    builder.build().unwrap_or_default()
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
