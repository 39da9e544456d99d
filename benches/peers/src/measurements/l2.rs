//! Look-ups that Redis answers.

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::{Participant, Scale, ask_all, runtime};
use crate::contenders::{Kind, contenders_where};
use crate::peer::{BoxError, Instance};
use crate::source::Source;
use crate::table::{Table, Values, count, micros, number};

/// Concurrent callers.
const MANY: [usize; 2] = [64, 512];

#[derive(Default)]
struct Measured {
    p50: Values,
    p99: Values,
    per_second: [Values; MANY.len()],
    loads: u64,
    errors: usize,
}

pub(super) fn measure(scale: Scale) -> Result<Vec<Table>, BoxError> {
    let (alone, many) = (scale.pick(1_000, 100), scale.pick(10_000, 1_000));
    let runtime = runtime()?;
    let participants = Participant::all(
        contenders_where(|one| one.l2 && one.kind != Kind::Outage),
        Source::of_kilobytes,
    )?;
    let ids: Vec<u64> = (0..many).collect();
    let mut measured: Vec<Measured> = participants.iter().map(|_| Measured::default()).collect();
    for participant in &participants {
        runtime.block_on(async {
            let peer = participant.open().await?;
            ask_all(&peer, &ids, 64).await?;
            tokio::time::sleep(Duration::from_millis(100)).await;
            peer.close().await;
            Ok::<_, BoxError>(())
        })?;
    }
    for _ in 0..scale.pick(11, 1) {
        for (participant, into) in participants.iter().zip(&mut measured) {
            let before = participant.source.loads();
            runtime.block_on(round(participant, &ids, alone, into))?;
            into.loads += participant.source.loads() - before;
        }
    }
    Ok(vec![table(&participants, &measured)])
}

/// One round, each measurement by an instance that has read none of the keys.
async fn round(
    participant: &Participant,
    ids: &[u64],
    alone: usize,
    into: &mut Measured,
) -> Result<(), BoxError> {
    let (peer, fresh) = warmed(participant, ids).await?;
    let mut each = Values::default();
    for &id in fresh.iter().take(alone) {
        let begun = Instant::now();
        into.errors += usize::from(peer.get(id).await.is_err());
        each.push(micros(begun.elapsed()));
    }
    into.p50.push(each.at(0.5));
    into.p99.push(each.at(0.99));
    peer.close().await;
    for (tasks, per_second) in MANY.into_iter().zip(&mut into.per_second) {
        let (peer, fresh) = warmed(participant, ids).await?;
        let begun = Instant::now();
        into.errors += ask_all(&peer, fresh, tasks).await?;
        per_second.push(count(fresh.len() as u64) / begun.elapsed().as_secs_f64());
        peer.close().await;
    }
    Ok(())
}

/// A new instance with open connections, and the keys that it has not read.
async fn warmed<'a>(
    participant: &Participant,
    ids: &'a [u64],
) -> Result<(Instance, &'a [u64]), BoxError> {
    let peer = participant.open().await?;
    let (seen, fresh) = ids.split_at(50);
    ask_all(&peer, seen, 1).await?;
    // Time for background work of the beginning, such as subscriptions.
    tokio::time::sleep(Duration::from_millis(100)).await;
    Ok((Arc::clone(&peer), fresh))
}

const METHODS: [&str; 4] = [
    "one caller, p50, µs",
    "one caller, p99, µs",
    "64 callers, look-ups/s",
    "512 callers, look-ups/s",
];

fn table(participants: &[Participant], measured: &[Measured]) -> Table {
    let mut table = Table::new(
        "L2 hits",
        "A new instance reads keys that it has not read before, with values of about 1 KB that are in Redis. One caller: \
        latency over 1,000 keys. 64 and 512 callers: look-ups a second over 10,000 keys. Medians and quartiles of 11 rounds, \
        and the median multiple of fred's GET and decoding alone in the same rounds. Of latency less is better, of look-ups a \
        second more. Loads and errors are those of all measurements together. cached has no L1 to fill here.",
        &[
            "measured",
            "cache",
            "median",
            "quartiles",
            "multiple of fred",
            "loads",
            "errors",
        ],
    );
    let values = |of: &Measured, at: usize| match at {
        0 => of.p50.clone(),
        1 => of.p99.clone(),
        _ => of.per_second[at - 2].clone(),
    };
    for (at, method) in METHODS.into_iter().enumerate() {
        for (participant, ours) in participants.iter().zip(measured) {
            let mut row = vec![method.to_owned(), participant.who.name.to_owned()];
            row.extend(values(ours, at).beside(&values(&measured[0], at)));
            row.extend([number(count(ours.loads)), ours.errors.to_string()]);
            table.row(row);
        }
    }
    table
}
