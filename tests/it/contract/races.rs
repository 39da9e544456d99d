//! Refreshes against what changes their keys, by the same process and by another: what is older is
//! stored nowhere, and takes nothing away from whoever comes after it.

use tidegate::{Error, Loaded};

use crate::support::eventually;
use crate::support::ground::{Ground, on_both_tiers};
use crate::support::life::{TTL, aged, falls_back, fresh, has_fresh, revalidates, seen};
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

/// Two processes have "old", past its TTL. One refreshes it: its load has read "older" and stands at
/// the gate. The source says "new" by now.
struct Scene {
    ground: Ground,
    db: Db,
    a: Node,
    b: Node,
    gate: Gate,
}

impl Scene {
    async fn new(ground: Ground) -> Self {
        let db = Db::default();
        let settings = |builder| falls_back(revalidates(builder));
        let a = ground.node_with(&db, settings).await;
        let b = ground.node_with(&db, settings).await;
        aged(&db, &[&a, &b], 1).await;
        db.write(1, "older");
        let gate = db.gate();
        assert_eq!(value(a.get(1).await), "old");
        gate.reached().await;
        db.write(1, "new");
        Self {
            ground,
            db,
            a,
            b,
            gate,
        }
    }

    fn by(&self, here: bool) -> &Node {
        if here { &self.a } else { &self.b }
    }

    /// The refresh ends, and nothing of it is anywhere.
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

    /// All have this in the end, after so many loads.
    async fn ends_with(self, right: &str, loads: u64) {
        for node in [&self.a, &self.b] {
            eventually("it has heard", async || has_no_old(node)).await;
            assert_eq!(seen(node.get_entry(1).await), fresh(right));
        }
        let cold = self.ground.node_with(&self.db, revalidates).await;
        assert_eq!(value(cold.get(1).await), right);
        assert_eq!(self.db.loads(), loads);
        self.ground.check(&[&self.a, &self.b, &cold]).await;
    }
}

fn has_no_old(node: &Node) -> bool {
    node.peek(&1)
        .is_none_or(|entry| entry.value().as_str() != "old")
}

async fn invalidated(ground: Ground, here: bool) {
    let scene = Scene::new(ground).await;
    let by = scene.by(here);
    by.invalidate(&1).await.expect("an invalidation");
    scene.is_refused().await;
    scene.ends_with("new", 2).await;
}

async fn an_invalidation_during_a_refresh_here_refuses_it(ground: Ground) {
    invalidated(ground, true).await;
}

async fn an_invalidation_during_a_refresh_elsewhere_refuses_it(ground: Ground) {
    invalidated(ground, false).await;
}

async fn expired(ground: Ground, here: bool) {
    let scene = Scene::new(ground).await;
    scene.by(here).expire(&1).await.expect("an expiry");
    scene.is_refused().await;
    scene.ends_with("new", 2).await;
}

async fn an_expiry_during_a_refresh_here_refuses_it(ground: Ground) {
    expired(ground, true).await;
}

async fn an_expiry_during_a_refresh_elsewhere_refuses_it(ground: Ground) {
    expired(ground, false).await;
}

async fn inserted(ground: Ground, here: bool) {
    let scene = Scene::new(ground).await;
    let insert = scene.by(here).insert(1, "by hand".to_owned());
    insert.await.expect("an insert");
    scene.is_refused().await;
    scene.ends_with("by hand", 1).await;
}

async fn an_insert_during_a_refresh_here_stays(ground: Ground) {
    inserted(ground, true).await;
}

async fn an_insert_during_a_refresh_elsewhere_stays(ground: Ground) {
    inserted(ground, false).await;
}

/// Byte for byte what was there when the refresh began, and not what it was.
async fn the_same_value_inserted_during_a_refresh_discards_it(ground: Ground) {
    let scene = Scene::new(ground).await;
    let same = Loaded::found("old".to_owned()).ttl(TTL * 100);
    scene.b.insert(1, same).await.expect("an insert");
    scene.is_refused().await;
    eventually("it has heard", async || {
        seen(scene.a.get_entry(1).await) == fresh("old")
    })
    .await;
    assert_eq!(seen(scene.b.get_entry(1).await), fresh("old"));
    assert_eq!(scene.db.loads(), 1);
    scene.ground.check(&[&scene.a, &scene.b]).await;
}

/// The record stays where it is, and is dead; so is what replaces it.
async fn invalidated_as_a_whole(ground: Ground, tag: Option<&str>) {
    let db = Db::default();
    db.tag(1, &["t"]);
    let a = ground.node_with(&db, revalidates).await;
    let b = ground.node_with(&db, revalidates).await;
    aged(&db, &[&a, &b], 1).await;
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
        eventually("it has heard", async || {
            seen(node.get_entry(1).await) == fresh("new")
        })
        .await;
    }
    let cold = ground.node_with(&db, revalidates).await;
    assert_eq!(value(cold.get(1).await), "new");
    assert_eq!(db.loads(), 2);
    ground.check(&[&a, &b, &cold]).await;
}

async fn an_invalidation_of_a_tag_during_a_refresh_outlives_it(ground: Ground) {
    invalidated_as_a_whole(ground, Some("t")).await;
}

async fn an_invalidation_of_everything_during_a_refresh_outlives_it(ground: Ground) {
    invalidated_as_a_whole(ground, None).await;
}

async fn a_refresh_that_was_refused_takes_no_claim_from_its_successor(ground: Ground) {
    let scene = Scene::new(ground).await;
    scene.b.expire(&1).await.expect("an expiry");
    let second = scene.db.gate();
    let successor = scene.b.refresher(1).await;
    second.reached().await;
    scene.is_refused().await;
    // A third one still has to wait for the second.
    let cold = scene.ground.node_with(&scene.db, revalidates).await;
    let waits = cold.refresher(1).await;
    eventually("it waits", async || cold.stats().lease_waits == 1).await;
    second.open();
    assert_eq!(value(answer(successor).await), "new");
    assert_eq!(value(answer(waits).await), "new");
    assert_eq!((scene.b.stats().fills, cold.stats().loads), (1, 0));
    scene.ground.check(&[&cold]).await;
    scene.ends_with("new", 2).await;
}

async fn a_refresh_that_was_overtaken_is_refused(ground: Ground) {
    let scene = Scene::new(ground).await;
    scene.b.expire(&1).await.expect("an expiry");
    assert_eq!(value(scene.b.refresh(&1).await), "new");
    scene.is_refused().await;
    scene.ends_with("new", 2).await;
}

async fn a_load_after_an_invalidation_is_not_disturbed_by_an_older_refresh(ground: Ground) {
    let scene = Scene::new(ground).await;
    scene.a.invalidate(&1).await.expect("an invalidation");
    let second = scene.db.gate();
    // In the process whose refresh is still under way.
    let caller = scene.a.caller(1).await;
    second.reached().await;
    let before = scene.a.stats();
    scene.gate.open();
    eventually("the refresh has ended", async || {
        scene.a.stats().fills_refused > before.fills_refused
    })
    .await;
    let waits = scene.b.caller(1).await;
    eventually("the other process waits", async || {
        scene.b.stats().lease_waits > 0
    })
    .await;
    second.open();
    assert_eq!(value(answer(caller).await), "new");
    assert_eq!(value(answer(waits).await), "new");
    assert_eq!(scene.a.stats().since(&before).fills, 1);
    scene.ends_with("new", 2).await;
}

async fn a_refresh_after_an_insert_does_not_wait_for_an_older_one(ground: Ground) {
    let scene = Scene::new(ground).await;
    let insert = scene.b.insert(1, "by hand".to_owned());
    insert.await.expect("an insert");
    assert_eq!(value(scene.b.refresh(&1).await), "new");
    assert_eq!(scene.b.stats().lease_waits, 0);
    scene.is_refused().await;
    scene.ends_with("new", 2).await;
}

async fn refreshes_by_hand_in_two_processes_are_one_load(ground: Ground) {
    let scene = Scene::new(ground).await;
    let mut refreshers = Vec::new();
    for _ in 0..10 {
        refreshers.push(scene.a.refresher(1).await);
        refreshers.push(scene.b.refresher(1).await);
    }
    eventually("the other process waits", async || {
        scene.b.stats().lease_waits == 1
    })
    .await;
    scene.gate.open();
    for refresher in refreshers {
        let got: Result<_, Error> = answer(refresher).await;
        assert_eq!(value(got), "older", "the load was under way");
    }
    for node in [&scene.a, &scene.b] {
        assert!(has_fresh(node, 1, "older"));
    }
    scene.ends_with("older", 1).await;
}
