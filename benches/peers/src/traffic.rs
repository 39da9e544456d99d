//! Steady traffic of hits and misses during an outage.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed};
use std::time::{Duration, Instant};

use tokio::task::JoinSet;

use crate::peer::{BoxError, Instance};
use crate::table::{Values, millis};

/// Before, during and after the outage.
pub(crate) const PHASES: usize = 3;

/// A look-up without an answer after this time counts as failed.
const BUDGET: Duration = Duration::from_secs(10);

/// Keys that are looked up again and again.
const KNOWN: u64 = 100;

pub(crate) struct Traffic {
    tasks: JoinSet<[Phase; PHASES]>,
    phase: Arc<AtomicUsize>,
    stop: Arc<AtomicBool>,
}

/// What one task has measured in one phase.
#[derive(Default)]
struct Phase {
    misses: Outcome,
    hits: Outcome,
}

#[derive(Default)]
struct Outcome {
    millis: Vec<f64>,
    failed: usize,
}

impl Traffic {
    pub(crate) async fn start(peer: &Instance, tasks: u64) -> Result<Self, BoxError> {
        for id in 0..KNOWN {
            peer.get(id).await?;
        }
        let mut traffic = Self {
            tasks: JoinSet::new(),
            phase: Arc::default(),
            stop: Arc::default(),
        };
        for task in 0..tasks {
            let (peer, phase, stop) = (
                Arc::clone(peer),
                Arc::clone(&traffic.phase),
                Arc::clone(&traffic.stop),
            );
            traffic.tasks.spawn(async move {
                let mut phases = <[Phase; PHASES]>::default();
                let mut turn = 0;
                while !stop.load(Relaxed) {
                    turn += 1;
                    let unknown = ((task + 1) << 30) + turn;
                    for (id, miss) in [(unknown, true), (turn % KNOWN, false)] {
                        let began = phase.load(Relaxed);
                        let answered = look_up(&peer, id).await;
                        // A look-up that was under way when the outage began counts for the outage.
                        let of = if began == 0 {
                            phase.load(Relaxed).min(1)
                        } else {
                            began
                        };
                        let into = &mut phases[of % PHASES];
                        let into = if miss {
                            &mut into.misses
                        } else {
                            &mut into.hits
                        };
                        match answered {
                            Some(took) => into.millis.push(took),
                            None => into.failed += 1,
                        }
                    }
                }
                phases
            });
        }
        Ok(traffic)
    }

    pub(crate) fn phase(&self, number: usize) {
        self.phase.store(number, Relaxed);
    }

    /// One line for each phase: for misses and for hits the number of answers, the number of
    /// failures, and p50 and p99 in ms.
    pub(crate) async fn stop(self) -> Vec<String> {
        self.stop.store(true, Relaxed);
        let all = self.tasks.join_all().await;
        (0..PHASES)
            .map(|phase| {
                let of = |pick: fn(&Phase) -> &Outcome| {
                    summary(all.iter().map(|task| pick(&task[phase])))
                };
                format!(
                    "phase {} {}",
                    of(|phase| &phase.misses),
                    of(|phase| &phase.hits)
                )
            })
            .collect()
    }
}

/// The milliseconds until the answer, or `None` when the look-up failed.
async fn look_up(peer: &Instance, id: u64) -> Option<f64> {
    let begun = Instant::now();
    let ended = tokio::time::timeout(BUDGET, peer.get(id)).await;
    matches!(ended, Ok(Ok(_))).then(|| millis(begun.elapsed()))
}

fn summary<'a>(of: impl Iterator<Item = &'a Outcome>) -> String {
    let (mut answered, mut failed) = (Vec::new(), 0);
    for outcome in of {
        answered.extend_from_slice(&outcome.millis);
        failed += outcome.failed;
    }
    let number = answered.len();
    let times = Values::from_iter(answered);
    format!(
        "{number} {failed} {:.4} {:.4}",
        times.at(0.5),
        times.at(0.99)
    )
}
