//! The processes of a service: simulated in this process, or real.

use std::path::Path;
use std::process::Stdio;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use tidegate::fred::clients::Client;
use tidegate::{BoxError, InProcess};
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader, Lines};
use tokio::process::{Child, ChildStdin, ChildStdout, Command};
use tokio::task::JoinSet;

use crate::database::{CONNECTIONS, Database};
use crate::kv::{Embedded, Kv};
use crate::node::{Node, Strategy, Tier};
use crate::options::{WORKER_URL, Work};
use crate::redis;
use crate::traffic::{self, Job, Outcome};

/// The share of each process in the connections that the database allows.
pub(crate) fn connections(processes: usize) -> usize {
    CONNECTIONS / processes
}

/// The shared tier of a fleet.
pub(crate) enum Shared {
    Embedded,
    Redis { url: String, client: Client },
}

/// All processes for one job: they are ready, and the key is filled if the phase needs it.
pub(crate) enum Fleet<'a> {
    Simulated {
        nodes: Vec<Arc<Node>>,
        job: Job,
        kv: Arc<Embedded>,
        in_process: InProcess,
    },
    Real {
        workers: Vec<Worker>,
        client: &'a Client,
    },
}

impl<'a> Fleet<'a> {
    pub(crate) async fn start(
        job: &Job,
        database: &Path,
        shared: &'a Shared,
    ) -> Result<Self, BoxError> {
        match shared {
            Shared::Embedded => Self::simulate(job, database),
            Shared::Redis { url, client } => {
                let work = |index| Work {
                    index,
                    job: job.clone(),
                    database: database.to_string_lossy().into_owned(),
                    url: url.clone(),
                };
                let mut workers = (0..job.processes)
                    .map(|index| Worker::start(&work(index)))
                    .collect::<Result<Vec<_>, _>>()?;
                for worker in &mut workers {
                    worker.expect("ready").await?;
                }
                Ok(Self::Real { workers, client })
            }
        }
    }

    fn simulate(job: &Job, database: &Path) -> Result<Self, BoxError> {
        let (kv, in_process) = (Arc::<Embedded>::default(), InProcess::new());
        let node = |_| {
            let database =
                Database::open(database, connections(job.processes)).map_err(BoxError::new)?;
            let tier = match job.strategy {
                Strategy::NoCache => Tier::None,
                Strategy::CacheAside | Strategy::Lock => Tier::Kv(Kv::Embedded(Arc::clone(&kv))),
                Strategy::Tidegate => Tier::InProcess(in_process.clone()),
            };
            Node::new(job.strategy, tier, database, &job.name, job.phase.ttl()).map(Arc::new)
        };
        let nodes = (0..job.processes).map(node).collect::<Result<_, _>>()?;
        Ok(Self::Simulated {
            nodes,
            job: job.clone(),
            kv,
            in_process,
        })
    }

    /// One request, so that the key is filled.
    pub(crate) async fn fill(&mut self) -> Result<(), BoxError> {
        match self {
            Self::Simulated { nodes, .. } => nodes[0].answer().await,
            Self::Real { workers, .. } => {
                workers[0].say("fill").await?;
                workers[0].expect("filled").await
            }
        }
    }

    /// Commands to the shared tier so far.
    pub(crate) async fn commands(&self) -> Result<u64, BoxError> {
        match self {
            Self::Simulated { kv, in_process, .. } => Ok(kv.commands() + in_process.commands()),
            Self::Real { client, .. } => Ok(redis::commands(client).await?.values().sum()),
        }
    }

    /// All processes send their share, from the same moment on.
    pub(crate) async fn send(&mut self, answered: &Arc<AtomicUsize>) -> Result<Outcome, BoxError> {
        let mut running = JoinSet::new();
        match self {
            Self::Simulated { nodes, job, .. } => {
                for (index, node) in nodes.iter().enumerate() {
                    running.spawn(traffic::send(
                        Arc::clone(node),
                        job.clone(),
                        index,
                        Arc::clone(answered),
                    ));
                }
            }
            Self::Real { workers, .. } => {
                for worker in workers.iter_mut() {
                    worker.say("go").await?;
                }
                for worker in workers.drain(..) {
                    running.spawn(worker.finish(Arc::clone(answered)));
                }
            }
        }
        let mut all = Outcome::default();
        while let Some(ended) = running.join_next().await {
            all.add(ended.map_err(BoxError::new)??);
        }
        Ok(all)
    }
}

/// A real process: this program, started again. It follows orders line by line, and is killed when
/// this is dropped.
///
/// ```text
/// worker: ready                   it has connected
/// parent: fill   worker: filled   only one worker, only for a hot key
/// parent: go     worker: answered 17 … answered 250
///                worker: queries 1
///                worker: latencies 31021 31022 …
/// ```
pub(crate) struct Worker {
    index: usize,
    process: Child,
    stdin: ChildStdin,
    stdout: Lines<BufReader<ChildStdout>>,
}

impl Worker {
    fn start(work: &Work) -> Result<Self, BoxError> {
        let program = std::env::current_exe().map_err(BoxError::new)?;
        let mut process = Command::new(program)
            .args(work.to_args())
            .env(WORKER_URL, &work.url)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .map_err(BoxError::new)?;
        let (stdin, stdout) = (process.stdin.take(), process.stdout.take());
        let (stdin, stdout) = stdin
            .zip(stdout)
            .ok_or("a worker without stdin and stdout")?;
        Ok(Self {
            index: work.index,
            process,
            stdin,
            stdout: BufReader::new(stdout).lines(),
        })
    }

    async fn say(&mut self, word: &str) -> Result<(), BoxError> {
        self.stdin
            .write_all(format!("{word}\n").as_bytes())
            .await
            .map_err(BoxError::new)
    }

    async fn expect_line(&mut self) -> Result<String, BoxError> {
        let line = self.stdout.next_line().await.map_err(BoxError::new)?;
        line.ok_or_else(|| format!("process {} ended too early", self.index).into())
    }

    async fn expect(&mut self, word: &str) -> Result<(), BoxError> {
        let line = self.expect_line().await?;
        if line != word {
            return Err(format!("process {} said {line:?} instead of {word:?}", self.index).into());
        }
        Ok(())
    }

    /// Reads the answers of the worker to the end.
    async fn finish(mut self, answered: Arc<AtomicUsize>) -> Result<Outcome, BoxError> {
        let (mut outcome, mut answered_here) = (Outcome::default(), 0);
        loop {
            let line = self.expect_line().await?;
            let (word, rest) = line.split_once(' ').unwrap_or((&line, ""));
            let numbers: Result<Vec<u64>, _> = rest.split_whitespace().map(str::parse).collect();
            match (word, numbers.map_err(BoxError::new)?) {
                ("answered", numbers) => {
                    let so_far = numbers.first().copied().unwrap_or(answered_here);
                    let more = usize::try_from(so_far - answered_here).unwrap_or(0);
                    answered.fetch_add(more, Ordering::Relaxed);
                    answered_here = so_far;
                }
                ("queries", numbers) => outcome.queries = numbers.iter().sum(),
                ("latencies", numbers) => {
                    outcome.latencies = numbers;
                    break;
                }
                (other, _) => return Err(format!("process {} said {other:?}", self.index).into()),
            }
        }
        let status = self.process.wait().await.map_err(BoxError::new)?;
        if !status.success() {
            return Err(format!("process {} ended with {status}", self.index).into());
        }
        Ok(outcome)
    }
}
