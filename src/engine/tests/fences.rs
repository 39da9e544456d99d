//! Fences: a value that was loaded or read before an invalidation is not stored after it, at each
//! point where the two can cross.

use super::*;

fn two_versions() -> Database {
    Database::new(true, [Step::Found("old"), Step::Found("new")])
}

#[tokio::test(start_paused = true)]
async fn an_invalidation_during_a_load_keeps_its_value_out_of_both_tiers() {
    let (tier, source) = (InProcess::new(), two_versions());
    let cache = node(&source, &tier);
    let first = spawn_get(&cache, 1);
    source.loading().await;
    cache.invalidate(&1).await.unwrap();
    source.answer();
    assert_eq!(
        text(&first.await.unwrap()),
        Some("old"),
        "its own caller still gets its answer"
    );
    assert_eq!(tier.raw(KEY), None);
    assert!(cache.peek(&1).is_none());
    source.answer();
    assert_eq!(text(&cache.get(&1).await), Some("new"));
    assert_eq!(cache.stats().fills, 1);
    validate(&[&cache], &tier).await;
}

#[tokio::test(start_paused = true)]
async fn without_a_shared_tier_an_invalidation_during_a_load_does_the_same() {
    let source = two_versions();
    let cache = settings(&source).build().unwrap();
    let first = spawn_get(&cache, 1);
    source.loading().await;
    cache.invalidate(&1).await.unwrap();
    let second = spawn_get(&cache, 1);
    source.loading().await;
    source.go.add_permits(2);
    assert_eq!(text(&first.await.unwrap()), Some("old"));
    assert_eq!(text(&second.await.unwrap()), Some("new"));
    assert_eq!(
        cache.peek(&1).map(|entry| entry.into_value()).as_deref(),
        Some(&"new".to_owned())
    );
    validate(&[&cache], &InProcess::new()).await;
}

#[tokio::test(start_paused = true)]
async fn a_get_after_an_invalidation_never_joins_a_load_that_began_before() {
    let (tier, source) = (InProcess::new(), two_versions());
    let cache = node(&source, &tier);
    let first = spawn_get(&cache, 1);
    source.loading().await;
    cache.invalidate(&1).await.unwrap();
    let second = spawn_get(&cache, 1);
    source.loading().await;
    assert_eq!(source.calls(), 2);
    source.go.add_permits(2);
    assert_eq!(text(&second.await.unwrap()), Some("new"));
    assert_eq!(text(&first.await.unwrap()), Some("old"));
    assert_eq!(text(&cache.get(&1).await), Some("new"));
    validate(&[&cache], &tier).await;
}

/// Two loads of one process around an invalidation. If they shared a token, the fill of the older
/// one would be accepted as that of the younger one.
#[tokio::test(start_paused = true)]
async fn of_two_loads_around_an_invalidation_the_older_ones_fill_is_refused() {
    let (tier, source) = (InProcess::new(), two_versions());
    let cache = node(&source, &tier);
    let first = spawn_get(&cache, 1);
    source.loading().await;
    // The flight is detached without a fence: only the token in L2 tells the fills apart.
    let gate = tier.gate("replace", When::Before);
    source.answer();
    gate.reached().await;
    tier.delete_raw(KEY);
    cache
        .engine()
        .flights
        .lock(cache.shell.key(1).id.hash)
        .detach(cache.shell.key(1).id.hash, b"1")
        .expect("the flight that runs");
    let second = spawn_get(&cache, 1);
    source.loading().await;
    gate.open();
    assert_eq!(text(&first.await.unwrap()), Some("old"));
    assert_eq!(
        raw_kind(&tier, KEY),
        Some(Kind::Lease),
        "the second load's lease stands"
    );
    assert_eq!(cache.stats().fills_refused, 1);
    source.answer();
    assert_eq!(text(&second.await.unwrap()), Some("new"));
    assert_eq!(raw_kind(&tier, KEY), Some(Kind::Value));
    validate(&[&cache], &tier).await;
}

#[tokio::test(start_paused = true)]
async fn an_insert_during_a_load_wins() {
    let (tier, source) = (InProcess::new(), two_versions());
    let (cache, other) = (node(&source, &tier), node(&source, &tier));
    let first = spawn_get(&cache, 1);
    source.loading().await;
    cache.insert(1, "inserted".to_owned()).await.unwrap();
    source.answer();
    assert_eq!(text(&first.await.unwrap()), Some("old"));
    for cache in [&cache, &other] {
        assert_eq!(text(&cache.get(&1).await), Some("inserted"));
    }
    assert_eq!(source.calls(), 1);
    validate(&[&cache, &other], &tier).await;
}

#[tokio::test(start_paused = true)]
async fn an_invalidation_between_the_reply_of_l2_and_the_store_in_l1_keeps_it_out() {
    for remote in [false, true] {
        let (tier, source) = (InProcess::new(), two_versions());
        let (cache, writer) = (node(&source, &tier), node(&source, &tier));
        source.answer();
        writer.get(&1).await.unwrap();
        let gate = tier.gate("get", When::After);
        let reading = spawn_get(&cache, 1);
        gate.reached().await;
        let invalidating = if remote { &writer } else { &cache };
        invalidating.invalidate(&1).await.unwrap();
        gate.open();
        assert_eq!(text(&reading.await.unwrap()), Some("old"));
        assert!(cache.peek(&1).is_none(), "remote: {remote}");
        source.answer();
        assert_eq!(text(&cache.get(&1).await), Some("new"));
        validate(&[&cache, &writer], &tier).await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_remote_invalidation_or_insert_during_a_load_keeps_its_value_out() {
    for insert in [false, true] {
        let (tier, source) = (InProcess::new(), two_versions());
        let (cache, writer) = (node(&source, &tier), node(&source, &tier));
        let loading = spawn_get(&cache, 1);
        source.loading().await;
        if insert {
            writer.insert(1, "new".to_owned()).await.unwrap();
        } else {
            writer.invalidate(&1).await.unwrap();
        }
        source.go.add_permits(2);
        assert_eq!(text(&loading.await.unwrap()), Some("old"));
        assert!(cache.peek(&1).is_none());
        assert_eq!(text(&cache.get(&1).await), Some("new"));
        validate(&[&cache, &writer], &tier).await;
    }
}

/// The fill was carried out, and the invalidation comes before its reply arrives.
#[tokio::test(start_paused = true)]
async fn an_invalidation_between_the_fill_and_its_reply_keeps_the_value_out_of_l1() {
    for remote in [false, true] {
        let (tier, source) = (InProcess::new(), two_versions());
        let (cache, writer) = (node(&source, &tier), node(&source, &tier));
        let loading = spawn_get(&cache, 1);
        source.loading().await;
        let gate = tier.gate("replace", When::After);
        source.answer();
        gate.reached().await;
        assert_eq!(raw_kind(&tier, KEY), Some(Kind::Value));
        (if remote { &writer } else { &cache })
            .invalidate(&1)
            .await
            .unwrap();
        gate.open();
        assert_eq!(text(&loading.await.unwrap()), Some("old"));
        assert!(cache.peek(&1).is_none());
        assert_eq!(tier.raw(KEY), None);
        source.answer();
        assert_eq!(text(&cache.get(&1).await), Some("new"));
        validate(&[&cache, &writer], &tier).await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_plain_delete_by_somebody_else_during_a_load_refuses_the_fill() {
    let (tier, source) = (InProcess::new(), two_versions());
    let cache = node(&source, &tier);
    let loading = spawn_get(&cache, 1);
    source.loading().await;
    tier.delete_raw(KEY);
    source.answer();
    assert_eq!(text(&loading.await.unwrap()), Some("old"));
    assert_eq!(tier.raw(KEY), None);
    assert!(
        cache.peek(&1).is_none(),
        "the delete was not announced, so L1 must not keep the value either"
    );
    assert_eq!(cache.stats().fills_refused, 1);
    validate(&[&cache], &tier).await;
}

/// If L1 were evicted first, the reader would put the old value back, and it would stay.
#[tokio::test(start_paused = true)]
async fn a_reader_before_l2_is_deleted_cannot_put_the_old_value_back() {
    let (tier, source) = (InProcess::new(), two_versions());
    let cache = node(&source, &tier);
    source.answer();
    cache.get(&1).await.unwrap();
    for when in [When::Before, When::After] {
        let gate = tier.gate("invalidate", when);
        let invalidating = spawn_invalidate(&cache, 1);
        gate.reached().await;
        // This read may answer either value, because the invalidation has not returned.
        source.go.add_permits(1);
        let _ = cache.get(&1).await;
        gate.open();
        invalidating.await.unwrap().unwrap();
        source.go.add_permits(1);
        assert_eq!(text(&cache.get(&1).await), Some("new"));
        cache.insert(1, "old".to_owned()).await.unwrap();
    }
    source.go.add_permits(8);
    cache.invalidate(&1).await.unwrap();
    assert_eq!(text(&cache.get(&1).await), Some("new"));
    validate(&[&cache], &tier).await;
}

/// A flight reads L2 before the invalidation is carried out, and would store its value afterwards.
#[tokio::test(start_paused = true)]
async fn a_read_of_l2_that_crosses_an_invalidation_is_not_stored() {
    let (tier, source) = (InProcess::new(), two_versions());
    let (cache, filler) = (node(&source, &tier), node(&source, &tier));
    source.answer();
    filler.get(&1).await.unwrap();
    let read = tier.gate("get", When::After);
    let reading = spawn_get(&cache, 1);
    read.reached().await;
    let deleted = tier.gate("invalidate", When::After);
    let invalidating = spawn_invalidate(&cache, 1);
    deleted.reached().await;
    deleted.open();
    invalidating.await.unwrap().unwrap();
    read.open();
    assert_eq!(text(&reading.await.unwrap()), Some("old"));
    source.answer();
    assert_eq!(text(&cache.get(&1).await), Some("new"));
    validate(&[&cache, &filler], &tier).await;
}

/// The same with an insert: the value from before must not replace the inserted one in L1.
#[tokio::test(start_paused = true)]
async fn a_read_of_l2_that_crosses_an_insert_is_not_stored() {
    let (tier, source) = (InProcess::new(), two_versions());
    let (cache, filler) = (node(&source, &tier), node(&source, &tier));
    source.answer();
    filler.get(&1).await.unwrap();
    let gate = tier.gate("get", When::After);
    let reading = spawn_get(&cache, 1);
    gate.reached().await;
    cache.insert(1, "inserted".to_owned()).await.unwrap();
    gate.open();
    assert_eq!(text(&reading.await.unwrap()), Some("old"));
    assert_eq!(text(&cache.get(&1).await), Some("inserted"));
    assert_eq!(source.calls(), 1);
    validate(&[&cache, &filler], &tier).await;
}

/// The replies of two inserts of one process arrive in the opposite order.
#[tokio::test(start_paused = true)]
async fn of_two_inserts_l1_keeps_none_that_l2_does_not_hold() {
    let (tier, source) = (InProcess::new(), two_versions());
    let cache = node(&source, &tier);
    let gate = tier.gate("insert", When::After);
    let first = {
        let cache = cache.clone();
        tokio::spawn(async move { cache.insert(1, "first".to_owned()).await })
    };
    gate.reached().await;
    cache.insert(1, "second".to_owned()).await.unwrap();
    gate.open();
    first.await.unwrap().unwrap();
    assert_eq!(text(&cache.get(&1).await), Some("second"));
    validate(&[&cache], &tier).await;
}

#[tokio::test(start_paused = true)]
async fn a_remote_invalidation_between_an_insert_and_its_reply_keeps_it_out_of_l1() {
    let (tier, source) = (InProcess::new(), two_versions());
    let (cache, writer) = (node(&source, &tier), node(&source, &tier));
    let gate = tier.gate("insert", When::After);
    let inserting = {
        let cache = cache.clone();
        tokio::spawn(async move { cache.insert(1, "inserted".to_owned()).await })
    };
    gate.reached().await;
    writer.invalidate(&1).await.unwrap();
    gate.open();
    inserting.await.unwrap().unwrap();
    assert!(cache.peek(&1).is_none());
    validate(&[&cache, &writer], &tier).await;
}

#[tokio::test(start_paused = true)]
async fn a_gap_between_an_insert_and_its_reply_keeps_it_out_of_l1() {
    use crate::l2::Listener;
    let (tier, source) = (InProcess::new(), two_versions());
    let cache = node(&source, &tier);
    cache.insert(2, "other".to_owned()).await.unwrap();
    let gate = tier.gate("insert", When::After);
    let inserting = {
        let cache = cache.clone();
        tokio::spawn(async move { cache.insert(1, "inserted".to_owned()).await })
    };
    gate.reached().await;
    cache.engine().on_gap();
    gate.open();
    inserting.await.unwrap().unwrap();
    assert!(cache.peek(&1).is_none());
    validate(&[&cache], &tier).await;
}

/// An entry may be in L1 alone, because its record was deleted by another program or evicted.
#[tokio::test(start_paused = true)]
async fn an_invalidation_is_announced_where_l2_holds_nothing_too() {
    let (tier, source) = (InProcess::new(), Database::new(false, [Step::Found("v")]));
    let (cache, writer) = (node(&source, &tier), node(&source, &tier));
    cache.get(&1).await.unwrap();
    tier.delete_raw(KEY);
    writer.invalidate(&1).await.unwrap();
    assert!(cache.peek(&1).is_none());
    validate(&[&cache, &writer], &tier).await;
}

#[tokio::test(start_paused = true)]
async fn a_fill_with_an_unknown_outcome_is_not_kept_in_l1() {
    let (tier, source) = (InProcess::new(), two_versions());
    let cache = node(&source, &tier);
    tier.fail("replace", When::After, RemoteKind::Timeout);
    source.answer();
    assert_eq!(text(&cache.get(&1).await), Some("old"));
    assert!(cache.peek(&1).is_none());
    assert_eq!(cache.stats().l2_failures, 1);
    validate(&[&cache], &tier).await;
}

/// The lease was granted, but the grant was not heard of, so the load may have begun before. Its
/// value must not be filled, and the lease must not be left.
#[tokio::test(start_paused = true)]
async fn a_lease_whose_grant_was_not_heard_of_is_not_filled_against_and_given_back() {
    let (tier, source) = (InProcess::new(), two_versions());
    let cache = node(&source, &tier);
    tier.fail("acquire", When::After, RemoteKind::Timeout);
    source.answer();
    assert_eq!(text(&cache.get(&1).await), Some("old"));
    settle().await;
    assert_eq!(tier.raw(KEY), None);
    assert_eq!(cache.stats().fills, 0);
    validate(&[&cache], &tier).await;
}

#[tokio::test(start_paused = true)]
async fn an_invalidation_that_l2_did_not_confirm_is_an_error_and_still_evicts_here() {
    for kind in [
        RemoteKind::Unreachable,
        RemoteKind::Timeout,
        RemoteKind::Refused,
    ] {
        let (tier, source) = (InProcess::new(), two_versions());
        let cache = node(&source, &tier);
        source.answer();
        cache.get(&1).await.unwrap();
        assert!(cache.peek(&1).is_some());
        tier.fail("invalidate", When::Before, kind);
        assert!(cache.invalidate(&1).await.is_err());
        assert!(cache.peek(&1).is_none());
        tier.fail("insert", When::Before, kind);
        assert!(cache.insert(1, "x".to_owned()).await.is_err());
        assert!(cache.peek(&1).is_none());
        let many = cache.invalidate_many(&[1, 2, 3]).await;
        assert!(many.is_ok());
        validate(&[&cache], &tier).await;
    }
}

/// The lease of the running load is still in L2, and no fill may use it.
#[tokio::test(start_paused = true)]
async fn a_load_is_not_filled_in_after_an_invalidation_that_l2_did_not_hear_of() {
    for insert in [false, true] {
        let (tier, source) = (InProcess::new(), two_versions());
        let cache = node(&source, &tier);
        let loading = spawn_get(&cache, 1);
        source.loading().await;
        // The first repairs fail, too.
        for _ in 0..3 {
            tier.fail("invalidate", When::Before, RemoteKind::Unreachable);
        }
        if insert {
            tier.fail("insert", When::Before, RemoteKind::Unreachable);
            assert!(cache.insert(1, "x".to_owned()).await.is_err());
        } else {
            assert!(cache.invalidate(&1).await.is_err());
        }
        source.answer();
        assert_eq!(text(&loading.await.unwrap()), Some("old"));
        assert_eq!((tier.raw(KEY), cache.stats().fills), (None, 0));
        validate(&[&cache], &tier).await;
    }
}

/// The message comes late: the load began after the invalidation, and so did its lease.
#[tokio::test(start_paused = true)]
async fn a_message_older_than_a_load_does_not_keep_it_out_of_l2() {
    use crate::l2::Listener;
    use crate::protocol::message::{About, Message, Operation};
    let (tier, source) = (InProcess::new(), two_versions());
    let cache = node(&source, &tier);
    let loading = spawn_get(&cache, 1);
    source.loading().await;
    let late = Message {
        operation: Operation::Invalidate,
        origin: [7; 16],
        number: 0,
        about: About::Keys(vec![b"1"]),
    };
    cache.engine().on_message(&late.to_bytes());
    source.answer();
    assert_eq!(text(&loading.await.unwrap()), Some("old"));
    assert!(cache.peek(&1).is_none(), "in L1 the message counts");
    assert_eq!(
        (raw_kind(&tier, KEY), cache.stats().fills),
        (Some(Kind::Value), 1)
    );
    validate(&[&cache], &tier).await;
}

#[tokio::test(start_paused = true)]
async fn an_invalidation_whose_caller_goes_away_is_carried_out() {
    let (tier, source) = (InProcess::new(), two_versions());
    let cache = node(&source, &tier);
    source.answer();
    cache.get(&1).await.unwrap();
    let gate = tier.gate("invalidate", When::Before);
    let invalidating = spawn_invalidate(&cache, 1);
    gate.reached().await;
    invalidating.abort();
    gate.open();
    settle().await;
    assert_eq!(tier.raw(KEY), None);
    assert!(cache.peek(&1).is_none());
    validate(&[&cache], &tier).await;
}

/// A value that was being loaded when a message may have been missed is not kept in L1.
#[tokio::test(start_paused = true)]
async fn what_was_read_before_a_gap_is_neither_answered_nor_joined_after_it() {
    use crate::l2::Listener;
    let (tier, source) = (InProcess::new(), two_versions());
    let cache = node(&source, &tier);
    let loading = spawn_get(&cache, 1);
    source.loading().await;
    cache.engine().on_gap();
    source.answer();
    assert_eq!(text(&loading.await.unwrap()), Some("old"));
    assert!(cache.peek(&1).is_none());
    // The record in L2 is valid, because the fill was compared with its lease.
    let entry = cache.get_entry(&1).await.unwrap().unwrap();
    assert_eq!(entry.source(), Source::L2);
    cache.engine().on_message(b"nonsense");
    assert!(
        cache.peek(&1).is_none(),
        "a message that is not understood is a gap"
    );
    assert_eq!(cache.stats().gaps, 2);
    validate(&[&cache], &tier).await;
}

/// A message is missed while a reply of L2 is on its way.
#[tokio::test(start_paused = true)]
async fn a_read_of_l2_that_crosses_a_gap_is_neither_joined_nor_kept() {
    use crate::l2::Listener;
    for joined in [false, true] {
        let (tier, source) = (InProcess::new(), two_versions());
        let (cache, filler) = (node(&source, &tier), node(&source, &tier));
        source.go.add_permits(2);
        filler.get(&1).await.unwrap();
        let gate = tier.gate("get", When::After);
        let reading = spawn_get(&cache, 1);
        gate.reached().await;
        // No message tells of this change, only the gap tells that there may be one.
        tier.delete_raw(KEY);
        cache.engine().on_gap();
        let late = joined.then(|| spawn_get(&cache, 1));
        settle().await;
        gate.open();
        assert_eq!(text(&reading.await.unwrap()), Some("old"));
        match late {
            Some(late) => assert_eq!(text(&late.await.unwrap()), Some("new")),
            None => assert!(cache.peek(&1).is_none()),
        }
        validate(&[&cache, &filler], &tier).await;
    }
}
