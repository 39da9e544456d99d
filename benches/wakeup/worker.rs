//! Processes with one cache: this bench, started again as workers.
//!
//! | order | answer |
//! |---|---|
//! | `get key n` | `load` or `lease` when n callers wait, then `at ended times…` of answers |
//! | `go` | none: the load returns |
//! | `listen n` | `listens` when n tasks wait for a message, then `at 0 times…` of its arrival |
//! | `publish` | `sent time` |

use std::process::Stdio;
use std::sync::atomic::Ordering;
use std::time::Duration;

use tidegate::{BoxError, Redis};
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader, Lines};
use tokio::process::{Child, ChildStdin, ChildStdout, Command};

use super::callers::{Bare, Node, notified, times};

/// The variable with the URL of the server.
pub(crate) const WORKER: &str = "TIDEGATE_WAKEUP_WORKER";

pub(crate) struct Worker {
    _child: Child,
    stdin: ChildStdin,
    stdout: Lines<BufReader<ChildStdout>>,
}

impl Worker {
    pub(crate) async fn start(url: &str) -> Result<Self, BoxError> {
        let mut command = Command::new(std::env::current_exe().map_err(BoxError::new)?);
        let command = command.env(WORKER, url).kill_on_drop(true);
        let command = command.stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = command.spawn().map_err(BoxError::new)?;
        let (stdin, stdout) = (child.stdin.take(), child.stdout.take());
        let (stdin, stdout) = stdin.zip(stdout).ok_or("no pipes")?;
        let mut worker = Self {
            _child: child,
            stdin,
            stdout: BufReader::new(stdout).lines(),
        };
        worker.expect_line("ready").await?;
        Ok(worker)
    }

    pub(crate) async fn send(&mut self, order: &str) -> Result<(), BoxError> {
        let line = format!("{order}\n");
        let stdin = self.stdin.write_all(line.as_bytes()).await;
        stdin.map_err(BoxError::new)
    }

    /// The numbers on the next line, which must begin with `word`.
    pub(crate) async fn expect_line(&mut self, word: &str) -> Result<Vec<u64>, BoxError> {
        let line = tokio::time::timeout(Duration::from_secs(60), self.stdout.next_line()).await;
        let line = line.map_err(BoxError::new)?.map_err(BoxError::new)?;
        let line = line.ok_or("a worker has ended")?;
        let rest = line.strip_prefix(word);
        let rest = rest.ok_or_else(|| format!("not {word}, but {line}"))?;
        let numbers = rest.split_whitespace().map(str::parse);
        numbers.collect::<Result<_, _>>().map_err(BoxError::new)
    }
}

impl Worker {
    /// The answers to `publish` and `listen`, which come in any order.
    pub(crate) async fn sent_and_received(&mut self) -> Result<(u64, Vec<u64>), BoxError> {
        let (mut sent, mut received) = (None, None);
        while sent.is_none() || received.is_none() {
            let line = self.stdout.next_line().await.map_err(BoxError::new)?;
            let line = line.ok_or("a worker has ended")?;
            let (word, numbers) = line.split_once(' ').ok_or("a word and numbers")?;
            let numbers = numbers.split_whitespace().map(str::parse);
            let numbers: Vec<u64> = numbers.collect::<Result<_, _>>().map_err(BoxError::new)?;
            match word {
                "sent" => sent = numbers.first().copied(),
                _ => received = Some(numbers),
            }
        }
        Ok((sent.unwrap_or_default(), received.unwrap_or_default()))
    }
}

/// The main function of a worker, which ends with its standard input.
pub(crate) async fn work(url: &str) -> Result<(), BoxError> {
    let redis = Redis::builder(url).timeout(Duration::from_secs(5));
    let node = Node::new(redis.connect().await.map_err(BoxError::new)?).await?;
    let bare = Bare::new(url).await?;
    println!("ready");
    let mut orders = BufReader::new(tokio::io::stdin()).lines();
    while let Some(order) = orders.next_line().await.map_err(BoxError::new)? {
        let (word, numbers) = order.split_once(' ').unwrap_or((&order, ""));
        let numbers: Vec<u64> = numbers.split(' ').filter_map(|n| n.parse().ok()).collect();
        match (word, numbers.as_slice()) {
            ("get", [key, many]) => drop(tokio::spawn(get(node.clone(), *key, *many))),
            ("go", []) => node.go(),
            ("listen", [many]) => {
                let waiting = notified(&bare.received, *many).await;
                println!("listens");
                tokio::spawn(async move { say(0, times(waiting).await) });
            }
            ("publish", []) => println!("sent {}", bare.publish().await?),
            _ => return Err(format!("what is {order}?").into()),
        }
    }
    Ok(())
}

async fn get(node: Node, key: u64, many: u64) {
    let loads = node.load.begun.load(Ordering::SeqCst);
    let waits = node.cache.stats().lease_waits;
    let callers = node.callers(key, many).await;
    let loads = loop {
        if node.load.begun.load(Ordering::SeqCst) > loads {
            break true;
        } else if node.cache.stats().lease_waits > waits {
            break false;
        }
        tokio::time::sleep(Duration::from_micros(200)).await;
    };
    println!("{}", if loads { "load" } else { "lease" });
    let times = times(callers).await;
    say(if loads { node.ended() } else { 0 }, times);
}

fn say(ended: u64, times: Result<Vec<u64>, BoxError>) {
    let times = times.unwrap_or_default();
    let times: Vec<String> = times.iter().map(u64::to_string).collect();
    println!("at {ended} {}", times.join(" "));
}
