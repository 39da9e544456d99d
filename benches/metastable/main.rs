//! A cache is lost under full load, and the source can serve a tenth of it: which design recovers?
//!
//! ```text
//! cargo bench --bench metastable --features testing
//! cargo bench --bench metastable --features testing -- --seed 7
//! ```
//!
//! Two minutes of simulated time for each design: 3,000 requests a second for 6,000 keys (Zipf,
//! 0.9) in four processes, 30 concurrent queries of 100 milliseconds in the source, a TTL of five
//! minutes, clients that give up after a second. At second 20 the cache is lost. The source carries
//! out every query, also when its client has given up. `--test` takes a tenth of the load. Needs no
//! server.
//!
//! Literature: Bronson et al., "Metastable Failures in Distributed Systems", HotOS 2021; Huang et
//! al., OSDI 2022.

use std::process::ExitCode;

use tidegate::BoxError;

use self::simulation::{Design, Outcome, Scenario, run};

mod simulation;

/// Seconds after the loss for which the share of answers is printed.
const SHOWN: [usize; 8] = [0, 1, 2, 5, 10, 20, 40, 99];

fn name(design: Design) -> &'static str {
    match design {
        Design::Textbook => "`GET`, `SELECT`, `SETEX`",
        Design::Coalescing => "the same, coalesced per process",
        Design::Pooled => "the same, with a pool of connections",
        Design::Unlimited => "tidegate, no limit set",
        Design::Limited => "tidegate, `max_concurrent_loads`, `load_timeout` 1 s",
        Design::Stale => {
            "the same, `stale_while_revalidate`, without L1; entries pass their TTL instead of being lost"
        }
    }
}

fn row(design: Design, outcome: &Outcome) -> String {
    let shares = SHOWN.map(|second| format!("{:.0} %", 100.0 * outcome.good(20 + second)));
    let recovered = outcome
        .recovered_after()
        .map_or("never".to_owned(), |seconds| format!("{seconds} s"));
    format!(
        "| {} | {} | {recovered} | {} | {} | {} | {} |",
        name(design),
        shares.join(" | "),
        outcome.failed(),
        outcome.queries,
        outcome.wasted,
        outcome.longest_queue,
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
    let scenario = if tests {
        Scenario::SMALL
    } else {
        Scenario::FULL
    };
    let seed = match args.iter().position(|arg| arg == "--seed") {
        Some(at) => {
            let seed = args.get(at + 1).ok_or("--seed needs a number")?;
            seed.parse().map_err(BoxError::new)?
        }
        None => 2021,
    };
    let seconds = SHOWN.map(|second| format!("{second} s")).join(" | ");
    println!(
        "Seed {seed}. The share of requests that are answered in time, by seconds after the loss.\n"
    );
    println!(
        "| design | {seconds} | 95 % again after | failed requests since the loss | queries \
         | queries without a client | longest queue |"
    );
    println!("|---{}", "|---".repeat(SHOWN.len() + 5) + "|");
    for design in Design::ALL {
        println!("{}", row(design, &run(scenario, design, seed)?));
    }
    Ok(())
}
