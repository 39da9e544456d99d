//! The statistics of a server, and bare subscribers.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tidegate::BoxError;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::task::JoinSet;

use crate::redis_proxy::server::{Raw, Reply};

/// Resources used since the server's start.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Resources {
    /// Commands, those inside scripts included.
    pub(crate) commands: f64,
    /// CPU time of the process, in microseconds.
    pub(crate) cpu: f64,
    /// Bytes received from clients and sent to clients.
    pub(crate) input: f64,
    pub(crate) output: f64,
    /// `usec` of PUBLISH in the command statistics, without the writes to sockets.
    pub(crate) publish: f64,
    pub(crate) publishes: f64,
    /// Bytes of memory in use now.
    pub(crate) memory: f64,
}

impl Resources {
    pub(crate) fn of(raw: &mut Raw) -> Self {
        let Reply::Bytes(info) = raw.ask("INFO all") else {
            return Self::default();
        };
        let info = String::from_utf8_lossy(&info).into_owned();
        let line = |name: &str| {
            let mut lines = info.lines();
            lines.find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))
        };
        let number = |name| line(name).and_then(|text| text.parse().ok()).unwrap_or(0.0);
        let publish = |field: &str| {
            let fields = line("cmdstat_publish").unwrap_or_default();
            let mut fields = fields.split(',');
            let found = fields.find_map(|one| one.strip_prefix(field)?.strip_prefix('='));
            found.and_then(|text| text.parse().ok()).unwrap_or(0.0)
        };
        Self {
            commands: number("total_commands_processed"),
            cpu: (number("used_cpu_sys") + number("used_cpu_user")) * 1e6,
            input: number("total_net_input_bytes"),
            output: number("total_net_output_bytes"),
            publish: publish("usec"),
            publishes: publish("calls"),
            memory: number("used_memory"),
        }
    }

    /// The difference since `before`, divided by `of`.
    pub(crate) fn since(self, before: Self, of: f64) -> Self {
        Self {
            commands: (self.commands - before.commands) / of,
            cpu: (self.cpu - before.cpu) / of,
            input: (self.input - before.input) / of,
            output: (self.output - before.output) / of,
            publish: (self.publish - before.publish) / of,
            publishes: (self.publishes - before.publishes) / of,
            memory: (self.memory - before.memory) / of,
        }
    }

    /// The sum of these resources and `times` others.
    pub(crate) fn plus(self, times: f64, other: Self) -> Self {
        Self {
            commands: self.commands + times * other.commands,
            cpu: self.cpu + times * other.cpu,
            input: self.input + times * other.input,
            output: self.output + times * other.output,
            ..self
        }
    }
}

/// Bare connections that are subscribed to one channel and count the bytes that they receive.
pub(crate) struct Subscribers {
    tasks: JoinSet<()>,
    received: Arc<AtomicU64>,
}

impl Subscribers {
    pub(crate) async fn new(port: u16, channel: &str, many: u64) -> Result<Self, BoxError> {
        let (mut tasks, received) = (JoinSet::new(), Arc::new(AtomicU64::new(0)));
        for _ in 0..many {
            let stream = TcpStream::connect(("127.0.0.1", port)).await;
            let mut stream = stream.map_err(BoxError::new)?;
            let order = format!("SUBSCRIBE {channel}\r\n");
            let sent = stream.write_all(order.as_bytes()).await;
            sent.map_err(BoxError::new)?;
            let mut bytes = vec![0; 1 << 14];
            stream.read(&mut bytes).await.map_err(BoxError::new)?;
            let received = Arc::clone(&received);
            tasks.spawn(async move {
                while let Ok(read @ 1..) = stream.read(&mut bytes).await {
                    received.fetch_add(read as u64, Ordering::Relaxed);
                }
            });
        }
        Ok(Self { tasks, received })
    }

    /// Waits until no more bytes arrive.
    pub(crate) async fn settled(&self) {
        loop {
            let before = self.received.load(Ordering::Relaxed);
            tokio::time::sleep(Duration::from_millis(100)).await;
            if self.received.load(Ordering::Relaxed) == before || self.tasks.is_empty() {
                return;
            }
        }
    }
}

/// The microseconds of CPU that a process has used, and the bytes that it has written to any file
/// or socket.
pub(crate) fn process(pid: &str) -> (f64, f64) {
    let read = |file: &str| {
        let text = std::fs::read_to_string(format!("/proc/{pid}/{file}"));
        text.unwrap_or_default()
    };
    let stat = read("stat");
    let fields = stat.rsplit(')').next().unwrap_or_default();
    let ticks = fields.split_whitespace().skip(11).take(2);
    let ticks: f64 = ticks.filter_map(|ticks| ticks.parse::<f64>().ok()).sum();
    let io = read("io");
    let written = io.lines().find_map(|line| line.strip_prefix("wchar: "));
    let written = written.and_then(|bytes| bytes.parse().ok());
    (ticks * 10_000.0, written.unwrap_or(0.0))
}
