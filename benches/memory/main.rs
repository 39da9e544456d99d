//! The memory of a cache in bytes, against a limit measured in the same run.
//!
//! ```text
//! cargo bench --bench memory
//! ```
//!
//! The allocator counts the bytes that were requested and not freed, without its own overhead. The
//! limit is bare moka with the same keys, the same values in an `Arc` and the same capacity.
//! `-- --test` only checks that everything runs.

use std::process::ExitCode;

use tidegate::BoxError;

use self::count::{Gate, Key, builder, entry, flood, in_flight, live_bytes, rounds};

mod count;

fn main() -> ExitCode {
    let quick = std::env::args().any(|arg| arg == "--test");
    match run(if quick { 100 } else { 1 }) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("memory: {error}");
            ExitCode::FAILURE
        }
    }
}

/// `share`: the divisor of the usual number of entries.
fn run(share: u64) -> Result<(), BoxError> {
    println!(
        "| entry of L1, beyond its key and value | entries | bare moka, bytes | tidegate, bytes | difference, bytes |"
    );
    println!("|---|---|---|---|---|");
    for entries in [10_000, 100_000] {
        for (what, found) in [("a value", true), ("an absence", false)] {
            one::<u64>(what, "`u64`", entries / share, found)?;
            one::<String>(what, "`String` of 24 bytes", entries / share, found)?;
        }
    }
    println!();
    println!("| in flight | at once | bytes each | of them a bare tokio task, bytes |");
    println!("|---|---|---|---|");
    let many = 10_000 / share;
    for (what, tier) in [
        ("without a tier", false),
        ("with its lease in the embedded tier", true),
    ] {
        let of = in_flight(many, tier)?;
        println!(
            "| a waiting caller, {what} | {many} | {:.0} | {:.0} |",
            of.waiter, of.task
        );
        println!(
            "| a load, without its callers, {what} | {many} | {:.0} | – |",
            of.flight
        );
    }
    println!();
    println!("| a cache of `u64` keys without entries | bytes |");
    println!("|---|---|");
    for capacity in [1, 100, 10_000, 1_000_000] {
        let build = || {
            builder::<u64>(true, &Gate::new(true))
                .l1_capacity(capacity)
                .build()
        };
        let (bytes, cache) = live_bytes(build);
        drop(cache.map_err(BoxError::new)?);
        println!("| `l1_capacity` {capacity} | {bytes} |");
    }
    println!();
    let budget = 10_000 / share;
    let of = flood(budget)?;
    println!("| {budget} values, a budget of {budget} absences | amount |");
    println!("|---|---|");
    println!("| live bytes | {} |", of.full);
    println!(
        "| live bytes after {} more absent keys | {} |",
        9 * budget,
        of.flooded
    );
    println!("| values that are still answered | {} |", of.values);
    println!("| absences in the embedded tier | {} |\n", of.absences);
    let after = rounds(10, budget)?;
    println!("Live bytes after each of 10 rounds of {budget} keys: {after:?}");
    Ok(())
}

fn one<K: Key>(what: &str, key: &str, entries: u64, found: bool) -> Result<(), BoxError> {
    let (limit, ours) = entry::<K>(entries, found)?;
    println!(
        "| {what}, {key} | {entries} | {limit:.0} | {ours:.0} | {:.0} |",
        ours - limit
    );
    Ok(())
}
