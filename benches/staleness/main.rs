//! Refreshes before the TTL ends, held against the paper that they are taken from, and what requests
//! for a hot key see of them.
//!
//! ```text
//! cargo bench --bench staleness                    # both, about three minutes
//! cargo bench --bench staleness -- paper           # the first alone; --full: rδ = 10,000 as well
//! cargo bench --bench staleness -- hot-key         # the second alone
//! ```
//!
//! `paper`: caches of this crate under tokio's paused clock, so a load takes 100 seconds and no time.
//! Arrivals follow from `--seed`; what the caches draw does not, so two runs agree within sampling
//! error. It fails where a fleet has not loaded exactly once per expiry, or where what is measured is
//! further from what is expected than chance explains.
//!
//! `hot-key`: four processes and a `redis-server`, from the PATH or named in `TIDEGATE_REDIS_SERVER`.
//!
//! `--test` only looks whether everything runs.

use std::process::ExitCode;

use tidegate::BoxError;

mod hot_key;
mod paper;
#[path = "../support/server.rs"]
mod server;

/// The seed of the arrivals, unless another one is asked for.
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
    let said = |word: &str| args.iter().any(|arg| arg == word);
    let seed = match args.iter().position(|arg| arg == "--seed") {
        Some(at) => {
            let seed = args.get(at + 1).ok_or("--seed needs a number")?;
            seed.parse().map_err(BoxError::new)?
        }
        None => SEED,
    };
    let both = said("paper") == said("hot-key");
    if both || said("paper") {
        paper::run(seed, said("--test"), said("--full"))?;
    }
    if both || said("hot-key") {
        hot_key::run(seed, said("--test"))?;
    }
    Ok(())
}
