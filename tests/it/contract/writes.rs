//! Writes to the source through the cache, and the change of the cache that follows them.

use std::io;

use tidegate::{Freshness, Loaded, Source, WriteError};

use crate::support::aging::{
    fresh, has_fresh, make_stale, old, with_freshness, with_stale_if_error,
    with_stale_while_revalidate,
};
use crate::support::backend::{Backend, on_both_tiers};
use crate::support::eventually;
use crate::support::loader::{Behaviour, Db, Gate};
use crate::support::node::{Node, answer, begin, value};

on_both_tiers! {
    a_write_puts_its_value_into_both_tiers_of_every_process
    a_write_whose_caller_goes_away_after_the_commit_is_seen_by_every_process
    a_write_that_fails_invalidates_the_key
    a_write_that_panics_invalidates_the_key
    a_write_whose_value_is_not_to_be_stored_invalidates_the_key
    a_write_that_answers_unchanged_does_not_leave_the_old_value
    of_two_writers_the_later_version_stays
    a_load_from_before_a_write_is_stored_nowhere
    an_invalidation_after_a_write_answers_what_the_write_answers
    an_invalidation_after_a_write_follows_though_the_caller_goes_away
    an_invalidation_follows_a_write_that_fails_or_panics
    a_refresh_after_a_write_loads_what_the_write_made
    a_refresh_after_a_write_follows_though_the_caller_goes_away
    a_refresh_after_a_write_joins_no_load_from_before
    a_refresh_after_a_write_that_fails_is_no_error_and_the_key_stays_expired
    a_closed_cache_begins_no_write
    close_waits_for_a_write_and_the_change_after_it
}

/// Two processes that hold "old".
async fn fixture(backend: &Backend, db: &Db) -> (Node, Node) {
    db.write(1, "old");
    let a = backend.node_with(db, with_stale_if_error).await;
    let b = backend.node_with(db, with_stale_if_error).await;
    for node in [&a, &b] {
        assert_eq!(value(node.get(1).await), "old");
    }
    db.reset_counts();
    (a, b)
}

async fn everyone_has(nodes: &[&Node], right: &str) {
    for node in nodes {
        eventually("the change has arrived", async || {
            node.peek(&1)
                .is_none_or(|entry| entry.value().as_str() == right)
        })
        .await;
        assert_eq!(with_freshness(node.get_entry(1).await), fresh(right));
    }
}

/// A write that commits, waits at a gate, and then returns `then`.
fn commits<T>(
    db: &Db,
    gate: &Gate,
    then: T,
) -> impl Future<Output = Result<T, io::Error>> + Send + 'static
where
    T: Send + 'static,
{
    let (db, gate) = (db.clone(), gate.clone());
    async move {
        db.write(1, "new");
        gate.pass().await;
        Ok(then)
    }
}

fn broken<T>() -> Result<T, io::Error> {
    Err(io::Error::other("the connection broke after the commit"))
}

async fn a_write_puts_its_value_into_both_tiers_of_every_process(backend: Backend) {
    let db = Db::default();
    let (a, b) = fixture(&backend, &db).await;
    let write = async { Ok::<_, io::Error>("new".to_owned()) };
    a.write(1, write).await.expect("a write");
    assert!(has_fresh(&a, 1, "new"), "here it is at once");
    everyone_has(&[&a, &b], "new").await;
    let cold = backend.node(&db).await;
    let entry = cold
        .get_entry(1)
        .await
        .expect("a look-up")
        .expect("an entry");
    assert_eq!(entry.source(), Source::L2);
    assert_eq!((db.loads(), a.stats().writes, a.stats().inserts), (0, 1, 1));
    backend.check(&[&a, &b, &cold]).await;
}

async fn a_write_whose_caller_goes_away_after_the_commit_is_seen_by_every_process(
    backend: Backend,
) {
    let db = Db::default();
    let (a, b) = fixture(&backend, &db).await;
    let gate = Gate::default();
    let write = commits(&db, &gate, Loaded::found("new".to_owned()));
    let caller = {
        let a = a.clone();
        begin(async move { a.write(1, write).await }).await
    };
    gate.reached().await;
    caller.abort();
    assert!(caller.await.is_err_and(|ended| ended.is_cancelled()));
    gate.open();
    a.check().await;
    everyone_has(&[&a, &b], "new").await;
    assert_eq!((db.loads(), a.stats().writes), (0, 1));
    backend.check(&[&a, &b]).await;
}

async fn a_write_that_fails_invalidates_the_key(backend: Backend) {
    let db = Db::default();
    let (a, b) = fixture(&backend, &db).await;
    db.write(1, "new");
    let failed = a.write(1, async { broken::<String>() }).await;
    assert!(matches!(failed, Err(WriteError::Source(_))), "{failed:?}");
    assert!(a.peek(&1).is_none());
    everyone_has(&[&a, &b], "new").await;
    assert_eq!((db.loads(), a.stats().writes), (1, 0));
    backend.check(&[&a, &b]).await;
}

async fn panics(db: Db) -> Result<String, io::Error> {
    db.write(1, "new");
    panic!("a panic that the test asked for");
}

async fn a_write_that_panics_invalidates_the_key(backend: Backend) {
    let db = Db::default();
    let (a, b) = fixture(&backend, &db).await;
    let failed = a.write(1, panics(db.clone())).await;
    assert!(matches!(failed, Err(WriteError::Panicked)), "{failed:?}");
    assert!(a.peek(&1).is_none());
    everyone_has(&[&a, &b], "new").await;
    backend.check(&[&a, &b]).await;
}

async fn a_write_whose_value_is_not_to_be_stored_invalidates_the_key(backend: Backend) {
    let db = Db::default();
    let (a, b) = fixture(&backend, &db).await;
    db.write(1, "new");
    let loaded = Loaded::found("secret".to_owned()).do_not_store();
    let write = async { Ok::<_, io::Error>(loaded) };
    a.write(1, write).await.expect("a write");
    everyone_has(&[&a, &b], "new").await;
    assert_eq!(db.loads(), 1);
    backend.check(&[&a, &b]).await;
}

/// Without a value there is nothing to store, and the source may hold anything now.
async fn a_write_that_answers_unchanged_does_not_leave_the_old_value(backend: Backend) {
    let db = Db::default();
    let (a, b) = fixture(&backend, &db).await;
    db.write(1, "new");
    let write = async { Ok::<_, io::Error>(Loaded::<String>::unchanged()) };
    assert!(a.write(1, write).await.is_err());
    everyone_has(&[&a, &b], "new").await;
    assert!(db.reloads().is_empty());
    backend.check(&[&a, &b]).await;
}

async fn of_two_writers_the_later_version_stays(backend: Backend) {
    let db = Db::default();
    let (a, b) = fixture(&backend, &db).await;
    let version = |n: u64| Loaded::found(format!("version {n}")).version(n);
    let (first, second) = (Gate::default(), Gate::default());
    // The writes commit in one order and return in the other.
    let earlier = {
        let (a, write) = (a.clone(), commits(&db, &first, version(1)));
        begin(async move { a.write(1, write).await }).await
    };
    first.reached().await;
    let later = {
        let (b, write) = (b.clone(), commits(&db, &second, version(2)));
        begin(async move { b.write(1, write).await }).await
    };
    second.reached().await;
    second.open();
    answer(later).await.expect("a write");
    first.open();
    answer(earlier).await.expect("it was carried out, too");
    everyone_has(&[&a, &b], "version 2").await;
    assert_eq!((db.loads(), a.stats().inserts_superseded), (0, 1));
    backend.check(&[&a, &b]).await;
}

async fn a_load_from_before_a_write_is_stored_nowhere(backend: Backend) {
    let db = Db::default();
    let a = backend.node_with(&db, with_stale_while_revalidate).await;
    let b = backend.node_with(&db, with_stale_while_revalidate).await;
    db.write(1, "old");
    let cold = db.gate();
    let caller = b.caller(1).await;
    cold.reached().await;
    // The load of the other key is a refresh.
    make_stale(&db, &[&b], 2).await;
    let behind = db.gate();
    assert_eq!(with_freshness(b.get_entry(2).await), old(Freshness::Stale));
    behind.reached().await;
    for key in [1, 2] {
        db.write(key, "new");
        let write = async { Ok::<_, io::Error>("new".to_owned()) };
        a.write(key, write).await.expect("a write");
    }
    let fills = b.stats().fills;
    cold.open();
    behind.open();
    assert_eq!(value(answer(caller).await), "old", "it asked before");
    b.check().await;
    assert_eq!((b.stats().fills, b.stats().fills_refused), (fills, 2));
    for node in [&a, &b] {
        for key in [1, 2] {
            eventually("the change has arrived", async || {
                with_freshness(node.get_entry(key).await) == fresh("new")
            })
            .await;
        }
    }
    backend.check(&[&a, &b]).await;
}

async fn an_invalidation_after_a_write_answers_what_the_write_answers(backend: Backend) {
    let db = Db::default();
    let (a, b) = fixture(&backend, &db).await;
    let gate = Gate::default();
    gate.open();
    let rows = a.invalidate_after(1, commits(&db, &gate, 7)).await;
    assert_eq!(rows.expect("a write"), 7);
    assert!(a.peek(&1).is_none());
    everyone_has(&[&a, &b], "new").await;
    assert_eq!((db.loads(), db.reloads().len()), (1, 0));
    assert_eq!((a.stats().writes, a.stats().invalidations), (1, 1));
    backend.check(&[&a, &b]).await;
}

async fn an_invalidation_after_a_write_follows_though_the_caller_goes_away(backend: Backend) {
    let db = Db::default();
    let (a, b) = fixture(&backend, &db).await;
    let gate = Gate::default();
    let write = commits(&db, &gate, ());
    let caller = {
        let a = a.clone();
        begin(async move { a.invalidate_after(1, write).await }).await
    };
    gate.reached().await;
    caller.abort();
    assert!(caller.await.is_err_and(|ended| ended.is_cancelled()));
    assert!(has_fresh(&a, 1, "old"), "it has not returned");
    gate.open();
    a.check().await;
    everyone_has(&[&a, &b], "new").await;
    backend.check(&[&a, &b]).await;
}

async fn an_invalidation_follows_a_write_that_fails_or_panics(backend: Backend) {
    let db = Db::default();
    let (a, b) = fixture(&backend, &db).await;
    db.write(1, "newer");
    let failed = a.invalidate_after(1, async { broken::<()>() }).await;
    let Err(WriteError::Source(error)) = failed else {
        panic!("the write's own error: {failed:?}")
    };
    assert_eq!(error.to_string(), "the connection broke after the commit");
    everyone_has(&[&a, &b], "newer").await;
    let failed = a.invalidate_after(1, panics(db.clone())).await;
    assert!(matches!(failed, Err(WriteError::Panicked)), "{failed:?}");
    everyone_has(&[&a, &b], "new").await;
    let failed = b.refresh_after(1, panics(db.clone())).await;
    assert!(matches!(failed, Err(WriteError::Panicked)), "{failed:?}");
    assert!(b.peek(&1).is_none());
    assert_eq!(db.loads(), 2);
    backend.check(&[&a, &b]).await;
}

async fn a_refresh_after_a_write_loads_what_the_write_made(backend: Backend) {
    let db = Db::default();
    let (a, b) = fixture(&backend, &db).await;
    let gate = Gate::default();
    gate.open();
    let rows = a.refresh_after(1, commits(&db, &gate, 7)).await;
    assert_eq!(rows.expect("a write"), 7);
    assert!(has_fresh(&a, 1, "new"), "it is there when it returns");
    everyone_has(&[&a, &b], "new").await;
    let reloads = db.reloads();
    assert_eq!((db.loads(), reloads.len()), (1, 1));
    assert_eq!(reloads[0].previous, "old");
    backend.check(&[&a, &b]).await;
}

async fn a_refresh_after_a_write_follows_though_the_caller_goes_away(backend: Backend) {
    let db = Db::default();
    let (a, b) = fixture(&backend, &db).await;
    let gate = Gate::default();
    let write = commits(&db, &gate, ());
    let caller = {
        let a = a.clone();
        begin(async move { a.refresh_after(1, write).await }).await
    };
    gate.reached().await;
    caller.abort();
    assert!(caller.await.is_err_and(|ended| ended.is_cancelled()));
    gate.open();
    a.check().await;
    assert!(has_fresh(&a, 1, "new"));
    everyone_has(&[&a, &b], "new").await;
    assert_eq!(db.loads(), 1);
    backend.check(&[&a, &b]).await;
}

async fn a_refresh_after_a_write_joins_no_load_from_before(backend: Backend) {
    let db = Db::default();
    let (a, b) = fixture(&backend, &db).await;
    // One load here and one in the other process, both of the old row.
    for before in [&a, &b] {
        db.write(1, "old");
        let gate = db.gate();
        let refresher = before.refresher(1).await;
        gate.reached().await;
        db.write(1, "new");
        let write = async { Ok::<_, io::Error>(()) };
        a.refresh_after(1, write).await.expect("a write");
        assert!(has_fresh(&a, 1, "new"));
        let refused = before.stats().fills_refused;
        gate.open();
        assert_eq!(value(answer(refresher).await), "old", "it asked before");
        before.check().await;
        assert_eq!(before.stats().fills_refused, refused + 1);
        everyone_has(&[&a, &b], "new").await;
    }
    assert_eq!(db.loads(), 4);
    backend.check(&[&a, &b]).await;
}

async fn a_refresh_after_a_write_that_fails_is_no_error_and_the_key_stays_expired(
    backend: Backend,
) {
    let db = Db::default();
    let (a, b) = fixture(&backend, &db).await;
    db.behave(Behaviour::fails());
    let gate = Gate::default();
    gate.open();
    let written = a.refresh_after(1, commits(&db, &gate, ())).await;
    written.expect("the write was carried out");
    assert!(a.peek(&1).is_none());
    for node in [&a, &b] {
        eventually("the change has arrived", async || node.peek(&1).is_none()).await;
        assert_eq!(
            with_freshness(node.get_entry(1).await),
            old(Freshness::StaleOnError)
        );
    }
    assert_eq!(db.loads(), 1);
    db.behave(Behaviour::default());
    a.expire(&1).await.expect("an expiry");
    everyone_has(&[&a, &b], "new").await;
    backend.check(&[&a, &b]).await;
}

async fn a_closed_cache_begins_no_write(backend: Backend) {
    let db = Db::default();
    let (a, b) = fixture(&backend, &db).await;
    a.close().await;
    let gate = Gate::default();
    gate.open();
    let refused = a.write(1, commits(&db, &gate, "new".to_owned())).await;
    assert!(matches!(&refused, Err(WriteError::Remote(error)) if error.is_closed()));
    let refused = a.invalidate_after(1, commits(&db, &gate, ())).await;
    assert!(matches!(&refused, Err(WriteError::Remote(error)) if error.is_closed()));
    b.refresh(&1).await.expect("a load");
    assert_eq!(
        with_freshness(b.get_entry(1).await),
        fresh("old"),
        "nothing was done"
    );
    backend.check(&[&a, &b]).await;
}

async fn close_waits_for_a_write_and_the_change_after_it(backend: Backend) {
    let db = Db::default();
    let (a, b) = fixture(&backend, &db).await;
    let gate = Gate::default();
    let write = commits(&db, &gate, Loaded::found("new".to_owned()));
    let writer = {
        let a = a.clone();
        begin(async move { a.write(1, write).await }).await
    };
    gate.reached().await;
    let closing = {
        let a = a.clone();
        begin(async move { a.close().await }).await
    };
    assert!(!closing.is_finished());
    gate.open();
    answer(closing).await;
    answer(writer).await.expect("a write");
    everyone_has(&[&b], "new").await;
    assert_eq!(db.loads(), 0);
    backend.check(&[&a, &b]).await;
}
