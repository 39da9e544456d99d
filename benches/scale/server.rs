//! What a server says of itself, and who listens to it.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tidegate::BoxError;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::task::JoinSet;

use crate::redis_proxy::server::{Raw, Reply};

/// So much of everything since the server's start.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Spent {
    /// Those that scripts run among them.
    pub(crate) commands: f64,
    /// CPU time of the process, in microseconds.
    pub(crate) cpu: f64,
    /// Bytes that clients sent, and were sent.
    pub(crate) input: f64,
    pub(crate) output: f64,
    /// `usec` of PUBLISH in the statistics of commands: without the writing to sockets.
    pub(crate) publish: f64,
    pub(crate) publishes: f64,
    /// Bytes of memory in use now.
    pub(crate) memory: f64,
}

impl Spent {
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

    /// What was spent since then, for each of so many.
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

    /// So many of these and so many of those.
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

/// Bare connections that have subscribed to one channel, and count what they hear.
pub(crate) struct Listeners {
    tasks: JoinSet<()>,
    heard: Arc<AtomicU64>,
}

impl Listeners {
    pub(crate) async fn new(port: u16, channel: &str, many: u64) -> Result<Self, BoxError> {
        let (mut tasks, heard) = (JoinSet::new(), Arc::new(AtomicU64::new(0)));
        for _ in 0..many {
            let stream = TcpStream::connect(("127.0.0.1", port)).await;
            let mut stream = stream.map_err(BoxError::new)?;
            let order = format!("SUBSCRIBE {channel}\r\n");
            let sent = stream.write_all(order.as_bytes()).await;
            sent.map_err(BoxError::new)?;
            let mut bytes = vec![0; 1 << 14];
            stream.read(&mut bytes).await.map_err(BoxError::new)?;
            let heard = Arc::clone(&heard);
            tasks.spawn(async move {
                while let Ok(read @ 1..) = stream.read(&mut bytes).await {
                    heard.fetch_add(read as u64, Ordering::Relaxed);
                }
            });
        }
        Ok(Self { tasks, heard })
    }

    /// Until nothing comes any more.
    pub(crate) async fn settled(&self) {
        loop {
            let before = self.heard.load(Ordering::Relaxed);
            tokio::time::sleep(Duration::from_millis(100)).await;
            if self.heard.load(Ordering::Relaxed) == before || self.tasks.is_empty() {
                return;
            }
        }
    }
}

/// Microseconds of CPU that a process has used, and bytes that it has written to whatever.
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
