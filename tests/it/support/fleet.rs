//! Worker processes: this test binary, started again with one cache. A worker follows the orders on
//! its standard input.
//!
//! | order | answer |
//! |---|---|
//! | `get key n` | `got key answer`, then `at micros…` with the time of each of the n answers |
//! | `many from to n` | `many found` after n calls for shuffled keys: the number of right answers |
//! | `last key` | `got key answer`, and the process ends at once |
//! | `row text` | none: it answers the oldest load that waits |
//! | `insert key text`, `invalidate key` | `done` |
//! | `peek key` | `peek key answer` |
//! | `clock` | `clock micros` |
//! | `stats` | `stats loads waits fills refused` |
//! | `watch key`, then `watched` | `answers asked source answer…` of each look-up in between |
//! | `poll n ms`, then `stop_polling` | `polled gets`: the look-ups of all keys below n, every ms |
//! | `round` | `round` after a round of polls that began after the order |
//! | `channel` | `channel state` |
//! | `l1_hit` | `l1_hit` after a watched look-up that L1 has answered since the order |
//!
//! A worker also prints `ready` when it has started, and `loading key` when a load begins.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, SystemTime};

use tidegate::{BatchLoader, Batching, BoxError, Cache, Loaded, Loader, Source};
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader, Lines};
use tokio::process::{Child, ChildStdin, ChildStdout, Command};
use tokio::sync::{Mutex, mpsc};
use tokio::task::JoinHandle;

use super::node::Node;
use super::server::{Server, signal};
use super::within;

/// The variable with the port of the server, the TTL of leases, the channel lease, the grace period
/// without a server, and the window of stale-while-revalidate.
const WORKER: &str = "TIDEGATE_WORKER";
/// The variable with a file whose text every row has. Without it, the order `row` sets the rows.
const SOURCE_FILE: &str = "TIDEGATE_TRUTH";
/// Lines of a worker begin with this, lines of the test harness do not.
const MARK: &str = "@@";

/// A process with one cache.
pub(crate) struct Worker {
    child: Child,
    stdin: ChildStdin,
    stdout: Lines<BufReader<ChildStdout>>,
}

/// The settings of a process.
#[derive(Clone, Debug)]
pub(crate) struct Settings {
    pub(crate) port: u16,
    pub(crate) lease: Duration,
    pub(crate) channel_lease: Duration,
    pub(crate) degraded: Duration,
    pub(crate) stale: Duration,
    pub(crate) source_file: Option<PathBuf>,
    /// Variables of its environment.
    pub(crate) env: Vec<(&'static str, String)>,
}

impl Settings {
    pub(crate) fn new(port: u16, lease: Duration) -> Self {
        Self {
            port,
            lease,
            channel_lease: Duration::from_secs(2),
            degraded: Duration::from_secs(5),
            stale: Duration::ZERO,
            source_file: None,
            env: Vec::new(),
        }
    }
}

impl Worker {
    pub(crate) async fn start(server: &Server, lease: Duration) -> Self {
        Self::with(Settings::new(server.port(), lease)).await
    }

    pub(crate) async fn with(settings: Settings) -> Self {
        let mut command = Command::new(std::env::current_exe().expect("the test binary"));
        command.args([
            "--exact",
            "support::fleet::fleet_worker",
            "--nocapture",
            "--test-threads=1",
        ]);
        let times = [
            settings.lease,
            settings.channel_lease,
            settings.degraded,
            settings.stale,
        ];
        let numbers = times.map(|time| time.as_millis().to_string()).join(" ");
        command.env(WORKER, format!("{} {numbers}", settings.port));
        command.envs(settings.env);
        if let Some(source_file) = settings.source_file {
            command.env(SOURCE_FILE, source_file);
        }
        command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::inherit())
            .kill_on_drop(true);
        let mut child = command.spawn().expect("start a worker");
        let stdin = child.stdin.take().expect("a pipe");
        let stdout = BufReader::new(child.stdout.take().expect("a pipe")).lines();
        let mut worker = Self {
            child,
            stdin,
            stdout,
        };
        worker.expect_line("ready").await;
        worker
    }

    pub(crate) async fn send(&mut self, order: &str) {
        self.stdin
            .write_all(format!("{order}\n").as_bytes())
            .await
            .expect("the worker lives");
    }

    /// The rest of the next line that begins with `what`. Other lines are skipped.
    pub(crate) async fn expect_line(&mut self, what: &str) -> String {
        let found = async {
            while let Some(line) = self.stdout.next_line().await.expect("a text") {
                let text = line.split_once(MARK).map(|(_, text)| text);
                if let Some(rest) = text.and_then(|text| text.strip_prefix(what)) {
                    return rest.trim().to_owned();
                }
            }
            panic!("the worker ended without the line {what}");
        };
        within(what, found).await
    }

    /// Sends an order and returns its answer.
    pub(crate) async fn ask(&mut self, order: &str, answer: &str) -> String {
        self.send(order).await;
        self.expect_line(answer).await
    }

    /// Loads, waits for a lease, fills, and refused fills.
    pub(crate) async fn stats(&mut self) -> Vec<u64> {
        let stats = self.ask("stats", "stats").await;
        stats
            .split(' ')
            .map(|count| count.parse().expect("a number"))
            .collect()
    }

    pub(crate) async fn kill(&mut self) {
        self.child.kill().await.expect("kill a worker");
    }

    pub(crate) fn stop(&self) {
        signal("STOP", self.child.id().expect("it runs"));
    }

    pub(crate) fn resume(&self) {
        signal("CONT", self.child.id().expect("it runs"));
    }

    pub(crate) async fn ended(&mut self) {
        let status = within("the worker ends", self.child.wait())
            .await
            .expect("its status");
        assert!(status.success(), "{status}");
    }
}

/// Microseconds on a clock that all processes of the machine share.
pub(crate) fn micros() -> u64 {
    let since = SystemTime::now()
        .duration_since(SystemTime::UNIX_EPOCH)
        .expect("a sane clock");
    u64::try_from(since.as_micros()).expect("a sane clock")
}

/// Not a test but the main function of a worker. In a test run it returns at once.
#[test]
fn fleet_worker() {
    let Ok(settings) = std::env::var(WORKER) else {
        return;
    };
    let mut settings = settings
        .split(' ')
        .map(|number| number.parse::<u64>().expect("a number"));
    let mut setting = || settings.next().expect("a setting");
    let port = u16::try_from(setting()).expect("a port");
    let mut time = || Duration::from_millis(setting());
    let settings = Settings {
        port,
        lease: time(),
        channel_lease: time(),
        degraded: time(),
        stale: time(),
        source_file: std::env::var_os(SOURCE_FILE).map(PathBuf::from),
        env: Vec::new(),
    };
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build();
    runtime.expect("a runtime").block_on(work(settings));
    std::process::exit(0);
}

async fn work(settings: Settings) {
    let redis = super::server::long_timeout_builder(settings.port)
        .connect()
        .await
        .expect("connect");
    let (answer, answers) = mpsc::unbounded_channel::<String>();
    let answers = Arc::new(Mutex::new(answers));
    let loader = ScriptedLoader {
        answers,
        source_file: settings.source_file.clone(),
    };
    let builder = Cache::builder("users", loader)
        .batched(Batching::new().window(Duration::ZERO))
        .ttl_jitter(0.0)
        .lease_ttl(settings.lease)
        .channel_lease(settings.channel_lease)
        .degraded_l1_ttl(settings.degraded)
        .stale_while_revalidate(settings.stale)
        .refresh_ahead(0.0)
        .l2(redis);
    let node = Node::new(
        builder
            .lease_wait(Duration::from_secs(60))
            .build()
            .expect("a cache"),
    );
    say("ready");
    let mut worker = Orders {
        node,
        answer,
        watching: Arc::default(),
        watched: None,
        polled: None,
    };
    let mut orders = BufReader::new(tokio::io::stdin()).lines();
    // The loop ends with the process that gives the orders.
    while let Some(order) = orders.next_line().await.expect("a text") {
        let words: Vec<&str> = order.split(' ').collect();
        if !worker.follow_at_once(&words).await {
            worker.follow_traffic(&words).await;
        }
    }
}

/// What a worker needs to follow its orders.
struct Orders {
    node: Node,
    /// Sends rows to the loader.
    answer: mpsc::UnboundedSender<String>,
    watching: Arc<Watching>,
    watched: Option<JoinHandle<String>>,
    polled: Option<JoinHandle<u64>>,
}

fn number(word: &str) -> u64 {
    word.parse().expect("a number")
}

impl Orders {
    /// Follows an order that is done with one call. `false` when it is another one.
    async fn follow_at_once(&self, words: &[&str]) -> bool {
        let node = &self.node;
        let key = || number(words[1]);
        match words[0] {
            "row" => self
                .answer
                .send(words[1].to_owned())
                .expect("the loader listens"),
            "insert" => {
                let inserted = node.insert(key(), words[2].to_owned()).await;
                inserted.expect("an insert");
                say("done");
            }
            "invalidate" => {
                node.invalidate(&key()).await.expect("an invalidation");
                say("done");
            }
            "peek" => say(&match node.peek(&key()) {
                Some(entry) => format!("peek {} {}", key(), entry.value()),
                None => format!("peek {} nothing", key()),
            }),
            "channel" => say(&format!("channel {:?}", node.health().channel)),
            "clock" => say(&format!("clock {}", micros())),
            "stats" => {
                let stats = node.stats();
                let (loads, waits) = (stats.loads, stats.lease_waits);
                say(&format!(
                    "stats {loads} {waits} {} {}",
                    stats.fills, stats.fills_refused
                ));
            }
            _ => return false,
        }
        true
    }

    /// Follows an order that begins look-ups, ends them, or waits for them.
    async fn follow_traffic(&mut self, words: &[&str]) {
        let (node, watching) = (self.node.clone(), Arc::clone(&self.watching));
        let hits = || self.watching.hits.load(Ordering::SeqCst);
        let key = || number(words[1]);
        match words[0] {
            "get" => {
                let callers = words[2].parse().expect("a number");
                drop(tokio::spawn(gets(node, key(), callers)));
            }
            "many" => {
                let keys = key()..number(words[2]);
                drop(tokio::spawn(many(node, keys, number(words[3]))));
            }
            "last" => drop(tokio::spawn(last(node, key()))),
            "watch" => self.watched = Some(tokio::spawn(watch(node, key(), watching))),
            "l1_hit" => {
                let before = hits();
                super::eventually("L1 is used", async || hits() > before).await;
                say("l1_hit");
            }
            "watched" => {
                watching.ends.store(true, Ordering::SeqCst);
                let watched = self.watched.take().expect("it watches");
                say(&format!("saw{}", watched.await.expect("a list")));
            }
            "poll" => {
                let every = Duration::from_millis(number(words[2]));
                self.polled = Some(tokio::spawn(ask_all(node, key(), every, watching)));
            }
            "stop_polling" => {
                watching.ends.store(true, Ordering::SeqCst);
                let polled = self.polled.take().expect("it polls");
                say(&format!("polled {}", polled.await.expect("a number")));
            }
            "round" => {
                let rounds = hits() + 2;
                super::eventually("all are asked for", async || hits() >= rounds).await;
                say("round");
            }
            other => panic!("what is {other}?"),
        }
    }
}

/// A loader that answers rows in the order in which they are sent, or the text of a file.
struct ScriptedLoader {
    answers: Arc<Mutex<mpsc::UnboundedReceiver<String>>>,
    source_file: Option<PathBuf>,
}

impl Loader for ScriptedLoader {
    type Key = u64;
    type Value = String;
    type Error = BoxError;

    async fn load(&self, key: &u64) -> Result<Loaded<String>, BoxError> {
        if let Some(source_file) = &self.source_file {
            return Ok(Loaded::found(read(source_file)));
        }
        say(&format!("loading {key}"));
        let mut answers = self.answers.lock().await;
        let row = answers.recv().await.expect("the worker goes on");
        Ok(Loaded::found(row))
    }
}

impl BatchLoader for ScriptedLoader {
    /// Takes a while, so that other processes ask for the same keys meanwhile.
    async fn load_many(&self, keys: &[u64]) -> Result<HashMap<u64, Loaded<String>>, BoxError> {
        tokio::time::sleep(Duration::from_millis(20)).await;
        let rows = keys.iter().map(|key| (*key, format!("row {key}").into()));
        Ok(rows.collect())
    }
}

#[derive(Default)]
struct Watching {
    ends: AtomicBool,
    hits: AtomicU64,
}

/// Asks for a key all the time. Returns the time, the source and the value of each answer.
async fn watch(node: Node, key: u64, watching: Arc<Watching>) -> String {
    let mut answers = String::new();
    while !watching.ends.load(Ordering::SeqCst) {
        let asked = micros();
        let entry = node.get_entry(key).await.expect("a look-up");
        let entry = entry.expect("an entry");
        if entry.source() == Source::L1 {
            watching.hits.fetch_add(1, Ordering::SeqCst);
        }
        answers.push_str(&format!(" {asked} {:?} {}", entry.source(), entry.value()));
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    answers
}

/// Asks for all keys below `below`, again and again. Returns the number of look-ups.
async fn ask_all(node: Node, below: u64, every: Duration, watching: Arc<Watching>) -> u64 {
    let mut gets = 0;
    while !watching.ends.load(Ordering::SeqCst) {
        for key in 0..below {
            super::node::value(node.get(key).await);
            gets += 1;
        }
        watching.hits.fetch_add(1, Ordering::SeqCst);
        tokio::time::sleep(every).await;
    }
    gets
}

/// The text of a file.
fn read(path: &Path) -> String {
    std::fs::read_to_string(path).expect("the truth is there")
}

/// Replaces the text of a file in one step.
pub(crate) fn commit(path: &Path, text: &str) {
    let next = path.with_extension("next");
    std::fs::write(&next, text).expect("write the truth");
    std::fs::rename(&next, path).expect("commit the truth");
}

async fn gets(node: Node, key: u64, how_many: usize) {
    let (mut got, mut at) = (String::new(), String::new());
    let mut callers = Vec::new();
    for _ in 0..how_many {
        let node = node.clone();
        callers.push(tokio::spawn(async move { (node.get(key).await, micros()) }));
    }
    for caller in callers {
        let (answer, when) = caller.await.expect("a caller");
        let answer = super::node::value(answer);
        assert!(
            got.is_empty() || got == answer,
            "two answers at once: {got} and {answer}"
        );
        got = answer;
        at.push_str(&format!(" {when}"));
    }
    say(&format!("got {key} {got}"));
    say(&format!("at{at}"));
}

/// Asks for half of the keys in each call, in an order that depends on the process.
async fn many(node: Node, range: std::ops::Range<u64>, calls: u64) {
    let (mut found, process) = (0, u64::from(std::process::id()));
    let count = range.end - range.start;
    for call in 0..calls {
        // The stride shares no factor with a power of ten, so no key comes twice in one call.
        let (start, stride) = (process.wrapping_mul(31) + call * 7, 3 + 10 * (process % 97));
        let keys: Vec<u64> = (0..count / 2)
            .map(|at| range.start + (start + at * stride) % count)
            .collect();
        for (key, got) in keys.iter().zip(node.get_many(&keys).await) {
            found += u64::from(super::node::value(got) == format!("row {key}"));
        }
    }
    say(&format!("many {found}"));
}

async fn last(node: Node, key: u64) {
    let got = super::node::value(node.get(key).await);
    say(&format!("got {key} {got}"));
    std::process::exit(0);
}

fn say(what: &str) {
    use std::io::Write;
    let mut out = std::io::stdout().lock();
    writeln!(out, "{MARK}{what}")
        .and_then(|()| out.flush())
        .expect("the receiver lives");
}
