//! A cache that is lost under full load recovers, where a textbook cache does not. Simulated time.

#[path = "../benches/metastable/simulation.rs"]
mod simulation;

use self::simulation::{Outcome, Scene, Way, run};

const SEEDS: [u64; 2] = [1, 2021];

#[test]
fn at_full_size_it_is_ten_times_what_the_source_serves() {
    for scene in [Scene::FULL, Scene::SMALL] {
        let serves = scene.servers as f64 / scene.service.as_secs_f64();
        assert!(
            (f64::from(scene.rate) / serves - 10.0).abs() < 0.1,
            "{scene:?}"
        );
    }
    assert_eq!(Way::ALL.len(), 6);
}

fn outcomes(way: Way) -> impl Iterator<Item = Outcome> {
    let outcome = move |seed| run(Scene::SMALL, way, seed).expect("it runs");
    SEEDS.into_iter().map(outcome).inspect(|outcome| {
        // Before the loss, the source bears the load that the cache leaves to it.
        for second in 0..Scene::SMALL.lost_at {
            assert!(outcome.good(second) > 0.99, "{outcome:?}");
        }
    })
}

#[test]
fn the_textbook_never_recovers() {
    for way in [Way::Textbook, Way::Coalescing, Way::Pooled] {
        for outcome in outcomes(way) {
            assert_eq!(outcome.recovered_after(), None, "{way:?}: {outcome:?}");
            // Most of the source's work is for callers that have given up.
            assert!(outcome.wasted * 2 > outcome.queries, "{way:?}: {outcome:?}");
        }
    }
}

#[test]
fn with_places_for_loads_it_comes_back_and_nothing_is_done_for_nobody() {
    for outcome in outcomes(Way::Limited) {
        let seconds = outcome.recovered_after().expect("it recovers");
        // All keys could be loaded in 20 seconds.
        assert!(seconds <= 20, "{outcome:?}");
        // The source never gets more than it can work on.
        assert_eq!(outcome.longest_line, 1, "{outcome:?}");
        assert!(outcome.wasted * 50 < outcome.queries, "{outcome:?}");
    }
}

#[test]
fn loads_that_run_to_their_end_are_what_brings_it_back() {
    for outcome in outcomes(Way::Unlimited) {
        assert!(outcome.recovered_after().is_some(), "{outcome:?}");
        assert_eq!(outcome.wasted, 0, "{outcome:?}");
    }
}

#[test]
fn what_is_past_its_ttl_is_answered_meanwhile() {
    for outcome in outcomes(Way::Stale) {
        assert_eq!(outcome.failed(), 0, "{outcome:?}");
        assert_eq!(outcome.longest_line, 1, "{outcome:?}");
    }
}
