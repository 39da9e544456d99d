//! E, C6, C7: entries past their TTL, refreshes and what comes between.

use super::*;
use crate::protocol::record::Header;
use crate::{Freshness, Read};

const TTL: Duration = Duration::from_secs(10);
const MS: Duration = Duration::from_millis(1);

/// Ten seconds fresh, ten more while a new one is loaded, and twenty if that fails.
fn stale(source: &Database, tier: &InProcess) -> CacheBuilder<Database> {
    settings(source)
        .ttl(TTL)
        .stale_while_revalidate(TTL)
        .stale_if_error(TTL * 2)
        .l2(tier.clone())
}

fn steps(values: &[&'static str]) -> Vec<Step> {
    values.iter().map(|value| Step::Found(value)).collect()
}

async fn entry(cache: &Users) -> (String, Source, Freshness) {
    let entry = cache.get_entry(&1).await.unwrap().unwrap();
    (entry.value().to_string(), entry.source(), entry.freshness())
}

fn guard() -> Vec<u8> {
    [b"tidegate:users::{", KEY, b"}"].concat()
}

#[tokio::test(start_paused = true)]
async fn past_its_ttl_everyone_is_answered_at_once_and_one_node_loads() {
    let (tier, source) = (
        InProcess::new(),
        Database::new(true, steps(&["old", "new"])),
    );
    let nodes: Vec<_> = (0..4)
        .map(|_| stale(&source, &tier).build().unwrap())
        .collect();
    source.answer();
    for node in &nodes {
        node.get(&1).await.unwrap();
    }
    source.loading().await;
    tokio::time::advance(TTL + MS).await;
    for node in &nodes {
        for _ in 0..20 {
            let old = ("old".to_owned(), Source::L1, Freshness::Stale);
            assert_eq!(entry(node).await, old);
        }
        settle().await;
    }
    assert_eq!(source.calls(), 2);
    assert_eq!(raw_kind(&tier, &guard()), Some(Kind::Lease));
    let before = tier.commands();
    for node in &nodes {
        entry(node).await;
    }
    settle().await;
    assert_eq!(
        tier.commands(),
        before,
        "who waits, and who is answered meanwhile, sends nothing"
    );
    source.answer();
    settle().await;
    for node in &nodes {
        let new = ("new".to_owned(), Source::L1, Freshness::Fresh);
        assert_eq!(entry(node).await, new);
        assert_eq!(node.stats().stale_hits, 21);
    }
    assert_eq!((source.calls(), tier.len()), (2, 1));
    validate(&nodes.iter().collect::<Vec<_>>(), &tier).await;
}

#[tokio::test(start_paused = true)]
async fn a_node_that_has_nothing_is_answered_stale_from_l2_at_once() {
    for l1 in [0, 100] {
        let (tier, source) = (
            InProcess::new(),
            Database::new(true, steps(&["old", "new"])),
        );
        let a = stale(&source, &tier).build().unwrap();
        let b = stale(&source, &tier).l1_capacity(l1).build().unwrap();
        source.answer();
        a.get(&1).await.unwrap();
        tokio::time::advance(TTL + MS).await;
        for _ in 0..3 {
            let (value, _, freshness) = entry(&b).await;
            assert_eq!((value.as_str(), freshness), ("old", Freshness::Stale));
        }
        settle().await;
        assert_eq!(source.calls(), 2);
        source.answer();
        settle().await;
        assert_eq!(entry(&b).await.2, Freshness::Fresh);
        assert_eq!(b.stats().stale_hits, 3);
        validate(&[&a, &b], &tier).await;
    }
}

#[tokio::test(start_paused = true)]
async fn the_windows_end_where_they_should() {
    let (tier, source) = (
        InProcess::new(),
        Database::new(false, [Step::Found("old"), Step::Fail("down")]),
    );
    let cache = stale(&source, &tier).error_backoff(MS).build().unwrap();
    cache.get(&1).await.unwrap();
    for (after, freshness) in [
        (TTL - MS, Some(Freshness::Fresh)),
        (TTL, Some(Freshness::Stale)),
        (TTL * 2 - MS, Some(Freshness::Stale)),
        (TTL * 2, Some(Freshness::StaleOnError)),
        (TTL * 3 - MS, Some(Freshness::StaleOnError)),
        (TTL * 3, None),
    ] {
        let created_at = cache.engine().created_at;
        tokio::time::advance((created_at + after) - Instant::now()).await;
        let got = cache.get_entry(&1).await;
        settle().await;
        let got = got.ok().flatten().map(|entry| entry.freshness());
        assert_eq!(got, freshness, "{after:?} after it was loaded");
    }
    validate(&[&cache], &tier).await;
}

#[tokio::test(start_paused = true)]
async fn an_error_a_panic_and_a_timeout_are_answered_with_what_is_there() {
    for step in [Step::Fail("down"), Step::Panic, Step::Hang] {
        let (tier, source) = (
            InProcess::new(),
            Database::new(false, [Step::Found("old"), step]),
        );
        let settings = || {
            settings(&source)
                .ttl(TTL)
                .stale_if_error(TTL)
                .load_timeout(TTL / 10)
                .l2(tier.clone())
        };
        let (a, cold) = (settings().build().unwrap(), settings().build().unwrap());
        a.get(&1).await.unwrap();
        tokio::time::advance(TTL).await;
        for cache in [&a, &cold] {
            let expected = ("old".to_owned(), Freshness::StaleOnError);
            let (value, _, freshness) = entry(cache).await;
            assert_eq!((value, freshness), expected);
        }
        assert_eq!(source.calls(), 2, "the other node has heard that it failed");
        // Strictly, it is an error.
        assert!(a.get_with(&1, Read::fresh()).await.is_err());
        validate(&[&a, &cold], &tier).await;
    }
}

/// C6, C7: what comes between a refresh and its fill, by this node or another.
#[tokio::test(start_paused = true)]
async fn a_refresh_from_before_a_change_is_stored_nowhere() {
    #[derive(Clone, Copy, Debug)]
    enum Change {
        Invalidate,
        Insert,
        SameValue,
        Expire,
        All,
        Deleted,
    }
    use Change::{All, Deleted, Expire, Insert, Invalidate, SameValue};
    for change in [Invalidate, Insert, SameValue, Expire, All, Deleted] {
        for by_another in [false, true] {
            let (tier, source) = (
                InProcess::new(),
                Database::new(true, steps(&["old", "too late", "newest"])),
            );
            let (a, b) = (stale(&source, &tier).build().unwrap(), node(&source, &tier));
            source.answer();
            a.get(&1).await.unwrap();
            source.loading().await;
            tokio::time::advance(TTL).await;
            assert_eq!(entry(&a).await.2, Freshness::Stale);
            source.loading().await;
            let by = if by_another { &b } else { &a };
            match change {
                Invalidate => by.invalidate(&1).await.unwrap(),
                Insert => by.insert(1, "inserted".to_owned()).await.unwrap(),
                SameValue => by.insert(1, "old".to_owned()).await.unwrap(),
                Expire => by.expire(&1).await.unwrap(),
                All => by.invalidate_all().await.unwrap(),
                Deleted => tier.delete_raw(KEY),
            }
            let before = tier.raw(KEY);
            source.answer();
            settle().await;
            let refused = a.stats().fills_refused;
            match change {
                // Its record is there, and dead.
                All => assert_eq!(refused, 0, "{change:?}"),
                _ => {
                    assert_eq!(refused, 1, "{change:?} by another: {by_another}");
                    assert_eq!(tier.raw(KEY), before, "{change:?} by another: {by_another}");
                }
            }
            let has = a.peek(&1).map(|entry| entry.value().to_string());
            assert_ne!(has.as_deref(), Some("too late"), "{change:?}");
            source.answer();
            let got = a.get(&1).await;
            let expected = match change {
                Insert => "inserted",
                SameValue => "old",
                _ => "newest",
            };
            assert_eq!(
                text(&got),
                Some(expected),
                "{change:?} by another: {by_another}"
            );
            source.answer();
            validate(&[&a], &tier).await;
        }
    }
}

/// A refresher that lost its claim and is late: the first fill counts, whoever's it is.
#[tokio::test(start_paused = true)]
async fn the_second_of_two_refreshes_removes_nothing_of_the_first() {
    let (tier, source) = (
        InProcess::new(),
        Database::new(true, steps(&["old", "first", "second"])),
    );
    let (a, b) = (
        stale(&source, &tier).build().unwrap(),
        stale(&source, &tier).build().unwrap(),
    );
    source.answer();
    a.get(&1).await.unwrap();
    source.loading().await;
    tokio::time::advance(TTL).await;
    entry(&a).await;
    source.loading().await;
    // Its claim is gone: it slept, say.
    tier.delete_raw(&guard());
    entry(&b).await;
    source.loading().await;
    let of_b = tier.raw(&guard());
    assert!(of_b.is_some());
    source.answer();
    settle().await;
    assert_eq!(
        tier.raw(&guard()),
        of_b,
        "the claim of another is left alone"
    );
    let first = tier.raw(KEY);
    source.answer();
    settle().await;
    assert_eq!((tier.raw(KEY), tier.raw(&guard())), (first, None));
    let refused = a.stats().fills_refused + b.stats().fills_refused;
    assert_eq!((refused, source.calls()), (1, 3));
    validate(&[&a, &b], &tier).await;
}

#[tokio::test(start_paused = true)]
async fn a_refresher_that_dies_is_replaced_when_its_claim_ends() {
    let (tier, source) = (
        InProcess::new(),
        Database::new(false, steps(&["old", "new"])),
    );
    let cache = stale(&source, &tier).build().unwrap();
    cache.get(&1).await.unwrap();
    let mut dead = Header::plain(Kind::Lease, [7; 16], record::key_hash(&guard()), 0);
    dead.baseline = cache.engine().watermarks.baseline();
    tokio::time::advance(TTL).await;
    tier.set_raw(&guard(), &dead.to_record(), 2_000);
    let begun = Instant::now();
    while entry(&cache).await.2 == Freshness::Stale {
        tokio::time::sleep(MS).await;
    }
    let took = begun.elapsed().as_millis();
    assert!((2_000..=2_030).contains(&took), "{took}");
    assert_eq!((source.calls(), tier.len()), (2, 1));
    validate(&[&cache], &tier).await;
}

#[tokio::test(start_paused = true)]
async fn a_refresh_that_hangs_does_not_pin_the_old_value() {
    let (tier, source) = (
        InProcess::new(),
        Database::new(false, [Step::Found("old"), Step::Hang, Step::Found("new")]),
    );
    let build = || stale(&source, &tier).load_timeout(TTL / 5).build().unwrap();
    let (a, b) = (build(), build());
    a.get(&1).await.unwrap();
    b.get(&1).await.unwrap();
    tokio::time::advance(TTL).await;
    let begun = Instant::now();
    for cache in [&a, &b] {
        while entry(cache).await.2 == Freshness::Stale {
            tokio::time::sleep(MS * 5).await;
        }
    }
    let took = begun.elapsed();
    assert!(took >= TTL / 5 && took < TTL / 5 + MS * 300, "{took:?}");
    assert_eq!(source.calls(), 3);
    validate(&[&a, &b], &tier).await;
}

/// The record of what is refreshed lives on while it is, though its time is up: the fill has
/// something to be compared with, and nobody else begins from nothing.
#[tokio::test(start_paused = true)]
async fn a_load_that_outlasts_the_entry_is_the_only_one_and_fills() {
    let (tier, source) = (
        InProcess::new(),
        Database::new(true, steps(&["old", "new"])),
    );
    let build = || {
        let settings = settings(&source).ttl(TTL).stale_while_revalidate(MS * 500);
        settings.l2(tier.clone()).build().unwrap()
    };
    let (a, b) = (build(), build());
    source.answer();
    a.get(&1).await.unwrap();
    source.loading().await;
    tokio::time::advance(TTL).await;
    assert_eq!(entry(&a).await.2, Freshness::Stale);
    source.loading().await;
    for _ in 0..8 {
        tokio::time::sleep(MS * 500).await;
        assert!(a.peek(&1).is_none(), "its window is over");
    }
    let waiting = [spawn_get(&a, 1), spawn_get(&b, 1)];
    settle().await;
    assert_eq!(source.calls(), 2);
    source.answer();
    for got in waiting {
        assert_eq!(text(&got.await.unwrap()), Some("new"));
    }
    let fills = a.stats().fills + b.stats().fills;
    assert_eq!((source.calls(), fills, a.stats().fills_refused), (2, 2, 0));
    validate(&[&a, &b], &tier).await;
}

#[tokio::test(start_paused = true)]
async fn a_late_load_is_not_waited_for_where_there_is_something_and_is_stored_all_the_same() {
    let (tier, source) = (
        InProcess::new(),
        Database::new(true, steps(&["old", "new"])),
    );
    let soft = MS * 50;
    let build = || {
        let settings = settings(&source).ttl(TTL).stale_if_error(TTL);
        settings
            .load_soft_timeout(soft)
            .l2(tier.clone())
            .build()
            .unwrap()
    };
    let (a, cold) = (build(), build());
    let first = spawn_get(&a, 1);
    tokio::time::sleep(soft * 4).await;
    assert!(!first.is_finished(), "there is nothing else");
    source.answer();
    first.await.unwrap().unwrap();
    tokio::time::advance(TTL).await;
    for cache in [&a, &cold] {
        let begun = Instant::now();
        assert_eq!(entry(cache).await.2, Freshness::Stale);
        assert_eq!(begun.elapsed(), soft);
        let begun = Instant::now();
        assert_eq!(entry(cache).await.2, Freshness::Stale);
        assert_eq!(begun.elapsed(), Duration::ZERO, "it is known to be late");
    }
    source.answer();
    settle().await;
    assert_eq!(
        entry(&a).await,
        ("new".to_owned(), Source::L1, Freshness::Fresh)
    );
    assert_eq!(source.calls(), 2);
    validate(&[&a, &cold], &tier).await;
}

#[tokio::test(start_paused = true)]
async fn what_was_expired_is_a_fallback_on_every_node_and_what_was_invalidated_on_none() {
    for shared in [true, false] {
        let (tier, source) = (
            InProcess::new(),
            Database::new(
                false,
                [Step::Found("old"), Step::Found("old"), Step::Fail("down")],
            ),
        );
        let build = || {
            let settings = settings(&source).ttl(TTL).stale_while_revalidate(TTL);
            let settings = settings.stale_if_error(TTL).error_backoff(Duration::ZERO);
            if shared {
                settings.l2(tier.clone()).build().unwrap()
            } else {
                settings.build().unwrap()
            }
        };
        let (a, cold) = (build(), build());
        a.get(&1).await.unwrap();
        if !shared {
            cold.get(&1).await.unwrap();
        } else {
            cold.get(&2).await.unwrap();
        }
        a.expire(&1).await.unwrap();
        assert!(a.peek(&1).is_none());
        if !shared {
            cold.expire(&1).await.unwrap();
        }
        for cache in [&a, &cold] {
            let (value, _, freshness) = entry(cache).await;
            assert_eq!(
                (value.as_str(), freshness),
                ("old", Freshness::StaleOnError)
            );
        }
        a.invalidate(&1).await.unwrap();
        cold.invalidate(&1).await.unwrap();
        for cache in [&a, &cold] {
            assert!(cache.get(&1).await.is_err());
        }
        validate(&[&a, &cold], &tier).await;
    }
}

/// L1 alone: the same life, without anybody else.
#[tokio::test(start_paused = true)]
async fn without_a_shared_tier_a_stale_value_is_answered_refreshed_and_a_fallback() {
    let source = Database::new(
        true,
        [
            Step::Found("old"),
            Step::Fail("down"),
            Step::Found("new"),
            Step::Fail("down"),
        ],
    );
    let cache = settings(&source)
        .ttl(TTL)
        .stale_while_revalidate(TTL)
        .stale_if_error(TTL * 2)
        .build()
        .unwrap();
    source.answer();
    cache.get(&1).await.unwrap();
    tokio::time::advance(TTL).await;
    assert_eq!(entry(&cache).await.2, Freshness::Stale);
    source.answer();
    settle().await;
    for _ in 0..20 {
        assert_eq!(entry(&cache).await.2, Freshness::Stale);
    }
    settle().await;
    assert_eq!(source.calls(), 2, "it failed a moment ago");
    tokio::time::advance(MS * 200).await;
    assert_eq!(entry(&cache).await.2, Freshness::Stale);
    source.answer();
    settle().await;
    assert_eq!(
        entry(&cache).await,
        ("new".to_owned(), Source::L1, Freshness::Fresh)
    );
    tokio::time::advance(TTL * 2 + MS).await;
    source.answer();
    assert_eq!(entry(&cache).await.2, Freshness::StaleOnError);
    tokio::time::advance(TTL).await;
    source.answer();
    assert!(cache.get(&1).await.is_err());
    validate(&[&cache], &InProcess::new()).await;
}

#[tokio::test(start_paused = true)]
async fn absences_have_no_stale_windows() {
    let (tier, source) = (
        InProcess::new(),
        Database::new(false, [Step::Missing, Step::Fail("down")]),
    );
    let cache = stale(&source, &tier).negative_ttl(TTL).build().unwrap();
    assert_eq!(cache.get(&1).await.unwrap(), None);
    tokio::time::advance(TTL).await;
    assert!(cache.get(&1).await.is_err());
    validate(&[&cache], &tier).await;
}

#[tokio::test(start_paused = true)]
async fn a_strict_look_up_waits_for_the_load_that_runs_behind_the_others() {
    let (tier, source) = (
        InProcess::new(),
        Database::new(true, steps(&["old", "new"])),
    );
    let (a, b) = (
        stale(&source, &tier).build().unwrap(),
        stale(&source, &tier).build().unwrap(),
    );
    source.answer();
    a.get(&1).await.unwrap();
    b.get(&1).await.unwrap();
    tokio::time::advance(TTL).await;
    assert_eq!(entry(&a).await.2, Freshness::Stale);
    let strict: Vec<_> = [&a, &b, &a]
        .map(|cache| {
            let cache = cache.clone();
            tokio::spawn(async move { cache.get_with(&1, Read::fresh()).await })
        })
        .into_iter()
        .collect();
    settle().await;
    assert_eq!(entry(&b).await.2, Freshness::Stale);
    source.answer();
    for got in strict {
        assert_eq!(text(&got.await.unwrap()), Some("new"));
    }
    assert_eq!(source.calls(), 2);
    validate(&[&a, &b], &tier).await;
}

#[tokio::test(start_paused = true)]
async fn a_look_up_past_l1_joins_nothing_that_began_before_it() {
    let (tier, source) = (InProcess::new(), Database::new(false, steps(&["loaded"])));
    let (a, b) = (node(&source, &tier), node(&source, &tier));
    a.get(&1).await.unwrap();
    b.get(&1).await.unwrap();
    // Something that a lost message would have told.
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
        "they coalesce: the marks, and the record"
    );
    validate(&[&a, &b], &tier).await;
}

#[tokio::test(start_paused = true)]
async fn a_refresh_loads_whatever_there_is_and_coalesces() {
    let (tier, source) = (
        InProcess::new(),
        Database::new(
            true,
            [Step::Found("old"), Step::Found("new"), Step::Fail("down")],
        ),
    );
    let (a, b) = (node(&source, &tier), node(&source, &tier));
    source.answer();
    a.get(&1).await.unwrap();
    b.get(&1).await.unwrap();
    source.loading().await;
    let refresh = |cache: &Users| {
        let cache = cache.clone();
        tokio::spawn(async move { cache.refresh(&1).await })
    };
    let first = refresh(&a);
    source.loading().await;
    let others = [refresh(&a), refresh(&b), refresh(&b)];
    settle().await;
    assert_eq!(
        entry(&a).await,
        ("old".to_owned(), Source::L1, Freshness::Fresh)
    );
    source.answer();
    for got in [first].into_iter().chain(others) {
        assert_eq!(text(&got.await.unwrap()), Some("new"));
    }
    assert_eq!(source.calls(), 2);
    assert_eq!(
        (entry(&a).await.0, entry(&b).await.0),
        ("new".to_owned(), "new".to_owned())
    );
    source.answer();
    assert!(matches!(a.refresh(&1).await, Err(Error::Load(_))));
    assert!(matches!(a.refresh(&1).await, Err(Error::Load(_))), "held");
    assert!(matches!(
        b.refresh(&1).await,
        Err(Error::LoadFailedElsewhere)
    ));
    assert_eq!((source.calls(), entry(&a).await.0), (3, "new".to_owned()));
    validate(&[&a, &b], &tier).await;
}

#[tokio::test(start_paused = true)]
async fn closing_ends_what_nobody_waits_for_and_leaves_no_claim() {
    let (tier, source) = (
        InProcess::new(),
        Database::new(true, steps(&["old", "new"])),
    );
    let (a, b) = (
        stale(&source, &tier).build().unwrap(),
        stale(&source, &tier).build().unwrap(),
    );
    source.answer();
    a.get(&1).await.unwrap();
    b.get(&1).await.unwrap();
    source.loading().await;
    tokio::time::advance(TTL).await;
    entry(&a).await;
    source.loading().await;
    // This one waits for the claim.
    entry(&b).await;
    settle().await;
    let begun = Instant::now();
    b.close().await;
    a.close().await;
    assert_eq!(begun.elapsed(), Duration::ZERO);
    assert_eq!((tier.raw(&guard()), tier.len()), (None, 1));
    assert_eq!(source.running.load(Ordering::SeqCst), 0);
    validate(&[&a, &b], &tier).await;
}

/// Found by thinking of a caller between the look at L1 and the lock: the offer would outlive the
/// invalidation.
#[tokio::test(start_paused = true)]
async fn a_refresh_behind_puts_up_nothing_that_was_invalidated_meanwhile() {
    let (tier, source) = (
        InProcess::new(),
        Database::new(true, steps(&["old", "new"])),
    );
    let cache = stale(&source, &tier).build().unwrap();
    source.answer();
    cache.get(&1).await.unwrap();
    tokio::time::advance(TTL).await;
    let local = cache
        .engine()
        .l1_entry(&cache.shell.key(1), Instant::now())
        .unwrap();
    cache.invalidate(&1).await.unwrap();
    cache
        .engine()
        .refresh_in_background(cache.shell.key(1), &local);
    let got = spawn_get(&cache, 1);
    settle().await;
    source.answer();
    assert_eq!(text(&got.await.unwrap()), Some("new"));
    validate(&[&cache], &tier).await;
}

#[tokio::test(start_paused = true)]
async fn an_early_refresh_is_one_load_and_nobody_waits_for_it() {
    let (tier, source) = (
        InProcess::new(),
        Database::new(true, steps(&["old", "new"])),
    );
    let build = || {
        let settings = settings(&source).ttl(TTL).refresh_ahead(4.0);
        settings.l2(tier.clone()).build().unwrap()
    };
    let nodes: Vec<_> = (0..3).map(|_| build()).collect();
    let first = spawn_get(&nodes[0], 1);
    source.loading().await;
    // What it costs.
    tokio::time::sleep(MS * 100).await;
    source.answer();
    first.await.unwrap().unwrap();
    let begun = Instant::now();
    while source.calls() == 1 {
        for node in &nodes {
            assert_eq!(entry(node).await.2, Freshness::Fresh);
        }
        tokio::time::sleep(MS * 5).await;
        assert!(begun.elapsed() < TTL, "it was not early");
    }
    assert!(begun.elapsed() > TTL / 2, "the first half is not for that");
    for _ in 0..20 {
        for node in &nodes {
            assert_eq!(entry(node).await.0, "old");
        }
        tokio::time::sleep(MS * 5).await;
    }
    assert_eq!(source.calls(), 2);
    source.answer();
    settle().await;
    assert_eq!(source.calls(), 2);
    let filled: u64 = nodes.iter().map(|node| node.stats().fills).sum();
    assert_eq!(filled, 2);
    validate(&nodes.iter().collect::<Vec<_>>(), &tier).await;
}

#[tokio::test(start_paused = true)]
async fn a_failed_refresh_is_held_for_the_fleet_and_grows() {
    let (tier, source) = (
        InProcess::new(),
        Database::new(false, [Step::Found("old"), Step::Fail("down")]),
    );
    let backoff = MS * 100;
    let build = || {
        stale(&source, &tier)
            .error_backoff(backoff)
            .build()
            .unwrap()
    };
    let nodes = [build(), build(), build()];
    for node in &nodes {
        node.get(&1).await.unwrap();
    }
    tokio::time::advance(TTL).await;
    let (begun, mut attempts) = (Instant::now(), Vec::new());
    while begun.elapsed() < MS * 4_000 {
        for node in &nodes {
            assert_eq!(entry(node).await.2, Freshness::Stale);
        }
        let calls = source.calls();
        tokio::time::sleep(MS * 5).await;
        if source.calls() > calls {
            attempts.push(begun.elapsed().as_millis());
        }
    }
    let pauses: Vec<_> = attempts.windows(2).map(|pair| pair[1] - pair[0]).collect();
    let expected = [100, 100, 100, 200, 400, 800, 1_600];
    assert!(pauses.len() >= 6, "{pauses:?}");
    for (pause, expected) in pauses.iter().zip(expected) {
        assert!((expected..expected + 40).contains(pause), "{pauses:?}");
    }
    let failures: u64 = nodes.iter().map(|node| node.stats().load_failures).sum();
    assert_eq!(failures + 1, source.calls() as u64);
    validate(&nodes.iter().collect::<Vec<_>>(), &tier).await;
}

#[tokio::test(start_paused = true)]
async fn refreshes_that_nobody_waits_for_are_bounded() {
    const KEYS: u64 = 1_500;
    let source = Database::new(true, steps(&["old", "new"]));
    let cache = settings(&source)
        .ttl(TTL)
        .stale_while_revalidate(TTL)
        .build()
        .unwrap();
    for key in 0..KEYS {
        cache.insert(key, "old".to_owned()).await.unwrap();
    }
    tokio::time::advance(TTL).await;
    for key in 0..KEYS {
        assert_eq!(text(&cache.get(&key).await), Some("old"));
    }
    for _ in 0..40 {
        settle().await;
    }
    let most = crate::engine::core::MAX_BACKGROUND;
    assert_eq!(source.calls(), most);
    // The others are refreshed by a later hit.
    source.go.add_permits(KEYS as usize);
    tokio::time::advance(crate::engine::memory::RETRY_AFTER).await;
    for _ in 0..40 {
        settle().await;
    }
    for key in 0..KEYS {
        cache.get(&key).await.unwrap();
    }
    for _ in 0..40 {
        settle().await;
    }
    assert_eq!(source.calls(), KEYS as usize);
    validate(&[&cache], &InProcess::new()).await;
}
