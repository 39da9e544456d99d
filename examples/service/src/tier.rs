//! The shared tier: a given Redis, a redis-server that the service starts, or the in-process tier.

use std::io::ErrorKind;
use std::net::{Ipv4Addr, TcpListener};
use std::process::Stdio;
use std::time::Duration;

use serde::Serialize;
use serde::de::DeserializeOwned;
use tidegate::{BuildError, CacheBuilder, InProcess, Loader, Redis};
use tokio::net::TcpStream;
use tokio::process::{Child, Command};
use tokio::sync::Mutex;
use tokio::time::{Instant, sleep};

use crate::settings::RedisChoice;

#[derive(Debug)]
pub(crate) struct Tier {
    handle: Handle,
    /// The server, if the service started it.
    server: Option<OwnServer>,
}

#[derive(Debug)]
enum Handle {
    Redis(Redis),
    InProcess(InProcess),
}

#[derive(Debug, thiserror::Error)]
pub enum TierError {
    #[error("the URL of Redis")]
    Url(#[from] BuildError),
    #[error("a redis-server of our own")]
    Server(#[from] std::io::Error),
}

impl Tier {
    pub(crate) async fn open(choice: &RedisChoice) -> Result<Self, TierError> {
        let (url, server) = match choice {
            RedisChoice::At(url) => (Some(url.clone()), None),
            RedisChoice::Own => {
                let server = OwnServer::start().await?;
                (server.as_ref().map(OwnServer::url), server)
            }
            RedisChoice::InProcess => (None, None),
        };
        let handle = match url {
            // `connect` would fail while Redis is down; after `open` the service starts all the
            // same.
            Some(url) => Handle::Redis(Redis::builder(&url).prefix("service").open()?),
            None => Handle::InProcess(InProcess::new()),
        };
        Ok(Self { handle, server })
    }

    /// Adds the shared tier to a cache.
    pub(crate) fn attach<L: Loader>(&self, builder: CacheBuilder<L>) -> CacheBuilder<L>
    where
        L::Value: Serialize + DeserializeOwned,
    {
        match &self.handle {
            Handle::Redis(redis) => builder.l2(redis.clone()),
            Handle::InProcess(tier) => builder.l2(tier.clone()),
        }
    }

    pub(crate) fn kind(&self) -> &'static str {
        match (&self.handle, &self.server) {
            (Handle::InProcess(_), _) => "in process",
            (Handle::Redis(_), None) => "Redis",
            (Handle::Redis(_), Some(_)) => "Redis of its own",
        }
    }

    pub(crate) fn server(&self) -> Option<&OwnServer> {
        self.server.as_ref()
    }

    /// Publishes the server statistics of Redis as metrics.
    pub(crate) async fn publish(&self) {
        if let Handle::Redis(redis) = &self.handle {
            redis.server_stats().await.publish();
        }
    }
}

/// A `redis-server` that the service started. It ends with this process, or with `kill`.
#[derive(Debug)]
pub(crate) struct OwnServer {
    port: u16,
    child: Mutex<Option<Child>>,
}

impl OwnServer {
    /// Starts a server on a free port. `None` if there is no `redis-server` on the PATH.
    async fn start() -> std::io::Result<Option<Self>> {
        // Another process may take the port before the server binds it; then the next one is tried.
        for _ in 0..5 {
            let free = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
            let port = free.local_addr()?.port();
            drop(free);
            match spawn(port).await {
                Ok(Some(child)) => {
                    let child = Mutex::new(Some(child));
                    return Ok(Some(Self { port, child }));
                }
                Ok(None) => {}
                Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
                Err(error) => return Err(error),
            }
        }
        Err(std::io::Error::other("it does not start"))
    }

    pub(crate) fn url(&self) -> String {
        format!("redis://127.0.0.1:{}", self.port)
    }

    /// Ends the server with SIGKILL, as a crash would.
    pub(crate) async fn kill(&self) -> std::io::Result<()> {
        match self.child.lock().await.take() {
            Some(mut child) => child.kill().await,
            None => Ok(()),
        }
    }

    /// Starts the server again, on the same port and without data.
    pub(crate) async fn restart(&self) -> std::io::Result<()> {
        let mut child = self.child.lock().await;
        if child.is_none() {
            *child = spawn(self.port).await?;
        }
        match *child {
            Some(_) => Ok(()),
            None => Err(std::io::Error::other("it does not start")),
        }
    }

    pub(crate) async fn is_running(&self) -> bool {
        self.child.lock().await.is_some()
    }
}

/// Starts a server and waits until it accepts connections. `None` if it ended, because another
/// process has the port.
async fn spawn(port: u16) -> std::io::Result<Option<Child>> {
    let binary = std::env::var("TIDEGATE_REDIS_SERVER").unwrap_or_else(|_| "redis-server".into());
    let mut child = Command::new(binary)
        .args(["--port", &port.to_string(), "--bind", "127.0.0.1"])
        .args(["--save", "", "--appendonly", "no"])
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        // Keeps Ctrl-C away from the server: the service ends it last.
        .process_group(0)
        .kill_on_drop(true)
        .spawn()?;
    let deadline = Instant::now() + Duration::from_secs(20);
    while Instant::now() < deadline {
        if child.try_wait()?.is_some() {
            return Ok(None);
        }
        if TcpStream::connect((Ipv4Addr::LOCALHOST, port))
            .await
            .is_ok()
        {
            return Ok(Some(child));
        }
        sleep(Duration::from_millis(5)).await;
    }
    Err(std::io::Error::other("it does not answer"))
}
