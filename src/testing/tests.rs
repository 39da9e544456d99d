//! Tests: what each fault does to a cache.

use std::time::Duration;

use tokio::time::{Instant, advance, sleep};

use super::{Fault, Faults, Operations, Scripted};
use crate::{
    BoxError, Cache, CacheBuilder, Channel, Error, Event, InProcess, Loaded, Loader, Read, Source,
    loader_fn,
};

type Users = Cache<u64, String, BoxError>;

fn users() -> Scripted<impl Loader<Key = u64, Value = String, Error = BoxError>> {
    Scripted::new(loader_fn(|id: u64| async move {
        Ok::<_, BoxError>(Loaded::found(format!("user {id}")).tag("all"))
    }))
}

/// A builder of caches without random times.
fn plain<L: Loader<Key = u64, Value = String>>(loader: L, tier: &InProcess) -> CacheBuilder<L> {
    let builder = Cache::builder("users", loader);
    builder.ttl_jitter(0.0).refresh_ahead(0.0).l2(tier.clone())
}

async fn source(cache: &Users, key: u64) -> Source {
    let entry = cache.get_entry(&key).await.expect("no error");
    entry.expect("a row").source()
}

async fn took<T>(what: impl Future<Output = T>) -> (T, Duration) {
    let begun = Instant::now();
    (what.await, begun.elapsed())
}

#[tokio::test(start_paused = true)]
async fn without_faults_it_is_a_tier_whose_channel_is_proven_by_beats() {
    let (tier, faults) = InProcess::with_faults();
    let loader = users();
    let [a, b] = [(), ()].map(|()| plain(loader.clone(), &tier).build().expect("a cache"));
    assert_eq!(source(&a, 1).await, Source::Loader);
    assert_eq!(source(&b, 1).await, Source::L2);
    sleep(Duration::from_secs(60)).await;
    assert_eq!(source(&b, 1).await, Source::L1);
    a.invalidate(&1).await.expect("an invalidation");
    assert_eq!(source(&b, 1).await, Source::Loader);
    assert_eq!(a.health().channel, Channel::Proven);
    assert_eq!(loader.loads(), 2);
    assert!(format!("{faults:?}").contains("Stands"));
}

#[tokio::test(start_paused = true)]
async fn every_fault_of_a_read_costs_what_it_says_and_no_get_fails() {
    let ms = Duration::from_millis;
    let expected = [
        (Fault::Unreachable, ms(0), true),
        (Fault::Refused, ms(0), true),
        (Fault::Hang, Faults::TIMEOUT, true),
        (Fault::LoseReply, Faults::TIMEOUT, true),
        (Fault::Delay(ms(30)), ms(30), false),
        (Fault::Delay(ms(100)), ms(100), true),
        (Fault::Delay(ms(1_000)), ms(100), true),
        (Fault::Delay(Duration::MAX), ms(100), true),
    ];
    for (fault, costs, fails) in expected {
        let (tier, faults) = InProcess::with_faults();
        let cache: Users = plain(users(), &tier).build().expect("a cache");
        cache.get(&1).await.expect("a load");
        faults.next(1, Operations::Reads, fault);
        let (got, time) = took(cache.get_with(&2, Read::new())).await;
        assert_eq!(
            got.expect("no error").as_deref(),
            Some(&"user 2".to_owned())
        );
        assert_eq!(time, costs, "{fault:?}");
        assert_eq!(cache.stats().l2_failures, u64::from(fails), "{fault:?}");
        // Only one operation had the fault.
        let (_, time) = took(cache.get(&3)).await;
        assert_eq!(time, Duration::ZERO, "{fault:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn changes_that_hang_did_not_happen_and_those_without_an_answer_did() {
    for (fault, happens) in [
        (Fault::Hang, false),
        (Fault::Unreachable, false),
        (Fault::Refused, false),
        (Fault::LoseReply, true),
        (Fault::Delay(Faults::TIMEOUT), true),
        (Fault::Delay(Faults::TIMEOUT * 2), false),
    ] {
        let (tier, faults) = InProcess::with_faults();
        let [a, b]: [Users; 2] = [(), ()].map(|()| plain(users(), &tier).build().expect("a cache"));
        let skip = Read::new().skip_l1();
        a.get(&1).await.expect("a load");
        b.get(&1).await.expect("a hit");
        // For all changes: the cache repeats this one.
        faults.set(Operations::Changes, fault);
        assert!(a.invalidate(&1).await.is_err(), "{fault:?}");
        let entry = b.get_entry_with(&1, skip).await.expect("no error");
        let loaded = entry.is_some_and(|entry| entry.source() == Source::Loader);
        assert_eq!(loaded, happens, "{fault:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn kinds_of_operations_have_their_own_faults() {
    let (tier, faults) = InProcess::with_faults();
    let cache: Users = plain(users(), &tier).build().expect("a cache");
    cache.get(&1).await.expect("a load");
    // The next faults come one after the other, before the fault that is set, which stays.
    faults.set(Operations::Changes, Fault::Unreachable);
    faults.next(1, Operations::Fills, Fault::Refused);
    faults.next(0, Operations::All, Fault::Hang);
    faults.next(1, Operations::Changes, Fault::Refused);
    let refused = cache.invalidate_tag("all").await;
    assert!(refused.is_err_and(|error| !error.is_unreachable()));
    let all = cache.invalidate_all().await;
    assert!(all.is_err_and(|error| error.is_unreachable()));
    for change in [
        cache.expire(&1).await,
        cache.insert(1, "new".to_owned()).await,
    ] {
        assert!(change.is_err_and(|error| error.is_unreachable()));
    }
    faults.clear();
    sleep(Duration::from_secs(10)).await;
    assert_eq!(cache.health().pending_repairs, 0);
    // If a fill or a lease fails, the value is answered and not stored in L2.
    for operations in [Operations::Fills, Operations::Leases] {
        cache.invalidate_all().await.expect("an invalidation");
        let (fills, before) = (cache.stats().fills, cache.stats().l2_failures);
        faults.set(operations, Fault::Refused);
        cache.get(&2).await.expect("no error");
        assert_eq!(cache.stats().fills, fills, "{operations:?}");
        assert!(cache.stats().l2_failures > before, "{operations:?}");
        faults.clear();
        sleep(Duration::from_secs(10)).await;
    }
}

#[tokio::test(start_paused = true)]
async fn beats_are_no_next_operation() {
    let (tier, faults) = InProcess::with_faults();
    let cache: Users = plain(users(), &tier).build().expect("a cache");
    cache.get(&1).await.expect("a load");
    faults.next(1, Operations::All, Fault::Hang);
    sleep(Duration::from_secs(60)).await;
    let (_, time) = took(cache.get(&2)).await;
    assert_eq!(time, Faults::TIMEOUT);
}

#[tokio::test(start_paused = true)]
async fn a_channel_that_is_cut_takes_l1_away_until_it_is_healed() {
    let (tier, faults) = InProcess::with_faults();
    let [a, b]: [Users; 2] = [(), ()].map(|()| plain(users(), &tier).build().expect("a cache"));
    a.get(&1).await.expect("a load");
    b.get(&1).await.expect("a hit");
    assert_eq!(source(&b, 1).await, Source::L1);
    faults.cut_channel();
    assert_eq!(b.health().channel, Channel::Down);
    assert_eq!(source(&b, 1).await, Source::L2);
    a.invalidate(&1).await.expect("L2 is there");
    assert_eq!(source(&b, 1).await, Source::Loader);
    // This cache subscribes now.
    let late: Users = plain(users(), &tier).build().expect("a cache");
    let (from, time) = took(source(&late, 1)).await;
    assert_eq!((from, time), (Source::L2, Duration::ZERO));
    faults.heal_channel();
    sleep(Duration::from_millis(1)).await;
    for cache in [&b, &late] {
        source(cache, 1).await;
        assert_eq!(source(cache, 1).await, Source::L1);
    }
    let gaps = b.stats().gaps;
    faults.heal_channel();
    assert_eq!(b.stats().gaps, gaps, "nothing was lost");
}

#[tokio::test(start_paused = true)]
async fn a_channel_that_is_silent_is_noticed_within_its_lease_and_read_anew_when_healed() {
    let (tier, faults) = InProcess::with_faults();
    let (told, events) = std::sync::mpsc::channel();
    let told = parking_lot::Mutex::new(told);
    let [a, b]: [Users; 2] = [
        plain(users(), &tier),
        plain(users(), &tier).on_event(move |event| {
            let _ = told.lock().send(*event);
        }),
    ]
    .map(|builder| builder.build().expect("a cache"));
    a.get(&1).await.expect("a load");
    b.get(&1).await.expect("a hit");
    faults.silence_channel();
    a.invalidate(&1).await.expect("L2 is there");
    assert_eq!(source(&b, 1).await, Source::L1, "within the lease");
    advance(Duration::from_secs(2)).await;
    assert_eq!(b.health().channel, Channel::Unproven);
    assert_ne!(source(&b, 1).await, Source::L1);
    sleep(Duration::from_secs(2)).await;
    let events: Vec<Event> = events.try_iter().collect();
    assert!(events.contains(&Event::ChannelSilent), "{events:?}");
    // The messages of the silent time are lost, and the cache takes them for lost.
    b.get(&2).await.expect("a load");
    a.invalidate(&2).await.expect("L2 is there");
    let gaps = b.stats().gaps;
    faults.heal_channel();
    sleep(Duration::from_millis(1)).await;
    assert_eq!(b.stats().gaps, gaps + 1);
    assert_eq!(source(&b, 2).await, Source::Loader);
}

#[tokio::test(start_paused = true)]
async fn a_tier_that_is_gone_costs_nothing_and_one_that_is_silent_its_timeouts() {
    let (tier, faults) = InProcess::with_faults();
    let loader = users();
    let cache: Users = plain(loader.clone(), &tier).build().expect("a cache");
    cache.get(&1).await.expect("a load");
    faults.go_down();
    let (got, time) = took(cache.get(&2)).await;
    assert!(got.is_ok());
    assert_eq!(time, Duration::ZERO);
    assert_eq!(source(&cache, 1).await, Source::L1, "for degraded_l1_ttl");
    faults.recover();
    sleep(Duration::from_secs(1)).await;
    assert_eq!(
        source(&cache, 1).await,
        Source::L2,
        "it has kept what it had"
    );
    assert_eq!(source(&cache, 1).await, Source::L1);
    faults.go_silent();
    let (got, time) = took(cache.get(&3)).await;
    assert!(got.is_ok());
    assert_eq!(time, Faults::TIMEOUT);
    faults.recover();
    assert_eq!(loader.loads(), 3);
}

#[tokio::test(start_paused = true)]
async fn a_flush_is_a_miss_and_a_clock_that_is_ahead_ages_what_l2_holds() {
    let (tier, faults) = InProcess::with_faults();
    let ttl = Duration::from_secs(60);
    let build = || plain(users(), &tier).ttl(ttl).l1_capacity(0).build();
    let cache: Users = build().expect("a cache");
    cache.get(&1).await.expect("a load");
    assert_eq!(source(&cache, 1).await, Source::L2);
    faults.flush();
    assert!(tier.is_empty());
    assert_eq!(source(&cache, 1).await, Source::Loader);
    faults.clock_ahead(ttl - Duration::from_secs(1));
    assert_eq!(source(&cache, 1).await, Source::L2);
    faults.clock_ahead(ttl);
    assert_eq!(source(&cache, 1).await, Source::Loader);
    faults.clock_behind(Duration::ZERO);
    assert_eq!(source(&cache, 1).await, Source::L2);
}

#[tokio::test(start_paused = true)]
async fn loads_are_counted_held_and_fail_as_they_are_told() {
    let (tier, loader) = (InProcess::new(), users());
    let builder = plain(loader.clone(), &tier).error_backoff(Duration::ZERO);
    let cache: Users = builder.build().expect("a cache");
    let held = [loader.hold(), loader.hold()];
    let asks = {
        let cache = cache.clone();
        tokio::spawn(async move { cache.get(&1).await })
    };
    held[0].reached().await;
    let [first, second] = held;
    drop(first);
    sleep(Duration::from_secs(1)).await;
    assert!(!asks.is_finished() && loader.loads() == 1);
    // A fault that is set while the load is held up counts.
    loader.fail_next(2, || BoxError::new("down"));
    drop(second);
    assert!(matches!(asks.await.expect("no panic"), Err(Error::Load(_))));
    assert!(cache.get(&1).await.is_err());
    assert!(cache.get(&1).await.is_ok());
    loader.fail(|| BoxError::new("down"));
    for key in 2..5 {
        assert!(cache.get(&key).await.is_err());
    }
    loader.work();
    assert!(cache.get(&2).await.is_ok());
    loader.fail_next(0, || BoxError::new("down"));
    assert!(cache.refresh(&2).await.is_ok());
    assert_eq!(loader.loads(), 8);
}
