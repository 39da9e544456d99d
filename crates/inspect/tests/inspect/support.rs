//! The fixture of the tests: a server, caches that use it, and the inspector.

use std::process::{Command, Output};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use serde_json::Value;
use tidegate::fred::interfaces::ClientLike as _;
use tidegate::fred::types::{ClusterHash, CustomCommand};
use tidegate::{BoxError, Cache, CacheBuilder, CacheFor, Loaded, Loader, Redis, inspect};
use tokio::sync::Semaphore;

use crate::server::Server;

/// A loader that counts its loads. The key determines its answer; keys that begin with `gated` wait
/// for a permit of the gate.
#[derive(Clone)]
pub(crate) struct Source {
    pub(crate) loads: Arc<AtomicUsize>,
    pub(crate) gate: Arc<Semaphore>,
}

impl Loader for Source {
    type Key = String;
    type Value = String;
    type Error = BoxError;

    async fn load(&self, key: &String) -> Result<Loaded<String>, BoxError> {
        self.loads.fetch_add(1, Ordering::SeqCst);
        if key.starts_with("gated") {
            self.gate.acquire().await.map_err(BoxError::new)?.forget();
        }
        if let Some(size) = key.strip_prefix("size ") {
            // `top` orders entries by the time of their load.
            tokio::time::sleep(Duration::from_millis(20)).await;
            let size = size.parse().map_err(BoxError::new)?;
            return Ok(Loaded::found("x".repeat(size)));
        }
        match key.as_str() {
            "absent" => Ok(Loaded::missing()),
            "failing" => Err("the source is down".into()),
            _ => Ok(Loaded::found(format!("value of {key}"))
                .version(9)
                .tag("team:7")),
        }
    }
}

/// A server of the test's own, and the source of its caches.
pub(crate) struct Fixture {
    pub(crate) server: Server,
    pub(crate) source: Source,
}

/// The exit code and the output of the inspector.
pub(crate) struct CommandOutput {
    pub(crate) code: i32,
    pub(crate) out: String,
    pub(crate) err: String,
}

impl CommandOutput {
    pub(crate) fn of(output: Output) -> Self {
        Self {
            code: output.status.code().expect("it ended by itself"),
            out: String::from_utf8(output.stdout).expect("a text"),
            err: String::from_utf8(output.stderr).expect("a text"),
        }
    }

    /// The value of a field in a table.
    pub(crate) fn field(&self, name: &str) -> &str {
        let mut lines = self.out.lines();
        let value = lines.find_map(|line| line.strip_prefix(name)?.strip_prefix("  "));
        value
            .unwrap_or_else(|| panic!("no {name:?} in:\n{}", self.out))
            .trim()
    }
}

impl Fixture {
    pub(crate) fn start() -> Self {
        Self {
            server: Server::start().expect("a server"),
            source: Source {
                loads: Arc::default(),
                gate: Arc::new(Semaphore::new(0)),
            },
        }
    }

    /// A cache as another process of the fleet has it.
    pub(crate) async fn cache(
        &self,
        settings: impl FnOnce(CacheBuilder<Source>) -> CacheBuilder<Source>,
    ) -> CacheFor<Source> {
        let redis = Redis::builder(&self.server.url()).timeout(Duration::from_secs(2));
        let redis = redis.connect().await.expect("connected");
        let cache = Cache::builder("users", self.source.clone()).l2(redis);
        settings(cache).build().expect("sound settings")
    }

    pub(crate) fn loads(&self) -> usize {
        self.source.loads.load(Ordering::SeqCst)
    }

    pub(crate) fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_tidegate-inspect"));
        command
            .env("TIDEGATE_URL", self.server.url())
            .args(["--name", "users"])
            .args(args);
        command
    }

    pub(crate) fn inspect(&self, args: &[&str]) -> CommandOutput {
        CommandOutput::of(self.command(args).output().expect("the inspector runs"))
    }

    pub(crate) fn json(&self, args: &[&str]) -> Value {
        let output = self.inspect(&[args, &["--json"]].concat());
        serde_json::from_str(&output.out)
            .unwrap_or_else(|error| panic!("{error}: {}{}", output.out, output.err))
    }

    /// Runs a command until its JSON satisfies `is`.
    pub(crate) async fn json_when(&self, args: &[&str], is: impl Fn(&Value) -> bool) -> Value {
        let deadline = Instant::now() + Duration::from_secs(20);
        loop {
            let json = self.json(args);
            if is(&json) {
                return json;
            }
            assert!(Instant::now() < deadline, "{json:#}");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    /// Sends one command to Redis.
    pub(crate) async fn redis(&self, name: &'static str, args: &[&str]) {
        let handle = Redis::open(&self.server.url()).expect("a URL");
        let client = inspect::client(&handle);
        client.init().await.expect("connected");
        let command = CustomCommand::new_static(name, ClusterHash::FirstKey, false);
        let args = args.iter().map(|arg| (*arg).to_owned()).collect();
        let sent = client.custom::<(), String>(command, args).await;
        sent.expect("an answer");
    }
}

/// Waits until `is` returns true.
pub(crate) async fn until(is: impl Fn() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(20);
    while !is() {
        assert!(Instant::now() < deadline, "it does not happen");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}
