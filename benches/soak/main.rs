//! A soak: traffic and faults for a long time, checked by an oracle.
//!
//! ```text
//! cargo bench --bench soak                                  # 10 minutes
//! cargo bench --bench soak -- --minutes 60 --seed 7
//! ```
//!
//! Three nodes reach one server, each through a proxy of its own. They look up, invalidate, insert,
//! expire and write rows with versions. Faults of the proxies and of the server follow one another,
//! drawn from the seed.
//!
//! The soak fails when a look-up fails with any error but the source's own, or answers an older
//! version than allowed. It fails when look-ups do not add up, when the nodes disagree in the end,
//! or when memory, tasks, file descriptors, leases or keys without an expiry are left. A seed
//! repeats the faults and the random numbers, but not the interleaving.

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
        println!("FAULT: {wrong}");
    }
    if wrong.is_empty() {
        println!("no fault was found");
        ExitCode::SUCCESS
    } else {
        println!("{} faults were found, with seed {seed}", wrong.len());
        ExitCode::FAILURE
    }
}
