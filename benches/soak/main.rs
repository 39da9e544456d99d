//! Traffic and faults, for a long time, and an oracle.
//!
//! ```text
//! cargo bench --bench soak                                  # 10 minutes
//! cargo bench --bench soak -- --minutes 60 --seed 7
//! ```
//!
//! Three nodes with a wire each to one server; look-ups, invalidations, inserts, expiries and writes of rows
//! with versions; faults on the wires and in the server, drawn from the seed, one after the other. It
//! fails where a look-up fails by anything but the source's own error, or answers an older version than
//! it may; where look-ups do not add up; where in the end the nodes do not agree; where memory, tasks,
//! file descriptors, leases or keys without an expiry are left. The seed gives the same faults and the
//! same draws again, not the same interleaving.

use std::process::ExitCode;
use std::time::Duration;

mod faults;
mod oracle;
#[expect(dead_code, reason = "the tests use more of it")]
#[path = "../redis_proxy/mod.rs"]
mod redis_proxy;
mod run;

fn number(args: &[String], name: &str) -> Option<f64> {
    let at = args.iter().position(|arg| arg == name)?;
    args.get(at + 1)?.parse().ok()
}

#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "a seed"
)]
#[tokio::main]
async fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let tests = args.iter().any(|arg| arg == "--test");
    let minutes = number(&args, "--minutes").unwrap_or(if tests { 0.1 } else { 10.0 });
    let drawn = std::time::UNIX_EPOCH
        .elapsed()
        .map_or(1, |now| now.as_secs());
    let seed = number(&args, "--seed").map_or(drawn, |seed| seed as u64);
    println!("seed {seed}, {minutes} minutes");
    let wrong = run::run(seed, Duration::from_secs_f64(minutes * 60.0), true).await;
    for wrong in wrong.iter().take(50) {
        println!("WRONG: {wrong}");
    }
    if wrong.is_empty() {
        println!("nothing was wrong");
        ExitCode::SUCCESS
    } else {
        println!(
            "{} times something was wrong, with seed {seed}",
            wrong.len()
        );
        ExitCode::FAILURE
    }
}
