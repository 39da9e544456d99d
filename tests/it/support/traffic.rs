//! A steady load of look-ups and invalidations on one process, and what came of it.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep};

use super::loader::Db;
use super::node::{Node, answer, value};

/// Keys that are asked for all the time, and written; the others are asked for once.
pub(crate) const HOT: u64 = 16;
/// Where those begin.
const COLD: u64 = 1_000_000;
const CALLERS: u64 = 4;

/// It goes on until it is ended.
pub(crate) struct Traffic {
    seen: Arc<Seen>,
    tasks: Vec<JoinHandle<()>>,
}

/// What has been seen so far.
#[derive(Default)]
pub(crate) struct Seen {
    ends: AtomicBool,
    gets: AtomicU64,
    /// The longest that a look-up took, in microseconds.
    longest: AtomicU64,
    /// Invalidations, and those among them that answered an error.
    told: AtomicU64,
    refused: Mutex<BTreeMap<String, u64>>,
    /// What the next look-up of a hot key must not be older than.
    floors: [AtomicU64; HOT as usize],
}

impl Seen {
    pub(crate) fn gets(&self) -> u64 {
        self.gets.load(Ordering::SeqCst)
    }

    pub(crate) fn longest(&self) -> Duration {
        Duration::from_micros(self.longest.load(Ordering::SeqCst))
    }

    /// Whether an invalidation has failed for that reason.
    pub(crate) fn was_refused(&self, why: &str) -> bool {
        let refused = self.refused.lock().expect("nobody panics here");
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
    /// No look-up may fail, nor answer what is older than an invalidation that has come to an end,
    /// with whatever answer, if it `counts`.
    pub(crate) fn begin(
        node: &Node,
        db: &Db,
        counts: impl FnMut(u64) -> bool + Send + 'static,
    ) -> Self {
        let seen = Arc::new(Seen::default());
        for key in 0..HOT {
            db.write(key, "0");
        }
        let mut tasks = vec![tokio::spawn(writes(
            node.clone(),
            db.clone(),
            Arc::clone(&seen),
            counts,
        ))];
        for caller in 0..CALLERS {
            tasks.push(tokio::spawn(reads(node.clone(), Arc::clone(&seen), caller)));
        }
        Self { seen, tasks }
    }

    pub(crate) fn seen(&self) -> &Seen {
        &self.seen
    }

    /// Waits until so many more look-ups have been answered.
    pub(crate) async fn goes_on(&self, for_gets: u64) {
        let until = self.seen.gets() + for_gets;
        super::eventually("look-ups are answered", async || {
            assert!(
                self.tasks.iter().all(|task| !task.is_finished()),
                "a caller has seen what must not be"
            );
            self.seen.gets() >= until
        })
        .await;
    }

    /// Ends it. No look-up may have taken longer than that.
    pub(crate) async fn end(self, what: &str, longest: Duration) {
        self.seen.ends.store(true, Ordering::SeqCst);
        for task in self.tasks {
            answer(task).await;
        }
        println!(
            "{what}: {} look-ups, the longest {:?}; {} invalidations, without success {:?}",
            self.seen.gets(),
            self.seen.longest(),
            self.seen.told.load(Ordering::SeqCst),
            self.seen.refused.lock().expect("nobody panics here"),
        );
        assert!(
            self.seen.longest() < longest,
            "a look-up took {:?}",
            self.seen.longest()
        );
    }
}

async fn reads(node: Node, seen: Arc<Seen>, caller: u64) {
    for round in 0.. {
        if seen.ends.load(Ordering::SeqCst) {
            return;
        }
        let hot = (round % 2 == 0).then_some((round / 2 + caller * 5) % HOT);
        let key = hot.unwrap_or(COLD + round * CALLERS + caller);
        let floor = hot.map_or(0, |key| seen.floor(key));
        let begun = Instant::now();
        let got = value(node.get(key).await);
        let took = u64::try_from(begun.elapsed().as_micros()).expect("a short time");
        seen.longest.fetch_max(took, Ordering::SeqCst);
        seen.gets.fetch_add(1, Ordering::SeqCst);
        if hot.is_some() {
            let version: u64 = got.parse().expect("a version");
            assert!(
                version >= floor,
                "key {key} is {version}, and {floor} had been told"
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
    seen: Arc<Seen>,
    mut counts: impl FnMut(u64) -> bool + Send + 'static,
) {
    for version in 1.. {
        if seen.ends.load(Ordering::SeqCst) {
            return;
        }
        let key = version % HOT;
        db.update(key, || version);
        let told = node.invalidate(&key).await;
        seen.told.fetch_add(1, Ordering::SeqCst);
        if let Err(error) = told {
            *seen
                .refused
                .lock()
                .expect("nobody panics here")
                .entry(why(&error))
                .or_default() += 1;
        }
        if counts(key) {
            seen.floors[at(key)].store(version, Ordering::SeqCst);
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
