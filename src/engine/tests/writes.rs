//! Writes to the source, and the change of the cache that follows each.

use std::convert::Infallible;

use super::*;
use crate::WriteError;

#[tokio::test(start_paused = true)]
async fn a_write_is_followed_by_its_value_or_an_invalidation_and_a_failed_one_by_the_latter() {
    for shared in [true, false] {
        let (tier, source) = fixture(false, &["old", "loaded", "loaded", "loaded"]);
        let settings = with_stale_windows(settings(&source));
        let cache = if shared {
            settings.l2(tier.clone()).build().unwrap()
        } else {
            settings.build().unwrap()
        };
        cache.get(&1).await.unwrap();
        let written = async { Ok::<_, Infallible>("written".to_owned()) };
        cache.write(1, written).await.unwrap();
        assert_eq!(
            entry(&cache).await,
            ("written".to_owned(), Freshness::Fresh)
        );
        assert_eq!(source.calls(), 1);
        // A write that returned an error may have been carried out.
        let broken = async { Err::<String, _>(BoxError::from("broken")) };
        let failed = cache.write(1, broken).await;
        assert!(matches!(failed, Err(WriteError::Source(_))));
        assert!(cache.peek(&1).is_none());
        assert_eq!(entry(&cache).await.0, "loaded");
        let panics = || -> Result<String, Infallible> { panic!("as the test asks") };
        let failed = cache.write(1, async move { panics() }).await;
        assert!(matches!(failed, Err(WriteError::Panicked)));
        assert!(cache.peek(&1).is_none());
        assert_eq!(entry(&cache).await.0, "loaded");
        let done = cache.invalidate_after(1, async { Ok::<_, Infallible>(5) });
        assert!(matches!(done.await, Ok(5)));
        assert!(cache.peek(&1).is_none());
        assert!(tier.is_empty());
        assert_eq!(source.calls(), 3);
        validate(&[&cache], &tier).await;
    }
}

#[tokio::test(start_paused = true)]
async fn what_follows_a_write_begins_when_it_has_returned() {
    let (tier, source) = fixture(true, &["old", "new"]);
    let cache = stale_settings(&source, &tier).build().unwrap();
    source.answer();
    cache.get(&1).await.unwrap();
    source.loading().await;
    let (go, gone) = tokio::sync::oneshot::channel::<()>();
    let writing = tokio::spawn({
        let cache = cache.clone();
        async move {
            let write = async move { gone.await.map(drop) };
            cache.refresh_after(1, write).await
        }
    });
    settle().await;
    assert_eq!(entry(&cache).await, ("old".to_owned(), Freshness::Fresh));
    assert_eq!(source.calls(), 1);
    go.send(()).unwrap();
    source.loading().await;
    assert!(!writing.is_finished());
    assert!(
        cache.peek(&1).is_none(),
        "it is expired while the load runs"
    );
    source.answer();
    writing.await.unwrap().unwrap();
    assert_eq!(entry(&cache).await, ("new".to_owned(), Freshness::Fresh));
    validate(&[&cache], &tier).await;
}

/// The value of the later writer stays, and the earlier write is no error.
#[tokio::test(start_paused = true)]
async fn a_write_that_was_superseded_is_carried_out_all_the_same() {
    let (tier, source) = fixture(false, &["old"]);
    let cache = node(&source, &tier);
    let write = |text: &str, version| {
        let row = Loaded::found(text.to_owned()).version(version);
        async move { Ok::<_, Infallible>(row) }
    };
    cache.write(1, write("later", 8)).await.unwrap();
    cache.write(1, write("earlier", 7)).await.unwrap();
    assert_eq!(entry(&cache).await.0, "later");
    assert_eq!(source.calls(), 0);
    validate(&[&cache], &tier).await;
}
