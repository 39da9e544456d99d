//! Look-ups that accept fresh values only, or that skip L1.

use tidegate::{Error, Freshness, Read, Source};

use crate::support::aging::{
    fresh, make_stale, old, with_freshness, with_stale_if_error, with_stale_while_revalidate,
};
use crate::support::backend::{Backend, on_both_tiers};
use crate::support::eventually;
use crate::support::loader::{Behaviour, Db};
use crate::support::node::{answer, value};

on_both_tiers! {
    a_fresh_read_waits_for_the_load_while_others_have_the_old_value
    a_fresh_read_has_the_error_while_others_have_the_old_value
    fresh_reads_share_the_load_of_a_refresh_elsewhere
    a_fresh_read_of_a_fresh_entry_is_a_hit
    a_read_past_l1_asks_the_shared_tier_and_l1_keeps_that
    reads_past_l1_that_come_during_a_load_do_not_load_again
}

async fn a_fresh_read_waits_for_the_load_while_others_have_the_old_value(backend: Backend) {
    let db = Db::default();
    let a = backend.node_with(&db, with_stale_while_revalidate).await;
    make_stale(&db, &[&a], 1).await;
    db.write(1, "new");
    let gate = db.gate();
    // The first of them begins the load, or joins the load that a hit began.
    let mut waiting = vec![a.caller_with(1, Read::fresh()).await];
    gate.reached().await;
    for _ in 0..10 {
        waiting.push(a.caller_with(1, Read::fresh()).await);
        assert_eq!(with_freshness(a.get_entry(1).await), old(Freshness::Stale));
    }
    assert!(waiting.iter().all(|caller| !caller.is_finished()));
    gate.open();
    for caller in waiting {
        assert_eq!(value(answer(caller).await), "new");
    }
    assert_eq!(db.loads(), 1);
    assert_eq!(
        with_freshness(a.get_entry_with(1, Read::fresh()).await),
        fresh("new")
    );
    backend.check(&[&a]).await;
}

async fn a_fresh_read_has_the_error_while_others_have_the_old_value(backend: Backend) {
    let db = Db::default();
    let a = backend.node_with(&db, with_stale_while_revalidate).await;
    let b = backend.node_with(&db, with_stale_if_error).await;
    make_stale(&db, &[&a, &b], 1).await;
    db.behave(Behaviour::fails());
    for _ in 0..3 {
        let got = a.get_with(1, Read::fresh()).await;
        assert!(matches!(got, Err(Error::Load(_))));
        assert_eq!(with_freshness(a.get_entry(1).await), old(Freshness::Stale));
        let got = b.get_with(1, Read::fresh()).await;
        assert!(matches!(got, Err(Error::LoadFailedElsewhere)));
        assert_eq!(
            with_freshness(b.get_entry(1).await),
            old(Freshness::StaleOnError)
        );
    }
    assert_eq!(db.loads(), 1);
    backend.check(&[&a, &b]).await;
}

async fn fresh_reads_share_the_load_of_a_refresh_elsewhere(backend: Backend) {
    let db = Db::default();
    let a = backend.node_with(&db, with_stale_while_revalidate).await;
    let b = backend.node_with(&db, with_stale_while_revalidate).await;
    make_stale(&db, &[&a, &b], 1).await;
    db.write(1, "new");
    let gate = db.gate();
    assert_eq!(with_freshness(a.get_entry(1).await), old(Freshness::Stale));
    gate.reached().await;
    let mut waiting = vec![a.caller_with(1, Read::fresh()).await];
    // A fresh read joins the refresh that this hit begins.
    assert_eq!(with_freshness(b.get_entry(1).await), old(Freshness::Stale));
    for _ in 0..10 {
        waiting.push(b.caller_with(1, Read::fresh()).await);
    }
    eventually("the other process waits", async || {
        b.stats().lease_waits == 1
    })
    .await;
    assert!(waiting.iter().all(|caller| !caller.is_finished()));
    gate.open();
    for caller in waiting {
        assert_eq!(value(answer(caller).await), "new");
    }
    assert_eq!(db.loads(), 1);
    backend.check(&[&a, &b]).await;
}

async fn a_fresh_read_of_a_fresh_entry_is_a_hit(backend: Backend) {
    let db = Db::default();
    let a = backend.node_with(&db, with_stale_while_revalidate).await;
    let b = backend.node_with(&db, with_stale_while_revalidate).await;
    a.get(1).await.expect("a load");
    for (node, source) in [(&a, Source::L1), (&b, Source::L2)] {
        let entry = node.get_entry_with(1, Read::fresh()).await;
        let entry = entry.expect("a look-up").expect("an entry");
        assert_eq!(entry.source(), source);
    }
    assert_eq!(db.loads(), 1);
    backend.check(&[&a, &b]).await;
}

async fn a_read_past_l1_asks_the_shared_tier_and_l1_keeps_that(backend: Backend) {
    let db = Db::default();
    let a = backend.node_with(&db, with_stale_while_revalidate).await;
    a.get(1).await.expect("a load");
    let mut counter = backend.command_counter();
    for read in [Read::new().skip_l1(), Read::fresh().skip_l1()] {
        let entry = a.get_entry_with(1, read).await;
        let entry = entry.expect("a look-up").expect("an entry");
        assert_eq!(entry.source(), Source::L2);
        assert_eq!(counter.commands(), 2, "the watermarks and the record");
    }
    assert_eq!(with_freshness(a.get_entry(1).await), fresh("row 1"));
    assert_eq!((counter.commands(), db.loads()), (0, 1));
    // A stale record of the shared tier is answered by the same rules as a stale entry of L1.
    make_stale(&db, &[&a], 2).await;
    db.write(2, "new");
    let gate = db.gate();
    let got = a.get_entry_with(2, Read::new().skip_l1()).await;
    assert_eq!(with_freshness(got), old(Freshness::Stale));
    gate.open();
    let got = a.get_entry_with(2, Read::fresh().skip_l1()).await;
    assert_eq!(with_freshness(got), fresh("new"));
    assert_eq!(db.loads(), 1);
    backend.check(&[&a]).await;
}

async fn reads_past_l1_that_come_during_a_load_do_not_load_again(backend: Backend) {
    let db = Db::default();
    let a = backend.node_with(&db, with_stale_while_revalidate).await;
    let mut counter = backend.command_counter();
    // The first load opens the connection, which costs commands of its own.
    a.get(2).await.expect("a load");
    counter.commands();
    let gate = db.gate();
    let first = a.caller_with(1, Read::fresh().skip_l1()).await;
    gate.reached().await;
    let mut later = Vec::new();
    for _ in 0..20 {
        later.push(a.caller_with(1, Read::fresh().skip_l1()).await);
    }
    assert_eq!(counter.commands(), 3, "the watermarks, a read and a lease");
    gate.open();
    assert_eq!(value(answer(first).await), "row 1");
    for caller in later {
        assert_eq!(value(answer(caller).await), "row 1");
    }
    assert_eq!(db.loads(), 2);
    let more = counter.commands();
    // One command is the fill. Callers that came after the first load began read the record again,
    // and the watermarks as well, and may share these commands.
    assert!((2..=41).contains(&more), "{more} commands");
    backend.check(&[&a]).await;
}
