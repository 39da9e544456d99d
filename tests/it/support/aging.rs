//! Entries past their TTL, and settings that answer them.

use std::time::Duration;

use tidegate::{BoxError, CacheBuilder, Entry, Error, Freshness};
use tokio::time::{Instant, sleep};

use super::loader::{Behaviour, Db};
use super::node::Node;

/// The TTL of the entries of [`make_stale`].
pub(crate) const TTL: Duration = Duration::from_millis(400);

/// Longer than any test.
pub(crate) const LONG: Duration = Duration::from_secs(120);

/// Settings: stale entries are answered while a refresh runs, without an end. After a failed
/// refresh the next attempt comes only after a change ends the backoff.
pub(crate) fn with_stale_while_revalidate(builder: CacheBuilder<Db>) -> CacheBuilder<Db> {
    builder
        .refresh_ahead(0.0)
        .stale_while_revalidate(LONG)
        .error_backoff(LONG)
}

/// Settings: stale entries are answered when the load fails, without an end.
pub(crate) fn with_stale_if_error(builder: CacheBuilder<Db>) -> CacheBuilder<Db> {
    builder
        .refresh_ahead(0.0)
        .stale_if_error(LONG)
        .error_backoff(LONG)
}

/// Makes an entry with the value "old" in the L1 of every node, and waits until its TTL is over.
/// Later loads get the TTL of the cache. The counts of the source start again from zero.
pub(crate) async fn make_stale(db: &Db, nodes: &[&Node], key: u64) {
    db.write(key, "old");
    // Another attempt, in case the machine paused for longer than a TTL at the wrong moment.
    for attempt in 0..50 {
        if attempt > 0 {
            nodes[0].invalidate(&key).await.expect("an invalidation");
            sleep(TTL / 10).await;
        }
        db.behave(Behaviour::ttl(TTL));
        let before = db.loads();
        let mut fresh = true;
        for node in nodes {
            node.get(key).await.expect("a look-up");
        }
        for node in nodes {
            let entry = node.peek(&key);
            fresh &= entry.is_some_and(|entry| entry.freshness() == Freshness::Fresh);
        }
        let all_in_time = fresh && db.loads() == before + 1;
        db.behave(Behaviour::default());
        sleep(TTL + Duration::from_millis(20)).await;
        if all_in_time {
            return db.reset_counts();
        }
    }
    panic!("an entry was not fresh in all of L1 within its TTL");
}

/// The value and the freshness of an answer.
pub(crate) fn with_freshness(
    got: Result<Option<Entry<String>>, Error<BoxError>>,
) -> (String, Freshness) {
    let entry = got.unwrap_or_else(|error| panic!("a look-up failed: {error:?}"));
    let entry = entry.expect("the key exists");
    (entry.value().as_str().to_owned(), entry.freshness())
}

pub(crate) fn old(freshness: Freshness) -> (String, Freshness) {
    ("old".to_owned(), freshness)
}

pub(crate) fn fresh(value: &str) -> (String, Freshness) {
    (value.to_owned(), Freshness::Fresh)
}

/// Whether L1 holds this value within its TTL.
pub(crate) fn has_fresh(node: &Node, key: u64, value: &str) -> bool {
    node.peek(&key).is_some_and(|entry| {
        entry.value().as_str() == value && entry.freshness() == Freshness::Fresh
    })
}

/// The times between successive moments.
pub(crate) fn intervals(moments: &[Instant]) -> Vec<Duration> {
    let pairs = moments.windows(2);
    pairs.map(|pair| pair[1] - pair[0]).collect()
}
