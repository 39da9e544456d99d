//! D: leases between nodes, bytes that cannot be read, and L2 in trouble.

use super::*;
use crate::protocol::record::Header;

#[tokio::test(start_paused = true)]
async fn nodes_wait_for_the_holder_without_a_command_and_are_woken_by_its_fill() {
    let (tier, source) = (InProcess::new(), Database::new(true, [Step::Found("v")]));
    let nodes: Vec<_> = (0..8).map(|_| node(&source, &tier)).collect();
    let holder = spawn_get(&nodes[0], 1);
    source.loading().await;
    let waiting: Vec<_> = nodes[1..]
        .iter()
        .flat_map(|node| (0..20).map(|_| spawn_get(node, 1)))
        .collect();
    settle().await;
    let before = tier.commands();
    tokio::time::advance(Duration::from_millis(500)).await;
    settle().await;
    assert_eq!(tier.commands(), before, "waiting sends nothing");
    let ended = Instant::now();
    source.answer();
    for got in waiting.into_iter().chain([holder]) {
        assert_eq!(text(&got.await.unwrap()), Some("v"));
    }
    assert_eq!(ended.elapsed(), Duration::ZERO, "woken, not timed");
    assert_eq!(source.calls(), 1);
    assert_eq!(
        tier.commands(),
        before + 1 + 7,
        "the fill, and one GET for each node"
    );
    validate(&nodes.iter().collect::<Vec<_>>(), &tier).await;
}

/// The fill may come between the answer "held" and its arrival at the waiter.
#[tokio::test(start_paused = true)]
async fn a_wake_up_that_overtakes_the_answer_to_its_waiter_is_not_missed() {
    let (tier, source) = (InProcess::new(), Database::new(true, [Step::Found("v")]));
    let (holder, waiter) = (node(&source, &tier), node(&source, &tier));
    let held = spawn_get(&holder, 1);
    source.loading().await;
    let gate = tier.gate("acquire", When::After);
    let waiting = spawn_get(&waiter, 1);
    gate.reached().await;
    source.answer();
    assert_eq!(text(&held.await.unwrap()), Some("v"));
    let begun = Instant::now();
    gate.open();
    assert_eq!(text(&waiting.await.unwrap()), Some("v"));
    assert_eq!(begun.elapsed(), Duration::ZERO, "woken, not timed");
    validate(&[&holder, &waiter], &tier).await;
}

/// A gap detaches a flight and leaves its lease: the next flight of the same cache waits for that.
#[tokio::test(start_paused = true)]
async fn a_flight_is_woken_by_the_fill_of_a_detached_one_of_its_own_cache() {
    use crate::l2::Listener;
    let (tier, source) = (InProcess::new(), Database::new(true, [Step::Found("v")]));
    let cache = node(&source, &tier);
    let detached = spawn_get(&cache, 1);
    source.loading().await;
    cache.engine().on_gap();
    let waiting = spawn_get(&cache, 1);
    settle().await;
    assert_eq!(cache.stats().lease_waits, 1);
    let begun = Instant::now();
    source.answer();
    assert_eq!(text(&detached.await.unwrap()), Some("v"));
    assert_eq!(text(&waiting.await.unwrap()), Some("v"));
    assert_eq!((begun.elapsed(), source.calls()), (Duration::ZERO, 1));
    validate(&[&cache], &tier).await;
}

#[tokio::test(start_paused = true)]
async fn a_lost_wake_up_is_made_good_by_the_end_of_the_lease() {
    let (tier, source) = (InProcess::new(), Database::new(true, [Step::Found("v")]));
    let (holder, waiter) = (node(&source, &tier), node(&source, &tier));
    let held = spawn_get(&holder, 1);
    source.loading().await;
    let waiting = spawn_get(&waiter, 1);
    settle().await;
    tier.mute();
    source.answer();
    held.await.unwrap().unwrap();
    let begun = Instant::now();
    assert_eq!(text(&waiting.await.unwrap()), Some("v"));
    assert!(
        begun.elapsed() <= Duration::from_millis(2_000 + 25 + 1),
        "{:?}",
        begun.elapsed()
    );
    assert_eq!(source.calls(), 1);
    validate(&[&holder, &waiter], &tier).await;
}

#[tokio::test(start_paused = true)]
async fn a_lease_is_renewed_while_its_load_runs() {
    let (tier, source) = (InProcess::new(), Database::new(true, [Step::Found("v")]));
    let (holder, waiter) = (node(&source, &tier), node(&source, &tier));
    let held = spawn_get(&holder, 1);
    source.loading().await;
    for _ in 0..16 {
        tokio::time::sleep(Duration::from_millis(500)).await;
        assert_eq!(raw_kind(&tier, KEY), Some(Kind::Lease));
    }
    let waiting = spawn_get(&waiter, 1);
    tokio::time::sleep(Duration::from_secs(5)).await;
    source.answer();
    assert_eq!(text(&held.await.unwrap()), Some("v"));
    assert_eq!(text(&waiting.await.unwrap()), Some("v"));
    assert_eq!(source.calls(), 1);
    validate(&[&holder, &waiter], &tier).await;
}

#[tokio::test(start_paused = true)]
async fn a_renewal_leaves_what_has_replaced_the_lease_as_it_is() {
    let (tier, source) = (InProcess::new(), Database::new(true, [Step::Found("old")]));
    let (holder, writer) = (node(&source, &tier), node(&source, &tier));
    let held = spawn_get(&holder, 1);
    source.loading().await;
    writer.insert(1, "new".to_owned()).await.unwrap();
    tokio::time::sleep(Duration::from_secs(1)).await;
    source.answer();
    assert_eq!(text(&held.await.unwrap()), Some("old"));
    // Longer than a lease.
    tokio::time::sleep(Duration::from_secs(3)).await;
    assert_eq!(raw_kind(&tier, KEY), Some(Kind::Value));
    validate(&[&holder, &writer], &tier).await;
}

/// A dead holder: a lease that nobody renews.
#[tokio::test(start_paused = true)]
async fn a_dead_holder_is_replaced_when_its_lease_ends() {
    let (tier, source) = (InProcess::new(), Database::new(false, [Step::Found("v")]));
    let cache = node(&source, &tier);
    cache.get(&2).await.unwrap();
    let mut dead = Header::plain(Kind::Lease, [7; 16], record::key_hash(KEY), 0);
    dead.baseline = cache.engine().watermarks.baseline();
    tier.set_raw(KEY, &dead.to_record(), 2_000);
    let begun = Instant::now();
    assert_eq!(text(&cache.get(&1).await), Some("v"));
    let took = begun.elapsed();
    assert!((2_000..=2_026).contains(&took.as_millis()), "{took:?}");
    assert_eq!(raw_kind(&tier, KEY), Some(Kind::Value));
    assert_eq!((cache.stats().lease_waits, cache.stats().fills), (1, 2));
    validate(&[&cache], &tier).await;
}

#[tokio::test(start_paused = true)]
async fn after_lease_wait_a_waiter_loads_by_itself_and_does_not_fill_l2() {
    let (tier, source) = (
        InProcess::new(),
        Database::new(true, [Step::Found("slow"), Step::Found("own")]),
    );
    let holder = node(&source, &tier);
    let waiter = settings(&source)
        .lease_wait(Duration::from_millis(300))
        .l2(tier.clone())
        .build()
        .unwrap();
    let held = spawn_get(&holder, 1);
    source.loading().await;
    let begun = Instant::now();
    let waiting = spawn_get(&waiter, 1);
    source.loading().await;
    assert_eq!(begun.elapsed(), Duration::from_millis(300));
    assert_eq!(
        raw_kind(&tier, KEY),
        Some(Kind::Lease),
        "the holder's lease stands"
    );
    source.go.add_permits(2);
    assert_eq!(text(&waiting.await.unwrap()), Some("own"));
    assert_eq!(text(&held.await.unwrap()), Some("slow"));
    assert_eq!(
        (waiter.stats().fills, waiter.stats().lease_wait_exceeded),
        (0, 1)
    );
    validate(&[&holder, &waiter], &tier).await;
}

#[tokio::test(start_paused = true)]
async fn a_failed_load_marks_the_key_and_other_nodes_do_not_take_turns() {
    let (tier, source) = (
        InProcess::new(),
        Database::new(true, [Step::Fail("down"), Step::Found("up")]),
    );
    let nodes: Vec<_> = (0..5).map(|_| node(&source, &tier)).collect();
    let first = spawn_get(&nodes[0], 1);
    source.loading().await;
    let others: Vec<_> = nodes[1..].iter().map(|node| spawn_get(node, 1)).collect();
    settle().await;
    let ended = Instant::now();
    source.answer();
    assert!(matches!(first.await.unwrap(), Err(Error::Load(_))));
    for other in others {
        assert!(matches!(
            other.await.unwrap(),
            Err(Error::LoadFailedElsewhere)
        ));
    }
    assert!(matches!(
        nodes[1].get(&1).await,
        Err(Error::LoadFailedElsewhere)
    ));
    assert_eq!((ended.elapsed(), source.calls()), (Duration::ZERO, 1));
    assert_eq!(raw_kind(&tier, KEY), Some(Kind::Failed));
    tokio::time::advance(Duration::from_millis(201)).await;
    source.answer();
    assert_eq!(text(&nodes[1].get(&1).await), Some("up"));
    validate(&nodes.iter().collect::<Vec<_>>(), &tier).await;
}

#[tokio::test(start_paused = true)]
async fn a_waiter_whose_holder_is_invalidated_does_not_wait_for_it_any_longer() {
    let (tier, source) = (
        InProcess::new(),
        Database::new(true, [Step::Found("old"), Step::Found("new")]),
    );
    let (holder, waiter, writer) = (
        node(&source, &tier),
        node(&source, &tier),
        node(&source, &tier),
    );
    let held = spawn_get(&holder, 1);
    source.loading().await;
    let waiting = spawn_get(&waiter, 1);
    settle().await;
    let begun = Instant::now();
    writer.invalidate(&1).await.unwrap();
    source.loading().await;
    source.go.add_permits(2);
    assert_eq!(text(&waiting.await.unwrap()), Some("new"));
    assert_eq!(text(&held.await.unwrap()), Some("old"));
    assert_eq!(begun.elapsed(), Duration::ZERO);
    validate(&[&holder, &waiter, &writer], &tier).await;
}

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
    unreadable.push(b"\x00a value that somebody else put there".to_vec());
    let mut other_codec = Header::parse(&good, record::key_hash(KEY)).unwrap().0;
    other_codec.codec = 99;
    let mut record = good.to_vec();
    other_codec.write_to(&mut record);
    unreadable.push(record);
    // A sound envelope around a payload that is none.
    let mut record = good.to_vec();
    record.truncate(record::HEADER);
    record.extend_from_slice(&[253; 9]);
    Header::parse(&good, record::key_hash(KEY))
        .unwrap()
        .0
        .write_to(&mut record);
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
    tier.set_raw(KEY, b"a value that somebody else put there", 60_000);
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
        "no ping-pong"
    );
    old.invalidate(&1).await.unwrap();
    for cache in [&old, &new, &later_old] {
        assert!(cache.peek(&1).is_none());
    }
    assert_eq!((old_source.calls(), new_source.calls()), (1, 1));
    validate(&[&old, &new, &later_old], &tier).await;
}

/// A codec that fails, or panics, both ways, when told to.
struct Fickle(Arc<AtomicUsize>);

impl crate::Codec for Fickle {
    fn id(&self) -> u8 {
        201
    }

    fn encode<V: serde::Serialize>(
        &self,
        value: &V,
        out: &mut Vec<u8>,
    ) -> Result<(), crate::CodecError> {
        match self.0.load(Ordering::SeqCst) {
            1 => Err(crate::CodecError::new("as told")),
            2 => panic!("the codec panics, as the test asks"),
            _ => crate::Bincode.encode(value, out),
        }
    }

    fn decode<V: serde::de::DeserializeOwned>(&self, bytes: &[u8]) -> Result<V, crate::CodecError> {
        match self.0.load(Ordering::SeqCst) {
            3 => Err(crate::CodecError::new("as told")),
            4 => panic!("the codec panics, as the test asks"),
            _ => crate::Bincode.decode(bytes),
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_value_that_cannot_be_encoded_is_answered_and_counted_and_not_cached() {
    let (tier, source) = (InProcess::new(), Database::new(false, [Step::Found("v")]));
    let mood = Arc::<AtomicUsize>::default();
    let build = || {
        settings(&source)
            .l2(tier.clone())
            .codec(Fickle(Arc::clone(&mood)))
            .build()
            .unwrap()
    };
    for fails in [1, 2] {
        mood.store(fails, Ordering::SeqCst);
        let cache = build();
        assert_eq!(text(&cache.get(&1).await), Some("v"));
        assert_eq!(cache.stats().encode_failures, 1);
        assert!(tier.is_empty() && cache.peek(&1).is_none());
        let error = cache.insert(1, "w".to_owned()).await.unwrap_err();
        assert!(error.is_unencodable());
        validate(&[&cache], &tier).await;
    }
    mood.store(0, Ordering::SeqCst);
    build().get(&1).await.unwrap();
    for fails in [3, 4] {
        mood.store(fails, Ordering::SeqCst);
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
    assert_eq!(
        tier.raw(KEY),
        None,
        "the old value does not stay in the place of the refused one"
    );
}

/// Every operation of the tier fails in every way at its turn: no get fails, none is loaded twice,
/// and nothing is left behind.
#[tokio::test(start_paused = true)]
async fn no_get_fails_or_loads_twice_because_of_the_shared_tier() {
    for operation in ["get", "acquire", "renew", "replace", "release"] {
        for when in [When::Before, When::After] {
            for kind in [
                RemoteKind::Unreachable,
                RemoteKind::Timeout,
                RemoteKind::Refused,
            ] {
                let (tier, source) = (InProcess::new(), Database::new(true, [Step::Found("v")]));
                let cache = node(&source, &tier);
                tier.fail(operation, when, kind);
                let all: Vec<_> = (0..5).map(|_| spawn_get(&cache, 1)).collect();
                source.loading().await;
                tokio::time::sleep(Duration::from_millis(700)).await;
                source.answer();
                for got in all {
                    assert_eq!(
                        text(&got.await.unwrap()),
                        Some("v"),
                        "{operation} {when:?} {kind:?}"
                    );
                }
                assert_eq!(source.calls(), 1);
                // A lease that could not be given back ends by itself.
                tokio::time::sleep(Duration::from_secs(3)).await;
                validate(&[&cache], &tier).await;
            }
        }
    }
}

#[tokio::test(start_paused = true)]
async fn while_the_tier_cannot_be_reached_l1_answers_for_its_degraded_ttl() {
    use crate::l2::Listener;
    let (tier, source) = (InProcess::new(), Database::new(false, [Step::Found("v")]));
    let cache = node(&source, &tier);
    cache.get(&1).await.unwrap();
    cache.engine().on_down();
    assert!(cache.peek(&1).is_none(), "deaf, while L2 may know better");
    assert_eq!(
        cache.get_entry(&1).await.unwrap().unwrap().source(),
        Source::L2
    );
    // Now L2 is gone as well.
    tier.fail("get", When::Before, RemoteKind::Unreachable);
    assert_eq!(text(&cache.get(&2).await), Some("v"));
    assert!(cache.peek(&2).is_some());
    assert!(cache.peek(&1).is_some());
    tokio::time::advance(Duration::from_millis(4_999)).await;
    assert!(cache.peek(&1).is_some() && cache.peek(&2).is_some());
    tokio::time::advance(Duration::from_millis(1)).await;
    assert!(cache.peek(&1).is_none() && cache.peek(&2).is_none());
    // Back again: what was read before is read again, not answered.
    cache.engine().on_up();
    assert!(cache.peek(&1).is_none());
    assert_eq!(
        cache.get_entry(&1).await.unwrap().unwrap().source(),
        Source::L2
    );
    assert!(cache.peek(&1).is_some());
    validate(&[&cache], &tier).await;
}

/// Everybody would load every key that is asked for at that moment.
#[tokio::test(start_paused = true)]
async fn whoever_finds_the_tier_lost_takes_what_l1_may_answer_and_loads_nothing() {
    use crate::entry::Read;
    use crate::l2::Listener;
    let (tier, source) = (InProcess::new(), Database::new(false, [Step::Found("v")]));
    let cache = node(&source, &tier);
    cache.get(&1).await.unwrap();
    cache.engine().on_down();
    for (other, read, from) in [
        (2, Read::new(), Source::L1),
        (3, Read::fresh(), Source::L1),
        (4, Read::new().skip_l1(), Source::Loader),
    ] {
        let seen = cache.get_entry(&1).await.unwrap().unwrap().source();
        assert_eq!(seen, Source::L2, "deaf, while L2 may know better");
        tier.fail("get", When::Before, RemoteKind::Unreachable);
        let entry = cache.get_entry_with(&1, read).await.unwrap().unwrap();
        assert_eq!(entry.source(), from, "{read:?}");
        // It answers again.
        cache.get(&other).await.unwrap();
    }
    assert_eq!(source.calls(), 5, "four keys, and past L1");
    tier.fail("get", When::Before, RemoteKind::Unreachable);
    cache.refresh(&1).await.unwrap();
    assert_eq!(source.calls(), 6, "a refresh is a load");
    validate(&[&cache], &tier).await;
}
