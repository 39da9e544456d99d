//! Steady traffic of look-ups and invalidations on one process, and its record.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep};

use super::loader::Db;
use super::node::{Node, answer, value};

/// The number of hot keys, which are asked for and written all the time. Other keys are asked for
/// once.
pub(crate) const HOT: u64 = 16;
/// The first of the other keys.
const COLD: u64 = 1_000_000;
const CALLERS: u64 = 4;

/// Traffic that runs until it is ended.
pub(crate) struct Traffic {
    observed: Arc<Observed>,
    tasks: Vec<JoinHandle<()>>,
}

/// The record of the traffic so far.
#[derive(Default)]
pub(crate) struct Observed {
    ends: AtomicBool,
    gets: AtomicU64,
    /// The longest look-up, in microseconds.
    longest: AtomicU64,
    /// Invalidations, and the reasons of those that failed.
    invalidations: AtomicU64,
    refused: Mutex<BTreeMap<String, u64>>,
    /// The version that the next look-up of each hot key must reach.
    floors: [AtomicU64; HOT as usize],
}

impl Observed {
    pub(crate) fn gets(&self) -> u64 {
        self.gets.load(Ordering::SeqCst)
    }

    pub(crate) fn longest(&self) -> Duration {
        Duration::from_micros(self.longest.load(Ordering::SeqCst))
    }

    /// Whether an invalidation has failed for this reason.
    pub(crate) fn was_refused(&self, why: &str) -> bool {
        let refused = self.refused.lock().expect("no panic under this lock");
        refused.keys().any(|reason| reason.contains(why))
    }

    /// The newest version of a hot key whose invalidation counts.
    pub(crate) fn floor(&self, key: u64) -> u64 {
        self.floors[at(key)].load(Ordering::SeqCst)
    }
}

fn at(key: u64) -> usize {
    usize::try_from(key).expect("a hot key")
}

impl Traffic {
    /// Begins the traffic. No look-up may fail. None may answer a version older than the last
    /// invalidation that has ended, with or without success, and that `counts`.
    pub(crate) fn begin(
        node: &Node,
        db: &Db,
        counts: impl FnMut(u64) -> bool + Send + 'static,
    ) -> Self {
        let observed = Arc::new(Observed::default());
        for key in 0..HOT {
            db.write(key, "0");
        }
        let mut tasks = vec![tokio::spawn(writes(
            node.clone(),
            db.clone(),
            Arc::clone(&observed),
            counts,
        ))];
        for caller in 0..CALLERS {
            tasks.push(tokio::spawn(reads(
                node.clone(),
                Arc::clone(&observed),
                caller,
            )));
        }
        Self { observed, tasks }
    }

    pub(crate) fn observed(&self) -> &Observed {
        &self.observed
    }

    /// Waits until this many more look-ups have been answered.
    pub(crate) async fn wait_for_look_ups(&self, for_gets: u64) {
        let until = self.observed.gets() + for_gets;
        super::eventually("look-ups are answered", async || {
            assert!(
                self.tasks.iter().all(|task| !task.is_finished()),
                "a caller has observed what must not be"
            );
            self.observed.gets() >= until
        })
        .await;
    }

    /// Ends the traffic. No look-up may have taken `longest` or more.
    pub(crate) async fn end(self, what: &str, longest: Duration) {
        self.observed.ends.store(true, Ordering::SeqCst);
        for task in self.tasks {
            answer(task).await;
        }
        println!(
            "{what}: {} look-ups, the longest {:?}; {} invalidations, without success {:?}",
            self.observed.gets(),
            self.observed.longest(),
            self.observed.invalidations.load(Ordering::SeqCst),
            self.observed
                .refused
                .lock()
                .expect("no panic under this lock"),
        );
        assert!(
            self.observed.longest() < longest,
            "a look-up took {:?}",
            self.observed.longest()
        );
    }
}

async fn reads(node: Node, observed: Arc<Observed>, caller: u64) {
    for round in 0.. {
        if observed.ends.load(Ordering::SeqCst) {
            return;
        }
        let hot = (round % 2 == 0).then_some((round / 2 + caller * 5) % HOT);
        let key = hot.unwrap_or(COLD + round * CALLERS + caller);
        let floor = hot.map_or(0, |key| observed.floor(key));
        let begun = Instant::now();
        let got = value(node.get(key).await);
        let took = u64::try_from(begun.elapsed().as_micros()).expect("a short time");
        observed.longest.fetch_max(took, Ordering::SeqCst);
        observed.gets.fetch_add(1, Ordering::SeqCst);
        if hot.is_some() {
            let version: u64 = got.parse().expect("a version");
            assert!(
                version >= floor,
                "key {key} is {version}, and {floor} was invalidated"
            );
        } else {
            assert_eq!(got, format!("row {key}"));
        }
        sleep(Duration::from_millis(1)).await;
    }
}

async fn writes(
    node: Node,
    db: Db,
    observed: Arc<Observed>,
    mut counts: impl FnMut(u64) -> bool + Send + 'static,
) {
    for version in 1.. {
        if observed.ends.load(Ordering::SeqCst) {
            return;
        }
        let key = version % HOT;
        db.update(key, || version);
        let result = node.invalidate(&key).await;
        observed.invalidations.fetch_add(1, Ordering::SeqCst);
        if let Err(error) = result {
            *observed
                .refused
                .lock()
                .expect("no panic under this lock")
                .entry(why(&error))
                .or_default() += 1;
        }
        if counts(key) {
            observed.floors[at(key)].store(version, Ordering::SeqCst);
        }
        sleep(Duration::from_millis(3)).await;
    }
}

/// An error with all its causes.
pub(crate) fn why(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        text.push_str(&format!(": {cause}"));
        next = cause.source();
    }
    text
}
