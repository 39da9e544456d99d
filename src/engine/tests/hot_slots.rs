//! The hot slots in front of moka: every change that ends an entry ends it in its hot slot too.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::{Instant, advance};

use crate::{BoxError, Cache, CacheBuilder, InProcess, Loaded, Loader, Source, loader_fn};

type Numbers = Cache<u64, u64, BoxError>;

const TTL: Duration = Duration::from_secs(100);

fn builder() -> CacheBuilder<impl Loader<Key = u64, Value = u64, Error = BoxError> + use<>> {
    let load = loader_fn(|id: u64| async move {
        let found = (id < 1_000)
            .then_some(id)
            .map_or_else(Loaded::missing, Loaded::found);
        Ok::<_, BoxError>(found.tag("all"))
    });
    Cache::builder("numbers", load)
        .ttl(TTL)
        .ttl_jitter(0.0)
        .refresh_ahead(0.0)
        .negative_ttl(TTL)
}

fn is_hot(cache: &Numbers, key: u64) -> bool {
    let hash = cache.shell.typed.hash(&key);
    cache.shell.typed.hot(hash, &key).is_some()
}

/// The answer of the hot slots alone.
fn hot_hit(cache: &Numbers, key: u64) -> Option<Option<u64>> {
    let value = |hit: &crate::l1::HitView<'_, u64>, _| hit.value.as_deref().copied();
    let hash = cache.shell.typed.hash(&key);
    cache.shell.hot_hit((&key, hash), Instant::now, value)
}

/// Asks for a key until it is in its hot slot.
async fn make_hot(cache: &Numbers, key: u64) {
    for _ in 0..100 {
        cache.get(&key).await.unwrap();
        if hot_hit(cache, key).is_some() {
            return;
        }
    }
    panic!("{key} is not promoted");
}

async fn source(cache: &Numbers, key: u64) -> Source {
    cache.get_entry(&key).await.unwrap().unwrap().source()
}

#[tokio::test(start_paused = true)]
async fn hits_are_promoted_and_counted_as_hits_of_l1() {
    let cache = builder().build().unwrap();
    make_hot(&cache, 1).await;
    make_hot(&cache, 2_000).await;
    let before = cache.stats();
    assert_eq!(hot_hit(&cache, 1), Some(Some(1)));
    assert_eq!(hot_hit(&cache, 2_000), Some(None), "an absence");
    advance(Duration::from_secs(10)).await;
    let entry = cache.get_entry(&1).await.unwrap().unwrap();
    assert_eq!(
        (entry.age(), entry.source()),
        (Duration::from_secs(10), Source::L1)
    );
    let stats = cache.stats().since(&before);
    assert_eq!(
        (stats.l1_hits, stats.negative_hits, stats.misses),
        (3, 1, 0)
    );
}

/// A taken slot is given to a key that requests it twice, if no hit of the present entry comes
/// between.
#[tokio::test(start_paused = true)]
async fn a_slot_is_given_to_the_key_that_requests_it_twice_in_a_row() {
    let cache = builder().l1_capacity(2).build().unwrap();
    make_hot(&cache, 1).await;
    let may_promote = |key: &u64| cache.shell.typed.may_promote(cache.shell.typed.hash(key));
    let mut others = (2..100).filter(|key| !may_promote(key));
    let (other, third) = (others.next().unwrap(), others.next().unwrap());
    assert!(!may_promote(&other), "the third key has requested it since");
    assert!(may_promote(&other));
    assert!(!may_promote(&third));
    for _ in 0..2 {
        hot_hit(&cache, 1).unwrap();
    }
    assert!(!may_promote(&third), "the present entry was hit");
    assert!(may_promote(&third));
}

#[tokio::test(start_paused = true)]
async fn what_ends_an_entry_ends_it_in_its_hot_slot() {
    let tier = InProcess::new();
    let cache = builder().l2(tier.clone()).build().unwrap();
    let other = builder().l2(tier.clone()).build().unwrap();
    other.get(&500).await.unwrap();

    make_hot(&cache, 1).await;
    cache.invalidate(&1).await.unwrap();
    assert_eq!((hot_hit(&cache, 1), is_hot(&cache, 1)), (None, false));

    make_hot(&cache, 1).await;
    cache.insert(1, 77).await.unwrap();
    assert_eq!(cache.get(&1).await.unwrap().as_deref(), Some(&77));

    make_hot(&cache, 1).await;
    cache.expire(&1).await.unwrap();
    assert_eq!(hot_hit(&cache, 1), None);

    make_hot(&cache, 2).await;
    other.invalidate(&2).await.unwrap();
    assert_eq!(hot_hit(&cache, 2), None, "a message");

    make_hot(&cache, 3).await;
    other.invalidate_tag("all").await.unwrap();
    assert_eq!(hot_hit(&cache, 3), None, "its tag");

    make_hot(&cache, 3).await;
    other.invalidate_all().await.unwrap();
    assert_eq!(hot_hit(&cache, 3), None, "everything");

    make_hot(&cache, 3).await;
    cache.engine().start_new_epoch();
    assert_eq!(hot_hit(&cache, 3), None, "a gap");

    make_hot(&cache, 3).await;
    advance(TTL).await;
    assert_eq!(hot_hit(&cache, 3), None, "its TTL");

    make_hot(&cache, 3).await;
    cache.close().await;
    assert_eq!(hot_hit(&cache, 3), None, "closed");

    let alone = builder().build().unwrap();
    make_hot(&alone, 3).await;
    alone.close().await;
    assert_eq!(hot_hit(&alone, 3), None, "closed, without a tier");
}

#[tokio::test(start_paused = true)]
async fn hot_slots_obey_the_deadlines_of_l1() {
    let cache = builder()
        .l1_ttl(Duration::from_secs(5))
        .l2(InProcess::new());
    let cache = cache.build().unwrap();
    make_hot(&cache, 1).await;
    advance(Duration::from_secs(5)).await;
    assert_eq!(hot_hit(&cache, 1), None);
    assert_eq!(source(&cache, 1).await, Source::L2);

    // The channel must be proven: this embedded tier has a connection that can be lost.
    let cache = builder().l2(InProcess::wired(0)).build().unwrap();
    cache.get(&1).await.unwrap();
    cache.get(&1).await.unwrap();
    assert_eq!(hot_hit(&cache, 1), None, "the channel is not proven");
}

#[tokio::test(start_paused = true)]
async fn a_late_entry_is_no_hot_hit_so_that_its_refresh_begins() {
    let cache = builder().stale_while_revalidate(TTL).build().unwrap();
    make_hot(&cache, 1).await;
    advance(TTL + Duration::from_secs(1)).await;
    assert_eq!(hot_hit(&cache, 1), None);
    assert_eq!(cache.get(&1).await.unwrap().as_deref(), Some(&1));
    assert_eq!(cache.stats().refreshes, 1);
}

#[tokio::test(start_paused = true)]
async fn moka_is_told_of_hot_hits_and_what_it_evicts_leaves_its_hot_slot() {
    let cache = builder().l1_capacity(8).build().unwrap();
    make_hot(&cache, 1).await;
    for _ in 0..200 {
        hot_hit(&cache, 1).unwrap();
    }
    for key in 100..200 {
        cache.get(&key).await.unwrap();
        hot_hit(&cache, 1).unwrap();
    }
    assert!(cache.peek(&1).is_some(), "it was asked for most");
    // The entry is gone from the map: the next report removes it from its hot slot. There are so
    // many slots that no probe comes to this one before.
    let cache = builder().build().unwrap();
    make_hot(&cache, 1).await;
    let engine = Arc::clone(cache.engine());
    engine.l1.evict_for_tests(&cache.shell.key(1));
    for _ in 0..2 * crate::l1::SAMPLE {
        hot_hit(&cache, 1);
    }
    assert!(!is_hot(&cache, 1));
}

#[tokio::test(start_paused = true)]
async fn an_evicted_entry_that_is_not_asked_for_leaves_its_hot_slot_at_a_probe() {
    let cache = builder().l1_capacity(8).build().unwrap();
    let (hot, mut cold) = (1, 2);
    loop {
        make_hot(&cache, cold).await;
        make_hot(&cache, hot).await;
        if is_hot(&cache, cold) {
            break;
        }
        // Both keys have one slot: try another key.
        cold += 1;
    }
    cache.engine().l1.evict_for_tests(&cache.shell.key(cold));
    for _ in 0..20 * crate::l1::SAMPLE {
        hot_hit(&cache, hot).unwrap();
    }
    assert!(!is_hot(&cache, cold));
}

#[tokio::test(start_paused = true)]
async fn an_expired_entry_that_is_kept_as_a_fallback_leaves_its_hot_slot() {
    let cache = builder().stale_if_error(TTL).build().unwrap();
    make_hot(&cache, 1).await;
    cache.expire(&1).await.unwrap();
    assert_eq!(hot_hit(&cache, 1), None);
    assert_eq!(source(&cache, 1).await, Source::Loader);
}
