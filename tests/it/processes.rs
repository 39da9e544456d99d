//! A fleet of real processes, and what signals do to it.

use std::time::Duration;

use tidegate::Cache;
use tokio::time::{Instant, sleep};

use crate::support::backend::{Backend, check_records, users};
use crate::support::eventually;
use crate::support::fleet::{Settings, Worker, commit, micros};
use crate::support::loader::Db;
use crate::support::node::{Node, answer, value};
use crate::support::proxy::{Proxy, ProxyMode};
use crate::support::server::{Reply, Server, is_value};

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
        worker.tell("get 1 250").await;
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
        worker.tell("row here").await;
    }
    let begun = micros();
    let (mut loads, mut took) = (0, Vec::new());
    for worker in &mut workers {
        assert_eq!(worker.hear("got 1").await, "here");
        let at = worker.hear("at").await;
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
    // Woken: the lease would have lasted for a minute.
    assert!(p99 < 5_000_000, "p99 {p99} µs");
    check_records(&server);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_process_that_ends_right_after_its_answer_leaves_a_value_and_no_lease() {
    let server = Server::start();
    let mut worker = Worker::start(&server, MINUTE).await;
    worker.tell("last 1").await;
    worker.hear("loading 1").await;
    worker.tell("row here").await;
    assert_eq!(worker.hear("got 1").await, "here");
    worker.ended().await;
    assert!(
        server
            .raw()
            .get(&users(1))
            .is_some_and(|record| is_value(&record))
    );
    check_records(&server);
}

/// How long after the death of a holder another process begins to load.
async fn replacement(backend: &Backend, lease: Duration) -> Duration {
    let mut holder = Worker::start(server(backend), lease).await;
    let db = Db::default();
    let b = backend
        .node_with(&db, |builder| builder.lease_ttl(lease))
        .await;
    b.get(2).await.expect("a load");
    holder.tell("get 1 1").await;
    holder.hear("loading 1").await;
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
    holder.tell("get 1 10").await;
    holder.hear("loading 1").await;
    holder.stop();
    db.write(1, "new");
    assert_eq!(value(b.get(1).await), "new");
    assert_eq!(
        (db.loads(), b.stats().fills, b.stats().lease_waits),
        (1, 1, 1)
    );
    holder.resume();
    holder.tell("row old").await;
    assert_eq!(
        holder.hear("got 1").await,
        "old",
        "its callers get an answer"
    );
    assert_eq!(
        holder.stats().await,
        [1, 0, 0, 1],
        "loads, waits, fills, refused fills"
    );
    assert_eq!(holder.ask("peek 1", "peek 1").await, "nothing");
    // L2 has what was loaded later.
    holder.tell("get 1 1").await;
    assert_eq!(holder.hear("got 1").await, "new");
    backend.check(&[&b]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_one_process_changes_the_other_drops() {
    let server = Server::start();
    let mut a = Worker::start(&server, MINUTE).await;
    let mut b = Worker::start(&server, MINUTE).await;
    a.tell("get 1 1").await;
    a.hear("loading 1").await;
    a.tell("row old").await;
    assert_eq!(a.hear("got 1").await, "old");
    b.tell("get 1 1").await;
    assert_eq!(b.hear("got 1").await, "old");
    assert_eq!(b.ask("peek 1", "peek 1").await, "old");

    a.ask("insert 1 new", "done").await;
    eventually("b drops it", async || {
        b.ask("peek 1", "peek 1").await == "nothing"
    })
    .await;
    b.tell("get 1 1").await;
    assert_eq!(b.hear("got 1").await, "new");
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

/// Versions whose invalidation has returned, and when.
type Told = Vec<(u64, u64)>;

/// The newest version whose invalidation had returned by then.
fn newest(told: &Told, by: u64) -> u64 {
    let later = told.partition_point(|(_, returned)| *returned <= by);
    later.checked_sub(1).map_or(0, |at| told[at].0)
}

/// What can be done to a process and its connections.
#[derive(Clone, Copy, Debug)]
enum Harm {
    /// Stopped for longer than a lease.
    Stop,
    /// Its connections stand and nothing comes out of them.
    BlackHole,
    /// Its connections are refused.
    Refusal,
    /// The server ends its subscription.
    Unsubscribed,
    /// The same, and it is stopped before it can notice, for less than a lease.
    UnsubscribedAndStopped,
}

/// A process asks for one key all the time, another one writes and invalidates, and the harms come
/// one after the other, `rounds` times. No answer of L1 may miss an invalidation that had returned
/// a lease and a grace before, and no other answer one that had returned at all.
async fn no_old_answers(lease: Duration, grace: Duration, harms: &[Harm], rounds: usize) {
    let server = Server::start();
    let (proxy, mut raw) = (Proxy::to(server.port()).await, server.raw());
    let truth = server.dir().join("truth");
    commit(&truth, "0");
    let mut reader = Worker::with(Settings {
        channel_lease: lease,
        degraded: grace,
        truth: Some(truth.clone()),
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
        let mut told = Told::new();
        for version in 1.. {
            commit(&truth, &version.to_string());
            writing.invalidate(&1).await.expect("it has its own wire");
            told.push((version, micros()));
            if stopped.try_recv() != Err(tokio::sync::oneshot::error::TryRecvError::Empty) {
                break;
            }
            sleep(Duration::from_millis(20)).await;
        }
        told
    });
    reader.tell("watch 1").await;
    for harm in harms.iter().cycle().take(harms.len() * rounds) {
        reader.ask("proven", "proven").await;
        let long = (lease + grace) * 3 / 2;
        match harm {
            Harm::Stop => {
                reader.stop();
                sleep(long).await;
                reader.resume();
            }
            Harm::BlackHole => {
                proxy.set(ProxyMode::BlackHole).await;
                sleep(long).await;
                proxy.set(ProxyMode::Pass).await;
            }
            Harm::Refusal => {
                proxy.set(ProxyMode::Refuse).await;
                sleep(long).await;
                proxy.set(ProxyMode::Pass).await;
            }
            Harm::Unsubscribed => {
                raw.ask("CLIENT KILL TYPE pubsub");
            }
            Harm::UnsubscribedAndStopped => {
                raw.ask("CLIENT KILL TYPE pubsub");
                reader.stop();
                sleep(lease / 2).await;
                reader.resume();
            }
        }
    }
    reader.ask("proven", "proven").await;
    stop.send(()).expect("it writes");
    let told = answer(writes).await;
    let saw = reader.ask("watched", "saw").await;
    let saw: Vec<&str> = saw.split(' ').collect();
    let allowed = u64::try_from((lease + grace).as_micros()).expect("a short time");
    let (mut hits, mut others, mut oldest) = (0, 0, 0);
    for entry in saw.chunks_exact(3) {
        let (asked, from) = (entry[0].parse::<u64>().expect("a time"), entry[1]);
        let version = entry[2].parse::<u64>().expect("a version");
        let (known, count) = if from == "L1" {
            (newest(&told, asked - allowed), &mut hits)
        } else {
            (newest(&told, asked), &mut others)
        };
        *count += 1;
        assert!(
            version >= known,
            "{from} answered {version}, and {known} had been told"
        );
        // How long the version after it had been told already.
        let missed = told.get(usize::try_from(version).expect("few versions"));
        oldest = oldest.max(missed.map_or(0, |(_, told)| asked.saturating_sub(*told)));
    }
    println!(
        "{} versions; {hits} answers of L1 and {others} others, the oldest {oldest} µs behind",
        told.len()
    );
    assert!(hits > 30 && others > 16, "{hits} and {others}");
    writer.check().await;
    check_records(&server);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_answer_of_l1_misses_an_invalidation_older_than_the_channel_lease_whatever_happens() {
    let harms = [
        Harm::Stop,
        Harm::BlackHole,
        Harm::Unsubscribed,
        Harm::UnsubscribedAndStopped,
    ];
    no_old_answers(Duration::from_millis(300), Duration::ZERO, &harms, 25).await;
}

/// What `invalidate_everywhere` counts on.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn with_a_grace_no_answer_misses_an_invalidation_older_than_the_lease_and_the_grace() {
    let harms = [Harm::Refusal, Harm::Stop, Harm::BlackHole];
    let time = Duration::from_millis(300);
    no_old_answers(time, time, &harms, 4).await;
}

/// What a process answers to one caller; it loads `row` if it has to.
#[cfg(target_os = "linux")]
async fn got(worker: &mut Worker, key: u64) -> String {
    worker.tell(&format!("get {key} 1")).await;
    worker.hear(&format!("got {key}")).await
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
        let (before, said) = (micros(), worker.ask("clock", "clock").await);
        let off = said.parse::<i64>().expect("a time") - i64::try_from(before).expect("now");
        let rounds = seconds * 1_000_000;
        assert!(
            (rounds..rounds + 60_000_000).contains(&off),
            "its clock is {off} µs off, not {seconds} s"
        );
        workers.push(worker);
    }
    // Each loads a key; for the others it is as old as it is, which is less than five minutes.
    for loads in 0..3 {
        let key = loads as u64;
        workers[loads].tell(&format!("get {key} 1")).await;
        workers[loads].hear(&format!("loading {key}")).await;
        workers[loads].tell("row old").await;
        workers[loads].hear(&format!("got {key}")).await;
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
    // Each hears of each.
    for changes in 0..3 {
        let key = changes as u64;
        let by = format!("insert {key} new");
        workers[changes].ask(&by, "done").await;
        for worker in &mut workers {
            eventually("it has heard", async || {
                worker
                    .ask(&format!("peek {key}"), &format!("peek {key}"))
                    .await
                    != "old"
            })
            .await;
            assert_eq!(got(worker, key).await, "new");
        }
    }
    // And one waits for the lease of another.
    workers[0].tell("get 9 1").await;
    workers[0].hear("loading 9").await;
    for waiter in &mut workers[1..] {
        waiter.tell("get 9 1").await;
        eventually("it waits", async || waiter.stats().await[1] == 1).await;
    }
    workers[0].tell("row here").await;
    for worker in &mut workers {
        assert_eq!(worker.hear("got 9").await, "here");
    }
    check_records(&server);
}
