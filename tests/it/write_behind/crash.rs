//! Write-behind when processes and servers die.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant, SystemTime};

use rusqlite::Connection;
use tokio::time::sleep;

use super::process::{PARTITIONS, Process, Role, log_of, open_log};
use super::{Stock, applied, worker, write};
use crate::support::eventually;
use crate::support::server::{Raw, Reply, Server};

/// Random numbers with a seed. `TIDEGATE_SEED` repeats a run.
struct Rng(u64);

impl Rng {
    fn new() -> Self {
        let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
        let now = since.map_or(0, |since| since.as_nanos() as u64);
        let seed = std::env::var("TIDEGATE_SEED").ok();
        let seed = seed.map_or(now, |seed| seed.parse().expect("a number"));
        println!("TIDEGATE_SEED={seed}");
        Self(seed)
    }

    /// A number below `most`.
    fn below(&mut self, most: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (mixed ^ (mixed >> 31)) % most
    }

    async fn pause(&mut self, most_ms: u64) {
        sleep(Duration::from_millis(self.below(most_ms))).await;
    }
}

type Id = (u64, u64);

/// An applied write, as the log holds it.
struct Row {
    pid: u32,
    /// Whether it is the first write of its batch.
    first: bool,
    partition: u16,
    epoch: u64,
    id: Id,
    key: u64,
    value: String,
}

fn rows(log: &Connection) -> Vec<Row> {
    let mut all = log
        .prepare("SELECT pid, first, partition, epoch, ms, seq, key, value FROM log ORDER BY at")
        .expect("a query");
    let rows = all.query_map((), |row| {
        Ok(Row {
            pid: row.get(0)?,
            first: row.get(1)?,
            partition: row.get(2)?,
            epoch: row.get::<_, i64>(3)? as u64,
            id: (row.get::<_, i64>(4)? as u64, row.get::<_, i64>(5)? as u64),
            key: row.get::<_, i64>(6)? as u64,
            value: row.get(7)?,
        })
    });
    let rows = rows.expect("rows");
    rows.collect::<Result<_, _>>().expect("rows")
}

fn logged(log: &Connection) -> i64 {
    log.query_row("SELECT coalesce(max(at), 0) FROM log", (), |row| row.get(0))
        .expect("a number")
}

fn backlog(raw: &mut Raw) -> i64 {
    let length = |partition| match raw.ask(&format!("XLEN tidegate:wb:{{stock:{partition}}}")) {
        Reply::Number(length) => length,
        other => panic!("XLEN: {other:?}"),
    };
    (0..PARTITIONS).map(length).sum()
}

/// Accepted writes: the version of each id, by key.
#[derive(Default)]
struct Accepted {
    by_key: BTreeMap<u64, BTreeMap<Id, u64>>,
    /// Writes whose writer got no answer.
    unknown: usize,
}

impl Accepted {
    fn record(&mut self, line: &str) {
        let words: Vec<&str> = line.split(' ').collect();
        let number = |at: usize| words[at].parse::<u64>().expect("a number");
        match words[0] {
            "ok" => {
                let (ms, seq) = words[3].split_once('-').expect("an id");
                let id = (ms.parse().expect("ms"), seq.parse().expect("seq"));
                let versions = self.by_key.entry(number(1)).or_default();
                // Each key has one writer, which waits for each answer.
                assert!(versions.last_key_value().is_none_or(|(last, _)| *last < id));
                versions.insert(id, number(2));
            }
            "unknown" => self.unknown += 1,
            "done" => {}
            other => panic!("what is {other}?"),
        }
    }

    fn of(&self, key: u64) -> (u64, u64) {
        let versions = self.by_key.get(&key);
        let last = versions.and_then(|versions| versions.last_key_value());
        (
            versions.map_or(0, |versions| versions.len() as u64),
            last.map_or(0, |(_, version)| *version),
        )
    }

    fn count(&self) -> usize {
        self.by_key.values().map(BTreeMap::len).sum()
    }
}

/// Compares the log with the accepted writes. Returns how many applications were repetitions.
fn check(rows: &[Row], accepted: &Accepted) -> usize {
    let mut applied: BTreeMap<Id, BTreeSet<(u16, u64)>> = BTreeMap::new();
    for row in rows {
        applied
            .entry(row.id)
            .or_default()
            .insert((row.partition, row.key));
    }
    // No accepted write is lost, and each was applied with its value.
    for (key, versions) in &accepted.by_key {
        let of_key: BTreeMap<Id, &str> = rows
            .iter()
            .filter(|row| row.key == *key)
            .map(|row| (row.id, row.value.as_str()))
            .collect();
        for (id, version) in versions {
            let value = of_key.get(id).copied();
            assert_eq!(value, Some(version.to_string().as_str()), "{key} {id:?}");
        }
        // The last applied write of a key is the last accepted one, or a later one whose answer its
        // writer did not live to see.
        let last = rows.iter().rev().find(|row| row.key == *key);
        let last = last.expect("it was applied").id;
        assert_eq!(
            Some(&last),
            of_key.last_key_value().map(|(id, _)| id),
            "{key}"
        );
    }
    // Within a partition, writes are applied in order. Only the first batch of another worker may
    // begin where the last batch began: that batch was not acknowledged, and all batches before it
    // were. It follows for each key that no write is left out and that no acknowledged write is
    // applied again.
    for partition in 0..PARTITIONS {
        let of_partition: Vec<&Row> = rows
            .iter()
            .filter(|row| row.partition == partition)
            .collect();
        let order: BTreeSet<Id> = of_partition.iter().map(|row| row.id).collect();
        let position: BTreeMap<Id, usize> = order.into_iter().zip(0..).collect();
        let (mut next, mut batch, mut epoch) = (0, 0, 0);
        for row in of_partition {
            let at = position[&row.id];
            assert!(row.epoch >= epoch, "epoch {} after {epoch}", row.epoch);
            let repeats = row.epoch > epoch && at == batch;
            assert!(
                at == next || repeats,
                "partition {partition}: {at} after {next}, {batch}"
            );
            if row.first {
                batch = at;
            }
            (next, epoch) = (at + 1, row.epoch);
        }
    }
    // An id is unique within its partition.
    let ids: BTreeSet<(u16, Id)> = rows.iter().map(|row| (row.partition, row.id)).collect();
    rows.len() - ids.len()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn workers_and_writers_that_are_killed_lose_no_accepted_write_and_no_order() {
    const KEYS: u64 = 200;
    const VERSIONS: u64 = 50;
    let lease = Duration::from_millis(700);
    let server = Server::start();
    let (mut raw, log) = (server.raw(), open_log(&log_of(server.dir())));
    let mut rng = Rng::new();
    let begun = Instant::now();

    let mut accepted = Accepted::default();
    let (mut workers_killed, mut writers_killed) = (0, 0);
    let mut workers = [
        Process::start(&server, Role::Logging, lease).await,
        Process::start(&server, Role::Logging, lease).await,
    ];
    let mut writing = true;
    while writing || backlog(&mut raw) > 0 {
        let mut writer = None;
        if writing {
            let mut process = Process::start(&server, Role::Writer, lease).await;
            let mut orders = String::new();
            for key in 0..KEYS {
                let (count, version) = accepted.of(key);
                if count < VERSIONS {
                    // The version after the last one may have been on its way, so the writer skips
                    // it.
                    let first = version + 2;
                    orders.push_str(&format!("{key} {first} {}\n", first + VERSIONS - count - 1));
                }
            }
            process.send(&format!("{orders}go")).await;
            writer = Some(process);
        }
        // A worker dies at a random moment after any worker has applied a write.
        let before = logged(&log);
        let dies = usize::try_from(rng.below(2)).expect("one or two");
        let moment = Duration::from_millis(rng.below(120));
        let kill_writer = writers_killed < 6;
        // Soon enough that six writers are killed before everything is written.
        let mut writer_lives = rng.below(1_500);
        let writes = async {
            let Some(mut process) = writer else {
                return true;
            };
            while !kill_writer || writer_lives > 0 {
                let line = process.next().await.expect("the writer lives");
                accepted.record(&line);
                if line == "done" {
                    return false;
                }
                writer_lives = writer_lives.saturating_sub(1);
            }
            process.kill().await;
            // What the writer had printed before its death still counts.
            while let Some(line) = process.next().await {
                if line.matches(' ').count() == 3 {
                    accepted.record(&line);
                }
            }
            true
        };
        let kills = async {
            let deadline = tokio::time::Instant::now() + Duration::from_secs(2);
            while logged(&log) == before && tokio::time::Instant::now() < deadline {
                sleep(Duration::from_millis(2)).await;
            }
            sleep(moment).await;
            workers[dies].kill().await;
        };
        let (wait_for_look_ups, ()) = tokio::join!(writes, kills);
        workers_killed += 1;
        if writing && wait_for_look_ups {
            writers_killed += 1;
        }
        writing = writing && wait_for_look_ups;
        workers[dies] = Process::start(&server, Role::Logging, lease).await;
        rng.pause(50).await;
    }
    for mut worker in workers {
        worker.ask("close", "closed").await;
    }
    let rows = rows(&log);
    let repeated = check(&rows, &accepted);
    println!(
        "{} accepted, {} unknown to their writer, {} applied, {repeated} of them again; {workers_killed} workers \
         and {writers_killed} writers killed; {:?}",
        accepted.count(),
        accepted.unknown,
        rows.len() - repeated,
        begun.elapsed()
    );
    assert!(accepted.count() >= 10_000 && workers_killed >= 7 && writers_killed == 6);
    assert_eq!(raw.keys("*:dead"), [""; 0]);
    // The worker that was killed last may still be registered.
    eventually("nothing is left", async || {
        raw.keys("*:lease").is_empty() && raw.keys("*:workers").is_empty()
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_workers_share_the_partitions_and_one_takes_over_when_the_other_dies() {
    let server = Server::start();
    let (mut raw, log) = (server.raw(), open_log(&log_of(server.dir())));
    let stock: Stock = {
        let redis = super::connect(&server).await;
        let builder = tidegate::write_behind::WriteBehind::writer("stock", redis);
        builder.partitions(PARTITIONS).open().await.expect("opens")
    };
    let lease = Duration::from_secs(3);
    let mut a = Process::start(&server, Role::Logging, lease).await;
    for _ in 0..PARTITIONS {
        a.expect_line("claimed").await;
    }
    let mut b = Process::start(&server, Role::Logging, lease).await;
    // The first worker gives up the partitions beyond its share and keeps the rest.
    for _ in 0..PARTITIONS / 2 {
        b.expect_line("claimed").await;
    }
    let mut accepted = Accepted::default();
    let mut version = 0;
    let mut writes = async |accepted: &mut Accepted| {
        version += 1;
        for key in 0..40 {
            let id = write(&stock, key, &version.to_string()).await;
            accepted.record(&format!("ok {key} {version} {id}"));
        }
    };
    writes(&mut accepted).await;
    eventually("it is applied", async || backlog(&mut raw) == 0).await;
    let by: BTreeSet<(u32, u16)> = rows(&log)
        .iter()
        .map(|row| (row.pid, row.partition))
        .collect();
    for worker in [&a, &b] {
        let share = by.iter().filter(|(pid, _)| *pid == worker.id()).count();
        assert_eq!(share, usize::from(PARTITIONS / 2), "{by:?}");
    }
    a.kill().await;
    writes(&mut accepted).await;
    // Also in the partitions of the dead worker, which the other one must have taken over.
    eventually("it is applied", async || backlog(&mut raw) == 0).await;
    check(&rows(&log), &accepted);
    b.ask("close", "closed").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_dies_and_comes_back_with_its_file_goes_on_where_it_was() {
    let mut server = Server::start_durable();
    let (stock, mut calls) = worker(&server, |builder| builder.batch_size(3)).await;
    for value in ["a", "b", "c", "d"] {
        write(&stock, 1, value).await;
    }
    let mut applied_ids = Vec::new();
    while applied_ids.len() < 2 {
        let call = calls.next().await;
        applied_ids.extend(call.ids.iter().copied());
        let last = applied_ids.len() >= 2;
        if last {
            server.kill();
        }
        // The sink has succeeded, but the acknowledgement fails.
        call.ok();
    }
    server.restart();
    eventually("it is connected again", async || {
        stock.write(&1, &"e".to_owned()).await.is_ok()
    })
    .await;
    // Only writes without an acknowledgement are repeated, and in order.
    let mut next = applied_ids.len();
    let mut order = applied_ids.clone();
    let mut last = String::new();
    while last != "e" {
        let call = calls.next().await;
        for (id, write) in call.ids.iter().zip(&call.given) {
            match order.iter().position(|applied_ids| applied_ids == id) {
                Some(at) => assert!(at <= next, "none is left out"),
                None => order.push(*id),
            }
            next = order
                .iter()
                .position(|applied_ids| applied_ids == id)
                .map_or(0, |at| at + 1);
            last = write.1.clone().unwrap_or_default();
        }
        call.ok();
    }
    assert!(order.is_sorted(), "{order:?}");
    assert!(order.len() >= 5);
    applied(&mut server.raw()).await;
    stock.close().await;
}
