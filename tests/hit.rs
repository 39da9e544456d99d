//! What an L1 hit costs and what a long key costs, in counted allocations. This is a binary of its
//! own because its allocator counts.

use std::future::Future;
use std::pin::pin;
use std::task::{Context, Poll, Waker};

use tidegate::{BoxError, Cache, InProcess, Source, loader_fn};

type Users = Cache<String, String, BoxError>;

fn cache(tier: &InProcess) -> Users {
    let load = loader_fn(|key: String| async move {
        Ok::<_, BoxError>((key != "nobody").then(|| format!("user of {} bytes", key.len())))
    });
    Cache::builder("users", load)
        .l2(tier.clone())
        .build()
        .expect("sound settings")
}

/// Polls once: a hit is ready at once.
fn hit(cache: &Users, key: &str) -> bool {
    let mut get = pin!(cache.get(key));
    match get.as_mut().poll(&mut Context::from_waker(Waker::noop())) {
        Poll::Ready(found) => found.expect("a hit").is_some(),
        Poll::Pending => panic!("not a hit"),
    }
}

#[test]
fn an_l1_hit_allocates_nothing_and_sends_no_command() {
    let tier = InProcess::new();
    let cache = cache(&tier);
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .expect("a runtime");
    runtime.block_on(async {
        cache.get("ada").await.expect("loads");
        cache.get("nobody").await.expect("loads");
    });
    let commands = tier.commands();
    // moka's own housekeeping allocates now and then (every 64th read, or by time). The assertion
    // is about every hit, so it takes the minimum over many runs of one hit.
    for (key, found) in [("ada", true), ("nobody", false)] {
        let counts: Vec<u64> = (0..1_000)
            .map(|_| {
                allocation_counter::measure(|| assert_eq!(hit(&cache, key), found)).count_total
            })
            .collect();
        let clean = counts.iter().filter(|count| **count == 0).count();
        assert!(
            clean >= 900,
            "{clean} of 1,000 hits on {key:?} allocated nothing"
        );
    }
    assert_eq!(tier.commands(), commands);
    assert_eq!(cache.stats().l1_hits, 2_000);
}

#[test]
fn a_key_of_ten_megabytes_costs_its_copies_and_no_more() {
    const MB: u64 = 1_000_000;
    let tier = InProcess::new();
    let (cache, other) = (cache(&tier), cache(&tier));
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .expect("a runtime");
    // Each byte of the key is escaped to three.
    let (key, similar_key) = (":".repeat(10_000_000), ":".repeat(9_999_999) + ";");
    let load = allocation_counter::measure(|| {
        runtime.block_on(async {
            cache.get(&key).await.expect("loads").expect("a value");
        });
    });
    let (most, stays) = (load.bytes_max, load.bytes_current);
    assert!(most < 32 * MB, "{most} bytes at once");
    assert!(stays < 11 * MB as i64, "{stays} bytes stay");
    let hit = allocation_counter::measure(|| assert!(hit(&cache, &key)));
    assert!(hit.bytes_max < MB, "{} bytes at once", hit.bytes_max);
    // Another caller of the key finds the same record, and the similar key has another one.
    runtime.block_on(async {
        let entry = other.get_entry(&key).await.expect("a look-up");
        assert_eq!(entry.expect("an entry").source(), Source::L2);
        let entry = other.get_entry(&similar_key).await.expect("a look-up");
        assert_eq!(entry.expect("an entry").source(), Source::Loader);
        other.invalidate(&key).await.expect("an invalidation");
        assert!(other.peek(&key).is_none() && cache.peek(&key).is_none());
    });
    assert_eq!(tier.len(), 1, "one key is gone, its neighbour is there");
}
