//! Tests of `invalidate`.

use crate::support::{Fixture, until};

#[tokio::test(flavor = "multi_thread")]
async fn a_running_cache_sees_what_the_inspector_invalidates() {
    let fixture = Fixture::start();
    let cache = fixture.cache(|cache| cache).await;
    for (args, keys) in [
        (&["invalidate", "a,b", "tidegate:users:c"][..], 2),
        (&["invalidate", "--part", "a,b"][..], 1),
    ] {
        cache.get("a,b").await.expect("loaded");
        let (received, loads) = (cache.stats().remote_invalidations, fixture.loads());
        let output = fixture.inspect(args);
        assert_eq!(output.code, 0, "{}", output.err);
        assert!(output.out.contains("1 process listens"), "{}", output.out);
        until(|| cache.stats().remote_invalidations >= received + keys).await;
        cache.get("a,b").await.expect("an answer");
        // The first command names a key of two parts; the cache's key is one part.
        let expected = loads + usize::from(keys == 1);
        assert_eq!(fixture.loads(), expected, "{args:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn tags_and_everything_are_invalidated_for_every_process() {
    let fixture = Fixture::start();
    let cache = fixture.cache(|cache| cache).await;
    for args in [
        &["invalidate", "--tag", "team:7"][..],
        &["invalidate", "--everything", "--yes"][..],
    ] {
        cache.get("42").await.expect("loaded");
        assert!(cache.peek("42").is_some());
        let json = fixture.json(args);
        assert_eq!(json["listeners"], 1);
        until(|| cache.peek("42").is_none()).await;
        let loads = fixture.loads();
        cache.get("42").await.expect("loaded again");
        assert_eq!(fixture.loads(), loads + 1, "{args:?}");
    }
    let refused = fixture.inspect(&["invalidate", "--everything"]);
    assert_eq!(refused.code, 2);
    assert!(refused.err.contains("--yes"), "{}", refused.err);
    assert!(cache.peek("42").is_some());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_hold_off_is_left_where_one_is_asked_for() {
    let fixture = Fixture::start();
    let output = fixture.inspect(&["invalidate", "42", "--hold-off", "60000"]);
    assert_eq!(output.code, 0, "{}", output.err);
    let output = fixture.inspect(&["key", "42"]);
    assert_eq!(output.field("kind"), "hold-off");
}
