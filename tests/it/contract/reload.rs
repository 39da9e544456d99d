//! Reloads: loads that are told what there is, and may answer that it has not changed.

use tidegate::{Error, Freshness, Loaded, Source};

use crate::support::aging::{
    LONG, TTL, fresh, make_stale, seen, with_stale_if_error, with_stale_while_revalidate,
};
use crate::support::backend::{Backend, on_both_tiers};
use crate::support::eventually;
use crate::support::loader::{Behaviour, Db};
use crate::support::node::value;

on_both_tiers! {
    a_reload_is_told_what_there_is
    what_has_not_changed_gets_a_new_life_everywhere
    what_has_not_changed_keeps_its_tags_and_its_version
    unchanged_without_a_previous_entry_is_an_error
    unchanged_cannot_be_inserted
}

async fn a_reload_is_told_what_there_is(backend: Backend) {
    let db = Db::default();
    let a = backend.node_with(&db, with_stale_while_revalidate).await;
    let b = backend.node_with(&db, with_stale_while_revalidate).await;
    make_stale(&db, &[&a], 1).await;
    db.write(1, "new");
    // Also to a process that never had it.
    assert_eq!(value(b.refresh(&1).await), "new");
    assert_eq!(value(b.refresh(&1).await), "new");
    let told = db.reloads();
    assert_eq!(told.len(), 2);
    assert_eq!(
        (told[0].previous.as_str(), told[0].freshness),
        ("old", Freshness::Stale)
    );
    assert!(told[0].age >= TTL, "{:?}", told[0].age);
    assert_eq!(
        (told[1].previous.as_str(), told[1].freshness),
        ("new", Freshness::Fresh)
    );
    assert!(told[1].age < told[0].age + LONG);
    b.invalidate(&1).await.expect("an invalidation");
    assert_eq!(value(b.get(1).await), "new");
    assert_eq!((db.loads(), db.reloads().len()), (3, 2));
    backend.check(&[&a, &b]).await;
}

async fn what_has_not_changed_gets_a_new_life_everywhere(backend: Backend) {
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
            seen(node.get_entry(1).await) == fresh("old")
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
    // By hand, and after an expiry, as well.
    assert_eq!(value(b.refresh(&1).await), "old");
    b.expire(&1).await.expect("an expiry");
    let falling_back = backend.node_with(&db, with_stale_if_error).await;
    assert_eq!(seen(falling_back.get_entry(1).await), fresh("old"));
    assert_eq!((db.loads(), db.reloads().len()), (3, 3));
    backend.check(&[&a, &b, &cold, &falling_back]).await;
}

async fn what_has_not_changed_keeps_its_tags_and_its_version(backend: Backend) {
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
    db.forget();
    db.write(2, "new");
    for node in [&a, &b] {
        eventually("it has heard", async || value(node.get(2).await) == "new").await;
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
    // Nor can an absence be what it was.
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
