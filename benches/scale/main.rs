//! What a fleet costs its server, by the number of processes and of writes: measured, added up in a model,
//! held against real handles, and drawn out to fleets that do not fit on a machine.
//!
//! ```text
//! cargo bench --bench scale
//! ```
//!
//! The constants are the server's own (`INFO`): CPU time of its process, bytes in and out, memory; each
//! with one call at a time, and with 32 at once. Linux: what nodes of a cluster send to one another is what they have
//! written (`/proc`) beyond what they say they sent to clients. Needs a `redis-server` on the PATH, or
//! named in `TIDEGATE_REDIS_SERVER`. `-- --test` only looks whether everything runs.

use std::process::ExitCode;

use tidegate::BoxError;

use self::model::Model;

mod cluster;
mod measure;
mod model;
#[expect(dead_code, reason = "the tests use more of it")]
#[path = "../redis_proxy/mod.rs"]
mod redis_proxy;
mod server;

fn main() -> ExitCode {
    let quick = std::env::args().any(|arg| arg == "--test");
    let runtime = tokio::runtime::Runtime::new().map_err(BoxError::new);
    let run = runtime.and_then(|runtime| runtime.block_on(run(if quick { 20 } else { 1 })));
    match run {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("scale: {error}");
            ExitCode::FAILURE
        }
    }
}

/// `share`: one of how many of the usual repetitions.
async fn run(share: u64) -> Result<(), BoxError> {
    let idle = measure::idle(share).await?;
    for at_once in [1, 32] {
        let costs = measure::costs(share, at_once).await?;
        costs.print(Some(idle).filter(|_| at_once > 1));
        let model = Model { costs, idle };
        model::validate(&model, share).await?;
        model::tables(&model);
        if at_once > 1 {
            model::memory(&model);
        }
    }
    cluster::measure(share).await
}
