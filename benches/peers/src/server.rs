//! A `redis-server`, what it says about its work, and a proxy that counts.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, ErrorKind, Read, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};

use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::peer::Fault;

/// A server on a port of its own that keeps nothing on disk; it ends with this value.
pub(crate) struct Server {
    child: Child,
    port: u16,
}

impl Server {
    pub(crate) fn start() -> Result<Self, Fault> {
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

    /// With `SIGKILL`.
    pub(crate) fn kill(&mut self) -> Result<(), Fault> {
        self.child.kill()?;
        self.child.wait()?;
        Ok(())
    }

    /// On the same port, with nothing in it.
    pub(crate) fn restart(&mut self) -> Result<(), Fault> {
        self.child = spawn(self.port)?;
        self.answers()
    }

    fn answers(&mut self) -> Result<(), Fault> {
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

    fn connection(&self) -> Result<TcpStream, Fault> {
        Ok(TcpStream::connect((Ipv4Addr::LOCALHOST, self.port))?)
    }

    /// One command without arguments that hold blanks; a reply that is a string.
    pub(crate) fn ask(&self, command: &str) -> Result<String, Fault> {
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

    /// Seconds of CPU that the server has taken since it began.
    pub(crate) fn cpu(&self) -> Result<f64, Fault> {
        let info = self.ask("INFO cpu")?;
        let seconds = |name| field(&info, name).and_then(|text| text.parse::<f64>().ok());
        let both = seconds("used_cpu_user").zip(seconds("used_cpu_sys"));
        both.map(|(user, system)| user + system)
            .ok_or_else(|| "INFO cpu has no CPU times".into())
    }

    pub(crate) fn version(&self) -> Result<String, Fault> {
        let info = self.ask("INFO server")?;
        Ok(field(&info, "redis_version").unwrap_or("?").to_owned())
    }

    /// From now on, every command is written down.
    pub(crate) fn watch(&self) -> Result<Watch, Fault> {
        let mut stream = self.connection()?;
        stream.write_all(b"MONITOR\r\n")?;
        stream.set_read_timeout(Some(Duration::from_millis(200)))?;
        let mut ok = [0; 5];
        stream.read_exact(&mut ok)?;
        Ok(Watch(stream))
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

fn spawn(port: u16) -> Result<Child, Fault> {
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

/// Below the ports that the system gives to clients: one that reconnects to a server that is down
/// could be given its port, and would talk to itself.
fn free_port() -> Result<u16, Fault> {
    for _ in 0..100 {
        let port = 20_000 + rand::random::<u16>() % 10_000;
        if TcpListener::bind((Ipv4Addr::LOCALHOST, port)).is_ok() {
            return Ok(port);
        }
    }
    Err("none of a hundred ports is free".into())
}

/// Commands as `MONITOR` tells them.
pub(crate) struct Watch(TcpStream);

/// How often each command was sent by clients, and run by scripts.
#[derive(Default)]
pub(crate) struct Commands {
    pub(crate) sent: BTreeMap<String, u64>,
    pub(crate) in_scripts: BTreeMap<String, u64>,
}

impl Watch {
    /// Everything until nothing has come for a while.
    pub(crate) fn end(self) -> Result<Commands, Fault> {
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
    /// `+1763769600.123456 [0 127.0.0.1:50000] "GET" "key"`, or `[0 lua]` within scripts.
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

/// Counts what clients write, which for one command after the other is round trips.
pub(crate) struct Proxy {
    port: u16,
    writes: Arc<AtomicU64>,
}

impl Proxy {
    /// On the runtime that calls it; it ends with that.
    pub(crate) async fn before(server: &Server) -> Result<Self, Fault> {
        let listener = tokio::net::TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
        let (port, to) = (listener.local_addr()?.port(), server.port());
        let writes = Arc::new(AtomicU64::new(0));
        let counter = Arc::clone(&writes);
        tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                tokio::spawn(pass_on(client, to, Arc::clone(&counter)));
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

async fn pass_on(client: tokio::net::TcpStream, to: u16, writes: Arc<AtomicU64>) {
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
