//! Real `redis-server` processes. Each test starts its own.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU16, Ordering};
use std::time::{Duration, Instant};

use tidegate::{Redis, RedisBuilder};

const INSTALL: &str = "these tests need a redis-server: `apt-get install redis-server` (or `brew install redis`), \
     or name the binary in TIDEGATE_REDIS_SERVER";

/// A server on a port of its own. It ends when this value is dropped.
pub(crate) struct Server {
    child: Child,
    port: u16,
    dir: PathBuf,
    role: Role,
    more: Vec<String>,
}

/// The role of a server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Role {
    Single,
    /// A server with an append-only file, which holds all its data again after a restart.
    #[cfg(feature = "write-behind")]
    Durable,
    /// A node of a cluster. It takes another node for dead after this many milliseconds.
    Node(u32),
    /// A replica of the server on this port.
    Replica(u16),
    /// A sentinel that watches the server on this port under the name `main`.
    Sentinel(u16),
}

impl Server {
    pub(crate) fn start() -> Self {
        Self::start_as(Role::Single)
    }

    /// A server with an append-only file: every acknowledged write survives `kill` and `restart`.
    #[cfg(feature = "write-behind")]
    pub(crate) fn start_durable() -> Self {
        Self::start_as(Role::Durable)
    }

    /// A server with more settings, as on a command line.
    pub(crate) fn start_with(more: &[&str]) -> Self {
        Self::start_as_with(Role::Single, more)
    }

    #[cfg(feature = "tls")]
    pub(crate) fn start_in_cluster_with(more: &[&str]) -> Self {
        Self::start_as_with(Role::Node(2_000), more)
    }

    #[cfg(feature = "tls")]
    pub(crate) fn sentinel_with(port: u16, more: &[&str]) -> Self {
        Self::start_as_with(Role::Sentinel(port), more)
    }

    pub(crate) fn start_on(port: u16) -> Self {
        Self::begin(port, Role::Single, &[])
            .unwrap_or_else(|| panic!("redis-server does not start on port {port}"))
    }

    pub(crate) fn replica_of(port: u16) -> Self {
        Self::start_as(Role::Replica(port))
    }

    pub(crate) fn sentinel_of(port: u16) -> Self {
        Self::start_as(Role::Sentinel(port))
    }

    /// A node of a cluster without slots and without neighbours. It takes another node for dead
    /// after `dead_after` of silence.
    pub(crate) fn start_in_cluster(dead_after: Duration) -> Self {
        let ms = u32::try_from(dead_after.as_millis()).expect("a short time");
        Self::start_as(Role::Node(ms))
    }

    /// Starts on a free port. Another test run on this machine may take the port between the check
    /// and the start, so several ports are tried.
    fn start_as(role: Role) -> Self {
        Self::start_as_with(role, &[])
    }

    fn start_as_with(role: Role, more: &[&str]) -> Self {
        let mut ports = (0..5).map(|_| free_port());
        ports
            .find_map(|port| Self::begin(port, role, more))
            .unwrap_or_else(|| panic!("redis-server starts on none of five ports, with {more:?}"))
    }

    /// `None` when another process has taken the port.
    fn begin(port: u16, role: Role, more: &[&str]) -> Option<Self> {
        let dir = std::env::temp_dir().join(format!("tidegate-{}-{port}", std::process::id()));
        std::fs::create_dir_all(&dir).expect("a directory for the server");
        let more: Vec<String> = more.iter().map(|&word| word.to_owned()).collect();
        let mut server = Self {
            child: spawn(port, &dir, role, &more),
            port,
            dir,
            role,
            more,
        };
        server.answers().then_some(server)
    }

    pub(crate) fn port(&self) -> u16 {
        self.port
    }

    /// A directory for files of the test, which is removed with the server.
    pub(crate) fn dir(&self) -> &Path {
        &self.dir
    }

    pub(crate) fn url(&self) -> String {
        url(self.port)
    }

    /// A builder for tests that are not about timeouts.
    pub(crate) fn long_timeout_builder(&self) -> RedisBuilder {
        long_timeout_builder(self.port)
    }

    pub(crate) fn raw(&self) -> Raw {
        Raw::connect(self.port).expect("the server answers")
    }

    /// Records the commands of all clients from now on.
    pub(crate) fn monitor(&self) -> Monitor {
        let (mut feed, other) = (self.raw(), self.raw());
        feed.ask("MONITOR");
        Monitor { feed, other }
    }

    /// SIGKILL.
    pub(crate) fn kill(&mut self) {
        self.child.kill().expect("kill the server");
        self.child.wait().expect("the server ends");
    }

    /// Starts the server again on the same port, empty.
    pub(crate) fn restart(&mut self) {
        self.restart_with(&[]);
    }

    /// The same with settings.
    pub(crate) fn restart_with(&mut self, settings: &[&str]) {
        let settings = settings.iter().map(|&word| word.to_owned());
        let more: Vec<String> = self.more.iter().cloned().chain(settings).collect();
        self.child = spawn(self.port, &self.dir, self.role, &more);
        assert!(self.answers(), "redis-server does not start again");
    }

    pub(crate) fn stop(&self) {
        signal("STOP", self.child.id());
    }

    pub(crate) fn resume(&self) {
        signal("CONT", self.child.id());
    }

    /// Waits until this server answers. `false` when it has ended, or when another server answers
    /// there.
    fn answers(&mut self) -> bool {
        let deadline = Instant::now() + Duration::from_secs(20);
        loop {
            if matches!(self.child.try_wait(), Ok(Some(_))) {
                return false;
            }
            let info =
                Raw::connect(self.port).and_then(|mut raw| raw.try_send(&[b"INFO", b"server"]));
            if let Ok(Reply::Bytes(info)) = info {
                let pid = format!("process_id:{}\r\n", self.child.id());
                return String::from_utf8_lossy(&info).contains(&pid);
            }
            assert!(Instant::now() < deadline, "redis-server does not answer");
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        let _ = std::fs::remove_dir_all(&self.dir);
    }
}

pub(crate) fn url(port: u16) -> String {
    format!("redis://127.0.0.1:{port}")
}

pub(crate) fn long_timeout_builder(port: u16) -> RedisBuilder {
    Redis::builder(&url(port)).timeout(Duration::from_secs(2))
}

fn spawn(port: u16, dir: &PathBuf, role: Role, more: &[String]) -> Child {
    let binary =
        std::env::var("TIDEGATE_REDIS_SERVER").unwrap_or_else(|_| "redis-server".to_owned());
    let mut command = Command::new(&binary);
    if let Role::Sentinel(watched) = role {
        // The sentinel rewrites this file.
        let conf = dir.join("sentinel.conf");
        let settings = format!(
            "sentinel monitor main 127.0.0.1 {watched} 1\n\
             sentinel down-after-milliseconds main 1000\n\
             sentinel failover-timeout main 5000\n"
        );
        std::fs::write(&conf, settings).expect("a file for the sentinel");
        command.arg(&conf).arg("--sentinel");
    }
    command.args(["--port", &port.to_string(), "--bind", "127.0.0.1"]);
    if !matches!(role, Role::Sentinel(_)) {
        #[cfg(feature = "write-behind")]
        let durable = role == Role::Durable;
        #[cfg(not(feature = "write-behind"))]
        let durable = false;
        let appendonly = if durable { "yes" } else { "no" };
        command.args(["--save", "", "--appendonly", appendonly]);
    }
    command.arg("--dir").arg(dir);
    if let Role::Replica(primary) = role {
        command.args(["--replicaof", "127.0.0.1", &primary.to_string()]);
    }
    if !matches!(role, Role::Sentinel(_)) {
        // A test does not wait for more replicas to join.
        command.args(["--repl-diskless-sync", "yes"]);
        command.args(["--repl-diskless-sync-delay", "0"]);
    }
    if let Role::Node(dead_after) = role {
        command.args(["--cluster-enabled", "yes"]);
        command.args(["--cluster-node-timeout", &dead_after.to_string()]);
        // A node without neighbours does not know its own address.
        command.args(["--cluster-announce-ip", "127.0.0.1"]);
        // A replica takes over whatever the age of its data.
        command.args(["--cluster-replica-validity-factor", "0"]);
        // The rest of the cluster works when some slots have no node.
        command.args(["--cluster-require-full-coverage", "no"]);
    }
    command.args(more);
    command
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null());
    command
        .spawn()
        .unwrap_or_else(|error| panic!("{binary}: {error}; {INSTALL}"))
}

/// A port on which no process listens. A node of a cluster also takes the port 10,000 above its
/// own. Both are below 32,768, where the ports of outgoing connections begin.
pub(crate) fn free_port() -> u16 {
    static NEXT: AtomicU16 = AtomicU16::new(0);
    let first = std::process::id().wrapping_mul(131);
    let free = |port| TcpListener::bind((Ipv4Addr::LOCALHOST, port)).is_ok();
    loop {
        let step = u32::from(NEXT.fetch_add(1, Ordering::Relaxed));
        let port = u16::try_from(12_000 + first.wrapping_add(step) % 10_000).expect("a port");
        if free(port) && free(port + 10_000) {
            return port;
        }
    }
}

pub(crate) fn signal(name: &str, pid: u32) {
    let status = Command::new("kill")
        .arg(format!("-{name}"))
        .arg(pid.to_string())
        .status();
    assert!(status.expect("run kill").success(), "kill -{name} {pid}");
}

/// A reply of the server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Reply {
    Nil,
    Number(i64),
    Text(String),
    Error(String),
    Bytes(Vec<u8>),
    List(Vec<Reply>),
}

/// A minimal client that shares no code with the client under test.
pub(crate) struct Raw(BufReader<TcpStream>);

impl Raw {
    fn connect(port: u16) -> std::io::Result<Self> {
        let stream = TcpStream::connect((Ipv4Addr::LOCALHOST, port))?;
        stream.set_read_timeout(Some(Duration::from_secs(20)))?;
        Ok(Self(BufReader::new(stream)))
    }

    /// One command, in words.
    pub(crate) fn ask(&mut self, words: &str) -> Reply {
        let args: Vec<&[u8]> = words.split_whitespace().map(str::as_bytes).collect();
        self.send(&args)
    }

    /// The same, and an error is a valid answer.
    pub(crate) fn try_ask(&mut self, words: &str) -> Reply {
        let args: Vec<&[u8]> = words.split_whitespace().map(str::as_bytes).collect();
        self.try_send(&args).expect("an answer")
    }

    /// The same, and no answer is valid as well.
    pub(crate) fn ask_if_there(&mut self, words: &str) -> Option<Reply> {
        let args: Vec<&[u8]> = words.split_whitespace().map(str::as_bytes).collect();
        self.try_send(&args).ok()
    }

    /// One command, without waiting for its answer.
    pub(crate) fn tell(&mut self, args: &[&[u8]]) {
        self.write(args).expect("the server takes it");
    }

    pub(crate) fn send(&mut self, args: &[&[u8]]) -> Reply {
        let reply = self.try_send(args).expect("an answer");
        if let Reply::Error(error) = reply {
            panic!("{}: {error}", String::from_utf8_lossy(args[0]));
        }
        reply
    }

    fn try_send(&mut self, args: &[&[u8]]) -> std::io::Result<Reply> {
        self.write(args)?;
        self.reply()
    }

    fn write(&mut self, args: &[&[u8]]) -> std::io::Result<()> {
        let mut command = format!("*{}\r\n", args.len()).into_bytes();
        for arg in args {
            command.extend_from_slice(format!("${}\r\n", arg.len()).as_bytes());
            command.extend_from_slice(arg);
            command.extend_from_slice(b"\r\n");
        }
        self.0.get_mut().write_all(&command)
    }

    fn line(&mut self) -> std::io::Result<String> {
        let mut line = String::new();
        self.0.read_line(&mut line)?;
        Ok(line.trim_end().to_owned())
    }

    fn reply(&mut self) -> std::io::Result<Reply> {
        let line = self.line()?;
        let (kind, rest) = line
            .split_at_checked(1)
            .ok_or(std::io::ErrorKind::UnexpectedEof)?;
        let number = || rest.parse::<i64>().map_err(std::io::Error::other);
        Ok(match kind {
            "+" => Reply::Text(rest.to_owned()),
            "-" => Reply::Error(rest.to_owned()),
            ":" => Reply::Number(number()?),
            "$" => match usize::try_from(number()?) {
                Err(_) => Reply::Nil,
                Ok(len) => {
                    let mut bytes = vec![0; len + 2];
                    self.0.read_exact(&mut bytes)?;
                    bytes.truncate(len);
                    Reply::Bytes(bytes)
                }
            },
            "*" => Reply::List(
                (0..number()?)
                    .map(|_| self.reply())
                    .collect::<Result<_, _>>()?,
            ),
            _ => return Err(std::io::Error::other(line)),
        })
    }

    pub(crate) fn get(&mut self, key: &str) -> Option<Vec<u8>> {
        match self.send(&[b"GET", key.as_bytes()]) {
            Reply::Bytes(bytes) => Some(bytes),
            _ => None,
        }
    }

    /// Sets a key for a minute.
    pub(crate) fn set(&mut self, key: &str, bytes: &[u8]) {
        self.send(&[b"SET", key.as_bytes(), bytes, b"PX", b"60000"]);
    }

    pub(crate) fn pttl(&mut self, key: &str) -> i64 {
        match self.send(&[b"PTTL", key.as_bytes()]) {
            Reply::Number(ms) => ms,
            other => panic!("PTTL: {other:?}"),
        }
    }

    pub(crate) fn keys(&mut self, pattern: &str) -> Vec<String> {
        let Reply::List(keys) = self.send(&[b"KEYS", pattern.as_bytes()]) else {
            panic!("KEYS answers a list")
        };
        let text = |reply| match reply {
            Reply::Bytes(bytes) => String::from_utf8(bytes).expect("keys are ASCII"),
            other => panic!("a key: {other:?}"),
        };
        keys.into_iter().map(text).collect()
    }

    /// The keys of entries, leases and failure marks, without the keys of watermarks.
    pub(crate) fn entries(&mut self, pattern: &str) -> Vec<String> {
        let mut keys = self.keys(pattern);
        keys.retain(|key| !key.contains("::{marks}"));
        keys
    }

    /// How often the server has executed a command, inside scripts as well.
    pub(crate) fn calls(&mut self, command: &str) -> u64 {
        let Reply::Bytes(info) = self.ask("INFO commandstats") else {
            panic!("INFO answers a text")
        };
        let (info, line) = (
            String::from_utf8_lossy(&info).into_owned(),
            format!("cmdstat_{command}:calls="),
        );
        let calls = info.lines().find_map(|stats| stats.strip_prefix(&line));
        calls
            .and_then(|stats| stats.split(',').next())
            .map_or(0, |calls| calls.parse().expect("a number"))
    }

    /// A line of the server's INFO.
    pub(crate) fn info(&mut self, name: &str) -> Option<String> {
        let Reply::Bytes(info) = self.ask("INFO all") else {
            panic!("INFO answers a text")
        };
        let info = String::from_utf8_lossy(&info).into_owned();
        let line = info.lines().find_map(|line| line.strip_prefix(name));
        line.and_then(|line| line.strip_prefix(':'))
            .map(str::to_owned)
    }

    /// The number of connected clients, this one included.
    pub(crate) fn clients(&mut self) -> usize {
        let Reply::Bytes(list) = self.ask("CLIENT LIST") else {
            panic!("CLIENT LIST answers a text")
        };
        String::from_utf8_lossy(&list).lines().count()
    }
}

/// Whether a record is a lease, by its kind byte and its length.
pub(crate) fn is_lease(record: &[u8]) -> bool {
    record.len() == 104 && record.starts_with(b"TG\x01\x03")
}

/// Whether a record is a value.
pub(crate) fn is_value(record: &[u8]) -> bool {
    record.starts_with(b"TG\x01\x01")
}

/// Sees every command that a client sends, but not those inside scripts.
pub(crate) struct Monitor {
    feed: Raw,
    other: Raw,
}

impl Monitor {
    /// The names of the commands since the last call, without heartbeats.
    pub(crate) fn command_names(&mut self) -> Vec<String> {
        let name = |command: String| {
            let name = command.split('"').next().unwrap_or_default();
            name.to_ascii_uppercase()
        };
        self.commands().into_iter().map(name).collect()
    }

    /// The commands since the last call as MONITOR prints them, without the first quotation mark.
    pub(crate) fn commands(&mut self) -> Vec<String> {
        // MONITOR prints in the order of execution, so all earlier commands come before this one.
        self.other.ask("ECHO mark");
        let mut commands = Vec::new();
        loop {
            let Ok(Reply::Text(line)) = self.feed.reply() else {
                panic!("MONITOR answers lines")
            };
            let (client, command) = line.split_once("] \"").expect("client and command");
            if command.starts_with("ECHO\"") {
                return commands;
            }
            // Heartbeats come at any time and belong to no test.
            if !client.ends_with("lua") && !command.contains("::beat:") {
                commands.push(command.to_owned());
            }
        }
    }
}
