//! A server behind a proxy, and the kinds of trouble that are made.

use std::net::{Ipv4Addr, TcpStream};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use tidegate::BoxError;
use tokio::task::JoinHandle;

use crate::redis_proxy::proxy::{Proxy, ProxyMode};
use crate::redis_proxy::server::{Reply, Server};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Trouble {
    None,
    Refused,
    Reset,
    BlackHole,
    Slow,
    ClientPause,
    Stopped,
    Killed,
    Loading,
    ReadOnly,
    OutOfMemory,
    Misconf,
    ScriptFlush,
    Password,
    ChannelCut,
}

impl Trouble {
    pub(crate) const ALL: [Self; 15] = [
        Self::None,
        Self::Refused,
        Self::Reset,
        Self::BlackHole,
        Self::Slow,
        Self::ClientPause,
        Self::Stopped,
        Self::Killed,
        Self::Loading,
        Self::ReadOnly,
        Self::OutOfMemory,
        Self::Misconf,
        Self::ScriptFlush,
        Self::Password,
        Self::ChannelCut,
    ];

    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::Refused => "connections refused",
            Self::Reset => "connections reset every 50 ms, mid-command or mid-reply",
            Self::BlackHole => "black hole",
            Self::Slow => "500 ms slow",
            Self::ClientPause => "`CLIENT PAUSE`",
            Self::Stopped => "`SIGSTOP`",
            Self::Killed => "`SIGKILL`, then restarted empty",
            Self::Loading => "`-LOADING`",
            Self::ReadOnly => "`-READONLY`",
            Self::OutOfMemory => "`-OOM`",
            Self::Misconf => "`-MISCONF`",
            Self::ScriptFlush => "`SCRIPT FLUSH` every 50 ms",
            Self::Password => "another password",
            Self::ChannelCut => "the bus alone is dead",
        }
    }
}

pub(crate) struct Fixture {
    server: Server,
    pub(crate) proxy: Proxy,
    /// A task that keeps the trouble up.
    repeating: Option<JoinHandle<()>>,
    loading: Option<Child>,
}

impl Fixture {
    pub(crate) async fn new() -> Self {
        let server = Server::start();
        let proxy = Proxy::to(server.port()).await;
        Self {
            server,
            proxy,
            repeating: None,
            loading: None,
        }
    }

    pub(crate) async fn begin(
        &mut self,
        trouble: Trouble,
        lasts: Duration,
    ) -> Result<(), BoxError> {
        match trouble {
            Trouble::None => {}
            Trouble::Refused => self.proxy.set(ProxyMode::Refuse).await,
            Trouble::BlackHole => self.proxy.set(ProxyMode::BlackHole).await,
            Trouble::Slow => {
                self.proxy
                    .set(ProxyMode::Slow(Duration::from_millis(500)))
                    .await
            }
            Trouble::ChannelCut => self.proxy.set(ProxyMode::DeadSubscriptions).await,
            Trouble::Reset => {}
            Trouble::ClientPause => self.ask(&format!("CLIENT PAUSE {}", lasts.as_millis())),
            Trouble::Stopped => self.server.stop(),
            Trouble::Killed => self.server.kill(),
            Trouble::Loading => self.load_slowly()?,
            Trouble::ReadOnly => self.ask("REPLICAOF 127.0.0.1 1"),
            Trouble::OutOfMemory => self.ask("CONFIG SET maxmemory 1"),
            Trouble::Misconf => self.fail_to_save()?,
            Trouble::ScriptFlush => {
                let mut raw = self.server.raw();
                self.repeating = Some(tokio::spawn(async move {
                    loop {
                        raw.ask("SCRIPT FLUSH");
                        tokio::time::sleep(Duration::from_millis(50)).await;
                    }
                }));
            }
            Trouble::Password => {
                self.ask("CONFIG SET requirepass another");
                self.proxy.cut();
            }
        }
        Ok(())
    }

    /// What is repeated while the trouble lasts.
    pub(crate) fn meanwhile(&self, trouble: Trouble) {
        if trouble == Trouble::Reset {
            self.proxy.cut();
        }
    }

    pub(crate) async fn end(&mut self, trouble: Trouble) {
        if let Some(task) = self.repeating.take() {
            task.abort();
        }
        match trouble {
            Trouble::Refused | Trouble::BlackHole | Trouble::Slow | Trouble::ChannelCut => {
                self.proxy.set(ProxyMode::Pass).await;
            }
            Trouble::Stopped => self.server.resume(),
            Trouble::Killed => self.server.restart(),
            Trouble::Loading => {
                self.stop_loading();
                self.server.restart();
            }
            Trouble::ReadOnly => self.ask("REPLICAOF NO ONE"),
            Trouble::OutOfMemory => self.ask("CONFIG SET maxmemory 0"),
            Trouble::Misconf => self.ask("CONFIG SET stop-writes-on-bgsave-error no"),
            Trouble::Password => {
                let mut raw = self.server.raw();
                raw.ask("AUTH another");
                raw.send(&[b"CONFIG", b"SET", b"requirepass", b""]);
            }
            // A pause cannot be ended early and ends by itself.
            Trouble::None | Trouble::Reset | Trouble::ScriptFlush | Trouble::ClientPause => {}
        }
    }

    fn ask(&self, words: &str) {
        self.server.raw().ask(words);
    }

    /// The server listens and reads a file for as long as the trouble lasts.
    fn load_slowly(&mut self) -> Result<(), BoxError> {
        let fill = "for i = 1, 50000 do redis.call('SET', 'filling:' .. i, i, 'EX', 600) end";
        self.server.raw().send(&[b"EVAL", fill.as_bytes(), b"0"]);
        self.ask("SAVE");
        self.server.kill();
        let child = Command::new(binary())
            .args(["--port", &self.server.port().to_string()])
            .args(["--bind", "127.0.0.1", "--save", "", "--dir"])
            .arg(self.server.dir())
            .args(["--key-load-delay", "400"])
            .args(["--loading-process-events-interval-bytes", "1024"])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .spawn()
            .map_err(BoxError::new)?;
        self.loading = Some(child);
        let deadline = Instant::now() + Duration::from_secs(10);
        while TcpStream::connect((Ipv4Addr::LOCALHOST, self.server.port())).is_err() {
            if Instant::now() > deadline {
                return Err("the server that loads does not listen".into());
            }
            std::thread::sleep(Duration::from_millis(2));
        }
        let reply = self.server.raw().try_ask("GET filling:1");
        if !matches!(&reply, Reply::Error(error) if error.starts_with("LOADING")) {
            return Err(format!("the server does not load: {reply:?}").into());
        }
        Ok(())
    }

    fn stop_loading(&mut self) {
        if let Some(mut child) = self.loading.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
        let _ = std::fs::remove_file(self.server.dir().join("dump.rdb"));
    }

    /// A server that cannot save its file refuses writes.
    fn fail_to_save(&self) -> Result<(), BoxError> {
        let mut raw = self.server.raw();
        std::fs::remove_dir_all(self.server.dir()).map_err(BoxError::new)?;
        raw.send(&[b"CONFIG", b"SET", b"save", b"3600 1"]);
        raw.ask("BGSAVE");
        let deadline = Instant::now() + Duration::from_secs(10);
        loop {
            let reply = raw.try_ask("SET chaos x EX 1");
            if matches!(&reply, Reply::Error(error) if error.starts_with("MISCONF")) {
                return Ok(());
            }
            if Instant::now() > deadline {
                return Err(format!("the server goes on writing: {reply:?}").into());
            }
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}

impl Drop for Fixture {
    fn drop(&mut self) {
        self.stop_loading();
    }
}

fn binary() -> String {
    std::env::var("TIDEGATE_REDIS_SERVER").unwrap_or_else(|_| "redis-server".to_owned())
}
