//! Sealed values: what a client of the same Redis can do without a key, and how keys are rotated.

use std::time::Duration;

use tidegate::{Bincode, CacheBuilder, Loaded, Sealed, Source};

use crate::support::backend::{Backend, on_both_tiers, users};
use crate::support::eventually;
use crate::support::forge::{
    CODEC_AT, CREATED_AT, FRESH_AT, HEADER, INCARNATION_AT, NEGATIVE, changed, checksummed, moved,
    plain,
};
use crate::support::loader::{Behaviour, Db};
use crate::support::node::{Node, value};
use crate::support::server::{Raw, Server, is_value};

on_both_tiers! {
    a_value_that_one_process_seals_is_opened_by_another_also_after_a_renewal
}

const ONE: (u32, [u8; 32]) = (1, [1; 32]);
const TWO: (u32, [u8; 32]) = (2, [2; 32]);

type Key = (u32, [u8; 32]);

fn ring(seals: Key, opens: &[Key]) -> Sealed<Bincode> {
    let builder = Sealed::builder(Bincode).sealing_key(seals.0, seals.1);
    let builder = opens
        .iter()
        .fold(builder, |builder, (id, key)| builder.opening_key(*id, key));
    builder.build().expect("a sound ring")
}

struct Fixture {
    backend: Backend,
    raw: Raw,
    db: Db,
}

impl Fixture {
    fn new() -> Self {
        let server = Server::start();
        let raw = server.raw();
        Self {
            backend: Backend::Redis(server),
            raw,
            db: Db::default(),
        }
    }

    /// A process that reads every value from Redis.
    async fn node(&self, seals: Key, opens: &[Key]) -> Node {
        self.node_with(seals, opens, |builder| builder).await
    }

    async fn node_with(
        &self,
        seals: Key,
        opens: &[Key],
        settings: impl FnOnce(CacheBuilder<Db>) -> CacheBuilder<Db>,
    ) -> Node {
        let codec = ring(seals, opens);
        let with = |builder: CacheBuilder<Db>| settings(builder.codec(codec).l1_capacity(0));
        self.backend.node_with(&self.db, with).await
    }

    async fn record(&mut self, node: &Node, key: u64) -> Vec<u8> {
        node.get(key).await.expect("a look-up");
        self.raw.get(&users(key)).expect("a record")
    }

    /// Writes a record under key 1. A look-up does not answer it but loads. `replaced` tells
    /// whether the loaded value replaces the record.
    async fn refused(&mut self, node: &Node, record: &[u8], replaced: bool, what: &str) {
        self.raw.set(&users(1), record);
        let before = node.stats();
        assert_eq!(value(node.get(1).await), "row 1", "{what}");
        let since = node.stats().since(&before);
        let counted = (since.l2_hits, since.loads, since.fills);
        assert_eq!(counted, (0, 1, u64::from(replaced)), "{what}");
    }
}

async fn a_value_that_one_process_seals_is_opened_by_another_also_after_a_renewal(
    backend: Backend,
) {
    let db = Db::default();
    db.tag(1, &["team"]);
    let node = async || {
        let settings = |builder: CacheBuilder<Db>| builder.codec(ring(ONE, &[])).l1_capacity(0);
        backend.node_with(&db, settings).await
    };
    let (a, b) = (node().await, node().await);
    assert_eq!(value(a.get(1).await), "row 1");
    assert_eq!(value(b.get(1).await), "row 1");
    assert_eq!((db.loads(), b.stats().l2_hits), (1, 1));
    // A renewed record has another header and so another seal, with the same value and tags.
    db.behave(Behaviour {
        unchanged: true,
        ..Behaviour::default()
    });
    a.refresh(&1).await.expect("a refresh");
    assert_eq!((a.stats().unchanged, a.stats().fills), (1, 2));
    assert_eq!(value(b.get(1).await), "row 1");
    assert_eq!((db.loads(), b.stats().l2_hits), (2, 2));
    db.behave(Behaviour::default());
    a.invalidate_tag("team").await.expect("an invalidation");
    assert_eq!(value(b.get(1).await), "row 1");
    assert_eq!(db.loads(), 3, "its tag is still there");
    for node in [&a, &b] {
        assert_eq!(node.stats().decode_failures, 0);
    }
}

/// Changes every byte of a record and sets the checksum right, which is no secret.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_record_that_was_altered_is_answered() {
    let mut fixture = Fixture::new();
    let node = fixture.node(ONE, &[]).await;
    let record = fixture.record(&node, 1).await;
    let text = b"row 1";
    assert!(!record.windows(text.len()).any(|window| window == text));
    for at in 0..record.len() {
        let mut altered = record.clone();
        altered[at] ^= 1 << (at % 8);
        let altered = checksummed(altered);
        // A record of a later format or schema version is bypassed.
        let replaced = !matches!(at, 2 | 38 | 39);
        let what = format!("byte {at}");
        if altered == record {
            assert!((96..HEADER).contains(&at), "{what}");
            continue;
        }
        fixture.refused(&node, &altered, replaced, &what).await;
        fixture.raw.ask(&format!("DEL {}", users(1)));
    }
    for len in HEADER..record.len() {
        let shorter = checksummed(record[..len].to_vec());
        let what = format!("cut off at {len}");
        fixture.refused(&node, &shorter, true, &what).await;
    }
    fixture.raw.set(&users(1), &record);
    let before = node.stats();
    assert_eq!(value(node.get(1).await), "row 1");
    assert_eq!(node.stats().since(&before).l2_hits, 1, "it was sound");
    node.check().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_record_of_another_key_or_cache_is_not_answered_and_without_a_seal_it_is() {
    let mut fixture = Fixture::new();
    let node = fixture.node(ONE, &[]).await;
    let other = fixture.record(&node, 2).await;
    let swapped = moved(&other, &users(1));
    fixture
        .refused(&node, &swapped, true, "of another key")
        .await;
    let settings = |builder: CacheBuilder<Db>| builder.codec(ring(ONE, &[]));
    let namesake = fixture
        .backend
        .named("members", fixture.db.clone(), settings);
    namesake.await.get(1).await.expect("a look-up");
    let other = fixture.raw.get("tidegate:members:1").expect("a record");
    let swapped = moved(&other, &users(1));
    fixture
        .refused(&node, &swapped, true, "of another cache")
        .await;
    assert_eq!(
        node.stats().decode_failures,
        1,
        "the other record has another incarnation"
    );

    // Without a seal, both are answered. This is what sealing prevents.
    let open = fixture
        .backend
        .node_with(&fixture.db, |builder| builder.l1_capacity(0))
        .await;
    open.invalidate(&2).await.expect("an invalidation");
    let other = fixture.record(&open, 2).await;
    fixture.raw.set(&users(1), &moved(&other, &users(1)));
    assert_eq!(value(open.get(1).await), "row 2");
    let forged = checksummed([&other[..HEADER], b"\x06forged"].concat());
    fixture.raw.set(&users(1), &moved(&forged, &users(1)));
    assert_eq!(value(open.get(1).await), "forged");
    // A process that seals takes neither of them.
    fixture
        .refused(&node, &moved(&forged, &users(1)), true, "not sealed")
        .await;
    let named = changed(&moved(&forged, &users(1)), CODEC_AT, &[16]);
    fixture
        .refused(&node, &named, true, "marked as sealed")
        .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_seal_does_not_prevent() {
    let mut fixture = Fixture::new();
    let node = fixture.node(ONE, &[]).await;
    let record = fixture.record(&node, 1).await;
    // An older record of the same key is answered within its own TTL.
    fixture.db.write(1, "new");
    node.invalidate(&1).await.expect("an invalidation");
    fixture.raw.set(&users(1), &record);
    assert_eq!(value(node.get(1).await), "row 1");
    // An entry that was expired can be made to look unexpired.
    node.expire(&1).await.expect("an expiry");
    fixture
        .raw
        .send(&[b"SETRANGE", users(1).as_bytes(), b"20", &[0; 16]]);
    assert_eq!(value(node.get(1).await), "row 1");
    assert_eq!((fixture.db.loads(), node.stats().l2_hits), (1, 2));
    // After an invalidation of everything the old record is invalid for every process that knows of
    // it.
    node.invalidate_all().await.expect("an invalidation");
    fixture.raw.set(&users(1), &record);
    assert_eq!(value(node.get(1).await), "new");
    // Absences are not sealed.
    let record = fixture.record(&node, 1).await;
    fixture.raw.set(&users(1), &plain(&record, NEGATIVE));
    assert_eq!(node.get(1).await.expect("a look-up"), None);
    assert_eq!(fixture.db.loads(), 2);
    node.check().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_older_record_that_is_put_back_is_answered_no_longer_than_its_own_ttl() {
    let mut fixture = Fixture::new();
    fixture
        .db
        .behave(Behaviour::ttl(Duration::from_millis(300)));
    let node = fixture.node(ONE, &[]).await;
    let record = fixture.record(&node, 1).await;
    eventually("its time is over", async || {
        fixture.raw.pttl(&users(1)) == -2
    })
    .await;
    // The old record is put back without an expiry.
    fixture.raw.send(&[b"SET", users(1).as_bytes(), &record]);
    let before = node.stats();
    assert_eq!(value(node.get(1).await), "row 1");
    let since = node.stats().since(&before);
    assert_eq!(
        (since.l2_hits, since.loads, since.decode_failures),
        (0, 1, 0)
    );
    // Its times cannot be changed either.
    for (at, what) in [
        (CREATED_AT, "created later"),
        (FRESH_AT, "fresh for longer"),
    ] {
        let altered = changed(&record, at, &u64::MAX.to_le_bytes());
        fixture.refused(&node, &altered, true, what).await;
    }
    let before = node.stats().decode_failures;
    fixture.db.behave(Behaviour::default());
    let dead = changed(&record, INCARNATION_AT, &[9; 16]);
    fixture
        .refused(&node, &dead, true, "of another incarnation")
        .await;
    assert_eq!(
        node.stats().decode_failures,
        before,
        "dead before it is opened"
    );
    node.check().await;
}

/// The source of an answer, and the decode failures that it cost.
async fn source(node: &Node, key: u64) -> (Source, u64) {
    let before = node.stats();
    let entry = node.get_entry(key).await.expect("a look-up");
    let source = entry.expect("an entry").source();
    (source, node.stats().since(&before).decode_failures)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_rotation_in_the_right_order_costs_no_load() {
    let mut fixture = Fixture::new();
    let steps: [(Key, &[Key]); 5] = [
        (ONE, &[]),
        (ONE, &[TWO]),
        (TWO, &[ONE]),
        (TWO, &[ONE]),
        (TWO, &[]),
    ];
    // Each step runs beside the one before, as in a rolling deploy: each process reads what the
    // other writes.
    let (mut key, mut loads) = (0, 0);
    for pair in steps.windows(2) {
        let before = fixture.node(pair[0].0, pair[0].1).await;
        let after = fixture.node(pair[1].0, pair[1].1).await;
        for (writes, reads) in [(&before, &after), (&after, &before)] {
            (key, loads) = (key + 1, loads + 1);
            fixture.record(writes, key).await;
            for node in [reads, writes, reads] {
                assert_eq!(source(node, key).await, (Source::L2, 0), "{pair:?}");
            }
        }
        assert_eq!(fixture.db.loads(), loads);
    }
    // Records under the first key are misses for processes that have dropped that key.
    let last = fixture.node(TWO, &[]).await;
    assert_eq!(source(&last, 1).await, (Source::Loader, 1));
    assert_eq!(source(&last, 1).await, (Source::L2, 0));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_process_without_the_new_key_replaces_a_record_once_and_then_both_read_it() {
    let fixture = Fixture::new();
    let (old, new) = (
        fixture.node(ONE, &[]).await,
        fixture.node(TWO, &[ONE]).await,
    );
    assert_eq!(source(&new, 1).await, (Source::Loader, 0));
    assert_eq!(
        source(&old, 1).await,
        (Source::Loader, 1),
        "a miss, counted"
    );
    for _ in 0..3 {
        assert_eq!(source(&new, 1).await, (Source::L2, 0));
        assert_eq!(source(&old, 1).await, (Source::L2, 0));
    }
    assert_eq!(fixture.db.loads(), 2);
    // A refresh by the new process starts this again: one load in each process.
    new.refresh(&1).await.expect("a refresh");
    assert_eq!(source(&old, 1).await, (Source::Loader, 1));
    assert_eq!(source(&new, 1).await, (Source::L2, 0));
    assert_eq!(fixture.db.loads(), 4);
    // Two processes of which neither can open the records of the other replace them for ever.
    let alone = fixture.node(TWO, &[]).await;
    for _ in 0..3 {
        assert_eq!(source(&alone, 1).await, (Source::Loader, 1));
        assert_eq!(source(&old, 1).await, (Source::Loader, 1));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cache_begins_to_seal_with_a_new_schema_version_and_old_processes_bypass_its_records() {
    let mut fixture = Fixture::new();
    let plain = fixture
        .backend
        .node_with(&fixture.db, |builder| builder)
        .await;
    let sealing = fixture
        .node_with(ONE, &[], |builder| builder.schema_version(1))
        .await;
    plain
        .insert(1, Loaded::found("plain".to_owned()))
        .await
        .expect("an insert");
    assert_eq!(source(&sealing, 1).await, (Source::Loader, 1));
    let record = fixture.raw.get(&users(1)).filter(|record| is_value(record));
    plain.invalidate(&2).await.expect("an invalidation");
    assert_eq!(source(&sealing, 2).await, (Source::Loader, 0));
    // The old process bypasses the sealed records and keeps its own values in L1.
    assert_eq!(source(&plain, 2).await, (Source::Loader, 0));
    assert_eq!(source(&plain, 2).await, (Source::L1, 0));
    assert_eq!(source(&sealing, 2).await, (Source::L2, 0));
    assert_eq!(plain.stats().newer_records, 1);
    assert_eq!(fixture.raw.get(&users(1)), record);
}
