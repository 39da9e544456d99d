//! Forged records: any bytes in place of a record, without an expiry.

use std::time::Duration;

use tidegate::{Error, Source};

use super::{Fixture, source};
use crate::support::backend::users;
use crate::support::eventually;
use crate::support::forge::{
    COST_AT, CREATED_AT, FAILED, FORMAT_AT, FRESH_AT, HOLD_OFF, INCARNATION_AT, LEASE, NEGATIVE,
    SCHEMA_AT, changed, plain,
};
use crate::support::loader::Behaviour;
use crate::support::node::{Node, answer, value};
use crate::support::within;

/// The key of the refresh claim of a record.
fn claim(key: u64) -> String {
    format!("tidegate:users::{{{}}}", users(key))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lease_without_an_expiry_delays_no_look_up_beyond_lease_wait() {
    let mut fixture = Fixture::new();
    let a = fixture.node_with(|builder| builder.l1_capacity(0)).await;
    let record = fixture.record(&a).await;
    fixture.set_without_expiry(&users(1), &plain(&record, LEASE));
    let caller = a.caller(1).await;
    assert_eq!(value(answer(caller).await), "row 1");
    assert_eq!(a.stats().lease_wait_exceeded, 1);
    let pttl = fixture.raw.pttl(&users(1));
    assert!(
        (1..=2_000).contains(&pttl),
        "it ends like any other: {pttl}"
    );
    // A lease with an expiry of a year keeps it, and each load waits for `lease_wait` meanwhile.
    let year = b"31536000000";
    let key = users(1);
    fixture
        .raw
        .send(&[b"SET", key.as_bytes(), &plain(&record, LEASE), b"PX", year]);
    for waits in 2..4 {
        assert_eq!(value(a.get(1).await), "row 1");
        assert_eq!(a.stats().lease_wait_exceeded, waits);
    }
    // An invalidation removes the lease.
    a.invalidate(&1).await.expect("an invalidation");
    assert_eq!(value(a.get(1).await), "row 1");
    assert_eq!(source(&a, 1).await, Source::L2);
    a.check().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_claim_that_never_ends_stops_no_answer_and_no_load() {
    let mut fixture = Fixture::new();
    let a = fixture.node_with(|builder| builder.l1_capacity(0)).await;
    let record = fixture.record(&a).await;
    let year = b"31536000000";
    for kind in [LEASE, FAILED] {
        let forged = plain(&record, kind);
        let held = claim(1);
        fixture
            .raw
            .send(&[b"SET", held.as_bytes(), &forged, b"PX", year]);
        let loads = fixture.db.loads();
        let refreshed = within("a refresh", a.refresh(&1)).await;
        assert_eq!(
            refreshed.expect("a value").as_deref().map(String::as_str),
            Some("row 1")
        );
        assert_eq!(fixture.db.loads(), loads + 1, "kind {kind}");
        assert_eq!(value(a.get(1).await), "row 1");
        // The claim stops no load when the record is gone either.
        fixture.raw.ask(&format!("DEL {}", users(1)));
        assert_eq!(value(within("a load", a.get(1)).await), "row 1");
        a.invalidate(&1).await.expect("an invalidation");
        fixture.record(&a).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_forged_failure_mark_is_believed_no_longer_than_a_real_one() {
    let mut fixture = Fixture::new();
    let backoff = Duration::from_millis(50);
    let settings = |builder: tidegate::CacheBuilder<_>| builder.error_backoff(backoff);
    let a = fixture.node_with(settings).await;
    let record = fixture.record(&a).await;
    let year = 31_536_000_000_u64;
    // A failure mark is ignored when it would last longer than this cache's backoff, and when it is
    // dated in the future.
    for (created, fresh) in [
        (None, year),
        (None, u64::MAX),
        (Some(u64::MAX), 100),
        (Some(u64::MAX), u64::MAX),
    ] {
        let mut mark = changed(&plain(&record, FAILED), FRESH_AT, &fresh.to_le_bytes());
        if let Some(created) = created {
            mark = changed(&mark, CREATED_AT, &created.to_le_bytes());
        }
        mark = changed(&mark, COST_AT, &[0; 4]);
        a.invalidate(&1).await.expect("an invalidation");
        fixture.set_without_expiry(&users(1), &mark);
        let before = a.stats();
        assert_eq!(value(a.get(1).await), "row 1", "{created:?} {fresh}");
        assert_eq!(a.stats().since(&before).decode_failures, 1);
        assert_eq!(source(&a, 1).await, Source::L1);
    }
    // A mark that could be real is believed: look-ups get its error while it lasts.
    a.invalidate(&1).await.expect("an invalidation");
    fixture.record(&a).await;
    a.invalidate(&1).await.expect("an invalidation");
    let now = fixture.raw.get(&users(2)).is_none();
    assert!(now);
    a.get(2).await.expect("a look-up");
    let record = fixture.raw.get(&users(2)).expect("a record");
    let mark = crate::support::forge::moved(&plain(&record, FAILED), &users(1));
    let mark = changed(&mark, FRESH_AT, &800_u64.to_le_bytes());
    fixture.set_without_expiry(&users(1), &changed(&mark, COST_AT, &[0; 4]));
    let result = a.get(1).await;
    assert!(
        matches!(result, Err(Error::LoadFailedElsewhere)),
        "{result:?}"
    );
    eventually("it is over, though the mark stays", async || {
        a.get(1).await.is_ok()
    })
    .await;
    a.check().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn records_that_are_bypassed_cost_loads_and_end_with_the_next_invalidation() {
    let mut fixture = Fixture::new();
    let a = fixture.node().await;
    let record = fixture.record(&a).await;
    let forged = [
        changed(&record, SCHEMA_AT, &[0xff; 2]),
        changed(&record, FORMAT_AT, &[0xff]),
        plain(&record, HOLD_OFF),
    ];
    for (at, forged) in forged.iter().enumerate() {
        a.invalidate(&1).await.expect("an invalidation");
        fixture.set_without_expiry(&users(1), forged);
        let loads = fixture.db.loads();
        assert_eq!(value(a.get(1).await), "row 1");
        assert_eq!(value(a.get(1).await), "row 1");
        let held_off = at == 2;
        // A hold-off keeps the value out of L1 as well.
        let asked = if held_off { 2 } else { 1 };
        assert_eq!(fixture.db.loads(), loads + asked);
        assert_eq!(fixture.raw.get(&users(1)).as_ref(), Some(forged));
    }
    a.invalidate(&1).await.expect("an invalidation");
    a.get(1).await.expect("a look-up");
    assert_eq!(source(&a, 1).await, Source::L1);
    a.check().await;
}

/// Any value of a time field gets an answer, and no arithmetic overflows.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn timestamps_that_make_no_sense_cause_no_error() {
    let mut fixture = Fixture::new();
    let second = Duration::from_secs(1);
    let a = fixture
        .node_with(|builder| {
            let builder = builder.stale_if_error(second).refresh_ahead(1.0);
            builder.stale_while_revalidate(second).l1_capacity(0)
        })
        .await;
    let record = fixture.record(&a).await;
    let numbers = [0_u64, 1, u64::MAX / 2, u64::MAX - 1, u64::MAX];
    for created in numbers {
        for fresh in numbers {
            for (cost, kind) in [(0, None), (u32::MAX, None), (u32::MAX, Some(NEGATIVE))] {
                let forged = changed(&record, CREATED_AT, &created.to_le_bytes());
                let forged = changed(&forged, FRESH_AT, &fresh.to_le_bytes());
                let forged = changed(&forged, COST_AT, &u32::to_le_bytes(cost));
                let forged = kind.map_or(forged.clone(), |kind| plain(&forged, kind));
                fixture.set_without_expiry(&users(1), &forged);
                let entry = within("an answer", a.get_entry(1)).await;
                let entry = entry.expect("no error");
                assert!(kind.is_some() || entry.is_some());
            }
        }
    }
    assert_idle(&a).await;
    // When the load fails, the answer is its error or the value that the record holds.
    fixture.db.behave(Behaviour::fails());
    let forged = changed(&record, CREATED_AT, &[0; 8]);
    fixture.set_without_expiry(&users(1), &changed(&forged, FRESH_AT, &[0; 8]));
    assert!(matches!(a.get(1).await, Err(Error::Load(_))));
    let forged = changed(&record, INCARNATION_AT, &[0xff; 16]);
    fixture.set_without_expiry(&users(2), &forged);
    assert!(matches!(a.get(2).await, Err(Error::Load(_))));
    assert_idle(&a).await;
}

async fn assert_idle(node: &Node) {
    eventually("nothing is under way", async || {
        format!("{:?}", **node).contains("tasks: 0,")
    })
    .await;
}
