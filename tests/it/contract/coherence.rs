//! Changes by one process reach the L1 of the others.

use crate::support::backend::{Backend, on_both_tiers};
use crate::support::eventually;
use crate::support::loader::Db;
use crate::support::node::value;

on_both_tiers! {
    an_invalidation_is_seen_by_the_other_process
    an_insert_is_seen_by_the_other_process
    own_messages_evict_nothing
    a_thousand_keys_invalidated_together_all_arrive
}

async fn an_invalidation_is_seen_by_the_other_process(backend: Backend) {
    let db = Db::default();
    let (a, b) = (backend.node(&db).await, backend.node(&db).await);
    for node in [&a, &b] {
        node.get(1).await.expect("a look-up");
    }
    db.write(1, "new");
    a.invalidate(&1).await.expect("an invalidation");
    assert!(a.peek(&1).is_none(), "here it is gone at once");
    eventually("the other process has dropped it", async || {
        b.peek(&1).is_none()
    })
    .await;
    assert_eq!(value(b.get(1).await), "new");
    assert_eq!(value(a.get(1).await), "new");
    assert_eq!(db.loads(), 2);
    backend.check(&[&a, &b]).await;
}

async fn an_insert_is_seen_by_the_other_process(backend: Backend) {
    let db = Db::default();
    let (a, b) = (backend.node(&db).await, backend.node(&db).await);
    for node in [&a, &b] {
        node.get(1).await.expect("a look-up");
    }
    a.insert(1, "new".to_owned()).await.expect("an insert");
    eventually("the other process has dropped it", async || {
        b.peek(&1).is_none()
    })
    .await;
    assert_eq!(value(b.get(1).await), "new");
    assert_eq!(db.loads(), 1);
    backend.check(&[&a, &b]).await;
}

async fn own_messages_evict_nothing(backend: Backend) {
    let db = Db::default();
    let (a, b) = (backend.node(&db).await, backend.node(&db).await);
    a.get(2).await.expect("a load");
    b.get(2).await.expect("a look-up");
    a.insert(1, "by hand".to_owned()).await.expect("an insert");
    // The message that the other process has received has reached this process as well.
    eventually("the message has arrived", async || {
        b.stats().remote_invalidations == 1
    })
    .await;
    a.insert(2, "by hand".to_owned()).await.expect("an insert");
    eventually("the second one too", async || b.peek(&2).is_none()).await;
    assert_eq!(
        a.peek(&1).expect("it is still in L1").value().as_str(),
        "by hand"
    );
    assert_eq!(a.stats().remote_invalidations, 0);
    backend.check(&[&a, &b]).await;
}

async fn a_thousand_keys_invalidated_together_all_arrive(backend: Backend) {
    let db = Db::default();
    let (a, b) = (backend.node(&db).await, backend.node(&db).await);
    let keys: Vec<u64> = (0..1_000).collect();
    for node in [&a, &b] {
        for &key in &keys {
            node.get(key).await.expect("a look-up");
        }
    }
    assert!(keys.iter().all(|key| b.peek(key).is_some()));
    a.invalidate_many(&keys).await.expect("an invalidation");
    assert!(keys.iter().all(|key| a.peek(key).is_none()));
    eventually("all messages have arrived", async || {
        b.stats().remote_invalidations == 1_000
    })
    .await;
    assert!(keys.iter().all(|key| b.peek(key).is_none()));
    assert_eq!(b.stats().gaps, 0, "none was lost");
    backend.check(&[&a, &b]).await;
}
