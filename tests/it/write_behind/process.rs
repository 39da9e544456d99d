//! Worker and writer processes: this test binary, started again. A process follows the orders on
//! its standard input.
//!
//! | role | orders | answers |
//! |---|---|---|
//! | gated | `ok` (answers the call), `close` | `apply epoch ids…`, `closed` |
//! | logging | `close` | `closed` |
//! | writer | `key first last`…, `go` | `ok key version id`, `unknown key version`, `done` |
//!
//! Workers also print `claimed partition` and `lost partition`. Every process prints `ready` first.

use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use parking_lot::Mutex;
use rusqlite::Connection;
use tidegate::BoxError;
use tidegate::write_behind::{Batch, Event, Sink, WriteBehind, WriteError};
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader, Lines};
use tokio::process::{Child, ChildStdin, ChildStdout, Command};

use super::gated;
use crate::support::server::{Server, long_timeout_builder, signal};
use crate::support::within;

/// The variable with the role, the port, the lease in milliseconds, and the file of the log.
const PROCESS: &str = "TIDEGATE_WRITE_BEHIND";
/// Lines of a process begin with this, lines of the test harness do not.
const MARK: &str = "@@";

pub(super) const PARTITIONS: u16 = 4;
const BATCH: usize = 20;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Role {
    /// A worker of one partition whose calls the test answers.
    Gated,
    /// A worker that writes what it applies into a database.
    Logging,
    Writer,
}

pub(super) struct Process {
    child: Child,
    stdin: ChildStdin,
    stdout: Lines<BufReader<ChildStdout>>,
}

impl Process {
    pub(super) async fn start(server: &Server, role: Role, lease: Duration) -> Self {
        let mut command = Command::new(std::env::current_exe().expect("the test binary"));
        command.args([
            "--exact",
            "write_behind::process::write_behind_process",
            "--nocapture",
            "--test-threads=1",
        ]);
        let (port, lease) = (server.port(), lease.as_millis());
        let log = log_of(server.dir());
        command.env(
            PROCESS,
            format!("{role:?} {port} {lease} {}", log.display()),
        );
        command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::inherit())
            .kill_on_drop(true);
        let mut child = command.spawn().expect("start a process");
        let stdin = child.stdin.take().expect("a pipe");
        let stdout = BufReader::new(child.stdout.take().expect("a pipe")).lines();
        let mut process = Self {
            child,
            stdin,
            stdout,
        };
        process.expect_line("ready").await;
        process
    }

    pub(super) async fn send(&mut self, order: &str) {
        let order = format!("{order}\n");
        let stdin = self.stdin.write_all(order.as_bytes()).await;
        stdin.expect("the process lives");
    }

    /// The next line of the process, or `None` when it has ended.
    pub(super) async fn next(&mut self) -> Option<String> {
        loop {
            let line = self.stdout.next_line().await.ok()??;
            if let Some((_, text)) = line.split_once(MARK) {
                return Some(text.to_owned());
            }
        }
    }

    /// The rest of the next line that begins with `what`. Other lines are skipped.
    pub(super) async fn expect_line(&mut self, what: &str) -> String {
        let found = async {
            while let Some(text) = self.next().await {
                if let Some(rest) = text.strip_prefix(what) {
                    return rest.trim().to_owned();
                }
            }
            panic!("the process ended without the line {what}");
        };
        within(what, found).await
    }

    pub(super) async fn ask(&mut self, order: &str, answer: &str) -> String {
        self.send(order).await;
        self.expect_line(answer).await
    }

    pub(super) fn id(&self) -> u32 {
        self.child.id().expect("it runs")
    }

    /// SIGKILL.
    pub(super) async fn kill(&mut self) {
        self.child.kill().await.expect("kill a process");
    }

    pub(super) fn stop(&self) {
        signal("STOP", self.id());
    }

    pub(super) fn resume(&self) {
        signal("CONT", self.id());
    }
}

/// Not a test but the main function of a process. In a test run it returns at once.
#[test]
fn write_behind_process() {
    let Ok(settings) = std::env::var(PROCESS) else {
        return;
    };
    let settings: Vec<&str> = settings.splitn(4, ' ').collect();
    let number = |at: usize| settings[at].parse::<u64>().expect("a number");
    let port = u16::try_from(number(1)).expect("a port");
    let lease = Duration::from_millis(number(2));
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .expect("a runtime");
    runtime.block_on(async {
        match settings[0] {
            "Gated" => work_gated(port, lease).await,
            "Logging" => work_logging(port, lease, Path::new(settings[3])).await,
            "Writer" => write_all(port).await,
            other => panic!("what is {other}?"),
        }
    });
    std::process::exit(0);
}

async fn redis(port: u16) -> tidegate::Redis {
    // A short timeout: a server that is slow for a moment does not cost a lease of a second.
    let redis = long_timeout_builder(port).timeout(Duration::from_millis(300));
    redis.connect().await.expect("connect")
}

fn print_event(event: &Event) {
    match event {
        Event::Claimed { partition, .. } => say(&format!("claimed {partition}")),
        Event::Lost { partition } => say(&format!("lost {partition}")),
        _ => {}
    }
}

fn orders() -> Lines<BufReader<tokio::io::Stdin>> {
    BufReader::new(tokio::io::stdin()).lines()
}

async fn work_gated(port: u16, lease: Duration) {
    let (sink, mut calls) = gated();
    let builder = WriteBehind::builder("stock", redis(port).await, sink);
    let builder = builder.partitions(1).lease_ttl(lease).on_event(print_event);
    say("ready");
    let stock = builder.open().await.expect("opens");
    let mut orders = orders();
    let mut open = None;
    loop {
        tokio::select! {
            Some(call) = calls.0.recv() => {
                let ids: Vec<_> = call.ids.iter().map(ToString::to_string).collect();
                say(&format!("apply {} {}", call.epoch, ids.join(" ")));
                open = Some(call);
            }
            order = orders.next_line() => match order.expect("a text").as_deref() {
                Some("ok") => open.take().expect("a call").ok(),
                Some("close") => {
                    stock.close().await;
                    say("closed");
                }
                other => {
                    assert_eq!(other, None);
                    return;
                }
            }
        }
    }
}

pub(super) fn log_of(dir: &Path) -> PathBuf {
    dir.join("log")
}

/// Opens the log.
pub(super) fn open_log(path: &Path) -> Connection {
    let log = Connection::open(path).expect("a database");
    log.busy_timeout(Duration::from_secs(10))
        .expect("a timeout");
    // `synchronous = OFF` loses nothing when a process is killed, only when the machine fails.
    log.execute_batch(
        "PRAGMA journal_mode = WAL; PRAGMA synchronous = OFF;
         CREATE TABLE IF NOT EXISTS log (at INTEGER PRIMARY KEY AUTOINCREMENT, pid INTEGER,
             first INTEGER, partition INTEGER, epoch INTEGER, ms INTEGER, seq INTEGER, key INTEGER, value TEXT);
         CREATE TABLE IF NOT EXISTS fence (partition INTEGER PRIMARY KEY, epoch INTEGER);",
    )
    .expect("tables");
    log
}

/// A source of truth that logs every write, and refuses workers that were replaced.
struct Log(Mutex<Connection>);

impl Sink for Log {
    type Key = u64;
    type Value = String;
    type Error = BoxError;

    async fn apply(&self, batch: &Batch<u64, String>) -> Result<(), BoxError> {
        // Pauses, so that a kill hits before, in and after the transaction.
        let pause = batch.writes()[0].id().ms() % 6;
        tokio::time::sleep(Duration::from_millis(pause)).await;
        commit(&mut self.0.lock(), batch).map_err(BoxError::new)?;
        tokio::time::sleep(Duration::from_millis(6 - pause)).await;
        Ok(())
    }
}

fn commit(log: &mut Connection, batch: &Batch<u64, String>) -> rusqlite::Result<()> {
    let log = log.transaction_with_behavior(rusqlite::TransactionBehavior::Immediate)?;
    let number = |number: u64| i64::try_from(number).expect("a small number");
    let (partition, epoch) = (batch.partition(), number(batch.epoch()));
    let fence = "INSERT INTO fence VALUES (?1, ?2) ON CONFLICT (partition)
        DO UPDATE SET epoch = ?2 WHERE epoch <= ?2";
    if log.execute(fence, (partition, epoch))? == 0 {
        return Err(rusqlite::Error::StatementChangedRows(0));
    }
    for (at, write) in batch.writes().iter().enumerate() {
        let id = (number(write.id().ms()), number(write.id().seq()));
        let row = (
            std::process::id(),
            at == 0,
            partition,
            epoch,
            id.0,
            id.1,
            number(*write.key()),
            write.value(),
        );
        log.execute(
            "INSERT INTO log (pid, first, partition, epoch, ms, seq, key, value)
                 VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
            row,
        )?;
    }
    log.commit()
}

async fn work_logging(port: u16, lease: Duration, log: &Path) {
    let sink = Log(Mutex::new(open_log(log)));
    let builder = WriteBehind::builder("stock", redis(port).await, sink);
    let builder = builder
        .partitions(PARTITIONS)
        .batch_size(BATCH)
        .lease_ttl(lease)
        .backoff(Duration::from_millis(5), Duration::from_millis(50))
        .on_event(print_event);
    let stock = builder.open().await.expect("opens");
    say("ready");
    let mut orders = orders();
    while let Some(order) = orders.next_line().await.expect("a text") {
        assert_eq!(order, "close");
        stock.close().await;
        say("closed");
    }
}

async fn write_all(port: u16) {
    let builder = WriteBehind::<u64, String>::writer(
        "stock",
        long_timeout_builder(port).connect().await.expect("connect"),
    );
    let stock = builder.partitions(PARTITIONS).open().await.expect("opens");
    say("ready");
    let mut orders = orders();
    let mut keys = Vec::new();
    while let Some(order) = orders.next_line().await.expect("a text") {
        if order != "go" {
            let numbers = order.split(' ');
            let numbers = numbers.map(|number| number.parse().expect("a number"));
            keys.push(numbers.collect::<Vec<u64>>());
            continue;
        }
        let mut tasks = tokio::task::JoinSet::new();
        for key in keys.drain(..) {
            let stock = stock.clone();
            tasks.spawn(async move {
                for version in key[1]..=key[2] {
                    write(&stock, key[0], version).await;
                }
            });
        }
        while let Some(ended) = tasks.join_next().await {
            ended.expect("a writer of a key");
        }
        say("done");
    }
}

async fn write(stock: &super::Stock, key: u64, version: u64) {
    loop {
        match stock.write(&key, &version.to_string()).await {
            Ok(id) => return say(&format!("ok {key} {version} {id}")),
            Err(WriteError::Unknown(_)) => return say(&format!("unknown {key} {version}")),
            Err(WriteError::Full { .. } | WriteError::Refused(_)) => {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
            Err(error) => panic!("{error:?}"),
        }
    }
}

fn say(what: &str) {
    use std::io::Write;
    let mut out = std::io::stdout().lock();
    // The reader may be gone when the test has ended.
    let _ = writeln!(out, "{MARK}{what}").and_then(|()| out.flush());
}
