//! Look-ups with conditions: strict ones, and those that skip L1.

use super::super::coalesce::{Progress, Role, Want};
use super::super::flight::{Flight, Outcome, Purpose};
use super::*;

#[tokio::test(start_paused = true)]
async fn a_strict_look_up_waits_for_the_load_that_runs_in_the_background() {
    let (tier, source) = fixture(true, &["old", "new"]);
    let (a, b) = (
        stale_settings(&source, &tier).build().unwrap(),
        stale_settings(&source, &tier).build().unwrap(),
    );
    source.answer();
    a.get(&1).await.unwrap();
    b.get(&1).await.unwrap();
    tokio::time::advance(TTL).await;
    assert_eq!(sourced_entry(&a).await.2, Freshness::Stale);
    let strict: Vec<_> = [&a, &b, &a]
        .map(|cache| {
            let cache = cache.clone();
            tokio::spawn(async move { cache.get_with(&1, Read::fresh()).await })
        })
        .into_iter()
        .collect();
    settle().await;
    assert_eq!(sourced_entry(&b).await.2, Freshness::Stale);
    source.answer();
    for got in strict {
        assert_eq!(text(&got.await.unwrap()), Some("new"));
    }
    assert_eq!(source.calls(), 2);
    validate(&[&a, &b], &tier).await;
}

#[tokio::test(start_paused = true)]
async fn a_look_up_past_l1_joins_nothing_that_began_before_it() {
    let (tier, source) = fixture(false, &["loaded"]);
    let (a, b) = (node(&source, &tier), node(&source, &tier));
    a.get(&1).await.unwrap();
    b.get(&1).await.unwrap();
    // A change whose message is lost.
    let gate = tier.gate("get", When::After);
    let strict = Read::fresh().skip_l1();
    let past = |cache: &Users| {
        let cache = cache.clone();
        tokio::spawn(async move { cache.get_with(&1, strict).await })
    };
    let early = past(&a);
    gate.reached().await;
    tier.mute();
    b.insert(1, "inserted".to_owned()).await.unwrap();
    let late: Vec<_> = (0..5).map(|_| past(&a)).collect();
    settle().await;
    let before = tier.commands();
    let again = tier.gate("get", When::Before);
    gate.open();
    assert_eq!(text(&early.await.unwrap()), Some("loaded"));
    again.reached().await;
    settle().await;
    again.open();
    for got in late {
        assert_eq!(text(&got.await.unwrap()), Some("inserted"));
    }
    assert_eq!(
        tier.commands(),
        before + 2,
        "they coalesce: one command for the watermarks, one for the record"
    );
    validate(&[&a, &b], &tier).await;
}

#[tokio::test(start_paused = true)]
async fn a_look_up_past_l1_asks_for_the_watermarks() {
    for tag in [None, Some("team:7")] {
        let (tier, source) = fixture(false, &["old", "new"]);
        // A record without tags needs the watermark of everything alone.
        let build = || match tag {
            Some(_) => etags(&source).l2(tier.clone()).build().unwrap(),
            None => stale_settings(&source, &tier).build().unwrap(),
        };
        let (a, b) = (build(), build());
        a.get(&1).await.unwrap();
        b.get(&1).await.unwrap();
        tier.mute();
        match tag {
            Some(tag) => b.invalidate_tag(tag).await.unwrap(),
            None => b.invalidate_all().await.unwrap(),
        }
        assert_eq!(text(&a.get(&1).await), Some("old"), "no message came");
        let got = a.get_with(&1, Read::new().skip_l1()).await;
        assert_eq!(text(&got), Some("new"), "{tag:?}");
        validate(&[&a, &b], &tier).await;
    }
}

/// A look-up that skips L1 joins a later flight only if that one skips L1 too: another one relies
/// on messages.
#[tokio::test(start_paused = true)]
async fn a_look_up_past_l1_joins_no_flight_that_relies_on_messages() {
    let (tier, source) = fixture(false, &["old", "new"]);
    let (a, b) = (
        stale_settings(&source, &tier)
            .l1_capacity(0)
            .build()
            .unwrap(),
        node(&source, &tier),
    );
    a.get(&1).await.unwrap();
    let gate = tier.gate("get", When::After);
    let twice = {
        let a = a.clone();
        tokio::spawn(async move { [a.get(&1).await, a.get(&1).await] })
    };
    gate.reached().await;
    // Because another look-up joins, the flight has a task, and its leader is woken before the
    // look-up that skips L1.
    let joined = spawn_get_with(&a, Read::new());
    settle().await;
    tier.mute();
    b.invalidate_all().await.unwrap();
    let past = spawn_get_with(&a, Read::fresh().skip_l1());
    settle().await;
    let second = tier.gate("get", When::After);
    gate.open();
    // The second look-up has begun after the one that skips L1, and before that one looks again.
    second.reached().await;
    settle().await;
    second.open();
    for got in twice.await.unwrap() {
        assert_eq!(text(&got), Some("old"));
    }
    assert_eq!(text(&joined.await.unwrap()), Some("old"));
    assert_eq!(text(&past.await.unwrap()), Some("new"));
    validate(&[&a, &b], &tier).await;
}

#[tokio::test(start_paused = true)]
async fn a_look_up_past_l1_takes_nothing_of_l1_in_whatever_state() {
    for after in [Duration::ZERO, TTL, TTL * 2] {
        let (tier, source) = fixture(false, &["old", "new"]);
        let (a, b) = (
            stale_settings(&source, &tier).build().unwrap(),
            stale_settings(&source, &tier).build().unwrap(),
        );
        a.get(&1).await.unwrap();
        tokio::time::advance(after).await;
        // A change whose message is lost.
        tier.mute();
        b.insert(1, "inserted".to_owned()).await.unwrap();
        let got = a.get_with(&1, Read::new().skip_l1()).await;
        assert_eq!(text(&got), Some("inserted"), "{after:?}");
        assert_eq!(text(&a.get(&1).await), Some("inserted"), "L1 keeps it");
        validate(&[&a, &b], &tier).await;
    }
}

/// The caller waits for a flight that skips L1, whatever L1 holds, so it needs no background
/// permit.
#[tokio::test(start_paused = true)]
async fn a_look_up_past_l1_is_answered_however_many_refreshes_run() {
    let (tier, source) = (
        InProcess::new(),
        Database::new(false, [Step::Found("value")]),
    );
    let settings = settings(&source).ttl(Duration::from_secs(10));
    let cache = settings.l2(tier.clone()).build().unwrap();
    cache.get(&1).await.unwrap();
    let engine = cache.engine();
    let all = u32::try_from(crate::engine::core::MAX_BACKGROUND).unwrap();
    let _busy = engine.background.try_acquire_many(all).unwrap();
    let past = {
        let cache = cache.clone();
        tokio::spawn(async move { cache.get_with(&1, Read::new().skip_l1()).await })
    };
    settle().await;
    assert!(past.is_finished(), "it never ends");
    assert_eq!(text(&past.await.unwrap()), Some("value"));
    validate(&[&cache], &tier).await;
}

/// The flight of a strict look-up past L1 has the entry of L1 as its interim value, for the callers
/// that join it.
#[tokio::test(start_paused = true)]
async fn a_look_up_past_l1_takes_no_interim_value_of_l1_from_a_strict_one() {
    let (tier, source) = fixture(false, &["old"]);
    let (a, b) = (
        stale_settings(&source, &tier).build().unwrap(),
        node(&source, &tier),
    );
    a.get(&1).await.unwrap();
    let gate = tier.gate("get", When::After);
    let before = spawn_get_with(&a, Read::new().skip_l1());
    gate.reached().await;
    tier.mute();
    b.insert(1, "inserted".to_owned()).await.unwrap();
    // Both wait for the end of the flight that began before them. Then the first begins one, and the
    // second joins it.
    let strict = spawn_get_with(&a, Read::fresh().skip_l1());
    settle().await;
    let past = spawn_get_with(&a, Read::new().skip_l1());
    settle().await;
    let second = tier.gate("get", When::Before);
    gate.open();
    second.reached().await;
    settle().await;
    assert!(!past.is_finished());
    second.open();
    assert_eq!(text(&before.await.unwrap()), Some("old"));
    for got in [strict, past] {
        assert_eq!(text(&got.await.unwrap()), Some("inserted"));
    }
    validate(&[&a, &b], &tier).await;
}

/// A flight checks for a strict caller before it ends with a stale entry. Nothing is awaited between
/// the two, but another thread may join in between.
#[tokio::test(start_paused = true)]
async fn a_strict_look_up_takes_nothing_stale_from_a_flight_that_did_not_see_it_join() {
    let (tier, source) = fixture(false, &["old"]);
    let cache = stale_settings(&source, &tier).build().unwrap();
    cache.get(&1).await.unwrap();
    let engine = cache.engine();
    for freshness in [Freshness::Fresh, Freshness::Stale, Freshness::StaleOnError] {
        let (key, now) = (cache.shell.key(1), Instant::now());
        let mut answer = engine.peek(engine.l1.get(&key, now).unwrap(), now).unwrap();
        answer.freshness = freshness;
        let flight = Flight::new(key, Purpose::Any, now);
        flight.complete(Outcome::Completed(Ok(answer)));
        let takes = |read| {
            let want = Want {
                read,
                load: false,
                since: 0,
            };
            match engine.progress(&flight, Role::Joins, &want) {
                Progress::Pending => panic!("it is completed"),
                Progress::Answer(_) => true,
                Progress::LookAgain => false,
            }
        };
        assert!(takes(Read::new()));
        assert_eq!(takes(Read::fresh()), freshness == Freshness::Fresh);
    }
    validate(&[&cache], &tier).await;
}
