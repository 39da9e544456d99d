//! A fleet whose server comes back: what it asks of the server, and of the source.

use std::time::Duration;

use tokio::task::JoinSet;
use tokio::time::{Instant, sleep};

use crate::support::backend::check_records;
use crate::support::fleet::{Settings, Worker, commit};
use crate::support::server::{Raw, Server};
use crate::support::within;

const PROCESSES: u64 = 50;
/// Keys that all of them ask for all the time.
const HOT: u64 = 10;
/// Long enough for the longest pause between two attempts to connect, twice.
const OUTAGE: Duration = Duration::from_millis(2500);
const MINUTE: Duration = Duration::from_secs(60);

/// Does it to all of them at once.
async fn all<T: Send + 'static, F>(
    workers: Vec<Worker>,
    what: fn(Worker) -> F,
) -> (Vec<Worker>, Vec<T>)
where
    F: Future<Output = (Worker, T)> + Send + 'static,
{
    let mut tasks: JoinSet<_> = workers.into_iter().map(what).collect();
    let (mut back, mut said) = (Vec::new(), Vec::new());
    while let Some(done) = within("a worker answers", tasks.join_next()).await {
        let (worker, answer) = done.expect("a worker");
        back.push(worker);
        said.push(answer);
    }
    (back, said)
}

async fn loads(workers: Vec<Worker>) -> (Vec<Worker>, u64) {
    let (workers, loads) = all(workers, |mut worker| async {
        let stats = worker.stats().await;
        (worker, stats[0])
    })
    .await;
    (workers, loads.iter().sum())
}

/// Everyone uses L1, and has asked for all keys since.
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
                worker.ask("turned", "turned").await;
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

/// When connections came, in hundreds of milliseconds.
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
async fn fifty_processes_that_come_back_storm_neither_the_server_nor_the_source() {
    let mut server = Server::start();
    let truth = server.dir().join("truth");
    commit(&truth, "row");
    let settings = Settings {
        // What was read before the outage is answered until it ends.
        degraded: MINUTE,
        truth: Some(truth),
        ..Settings::new(server.port(), MINUTE)
    };
    let mut starting = JoinSet::new();
    for _ in 0..PROCESSES {
        starting.spawn(Worker::with(settings.clone()));
    }
    let mut workers = starting.join_all().await;
    for worker in &mut workers {
        worker.tell(&format!("hot {HOT} 50")).await;
    }
    workers = proven(workers).await;
    let (mut workers, cold) = loads(workers).await;
    assert_eq!(cold, HOT, "one load of each key in the fleet");

    server.kill();
    let killed = Instant::now();
    sleep(OUTAGE / 2).await;
    // One that nobody has asked for before: everyone loads it for himself.
    for worker in &mut workers {
        worker.tell(&format!("get {HOT} 1")).await;
    }
    let (mut workers, _) = all(workers, |mut worker| async {
        let got = worker.hear(&format!("got {HOT}")).await;
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
        worker.tell(&format!("get {HOT} 1")).await;
    }
    let (workers, _) = all(workers, |mut worker| async {
        let got = worker.hear(&format!("got {HOT}")).await;
        (worker, got)
    })
    .await;
    let (workers, gets) = all(workers, |mut worker| async {
        let gets: u64 = worker
            .ask("cool", "cooled")
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
    // What was in L1 is answered: the other key, by everyone for himself.
    assert!(alone <= PROCESSES + HOT, "{alone} loads while down");
    // The server is empty: each key once in the fleet. As often again is for a machine that stops.
    assert!(again <= 2 * (HOT + 1), "{again} loads afterwards");
    let each = HOT + 1;
    for (command, of_each_process) in [
        // The line to the bus, and once more if it was not ready.
        ("subscribe", 2),
        ("ping", 4),
        // Both connections, and probes.
        ("time", 8),
        // A key is read, looked at twice where its lease is asked for, and read when that was waited for.
        ("get", 4 * each),
        // Leases, and beats.
        ("evalsha", each + 10),
        // Who asks before the server knows a script: a beat, a lease, a fill.
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
