//! A fleet whose server comes back: what its reconnection costs the server and the source.

use std::time::Duration;

use tokio::task::JoinSet;
use tokio::time::{Instant, sleep};

use crate::support::backend::check_records;
use crate::support::fleet::{Settings, Worker, commit};
use crate::support::server::{Raw, Server};
use crate::support::within;

const PROCESSES: u64 = 50;
/// The number of keys that all processes ask for all the time.
const HOT: u64 = 10;
/// Twice the longest pause between two attempts to connect.
const OUTAGE: Duration = Duration::from_millis(2500);
const MINUTE: Duration = Duration::from_secs(60);

/// Does the same with all workers at once.
async fn all<T: Send + 'static, F>(
    workers: Vec<Worker>,
    what: fn(Worker) -> F,
) -> (Vec<Worker>, Vec<T>)
where
    F: Future<Output = (Worker, T)> + Send + 'static,
{
    let mut tasks: JoinSet<_> = workers.into_iter().map(what).collect();
    let (mut back, mut answers) = (Vec::new(), Vec::new());
    while let Some(done) = within("a worker answers", tasks.join_next()).await {
        let (worker, answer) = done.expect("a worker");
        back.push(worker);
        answers.push(answer);
    }
    (back, answers)
}

async fn loads(workers: Vec<Worker>) -> (Vec<Worker>, u64) {
    let (workers, loads) = all(workers, |mut worker| async {
        let stats = worker.stats().await;
        (worker, stats[0])
    })
    .await;
    (workers, loads.iter().sum())
}

/// Waits until all workers use L1 and have asked for all keys since.
async fn proven(mut workers: Vec<Worker>) -> Vec<Worker> {
    let deadline = Instant::now() + MINUTE;
    loop {
        let (back, channels) = all(workers, |mut worker| async {
            let channel = worker.ask("channel", "channel").await;
            (worker, channel)
        })
        .await;
        if channels.iter().all(|channel| channel == "Proven") {
            return all(back, |mut worker| async {
                worker.ask("round", "round").await;
                (worker, ())
            })
            .await
            .0;
        }
        assert!(
            Instant::now() < deadline,
            "some do not come back: {channels:?}"
        );
        workers = back;
        sleep(Duration::from_millis(20)).await;
    }
}

/// New connections in each tenth of a second.
async fn arrivals(mut raw: Raw) -> Vec<u64> {
    let mut total = || -> u64 {
        let total = raw.info("total_connections_received").expect("a number");
        total.parse().expect("a number")
    };
    let (mut before, mut came) = (total(), Vec::new());
    for _ in 0..25 {
        sleep(Duration::from_millis(100)).await;
        let now = total();
        came.push(now - before);
        before = now;
    }
    came
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn fifty_processes_that_reconnect_overload_neither_the_server_nor_the_source() {
    let mut server = Server::start();
    let source_file = server.dir().join("truth");
    commit(&source_file, "row");
    let settings = Settings {
        // Entries from before the outage are answered until its end.
        degraded: MINUTE,
        source_file: Some(source_file),
        ..Settings::new(server.port(), MINUTE)
    };
    let mut starting = JoinSet::new();
    for _ in 0..PROCESSES {
        starting.spawn(Worker::with(settings.clone()));
    }
    let mut workers = starting.join_all().await;
    for worker in &mut workers {
        worker.send(&format!("poll {HOT} 50")).await;
    }
    workers = proven(workers).await;
    let (mut workers, cold) = loads(workers).await;
    assert_eq!(cold, HOT, "one load of each key in the fleet");

    server.kill();
    let killed = Instant::now();
    sleep(OUTAGE / 2).await;
    // No process has asked for this key before, so each loads it for itself.
    for worker in &mut workers {
        worker.send(&format!("get {HOT} 1")).await;
    }
    let (mut workers, _) = all(workers, |mut worker| async {
        let got = worker.expect_line(&format!("got {HOT}")).await;
        (worker, got)
    })
    .await;
    sleep(OUTAGE.saturating_sub(killed.elapsed())).await;
    let down;
    (workers, down) = loads(workers).await;
    server.restart();
    let came = tokio::spawn(arrivals(server.raw()));
    workers = proven(workers).await;
    for worker in &mut workers {
        worker.send(&format!("get {HOT} 1")).await;
    }
    let (workers, _) = all(workers, |mut worker| async {
        let got = worker.expect_line(&format!("got {HOT}")).await;
        (worker, got)
    })
    .await;
    let (workers, gets) = all(workers, |mut worker| async {
        let gets: u64 = worker
            .ask("stop_polling", "polled")
            .await
            .parse()
            .expect("a number");
        (worker, gets)
    })
    .await;
    let (workers, back) = loads(workers).await;
    let came = came.await.expect("a list");
    let mut raw = server.raw();
    let (alone, again) = (down - cold, back - down);
    println!(
        "{PROCESSES} processes, {HOT} keys, {} look-ups: {cold} loads cold, {alone} while down, \
         {again} afterwards; connections in each tenth of a second {came:?}",
        gets.iter().sum::<u64>(),
    );
    // L1 answers the hot keys. Each process loads the other key once.
    assert!(alone <= PROCESSES + HOT, "{alone} loads while down");
    // The server is empty: the fleet loads each key once. Twice that is allowed on a machine that
    // pauses.
    assert!(again <= 2 * (HOT + 1), "{again} loads afterwards");
    let each = HOT + 1;
    for (command, of_each_process) in [
        // The subscription, and once more if the server was not ready.
        ("subscribe", 2),
        ("ping", 4),
        // Both connections of each process, and probes.
        ("time", 8),
        // A key is read, read twice by the acquire script, and read again after a wait.
        ("get", 4 * each),
        // Leases and heartbeats.
        ("evalsha", each + 10),
        // Requests before the server knows a script: a heartbeat, a lease, a fill.
        ("eval", 3),
        ("publish", 10),
        ("script|load", 0),
    ] {
        let (calls, most) = (raw.calls(command), PROCESSES * of_each_process);
        println!("{command}: {calls}, at most {most}");
        assert!(calls <= most, "{command}: {calls}, not {most}");
    }
    drop(workers);
    check_records(&server);
}
