//! The memory of an entry, of a running load and of a waiting caller, counted. This is a binary of
//! its own because its allocator counts. `cargo bench --bench memory` prints the figures.
//!
//! The bounds leave room for variation between runs (a byte for an entry) and between builds (a
//! tenth at most for a load and a caller, whose futures grow with more features), but not for a new
//! field of some size.

#[path = "../benches/memory/count.rs"]
mod count;

use std::sync::{Mutex, MutexGuard, PoisonError};

use count::{entry, flood, in_flight, rounds};

/// One test at a time: moka frees replaced entries later, on any thread that uses it.
static ALONE: Mutex<()> = Mutex::new(());

fn alone() -> MutexGuard<'static, ()> {
    ALONE.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Bytes of an entry beyond those of moka for the same key and value: its times, its fence, its
/// tags.
const ENTRY: f64 = 208.0;
/// A running load, its lease on the embedded tier and its record there, without its callers.
const LOAD: f64 = 11_500.0;
/// A caller that waits for the load of another one, in a task of its own.
const WAITER: f64 = 600.0;

#[test]
fn an_entry_of_l1_is_no_larger_than_stated() {
    let _alone = alone();
    for found in [true, false] {
        let (limit, ours) = entry::<u64>(5_000, found).expect("entries");
        println!("`u64`, found {found}: {ours:.0} bytes, moka {limit:.0}");
        assert!(ours - limit < ENTRY, "{ours:.0} bytes, moka {limit:.0}");
        let (limit, ours) = entry::<String>(5_000, found).expect("entries");
        println!("`String`, found {found}: {ours:.0} bytes, moka {limit:.0}");
        assert!(ours - limit < ENTRY, "{ours:.0} bytes, moka {limit:.0}");
    }
}

#[test]
fn a_load_and_its_waiters_are_no_larger_than_stated() {
    let _alone = alone();
    for tier in [false, true] {
        let of = in_flight(1_000, tier).expect("loads under way");
        println!("{of:?}");
        assert!(of.flight < LOAD, "a load: {of:?}");
        assert!(of.waiter < WAITER, "a waiter: {of:?}");
        assert!(of.task > 0.0 && of.waiter > of.task, "{of:?}");
    }
}

#[test]
fn a_flood_of_absent_keys_neither_grows_nor_evicts() {
    const BUDGET: u64 = 500;
    let _alone = alone();
    let of = flood(BUDGET).expect("a flood");
    println!("{of:?}");
    assert_eq!(of.values, BUDGET, "no value is evicted: {of:?}");
    assert!(of.absences <= 2 * BUDGET, "{of:?}");
    // The length of moka's logs varies.
    assert!(of.flooded < of.full + of.full / 10, "{of:?}");
}

#[test]
fn rounds_of_fills_invalidations_and_floods_leave_no_more_than_the_first() {
    let _alone = alone();
    let after = rounds(10, 500).expect("rounds");
    println!("{after:?}");
    let (first, last) = (after[1], after[9]);
    assert!(last < first + first / 10, "{after:?}");
}
