//! How soon 1,000 callers of one key get the value of one load, in one process and in several.
//!
//! ```text
//! cargo bench --bench wakeup
//! ```
//!
//! Measured from the return of the load until each caller has its answer. There are two limits, in
//! alternation with that: as many tasks woken by a `tokio::sync::Notify`, and a bare `PUBLISH` to a
//! bare subscriber that then wakes as many. Times of different processes are compared on the clock
//! of this machine. Needs a `redis-server` on the PATH, or named in `TIDEGATE_REDIS_SERVER`.
//! `-- --test` only checks that everything runs.

use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use tidegate::{BoxError, InProcess, Redis};
use tokio::sync::Notify;

use self::callers::{Bare, Node, nanos, notified, times, until};
use self::support::{Server, time};
use self::worker::{WORKER, Worker};

mod callers;
#[expect(dead_code, reason = "other benches use more of it")]
#[path = "../support/mod.rs"]
mod support;
mod worker;

/// Callers in all.
const CALLERS: u64 = 1_000;
const PROCESSES: u64 = 4;

fn main() -> ExitCode {
    let quick = std::env::args().any(|arg| arg == "--test");
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build();
    let run = runtime.map_err(BoxError::new).and_then(|runtime| {
        runtime.block_on(async {
            match std::env::var(WORKER) {
                Ok(url) => worker::work(&url).await,
                Err(_) => run(if quick { 2 } else { 100 }).await,
            }
        })
    });
    match run {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("wakeup: {error}");
            ExitCode::FAILURE
        }
    }
}

async fn run(rounds: u64) -> Result<(), BoxError> {
    let server = Server::start()?;
    println!(
        "| {CALLERS} woken callers, {rounds} rounds | p50 | p99 of the median round | p99 of all | max | goal |"
    );
    println!("|---|---|---|---|---|---|");
    in_one_process(&server.url(), rounds).await?;
    in_others(&server.url(), rounds).await
}

/// Nanoseconds, round by round.
#[derive(Default)]
struct Took(Vec<Vec<f64>>);

impl Took {
    #[expect(clippy::cast_precision_loss, reason = "less than 2^52 nanoseconds")]
    fn add(&mut self, since: u64, times: &[u64]) {
        let took = times.iter().map(|at| at.saturating_sub(since) as f64);
        self.0.push(took.collect());
    }

    fn print(&self, what: &str, yardstick: &str) {
        let all: Vec<f64> = self.0.concat();
        let rounds = self.0.iter().map(|round| percentile(round.clone(), 99));
        let median = time(percentile(rounds.collect(), 50) / 1e9);
        let [p50, p99, max] = [50, 99, 100].map(|share| time(percentile(all.clone(), share) / 1e9));
        println!("| {what} | {p50} | {median} | {p99} | {max} | {yardstick} |");
    }
}

fn percentile(mut of: Vec<f64>, share: usize) -> f64 {
    of.sort_by(f64::total_cmp);
    let index = (of.len() * share / 100).min(of.len().saturating_sub(1));
    of.get(index).copied().unwrap_or_default()
}

async fn in_one_process(url: &str, rounds: u64) -> Result<(), BoxError> {
    let redis = Redis::builder(url).timeout(Duration::from_secs(5));
    let redis = redis.connect().await.map_err(BoxError::new)?;
    let (embedded, remote) = (Node::new(InProcess::new()).await?, Node::new(redis).await?);
    let (bare, alone) = (Bare::new(url).await?, Arc::new(Notify::new()));
    let mut took: [Took; 4] = Default::default();
    for key in 0..rounds {
        let waiting = notified(&alone, CALLERS).await;
        let notify = Arc::clone(&alone);
        let notifies = tokio::spawn(async move {
            let begun = nanos();
            notify.notify_waiters();
            begun
        });
        let begun = notifies.await.map_err(BoxError::new)?;
        took[0].add(begun, &times(waiting).await?);
        took[1].add_load(&embedded, key).await?;
        let waiting = notified(&bare.received, 1).await;
        let begun = bare.publish().await?;
        took[2].add(begun, &times(waiting).await?);
        took[3].add_load(&remote, key).await?;
    }
    took[0].print("limit: `Notify`", "–");
    took[1].print("same process, embedded tier", "p99 ≤ 2 ms");
    took[2].print("limit: `PUBLISH` to one subscriber", "–");
    took[3].print("same process, Redis", "p99 ≤ 2 ms");
    Ok(())
}

impl Took {
    async fn add_load(&mut self, node: &Node, key: u64) -> Result<(), BoxError> {
        let loads = node.load.begun.load(Ordering::SeqCst);
        let waiting = node.callers(key, CALLERS).await;
        until(|| node.load.begun.load(Ordering::SeqCst) > loads).await;
        node.go();
        let times = times(waiting).await?;
        self.add(node.ended(), &times);
        Ok(())
    }
}

async fn in_others(url: &str, rounds: u64) -> Result<(), BoxError> {
    let mut workers = Vec::new();
    for _ in 0..PROCESSES {
        workers.push(Worker::start(url).await?);
    }
    let each = CALLERS / PROCESSES;
    let mut took: [Took; 3] = Default::default();
    for round in 0..rounds {
        for worker in &mut workers {
            worker.send(&format!("listen {each}")).await?;
            worker.expect_line("listens").await?;
        }
        workers[0].send("publish").await?;
        let (mut sent, mut received) = (None, Vec::new());
        for (number, worker) in workers.iter_mut().enumerate() {
            if number == 0 {
                // The answer of the publisher and the times of its tasks come in any order.
                let (at, times) = worker.sent_and_received().await?;
                sent = Some(at);
                drop(times);
            } else {
                received.extend_from_slice(&worker.expect_line("at").await?[1..]);
            }
        }
        took[0].add(sent.unwrap_or_default(), &received);
        // The processes load in turns.
        let first = usize::try_from(round % PROCESSES).unwrap_or(0);
        let key = 1_000_000 + round;
        workers[first].send(&format!("get {key} {each}")).await?;
        workers[first].expect_line("load").await?;
        for number in (0..workers.len()).filter(|number| *number != first) {
            workers[number].send(&format!("get {key} {each}")).await?;
            workers[number].expect_line("lease").await?;
        }
        workers[first].send("go").await?;
        let own = workers[first].expect_line("at").await?;
        took[1].add(own[0], &own[1..]);
        for number in (0..workers.len()).filter(|number| *number != first) {
            let others = workers[number].expect_line("at").await?;
            took[2].add(own[0], &others[1..]);
        }
    }
    let others = (PROCESSES - 1) * each;
    took[0].print(
        &format!("limit: `PUBLISH` and `Notify`, {others} in 3 other processes"),
        "–",
    );
    took[1].print(
        &format!("{each} in the process that loads, {others} in others"),
        "p99 ≤ 2 ms",
    );
    took[2].print(&format!("{others} in 3 other processes"), "p99 ≤ 5 ms");
    Ok(())
}
