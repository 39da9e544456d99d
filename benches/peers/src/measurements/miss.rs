//! Look-ups that only the source can answer.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use super::{Participant, Scale, ask_all, runtime};
use crate::contenders::{Kind, contenders_where};
use crate::peer::{BoxError, Setup};
use crate::server::Proxy;
use crate::source::Source;
use crate::table::{Table, Values, count, micros, number};

/// The number of misses whose commands and round trips are counted.
const COUNTED: u64 = 50;

#[derive(Default)]
struct Measured {
    time: Values,
    cpu: Values,
    commands: String,
    sent: f64,
    writes: f64,
    hit_commands: f64,
    hit_writes: f64,
}

pub(super) fn measure(scale: Scale) -> Result<Vec<Table>, BoxError> {
    let each = scale.pick(400, 100);
    let runtime = runtime()?;
    let participants = Participant::all(
        contenders_where(|one| one.l2 && one.kind != Kind::Outage),
        Source::new,
    )?;
    let mut measured: Vec<Measured> = participants.iter().map(|_| Measured::default()).collect();
    let mut peers = Vec::new();
    for participant in &participants {
        let peer = runtime.block_on(participant.open())?;
        runtime.block_on(ask_all(&peer, &[u64::MAX >> 30], 1))?;
        peers.push(peer);
    }
    for round in 0..scale.pick(25, 1) {
        for ((participant, peer), into) in participants.iter().zip(&peers).zip(&mut measured) {
            let ids: Vec<u64> = (round * each..(round + 1) * each).collect();
            let before = (participant.server.cpu()?, participant.source.loads());
            let begun = Instant::now();
            let failed = runtime.block_on(ask_all(peer, &ids, 1))?;
            let took = begun.elapsed();
            let (cpu, loads) = (participant.server.cpu()?, participant.source.loads());
            if failed > 0 || loads - before.1 != each {
                return Err(format!("{}: these were not misses", participant.who.slug).into());
            }
            into.time.push(micros(took) / count(each));
            into.cpu.push((cpu - before.0) * 1e6 / count(each));
        }
    }
    for peer in peers {
        runtime.block_on(peer.close());
    }
    for (participant, into) in participants.iter().zip(&mut measured) {
        runtime.block_on(count_commands(participant, into))?;
    }
    Ok(vec![table(&participants, &measured)])
}

/// Counts commands and round trips of misses by another instance through a counting proxy, and of
/// hits in Redis by a third one.
async fn count_commands(participant: &Participant, into: &mut Measured) -> Result<(), BoxError> {
    let first = 1 << 35;
    let ids: Vec<u64> = (first..first + COUNTED).collect();
    let (sent, in_scripts, writes) = watched(participant, &ids).await?;
    let total: u64 = sent.values().sum();
    into.commands = listed(&sent);
    if !in_scripts.is_empty() {
        into.commands += &format!("; in scripts {}", listed(&in_scripts));
    }
    into.sent = per_look_up(total);
    into.writes = per_look_up(writes);
    let (sent, _, writes) = watched(participant, &ids).await?;
    into.hit_commands = per_look_up(sent.values().sum());
    into.hit_writes = per_look_up(writes);
    Ok(())
}

type Counts = BTreeMap<String, u64>;

async fn watched(
    participant: &Participant,
    ids: &[u64],
) -> Result<(Counts, Counts, u64), BoxError> {
    let proxy = Proxy::before(&participant.server).await?;
    let peer = participant
        .open_with(Setup::new(proxy.url(), participant.source))
        .await?;
    ask_all(&peer, &[1 << 36], 1).await?;
    tokio::time::sleep(Duration::from_millis(300)).await;
    let (record_commands, before) = (participant.server.record_commands()?, proxy.writes());
    ask_all(&peer, ids, 1).await?;
    tokio::time::sleep(Duration::from_millis(20)).await;
    let writes = proxy.writes() - before;
    let mut commands = record_commands.end()?;
    peer.close().await;
    // Heartbeats and the like do not belong to the look-ups.
    commands.sent.retain(|_, times| *times >= COUNTED / 2);
    commands.in_scripts.retain(|_, times| *times >= COUNTED / 2);
    Ok((commands.sent, commands.in_scripts, writes))
}

fn per_look_up(total: u64) -> f64 {
    count(total) / count(COUNTED)
}

fn listed(of: &Counts) -> String {
    let named = of.iter().map(|(name, &times)| {
        let each = number(per_look_up(times).round());
        if each == "1" {
            name.clone()
        } else {
            format!("{each} {name}")
        }
    });
    named.collect::<Vec<_>>().join(", ")
}

fn table(participants: &[Participant], measured: &[Measured]) -> Table {
    let mut table = Table::new(
        "A miss, and what it costs the server",
        "One caller looks up keys that neither tier has, and the loader answers at once. The time of each of 400 misses and \
        the server's CPU time for each (`INFO cpu`): medians and quartiles of 25 rounds, and the median multiple of fred's GET \
        and SET alone in the same rounds, below which caches on redis-rs can be. Commands are those that `MONITOR` prints, with \
        a script as one command. Round trips are writes of the client through a counting proxy, over 50 misses. The last two \
        columns are of a hit in Redis.",
        &[
            "",
            "time, µs",
            "quartiles, µs",
            "multiple of fred",
            "server CPU, µs",
            "quartiles, µs",
            "multiple of fred",
            "commands",
            "which",
            "round trips",
            "hit: commands",
            "hit: round trips",
        ],
    );
    let limit = &measured[0];
    for (participant, ours) in participants.iter().zip(measured) {
        let mut row = vec![participant.who.name.to_owned()];
        row.extend(ours.time.beside(&limit.time));
        row.extend(ours.cpu.beside(&limit.cpu));
        row.extend([
            number(ours.sent),
            ours.commands.clone(),
            number(ours.writes),
            number(ours.hit_commands),
            number(ours.hit_writes),
        ]);
        table.row(row);
    }
    table
}
