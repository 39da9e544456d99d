//! Coherence: tags and invalidations of everything, the channel lease, and messages that are late
//! or lost. Where it matters, messages travel over *wires*, the embedded tier's connections, on
//! which the test delivers each message by hand.

use super::*;
use crate::health::{Channel, Event};
use crate::l2::{Acquired, Advance, Keys, Listener, Over, TierOperations, WatermarkRequest};
use crate::protocol::message::{Message, Operation};

/// The channel lease.
const CHANNEL_LEASE: Duration = Duration::from_secs(2);

/// Longer than one operation over a wire takes.
const DELIVERY_TIME: Duration = Duration::from_millis(100);

/// The same source, with rows that belong to a team.
#[derive(Clone)]
struct Team(Database);

impl Loader for Team {
    type Key = u64;
    type Value = String;
    type Error = BoxError;

    async fn load(&self, key: &u64) -> Result<Loaded<String>, BoxError> {
        let loaded = self.0.load(key).await?;
        Ok(loaded.tag("team:7").tag("all users"))
    }
}

fn team(source: &Database) -> CacheBuilder<Team> {
    Cache::builder("users", Team(source.clone())).ttl_jitter(0.0)
}

fn team_node(source: &Database, tier: &InProcess) -> Users {
    team(source).l2(tier.clone()).build().unwrap()
}

/// Rows are `old` at first and `new` from the second load on.
fn old_then_new(gated: bool) -> Database {
    Database::new(gated, [Step::Found("old"), Step::Found("new")])
}

/// Connects the nodes in this order, and waits until their channels are proven.
async fn connect(tier: &InProcess, nodes: &[&Users]) {
    for (wire, node) in nodes.iter().enumerate() {
        let engine = node.engine();
        engine.attach(engine.remote.as_ref().unwrap()).await;
        tier.connect(wire);
    }
    tokio::time::sleep(DELIVERY_TIME).await;
    tier.hand_over_all();
    for node in nodes {
        assert_eq!(node.health().channel, Channel::Proven);
    }
}

/// Waits for the next heartbeat of every node, and delivers all messages.
async fn heartbeat(tier: &InProcess) {
    tokio::time::sleep(CHANNEL_LEASE / 3 + DELIVERY_TIME).await;
    tier.hand_over_all();
}

/// Loses the message with this operation that is on its way to a node.
fn lose(tier: &InProcess, wire: usize, operation: Operation) {
    let at = tier.queued(wire).iter().position(|bytes| {
        Message::parse(bytes).is_some_and(|message| message.operation == operation)
    });
    tier.lose(wire, at.expect("such a message"));
}

#[tokio::test(start_paused = true)]
async fn without_a_heartbeat_l1_is_silent_when_the_lease_ends_and_l2_is_asked() {
    let (tier, source) = (InProcess::wired(0), old_then_new(false));
    let (cache, writer) = (node(&source, &tier), node(&source, &tier));
    connect(&tier, &[&cache, &writer]).await;
    cache.get(&1).await.unwrap();
    // The message is on its way, and stays there.
    writer.invalidate(&1).await.unwrap();
    assert!(cache.peek(&1).is_some(), "the cache cannot know of it yet");
    tokio::time::sleep(CHANNEL_LEASE).await;
    assert!(cache.peek(&1).is_none());
    assert_eq!(cache.health().channel, Channel::Unproven);
    assert_eq!(text(&cache.get(&1).await), Some("new"));
    // It arrives after all, with the heartbeats.
    tier.hand_over_all();
    assert_eq!(cache.health().channel, Channel::Proven);
    assert_eq!(text(&cache.get(&1).await), Some("new"));
    validate(&[&cache, &writer], &tier).await;
}

#[tokio::test(start_paused = true)]
async fn heartbeats_that_come_back_keep_l1_answering() {
    let (tier, source) = (InProcess::wired(0), old_then_new(false));
    let cache = node(&source, &tier);
    connect(&tier, &[&cache]).await;
    cache.get(&1).await.unwrap();
    for _ in 0..30 {
        heartbeat(&tier).await;
        assert!(cache.peek(&1).is_some());
    }
    validate(&[&cache], &tier).await;
}

/// A load began when the channel was proven and runs for longer than the lease: a later caller does
/// not join it.
#[tokio::test(start_paused = true)]
async fn a_flight_older_than_the_lease_is_not_joined_while_no_message_comes() {
    let (tier, source) = (InProcess::wired(0), old_then_new(true));
    let (cache, writer) = (node(&source, &tier), node(&source, &tier));
    connect(&tier, &[&cache, &writer]).await;
    let loading = spawn_get(&cache, 1);
    source.loading().await;
    writer.invalidate(&1).await.unwrap();
    tokio::time::sleep(CHANNEL_LEASE).await;
    let late = spawn_get(&cache, 1);
    tokio::time::sleep(DELIVERY_TIME * 2).await;
    assert_eq!(source.calls(), 2);
    source.go.add_permits(2);
    assert_eq!(text(&loading.await.unwrap()), Some("old"));
    assert_eq!(text(&late.await.unwrap()), Some("new"));
    validate(&[&cache, &writer], &tier).await;
}

#[tokio::test(start_paused = true)]
async fn a_message_that_is_lost_shows_as_a_missing_number_and_is_a_gap() {
    let (tier, source) = (InProcess::wired(0), old_then_new(false));
    let (cache, writer) = (node(&source, &tier), node(&source, &tier));
    connect(&tier, &[&cache, &writer]).await;
    writer.invalidate(&9).await.unwrap();
    tier.hand_over_all();
    cache.get(&1).await.unwrap();
    writer.invalidate(&1).await.unwrap();
    lose(&tier, 0, Operation::Invalidate);
    writer.invalidate(&2).await.unwrap();
    tier.hand_over_all();
    assert!(cache.peek(&1).is_some(), "it may come out of order");
    heartbeat(&tier).await;
    heartbeat(&tier).await;
    assert!(cache.peek(&1).is_none());
    assert_eq!(cache.stats().gaps, 1);
    assert_eq!(text(&cache.get(&1).await), Some("new"));
    validate(&[&cache, &writer], &tier).await;
}

#[tokio::test(start_paused = true)]
async fn a_lost_connection_silences_l1_at_once_and_a_new_one_forgets() {
    let (tier, source) = (InProcess::wired(0), old_then_new(false));
    let events = Arc::new(parking_lot::Mutex::new(Vec::new()));
    let recorded = Arc::clone(&events);
    let cache = settings(&source)
        .on_event(move |event| recorded.lock().push(*event))
        .l2(tier.clone())
        .build()
        .unwrap();
    let writer = node(&source, &tier);
    connect(&tier, &[&cache, &writer]).await;
    cache.get(&1).await.unwrap();
    tier.cut(0);
    assert_eq!(cache.health().channel, Channel::Down);
    assert!(cache.peek(&1).is_none());
    writer.invalidate(&1).await.unwrap();
    tier.connect(0);
    assert!(cache.peek(&1).is_none(), "not proven");
    tokio::time::sleep(DELIVERY_TIME).await;
    tier.hand_over_all();
    assert_eq!(cache.health().channel, Channel::Proven);
    assert!(cache.peek(&1).is_none(), "from before");
    assert_eq!(text(&cache.get(&1).await), Some("new"));
    assert_eq!(
        *events.lock(),
        [
            Event::ChannelUp,
            Event::ChannelDown,
            Event::Gap,
            Event::ChannelUp
        ]
    );
    validate(&[&cache, &writer], &tier).await;
}

#[tokio::test(start_paused = true)]
async fn a_channel_that_falls_silent_is_told_once_per_lease() {
    let (tier, source) = (InProcess::wired(0), old_then_new(false));
    let events = Arc::new(parking_lot::Mutex::new(Vec::new()));
    let recorded = Arc::clone(&events);
    let cache = settings(&source)
        .on_event(move |event| recorded.lock().push(*event))
        .l2(tier.clone())
        .build()
        .unwrap();
    connect(&tier, &[&cache]).await;
    tokio::time::sleep(CHANNEL_LEASE + CHANNEL_LEASE / 3 + DELIVERY_TIME).await;
    assert_eq!(*events.lock(), [Event::ChannelUp, Event::ChannelSilent]);
    tokio::time::sleep(CHANNEL_LEASE + CHANNEL_LEASE / 3).await;
    let silent = [Event::ChannelSilent; 2];
    assert_eq!(events.lock()[1..], silent, "it still is");
    tier.hand_over_all();
    heartbeat(&tier).await;
    tokio::time::sleep(CHANNEL_LEASE / 3).await;
    assert_eq!(events.lock()[1..], silent, "it is not any more");
    validate(&[&cache], &tier).await;
}

#[tokio::test(start_paused = true)]
async fn a_tag_takes_its_entries_out_of_both_tiers_of_every_process() {
    let (tier, source) = (InProcess::new(), old_then_new(false));
    let (a, b) = (team_node(&source, &tier), team_node(&source, &tier));
    for cache in [&a, &b] {
        assert_eq!(text(&cache.get(&1).await), Some("old"));
    }
    a.invalidate_tag("team:8").await.unwrap();
    assert!(a.peek(&1).is_some() && b.peek(&1).is_some());
    a.invalidate_tag("team:7").await.unwrap();
    assert!(a.peek(&1).is_none() && b.peek(&1).is_none());
    assert_eq!(raw_kind(&tier, KEY), Some(Kind::Value), "it is not removed");
    for cache in [&b, &a] {
        assert_eq!(text(&cache.get(&1).await), Some("new"));
    }
    assert_eq!(source.calls(), 2);
    validate(&[&a, &b], &tier).await;
}

/// A process that began after the invalidation learns of it from L2.
#[tokio::test(start_paused = true)]
async fn a_process_that_comes_later_asks_for_the_tags_of_an_older_record() {
    let (tier, source) = (InProcess::new(), old_then_new(false));
    let first = team_node(&source, &tier);
    first.get(&1).await.unwrap();
    first.invalidate_tag("all users").await.unwrap();
    let later = team_node(&source, &tier);
    assert_eq!(text(&later.get(&1).await), Some("new"));
    validate(&[&first, &later], &tier).await;
}

/// The message about the tag was lost, and the cache knows that it missed a message: it must ask L2
/// for the watermark of the tag.
#[tokio::test(start_paused = true)]
async fn after_a_gap_the_tags_of_a_record_are_asked_for() {
    let (tier, source) = (InProcess::wired(0), old_then_new(false));
    let (cache, writer) = (team_node(&source, &tier), team_node(&source, &tier));
    connect(&tier, &[&cache, &writer]).await;
    writer.get(&1).await.unwrap();
    writer.invalidate_tag("team:7").await.unwrap();
    lose(&tier, 0, Operation::InvalidateTag);
    cache.engine().on_gap();
    assert_eq!(text(&cache.get(&1).await), Some("new"));
    validate(&[&cache, &writer], &tier).await;
}

/// An invalidation of everything removes the watermarks of tags from L2, so the reply lacks that of
/// this tag.
#[tokio::test(start_paused = true)]
async fn tags_that_are_asked_for_while_everything_is_invalidated_are_dead() {
    let (tier, source) = (InProcess::wired(0), old_then_new(false));
    let (cache, writer) = (team_node(&source, &tier), team_node(&source, &tier));
    connect(&tier, &[&cache, &writer]).await;
    writer.get(&1).await.unwrap();
    cache.engine().on_gap();
    let asking = tier.gate("marks", When::Before);
    let reading = spawn_get(&cache, 1);
    asking.reached().await;
    writer.invalidate_tag("team:7").await.unwrap();
    writer.invalidate_all().await.unwrap();
    asking.open();
    assert_eq!(text(&reading.await.unwrap()), Some("new"));
    validate(&[&cache, &writer], &tier).await;
}

/// A tag does not detach flights, because the tags of a load are known only when it has completed.
#[tokio::test(start_paused = true)]
async fn a_caller_that_joined_a_load_does_not_take_its_value_if_its_tag_was_invalidated() {
    let (tier, source) = (InProcess::new(), old_then_new(true));
    let cache = team_node(&source, &tier);
    let first = spawn_get(&cache, 1);
    source.loading().await;
    cache.invalidate_tag("team:7").await.unwrap();
    let second = spawn_get(&cache, 1);
    settle().await;
    source.go.add_permits(2);
    assert_eq!(text(&first.await.unwrap()), Some("old"));
    assert_eq!(text(&second.await.unwrap()), Some("new"));
    assert_eq!(text(&cache.get(&1).await), Some("new"));
    let other = team_node(&source, &tier);
    assert_eq!(text(&other.get(&1).await), Some("new"));
    validate(&[&cache, &other], &tier).await;
}

#[tokio::test(start_paused = true)]
async fn without_a_shared_tier_a_load_that_crosses_its_tag_is_not_kept() {
    let source = old_then_new(true);
    let cache = team(&source).build().unwrap();
    for all in [false, true] {
        let first = spawn_get(&cache, 1);
        source.loading().await;
        if all {
            cache.invalidate_all().await.unwrap();
        } else {
            cache.invalidate_tag("team:7").await.unwrap();
        }
        source.answer();
        first.await.unwrap().unwrap();
        assert!(cache.peek(&1).is_none(), "all: {all}");
    }
    source.answer();
    cache.get(&1).await.unwrap();
    assert!(cache.peek(&1).is_some());
    validate(&[&cache], &InProcess::new()).await;
}

#[tokio::test(start_paused = true)]
async fn everything_is_dropped_in_both_tiers_of_every_process() {
    let (tier, source) = (InProcess::new(), old_then_new(false));
    let (a, b) = (node(&source, &tier), node(&source, &tier));
    for cache in [&a, &b] {
        assert_eq!(text(&cache.get(&1).await), Some("old"));
    }
    a.invalidate_all().await.unwrap();
    assert!(a.peek(&1).is_none() && b.peek(&1).is_none());
    let later = node(&source, &tier);
    for cache in [&later, &b, &a] {
        assert_eq!(text(&cache.get(&1).await), Some("new"));
    }
    assert_eq!(source.calls(), 2);
    validate(&[&a, &b, &later], &tier).await;
}

#[tokio::test(start_paused = true)]
async fn a_load_that_crosses_an_invalidation_of_everything_is_dead_where_it_is_filled_in() {
    for remote in [false, true] {
        let (tier, source) = (InProcess::new(), old_then_new(true));
        let (cache, writer) = (node(&source, &tier), node(&source, &tier));
        let loading = spawn_get(&cache, 1);
        source.loading().await;
        (if remote { &writer } else { &cache })
            .invalidate_all()
            .await
            .unwrap();
        source.go.add_permits(2);
        assert_eq!(text(&loading.await.unwrap()), Some("old"));
        assert!(cache.peek(&1).is_none(), "remote: {remote}");
        assert_eq!(text(&cache.get(&1).await), Some("new"));
        assert_eq!(text(&writer.get(&1).await), Some("new"));
        validate(&[&cache, &writer], &tier).await;
    }
}

/// A lease from before the invalidation is no longer valid, because the value of its load would be
/// dead.
#[tokio::test(start_paused = true)]
async fn a_lease_from_before_an_invalidation_of_everything_is_taken_over() {
    let (tier, source) = (InProcess::new(), old_then_new(true));
    let (cache, other) = (node(&source, &tier), node(&source, &tier));
    let loading = spawn_get(&cache, 1);
    source.loading().await;
    other.invalidate_all().await.unwrap();
    let asked = Instant::now();
    let next = spawn_get(&other, 1);
    source.loading().await;
    assert!(asked.elapsed() < Duration::from_millis(100));
    source.go.add_permits(2);
    assert_eq!(text(&next.await.unwrap()), Some("new"));
    assert_eq!(text(&loading.await.unwrap()), Some("old"));
    assert_eq!(text(&cache.get(&1).await), Some("new"));
    validate(&[&cache, &other], &tier).await;
}

/// A fail-over can lose watermarks that were acknowledged. A process that knows later ones sends
/// them.
#[tokio::test(start_paused = true)]
async fn watermarks_that_went_back_mean_that_everything_is_invalidated() {
    let (tier, source) = (InProcess::new(), old_then_new(false));
    let cache = node(&source, &tier);
    cache.get(&1).await.unwrap();
    let engine = cache.engine();
    let mut known = engine.watermarks.known().unwrap();
    known.current += 7;
    let look = WatermarkRequest {
        advance: Advance::Nothing,
        known,
        tags: Vec::new(),
        notice: None,
    };
    let watermarks_key = &engine.remote.as_ref().unwrap().watermarks_key;
    let (watermarks, _) = tier.marks(watermarks_key, look).await.unwrap();
    assert_eq!(
        (watermarks.current, watermarks.all),
        (known.current + 1, known.current + 1)
    );
    let later = node(&source, &tier);
    assert_eq!(text(&later.get(&1).await), Some("new"));
    validate(&[&cache, &later], &tier).await;
}

#[tokio::test(start_paused = true)]
async fn whatever_the_number_of_entries_dropping_them_is_one_command() {
    for entries in [1_000, 10_000] {
        let (tier, source) = (InProcess::new(), Database::new(false, [Step::Found("v")]));
        let cache = team_node(&source, &tier);
        for key in 0..entries {
            cache.get(&key).await.unwrap();
        }
        let before = tier.commands();
        cache.invalidate_tag("team:7").await.unwrap();
        assert_eq!(tier.commands(), before + 1, "{entries}");
        assert!((0..entries).all(|key| cache.peek(&key).is_none()));
        cache.invalidate_all().await.unwrap();
        assert_eq!(tier.commands(), before + 2, "{entries}");
        validate(&[&cache], &tier).await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_key_whose_invalidation_is_pending_is_not_read_from_l2() {
    let (tier, source) = (InProcess::new(), old_then_new(false));
    let cache = node(&source, &tier);
    cache.get(&1).await.unwrap();
    // The call and the first two repairs fail.
    for _ in 0..3 {
        tier.fail("invalidate", When::Before, RemoteKind::Unreachable);
    }
    assert!(cache.invalidate(&1).await.is_err());
    settle().await;
    assert_eq!(cache.health().pending_repairs, 1);
    assert_eq!(text(&cache.get(&1).await), Some("new"));
    assert_eq!(raw_kind(&tier, KEY), Some(Kind::Value), "the old one");
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert_eq!(
        (cache.health().pending_repairs, cache.stats().repairs),
        (0, 1)
    );
    assert_eq!(tier.raw(KEY), None);
    validate(&[&cache], &tier).await;
}

#[tokio::test(start_paused = true)]
async fn a_pending_invalidation_of_a_tag_or_of_everything_is_respected_in_both_tiers() {
    for all in [false, true] {
        let (tier, source) = (InProcess::new(), old_then_new(false));
        let cache = team_node(&source, &tier);
        cache.get(&1).await.unwrap();
        for _ in 0..3 {
            tier.fail("marks", When::Before, RemoteKind::Timeout);
        }
        let failed = if all {
            cache.invalidate_all().await
        } else {
            cache.invalidate_tag("team:7").await
        };
        assert!(failed.is_err());
        settle().await;
        assert!(cache.peek(&1).is_none(), "all: {all}");
        assert_eq!(text(&cache.get(&1).await), Some("new"), "all: {all}");
        tokio::time::sleep(Duration::from_secs(1)).await;
        assert_eq!(cache.health().pending_repairs, 0);
        let later = team_node(&source, &tier);
        assert_eq!(text(&later.get(&1).await), Some("new"));
        validate(&[&cache, &later], &tier).await;
    }
}

#[tokio::test(start_paused = true)]
async fn an_expired_entry_is_not_fresh_anywhere_and_stays_in_l2() {
    let (tier, source) = (InProcess::new(), old_then_new(false));
    let (a, b) = (node(&source, &tier), node(&source, &tier));
    for cache in [&a, &b] {
        cache.get(&1).await.unwrap();
    }
    a.expire(&1).await.unwrap();
    assert!(a.peek(&1).is_none() && b.peek(&1).is_none());
    assert_eq!(raw_kind(&tier, KEY), Some(Kind::Value));
    for cache in [&b, &a] {
        assert_eq!(text(&cache.get(&1).await), Some("new"));
    }
    validate(&[&a, &b], &tier).await;
}

#[tokio::test(start_paused = true)]
async fn a_load_that_crosses_an_expiry_is_not_stored() {
    let (tier, source) = (InProcess::new(), old_then_new(true));
    let cache = node(&source, &tier);
    let loading = spawn_get(&cache, 1);
    source.loading().await;
    cache.expire(&1).await.unwrap();
    source.go.add_permits(2);
    assert_eq!(text(&loading.await.unwrap()), Some("old"));
    assert_eq!((tier.raw(KEY), cache.stats().fills), (None, 0));
    assert_eq!(text(&cache.get(&1).await), Some("new"));
    validate(&[&cache], &tier).await;
}

/// An expiry changes the record between its read and the attempt to replace it.
#[tokio::test(start_paused = true)]
async fn a_record_that_was_expired_since_it_was_read_is_another_record() {
    let (tier, source) = (InProcess::new(), old_then_new(false));
    let cache = node(&source, &tier);
    cache.get(&1).await.unwrap();
    cache.expire(&1).await.unwrap();
    let gate = tier.gate("acquire", When::Before);
    let reading = spawn_get(&cache, 1);
    gate.reached().await;
    let read = tier.raw(KEY).unwrap();
    let other = node(&source, &tier);
    other.expire(&1).await.unwrap();
    assert_ne!(tier.raw(KEY), Some(read.clone()));
    let before = tier.commands();
    gate.open();
    assert_eq!(text(&reading.await.unwrap()), Some("new"));
    // The waiting attempt was counted before. It is refused with the new record; a second attempt
    // and a fill follow.
    assert_eq!(tier.commands(), before + 2);
    // The tier itself refuses it too.
    let keys = Keys::of(&bytes::Bytes::from_static(KEY));
    let start = &read[..record::STATED];
    let known = record::Watermarks::default();
    for over in [Over::Useless(start), Over::Entry(start)] {
        let acquired = tier.acquire(&keys, read.to_vec(), 1, over, known).await;
        assert!(matches!(acquired, Ok(Acquired::Record(_))), "{acquired:?}");
    }
    validate(&[&cache, &other], &tier).await;
}

#[tokio::test(start_paused = true)]
async fn after_an_invalidation_nothing_enters_l2_before_the_hold_off_ends() {
    let second = Duration::from_secs(1);
    let (tier, source) = (InProcess::wired(0), old_then_new(false));
    let held_off = || {
        let cache = settings(&source).hold_off(second);
        cache.l2(tier.clone()).build().unwrap()
    };
    let (writer, unaware) = (held_off(), held_off());
    connect(&tier, &[&writer, &unaware]).await;
    writer.invalidate(&1).await.unwrap();
    for cache in [&writer, &unaware] {
        assert!(cache.get(&1).await.unwrap().is_some());
        assert!(cache.peek(&1).is_none(), "with the message or without it");
    }
    assert_eq!(raw_kind(&tier, KEY), Some(Kind::HoldOff));
    // An expiry does not end it.
    writer.expire(&1).await.unwrap();
    assert_eq!(raw_kind(&tier, KEY), Some(Kind::HoldOff));
    tier.hand_over_all();
    tokio::time::sleep(second).await;
    assert_eq!(text(&writer.get(&1).await), Some("new"));
    assert!(writer.peek(&1).is_some());
    assert_eq!(raw_kind(&tier, KEY), Some(Kind::Value));
    validate(&[&writer, &unaware], &tier).await;
}

#[tokio::test(start_paused = true)]
async fn without_a_shared_tier_nothing_enters_l1_before_the_hold_off_ends() {
    let second = Duration::from_secs(1);
    let source = old_then_new(false);
    let cache = settings(&source).hold_off(second).build().unwrap();
    for all in [false, true] {
        cache.get(&1).await.unwrap();
        assert!(cache.peek(&1).is_some());
        if all {
            cache.invalidate_all().await.unwrap();
        } else {
            cache.invalidate(&1).await.unwrap();
        }
        cache.get(&1).await.unwrap();
        assert!(cache.peek(&1).is_none(), "all: {all}");
        tokio::time::sleep(second).await;
        cache.get(&1).await.unwrap();
        assert!(cache.peek(&1).is_some());
    }
    validate(&[&cache], &InProcess::new()).await;
}

/// A hold-off applies to values. An error is held during it as always.
#[tokio::test(start_paused = true)]
async fn an_error_is_held_during_a_hold_off() {
    let source = Database::new(false, [Step::Fail("down")]);
    let cache = settings(&source).hold_off(Duration::from_secs(1));
    let cache = cache.build().unwrap();
    cache.invalidate(&1).await.unwrap();
    for _ in 0..3 {
        assert!(matches!(cache.get(&1).await, Err(Error::Load(_))));
    }
    assert_eq!((source.calls(), cache.stats().errors_held), (1, 2));
    validate(&[&cache], &InProcess::new()).await;
}

#[tokio::test(start_paused = true)]
async fn an_insert_of_an_older_version_does_not_replace_a_newer_one() {
    let (tier, source) = (InProcess::new(), old_then_new(false));
    let (a, b) = (node(&source, &tier), node(&source, &tier));
    let row = |value: &str, version| Loaded::found(value.to_owned()).version(version);
    a.insert(1, row("2", 2)).await.unwrap();
    let late = b.insert(1, row("1", 1)).await;
    assert!(late.is_err_and(|error| error.is_superseded()));
    for cache in [&a, &b] {
        assert_eq!(text(&cache.get(&1).await), Some("2"));
    }
    assert_eq!(b.stats().inserts_superseded, 1);
    for (value, version) in [("2 again", 2), ("256", 256), ("no version", 0)] {
        b.insert(1, row(value, version)).await.unwrap();
        assert_eq!(text(&a.get(&1).await), Some(value));
    }
    assert_eq!(source.calls(), 0);
    validate(&[&a, &b], &tier).await;
}

#[tokio::test(start_paused = true)]
async fn everywhere_means_after_the_lease_and_the_degraded_ttl() {
    let (tier, source) = (InProcess::new(), old_then_new(false));
    let cache = node(&source, &tier);
    cache.get(&1).await.unwrap();
    let begun = Instant::now();
    cache.invalidate_everywhere(&1).await.unwrap();
    assert!(begun.elapsed() >= Duration::from_secs(7));
    tier.fail("invalidate", When::Before, RemoteKind::Refused);
    let begun = Instant::now();
    assert!(cache.invalidate_everywhere(&1).await.is_err());
    assert!(begun.elapsed() < Duration::from_secs(1), "without waiting");
    validate(&[&cache], &tier).await;
}

/// L2 answers and the bus does not: every read asks for the watermarks too.
#[tokio::test(start_paused = true)]
async fn while_the_channel_is_unproven_the_watermarks_are_asked_for() {
    let (tier, source) = (InProcess::wired(0), old_then_new(false));
    let (cache, writer) = (node(&source, &tier), node(&source, &tier));
    connect(&tier, &[&cache, &writer]).await;
    writer.get(&1).await.unwrap();
    tier.cut(0);
    writer.invalidate_all().await.unwrap();
    assert_eq!(text(&cache.get(&1).await), Some("new"));
    validate(&[&cache, &writer], &tier).await;
}

/// Before the first heartbeat no watermark is known, and a record without one would be dead.
#[tokio::test(start_paused = true)]
async fn an_insert_before_the_channel_is_proven_is_found_by_others() {
    let (tier, source) = (InProcess::wired(0), old_then_new(false));
    let (a, b) = (node(&source, &tier), node(&source, &tier));
    a.insert(1, "inserted".to_owned()).await.unwrap();
    assert_eq!(text(&b.get(&1).await), Some("inserted"));
    assert_eq!(source.calls(), 0);
    validate(&[&a, &b], &tier).await;
}
