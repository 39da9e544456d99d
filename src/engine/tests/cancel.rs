//! Cancellation: callers that go away, at every await point, neither end the load nor repeat it,
//! and leave nothing behind.

use super::*;

/// Which of five callers go away while an operation of their flight waits at a gate.
const LEAVING: [&[usize]; 4] = [&[0], &[4], &[0, 1, 2, 3], &[0, 1, 2, 3, 4]];

#[tokio::test(start_paused = true)]
async fn dropping_callers_at_any_await_point_leaves_the_load_running_and_its_value_stored() {
    for operation in ["get", "acquire", "load", "replace"] {
        for when in [When::Before, When::After] {
            for leave in LEAVING {
                let (tier, source) = (InProcess::new(), Database::new(true, [Step::Found("v")]));
                let cache = node(&source, &tier);
                let gate = (operation != "load").then(|| tier.gate(operation, when));
                let mut callers: Vec<_> = (0..5).map(|_| spawn_get(&cache, 1)).collect();
                if operation != "get" && operation != "acquire" {
                    source.loading().await;
                }
                if operation == "replace" {
                    source.answer();
                }
                reached(gate.as_ref()).await;
                settle().await;
                for &caller in leave.iter().rev() {
                    let caller = callers.remove(caller);
                    caller.abort();
                    assert!(caller.await.unwrap_err().is_cancelled());
                }
                // A caller that comes now joins the flight.
                let late = spawn_get(&cache, 1);
                settle().await;
                if let Some(gate) = gate {
                    gate.open();
                }
                if operation != "replace" {
                    source.answer();
                }
                for caller in callers.into_iter().chain([late]) {
                    assert_eq!(text(&caller.await.unwrap()), Some("v"));
                }
                settle().await;
                let at = format!("{operation} {when:?} {leave:?}");
                assert_eq!(source.calls(), 1, "{at}");
                assert!(cache.peek(&1).is_some(), "{at}");
                assert_eq!(raw_kind(&tier, KEY), Some(Kind::Value), "{at}");
                validate(&[&cache], &tier).await;
            }
        }
    }
}

async fn reached(gate: Option<&Gate>) {
    if let Some(gate) = gate {
        gate.reached().await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_caller_that_gives_up_never_makes_a_later_one_fail() {
    for shared in [false, true] {
        let source = Database::new(true, [Step::Found("v")]);
        let tier = InProcess::new();
        let settings = settings(&source);
        let cache = if shared {
            settings.l2(tier.clone()).build()
        } else {
            settings.build()
        }
        .unwrap();
        for _ in 0..10 {
            let gave_up = tokio::time::timeout(Duration::from_millis(1), cache.get(&1)).await;
            assert!(gave_up.is_err());
        }
        source.answer();
        assert_eq!(text(&cache.get(&1).await), Some("v"));
        assert_eq!(source.calls(), 1);
        validate(&[&cache], &tier).await;
    }
}

#[tokio::test(start_paused = true)]
async fn dropping_a_caller_that_waits_for_a_lease_leaves_nothing_behind() {
    let (tier, source) = (InProcess::new(), Database::new(true, [Step::Found("v")]));
    let (holder, waiter) = (node(&source, &tier), node(&source, &tier));
    let held = spawn_get(&holder, 1);
    source.loading().await;
    let waiting = spawn_get(&waiter, 1);
    settle().await;
    waiting.abort();
    settle().await;
    source.answer();
    assert_eq!(text(&held.await.unwrap()), Some("v"));
    settle().await;
    assert!(waiter.peek(&1).is_some(), "its read went on and was stored");
    validate(&[&holder, &waiter], &tier).await;
}

#[tokio::test(start_paused = true)]
async fn a_warm_up_that_is_dropped_while_its_lease_is_granted_keeps_no_lease() {
    let (tier, source) = fixture(false, &["v"]);
    let cache = node(&source, &tier);
    let granted = tier.gate("acquire", When::After);
    let warming = tokio::spawn(cache.warm([1]).into_future());
    granted.reached().await;
    assert_eq!(tier.len(), 1, "the lease, which no process knows of");
    warming.abort();
    warming.await.unwrap_err();
    granted.open();
    settle().await;
    assert!(tier.is_empty());
}
