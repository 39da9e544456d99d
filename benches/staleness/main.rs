//! Refresh-ahead, compared with the paper that it follows, and its effect on requests for a hot
//! key.
//!
//! ```text
//! cargo bench --bench staleness                    # both, about three minutes
//! cargo bench --bench staleness -- paper           # only the first; --full: rδ = 10,000 as well
//! cargo bench --bench staleness -- hot-key         # only the second
//! ```
//!
//! `paper`: caches of this crate under tokio's paused clock, in which a load of 100 seconds takes
//! no time. `--seed` sets the arrivals of requests, but not the random numbers of the caches, so
//! two runs agree within the sampling error. It fails when a fleet does not load exactly once per
//! expiry, or when a measurement differs from its expectation by more than chance explains.
//!
//! `hot-key`: four processes and a `redis-server`, from the PATH or named in
//! `TIDEGATE_REDIS_SERVER`.
//!
//! `--test` only checks that everything runs.

use std::process::ExitCode;

use tidegate::BoxError;

mod hot_key;
mod paper;
#[path = "../support/server.rs"]
mod server;

/// The default seed of the arrivals.
const SEED: u64 = 2015;

fn main() -> ExitCode {
    match run(std::env::args().skip(1).collect()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("staleness: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run(args: Vec<String>) -> Result<(), BoxError> {
    if args.first().is_some_and(|arg| arg == hot_key::WORKER) {
        return hot_key::work(&args[1..]);
    }
    let asked_for = |word: &str| args.iter().any(|arg| arg == word);
    let seed = match args.iter().position(|arg| arg == "--seed") {
        Some(at) => {
            let seed = args.get(at + 1).ok_or("--seed needs a number")?;
            seed.parse().map_err(BoxError::new)?
        }
        None => SEED,
    };
    let both = asked_for("paper") == asked_for("hot-key");
    if both || asked_for("paper") {
        paper::run(seed, asked_for("--test"), asked_for("--full"))?;
    }
    if both || asked_for("hot-key") {
        hot_key::run(seed, asked_for("--test"))?;
    }
    Ok(())
}
