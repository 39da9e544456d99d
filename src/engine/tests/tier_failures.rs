//! A shared tier that fails or cannot be reached: no look-up fails or loads twice because of it.

use super::*;

/// Each operation of the tier fails in each way, one at a time. No look-up fails, no key is loaded
/// twice, and no lease is left.
#[tokio::test(start_paused = true)]
async fn no_get_fails_or_loads_twice_because_of_the_shared_tier() {
    for operation in ["get", "acquire", "renew", "replace", "release"] {
        for when in [When::Before, When::After] {
            for kind in [
                RemoteKind::Unreachable,
                RemoteKind::Timeout,
                RemoteKind::Refused,
            ] {
                let (tier, source) = (InProcess::new(), Database::new(true, [Step::Found("v")]));
                let cache = node(&source, &tier);
                tier.fail(operation, when, kind);
                let all: Vec<_> = (0..5).map(|_| spawn_get(&cache, 1)).collect();
                source.loading().await;
                tokio::time::sleep(Duration::from_millis(700)).await;
                source.answer();
                for got in all {
                    assert_eq!(
                        text(&got.await.unwrap()),
                        Some("v"),
                        "{operation} {when:?} {kind:?}"
                    );
                }
                assert_eq!(source.calls(), 1);
                // A lease that could not be released expires.
                tokio::time::sleep(Duration::from_secs(3)).await;
                validate(&[&cache], &tier).await;
            }
        }
    }
}

#[tokio::test(start_paused = true)]
async fn while_the_tier_cannot_be_reached_l1_answers_for_its_degraded_ttl() {
    use crate::l2::Listener;
    let (tier, source) = (InProcess::new(), Database::new(false, [Step::Found("v")]));
    let cache = node(&source, &tier);
    cache.get(&1).await.unwrap();
    cache.engine().on_down();
    assert!(cache.peek(&1).is_none(), "no messages, but L2 can be asked");
    assert_eq!(
        cache.get_entry(&1).await.unwrap().unwrap().source(),
        Source::L2
    );
    // Now L2 cannot be reached either.
    tier.fail("get", When::Before, RemoteKind::Unreachable);
    assert_eq!(text(&cache.get(&2).await), Some("v"));
    assert!(cache.peek(&2).is_some());
    assert!(cache.peek(&1).is_some());
    tokio::time::advance(Duration::from_millis(4_999)).await;
    assert!(cache.peek(&1).is_some() && cache.peek(&2).is_some());
    tokio::time::advance(Duration::from_millis(1)).await;
    assert!(cache.peek(&1).is_none() && cache.peek(&2).is_none());
    // The channel is up again: entries from before are not answered, but read again.
    cache.engine().on_up();
    assert!(cache.peek(&1).is_none());
    assert_eq!(
        cache.get_entry(&1).await.unwrap().unwrap().source(),
        Source::L2
    );
    assert!(cache.peek(&1).is_some());
    validate(&[&cache], &tier).await;
}

/// Otherwise every process would load every key that is asked for at that moment.
#[tokio::test(start_paused = true)]
async fn a_look_up_that_finds_the_tier_lost_takes_what_l1_may_answer_and_loads_nothing() {
    use crate::l2::Listener;
    let (tier, source) = (InProcess::new(), Database::new(false, [Step::Found("v")]));
    let cache = node(&source, &tier);
    cache.get(&1).await.unwrap();
    cache.engine().on_down();
    for (other, read, from) in [
        (2, Read::new(), Source::L1),
        (3, Read::fresh(), Source::L1),
        (4, Read::new().skip_l1(), Source::Loader),
    ] {
        let seen = cache.get_entry(&1).await.unwrap().unwrap().source();
        assert_eq!(seen, Source::L2, "no messages, but L2 can be asked");
        tier.fail("get", When::Before, RemoteKind::Unreachable);
        let entry = cache.get_entry_with(&1, read).await.unwrap().unwrap();
        assert_eq!(entry.source(), from, "{read:?}");
        // The tier answers again.
        cache.get(&other).await.unwrap();
    }
    assert_eq!(source.calls(), 5, "four keys, and one load past L1");
    tier.fail("get", When::Before, RemoteKind::Unreachable);
    cache.refresh(&1).await.unwrap();
    assert_eq!(source.calls(), 6, "a refresh is a load");
    validate(&[&cache], &tier).await;
}
