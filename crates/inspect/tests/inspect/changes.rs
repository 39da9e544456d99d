//! `invalidate`.

use crate::support::{Ground, until};

#[tokio::test(flavor = "multi_thread")]
async fn a_running_cache_sees_what_the_inspector_invalidates() {
    let ground = Ground::start();
    let cache = ground.cache(|cache| cache).await;
    for (args, keys) in [
        (&["invalidate", "a,b", "tidegate:users:c"][..], 2),
        (&["invalidate", "--part", "a,b"][..], 1),
    ] {
        cache.get("a,b").await.expect("loaded");
        let (heard, loads) = (cache.stats().remote_invalidations, ground.loads());
        let said = ground.inspect(args);
        assert_eq!(said.code, 0, "{}", said.err);
        assert!(said.out.contains("1 process listens"), "{}", said.out);
        until(|| cache.stats().remote_invalidations >= heard + keys).await;
        cache.get("a,b").await.expect("an answer");
        // The first one names a key of two parts, which this is not.
        let expected = loads + usize::from(keys == 1);
        assert_eq!(ground.loads(), expected, "{args:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn tags_and_everything_are_invalidated_for_every_process() {
    let ground = Ground::start();
    let cache = ground.cache(|cache| cache).await;
    for args in [
        &["invalidate", "--tag", "team:7"][..],
        &["invalidate", "--everything", "--yes"][..],
    ] {
        cache.get("42").await.expect("loaded");
        assert!(cache.peek("42").is_some());
        let json = ground.json(args);
        assert_eq!(json["listeners"], 1);
        until(|| cache.peek("42").is_none()).await;
        let loads = ground.loads();
        cache.get("42").await.expect("loaded again");
        assert_eq!(ground.loads(), loads + 1, "{args:?}");
    }
    let refused = ground.inspect(&["invalidate", "--everything"]);
    assert_eq!(refused.code, 2);
    assert!(refused.err.contains("--yes"), "{}", refused.err);
    assert!(cache.peek("42").is_some());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_hold_off_is_left_where_one_is_asked_for() {
    let ground = Ground::start();
    let said = ground.inspect(&["invalidate", "42", "--hold-off", "60000"]);
    assert_eq!(said.code, 0, "{}", said.err);
    let said = ground.inspect(&["key", "42"]);
    assert_eq!(said.field("kind"), "hold-off");
}
