//! The cost of a fleet for its server, by the number of processes and of writes. The costs are
//! measured, summed in a model, compared with real handles, and extrapolated to fleets that do not
//! fit on one machine.
//!
//! ```text
//! cargo bench --bench scale
//! ```
//!
//! The costs are the server's own statistics (`INFO`): CPU time, bytes in and out, and memory, each
//! with one call at a time and with 32 concurrent calls. On Linux, the bytes between the nodes of a
//! cluster are the bytes that they have written (`/proc`) minus those that they report as sent to
//! clients. Needs a `redis-server` on the PATH, or named in `TIDEGATE_REDIS_SERVER`. `-- --test`
//! only checks that everything runs.

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
    let fast = std::env::args().any(|arg| arg == "--test");
    let runtime = tokio::runtime::Runtime::new().map_err(BoxError::new);
    let run = runtime.and_then(|runtime| runtime.block_on(run(if fast { 20 } else { 1 })));
    match run {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("scale: {error}");
            ExitCode::FAILURE
        }
    }
}

/// `share`: the divisor of the usual number of repetitions.
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
