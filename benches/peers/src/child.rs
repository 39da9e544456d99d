//! Processes of a fleet: this binary, started as a child. A child reads commands from its input,
//! answers with lines, and ends with its input.

use std::io::{BufRead, BufReader, Write};
use std::process::{ChildStdin, Command, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use tokio::io::AsyncBufReadExt;

use crate::contenders::named;
use crate::peer::{BoxError, Instance, Setup};
use crate::source::Source;
use crate::table::micros;
use crate::traffic::Traffic;

/// A running child, from its parent's side. It ends when this value is dropped.
pub(crate) struct Child {
    process: std::process::Child,
    input: ChildStdin,
    lines: Receiver<String>,
}

impl Child {
    pub(crate) fn start(slug: &str, url: &str) -> Result<Self, BoxError> {
        let mut process = Command::new(std::env::current_exe()?)
            .args(["child", slug, url])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()?;
        let input = process.stdin.take().ok_or("no input")?;
        let output = process.stdout.take().ok_or("no output")?;
        let (send, lines) = channel();
        std::thread::spawn(move || {
            for line in BufReader::new(output).lines().map_while(Result::ok) {
                if send.send(line).is_err() {
                    break;
                }
            }
        });
        let child = Self {
            process,
            input,
            lines,
        };
        let ready = child.expect_line("ready", Duration::from_secs(30))?;
        ready
            .map(|_| child)
            .ok_or_else(|| format!("{slug} is not ready").into())
    }

    pub(crate) fn send(&mut self, command: &str) -> Result<(), BoxError> {
        writeln!(self.input, "{command}")?;
        Ok(())
    }

    /// The rest of the next line that begins with `word`, or `None` when it does not come in time.
    pub(crate) fn expect_line(
        &self,
        word: &str,
        within: Duration,
    ) -> Result<Option<String>, BoxError> {
        let deadline = Instant::now() + within;
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            match self.lines.recv_timeout(left) {
                Ok(line) => {
                    if let Some(rest) = line.strip_prefix(word) {
                        return Ok(Some(rest.trim().to_owned()));
                    }
                }
                Err(RecvTimeoutError::Timeout) => return Ok(None),
                Err(RecvTimeoutError::Disconnected) => return Err("a child has ended".into()),
            }
        }
    }

    /// SIGKILL.
    pub(crate) fn kill(&mut self) -> Result<(), BoxError> {
        self.process.kill()?;
        self.process.wait()?;
        Ok(())
    }
}

impl Drop for Child {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// The line that a child prints when all its callers have been answered.
pub(crate) struct AskResult {
    pub(crate) loads: u64,
    pub(crate) failed: u64,
    pub(crate) micros: Vec<f64>,
}

impl AskResult {
    pub(crate) fn parse(line: &str) -> Result<Self, BoxError> {
        let mut words = line.split_whitespace();
        let mut next = || words.next().ok_or("a short line");
        let (loads, failed) = (next()?.parse()?, next()?.parse()?);
        let micros = next()?
            .split(',')
            .map(str::parse)
            .collect::<Result<_, _>>()?;
        Ok(Self {
            loads,
            failed,
            micros,
        })
    }
}

/// The main function of a child.
pub(crate) fn run(slug: &str, url: &str) -> Result<(), BoxError> {
    let who = named(slug).ok_or("no contender of this name")?;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()?;
    runtime.block_on(async {
        let source = Source::new();
        let peer = (who.open)(Setup::new(url, source)).await?;
        // The first look-up makes the connections.
        peer.get(u64::from(std::process::id())).await?;
        tokio::time::sleep(Duration::from_millis(100)).await;
        say("ready");
        let mut commands = tokio::io::BufReader::new(tokio::io::stdin()).lines();
        let mut traffic = None;
        while let Some(line) = commands.next_line().await? {
            let words: Vec<&str> = line.split_whitespace().collect();
            match words[..] {
                ["ask", id, callers, micros] => {
                    source.takes(Duration::from_micros(micros.parse()?));
                    ask(&peer, source, id.parse()?, callers.parse()?).await;
                }
                ["traffic", tasks, micros] => {
                    traffic = Some(Traffic::start(&peer, tasks.parse()?).await?);
                    source.takes(Duration::from_micros(micros.parse()?));
                }
                ["phase", number] => {
                    if let Some(traffic) = &traffic {
                        traffic.phase(number.parse()?);
                    }
                }
                ["stop"] => {
                    for line in traffic.take().ok_or("nothing to stop")?.stop().await {
                        say(&line);
                    }
                    say("done");
                }
                _ => return Err(format!("what is '{line}'?").into()),
            }
        }
        peer.close().await;
        Ok(())
    })
}

fn say(line: &str) {
    let mut out = std::io::stdout().lock();
    let _ = writeln!(out, "{line}").and_then(|()| out.flush());
}

/// Many callers of one key at once.
async fn ask(peer: &Instance, source: &'static Source, id: u64, callers: usize) {
    let before = source.loads();
    let task = tokio::spawn(async move {
        while source.loads() == before {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        say("loading");
    });
    let latencies = Arc::new(Mutex::new(Vec::with_capacity(callers)));
    let mut running = tokio::task::JoinSet::new();
    let begun = Instant::now();
    for _ in 0..callers {
        let (peer, latencies) = (Arc::clone(peer), Arc::clone(&latencies));
        running.spawn(async move {
            let failed = peer.get(id).await.is_err();
            let took = micros(begun.elapsed());
            latencies
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .push(took);
            u64::from(failed)
        });
    }
    let failed: u64 = running.join_all().await.into_iter().sum();
    task.abort();
    let latencies = latencies.lock().unwrap_or_else(PoisonError::into_inner);
    let listed: Vec<String> = latencies.iter().map(|took| format!("{took:.1}")).collect();
    say(&format!(
        "done {} {failed} {}",
        source.loads() - before,
        listed.join(",")
    ));
}
