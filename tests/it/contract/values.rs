//! Values, absences and their lifetimes in both tiers.

use std::time::Duration;

use tidegate::{Freshness, Source};
use tokio::time::{Instant, sleep, sleep_until};

use crate::support::backend::{Backend, on_both_tiers};
use crate::support::loader::{Behaviour, Db};
use crate::support::node::{Node, answer, begin, value};

on_both_tiers! {
    a_second_get_is_answered_by_l1_without_a_load_or_a_command
    a_hit_in_l2_fills_l1_for_the_rest_of_the_ttl_and_keeps_the_age
    found_and_missing_and_never_asked_are_three_things
    an_absence_is_kept_for_the_negative_ttl
    a_zero_negative_ttl_keeps_no_absence
    the_ttl_of_a_value_wins_in_both_tiers
    do_not_store_answers_all_callers_and_keeps_nothing
    peek_loads_nothing_and_asks_nothing
    an_entry_tells_source_age_and_freshness_truthfully
    caches_of_different_names_never_meet
}

async fn source(node: &Node, key: u64) -> Source {
    let entry = node
        .get_entry(key)
        .await
        .expect("a look-up")
        .expect("an entry");
    assert_eq!(entry.freshness(), Freshness::Fresh);
    entry.source()
}

async fn a_second_get_is_answered_by_l1_without_a_load_or_a_command(backend: Backend) {
    let db = Db::default();
    let a = backend.node(&db).await;
    assert_eq!(value(a.get(1).await), "row 1");
    let mut counter = backend.command_counter();
    for _ in 0..10 {
        assert_eq!(value(a.get(1).await), "row 1");
    }
    assert_eq!(
        (counter.commands(), db.loads(), a.stats().l1_hits),
        (0, 1, 10)
    );
    backend.check(&[&a]).await;
}

async fn a_hit_in_l2_fills_l1_for_the_rest_of_the_ttl_and_keeps_the_age(backend: Backend) {
    let db = Db::default();
    let (ttl, waits) = (Duration::from_millis(1500), Duration::from_millis(500));
    let a = backend.node_with(&db, |builder| builder.ttl(ttl)).await;
    let b = backend.node_with(&db, |builder| builder.ttl(ttl)).await;
    a.get(1).await.expect("a load");
    let loaded = Instant::now();
    sleep(waits).await;
    let entry = b.get_entry(1).await.expect("a look-up").expect("an entry");
    assert_eq!(entry.source(), Source::L2);
    // The clocks of two processes differ by part of a round trip.
    let rounding = Duration::from_millis(20);
    assert!(
        entry.age() + rounding >= waits,
        "the record is older than {:?}",
        entry.age()
    );
    assert_eq!(source(&b, 1).await, Source::L1);
    sleep_until(loaded + ttl + rounding).await;
    assert!(b.peek(&1).is_none(), "L1 outlives the record");
    assert_eq!(db.loads(), 1);
    backend.check(&[&a, &b]).await;
}

async fn found_and_missing_and_never_asked_are_three_things(backend: Backend) {
    let db = Db::default();
    db.delete(2);
    let (a, b) = (backend.node(&db).await, backend.node(&db).await);
    assert_eq!(value(a.get(1).await), "row 1");
    assert_eq!(a.get(2).await.expect("an answer"), None);
    assert_eq!(db.loads(), 2);
    // Both tiers hold the absence: no look-up reaches the source.
    assert_eq!(a.get(2).await.expect("an answer"), None);
    assert_eq!(b.get(2).await.expect("an answer"), None);
    assert_eq!(db.loads(), 2);
    assert_eq!(
        (
            a.stats().negative_hits,
            b.stats().negative_hits,
            b.stats().l2_hits
        ),
        (1, 1, 1)
    );
    assert_eq!(value(b.get(3).await), "row 3");
    assert_eq!(db.loads(), 3);
    backend.check(&[&a, &b]).await;
}

async fn an_absence_is_kept_for_the_negative_ttl(backend: Backend) {
    let db = Db::default();
    db.delete(1);
    let ttl = Duration::from_millis(400);
    let a = backend
        .node_with(&db, |builder| builder.negative_ttl(ttl))
        .await;
    assert_eq!(a.get(1).await.expect("an answer"), None);
    db.write(1, "here now");
    sleep(ttl + Duration::from_millis(50)).await;
    assert_eq!(value(a.get(1).await), "here now");
    backend.check(&[&a]).await;
}

async fn a_zero_negative_ttl_keeps_no_absence(backend: Backend) {
    let db = Db::default();
    db.delete(1);
    let a = backend
        .node_with(&db, |builder| builder.negative_ttl(Duration::ZERO))
        .await;
    assert_eq!(a.get(1).await.expect("an answer"), None);
    assert_eq!(a.get(1).await.expect("an answer"), None);
    assert_eq!((db.loads(), a.stats().negative_hits), (2, 0));
    backend.check(&[&a]).await;
}

async fn the_ttl_of_a_value_wins_in_both_tiers(backend: Backend) {
    let db = Db::default();
    let ttl = Duration::from_millis(300);
    db.behave(Behaviour {
        ttl: Some(ttl),
        ..Behaviour::default()
    });
    let (a, b) = (backend.node(&db).await, backend.node(&db).await);
    a.get(1).await.expect("a load");
    sleep(ttl + Duration::from_millis(50)).await;
    assert!(a.peek(&1).is_none());
    assert_eq!(
        source(&b, 1).await,
        Source::Loader,
        "L2 has kept it for longer"
    );
    backend.check(&[&a, &b]).await;
}

async fn do_not_store_answers_all_callers_and_keeps_nothing(backend: Backend) {
    let db = Db::default();
    db.behave(Behaviour {
        do_not_store: true,
        ..Behaviour::default()
    });
    let (a, b) = (backend.node(&db).await, backend.node(&db).await);
    let gate = db.gate();
    let callers = a.callers(20, 1).await;
    gate.reached().await;
    gate.open();
    for caller in callers {
        assert_eq!(value(answer(caller).await), "row 1");
    }
    assert_eq!(db.loads(), 1);
    assert!(a.peek(&1).is_none());
    // L2 holds no value and no lease, so the others load at once.
    assert_eq!(source(&b, 1).await, Source::Loader);
    assert_eq!(source(&a, 1).await, Source::Loader);
    assert_eq!(db.loads(), 3);
    backend.check(&[&a, &b]).await;
}

async fn peek_loads_nothing_and_asks_nothing(backend: Backend) {
    let db = Db::default();
    let (a, b) = (backend.node(&db).await, backend.node(&db).await);
    a.get(1).await.expect("a load");
    b.get(2).await.expect("a load");
    let mut counter = backend.command_counter();
    assert!(b.peek(&1).is_none(), "it is in L2 only");
    assert!(a.peek(&3).is_none());
    let entry = a.peek(&1).expect("it is in L1");
    assert_eq!(
        (entry.source(), entry.value().as_str()),
        (Source::L1, "row 1")
    );
    assert_eq!((counter.commands(), db.loads()), (0, 2));
    backend.check(&[&a, &b]).await;
}

async fn an_entry_tells_source_age_and_freshness_truthfully(backend: Backend) {
    let db = Db::default();
    let (a, b) = (backend.node(&db).await, backend.node(&db).await);
    let gate = db.gate();
    let (leads, joins) = (a.clone(), a.clone());
    let leads = begin(async move { leads.get_entry(1).await }).await;
    gate.reached().await;
    let joins = begin(async move { joins.get_entry(1).await }).await;
    gate.open();
    for (call, source) in [(leads, Source::Loader), (joins, Source::Coalesced)] {
        let entry = answer(call).await.expect("a look-up").expect("an entry");
        assert_eq!(
            (entry.source(), entry.freshness()),
            (source, Freshness::Fresh)
        );
    }
    sleep(Duration::from_millis(100)).await;
    let in_l1 = a.get_entry(1).await.expect("a look-up").expect("an entry");
    assert_eq!(in_l1.source(), Source::L1);
    assert!(
        in_l1.age() >= Duration::from_millis(100),
        "{:?}",
        in_l1.age()
    );
    assert_eq!(source(&b, 1).await, Source::L2);
    assert_eq!(source(&b, 1).await, Source::L1);
    a.insert(1, "by hand".to_owned()).await.expect("an insert");
    let inserted = a.get_entry(1).await.expect("a look-up").expect("an entry");
    assert_eq!(inserted.value().as_str(), "by hand");
    assert!(inserted.age() <= in_l1.age(), "an insert begins a new life");
    backend.check(&[&a, &b]).await;
}

async fn caches_of_different_names_never_meet(backend: Backend) {
    let (one, other) = (Db::default(), Db::default());
    one.write(1, "one");
    other.write(1, "other");
    let a = backend.named("users", one.clone(), |builder| builder).await;
    let b = backend.named("users:1", other, |builder| builder).await;
    assert_eq!(value(a.get(1).await), "one");
    assert_eq!(value(b.get(1).await), "other");
    b.invalidate(&1).await.expect("an invalidation");
    assert!(
        a.peek(&1).is_some(),
        "another cache's invalidation evicts nothing"
    );
    // The answer comes from L2 because this process has an empty L1.
    let c = backend.named("users", one.clone(), |builder| builder).await;
    assert_eq!((value(c.get(1).await).as_str(), one.loads()), ("one", 1));
    backend.check(&[&a, &b, &c]).await;
}
