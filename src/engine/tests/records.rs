//! Records that cannot be read or are of another schema version, and values that cannot be encoded.

use super::*;
use crate::protocol::record::Header;

#[tokio::test(start_paused = true)]
async fn every_way_a_record_can_be_unreadable_is_a_miss_that_is_counted_and_replaced() {
    let (tier, source) = (InProcess::new(), Database::new(false, [Step::Found("v")]));
    let filler = node(&source, &tier);
    filler.get(&1).await.unwrap();
    let good = tier.raw(KEY).unwrap();
    let mut unreadable: Vec<Vec<u8>> = (0..good.len()).map(|len| good[..len].to_vec()).collect();
    unreadable.extend((0..good.len() * 8).map(|bit| {
        let mut damaged = good.to_vec();
        damaged[bit / 8] ^= 1 << (bit % 8);
        damaged
    }));
    unreadable.push(b"\x00a value of another program".to_vec());
    let mut other_codec = Header::parse(&good, record::key_hash(KEY)).unwrap().0;
    other_codec.codec = 99;
    let mut record = good.to_vec();
    other_codec.seal(&mut record);
    unreadable.push(record);
    // A sound header with a payload that does not decode.
    let mut record = good.to_vec();
    record.truncate(record::HEADER);
    record.extend_from_slice(&[253; 9]);
    Header::parse(&good, record::key_hash(KEY))
        .unwrap()
        .0
        .seal(&mut record);
    unreadable.push(record);
    for (at, bytes) in unreadable.iter().enumerate() {
        let cache = node(&source, &tier);
        tier.set_raw(KEY, bytes, 60_000);
        assert_eq!(text(&cache.get(&1).await), Some("v"), "number {at}");
        let stats = cache.stats();
        assert_eq!(
            (stats.decode_failures, stats.loads, stats.fills),
            (1, 1, 1),
            "number {at}"
        );
        assert_eq!(raw_kind(&tier, KEY), Some(Kind::Value));
    }
    validate(&[&filler], &tier).await;
}

#[tokio::test(start_paused = true)]
async fn a_record_that_was_copied_to_another_key_is_a_miss() {
    let (tier, source) = (InProcess::new(), Database::new(false, [Step::Found("v")]));
    let cache = node(&source, &tier);
    cache.get(&1).await.unwrap();
    tier.set_raw(b"tidegate:users:2", &tier.raw(KEY).unwrap(), 60_000);
    cache.get(&2).await.unwrap();
    assert_eq!((cache.stats().decode_failures, source.calls()), (1, 2));
    validate(&[&cache], &tier).await;
}

#[tokio::test(start_paused = true)]
async fn what_was_filled_since_a_record_was_found_unreadable_is_not_replaced() {
    let (tier, source) = (InProcess::new(), Database::new(false, [Step::Found("v")]));
    let (first, second) = (node(&source, &tier), node(&source, &tier));
    tier.set_raw(KEY, b"a value of another program", 60_000);
    let gate = tier.gate("get", When::After);
    let late = spawn_get(&second, 1);
    gate.reached().await;
    assert_eq!(text(&first.get(&1).await), Some("v"));
    gate.open();
    assert_eq!(text(&late.await.unwrap()), Some("v"));
    assert_eq!((source.calls(), second.stats().l2_hits), (1, 1));
    validate(&[&first, &second], &tier).await;
}

#[tokio::test(start_paused = true)]
async fn an_older_version_is_replaced_a_newer_one_left_alone_and_one_invalidate_reaches_both() {
    let tier = InProcess::new();
    let version = |version, value| {
        let source = Database::new(false, [Step::Found(value)]);
        let cache = settings(&source)
            .schema_version(version)
            .l2(tier.clone())
            .build()
            .unwrap();
        (cache, source)
    };
    let ((old, old_source), (new, new_source)) = (version(1, "old"), version(2, "new"));
    old.get(&1).await.unwrap();
    assert_eq!(text(&new.get(&1).await), Some("new"), "never the old bytes");
    let (later_old, later_source) = version(1, "old");
    assert_eq!(text(&later_old.get(&1).await), Some("old"));
    assert_eq!(text(&later_old.get(&1).await), Some("old"));
    assert_eq!(
        (later_source.calls(), later_old.stats().newer_records),
        (1, 1),
        "kept in L1, not in L2"
    );
    let record = tier.raw(KEY).unwrap();
    assert_eq!(
        Header::parse(&record, record::key_hash(KEY))
            .unwrap()
            .0
            .schema,
        2,
        "the versions do not replace each other's records"
    );
    old.invalidate(&1).await.unwrap();
    for cache in [&old, &new, &later_old] {
        assert!(cache.peek(&1).is_none());
    }
    assert_eq!((old_source.calls(), new_source.calls()), (1, 1));
    validate(&[&old, &new, &later_old], &tier).await;
}

/// A codec that fails or panics as its number says: 1 and 2 when it encodes, 3 and 4 when it
/// decodes.
struct FailingCodec(Arc<AtomicUsize>);

impl crate::Codec for FailingCodec {
    fn id(&self) -> u8 {
        201
    }

    fn encode<V: serde::Serialize>(
        &self,
        value: &V,
        out: &mut Vec<u8>,
    ) -> Result<(), crate::CodecError> {
        match self.0.load(Ordering::SeqCst) {
            1 => Err(crate::CodecError::new("as the test asks")),
            2 => panic!("the codec panics, as the test asks"),
            _ => crate::Bincode.encode(value, out),
        }
    }

    fn decode<V: serde::de::DeserializeOwned>(&self, bytes: &[u8]) -> Result<V, crate::CodecError> {
        match self.0.load(Ordering::SeqCst) {
            3 => Err(crate::CodecError::new("as the test asks")),
            4 => panic!("the codec panics, as the test asks"),
            _ => crate::Bincode.decode(bytes),
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_value_that_cannot_be_encoded_is_answered_and_counted_and_not_cached() {
    let (tier, source) = (InProcess::new(), Database::new(false, [Step::Found("v")]));
    let failure = Arc::<AtomicUsize>::default();
    let build = || {
        settings(&source)
            .l2(tier.clone())
            .codec(FailingCodec(Arc::clone(&failure)))
            .build()
            .unwrap()
    };
    for fails in [1, 2] {
        failure.store(fails, Ordering::SeqCst);
        let cache = build();
        assert_eq!(text(&cache.get(&1).await), Some("v"));
        assert_eq!(cache.stats().encode_failures, 1);
        assert!(tier.is_empty() && cache.peek(&1).is_none());
        let error = cache.insert(1, "w".to_owned()).await.unwrap_err();
        assert!(error.is_unencodable());
        validate(&[&cache], &tier).await;
    }
    failure.store(0, Ordering::SeqCst);
    build().get(&1).await.unwrap();
    for fails in [3, 4] {
        failure.store(fails, Ordering::SeqCst);
        let cache = build();
        assert_eq!(text(&cache.get(&1).await), Some("v"));
        assert_eq!((cache.stats().decode_failures, cache.stats().fills), (1, 1));
        validate(&[&cache], &tier).await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_record_that_is_too_large_is_neither_written_nor_read() {
    let (tier, source) = (
        InProcess::new(),
        Database::new(false, [Step::Found("a value of more than a few bytes")]),
    );
    let build = |bytes| {
        settings(&source)
            .max_record_bytes(bytes)
            .l2(tier.clone())
            .build()
            .unwrap()
    };
    let large: String = "x".repeat(4_000);
    let (wide, narrow) = (build(8 << 10), build(1 << 10));
    wide.insert(1, large).await.unwrap();
    assert!(text(&narrow.get(&1).await).is_some_and(|value| value.len() < 100));
    assert_eq!(narrow.stats().decode_failures, 1);
    assert!(
        narrow
            .insert(1, "x".repeat(2_000))
            .await
            .unwrap_err()
            .is_unencodable()
    );
    assert_eq!(tier.raw(KEY), None, "the old value does not stay");
}
