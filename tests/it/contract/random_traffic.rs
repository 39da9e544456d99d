//! Random traffic against a source with versions: no look-up answers a version older than the last
//! invalidation that had returned in its process.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use crate::support::backend::{Backend, on_both_tiers};
use crate::support::eventually;
use crate::support::loader::{Behaviour, Db};
use crate::support::node::{Node, answer, value};

on_both_tiers! {
    no_look_up_answers_less_than_the_last_invalidation_that_returned
    no_look_up_answers_less_than_that_without_l1_either
}

const KEYS: usize = 3;
const NODES: usize = 3;
const TASKS: u64 = 12;
const STEPS: u64 = 120;

/// A xorshift generator with a fixed seed: the same numbers in every run.
struct Rng(u64);

impl Rng {
    fn below(&mut self, sides: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % sides
    }
}

/// The newest version of each key in the source, and the newest that each process has invalidated.
#[derive(Default)]
struct Truth {
    written: [AtomicU64; KEYS],
    floors: [[AtomicU64; KEYS]; NODES],
}

async fn run(db: Db, node: Node, at: usize, truth: Arc<Truth>, mut rng: Rng) {
    for _ in 0..STEPS {
        let key = rng.below(KEYS as u64);
        let index = usize::try_from(key).expect("a small number");
        let floor = &truth.floors[at][index];
        match rng.below(10) {
            0 => {
                // The commit is one step, as in a database. The invalidation follows it.
                let version = db.update(key, || {
                    truth.written[index].fetch_add(1, Ordering::SeqCst) + 1
                });
                node.invalidate(&key).await.expect("an invalidation");
                floor.fetch_max(version, Ordering::SeqCst);
            }
            1 => tokio::time::sleep(Duration::from_micros(rng.below(3_000))).await,
            _ => {
                let least = floor.load(Ordering::SeqCst);
                let version: u64 = value(node.get(key).await).parse().expect("a version");
                assert!(
                    version >= least,
                    "key {key}: {version} after {least} was invalidated"
                );
            }
        }
    }
}

async fn storm(backend: Backend, l1_capacity: u64) {
    let db = Db::default();
    for key in 0..KEYS as u64 {
        db.write(key, "0");
    }
    db.behave(Behaviour {
        takes: Duration::from_millis(1),
        ..Behaviour::default()
    });
    let mut nodes = Vec::new();
    for _ in 0..NODES {
        nodes.push(
            backend
                .node_with(&db, |builder| builder.l1_capacity(l1_capacity))
                .await,
        );
    }
    let truth = Arc::new(Truth::default());
    let mut tasks = Vec::new();
    for task in 0..TASKS {
        let at = usize::try_from(task).expect("a small number") % NODES;
        let rng = Rng(0x9E37_79B9_7F4A_7C15 ^ (task << 17));
        tasks.push(tokio::spawn(run(
            db.clone(),
            nodes[at].clone(),
            at,
            Arc::clone(&truth),
            rng,
        )));
    }
    for task in tasks {
        answer(task).await;
    }
    // When all messages have arrived, no tier holds an older version.
    for node in &nodes {
        for (key, written) in truth.written.iter().enumerate() {
            let latest = written.load(Ordering::SeqCst).to_string();
            eventually("the latest version is everywhere", async || {
                value(node.get(key as u64).await) == latest
            })
            .await;
        }
    }
    let coalesced: u64 = nodes.iter().map(|node| node.stats().coalesced).sum();
    assert!(coalesced > 0, "nothing was at stake");
    backend.check(&nodes.iter().collect::<Vec<_>>()).await;
}

async fn no_look_up_answers_less_than_the_last_invalidation_that_returned(backend: Backend) {
    storm(backend, 10_000).await;
}

async fn no_look_up_answers_less_than_that_without_l1_either(backend: Backend) {
    storm(backend, 0).await;
}
