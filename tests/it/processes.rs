//! A fleet of real processes that are killed, stopped and cut off.

use std::time::Duration;

use tidegate::Cache;
use tokio::time::{Instant, sleep};

use crate::support::backend::{Backend, check_records, users};
use crate::support::eventually;
use crate::support::fleet::{Settings, Worker, commit, micros};
use crate::support::loader::Db;
use crate::support::node::{Node, answer, value};
use crate::support::proxy::{Proxy, ProxyMode};
use crate::support::server::{Raw, Reply, Server, is_value};

const MINUTE: Duration = Duration::from_secs(60);

fn server(backend: &Backend) -> &Server {
    match backend {
        Backend::Redis(server) => server,
        Backend::InProcess(_) => unreachable!("processes share a server"),
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn eight_processes_with_250_callers_each_share_one_load_of_a_cold_key() {
    let server = Server::start();
    let mut workers = Vec::new();
    for _ in 0..8 {
        workers.push(Worker::start(&server, MINUTE).await);
    }
    for worker in &mut workers {
        worker.send("get 1 250").await;
    }
    eventually("one loads and the others wait", async || {
        let (mut loads, mut waits) = (0, 0);
        for worker in &mut workers {
            let stats = worker.stats().await;
            loads += stats[0];
            waits += stats[1];
        }
        assert!(loads <= 1, "{loads} loads");
        (loads, waits) == (1, 7)
    })
    .await;
    for worker in &mut workers {
        worker.send("row here").await;
    }
    let begun = micros();
    let (mut loads, mut took) = (0, Vec::new());
    for worker in &mut workers {
        assert_eq!(worker.expect_line("got 1").await, "here");
        let at = worker.expect_line("at").await;
        took.extend(
            at.split(' ')
                .map(|at| at.parse::<u64>().expect("a number").saturating_sub(begun)),
        );
        loads += worker.stats().await[0];
    }
    took.sort_unstable();
    assert_eq!((loads, took.len()), (1, 2_000));
    let (p50, p99) = (took[1_000], took[1_980]);
    println!("2,000 callers in 8 processes: p50 {p50} µs, p99 {p99} µs after the end of the load");
    // Without the wake-up, the waiters would wait for a minute, the TTL of the lease.
    assert!(p99 < 5_000_000, "p99 {p99} µs");
    check_records(&server);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_process_that_ends_right_after_its_answer_leaves_a_value_and_no_lease() {
    let server = Server::start();
    let mut worker = Worker::start(&server, MINUTE).await;
    worker.send("last 1").await;
    worker.expect_line("loading 1").await;
    worker.send("row here").await;
    assert_eq!(worker.expect_line("got 1").await, "here");
    worker.ended().await;
    assert!(
        server
            .raw()
            .get(&users(1))
            .is_some_and(|record| is_value(&record))
    );
    check_records(&server);
}

/// The time from the death of a holder to the beginning of a load in another process.
async fn replacement(backend: &Backend, lease: Duration) -> Duration {
    let mut holder = Worker::start(server(backend), lease).await;
    let db = Db::default();
    let b = backend
        .node_with(&db, |builder| builder.lease_ttl(lease))
        .await;
    b.get(2).await.expect("a load");
    holder.send("get 1 1").await;
    holder.expect_line("loading 1").await;
    let gate = db.gate();
    let waiter = b.caller(1).await;
    eventually("the other process waits", async || {
        b.stats().lease_waits == 1
    })
    .await;
    let died = Instant::now();
    holder.kill().await;
    gate.reached().await;
    let replaced = died.elapsed();
    gate.open();
    assert_eq!(value(answer(waiter).await), "row 1");
    assert_eq!(db.loads(), 2);
    backend.check(&[&b]).await;
    replaced
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_holder_that_is_killed_is_replaced_when_its_lease_ends() {
    let lease = Duration::from_secs(1);
    let replaced = replacement(&Backend::redis(), lease).await;
    println!("replaced after {replaced:?}");
    assert!(
        replaced < lease + Duration::from_millis(200),
        "{replaced:?}"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_dead_holder_is_replaced_in_time_on_a_server_full_of_expiring_keys() {
    let backend = Backend::redis();
    let mut raw = server(&backend).raw();
    let many =
        "for i = 1, 200000 do redis.call('SET', 'other:' .. i, 'x', 'PX', 500 + i) end return 1";
    raw.send(&[b"EVAL", many.as_bytes(), b"0"]);
    let lease = Duration::from_secs(1);
    let replaced = replacement(&backend, lease).await;
    let left = raw.ask("DBSIZE");
    assert!(
        matches!(left, Reply::Number(100_000..)),
        "not many keys: {left:?}"
    );
    println!("replaced after {replaced:?}");
    assert!(
        replaced < lease + Duration::from_millis(200),
        "{replaced:?}"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_holder_that_is_stopped_is_replaced_and_cannot_fill_when_it_goes_on() {
    let backend = Backend::redis();
    let lease = Duration::from_millis(500);
    let mut holder = Worker::start(server(&backend), lease).await;
    let db = Db::default();
    let b = backend
        .node_with(&db, |builder| builder.lease_ttl(lease))
        .await;
    holder.send("get 1 10").await;
    holder.expect_line("loading 1").await;
    holder.stop();
    db.write(1, "new");
    assert_eq!(value(b.get(1).await), "new");
    assert_eq!(
        (db.loads(), b.stats().fills, b.stats().lease_waits),
        (1, 1, 1)
    );
    holder.resume();
    holder.send("row old").await;
    assert_eq!(
        holder.expect_line("got 1").await,
        "old",
        "its callers get an answer"
    );
    assert_eq!(
        holder.stats().await,
        [1, 0, 0, 1],
        "loads, waits, fills, refused fills"
    );
    assert_eq!(holder.ask("peek 1", "peek 1").await, "nothing");
    // L2 holds the value that was loaded later.
    holder.send("get 1 1").await;
    assert_eq!(holder.expect_line("got 1").await, "new");
    backend.check(&[&b]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_change_by_one_process_reaches_the_l1_of_the_other() {
    let server = Server::start();
    let mut a = Worker::start(&server, MINUTE).await;
    let mut b = Worker::start(&server, MINUTE).await;
    a.send("get 1 1").await;
    a.expect_line("loading 1").await;
    a.send("row old").await;
    assert_eq!(a.expect_line("got 1").await, "old");
    b.send("get 1 1").await;
    assert_eq!(b.expect_line("got 1").await, "old");
    assert_eq!(b.ask("peek 1", "peek 1").await, "old");

    a.ask("insert 1 new", "done").await;
    eventually("b drops it", async || {
        b.ask("peek 1", "peek 1").await == "nothing"
    })
    .await;
    b.send("get 1 1").await;
    assert_eq!(b.expect_line("got 1").await, "new");
    assert_eq!(
        a.ask("peek 1", "peek 1").await,
        "new",
        "what it inserted itself it keeps"
    );

    b.ask("invalidate 1", "done").await;
    assert_eq!(b.ask("peek 1", "peek 1").await, "nothing");
    eventually("a drops it", async || {
        a.ask("peek 1", "peek 1").await == "nothing"
    })
    .await;
    assert_eq!(
        b.stats().await,
        [0; 4],
        "loads, waits, fills, refused fills"
    );
    check_records(&server);
}

/// Versions whose invalidation has returned, and when it did.
type Invalidations = Vec<(u64, u64)>;

/// The newest version whose invalidation had returned by a given time.
fn newest(invalidations: &Invalidations, by: u64) -> u64 {
    let later = invalidations.partition_point(|(_, returned)| *returned <= by);
    later.checked_sub(1).map_or(0, |at| invalidations[at].0)
}

/// What a test does to a process or to its connections.
#[derive(Clone, Copy, Debug)]
enum Fault {
    /// The process is stopped for longer than a lease.
    Stop,
    /// Its connections stay open and deliver nothing.
    BlackHole,
    /// Its connections are refused.
    Refusal,
    /// The server closes its subscription.
    Unsubscribed,
    /// The server closes its subscription, and the process is stopped before it notices, for less
    /// than a lease.
    UnsubscribedAndStopped,
}

/// Makes one fault of a process, or of its connections, and ends it.
async fn make_fault(
    fault: Fault,
    lease: Duration,
    grace: Duration,
    reader: &Worker,
    proxy: &Proxy,
    raw: &mut Raw,
) {
    let long = (lease + grace) * 3 / 2;
    match fault {
        Fault::Stop => {
            reader.stop();
            sleep(long).await;
            reader.resume();
        }
        Fault::BlackHole => {
            proxy.set(ProxyMode::BlackHole).await;
            sleep(long).await;
            proxy.set(ProxyMode::Pass).await;
        }
        Fault::Refusal => {
            proxy.set(ProxyMode::Refuse).await;
            sleep(long).await;
            proxy.set(ProxyMode::Pass).await;
        }
        Fault::Unsubscribed => {
            raw.ask("CLIENT KILL TYPE pubsub");
        }
        Fault::UnsubscribedAndStopped => {
            raw.ask("CLIENT KILL TYPE pubsub");
            reader.stop();
            sleep(lease / 2).await;
            reader.resume();
        }
    }
}

/// Checks `time source version` of each answer against the invalidations.
fn check_answers(answers: &str, invalidations: &Invalidations, allowed: Duration) {
    let answers: Vec<&str> = answers.split(' ').collect();
    let allowed = u64::try_from(allowed.as_micros()).expect("a short time");
    let (mut hits, mut others, mut oldest) = (0, 0, 0);
    for entry in answers.chunks_exact(3) {
        let (asked, from) = (entry[0].parse::<u64>().expect("a time"), entry[1]);
        let version = entry[2].parse::<u64>().expect("a version");
        let (known, count) = if from == "L1" {
            (newest(invalidations, asked - allowed), &mut hits)
        } else {
            (newest(invalidations, asked), &mut others)
        };
        *count += 1;
        assert!(
            version >= known,
            "{from} answered {version}, after {known} was invalidated"
        );
        // How long the next version had been invalidated already.
        let missed = invalidations.get(usize::try_from(version).expect("few versions"));
        oldest =
            oldest.max(missed.map_or(0, |(_, invalidations)| asked.saturating_sub(*invalidations)));
    }
    println!(
        "{} versions; {hits} answers of L1 and {others} others, the oldest {oldest} µs behind",
        invalidations.len()
    );
    assert!(hits > 30 && others > 16, "{hits} and {others}");
}

/// One process asks for a key all the time, another one writes and invalidates it, and the faults
/// follow each other, `rounds` times. No answer of L1 may miss an invalidation that returned a
/// channel lease and a grace period before. No other answer may miss an invalidation that had
/// returned.
async fn no_old_answers(lease: Duration, grace: Duration, faults: &[Fault], rounds: usize) {
    let server = Server::start();
    let (proxy, mut raw) = (Proxy::to(server.port()).await, server.raw());
    let source_file = server.dir().join("truth");
    commit(&source_file, "0");
    let mut reader = Worker::with(Settings {
        channel_lease: lease,
        degraded: grace,
        source_file: Some(source_file.clone()),
        ..Settings::new(proxy.port(), lease)
    })
    .await;
    let writer = {
        let redis = server
            .long_timeout_builder()
            .connect()
            .await
            .expect("connect");
        let builder = Cache::builder("users", Db::default()).l2(redis);
        Node::new(builder.build().expect("a cache"))
    };
    let (stop, mut stopped) = tokio::sync::oneshot::channel::<()>();
    let writing = writer.clone();
    let writes = tokio::spawn(async move {
        let mut invalidations = Invalidations::new();
        for version in 1.. {
            commit(&source_file, &version.to_string());
            writing
                .invalidate(&1)
                .await
                .expect("it has its own connection");
            invalidations.push((version, micros()));
            if stopped.try_recv() != Err(tokio::sync::oneshot::error::TryRecvError::Empty) {
                break;
            }
            sleep(Duration::from_millis(20)).await;
        }
        invalidations
    });
    reader.send("watch 1").await;
    for fault in faults.iter().cycle().take(faults.len() * rounds) {
        reader.ask("l1_hit", "l1_hit").await;
        make_fault(*fault, lease, grace, &reader, &proxy, &mut raw).await;
    }
    reader.ask("l1_hit", "l1_hit").await;
    stop.send(()).expect("it writes");
    let invalidations = answer(writes).await;
    let answers = reader.ask("watched", "saw").await;
    check_answers(&answers, &invalidations, lease + grace);
    writer.check().await;
    check_records(&server);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_answer_of_l1_misses_an_invalidation_older_than_the_channel_lease_whatever_happens() {
    let faults = [
        Fault::Stop,
        Fault::BlackHole,
        Fault::Unsubscribed,
        Fault::UnsubscribedAndStopped,
    ];
    no_old_answers(Duration::from_millis(300), Duration::ZERO, &faults, 25).await;
}

/// The bound that `invalidate_everywhere` relies on.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn with_a_grace_no_answer_misses_an_invalidation_older_than_the_lease_and_the_grace() {
    let faults = [Fault::Refusal, Fault::Stop, Fault::BlackHole];
    let time = Duration::from_millis(300);
    no_old_answers(time, time, &faults, 4).await;
}

/// What a process answers to one caller. The process loads `row` if it has to.
#[cfg(target_os = "linux")]
async fn got(worker: &mut Worker, key: u64) -> String {
    worker.send(&format!("get {key} 1")).await;
    worker.expect_line(&format!("got {key}")).await
}

#[cfg(target_os = "linux")]
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn clocks_that_are_a_quarter_of_an_hour_off_change_nothing() {
    use crate::support::clock;

    let server = Server::start();
    let mut raw = server.raw();
    let (library, quarter) = (clock::library(server.dir()), 15 * 60);
    let mut workers = Vec::new();
    for seconds in [quarter, -quarter, 0] {
        let settings = Settings {
            env: clock::ahead(&library, seconds),
            ..Settings::new(server.port(), MINUTE)
        };
        let mut worker = Worker::with(settings).await;
        let (before, clock) = (micros(), worker.ask("clock", "clock").await);
        let off = clock.parse::<i64>().expect("a time") - i64::try_from(before).expect("now");
        let rounds = seconds * 1_000_000;
        assert!(
            (rounds..rounds + 60_000_000).contains(&off),
            "its clock is {off} µs off, not {seconds} s"
        );
        workers.push(worker);
    }
    // Each process loads a key. All others take the entry for as old as it is, which is less than
    // the TTL of five minutes.
    for loads in 0..3 {
        let key = loads as u64;
        workers[loads].send(&format!("get {key} 1")).await;
        workers[loads].expect_line(&format!("loading {key}")).await;
        workers[loads].send("row old").await;
        workers[loads].expect_line(&format!("got {key}")).await;
        for worker in &mut workers {
            assert_eq!(got(worker, key).await, "old");
        }
        let record = raw.get(&users(key)).expect("a record");
        let created = u64::from_le_bytes(record[52..60].try_into().expect("eight bytes"));
        let off = created.abs_diff(micros() / 1_000);
        assert!(off < 60_000, "created {off} ms from now");
    }
    for worker in &mut workers {
        assert_eq!(worker.stats().await[0], 1, "loads");
    }
    // Each process sees the changes of each other one.
    for changes in 0..3 {
        let key = changes as u64;
        let by = format!("insert {key} new");
        workers[changes].ask(&by, "done").await;
        for worker in &mut workers {
            eventually("the change has arrived", async || {
                worker
                    .ask(&format!("peek {key}"), &format!("peek {key}"))
                    .await
                    != "old"
            })
            .await;
            assert_eq!(got(worker, key).await, "new");
        }
    }
    // Two processes wait for the lease of the third.
    workers[0].send("get 9 1").await;
    workers[0].expect_line("loading 9").await;
    for waiter in &mut workers[1..] {
        waiter.send("get 9 1").await;
        eventually("it waits", async || waiter.stats().await[1] == 1).await;
    }
    workers[0].send("row here").await;
    for worker in &mut workers {
        assert_eq!(worker.expect_line("got 9").await, "here");
    }
    check_records(&server);
}
