//! Real processes: this test binary, started again as a worker that has one cache and does what it
//! is told on its standard input.
//!
//! | told | says |
//! |---|---|
//! | `get key n` | `got key answer`, then `at micros…`: when each of the n callers was answered |
//! | `many from to n` | `many found` after n calls for all keys of a range, shuffled: how many answers were right |
//! | `last key` | `got key answer`, and the process ends there and then |
//! | `row text` | (answers the load that began first, of those that are not answered) |
//! | `insert key text`, `invalidate key` | `done` |
//! | `peek key` | `peek key answer` |
//! | `clock` | `clock micros` |
//! | `stats` | `stats loads waits fills refused` |
//! | `watch key`, `watched` | (asks for it all the time), then `saw asked source answer…` of each time |
//! | `hot n ms`, `cool` | (asks for the keys below n every ms, without an answer), then `cooled gets` |
//! | `turned` | `turned` when it has begun, after that, to ask for all of them and has done so |
//! | `channel` | `channel state` |
//! | `proven` | `proven` when a look-up that was watched was answered by L1, from now on |
//!
//! On its own account it says `ready`, and `loading key` when a load begins.

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

use super::node::Node;
use super::server::{Server, signal};
use super::within;

/// Where the worker finds the port of its server, the time to live of its leases, its channel lease,
/// its grace without a server, and for how long it answers what is past its TTL while it loads.
const WORKER: &str = "TIDEGATE_WORKER";
/// A file whose text every row has. Without it rows are what `row` says.
const TRUTH: &str = "TIDEGATE_TRUTH";
/// What a worker says begins with this; the test harness says other things.
const MARK: &str = "@@";

/// A process with one cache.
pub(crate) struct Worker {
    child: Child,
    told: ChildStdin,
    says: Lines<BufReader<ChildStdout>>,
}

/// What a process is started with.
#[derive(Clone, Debug)]
pub(crate) struct Settings {
    pub(crate) port: u16,
    pub(crate) lease: Duration,
    pub(crate) channel_lease: Duration,
    pub(crate) degraded: Duration,
    pub(crate) stale: Duration,
    pub(crate) truth: Option<PathBuf>,
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
            truth: None,
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
        if let Some(truth) = settings.truth {
            command.env(TRUTH, truth);
        }
        command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::inherit())
            .kill_on_drop(true);
        let mut child = command.spawn().expect("start a worker");
        let told = child.stdin.take().expect("a pipe");
        let says = BufReader::new(child.stdout.take().expect("a pipe")).lines();
        let mut worker = Self { child, told, says };
        worker.hear("ready").await;
        worker
    }

    pub(crate) async fn tell(&mut self, order: &str) {
        self.told
            .write_all(format!("{order}\n").as_bytes())
            .await
            .expect("the worker lives");
    }

    /// The rest of the next line that begins with `what`; others are skipped.
    pub(crate) async fn hear(&mut self, what: &str) -> String {
        let heard = async {
            while let Some(line) = self.says.next_line().await.expect("a text") {
                let said = line.split_once(MARK).map(|(_, said)| said);
                if let Some(rest) = said.and_then(|said| said.strip_prefix(what)) {
                    return rest.trim().to_owned();
                }
            }
            panic!("the worker ended without saying {what}");
        };
        within(what, heard).await
    }

    /// What a worker answers.
    pub(crate) async fn ask(&mut self, order: &str, answer: &str) -> String {
        self.tell(order).await;
        self.hear(answer).await
    }

    /// Loads, waits for a lease, fills, and fills that were refused.
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

/// Microseconds, on a clock that all processes of the machine share.
pub(crate) fn micros() -> u64 {
    let since = SystemTime::now()
        .duration_since(SystemTime::UNIX_EPOCH)
        .expect("a sane clock");
    u64::try_from(since.as_micros()).expect("a sane clock")
}

/// Not a test, but the body of a worker: returns at once in a test run.
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
        truth: std::env::var_os(TRUTH).map(PathBuf::from),
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
    let loader = Told {
        answers,
        truth: settings.truth.clone(),
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
    let watching = Arc::new(Watching::default());
    let (mut watched, mut hot) = (None, None);
    say("ready");
    let mut orders = BufReader::new(tokio::io::stdin()).lines();
    // Ends with the process that gives the orders.
    while let Some(order) = orders.next_line().await.expect("a text") {
        let words: Vec<&str> = order.split(' ').collect();
        let key = || words[1].parse::<u64>().expect("a key");
        match words[0] {
            "get" => drop(tokio::spawn(gets(
                node.clone(),
                key(),
                words[2].parse().expect("a number"),
            ))),
            "many" => {
                let to = words[2].parse().expect("a key");
                let calls = words[3].parse().expect("a number");
                drop(tokio::spawn(many(node.clone(), key()..to, calls)));
            }
            "last" => drop(tokio::spawn(last(node.clone(), key()))),
            "row" => answer
                .send(words[1].to_owned())
                .expect("the loader listens"),
            "insert" => {
                node.insert(key(), words[2].to_owned())
                    .await
                    .expect("an insert");
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
            "watch" => {
                watched = Some(tokio::spawn(watch(
                    node.clone(),
                    key(),
                    Arc::clone(&watching),
                )));
            }
            "proven" => {
                let before = watching.hits.load(Ordering::SeqCst);
                super::eventually("L1 is used", async || {
                    watching.hits.load(Ordering::SeqCst) > before
                })
                .await;
                say("proven");
            }
            "watched" => {
                watching.ends.store(true, Ordering::SeqCst);
                let saw = watched.take().expect("it watches").await.expect("a list");
                say(&format!("saw{saw}"));
            }
            "hot" => {
                let ms = words[2].parse().expect("a number");
                let every = Duration::from_millis(ms);
                hot = Some(tokio::spawn(ask_all(
                    node.clone(),
                    key(),
                    every,
                    Arc::clone(&watching),
                )));
            }
            "cool" => {
                watching.ends.store(true, Ordering::SeqCst);
                let gets = hot.take().expect("it asks").await.expect("a number");
                say(&format!("cooled {gets}"));
            }
            "turned" => {
                let turns = watching.hits.load(Ordering::SeqCst) + 2;
                super::eventually("all are asked for", async || {
                    watching.hits.load(Ordering::SeqCst) >= turns
                })
                .await;
                say("turned");
            }
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
            other => panic!("what is {other}?"),
        }
    }
}

/// Loads what it is told, or what is in a file.
struct Told {
    answers: Arc<Mutex<mpsc::UnboundedReceiver<String>>>,
    truth: Option<PathBuf>,
}

impl Loader for Told {
    type Key = u64;
    type Value = String;
    type Error = BoxError;

    async fn load(&self, key: &u64) -> Result<Loaded<String>, BoxError> {
        if let Some(truth) = &self.truth {
            return Ok(Loaded::found(read(truth)));
        }
        say(&format!("loading {key}"));
        let mut answers = self.answers.lock().await;
        let row = answers.recv().await.expect("the worker goes on");
        Ok(Loaded::found(row))
    }
}

impl BatchLoader for Told {
    /// Takes a while, for others to ask for the same keys.
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

/// Asks for a key all the time. Answers when it asked, who answered, and what.
async fn watch(node: Node, key: u64, watching: Arc<Watching>) -> String {
    let mut saw = String::new();
    while !watching.ends.load(Ordering::SeqCst) {
        let asked = micros();
        let entry = node.get_entry(key).await.expect("a look-up");
        let entry = entry.expect("an entry");
        if entry.source() == Source::L1 {
            watching.hits.fetch_add(1, Ordering::SeqCst);
        }
        saw.push_str(&format!(" {asked} {:?} {}", entry.source(), entry.value()));
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    saw
}

/// Asks for all keys below one, again and again. Answers how often.
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

/// Asks for half of the keys at a time, in an order of its own.
async fn many(node: Node, range: std::ops::Range<u64>, calls: u64) {
    let (mut found, process) = (0, u64::from(std::process::id()));
    let count = range.end - range.start;
    for call in 0..calls {
        // A stride that has no factor in common with any count of keys that is a power of ten.
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
        .expect("somebody listens");
}
