//! Row versions: an insert does not replace a record with a later version.

use tidegate::Loaded;

use crate::support::backend::{Backend, on_both_tiers};
use crate::support::loader::Db;
use crate::support::node::{Node, answer, value};

on_both_tiers! {
    an_insert_of_an_older_version_is_refused_and_the_newer_stays
    an_insert_of_the_same_or_a_newer_version_is_stored
    versions_beyond_what_a_float_holds_compare_right
    the_version_that_a_load_found_counts_too
    an_insert_with_a_version_wins_over_a_running_load
}

fn row(text: &str, version: u64) -> Loaded<String> {
    Loaded::found(text.to_owned()).version(version)
}

async fn inserted(node: &Node, text: &str, version: u64) {
    node.insert(1, row(text, version)).await.expect("an insert");
}

async fn refused(node: &Node, version: u64) {
    let result = node.insert(1, row("too old", version)).await;
    assert!(
        result.is_err_and(|error| error.is_superseded()),
        "version {version} was stored"
    );
}

/// Every process answers `text`, and so does a process that has not looked the key up before.
async fn all_answer(backend: &Backend, db: &Db, nodes: &[&Node], text: &str) {
    for node in nodes {
        assert_eq!(value(node.get(1).await), text);
    }
    let cold = backend.node(db).await;
    assert_eq!(value(cold.get(1).await), text);
    cold.check().await;
}

async fn an_insert_of_an_older_version_is_refused_and_the_newer_stays(backend: Backend) {
    let db = Db::default();
    let (a, b) = (backend.node(&db).await, backend.node(&db).await);
    inserted(&a, "seven", 7).await;
    refused(&b, 6).await;
    assert!(b.peek(&1).is_none(), "what was refused is in L1");
    refused(&a, 6).await;
    all_answer(&backend, &db, &[&a, &b], "seven").await;
    // An insert without a version is not compared: it replaces any record.
    a.insert(1, "by hand".to_owned()).await.expect("an insert");
    all_answer(&backend, &db, &[&a], "by hand").await;
    assert_eq!(
        (
            db.loads(),
            a.stats().inserts_superseded,
            b.stats().inserts_superseded
        ),
        (0, 1, 1)
    );
    backend.check(&[&a, &b]).await;
}

async fn an_insert_of_the_same_or_a_newer_version_is_stored(backend: Backend) {
    let db = Db::default();
    let a = backend.node(&db).await;
    for (version, text) in [(7, "seven"), (7, "seven again"), (8, "eight")] {
        inserted(&a, text, version).await;
        all_answer(&backend, &db, &[&a], text).await;
    }
    assert_eq!((db.loads(), a.stats().inserts_superseded), (0, 0));
    backend.check(&[&a]).await;
}

async fn versions_beyond_what_a_float_holds_compare_right(backend: Backend) {
    let db = Db::default();
    let a = backend.node(&db).await;
    let float = 1_u64 << 53;
    // Neighbouring numbers, and numbers at which a byte overflows.
    let versions = [255, 256, float, float + 1, (1 << 63) - 1, 1 << 63, u64::MAX];
    for pair in versions.windows(2) {
        inserted(&a, "newer", pair[1]).await;
        refused(&a, pair[0]).await;
        all_answer(&backend, &db, &[&a], "newer").await;
        a.invalidate(&1).await.expect("an invalidation");
        inserted(&a, "older", pair[0]).await;
        inserted(&a, "newer", pair[1]).await;
        all_answer(&backend, &db, &[&a], "newer").await;
    }
    assert_eq!(db.loads(), 0);
    backend.check(&[&a]).await;
}

async fn the_version_that_a_load_found_counts_too(backend: Backend) {
    let db = Db::default();
    let a = backend.node(&db).await;
    db.version(1, 7);
    assert_eq!(value(a.get(1).await), "row 1");
    refused(&a, 6).await;
    all_answer(&backend, &db, &[&a], "row 1").await;
    // An absence can have a version as well.
    let gone = Loaded::missing().version(8);
    a.insert(1, gone).await.expect("an insert");
    refused(&a, 7).await;
    assert_eq!(a.get(1).await.expect("a look-up"), None);
    // Without a record there is no version to compare with.
    a.invalidate(&1).await.expect("an invalidation");
    inserted(&a, "five", 5).await;
    all_answer(&backend, &db, &[&a], "five").await;
    assert_eq!(db.loads(), 1);
    backend.check(&[&a]).await;
}

async fn an_insert_with_a_version_wins_over_a_running_load(backend: Backend) {
    let db = Db::default();
    let a = backend.node(&db).await;
    db.version(1, 9);
    let gate = db.gate();
    let caller = a.caller(1).await;
    gate.reached().await;
    inserted(&a, "inserted", 1).await;
    gate.open();
    assert_eq!(value(answer(caller).await), "row 1");
    all_answer(&backend, &db, &[&a], "inserted").await;
    assert_eq!(db.loads(), 1);
    backend.check(&[&a]).await;
}
