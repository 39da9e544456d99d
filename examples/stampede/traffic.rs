//! The requests: how many, when, and how long each one waits for its answer.

use std::str::FromStr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use tidegate::BoxError;
use tokio::task::JoinSet;
use tokio::time::Instant;

use crate::node::{Node, Strategy};

/// The two situations in which stampedes happen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Phase {
    /// The key is absent, and all requests come at the same moment.
    Cold,
    /// The key is cached, requests come all the time, and the key expires again and again.
    Hot,
}

/// How long the requests for the hot key come.
const HOT_FOR: Duration = Duration::from_secs(5);
const HOT_TTL: Duration = Duration::from_secs(1);

impl Phase {
    pub(crate) const ALL: [Self; 2] = [Self::Cold, Self::Hot];

    pub(crate) fn title(self) -> String {
        match self {
            Self::Cold => "cold key, all at once".to_owned(),
            Self::Hot => {
                let (ttl, long) = (HOT_TTL.as_secs(), HOT_FOR.as_secs());
                format!("hot key, TTL {ttl} s, requests spread over {long} s")
            }
        }
    }

    pub(crate) fn word(self) -> &'static str {
        match self {
            Self::Cold => "cold",
            Self::Hot => "hot",
        }
    }

    pub(crate) fn ttl(self) -> Duration {
        match self {
            Self::Cold => Duration::from_secs(300),
            Self::Hot => HOT_TTL,
        }
    }

    /// The time from the first request to the last one.
    fn spread(self) -> Duration {
        match self {
            Self::Cold => Duration::ZERO,
            Self::Hot => HOT_FOR,
        }
    }
}

impl FromStr for Phase {
    type Err = String;

    fn from_str(word: &str) -> Result<Self, String> {
        let found = Self::ALL.into_iter().find(|phase| phase.word() == word);
        found.ok_or_else(|| format!("there is no phase {word:?}"))
    }
}

/// One strategy in one phase.
#[derive(Clone, Debug)]
pub(crate) struct Job {
    pub(crate) strategy: Strategy,
    pub(crate) phase: Phase,
    pub(crate) requests: usize,
    pub(crate) processes: usize,
    /// A unique name, so that no entry of another job is found.
    pub(crate) name: String,
}

/// The result of a job.
#[derive(Debug, Default)]
pub(crate) struct Outcome {
    /// Queries that reached the database.
    pub(crate) queries: u64,
    /// The duration of each request, in microseconds.
    pub(crate) latencies: Vec<u64>,
}

impl Outcome {
    pub(crate) fn add(&mut self, other: Self) {
        self.queries += other.queries;
        self.latencies.extend(other.latencies);
    }
}

/// Sends the share of one process: every `processes`-th of the requests 0, 1, 2, …, from `index`
/// on. All of them run concurrently, so a slow answer delays no later request.
pub(crate) async fn send(
    node: Arc<Node>,
    job: Job,
    index: usize,
    answered: Arc<AtomicUsize>,
) -> Result<Outcome, BoxError> {
    let queries_before = node.database().queries();
    let gap = job.phase.spread() / u32::try_from(job.requests).unwrap_or(u32::MAX);
    // Time for all processes to get ready.
    let start = Instant::now() + Duration::from_millis(50);
    let mut requests = JoinSet::new();
    for number in (index..job.requests).step_by(job.processes) {
        let at = start + gap * u32::try_from(number).unwrap_or(u32::MAX);
        let (node, answered) = (Arc::clone(&node), Arc::clone(&answered));
        requests.spawn(async move {
            tokio::time::sleep_until(at).await;
            let begun = Instant::now();
            node.answer().await?;
            answered.fetch_add(1, Ordering::Relaxed);
            Ok::<_, BoxError>(begun.elapsed())
        });
    }
    let mut outcome = Outcome::default();
    while let Some(ended) = requests.join_next().await {
        let took = ended.map_err(BoxError::new)??;
        outcome
            .latencies
            .push(u64::try_from(took.as_micros()).unwrap_or(u64::MAX));
    }
    outcome.queries = node.database().queries() - queries_before;
    Ok(outcome)
}
