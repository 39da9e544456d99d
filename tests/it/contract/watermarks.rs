//! Invalidations of a whole cache, and of all entries with a tag.

use std::time::Duration;

use tidegate::Source;

use crate::support::backend::{Backend, on_both_tiers};
use crate::support::eventually;
use crate::support::loader::{Behaviour, Db};
use crate::support::node::{Node, answer, value};

on_both_tiers! {
    an_invalidation_of_everything_is_one_command_and_leaves_no_usable_entry
    an_invalidation_of_everything_ends_running_loads_and_their_leases
    an_invalidation_of_everything_ends_the_load_of_another_process
    a_process_that_was_down_finds_that_everything_was_invalidated
    a_ttl_of_its_own_keeps_no_value_past_an_invalidation_of_everything
    caches_of_other_names_keep_their_entries
    an_invalidation_of_a_tag_drops_what_carries_it_and_nothing_else
    an_invalidation_of_a_tag_fences_a_running_load
    a_get_after_an_invalidation_of_a_tag_takes_no_older_value_from_a_load_that_it_joined
    a_process_that_was_down_finds_that_a_tag_was_invalidated
    an_absence_can_be_tagged
    an_insert_can_be_tagged
    a_value_with_64_tags_is_stored_and_one_with_65_is_not
}

async fn source(node: &Node, key: u64) -> Source {
    let entry = node.get_entry(key).await.expect("a look-up");
    entry.expect("an entry").source()
}

async fn an_invalidation_of_everything_is_one_command_and_leaves_no_usable_entry(backend: Backend) {
    let db = Db::default();
    let (a, b) = (backend.node(&db).await, backend.node(&db).await);
    let keys: Vec<u64> = (0..200).collect();
    for &key in &keys {
        a.get(key).await.expect("a load");
        b.get(key).await.expect("a look-up");
    }
    let mut counter = backend.command_counter();
    a.invalidate_all().await.expect("an invalidation");
    assert!(keys.iter().all(|key| a.peek(key).is_none()));
    eventually("the other process has dropped all", async || {
        keys.iter().all(|key| b.peek(key).is_none())
    })
    .await;
    assert_eq!(counter.commands(), 1);
    for &key in &keys {
        db.write(key, "new");
        assert_eq!(value(b.get(key).await), "new");
        assert_eq!(value(a.get(key).await), "new");
    }
    assert_eq!((db.loads(), b.stats().fills), (400, 200));
    assert_eq!((a.stats().gaps, b.stats().gaps), (0, 0));
    backend.check(&[&a, &b]).await;
}

async fn an_invalidation_of_everything_ends_running_loads_and_their_leases(backend: Backend) {
    let db = Db::default();
    let a = backend.node(&db).await;
    db.write(1, "old");
    let (first, second) = (db.gate(), db.gate());
    let early = a.caller(1).await;
    first.reached().await;
    db.write(1, "new");
    a.invalidate_all().await.expect("an invalidation");
    // The lease of the first load still lasts a minute, and no caller waits for it.
    let late = a.caller(1).await;
    second.reached().await;
    assert_eq!(a.stats().lease_waits, 0);
    first.open();
    assert_eq!(value(answer(early).await), "old");
    assert!(a.peek(&1).is_none(), "the first load was stored");
    second.open();
    assert_eq!(value(answer(late).await), "new");
    let cold = backend.node(&db).await;
    assert_eq!(value(cold.get(1).await), "new");
    assert_eq!((db.loads(), a.stats().fills_refused), (2, 1));
    backend.check(&[&a, &cold]).await;
}

async fn an_invalidation_of_everything_ends_the_load_of_another_process(backend: Backend) {
    let db = Db::default();
    let (a, b) = (backend.node(&db).await, backend.node(&db).await);
    a.get(2).await.expect("a load");
    db.write(1, "old");
    let (first, second) = (db.gate(), db.gate());
    let early = b.caller(1).await;
    first.reached().await;
    db.write(1, "new");
    a.invalidate_all().await.expect("an invalidation");
    let late = a.caller(1).await;
    second.reached().await;
    second.open();
    assert_eq!(value(answer(late).await), "new");
    first.open();
    assert_eq!(value(answer(early).await), "old", "it asked before");
    assert_eq!(value(b.get(1).await), "new");
    assert_eq!((db.loads(), b.stats().fills_refused), (3, 1));
    backend.check(&[&a, &b]).await;
}

async fn a_process_that_was_down_finds_that_everything_was_invalidated(backend: Backend) {
    let db = Db::default();
    let a = backend.node(&db).await;
    let b = backend.node(&db).await;
    b.get(1).await.expect("a load");
    b.check().await;
    b.close().await;
    drop(b);
    db.write(1, "new");
    a.invalidate_all().await.expect("an invalidation");
    let again = backend.node(&db).await;
    assert_eq!(value(again.get(1).await), "new");
    assert_eq!(db.loads(), 2);
    backend.check(&[&a, &again]).await;
}

async fn a_ttl_of_its_own_keeps_no_value_past_an_invalidation_of_everything(backend: Backend) {
    let db = Db::default();
    let a = backend.node(&db).await;
    db.behave(Behaviour {
        ttl: Some(Duration::from_secs(24 * 60 * 60)),
        ..Behaviour::default()
    });
    a.get(1).await.expect("a load");
    a.invalidate_all().await.expect("an invalidation");
    db.write(1, "new");
    let cold = backend.node(&db).await;
    assert_eq!(value(cold.get(1).await), "new");
    assert_eq!(value(a.get(1).await), "new");
    backend.check(&[&a, &cold]).await;
}

async fn caches_of_other_names_keep_their_entries(backend: Backend) {
    let db = Db::default();
    let users = backend.node(&db).await;
    let prices = backend.named("prices", db.clone(), |builder| builder).await;
    db.tag(1, &["t"]);
    for node in [&users, &prices] {
        node.get(1).await.expect("a load");
    }
    users.invalidate_all().await.expect("an invalidation");
    users.invalidate_tag("t").await.expect("an invalidation");
    assert_eq!(source(&prices, 1).await, Source::L1);
    let cold = backend.named("prices", db.clone(), |builder| builder).await;
    assert_eq!(source(&cold, 1).await, Source::L2);
    backend.check(&[&users, &prices, &cold]).await;
}

async fn an_invalidation_of_a_tag_drops_what_carries_it_and_nothing_else(backend: Backend) {
    let db = Db::default();
    let (a, b) = (backend.node(&db).await, backend.node(&db).await);
    db.tag(1, &["team:7", "city:3"]);
    db.tag(2, &["team:8", "city:3"]);
    db.tag(3, &["team:7"]);
    for node in [&a, &b] {
        for key in 1..=4 {
            node.get(key).await.expect("a look-up");
        }
    }
    for key in 1..=4 {
        db.write(key, "new");
    }
    let mut counter = backend.command_counter();
    a.invalidate_tag("team:7").await.expect("an invalidation");
    assert!(a.peek(&1).is_none() && a.peek(&3).is_none());
    eventually("the other process has dropped them", async || {
        b.peek(&1).is_none() && b.peek(&3).is_none()
    })
    .await;
    assert_eq!(counter.commands(), 1);
    for node in [&a, &b] {
        for key in [2, 4] {
            assert_eq!(source(node, key).await, Source::L1, "key {key}");
            assert_eq!(value(node.get(key).await), format!("row {key}"));
        }
        for key in [1, 3] {
            assert_eq!(value(node.get(key).await), "new");
        }
    }
    assert_eq!(db.loads(), 6);
    assert_eq!(source(&b, 1).await, Source::L1, "it is used again");
    backend.check(&[&a, &b]).await;
}

async fn an_invalidation_of_a_tag_fences_a_running_load(backend: Backend) {
    let db = Db::default();
    let (a, b) = (backend.node(&db).await, backend.node(&db).await);
    // Both processes know the watermarks before the load begins.
    b.get(2).await.expect("a load");
    db.write(1, "old");
    db.tag(1, &["t"]);
    let gate = db.gate();
    let caller = a.caller(1).await;
    gate.reached().await;
    db.write(1, "new");
    b.invalidate_tag("t").await.expect("an invalidation");
    gate.open();
    assert_eq!(value(answer(caller).await), "old", "it asked before");
    assert_eq!(value(b.get(1).await), "new");
    eventually("the change has arrived", async || {
        a.peek(&1)
            .is_none_or(|entry| entry.value().as_str() == "new")
    })
    .await;
    assert_eq!(value(a.get(1).await), "new");
    let cold = backend.node(&db).await;
    assert_eq!(value(cold.get(1).await), "new");
    assert_eq!(db.loads(), 3);
    backend.check(&[&a, &b, &cold]).await;
}

async fn a_get_after_an_invalidation_of_a_tag_takes_no_older_value_from_a_load_that_it_joined(
    backend: Backend,
) {
    let db = Db::default();
    let a = backend.node(&db).await;
    db.write(1, "old");
    db.tag(1, &["t"]);
    let gate = db.gate();
    let early = a.caller(1).await;
    gate.reached().await;
    db.write(1, "new");
    a.invalidate_tag("t").await.expect("an invalidation");
    let late = a.callers(20, 1).await;
    gate.open();
    assert_eq!(value(answer(early).await), "old");
    for caller in late {
        assert_eq!(value(answer(caller).await), "new");
    }
    assert_eq!(db.loads(), 2);
    backend.check(&[&a]).await;
}

async fn a_process_that_was_down_finds_that_a_tag_was_invalidated(backend: Backend) {
    let db = Db::default();
    let a = backend.node(&db).await;
    let b = backend.node(&db).await;
    db.tag(1, &["t"]);
    db.tag(2, &["u"]);
    for key in 1..=3 {
        b.get(key).await.expect("a load");
    }
    b.check().await;
    b.close().await;
    drop(b);
    a.invalidate_tag("t").await.expect("an invalidation");
    let again = backend.node(&db).await;
    assert_eq!(source(&again, 1).await, Source::Loader);
    assert_eq!(source(&again, 2).await, Source::L2);
    assert_eq!(source(&again, 3).await, Source::L2);
    assert_eq!(db.loads(), 4);
    backend.check(&[&a, &again]).await;
}

async fn an_absence_can_be_tagged(backend: Backend) {
    let db = Db::default();
    let a = backend.node(&db).await;
    db.delete(1);
    db.tag(1, &["t"]);
    assert_eq!(a.get(1).await.expect("a look-up"), None);
    db.write(1, "here now");
    assert_eq!(a.get(1).await.expect("a look-up"), None);
    a.invalidate_tag("t").await.expect("an invalidation");
    assert_eq!(value(a.get(1).await), "here now");
    let cold = backend.node(&db).await;
    assert_eq!(value(cold.get(1).await), "here now");
    backend.check(&[&a, &cold]).await;
}

async fn an_insert_can_be_tagged(backend: Backend) {
    let db = Db::default();
    let (a, b) = (backend.node(&db).await, backend.node(&db).await);
    let tagged = tidegate::Loaded::found("by hand".to_owned()).tag("t");
    a.insert(1, tagged).await.expect("an insert");
    assert_eq!(source(&a, 1).await, Source::L1);
    assert_eq!(value(b.get(1).await), "by hand");
    b.invalidate_tag("t").await.expect("an invalidation");
    assert!(b.peek(&1).is_none());
    eventually("the other process has dropped it", async || {
        a.peek(&1).is_none()
    })
    .await;
    assert_eq!(value(a.get(1).await), "row 1");
    backend.check(&[&a, &b]).await;
}

async fn a_value_with_64_tags_is_stored_and_one_with_65_is_not(backend: Backend) {
    let db = Db::default();
    let (a, b) = (backend.node(&db).await, backend.node(&db).await);
    let tags: Vec<String> = (0..65).map(|tag| format!("tag {tag}")).collect();
    let tags: Vec<&str> = tags.iter().map(String::as_str).collect();
    db.tag(1, &tags[..64]);
    db.tag(2, &tags);
    for key in [1, 2] {
        assert_eq!(value(a.get(key).await), format!("row {key}"));
    }
    assert_eq!(
        (source(&a, 1).await, source(&b, 1).await),
        (Source::L1, Source::L2)
    );
    assert_eq!((a.stats().fills, a.stats().encode_failures), (1, 1));
    assert!(a.peek(&2).is_none());
    assert_eq!(source(&b, 2).await, Source::Loader);
    // Each tag counts, also the last of 64.
    a.invalidate_tag("tag 63").await.expect("an invalidation");
    assert!(a.peek(&1).is_none());
    assert_eq!(source(&a, 1).await, Source::Loader);
    backend.check(&[&a, &b]).await;
}
