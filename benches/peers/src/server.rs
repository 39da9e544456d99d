//! A `redis-server`, statistics of its work, and a proxy that counts.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, ErrorKind, Read, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};

use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::peer::BoxError;

/// A server on a port of its own that keeps nothing on disk. It ends when this value is dropped.
pub(crate) struct Server {
    child: Child,
    port: u16,
}

impl Server {
    pub(crate) fn start() -> Result<Self, BoxError> {
        let port = free_port()?;
        let child = spawn(port)?;
        let mut server = Self { child, port };
        server.answers()?;
        Ok(server)
    }

    pub(crate) fn url(&self) -> String {
        format!("redis://127.0.0.1:{}", self.port)
    }

    pub(crate) fn port(&self) -> u16 {
        self.port
    }

    /// SIGKILL.
    pub(crate) fn kill(&mut self) -> Result<(), BoxError> {
        self.child.kill()?;
        self.child.wait()?;
        Ok(())
    }

    /// Starts the server again on the same port, empty.
    pub(crate) fn restart(&mut self) -> Result<(), BoxError> {
        self.child = spawn(self.port)?;
        self.answers()
    }

    fn answers(&mut self) -> Result<(), BoxError> {
        let deadline = Instant::now() + Duration::from_secs(10);
        while self.ask("PING").is_err() {
            if let Some(status) = self.child.try_wait()? {
                return Err(format!("redis-server on port {} ended: {status}", self.port).into());
            }
            if Instant::now() > deadline {
                return Err(format!("nothing answers on port {}", self.port).into());
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        Ok(())
    }

    fn connection(&self) -> Result<TcpStream, BoxError> {
        Ok(TcpStream::connect((Ipv4Addr::LOCALHOST, self.port))?)
    }

    /// Sends one command whose arguments contain no blanks. Returns a reply that is a string.
    pub(crate) fn ask(&self, command: &str) -> Result<String, BoxError> {
        let mut stream = BufReader::new(self.connection()?);
        stream
            .get_mut()
            .write_all(format!("{command}\r\n").as_bytes())?;
        let mut head = String::new();
        stream.read_line(&mut head)?;
        let head = head.trim_end();
        let Some(length) = head.strip_prefix('$') else {
            return Ok(head.to_owned());
        };
        let mut text = vec![0; length.parse()?];
        stream.read_exact(&mut text)?;
        Ok(String::from_utf8_lossy(&text).into_owned())
    }

    /// Seconds of CPU that the server has used since its start.
    pub(crate) fn cpu(&self) -> Result<f64, BoxError> {
        let info = self.ask("INFO cpu")?;
        let seconds = |name| field(&info, name).and_then(|text| text.parse::<f64>().ok());
        let both = seconds("used_cpu_user").zip(seconds("used_cpu_sys"));
        both.map(|(user, system)| user + system)
            .ok_or_else(|| "INFO cpu has no CPU times".into())
    }

    pub(crate) fn version(&self) -> Result<String, BoxError> {
        let info = self.ask("INFO server")?;
        Ok(field(&info, "redis_version").unwrap_or("?").to_owned())
    }

    /// Records every command from now on.
    pub(crate) fn record_commands(&self) -> Result<CommandLog, BoxError> {
        let mut stream = self.connection()?;
        stream.write_all(b"MONITOR\r\n")?;
        stream.set_read_timeout(Some(Duration::from_millis(200)))?;
        let mut ok = [0; 5];
        stream.read_exact(&mut ok)?;
        Ok(CommandLog(stream))
    }
}

fn field<'a>(info: &'a str, name: &str) -> Option<&'a str> {
    let mut lines = info.lines();
    lines.find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn spawn(port: u16) -> Result<Child, BoxError> {
    let named = std::env::var("TIDEGATE_REDIS_SERVER");
    let binary = named.unwrap_or_else(|_| "redis-server".to_owned());
    Command::new(&binary)
        .args(["--port", &port.to_string(), "--bind", "127.0.0.1"])
        .args(["--save", "", "--appendonly", "no"])
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .map_err(|error| {
            format!(
                "{binary}: {error}; this needs a redis-server: `apt-get install redis-server` (or \
                 `brew install redis`), or name the binary in TIDEGATE_REDIS_SERVER"
            )
            .into()
        })
}

/// Below the ports that the system gives to outgoing connections: a client that reconnects to a
/// server that is down could get the server's port and connect to itself.
fn free_port() -> Result<u16, BoxError> {
    for _ in 0..100 {
        let port = 20_000 + rand::random::<u16>() % 10_000;
        if TcpListener::bind((Ipv4Addr::LOCALHOST, port)).is_ok() {
            return Ok(port);
        }
    }
    Err("none of a hundred ports is free".into())
}

/// The commands that `MONITOR` prints.
pub(crate) struct CommandLog(TcpStream);

/// How often each command was sent by clients, and how often it was run by scripts.
#[derive(Default)]
pub(crate) struct Commands {
    pub(crate) sent: BTreeMap<String, u64>,
    pub(crate) in_scripts: BTreeMap<String, u64>,
}

impl CommandLog {
    /// Reads until nothing has arrived for a while.
    pub(crate) fn end(self) -> Result<Commands, BoxError> {
        let mut reader = BufReader::new(self.0);
        let (mut commands, mut line) = (Commands::default(), String::new());
        loop {
            match reader.read_line(&mut line) {
                Ok(0) => break,
                Ok(_) => {
                    commands.count(&line);
                    line.clear();
                }
                Err(error)
                    if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) =>
                {
                    break;
                }
                Err(error) => return Err(error.into()),
            }
        }
        Ok(commands)
    }
}

impl Commands {
    /// `+1763769600.123456 [0 127.0.0.1:50000] "GET" "key"`, or `[0 lua]` inside scripts.
    fn count(&mut self, line: &str) {
        let Some((origin, command)) = line.split_once("] \"") else {
            return;
        };
        let of = if origin.ends_with(" lua") {
            &mut self.in_scripts
        } else {
            &mut self.sent
        };
        if let Some((name, _)) = command.split_once('"') {
            *of.entry(name.to_uppercase()).or_default() += 1;
        }
    }
}

/// Counts the writes of clients. With one command at a time these are round trips.
pub(crate) struct Proxy {
    port: u16,
    writes: Arc<AtomicU64>,
}

impl Proxy {
    /// Runs on the current runtime and ends with it.
    pub(crate) async fn before(server: &Server) -> Result<Self, BoxError> {
        let listener = tokio::net::TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
        let (port, to) = (listener.local_addr()?.port(), server.port());
        let writes = Arc::new(AtomicU64::new(0));
        let counter = Arc::clone(&writes);
        tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                tokio::spawn(relay(client, to, Arc::clone(&counter)));
            }
        });
        Ok(Self { port, writes })
    }

    pub(crate) fn url(&self) -> String {
        format!("redis://127.0.0.1:{}", self.port)
    }

    pub(crate) fn writes(&self) -> u64 {
        self.writes.load(Relaxed)
    }
}

async fn relay(client: tokio::net::TcpStream, to: u16, writes: Arc<AtomicU64>) {
    let Ok(server) = tokio::net::TcpStream::connect((Ipv4Addr::LOCALHOST, to)).await else {
        return;
    };
    let _ = client.set_nodelay(true);
    let _ = server.set_nodelay(true);
    let (mut from_client, mut to_client) = client.into_split();
    let (mut from_server, mut to_server) = server.into_split();
    let back = tokio::spawn(async move {
        let _ = tokio::io::copy(&mut from_server, &mut to_client).await;
    });
    let mut buffer = vec![0; 1 << 16];
    while let Ok(read @ 1..) = from_client.read(&mut buffer).await {
        writes.fetch_add(1, Relaxed);
        if to_server.write_all(&buffer[..read]).await.is_err() {
            break;
        }
    }
    back.abort();
}
