//! A stampede, and four ways to answer it.
//!
//! ```text
//! cargo run --release --example stampede
//! ```
//!
//! A real SQLite database answers an expensive query. 1,000 requests want its result. First they
//! come all at the same moment while the key is absent (a cold key). Then they come in a steady
//! stream while the key expires every second (a hot key). They come from four processes, each with
//! one of these strategies:
//!
//! - no cache;
//! - cache-aside as in tutorials: `GET`, on a miss the query, `SET EX`;
//! - the same with a lock: `SET NX PX`, and a request without the lock sleeps for 50 ms and looks
//!   again;
//! - tidegate.
//!
//! At the end a table shows how many queries reached the database, how long the requests took, and
//! how many commands went to the shared tier.
//!
//! The database allows 16 queries at once, as behind a connection pool, and each process has its
//! share of them. The first two strategies send nearly all requests to the database, so a slow
//! query would take them very long. The table is as large as 1,000 queries within 15 seconds and
//! one query within 50 ms allow on this machine (about 30 ms on two cores). The whole takes about a
//! minute.
//!
//! # Simulated and real processes
//!
//! Without a server, processes are simulated. Each has a cache (or a client) and connections of its
//! own, and shares an embedded tier with the others. The textbook strategies share a small
//! key-value store that takes 1 to 2 ms for every command. tidegate shares an
//! [`InProcess`](tidegate::InProcess), which takes no time. For a comparison, add 1 to 2 ms for
//! each of the three round trips of a load. `InProcess::commands` counts its commands.
//!
//! With Redis or Valkey everything is real. The example starts itself once per process:
//!
//! ```text
//! cargo run --release --example stampede -- --redis auto              # its own redis-server
//! cargo run --release --example stampede -- --redis redis://host:6379 --processes 8
//! ```
//!
//! The server counts the commands (`INFO commandstats`). Its count includes the commands inside
//! tidegate's scripts, so tidegate sends fewer than the table shows. Commands of other clients of
//! the server would be counted as well. All keys expire.

use std::error::Error;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Instant;

use tidegate::BoxError;

use crate::database::{CONNECTIONS, SalesFile};
use crate::fleet::{Fleet, Shared};
use crate::node::Strategy;
use crate::options::{Command, Options, Redis};
use crate::redis::OwnServer;
use crate::report::{Progress, Row, grouped};
use crate::traffic::{Job, Phase};

mod database;
mod fleet;
mod kv;
mod node;
mod options;
mod redis;
mod report;
mod traffic;
mod worker;

fn main() -> ExitCode {
    let command = match options::parse(std::env::args().skip(1)) {
        Ok(command) => command,
        Err(message) => {
            eprintln!("stampede: {message}\nTry --help.");
            return ExitCode::from(2);
        }
    };
    let runtime = match tokio::runtime::Runtime::new() {
        Ok(runtime) => runtime,
        Err(error) => return fail(&error),
    };
    // For whatever reason this ends, the processes, the server and the database's file are dropped.
    let worker = matches!(command, Command::Work(_));
    let result = runtime.block_on(async {
        tokio::select! {
            result = run(command) => result,
            () = interrupted(worker) => Err("interrupted".into()),
        }
    });
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => fail(&error),
    }
}

fn fail(error: &dyn Error) -> ExitCode {
    eprint!("stampede: {error}");
    let mut source = error.source();
    while let Some(cause) = source {
        eprint!(": {cause}");
        source = cause.source();
    }
    eprintln!();
    ExitCode::FAILURE
}

async fn run(command: Command) -> Result<(), BoxError> {
    match command {
        Command::Help => println!("{}", options::HELP),
        Command::Work(work) => worker::work(work).await?,
        Command::Run(options) => compare(options).await?,
    }
    Ok(())
}

async fn compare(options: Options) -> Result<(), BoxError> {
    let begun = Instant::now();
    let Options {
        requests,
        processes,
        redis,
    } = options;
    let server = if redis == Redis::Auto {
        Some(OwnServer::start().await?)
    } else {
        None
    };
    let url = match (&server, redis) {
        (Some(server), _) => Some(server.url()),
        (None, Redis::Url(url)) => Some(url),
        (None, _) => None,
    };
    let shared = match url {
        Some(url) => Shared::Redis {
            client: redis::connect(&url).await?,
            url,
        },
        None => Shared::Embedded,
    };

    let file = tokio::task::spawn_blocking(SalesFile::create)
        .await
        .map_err(BoxError::new)??;
    introduce(requests, processes, &shared, server.is_some(), &file);

    let mut rows = Vec::new();
    for phase in Phase::ALL {
        for strategy in Strategy::ALL {
            let name = format!("stampede-{:x}", rand::random::<u64>());
            let job = Job {
                strategy,
                phase,
                requests,
                processes,
                name,
            };
            rows.push(measure(&job, &file, &shared, rows.len() + 1).await?);
        }
    }
    report::table(&rows);
    println!();
    println!(
        "{}",
        match shared {
            Shared::Embedded =>
                "A command takes 1 to 2 ms, but none to tidegate's embedded tier: a load makes 3.",
            Shared::Redis { .. } =>
                "Commands as the server counts them, those within tidegate's scripts included.",
        }
    );
    verdict(&rows, requests, processes)?;
    println!("It took {} s.", begun.elapsed().as_secs());
    Ok(())
}

fn introduce(
    requests: usize,
    processes: usize,
    shared: &Shared,
    own_server: bool,
    file: &SalesFile,
) {
    let (requests, sales) = (grouped(requests as u64), grouped(file.sales));
    let (alone, together) = (file.alone.as_millis(), file.together.as_millis());
    let cores = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    let (kind, tier) = match shared {
        Shared::Embedded => (", simulated (--redis auto: real ones)", "embedded"),
        Shared::Redis { .. } if own_server => ("", "Redis, started for this run"),
        Shared::Redis { .. } => ("", "Redis"),
    };
    println!("requests    {requests} per strategy and phase");
    println!("processes   {processes}{kind}");
    println!("database    SQLite, {sales} sales, at most {CONNECTIONS} queries at once");
    println!(
        "one query   {alone} ms alone, {together} ms beside {} others, on {cores} cores",
        CONNECTIONS - 1
    );
    println!("L2          {tier}");
    println!();
}

/// One strategy in one phase, with new processes and an empty shared tier.
async fn measure(
    job: &Job,
    file: &SalesFile,
    shared: &Shared,
    number: usize,
) -> Result<Row, BoxError> {
    let mut fleet = Fleet::start(job, file.path(), shared).await?;
    if job.phase == Phase::Hot {
        fleet.fill().await?;
    }
    let commands_before = fleet.commands().await?;
    let answered = Arc::default();
    let all = Strategy::ALL.len() * Phase::ALL.len();
    let what = format!(
        "[{number}/{all}] {} key, {}",
        job.phase.word(),
        job.strategy.title()
    );
    let progress = Progress::begin(what, job.requests, Arc::clone(&answered));
    let outcome = fleet.send(&answered).await?;
    drop(progress);
    let commands = fleet.commands().await? - commands_before;
    if outcome.latencies.len() != job.requests {
        return Err(format!(
            "{} of {} requests answered",
            outcome.latencies.len(),
            job.requests
        )
        .into());
    }
    Ok(Row {
        strategy: job.strategy,
        phase: job.phase,
        outcome,
        commands,
    })
}

/// Checks the claim: one query, however many requests and processes there are.
fn verdict(rows: &[Row], requests: usize, processes: usize) -> Result<(), BoxError> {
    let cold = rows
        .iter()
        .find(|row| row.strategy == Strategy::Tidegate && row.phase == Phase::Cold);
    let queries = cold.map_or(0, |row| row.outcome.queries);
    if queries != 1 {
        return Err(
            format!("tidegate sent {queries} queries for a cold key; it should be one").into(),
        );
    }
    println!(
        "tidegate: {} requests for a cold key in {processes} processes, one query.",
        grouped(requests as u64)
    );
    Ok(())
}

/// Waits for Ctrl-c, or for the signal that `kill` sends.
async fn interrupted(worker: bool) {
    if worker {
        // Ctrl-c reaches the parent as well, which prints the message and ends its processes.
        let _ = tokio::signal::ctrl_c().await;
        return std::future::pending().await;
    }
    #[cfg(unix)]
    if let Ok(mut terminate) =
        tokio::signal::unix::signal(tokio::signal::unix::SignalKind::terminate())
    {
        tokio::select! {
            _ = tokio::signal::ctrl_c() => {}
            _ = terminate.recv() => {}
        }
        return;
    }
    let _ = tokio::signal::ctrl_c().await;
}
