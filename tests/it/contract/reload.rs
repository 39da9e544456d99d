//! Reloads: loads that are given the previous entry and may answer that it has not changed.

use tidegate::{Error, Freshness, Loaded, Source};

use crate::support::aging::{
    LONG, TTL, fresh, make_stale, with_freshness, with_stale_if_error, with_stale_while_revalidate,
};
use crate::support::backend::{Backend, on_both_tiers};
use crate::support::eventually;
use crate::support::loader::{Behaviour, Db};
use crate::support::node::value;

on_both_tiers! {
    a_reload_is_given_the_previous_entry
    an_unchanged_value_is_fresh_again_in_every_process
    an_unchanged_value_keeps_its_tags_and_its_version
    unchanged_without_a_previous_entry_is_an_error
    unchanged_cannot_be_inserted
}

async fn a_reload_is_given_the_previous_entry(backend: Backend) {
    let db = Db::default();
    let a = backend.node_with(&db, with_stale_while_revalidate).await;
    let b = backend.node_with(&db, with_stale_while_revalidate).await;
    make_stale(&db, &[&a], 1).await;
    db.write(1, "new");
    // A process that never held the entry is given it as well.
    assert_eq!(value(b.refresh(&1).await), "new");
    assert_eq!(value(b.refresh(&1).await), "new");
    let reloads = db.reloads();
    assert_eq!(reloads.len(), 2);
    assert_eq!(
        (reloads[0].previous.as_str(), reloads[0].freshness),
        ("old", Freshness::Stale)
    );
    assert!(reloads[0].age >= TTL, "{:?}", reloads[0].age);
    assert_eq!(
        (reloads[1].previous.as_str(), reloads[1].freshness),
        ("new", Freshness::Fresh)
    );
    assert!(reloads[1].age < reloads[0].age + LONG);
    b.invalidate(&1).await.expect("an invalidation");
    assert_eq!(value(b.get(1).await), "new");
    assert_eq!((db.loads(), db.reloads().len()), (3, 2));
    backend.check(&[&a, &b]).await;
}

async fn an_unchanged_value_is_fresh_again_in_every_process(backend: Backend) {
    let db = Db::default();
    let a = backend.node_with(&db, with_stale_while_revalidate).await;
    let b = backend.node_with(&db, with_stale_while_revalidate).await;
    make_stale(&db, &[&a, &b], 1).await;
    db.write(1, "not read");
    db.behave(Behaviour {
        unchanged: true,
        ..Behaviour::default()
    });
    for node in [&a, &b] {
        eventually("it is fresh again", async || {
            with_freshness(node.get_entry(1).await) == fresh("old")
        })
        .await;
    }
    let cold = backend.node_with(&db, with_stale_while_revalidate).await;
    let entry = cold
        .get_entry(1)
        .await
        .expect("a look-up")
        .expect("an entry");
    assert_eq!(
        (entry.source(), entry.freshness()),
        (Source::L2, Freshness::Fresh)
    );
    assert_eq!(entry.value().as_str(), "old");
    let stats = [a.stats(), b.stats()];
    let sum = |count: fn(&tidegate::Stats) -> u64| stats.iter().map(count).sum::<u64>();
    assert_eq!(
        (
            db.loads(),
            sum(|stats| stats.unchanged),
            sum(|stats| stats.fills)
        ),
        (1, 1, 2)
    );
    // The same holds for a call of `refresh` and for a load after an expiry.
    assert_eq!(value(b.refresh(&1).await), "old");
    b.expire(&1).await.expect("an expiry");
    let falling_back = backend.node_with(&db, with_stale_if_error).await;
    assert_eq!(
        with_freshness(falling_back.get_entry(1).await),
        fresh("old")
    );
    assert_eq!((db.loads(), db.reloads().len()), (3, 3));
    backend.check(&[&a, &b, &cold, &falling_back]).await;
}

async fn an_unchanged_value_keeps_its_tags_and_its_version(backend: Backend) {
    let db = Db::default();
    let a = backend.node_with(&db, with_stale_while_revalidate).await;
    let b = backend.node_with(&db, with_stale_while_revalidate).await;
    for key in [1, 2] {
        db.tag(key, &["t"]);
        db.version(key, 7);
        a.get(key).await.expect("a load");
    }
    for key in [1, 2] {
        db.tag(key, &[]);
        db.version(key, 0);
    }
    db.behave(Behaviour {
        unchanged: true,
        ..Behaviour::default()
    });
    for key in [1, 2] {
        assert_eq!(value(a.refresh(&key).await), format!("row {key}"));
    }
    let earlier = Loaded::found("earlier".to_owned()).version(6);
    let refused = b.insert(1, earlier).await.expect_err("7 is later");
    assert!(refused.is_superseded(), "{refused:?}");
    db.behave(Behaviour::default());
    assert_eq!(value(b.get(2).await), "row 2");
    b.invalidate_tag("t").await.expect("an invalidation");
    db.reset_counts();
    db.write(2, "new");
    for node in [&a, &b] {
        eventually("the change has arrived", async || {
            value(node.get(2).await) == "new"
        })
        .await;
    }
    assert_eq!((db.loads(), db.reloads().len()), (1, 0));
    backend.check(&[&a, &b]).await;
}

async fn unchanged_without_a_previous_entry_is_an_error(backend: Backend) {
    let db = Db::default();
    let a = backend.node_with(&db, with_stale_while_revalidate).await;
    db.behave(Behaviour {
        unchanged: true,
        ..Behaviour::default()
    });
    for _ in 0..2 {
        let wrong = a.get(1).await.expect_err("nothing to keep");
        assert!(
            matches!(wrong, Error::UnchangedWithoutPrevious),
            "{wrong:?}"
        );
    }
    // An absence is no previous entry either.
    db.behave(Behaviour::default());
    db.delete(2);
    assert_eq!(a.get(2).await.expect("a load"), None);
    db.behave(Behaviour {
        unchanged: true,
        ..Behaviour::default()
    });
    let wrong = a.refresh(&2).await.expect_err("nothing to keep");
    assert!(
        matches!(wrong, Error::UnchangedWithoutPrevious),
        "{wrong:?}"
    );
    assert_eq!((db.loads(), a.stats().load_failures), (3, 2));
    backend.check(&[&a]).await;
}

async fn unchanged_cannot_be_inserted(backend: Backend) {
    let db = Db::default();
    let a = backend.node_with(&db, with_stale_while_revalidate).await;
    a.get(1).await.expect("a load");
    let refused = a.insert(1, Loaded::unchanged()).await;
    assert!(refused.is_err());
    assert_eq!(value(a.get(1).await), "row 1");
    assert_eq!(a.stats().inserts, 0);
    backend.check(&[&a]).await;
}
