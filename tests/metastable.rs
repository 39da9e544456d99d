//! A cache that is lost under full load recovers, where a textbook cache does not. Simulated time.

#[path = "../benches/metastable/simulation.rs"]
mod simulation;

use self::simulation::{Design, Outcome, Scenario, run};

const SEEDS: [u64; 2] = [1, 2021];

#[test]
fn at_full_size_the_load_is_ten_times_what_the_source_serves() {
    for scenario in [Scenario::FULL, Scenario::SMALL] {
        let serves = scenario.servers as f64 / scenario.service.as_secs_f64();
        assert!(
            (f64::from(scenario.rate) / serves - 10.0).abs() < 0.1,
            "{scenario:?}"
        );
    }
    assert_eq!(Design::ALL.len(), 6);
}

fn outcomes(design: Design) -> impl Iterator<Item = Outcome> {
    let outcome = move |seed| run(Scenario::SMALL, design, seed).expect("it runs");
    SEEDS.into_iter().map(outcome).inspect(|outcome| {
        // Before the loss, the source bears the load that the cache leaves to it.
        for second in 0..Scenario::SMALL.lost_at {
            assert!(outcome.good(second) > 0.99, "{outcome:?}");
        }
    })
}

#[test]
fn the_textbook_never_recovers() {
    for design in [Design::Textbook, Design::Coalescing, Design::Pooled] {
        for outcome in outcomes(design) {
            assert_eq!(outcome.recovered_after(), None, "{design:?}: {outcome:?}");
            // Most of the source's work is for callers that have given up.
            assert!(
                outcome.wasted * 2 > outcome.queries,
                "{design:?}: {outcome:?}"
            );
        }
    }
}

#[test]
fn with_permits_for_loads_it_recovers_and_no_query_is_wasted() {
    for outcome in outcomes(Design::Limited) {
        let seconds = outcome.recovered_after().expect("it recovers");
        // All keys could be loaded in 20 seconds.
        assert!(seconds <= 20, "{outcome:?}");
        // The source never gets more than it can work on.
        assert_eq!(outcome.longest_queue, 1, "{outcome:?}");
        assert!(outcome.wasted * 50 < outcome.queries, "{outcome:?}");
    }
}

#[test]
fn loads_that_run_to_their_end_let_it_recover() {
    for outcome in outcomes(Design::Unlimited) {
        assert!(outcome.recovered_after().is_some(), "{outcome:?}");
        assert_eq!(outcome.wasted, 0, "{outcome:?}");
    }
}

#[test]
fn stale_entries_are_answered_meanwhile() {
    for outcome in outcomes(Design::Stale) {
        assert_eq!(outcome.failed(), 0, "{outcome:?}");
        assert_eq!(outcome.longest_queue, 1, "{outcome:?}");
    }
}
