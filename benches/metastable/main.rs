//! A cache is lost under full load, and the source can serve a tenth of it: who recovers?
//!
//! ```text
//! cargo bench --bench metastable --features testing
//! cargo bench --bench metastable --features testing -- --seed 7
//! ```
//!
//! Two minutes of simulated time for each way to look things up: 3,000 requests a second for 6,000
//! keys (Zipf, 0.9) in four processes, 30 queries at a time in the source, 100 milliseconds each, a TTL
//! of five minutes, clients that go away after a second. At second 20 the cache is lost. What a client
//! that has gone asked the source for is carried out all the same. `--test` takes a tenth of it. (Bronson et al., "Metastable Failures
//! in Distributed Systems", HotOS 2021; Huang et al., OSDI 2022.) Needs no server.

use std::process::ExitCode;

use tidegate::BoxError;

use self::simulation::{Outcome, Scene, Way, run};

mod simulation;

/// Seconds after the loss whose share of answers is shown.
const SHOWN: [usize; 8] = [0, 1, 2, 5, 10, 20, 40, 99];

fn name(way: Way) -> &'static str {
    match way {
        Way::Textbook => "`GET`, `SELECT`, `SETEX`",
        Way::Coalescing => "the same, coalesced per process",
        Way::Pooled => "the same, with a pool of connections",
        Way::Unlimited => "tidegate, no limit set",
        Way::Limited => "tidegate, `max_concurrent_loads`, `load_timeout` 1 s",
        Way::Stale => {
            "the same, `stale_while_revalidate`, without L1; TTLs past instead of entries lost"
        }
    }
}

fn row(way: Way, outcome: &Outcome) -> String {
    let shares = SHOWN.map(|second| format!("{:.0} %", 100.0 * outcome.good(20 + second)));
    let recovered = outcome
        .recovered_after()
        .map_or("never".to_owned(), |seconds| format!("{seconds} s"));
    format!(
        "| {} | {} | {recovered} | {} | {} | {} | {} |",
        name(way),
        shares.join(" | "),
        outcome.failed(),
        outcome.queries,
        outcome.wasted,
        outcome.longest_line,
    )
}

fn main() -> ExitCode {
    match print(&std::env::args().collect::<Vec<_>>()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("metastable: {error}");
            ExitCode::FAILURE
        }
    }
}

fn print(args: &[String]) -> Result<(), BoxError> {
    let tests = args.iter().any(|arg| arg == "--test");
    let scene = if tests { Scene::SMALL } else { Scene::FULL };
    let seed = match args.iter().position(|arg| arg == "--seed") {
        Some(at) => {
            let seed = args.get(at + 1).ok_or("--seed needs a number")?;
            seed.parse().map_err(BoxError::new)?
        }
        None => 2021,
    };
    let seconds = SHOWN.map(|second| format!("{second} s")).join(" | ");
    println!(
        "Seed {seed}. Answered in time, so many seconds after the loss; then since the loss:\n"
    );
    println!(
        "| | {seconds} | 95 % again after | requests failed | queries | of them for nobody | longest line |"
    );
    println!("|---{}", "|---".repeat(SHOWN.len() + 5) + "|");
    for way in Way::ALL {
        println!("{}", row(way, &run(scene, way, seed)?));
    }
    Ok(())
}
