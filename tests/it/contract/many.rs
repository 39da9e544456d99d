//! `get_many`: each key has its own outcome, and the keys share round trips and loads.

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use futures_util::{StreamExt, stream};
use tidegate::{
    BatchLoader, Batching, BoxError, CacheBuilder, Error, Freshness, Loaded, Loader, Source,
};

use crate::support::aging::{LONG, make_stale, with_stale_while_revalidate};
use crate::support::backend::{Backend, on_both_tiers};
use crate::support::eventually;
use crate::support::loader::{Behaviour, Db};
use crate::support::node::{GetResult, Node, answer, value, values};

on_both_tiers! {
    a_mix_of_all_kinds_of_keys_comes_back_in_order_from_one_load
    keys_that_l2_has_are_one_command
    cold_keys_are_one_read_and_then_a_lease_and_a_fill_for_each
    a_key_that_is_being_loaded_is_joined_not_loaded_again
    single_look_ups_join_a_batch
    overlapping_batches_of_two_processes_load_each_key_once
    a_key_that_is_changed_while_its_batch_is_loaded_is_not_stored_and_the_others_are
    a_batch_that_fails_fails_its_own_keys_and_leaves_no_lease
    a_batch_that_panics_is_an_error_of_its_keys
    a_batch_that_hangs_is_cut_off_and_its_keys_are_free_again
    all_callers_of_a_batch_may_go_away
    a_large_batch_is_loaded_in_chunks_with_bounded_concurrency
    a_batch_is_one_load_among_the_concurrent_ones
    a_batch_that_gets_no_permit_is_overloaded
    without_a_batch_loader_each_key_is_loaded_by_itself_64_at_once
    what_is_not_in_the_answer_is_cached_as_absent_and_an_error_is_not
    tags_and_do_not_store_hold_for_each_value_of_a_batch
    a_batch_loader_that_asks_for_one_of_its_keys_gets_a_load_cycle_error
    stale_values_of_a_batch_are_answered_and_refreshed_together
    an_unchanged_value_of_a_batch_is_kept
    many_inserts_and_invalidations_reach_every_process
    a_stream_of_keys_is_answered_in_order
    no_keys_are_no_work_and_a_closed_cache_says_so_for_each
}

fn batched(builder: CacheBuilder<Db>) -> CacheBuilder<Db> {
    builder.batched(Batching::new())
}

fn rows(keys: impl IntoIterator<Item = u64>) -> Vec<String> {
    keys.into_iter().map(|key| format!("row {key}")).collect()
}

fn sorted(mut keys: Vec<u64>) -> Vec<u64> {
    keys.sort_unstable();
    keys
}

/// Whether every key has an error of this kind.
fn errors(got: &[GetResult], what: impl Fn(&Error<BoxError>) -> bool) -> bool {
    got.iter().all(|got| got.as_ref().is_err_and(&what))
}

async fn a_mix_of_all_kinds_of_keys_comes_back_in_order_from_one_load(backend: Backend) {
    let db = Db::default();
    let settings = |builder: CacheBuilder<Db>| batched(builder).error_backoff(LONG);
    let (a, b) = (
        backend.node_with(&db, settings).await,
        backend.node(&db).await,
    );
    let [in_l1, in_l2, in_flight, absent, absent_in_l1, failing] = [1, 2, 3, 4, 5, 6];
    db.delete(absent);
    db.delete(absent_in_l1);
    a.get(in_l1).await.expect("a load");
    a.get(absent_in_l1).await.expect("a load");
    b.get(in_l2).await.expect("a load");
    db.behave(Behaviour::fails());
    a.get(failing).await.expect_err("the source is down");
    db.behave(Behaviour::default());
    let gate = db.gate();
    let loading = a.caller(in_flight).await;
    gate.reached().await;
    db.reset_counts();
    let before = a.stats();

    let keys = [
        7,
        in_l1,
        in_flight,
        absent,
        failing,
        in_l2,
        7,
        8,
        absent_in_l1,
        in_l1,
    ];
    let asked = a.many_caller(&keys).await;
    eventually("the rest is loaded", async || !db.batches().is_empty()).await;
    gate.open();
    let got = answer(asked).await;

    assert!(matches!(&got[4], Err(Error::Load(_))), "{:?}", got[4]);
    let others = got.into_iter().enumerate().filter(|(at, _)| *at != 4);
    assert_eq!(
        values(others.map(|(_, got)| got).collect()),
        [
            "row 7", "row 1", "row 3", "-", "row 2", "row 7", "row 8", "-", "row 1"
        ]
    );
    assert_eq!(db.batches().len(), 1);
    assert_eq!(sorted(db.batches()[0].clone()), [absent, 7, 8]);
    assert_eq!(value(answer(loading).await), "row 3");
    let stats = a.stats().since(&before);
    assert_eq!((stats.l1_hits, stats.l2_hits), (3, 1), "{stats:?}");
    assert_eq!((stats.misses, stats.coalesced), (7, 2), "{stats:?}");
    assert_eq!((stats.loads, stats.batch_loads), (3, 1), "{stats:?}");
    backend.check(&[&a, &b]).await;
}

async fn keys_that_l2_has_are_one_command(backend: Backend) {
    let db = Db::default();
    let (a, b) = (backend.node(&db).await, backend.node(&db).await);
    let keys: Vec<u64> = (0..1_000).collect();
    a.get_many(&keys).await;
    b.get(2_000).await.expect("a load");
    db.reset_counts();
    let mut counter = backend.command_counter();
    assert_eq!(values(b.get_many(&keys).await), rows(keys.clone()));
    assert_eq!((counter.commands(), db.loads()), (1, 0));
    assert_eq!(b.stats().l2_hits, 1_000);
    assert_eq!(values(b.get_many(&keys).await), rows(keys));
    assert_eq!((counter.commands(), b.stats().l1_hits), (0, 1_000));
    backend.check(&[&a, &b]).await;
}

async fn cold_keys_are_one_read_and_then_a_lease_and_a_fill_for_each(backend: Backend) {
    let db = Db::default();
    let a = backend.node_with(&db, batched).await;
    a.get(2_000).await.expect("a load");
    db.reset_counts();
    let keys: Vec<u64> = (0..100).collect();
    let mut counter = backend.command_counter();
    assert_eq!(values(a.get_many(&keys).await), rows(keys.clone()));
    assert_eq!((counter.commands(), db.batches()), (201, vec![keys]));
    backend.check(&[&a]).await;
}

async fn a_key_that_is_being_loaded_is_joined_not_loaded_again(backend: Backend) {
    let db = Db::default();
    let a = backend.node_with(&db, batched).await;
    let gate = db.gate();
    let first = a.many_caller(&[1, 2, 3]).await;
    gate.reached().await;
    let second = a.many_caller(&[2, 3, 4]).await;
    eventually("the other key is loaded", async || db.batches().len() == 2).await;
    gate.open();
    assert_eq!(values(answer(first).await), rows(1..4));
    assert_eq!(values(answer(second).await), rows(2..5));
    assert_eq!(db.batches(), [vec![1, 2, 3], vec![4]]);
    assert_eq!(a.stats().coalesced, 2);
    backend.check(&[&a]).await;
}

async fn single_look_ups_join_a_batch(backend: Backend) {
    let db = Db::default();
    let a = backend.node_with(&db, batched).await;
    let gate = db.gate();
    let many = a.many_caller(&[1, 2]).await;
    gate.reached().await;
    let single = a.caller(2).await;
    gate.open();
    assert_eq!(value(answer(single).await), "row 2");
    assert_eq!(values(answer(many).await), rows(1..3));
    assert_eq!(db.loads(), 2);
    backend.check(&[&a]).await;
}

async fn overlapping_batches_of_two_processes_load_each_key_once(backend: Backend) {
    let db = Db::default();
    let (a, b) = (
        backend.node_with(&db, batched).await,
        backend.node_with(&db, batched).await,
    );
    let (gate, other_gate) = (db.gate(), db.gate());
    let first = a.many_caller(&[1, 2, 3]).await;
    gate.reached().await;
    let second = b.many_caller(&[2, 3, 4]).await;
    other_gate.reached().await;
    assert_eq!(db.batches(), [vec![1, 2, 3], vec![4]]);
    // The other process delays keys 2 and 3, and no other key.
    other_gate.open();
    let four = b.caller(4).await;
    assert_eq!(value(answer(four).await), "row 4");
    gate.open();
    assert_eq!(values(answer(first).await), rows(1..4));
    assert_eq!(values(answer(second).await), rows(2..5));
    assert_eq!(db.loads(), 4);
    backend.check(&[&a, &b]).await;
}

async fn a_key_that_is_changed_while_its_batch_is_loaded_is_not_stored_and_the_others_are(
    backend: Backend,
) {
    let db = Db::default();
    let (a, b) = (
        backend.node_with(&db, batched).await,
        backend.node(&db).await,
    );
    let gate = db.gate();
    let asked = a.many_caller(&[1, 2, 3, 4]).await;
    gate.reached().await;
    for key in [1, 2, 3] {
        db.write(key, "new");
    }
    a.invalidate(&1).await.expect("an invalidation");
    b.invalidate(&2).await.expect("an invalidation");
    b.insert(3, "new".to_owned()).await.expect("an insert");
    gate.open();
    assert_eq!(values(answer(asked).await), rows(1..5), "as it was read");
    assert_eq!(a.stats().fills_refused, 3);
    for node in [&a, &b] {
        assert_eq!(
            values(node.get_many(&[1, 2, 3, 4]).await),
            ["new", "new", "new", "row 4"]
        );
    }
    backend.check(&[&a, &b]).await;
}

async fn a_batch_that_fails_fails_its_own_keys_and_leaves_no_lease(backend: Backend) {
    let db = Db::default();
    let settings = |builder: CacheBuilder<Db>| batched(builder).error_backoff(LONG);
    let (a, b) = (
        backend.node_with(&db, settings).await,
        backend.node_with(&db, settings).await,
    );
    a.get(4).await.expect("a load");
    db.reset_counts();
    let gate = db.gate();
    db.behave(Behaviour::fails());
    let asked = a.many_caller(&[1, 2, 4]).await;
    gate.reached().await;
    db.behave(Behaviour::default());
    assert_eq!(
        values(a.get_many(&[5, 6]).await),
        rows(5..7),
        "another batch"
    );
    gate.open();
    let got = answer(asked).await;
    assert!(errors(&got[..2], |error| matches!(error, Error::Load(_))));
    assert_eq!(
        got[2].as_ref().ok().and_then(|row| row.as_deref()),
        Some(&"row 4".to_owned())
    );
    // Both keys are held off in both processes.
    assert!(errors(&a.get_many(&[1, 2]).await, |error| matches!(
        error,
        Error::Load(_)
    )));
    assert!(errors(&b.get_many(&[1, 2]).await, |error| matches!(
        error,
        Error::LoadFailedElsewhere
    )));
    assert_eq!(db.batches().len(), 2);
    backend.check(&[&a, &b]).await;
}

async fn a_batch_that_panics_is_an_error_of_its_keys(backend: Backend) {
    let db = Db::default();
    let settings = |builder: CacheBuilder<Db>| batched(builder).error_backoff(Duration::ZERO);
    let a = backend.node_with(&db, settings).await;
    db.behave(Behaviour {
        panics: true,
        ..Behaviour::default()
    });
    let got = a.get_many(&[1, 2]).await;
    assert!(
        errors(&got, |error| matches!(error, Error::LoadPanicked)),
        "{got:?}"
    );
    db.behave(Behaviour::default());
    assert_eq!(values(a.get_many(&[1, 2]).await), rows(1..3));
    backend.check(&[&a]).await;
}

async fn a_batch_that_hangs_is_cut_off_and_its_keys_are_free_again(backend: Backend) {
    let db = Db::default();
    let a = backend
        .node_with(&db, |builder| {
            batched(builder)
                .load_timeout(Duration::from_millis(200))
                .max_concurrent_loads(1)
                .error_backoff(Duration::ZERO)
        })
        .await;
    db.behave(Behaviour {
        hangs: true,
        ..Behaviour::default()
    });
    let got = a.get_many(&[1, 2]).await;
    assert!(
        errors(&got, |error| matches!(error, Error::LoadTimedOut(_))),
        "{got:?}"
    );
    db.behave(Behaviour::default());
    assert_eq!(
        values(a.get_many(&[1, 2]).await),
        rows(1..3),
        "the place is free"
    );
    backend.check(&[&a]).await;
}

async fn all_callers_of_a_batch_may_go_away(backend: Backend) {
    let db = Db::default();
    let a = backend.node_with(&db, batched).await;
    let gate = db.gate();
    let asked = a.many_caller(&[1, 2]).await;
    gate.reached().await;
    asked.abort();
    asked.await.expect_err("it was dropped");
    gate.open();
    eventually("both are stored", async || {
        a.peek(&1).is_some() && a.peek(&2).is_some()
    })
    .await;
    assert_eq!(db.batches(), [vec![1, 2]]);
    backend.check(&[&a]).await;
}

async fn a_large_batch_is_loaded_in_chunks_with_bounded_concurrency(backend: Backend) {
    let db = Db::default();
    let a = backend
        .node_with(&db, |builder| {
            builder.batched(Batching::new().max_size(10).concurrency(2))
        })
        .await;
    let gates = [db.gate(), db.gate(), db.gate(), db.gate()];
    let keys: Vec<u64> = (0..35).collect();
    let asked = a.many_caller(&keys).await;
    gates[0].reached().await;
    gates[1].reached().await;
    assert_eq!(db.batches().len(), 2, "the third waits for its turn");
    gates[0].open();
    gates[2].reached().await;
    for gate in &gates[1..] {
        gate.open();
    }
    assert_eq!(values(answer(asked).await), rows(keys.clone()));
    let batches = db.batches();
    assert_eq!(batches.len(), 4);
    assert!(batches.iter().all(|batch| batch.len() <= 10));
    let loaded: HashSet<u64> = batches.into_iter().flatten().collect();
    assert_eq!((loaded.len(), db.loads()), (35, 35));
    backend.check(&[&a]).await;
}

async fn a_batch_is_one_load_among_the_concurrent_ones(backend: Backend) {
    let db = Db::default();
    let a = backend
        .node_with(&db, |builder| batched(builder).max_concurrent_loads(1))
        .await;
    let gate = db.gate();
    let first = a.many_caller(&[1, 2, 3]).await;
    gate.reached().await;
    let second = a.many_caller(&[4, 5]).await;
    let third = a.caller(6).await;
    assert_eq!(db.batches().len(), 1);
    gate.open();
    assert_eq!(values(answer(first).await), rows(1..4));
    assert_eq!(values(answer(second).await), rows(4..6));
    assert_eq!(value(answer(third).await), "row 6");
    backend.check(&[&a]).await;
}

async fn a_batch_that_gets_no_permit_is_overloaded(backend: Backend) {
    let db = Db::default();
    let a = backend
        .node_with(&db, |builder| {
            batched(builder)
                .max_concurrent_loads(1)
                .load_timeout(Duration::from_millis(300))
        })
        .await;
    db.behave(Behaviour {
        hangs: true,
        ..Behaviour::default()
    });
    let gate = db.gate();
    let first = a.many_caller(&[1, 2]).await;
    gate.reached().await;
    // The first batch has the only permit for as long as a load may take. The second batch waits no
    // longer than that.
    let second = a.many_caller(&[3, 4]).await;
    let got = answer(second).await;
    assert_eq!(got.len(), 2);
    let fails =
        |error: &Error<BoxError>| matches!(error, Error::Overloaded | Error::LoadTimedOut(_));
    assert!(errors(&got, fails), "{got:?}");
    gate.open();
    answer(first).await;
    backend.check(&[&a]).await;
}

async fn without_a_batch_loader_each_key_is_loaded_by_itself_64_at_once(backend: Backend) {
    let db = Db::default();
    let a = backend.node(&db).await;
    let gates: Vec<_> = (0..64).map(|_| db.gate()).collect();
    let keys: Vec<u64> = (0..100).collect();
    let asked = a.many_caller(&keys).await;
    for gate in &gates {
        gate.reached().await;
    }
    assert_eq!((db.loads(), db.batches().len()), (64, 0));
    for gate in &gates {
        gate.open();
    }
    assert_eq!(values(answer(asked).await), rows(keys));
    assert_eq!(db.loads(), 100);
    backend.check(&[&a]).await;
}

async fn what_is_not_in_the_answer_is_cached_as_absent_and_an_error_is_not(backend: Backend) {
    let db = Db::default();
    let settings = |builder: CacheBuilder<Db>| batched(builder).error_backoff(Duration::ZERO);
    let (a, b) = (
        backend.node_with(&db, settings).await,
        backend.node(&db).await,
    );
    db.delete(2);
    db.behave(Behaviour::fails());
    let got = a.get_many(&[1, 2]).await;
    assert!(errors(&got, |error| matches!(error, Error::Load(_))));
    assert_eq!(backend.records(), 0, "nothing was found out");
    db.behave(Behaviour::default());
    assert_eq!(values(a.get_many(&[1, 2]).await), ["row 1", "-"]);
    db.reset_counts();
    for node in [&a, &b] {
        assert_eq!(values(node.get_many(&[2, 1]).await), ["-", "row 1"]);
    }
    assert_eq!(db.loads(), 0);
    assert_eq!(a.stats().negative_hits, 1);
    backend.check(&[&a, &b]).await;
}

async fn tags_and_do_not_store_hold_for_each_value_of_a_batch(backend: Backend) {
    let db = Db::default();
    let a = backend.node_with(&db, batched).await;
    db.tag(1, &["red"]);
    a.get_many(&[1, 2]).await;
    a.invalidate_tag("red").await.expect("an invalidation");
    db.reset_counts();
    a.get_many(&[1, 2]).await;
    assert_eq!(db.batches(), [[1]]);
    db.behave(Behaviour {
        do_not_store: true,
        ..Behaviour::default()
    });
    assert_eq!(values(a.get_many(&[3, 4]).await), rows(3..5));
    db.reset_counts();
    assert_eq!(values(a.get_many(&[3, 4]).await), rows(3..5));
    assert_eq!(db.loads(), 2, "stored nowhere");
    let entries = a.get_many_entries(&[3, 2]).await;
    let sources: Vec<_> = entries
        .into_iter()
        .map(|entry| entry.ok().flatten().map(|entry| entry.source()))
        .collect();
    assert_eq!(sources, [Some(Source::Loader), Some(Source::L1)]);
}

/// A loader that looks up keys in its own cache while it loads a batch.
#[derive(Clone, Default)]
struct Nested(Arc<OnceLock<Node>>);

impl Loader for Nested {
    type Key = u64;
    type Value = String;
    type Error = BoxError;

    async fn load(&self, key: &u64) -> Result<Loaded<String>, BoxError> {
        Ok(Loaded::found(format!("row {key}")))
    }
}

impl BatchLoader for Nested {
    async fn load_many(&self, keys: &[u64]) -> Result<HashMap<u64, Loaded<String>>, BoxError> {
        let node = self.0.get().expect("the cache is built");
        let cycle = node.get(keys[0]).await;
        assert!(matches!(cycle, Err(Error::LoadCycle)), "{cycle:?}");
        let several = node.get_many(&[100, keys[1]]).await;
        assert!(matches!(several[1], Err(Error::LoadCycle)), "{several:?}");
        let other = value(several.into_iter().next().expect("two"));
        let rows = keys
            .iter()
            .map(|key| (*key, format!("{key} beside {other}").into()));
        Ok(rows.collect())
    }
}

async fn a_batch_loader_that_asks_for_one_of_its_keys_gets_a_load_cycle_error(backend: Backend) {
    let nested = Nested::default();
    // The loader looks up another key of the same cache, and that look-up must not wait for a
    // batch.
    let alone = Batching::new().window(Duration::ZERO);
    let node = backend
        .named("users", nested.clone(), |builder| builder.batched(alone))
        .await;
    nested.0.set(node.clone()).ok().expect("only once");
    node.get(100).await.expect("a load");
    let got = values(node.get_many(&[1, 2]).await);
    assert_eq!(got, ["1 beside row 100", "2 beside row 100"]);
    backend.check(&[&node]).await;
}

async fn stale_values_of_a_batch_are_answered_and_refreshed_together(backend: Backend) {
    let db = Db::default();
    let settings = |builder: CacheBuilder<Db>| batched(with_stale_while_revalidate(builder));
    let a = backend.node_with(&db, settings).await;
    for key in [1, 2, 3] {
        make_stale(&db, &[&a], key).await;
        db.write(key, "new");
    }
    let gate = db.gate();
    let entries = a.get_many_entries(&[1, 2, 3]).await;
    for entry in entries {
        let entry = entry.expect("a look-up").expect("an entry");
        assert_eq!(
            (entry.value().as_str(), entry.freshness()),
            ("old", Freshness::Stale)
        );
    }
    gate.reached().await;
    gate.open();
    eventually("all are new", async || {
        [1, 2, 3].iter().all(|key| {
            a.peek(key)
                .is_some_and(|entry| entry.value().as_str() == "new")
        })
    })
    .await;
    assert_eq!(
        (db.batches().len(), db.loads()),
        (1, 3),
        "{:?}",
        db.batches()
    );
}

async fn an_unchanged_value_of_a_batch_is_kept(backend: Backend) {
    let db = Db::default();
    let settings = |builder: CacheBuilder<Db>| {
        builder
            .batched(Batching::new())
            .refresh_ahead(0.0)
            .stale_if_error(LONG)
    };
    let a = backend.node_with(&db, settings).await;
    a.get_many(&[1, 2]).await;
    for key in [1, 2] {
        a.expire(&key).await.expect("an expiry");
    }
    db.reset_counts();
    db.behave(Behaviour {
        unchanged: true,
        ..Behaviour::default()
    });
    assert_eq!(values(a.get_many(&[1, 2]).await), rows(1..3));
    assert_eq!((db.batches(), a.stats().unchanged), (vec![vec![1, 2]], 2));
    let got = a.get_many(&[3]).await;
    let unknown = |error: &Error<BoxError>| matches!(error, Error::UnchangedWithoutPrevious);
    assert!(errors(&got, unknown), "{got:?}");
    backend.check(&[&a]).await;
}

async fn many_inserts_and_invalidations_reach_every_process(backend: Backend) {
    let db = Db::default();
    let (a, b) = (backend.node(&db).await, backend.node(&db).await);
    let keys: Vec<u64> = (0..600).collect();
    b.get_many(&keys).await;
    let entries = keys.iter().map(|key| (*key, format!("written {key}")));
    a.insert_many(entries).await.expect("inserts");
    assert_eq!(a.stats().inserts, 600);
    let written: Vec<String> = keys.iter().map(|key| format!("written {key}")).collect();
    assert_eq!(values(a.get_many(&keys).await), written);
    eventually("the change has arrived", async || b.peek(&599).is_none()).await;
    assert_eq!(values(b.get_many(&keys).await), written);
    b.invalidate_many(&keys).await.expect("invalidations");
    assert_eq!(values(b.get_many(&keys).await), rows(keys.clone()));
    backend.check(&[&a, &b]).await;
}

async fn a_stream_of_keys_is_answered_in_order(backend: Backend) {
    let db = Db::default();
    let a = backend.node_with(&db, batched).await;
    db.delete(7);
    let found: Vec<_> = a.get_stream(stream::iter(0..2_500)).collect().await;
    assert_eq!(found.len(), 2_500);
    for (at, (key, found)) in found.into_iter().enumerate() {
        let found = found.expect("a look-up").map(|row| row.as_str().to_owned());
        assert_eq!(key, at as u64);
        assert_eq!(found, (key != 7).then(|| format!("row {key}")));
    }
    let sizes: Vec<usize> = db.batches().iter().map(Vec::len).collect();
    assert_eq!(sizes, [1_000, 1_000, 500]);
    // Keys that arrive one at a time are answered one at a time.
    let (sender, receiver) = tokio::sync::mpsc::unbounded_channel();
    let receiver = stream::unfold(receiver, |mut receiver| async {
        receiver.recv().await.map(|key| (key, receiver))
    });
    let mut found = a.get_stream(receiver);
    for key in [3_001, 3_000] {
        sender.send(key).expect("the receiver lives");
        let (answered, row) = found.next().await.expect("an answer");
        assert_eq!((answered, value(row)), (key, format!("row {key}")));
    }
    drop(sender);
    assert!(found.next().await.is_none());
    assert!(found.next().await.is_none(), "and stays so");
}

async fn no_keys_are_no_work_and_a_closed_cache_says_so_for_each(backend: Backend) {
    let db = Db::default();
    let a = backend.node(&db).await;
    // The first load opens the connection, which costs commands of its own.
    a.get(1).await.expect("a load");
    let mut counter = backend.command_counter();
    assert!(a.get_many(&[]).await.is_empty());
    a.insert_many([] as [(u64, String); 0])
        .await
        .expect("nothing");
    assert_eq!(counter.commands(), 0);
    a.close().await;
    let got = a.get_many(&[1, 2]).await;
    assert!(got.len() == 2 && errors(&got, |error| matches!(error, Error::Closed)));
    assert!(a.warm([1]).await.done == 0);
}
