//! Look-ups that the memory of this process answers.

use std::sync::{Arc, Barrier};
use std::time::Duration;

use rand::RngExt;
use tokio::runtime::Runtime;

use super::{Participant, Scale, ask_all, runtime};
use crate::contenders::{Kind, contenders_where};
use crate::peer::{BoxError, Draws, Instance};
use crate::source::{ABSENT, Source, name_of};
use crate::table::{Table, Values, count, nanos, number};

const METHOD: &str = "The time of one get-or-load that finds a fresh value of about 100 bytes in the memory of the \
    process. Medians and quartiles of 9 rounds with 90,000 look-ups each, and the median multiple of \
    `moka::sync::Cache::get` in the same rounds. Keys are drawn beforehand: always the same one, or by Zipf's law \
    (exponent 0.99) from 1,000 or 100,000. The instance always holds all 100,000 keys and has room for twice as many. \
    With two threads, the time is that of the slower one. Every cache has its Redis behind it, except cached, which has \
    its memory store alone. No measured look-up loads.";

const HEAD: [&str; 5] = [
    "keys",
    "cache",
    "median, ns",
    "quartiles, ns",
    "multiple of moka",
];

struct Column {
    head: &'static str,
    ids: Vec<u64>,
    threads: usize,
    by_name: bool,
}

pub(super) fn measure(scale: Scale) -> Result<Vec<Table>, BoxError> {
    let keys = scale.pick(100_000, 2_000);
    let columns = columns(keys, scale.pick(100_000, 2_000));
    let names: Vec<String> = (0..keys).map(name_of).collect();
    let runtime = runtime()?;
    let participants = Participant::all(
        contenders_where(|one| one.l1 && one.kind != Kind::Outage),
        Source::new,
    )?;
    let filled: Vec<Instance> = participants
        .iter()
        .map(|participant| fill(&runtime, participant, &names))
        .collect::<Result<_, _>>()?;
    let mut measured = vec![vec![Values::default(); columns.len()]; participants.len()];
    let mut loads = vec![0; columns.len() * participants.len()];
    for _ in 0..scale.pick(9, 1) {
        for (at, column) in columns.iter().enumerate() {
            for (who, peer) in filled.iter().enumerate() {
                // A warm-up, because the other contenders have used the CPU's caches.
                let (warm, ids) = column.ids.split_at(column.ids.len() / 10);
                side_by_side(peer, column, warm, &names)?;
                let before = participants[who].source.loads();
                let took = side_by_side(peer, column, ids, &names)?;
                loads[who * columns.len() + at] += participants[who].source.loads() - before;
                measured[who][at].push(nanos(took) / count(ids.len() as u64));
            }
        }
    }
    let mut tables = [
        Table::new("L1 hits, keys that are numbers", METHOD, &HEAD),
        Table::new(
            "L1 hits, keys that are strings",
            "The same with keys that the caller has as a `String`. A cache that takes only strings formats the numbers of \
            the table above for each look-up, and its times there include that.",
            &HEAD,
        ),
    ];
    for (at, column) in columns.iter().enumerate() {
        let table = &mut tables[usize::from(column.by_name)];
        for (who, participant) in participants.iter().enumerate() {
            let mut row = vec![column.head.to_owned(), participant.who.name.to_owned()];
            row.extend(match loads[who * columns.len() + at] {
                0 => measured[who][at].beside(&measured[0][at]),
                loads => {
                    let none = number(f64::NAN);
                    let text = format!("not kept: {} loads", number(count(loads)));
                    [text, none.clone(), none]
                }
            });
            table.row(row);
        }
    }
    runtime.block_on(async {
        for peer in &filled {
            peer.close().await;
        }
    });
    Ok(tables.into())
}

fn columns(keys: u64, times: usize) -> Vec<Column> {
    let mut columns = Vec::new();
    for by_name in [false, true] {
        for (threads, heads) in [
            (1, ["one key", "of 1,000", "of 100,000"]),
            (
                2,
                [
                    "one key, 2 threads",
                    "of 1,000, 2 threads",
                    "of 100,000, 2 threads",
                ],
            ),
        ] {
            for (head, from) in heads.into_iter().zip([1, 1_000, keys]) {
                let ids = zipf(from, times);
                columns.push(Column {
                    head,
                    ids,
                    threads,
                    by_name,
                });
            }
        }
        if !by_name {
            let ids = zipf(1_000, times)
                .into_iter()
                .map(|id| ABSENT + id)
                .collect();
            let (head, threads) = ("an absence, of 1,000", 1);
            columns.push(Column {
                head,
                ids,
                threads,
                by_name,
            });
        }
    }
    columns
}

/// Draws `times` keys by Zipf's law. The first key is the most frequent.
fn zipf(keys: u64, times: usize) -> Vec<u64> {
    let mut sum = 0.0;
    let until: Vec<f64> = (1..=keys)
        .map(|rank| {
            sum += count(rank).powf(-0.99);
            sum
        })
        .collect();
    let mut random = rand::rng();
    (0..times)
        .map(|_| {
            let drawn = random.random::<f64>() * sum;
            until.partition_point(|&end| end < drawn) as u64
        })
        .collect()
}

fn fill(
    runtime: &Runtime,
    participant: &Participant,
    names: &[String],
) -> Result<Instance, BoxError> {
    let keys = names.len() as u64;
    let mut setup = participant.setup();
    setup.capacity = 2 * keys.max(1_000);
    runtime.block_on(async {
        let peer = participant.open_with(setup).await?;
        let ids: Vec<u64> = (0..keys).chain(ABSENT..ABSENT + 1_000).collect();
        if ask_all(&peer, &ids, 64).await? > 0 {
            return Err(format!("{} cannot be filled", participant.who.slug).into());
        }
        let mut running = tokio::task::JoinSet::new();
        for share in names.chunks(names.len().div_ceil(64)) {
            let (peer, share) = (Arc::clone(&peer), share.to_vec());
            running.spawn(async move {
                for name in &share {
                    peer.get_by_name(name).await?;
                }
                Ok::<_, BoxError>(())
            });
        }
        while let Some(ended) = running.join_next().await {
            ended??;
        }
        Ok(peer)
    })
}

/// The time of the slowest thread.
fn side_by_side(
    peer: &Instance,
    column: &Column,
    ids: &[u64],
    names: &[String],
) -> Result<Duration, BoxError> {
    let barrier = Barrier::new(column.threads);
    let draws = Draws {
        ids,
        names: column.by_name.then_some(names),
        barrier: &barrier,
    };
    std::thread::scope(|scope| {
        let running: Vec<_> = (0..column.threads)
            .map(|_| scope.spawn(|| peer.hits(&draws)))
            .collect();
        let mut longest = Duration::ZERO;
        for thread in running {
            let ended = thread.join().map_err(|_| "a thread panicked")?;
            longest = longest.max(ended?);
        }
        Ok(longest)
    })
}
