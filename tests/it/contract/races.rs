//! Refreshes that run while their key changes, in the same process or in another. The older value
//! is stored nowhere, and the refresh releases no lease or claim of a later load.

use tidegate::{Error, Loaded};

use crate::support::aging::{
    TTL, fresh, has_fresh, make_stale, with_freshness, with_stale_if_error,
    with_stale_while_revalidate,
};
use crate::support::backend::{Backend, on_both_tiers};
use crate::support::eventually;
use crate::support::loader::{Db, Gate};
use crate::support::node::{Node, answer, value};

on_both_tiers! {
    an_invalidation_during_a_refresh_here_refuses_it
    an_invalidation_during_a_refresh_elsewhere_refuses_it
    an_expiry_during_a_refresh_here_refuses_it
    an_expiry_during_a_refresh_elsewhere_refuses_it
    an_insert_during_a_refresh_here_stays
    an_insert_during_a_refresh_elsewhere_stays
    the_same_value_inserted_during_a_refresh_discards_it
    an_invalidation_of_a_tag_during_a_refresh_outlives_it
    an_invalidation_of_everything_during_a_refresh_outlives_it
    a_refresh_that_was_refused_takes_no_claim_from_its_successor
    a_refresh_that_was_overtaken_is_refused
    a_load_after_an_invalidation_is_not_disturbed_by_an_older_refresh
    a_refresh_after_an_insert_does_not_wait_for_an_older_one
    refreshes_by_hand_in_two_processes_are_one_load
}

/// Two processes hold "old", which is past its TTL. One of them refreshes it: the load has read
/// "older" and waits at the gate. The source holds "new" by now.
struct Fixture {
    backend: Backend,
    db: Db,
    a: Node,
    b: Node,
    gate: Gate,
}

impl Fixture {
    async fn new(backend: Backend) -> Self {
        let db = Db::default();
        let settings = |builder| with_stale_if_error(with_stale_while_revalidate(builder));
        let a = backend.node_with(&db, settings).await;
        let b = backend.node_with(&db, settings).await;
        make_stale(&db, &[&a, &b], 1).await;
        db.write(1, "older");
        let gate = db.gate();
        assert_eq!(value(a.get(1).await), "old");
        gate.reached().await;
        db.write(1, "new");
        Self {
            backend,
            db,
            a,
            b,
            gate,
        }
    }

    fn by(&self, here: bool) -> &Node {
        if here { &self.a } else { &self.b }
    }

    /// The refresh ends, its fill is refused, and no L1 holds its value.
    async fn is_refused(&self) {
        let before = self.a.stats();
        self.gate.open();
        self.a.check().await;
        let since = self.a.stats().since(&before);
        assert_eq!((since.fills, since.fills_refused), (0, 1));
        for node in [&self.a, &self.b] {
            let entry = node.peek(&1);
            assert!(entry.is_none_or(|entry| entry.value().as_str() != "older"));
        }
    }

    /// In the end all processes answer `right`, after `loads` loads.
    async fn ends_with(self, right: &str, loads: u64) {
        for node in [&self.a, &self.b] {
            eventually("the change has arrived", async || has_no_old(node)).await;
            assert_eq!(with_freshness(node.get_entry(1).await), fresh(right));
        }
        let cold = self
            .backend
            .node_with(&self.db, with_stale_while_revalidate)
            .await;
        assert_eq!(value(cold.get(1).await), right);
        assert_eq!(self.db.loads(), loads);
        self.backend.check(&[&self.a, &self.b, &cold]).await;
    }
}

fn has_no_old(node: &Node) -> bool {
    node.peek(&1)
        .is_none_or(|entry| entry.value().as_str() != "old")
}

async fn invalidated(backend: Backend, here: bool) {
    let fixture = Fixture::new(backend).await;
    let by = fixture.by(here);
    by.invalidate(&1).await.expect("an invalidation");
    fixture.is_refused().await;
    fixture.ends_with("new", 2).await;
}

async fn an_invalidation_during_a_refresh_here_refuses_it(backend: Backend) {
    invalidated(backend, true).await;
}

async fn an_invalidation_during_a_refresh_elsewhere_refuses_it(backend: Backend) {
    invalidated(backend, false).await;
}

async fn expired(backend: Backend, here: bool) {
    let fixture = Fixture::new(backend).await;
    fixture.by(here).expire(&1).await.expect("an expiry");
    fixture.is_refused().await;
    fixture.ends_with("new", 2).await;
}

async fn an_expiry_during_a_refresh_here_refuses_it(backend: Backend) {
    expired(backend, true).await;
}

async fn an_expiry_during_a_refresh_elsewhere_refuses_it(backend: Backend) {
    expired(backend, false).await;
}

async fn inserted(backend: Backend, here: bool) {
    let fixture = Fixture::new(backend).await;
    let insert = fixture.by(here).insert(1, "by hand".to_owned());
    insert.await.expect("an insert");
    fixture.is_refused().await;
    fixture.ends_with("by hand", 1).await;
}

async fn an_insert_during_a_refresh_here_stays(backend: Backend) {
    inserted(backend, true).await;
}

async fn an_insert_during_a_refresh_elsewhere_stays(backend: Backend) {
    inserted(backend, false).await;
}

/// The inserted bytes are the same as those that the refresh began with, but the record is another
/// one.
async fn the_same_value_inserted_during_a_refresh_discards_it(backend: Backend) {
    let fixture = Fixture::new(backend).await;
    let same = Loaded::found("old".to_owned()).ttl(TTL * 100);
    fixture.b.insert(1, same).await.expect("an insert");
    fixture.is_refused().await;
    eventually("the change has arrived", async || {
        with_freshness(fixture.a.get_entry(1).await) == fresh("old")
    })
    .await;
    assert_eq!(with_freshness(fixture.b.get_entry(1).await), fresh("old"));
    assert_eq!(fixture.db.loads(), 1);
    fixture.backend.check(&[&fixture.a, &fixture.b]).await;
}

/// The watermark makes the record invalid, and also the record that the refresh would put in its
/// place.
async fn invalidated_as_a_whole(backend: Backend, tag: Option<&str>) {
    let db = Db::default();
    db.tag(1, &["t"]);
    let a = backend.node_with(&db, with_stale_while_revalidate).await;
    let b = backend.node_with(&db, with_stale_while_revalidate).await;
    make_stale(&db, &[&a, &b], 1).await;
    db.write(1, "older");
    let gate = db.gate();
    assert_eq!(value(a.get(1).await), "old");
    gate.reached().await;
    db.write(1, "new");
    match tag {
        Some(tag) => b.invalidate_tag(tag).await,
        None => b.invalidate_all().await,
    }
    .expect("an invalidation");
    let caller = b.caller(1).await;
    gate.open();
    a.check().await;
    assert_eq!(value(answer(caller).await), "new");
    for node in [&a, &b] {
        eventually("the change has arrived", async || {
            with_freshness(node.get_entry(1).await) == fresh("new")
        })
        .await;
    }
    let cold = backend.node_with(&db, with_stale_while_revalidate).await;
    assert_eq!(value(cold.get(1).await), "new");
    assert_eq!(db.loads(), 2);
    backend.check(&[&a, &b, &cold]).await;
}

async fn an_invalidation_of_a_tag_during_a_refresh_outlives_it(backend: Backend) {
    invalidated_as_a_whole(backend, Some("t")).await;
}

async fn an_invalidation_of_everything_during_a_refresh_outlives_it(backend: Backend) {
    invalidated_as_a_whole(backend, None).await;
}

async fn a_refresh_that_was_refused_takes_no_claim_from_its_successor(backend: Backend) {
    let fixture = Fixture::new(backend).await;
    fixture.b.expire(&1).await.expect("an expiry");
    let second = fixture.db.gate();
    let successor = fixture.b.refresher(1).await;
    second.reached().await;
    fixture.is_refused().await;
    // A third process still has to wait for the second refresh.
    let cold = fixture
        .backend
        .node_with(&fixture.db, with_stale_while_revalidate)
        .await;
    let waits = cold.refresher(1).await;
    eventually("it waits", async || cold.stats().lease_waits == 1).await;
    second.open();
    assert_eq!(value(answer(successor).await), "new");
    assert_eq!(value(answer(waits).await), "new");
    assert_eq!((fixture.b.stats().fills, cold.stats().loads), (1, 0));
    fixture.backend.check(&[&cold]).await;
    fixture.ends_with("new", 2).await;
}

async fn a_refresh_that_was_overtaken_is_refused(backend: Backend) {
    let fixture = Fixture::new(backend).await;
    fixture.b.expire(&1).await.expect("an expiry");
    assert_eq!(value(fixture.b.refresh(&1).await), "new");
    fixture.is_refused().await;
    fixture.ends_with("new", 2).await;
}

async fn a_load_after_an_invalidation_is_not_disturbed_by_an_older_refresh(backend: Backend) {
    let fixture = Fixture::new(backend).await;
    fixture.a.invalidate(&1).await.expect("an invalidation");
    let second = fixture.db.gate();
    // The look-up comes from the process whose refresh is still under way.
    let caller = fixture.a.caller(1).await;
    second.reached().await;
    let before = fixture.a.stats();
    fixture.gate.open();
    eventually("the refresh has ended", async || {
        fixture.a.stats().fills_refused > before.fills_refused
    })
    .await;
    let waits = fixture.b.caller(1).await;
    eventually("the other process waits", async || {
        fixture.b.stats().lease_waits > 0
    })
    .await;
    second.open();
    assert_eq!(value(answer(caller).await), "new");
    assert_eq!(value(answer(waits).await), "new");
    assert_eq!(fixture.a.stats().since(&before).fills, 1);
    fixture.ends_with("new", 2).await;
}

async fn a_refresh_after_an_insert_does_not_wait_for_an_older_one(backend: Backend) {
    let fixture = Fixture::new(backend).await;
    let insert = fixture.b.insert(1, "by hand".to_owned());
    insert.await.expect("an insert");
    assert_eq!(value(fixture.b.refresh(&1).await), "new");
    assert_eq!(fixture.b.stats().lease_waits, 0);
    fixture.is_refused().await;
    fixture.ends_with("new", 2).await;
}

async fn refreshes_by_hand_in_two_processes_are_one_load(backend: Backend) {
    let fixture = Fixture::new(backend).await;
    let mut refreshers = Vec::new();
    for _ in 0..10 {
        refreshers.push(fixture.a.refresher(1).await);
        refreshers.push(fixture.b.refresher(1).await);
    }
    eventually("the other process waits", async || {
        fixture.b.stats().lease_waits == 1
    })
    .await;
    fixture.gate.open();
    for refresher in refreshers {
        let got: Result<_, Error> = answer(refresher).await;
        assert_eq!(value(got), "older", "the load was under way");
    }
    for node in [&fixture.a, &fixture.b] {
        assert!(has_fresh(node, 1, "older"));
    }
    fixture.ends_with("older", 1).await;
}
