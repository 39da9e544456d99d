//! Bad bytes are a miss: damaged, foreign, too large, or of another version.

use std::sync::Arc;
use std::time::Duration;

use serde::Serialize;
use serde::de::DeserializeOwned;
use tidegate::{BoxError, Cache, Codec, CodecError, Source, loader_fn};

use crate::support::backend::{Backend, users};
use crate::support::eventually;
use crate::support::loader::Db;
use crate::support::node::{Node, answer, value};
use crate::support::server::{Raw, Server, is_value};

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

    /// A process without L1, so that each look-up reads the record.
    async fn reader(&self) -> Node {
        self.backend
            .node_with(&self.db, |builder| builder.l1_capacity(0))
            .await
    }

    /// Puts bytes in place of a record. A look-up counts a decode failure, loads, and replaces the
    /// bytes.
    async fn bad(&mut self, reader: &Node, bytes: &[u8], what: &str) {
        let before = reader.stats();
        self.raw.set(&users(1), bytes);
        assert_eq!(value(reader.get(1).await), "row 1", "{what}");
        let since = reader.stats().since(&before);
        assert_eq!(
            (since.misses, since.loads, since.fills),
            (1, 1, 1),
            "{what}"
        );
        assert_eq!(since.decode_failures, 1, "{what}");
        assert!(
            self.raw
                .get(&users(1))
                .is_some_and(|record| is_value(&record)),
            "{what}"
        );
        assert_eq!(value(reader.get(1).await), "row 1", "{what}");
        assert_eq!(reader.stats().since(&before).l2_hits, 1, "{what}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_damaged_record_is_a_miss_and_is_replaced() {
    let mut fixture = Fixture::new();
    let reader = fixture.reader().await;
    reader.get(1).await.expect("a load");
    let record = fixture.raw.get(&users(1)).expect("a record");
    for bit in (0..record.len()).map(|at| at * 8 + at % 8) {
        let mut damaged = record.clone();
        damaged[bit / 8] ^= 1 << (bit % 8);
        fixture
            .bad(&reader, &damaged, &format!("bit {bit} flipped"))
            .await;
    }
    for length in 0..record.len() {
        fixture
            .bad(
                &reader,
                &record[..length],
                &format!("truncated to {length}"),
            )
            .await;
    }
    let longer = [record.as_slice(), b"more"].concat();
    fixture.bad(&reader, &longer, "with bytes behind it").await;
    fixture.backend.check(&[&reader]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn foreign_bytes_are_a_miss_and_are_replaced() {
    let mut fixture = Fixture::new();
    let reader = fixture.reader().await;
    reader.get(2).await.expect("a load");
    let other = fixture.raw.get(&users(2)).expect("a record");
    fixture
        .bad(&reader, &other, "the record of another key")
        .await;
    fixture
        .bad(
            &reader,
            b"{\"name\": \"what the old cache wrote\"}",
            "a text",
        )
        .await;
    fixture
        .bad(&reader, &vec![0xff; 9 << 20], "nine megabytes")
        .await;
    fixture.backend.check(&[&reader]).await;
}

/// Writes fixed bytes under the id of another codec.
struct Forger(u8, &'static [u8]);

impl Codec for Forger {
    fn id(&self) -> u8 {
        self.0
    }

    fn encode<V: Serialize>(&self, _: &V, out: &mut Vec<u8>) -> Result<(), CodecError> {
        out.extend_from_slice(self.1);
        Ok(())
    }

    fn decode<V: DeserializeOwned>(&self, bytes: &[u8]) -> Result<V, CodecError> {
        tidegate::Bincode.decode(bytes)
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_record_of_another_codec_is_a_miss_and_is_replaced() {
    forged(Forger(200, b"\x05row 1"), "the record of another codec").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_intact_record_that_does_not_decode_is_a_miss_and_is_replaced() {
    forged(Forger(1, b"\x05row 1 and more"), "bytes left over").await;
    forged(Forger(1, b"\x02\xff\xff"), "not UTF-8").await;
    // A length that would allocate eight exabytes.
    let long = b"\xfd\xff\xff\xff\xff\xff\xff\xff\x7frow";
    forged(Forger(1, long), "a length of 2^63").await;
}

async fn forged(forger: Forger, what: &str) {
    let mut fixture = Fixture::new();
    let ours = fixture.reader().await;
    let theirs = fixture
        .backend
        .node_with(&fixture.db, |builder| builder.codec(forger))
        .await;
    theirs.get(1).await.expect("a load");
    let record = fixture.raw.get(&users(1)).expect("a record");
    fixture.bad(&ours, &record, what).await;
    fixture.backend.check(&[&ours, &theirs]).await;
}

/// Process b reads bad bytes. Before it asks for a lease, process a fills the key.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_filled_since_a_record_was_found_unreadable_is_not_replaced() {
    let mut fixture = Fixture::new();
    let a = fixture.reader().await;
    let b = fixture
        .backend
        .node_with(&fixture.db, |builder| builder.max_concurrent_loads(1))
        .await;
    fixture.raw.set(&users(1), b"what the old cache wrote");
    let gate = fixture.db.gate();
    let other = b.caller(2).await;
    gate.reached().await;
    let late = b.caller(1).await;
    eventually("it has read, and waits for a permit", async || {
        b.stats().decode_failures == 1
    })
    .await;
    assert_eq!(value(a.get(1).await), "row 1");
    gate.open();
    assert_eq!(value(answer(other).await), "row 2");
    assert_eq!(value(answer(late).await), "row 1");
    assert_eq!((fixture.db.loads(), b.stats().l2_hits), (2, 1));
    fixture.backend.check(&[&a, &b]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_value_too_large_for_a_record_is_answered_and_not_stored() {
    let mut fixture = Fixture::new();
    fixture.db.write(1, &"x".repeat(2_000));
    let a = fixture
        .backend
        .node_with(&fixture.db, |builder| builder.max_record_bytes(1_024))
        .await;
    assert_eq!(value(a.get(1).await).len(), 2_000);
    assert_eq!((a.stats().encode_failures, a.stats().fills), (1, 0));
    assert_eq!(fixture.raw.get(&users(1)), None);
    fixture.backend.check(&[&a]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_older_versions_record_is_replaced_and_a_newer_ones_is_left_alone() {
    let mut fixture = Fixture::new();
    let old = fixture
        .backend
        .node_with(&fixture.db, |builder| builder.schema_version(1))
        .await;
    let new = fixture
        .backend
        .node_with(&fixture.db, |builder| builder.schema_version(2))
        .await;
    fixture.db.write(1, "first");
    assert_eq!(value(old.get(1).await), "first");
    fixture.db.write(1, "second");
    // The older record is a miss and is replaced.
    assert_eq!(value(new.get(1).await), "second");
    assert_eq!((new.stats().decode_failures, new.stats().fills), (1, 1));
    let record = fixture.raw.get(&users(1)).expect("a record");
    // The newer record is bypassed: the process loads for itself, and the record stays.
    let old_again = fixture
        .backend
        .node_with(&fixture.db, |builder| builder.schema_version(1))
        .await;
    assert_eq!(value(old_again.get(1).await), "second");
    let stats = old_again.stats();
    assert_eq!(
        (
            stats.newer_records,
            stats.fills,
            stats.loads,
            stats.decode_failures
        ),
        (1, 0, 1, 0)
    );
    assert_eq!(fixture.raw.get(&users(1)), Some(record));
    let entry = old_again
        .get_entry(1)
        .await
        .expect("a look-up")
        .expect("an entry");
    assert_eq!(entry.source(), Source::L1, "not loaded again and again");
    // One invalidation reaches the processes of both versions.
    fixture.db.write(1, "third");
    old.invalidate(&1).await.expect("an invalidation");
    for node in [&new, &old_again] {
        eventually("the change has arrived", async || node.peek(&1).is_none()).await;
        assert_eq!(value(node.get(1).await), "third");
    }
    fixture.backend.check(&[&old, &new, &old_again]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_record_has_the_expiry_of_its_kind() {
    let mut fixture = Fixture::new();
    fixture.db.delete(2);
    let (ttl, negative) = (Duration::from_secs(100), Duration::from_secs(50));
    let a = fixture
        .backend
        .node_with(&fixture.db, |builder| {
            builder.ttl(ttl).negative_ttl(negative)
        })
        .await;
    let gate = fixture.db.gate();
    let caller = a.caller(1).await;
    gate.reached().await;
    let lease = fixture.raw.pttl(&users(1));
    assert!((1..=60_000).contains(&lease), "a lease for {lease} ms");
    gate.open();
    assert_eq!(value(answer(caller).await), "row 1");
    a.get(2).await.expect("a load");
    a.insert(3, "by hand".to_owned()).await.expect("an insert");
    for (key, most) in [(1, 100_000), (2, 50_000), (3, 100_000)] {
        let pttl = fixture.raw.pttl(&users(key));
        assert!(
            (most - 30_000..=most).contains(&pttl),
            "{key} for {pttl} ms"
        );
    }
    fixture.backend.check(&[&a]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn keys_of_any_bytes_and_any_length_reach_their_own_record_and_no_other() {
    let server = Server::start();
    let redis = || async {
        server
            .long_timeout_builder()
            .connect()
            .await
            .expect("connect")
    };
    let load = || loader_fn(|key: Vec<u8>| async move { Ok::<_, BoxError>(format!("{key:?}")) });
    let a = Cache::builder("users", load())
        .l2(redis().await)
        .build()
        .expect("a cache");
    let b = Cache::builder("users", load())
        .l2(redis().await)
        .build()
        .expect("a cache");
    let mut keys: Vec<Vec<u8>> = (0..=255).map(|byte| vec![byte]).collect();
    keys.extend([
        b"".to_vec(),
        b"a:b".to_vec(),
        b"a,b".to_vec(),
        b"{a}b".to_vec(),
        b"\r\n".to_vec(),
    ]);
    keys.extend([
        vec![b'x'; 200],
        vec![b'x'; 201],
        vec![b'x'; 1 << 20],
        vec![0xff; 300],
        b"%00".to_vec(),
    ]);
    for key in &keys {
        a.get(key).await.expect("a load");
        let entry = b
            .get_entry(key)
            .await
            .expect("a look-up")
            .expect("an entry");
        assert_eq!(
            (entry.source(), entry.value()),
            (Source::L2, &Arc::new(format!("{key:?}")))
        );
    }
    let stored = server.raw().entries("*");
    assert_eq!(stored.len(), keys.len());
    assert!(
        stored.iter().all(|key| key.len() < 300),
        "no key grows with what a user sends"
    );
    a.invalidate_many(&keys).await.expect("an invalidation");
    let gone = || keys.iter().all(|key| b.peek(key).is_none());
    eventually("the change has arrived", async || gone()).await;
    assert!(server.raw().entries("*").is_empty());
}
