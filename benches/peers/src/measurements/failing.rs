//! Loads that fail, panic or lose their caller while others wait for them.

use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::task::{JoinHandle, JoinSet};

use super::{Participant, Scale, runtime};
use crate::contenders::caches;
use crate::peer::{BoxError, Instance};
use crate::source::Source;
use crate::table::{Table, Values, count, millis, number};

const LOAD: Duration = Duration::from_millis(100);
const WAITERS: u64 = 20;

/// A waiter without an answer after this time counts as hanging.
const BUDGET: Duration = Duration::from_secs(10);

#[derive(Clone, Copy)]
enum What {
    Fails,
    Panics,
    LeaderGoes,
}

const ALL: [What; 3] = [What::Fails, What::Panics, What::LeaderGoes];

#[derive(Default)]
struct Outcome {
    loads: u64,
    last: Duration,
    ok: u64,
    failed: u64,
    hang: u64,
}

pub(super) fn measure(scale: Scale) -> Result<Vec<Table>, BoxError> {
    let rounds = scale.pick(3, 1);
    let participants = Participant::all(caches(), Source::new)?;
    let mut table = Table::new(
        "A load that fails, panics, or loses its caller",
        "One caller begins a load of 100 ms, and 20 ms later 20 others join it. The load returns an error, or panics the first \
        time, or its task is aborted at 50 ms. For the error: the loads, and the time until the last waiter has its answer. For \
        the others: how many waiters have an answer, an error or nothing within 10 s, and the loads. Medians of 3 rounds.",
        &[
            "",
            "error: loads",
            "error: last waiter, ms",
            "panic: answers",
            "panic: errors",
            "panic: hanging",
            "panic: loads",
            "abort: answers",
            "abort: errors",
            "abort: hanging",
            "abort: loads",
        ],
    );
    for participant in &participants {
        let mut row = vec![participant.who.name.to_owned()];
        for what in ALL {
            let mut outcomes = Vec::new();
            for id in 0..rounds {
                outcomes.push(round(participant, what, id)?);
            }
            let of = |pick: fn(&Outcome) -> f64| {
                number(outcomes.iter().map(pick).collect::<Values>().median())
            };
            let loads = of(|outcome| count(outcome.loads));
            let last = of(|outcome| millis(outcome.last));
            let ends = [
                of(|outcome| count(outcome.ok)),
                of(|outcome| count(outcome.failed)),
                of(|outcome| count(outcome.hang)),
            ];
            match what {
                What::Fails => row.extend([loads, last]),
                What::Panics | What::LeaderGoes => {
                    row.extend(ends);
                    row.push(loads);
                }
            }
        }
        table.row(row);
    }
    Ok(vec![table])
}

/// One round with an instance of its own and a cold key.
fn round(participant: &Participant, what: What, round: u64) -> Result<Outcome, BoxError> {
    let (source, runtime) = (Source::new(), runtime()?);
    let mut setup = participant.setup();
    setup.source = source;
    let id = 1_000 * (what as u64 + 1) + round;
    let outcome = runtime.block_on(async {
        let peer = participant.open_with(setup).await?;
        peer.get(7).await?;
        source.takes(LOAD);
        match what {
            What::Fails => source.fails(),
            What::Panics => source.panics_once(),
            What::LeaderGoes => {}
        }
        let before = source.loads();
        let leader = look_up(&peer, id);
        tokio::time::sleep(LOAD / 5).await;
        let mut waiters = JoinSet::new();
        let begun = Instant::now();
        for _ in 0..WAITERS {
            let peer = Arc::clone(&peer);
            waiters.spawn(async move {
                let ended = tokio::time::timeout(BUDGET, peer.get(id)).await;
                (ended.map(|answer| answer.is_ok()), begun.elapsed())
            });
        }
        if matches!(what, What::LeaderGoes) {
            tokio::time::sleep(LOAD * 3 / 10).await;
            leader.abort();
        }
        let mut outcome = Outcome::default();
        for (ended, took) in waiters.join_all().await {
            outcome.last = outcome.last.max(took);
            *match ended {
                Ok(true) => &mut outcome.ok,
                Ok(false) => &mut outcome.failed,
                Err(_) => &mut outcome.hang,
            } += 1;
        }
        outcome.loads = source.loads() - before;
        let _ = leader.await;
        peer.close().await;
        Ok::<_, BoxError>(outcome)
    });
    runtime.shutdown_background();
    outcome
}

fn look_up(peer: &Instance, id: u64) -> JoinHandle<bool> {
    let peer = Arc::clone(peer);
    tokio::spawn(async move { peer.get(id).await.is_ok() })
}
