//! A Redis server of the example, and the commands that a server has carried out.

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use tidegate::BoxError;
use tidegate::fred::clients::Client;
use tidegate::fred::interfaces::ClientLike;
use tidegate::fred::types::config::Config;
use tidegate::fred::types::{Builder, ClusterHash, CustomCommand, Value};

const PROGRAM: &str = "redis-server";

/// Whether there is a server to start.
pub(crate) fn server_on_path() -> bool {
    let version = Command::new(PROGRAM)
        .arg("--version")
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status();
    version.is_ok_and(|status| status.success())
}

/// A server on a free loopback port that keeps nothing on disk. Killed when this is dropped.
pub(crate) struct OwnServer {
    process: Child,
    port: u16,
}

impl OwnServer {
    pub(crate) async fn start() -> Result<Self, BoxError> {
        // Another process may take the port between the search and the start.
        for _ in 0..5 {
            if let Some(server) = Self::try_start().await? {
                return Ok(server);
            }
        }
        Err(format!("{PROGRAM} did not start on a free port of 127.0.0.1").into())
    }

    pub(crate) fn url(&self) -> String {
        format!("redis://127.0.0.1:{}", self.port)
    }

    async fn try_start() -> Result<Option<Self>, BoxError> {
        let free = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).map_err(BoxError::new)?;
        let port = free.local_addr().map_err(BoxError::new)?.port();
        drop(free);
        let process = Command::new(PROGRAM)
            .args(["--port", &port.to_string(), "--bind", "127.0.0.1"])
            .args(["--save", "", "--appendonly", "no"])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .spawn()
            .map_err(|error| BoxError::from(format!("{PROGRAM} cannot be started: {error}")))?;
        let mut server = Self { process, port };
        let begun = Instant::now();
        while begun.elapsed() < Duration::from_secs(5) {
            if server.process.try_wait().map_err(BoxError::new)?.is_some() {
                return Ok(None);
            }
            if TcpStream::connect((Ipv4Addr::LOCALHOST, port)).is_ok() {
                return Ok(Some(server));
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        Ok(None)
    }
}

impl Drop for OwnServer {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// The connection of the textbook strategies, whose commands are counted.
pub(crate) async fn connect(url: &str) -> Result<Client, BoxError> {
    let config = Config::from_url(url).map_err(BoxError::new)?;
    let client = Builder::from_config(config)
        .build()
        .map_err(BoxError::new)?;
    let connected = client.init().await;
    connected.map_err(|error| format!("no connection to Redis: {error}"))?;
    Ok(client)
}

/// Commands of connections that belong to no strategy.
const HOUSEKEEPING: [&str; 14] = [
    "auth",
    "client",
    "cluster",
    "command",
    "config",
    "hello",
    "info",
    "ping",
    "quit",
    "script",
    "select",
    "subscribe",
    "time",
    "unsubscribe",
];

/// How often each command was carried out so far, without the housekeeping.
pub(crate) async fn commands(client: &Client) -> Result<BTreeMap<String, u64>, BoxError> {
    let info = CustomCommand::new_static("INFO", ClusterHash::Random, false);
    let args = vec![Value::from_static_str("commandstats")];
    let stats: String = client.custom(info, args).await.map_err(BoxError::new)?;
    Ok(parse(&stats))
}

/// Lines read `cmdstat_get:calls=21,usec=…` or `cmdstat_client|setinfo:calls=…`.
fn parse(stats: &str) -> BTreeMap<String, u64> {
    let line = |line: &str| {
        let (name, numbers) = line.strip_prefix("cmdstat_")?.split_once(":calls=")?;
        let calls = numbers.split(',').next()?.parse().ok()?;
        let name = name.split('|').next()?.to_ascii_lowercase();
        (!HOUSEKEEPING.contains(&name.as_str())).then_some((name, calls))
    };
    stats.lines().filter_map(line).collect()
}
