//! The invalidation bus on a real server: lost and silent connections, and gaps in sequence
//! numbers.

use std::time::Duration;

use tidegate::{Cache, CacheBuilder, Channel, Event, Redis, Source};
use tokio::time::Instant;

use crate::support::backend::users;
use crate::support::events::Events;
use crate::support::eventually;
use crate::support::loader::Db;
use crate::support::node::{Node, answer, begin, value};
use crate::support::proxy::{Proxy, ProxyMode};
use crate::support::server::{Raw, Reply, Server, is_value, long_timeout_builder};

const LEASE: Duration = Duration::from_millis(600);
/// What a busy machine may add to any bound.
const SLACK: Duration = Duration::from_secs(2);
const CHANNEL: &[u8] = b"tidegate:users::bus";

const INVALIDATE: u8 = 1;
const INSERT: u8 = 2;
const EXPIRE: u8 = 4;

fn build(
    db: &Db,
    redis: Redis,
    settings: impl FnOnce(CacheBuilder<Db>) -> CacheBuilder<Db>,
) -> Node {
    let builder = Cache::builder("users", db.clone())
        .ttl_jitter(0.0)
        .channel_lease(LEASE)
        .degraded_l1_ttl(Duration::ZERO)
        .l2(redis);
    Node::new(settings(builder).build().expect("a cache"))
}

async fn node(db: &Db, server: &Server) -> Node {
    let redis = server
        .long_timeout_builder()
        .connect()
        .await
        .expect("connect");
    build(db, redis, |builder| builder)
}

async fn source(node: &Node, key: u64) -> Source {
    let entry = node.get_entry(key).await.expect("a look-up");
    entry.expect("an entry").source()
}

/// Puts a key into L1 and waits until L1 answers it.
async fn warm(node: &Node, key: u64) {
    eventually("L1 is used", async || {
        node.get(key).await.expect("a look-up");
        source(node, key).await == Source::L1
    })
    .await;
}

/// A message as another process would publish it.
fn message(operation: u8, origin: u8, number: u64, key: &[u8]) -> Vec<u8> {
    let mut message = vec![1, operation];
    message.extend_from_slice(&[origin; 16]);
    message.extend_from_slice(&number.to_le_bytes());
    let len = u32::try_from(key.len()).expect("a short key");
    message.extend_from_slice(&len.to_le_bytes());
    message.extend_from_slice(key);
    message
}

fn publish(raw: &mut Raw, message: &[u8]) {
    let subscribers = raw.send(&[b"PUBLISH", CHANNEL, message]);
    assert!(
        matches!(subscribers, Reply::Number(1..)),
        "there is no subscriber"
    );
}

/// Publishes messages in one script, so that no other message comes between them.
fn publish_together(raw: &mut Raw, messages: &[Vec<u8>]) {
    let script = b"for at = 2, #ARGV do redis.call('PUBLISH', ARGV[1], ARGV[at]) end return 1";
    let mut args: Vec<&[u8]> = vec![b"EVAL", script, b"0", CHANNEL];
    args.extend(messages.iter().map(Vec::as_slice));
    raw.send(&args);
}

/// Waits for this many heartbeats, on a server that runs no other scripts meanwhile.
async fn heartbeats(raw: &mut Raw, how_many: u64) {
    let before = raw.calls("evalsha");
    eventually("heartbeats continue", async || {
        raw.calls("evalsha") >= before + how_many
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn after_a_lost_subscription_an_entry_is_read_once_for_all_its_callers() {
    let (server, db) = (Server::start(), Db::default());
    let redis = server
        .long_timeout_builder()
        .connect()
        .await
        .expect("connect");
    let (a, mut raw) = (
        // A flight older than the channel lease is not joined, so the lease must outlast the stop
        // of the server.
        build(&db, redis, |builder| {
            builder.channel_lease(Duration::from_secs(10))
        }),
        server.raw(),
    );
    warm(&a, 1).await;
    let mut monitor = server.monitor();
    raw.ask("CLIENT KILL TYPE pubsub");
    eventually("the loss is noticed", async || a.peek(&1).is_none()).await;
    eventually("it listens again", async || {
        a.health().channel == Channel::Proven
    })
    .await;
    assert!(a.peek(&1).is_none(), "read before, and answered from L1");
    monitor.command_names();
    let before = a.stats();
    // The server stands still until all callers have asked, so that no caller is answered before.
    server.stop();
    let callers = a.callers(50, 1).await;
    server.resume();
    for caller in callers {
        assert_eq!(value(answer(caller).await), "row 1");
    }
    let stats = a.stats().since(&before);
    assert_eq!(
        (stats.l2_hits, stats.coalesced, stats.loads),
        (50, 49, 0),
        "revalidated, together"
    );
    let reads = monitor
        .command_names()
        .iter()
        .filter(|name| *name == "GET")
        .count();
    assert_eq!(reads, 1);
    assert_eq!(db.loads(), 1);
    a.check().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_missing_sequence_number_makes_every_entry_be_revalidated() {
    let (server, db) = (Server::start(), Db::default());
    let events = Events::default();
    let redis = server
        .long_timeout_builder()
        .connect()
        .await
        .expect("connect");
    let (a, mut raw) = (
        build(&db, redis, |builder| builder.on_event(events.callback())),
        server.raw(),
    );
    for key in 1..=20 {
        warm(&a, key).await;
    }
    for number in [5, 6] {
        publish(&mut raw, &message(INVALIDATE, 9, number, b"999"));
    }
    eventually("they have arrived", async || {
        a.stats().remote_invalidations == 2
    })
    .await;
    let begun = Instant::now();
    publish(&mut raw, &message(INVALIDATE, 9, 8, b"999"));
    eventually("the gap is noticed", async || a.stats().gaps == 1).await;
    assert!(
        begun.elapsed() < LEASE + SLACK,
        "after {:?}",
        begun.elapsed()
    );
    assert_eq!((a.health().gaps, events.count(Event::Gap)), (1, 1));
    let loads = db.loads();
    for key in 1..=20 {
        assert_eq!(source(&a, key).await, Source::L2, "revalidated");
    }
    assert_eq!(db.loads(), loads);
    for key in 1..=20 {
        assert_eq!(source(&a, key).await, Source::L1);
    }
    // One gap, one event: the sequence goes on from the new number.
    publish(&mut raw, &message(INVALIDATE, 9, 9, b"999"));
    heartbeats(&mut raw, 6).await;
    assert_eq!((a.stats().gaps, events.count(Event::Gap)), (1, 1));
    assert_eq!(source(&a, 1).await, Source::L1);
    a.check().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sequence_numbers_that_repeat_or_arrive_out_of_order_change_nothing() {
    let (server, db) = (Server::start(), Db::default());
    let (a, mut raw) = (node(&db, &server).await, server.raw());
    warm(&a, 1).await;
    let order = [5, 5, 8, 6, 8, 7, 6, 5, 10, 9, 9];
    let messages: Vec<Vec<u8>> = order
        .into_iter()
        .zip([INVALIDATE, INSERT, EXPIRE].into_iter().cycle())
        .map(|(number, operation)| message(operation, 9, number, b"999"))
        .collect();
    publish_together(&mut raw, &messages);
    // The numbers of each origin are counted separately.
    for number in [70, 71, 70] {
        publish(&mut raw, &message(INVALIDATE, 8, number, b"999"));
    }
    eventually("they have arrived", async || {
        a.stats().remote_invalidations >= 8
    })
    .await;
    heartbeats(&mut raw, 6).await;
    assert_eq!(a.stats().remote_invalidations, 8, "each counts once");
    assert_eq!(a.stats().gaps, 0);
    assert_eq!(source(&a, 1).await, Source::L1, "it was left alone");
    // A message that arrives twice is applied once.
    publish(&mut raw, &message(EXPIRE, 9, 11, b"1"));
    eventually("it was dropped", async || a.peek(&1).is_none()).await;
    assert_eq!(source(&a, 1).await, Source::L2);
    publish(&mut raw, &message(EXPIRE, 9, 11, b"1"));
    heartbeats(&mut raw, 2).await;
    assert_eq!(source(&a, 1).await, Source::L1);
    assert_eq!((a.stats().gaps, db.loads()), (0, 1));
    a.check().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_message_that_cannot_be_parsed_is_a_gap() {
    let (server, db) = (Server::start(), Db::default());
    let (a, mut raw) = (node(&db, &server).await, server.raw());
    for (before, text) in [b"".as_slice(), b"hello", &message(99, 9, 1, b"1")]
        .into_iter()
        .enumerate()
    {
        warm(&a, 1).await;
        publish(&mut raw, text);
        eventually("it is noticed", async || {
            a.stats().gaps == before as u64 + 1
        })
        .await;
        assert_eq!(source(&a, 1).await, Source::L2);
    }
    assert_eq!(db.loads(), 1);
    a.check().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn events_tell_when_the_channel_goes_down_and_up() {
    let (server, db, events) = (Server::start(), Db::default(), Events::default());
    let redis = server
        .long_timeout_builder()
        .connect()
        .await
        .expect("connect");
    let (a, mut raw) = (
        build(&db, redis, |builder| builder.on_event(events.callback())),
        server.raw(),
    );
    warm(&a, 1).await;
    assert_eq!(events.all(), [Event::ChannelUp], "at first: no gap");
    let health = a.health();
    assert_eq!(
        (health.channel, health.gaps, health.pending_repairs),
        (Channel::Proven, 0, 0)
    );
    assert!(health.l2_reachable && health.last_message.is_some());
    raw.ask("CLIENT KILL TYPE pubsub");
    eventually("it has listened anew", async || {
        events.count(Event::ChannelUp) == 2
    })
    .await;
    assert_eq!(
        events.all(),
        [
            Event::ChannelUp,
            Event::ChannelDown,
            Event::Gap,
            Event::ChannelUp
        ]
    );
    assert_eq!(a.stats().gaps, 1);
    warm(&a, 1).await;
    a.check().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_event_callback_that_panics_harms_no_look_up() {
    let (server, db) = (Server::start(), Db::default());
    let redis = server
        .long_timeout_builder()
        .connect()
        .await
        .expect("connect");
    let a = build(&db, redis, |builder| {
        builder.on_event(|event| panic!("a panic that the test asked for: {event:?}"))
    });
    warm(&a, 1).await;
    server.raw().ask("CLIENT KILL TYPE pubsub");
    eventually("it has listened anew", async || a.stats().gaps == 1).await;
    warm(&a, 1).await;
    a.check().await;
}

/// Commands get through, but the connection of the subscription is dead and reports no error.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_dead_subscription_on_a_connection_that_stands_is_noticed_within_the_lease_and_replaced()
{
    let (server, db, events) = (Server::start(), Db::default(), Events::default());
    let proxy = Proxy::to(server.port()).await;
    let redis = long_timeout_builder(proxy.port())
        .connect()
        .await
        .expect("connect");
    let a = build(&db, redis, |builder| builder.on_event(events.callback()));
    let b = node(&db, &server).await;
    for key in [1, 2] {
        db.write(key, "old");
        warm(&a, key).await;
    }
    proxy.set(ProxyMode::DeadSubscriptions).await;
    db.write(1, "new");
    b.invalidate(&1).await.expect("an invalidation");
    let invalidated = Instant::now();
    let (mut last_old, mut from_l2) = (None, false);
    eventually("the connection is replaced", async || {
        let asked = Instant::now();
        let entry = a.get_entry(1).await.expect("a look-up").expect("an entry");
        if entry.value().as_str() == "old" {
            assert_eq!(entry.source(), Source::L1, "only L1 can be wrong");
            last_old = Some(asked);
        }
        // L1 holds key 2 as well and does not answer it either.
        from_l2 |= source(&a, 2).await == Source::L2;
        events.count(Event::ChannelUp) == 2
    })
    .await;
    assert!(
        last_old.is_none_or(|asked| asked < invalidated + LEASE),
        "answered {:?} after the invalidation",
        last_old.map(|asked| asked - invalidated)
    );
    assert!(from_l2, "L1 was used all the time");
    let all = events.all();
    assert!(all.contains(&Event::ChannelSilent), "{all:?}");
    assert!(all.contains(&Event::Gap), "{all:?}");
    // The connection recovers without any help.
    warm(&a, 1).await;
    assert_eq!(value(a.get(1).await), "new");
    db.write(1, "newer");
    b.invalidate(&1).await.expect("an invalidation");
    eventually("the change has arrived", async || a.peek(&1).is_none()).await;
    assert_eq!(value(a.get(1).await), "newer");
    for node in [&a, &b] {
        node.check().await;
    }
}

/// The whole server stands still: no heartbeat and no command is answered.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_stands_still_ends_the_use_of_l1_within_the_lease() {
    let (server, db) = (Server::start(), Db::default());
    let redis = Redis::builder(&server.url())
        .timeout(Duration::from_millis(100))
        .connect()
        .await
        .expect("connect");
    let a = build(&db, redis, |builder| builder);
    warm(&a, 1).await;
    server.stop();
    let stopped = Instant::now();
    let mut last = None;
    eventually("L1 is not used", async || {
        let asked = Instant::now();
        let hit = a.peek(&1).is_some();
        if hit {
            last = Some(asked);
        }
        !hit
    })
    .await;
    assert!(last.is_none_or(|asked| asked < stopped + LEASE));
    // Without a grace period each look-up asks the source.
    let loads = db.loads();
    for more in 1..=3 {
        assert_eq!(value(a.get(1).await), "row 1");
        assert!(a.peek(&1).is_none());
        assert_eq!(db.loads(), loads + more);
    }
    server.resume();
    warm(&a, 1).await;
    a.check().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn l1_answers_for_the_grace_period_when_the_server_cannot_be_reached() {
    let (mut server, db) = (Server::start(), Db::default());
    let grace = Duration::from_secs(2);
    let redis = Redis::builder(&server.url())
        .timeout(Duration::from_millis(100))
        .connect()
        .await
        .expect("connect");
    let a = build(&db, redis, |builder| builder.degraded_l1_ttl(grace));
    warm(&a, 1).await;
    server.kill();
    let killed = Instant::now();
    eventually("it has noticed", async || {
        // The look-up of another key finds out that the server is unreachable.
        a.get(2).await.expect("a look-up");
        a.health().channel == Channel::Down && !a.health().l2_reachable
    })
    .await;
    if killed.elapsed() < grace / 2 {
        assert_eq!(source(&a, 1).await, Source::L1);
    }
    let mut last = killed;
    eventually("the grace is over", async || {
        let asked = Instant::now();
        let hit = a.peek(&1).is_some();
        if hit {
            last = asked;
        }
        !hit
    })
    .await;
    assert!(last < killed + LEASE + grace, "{:?}", last - killed);
    a.check().await;
}

/// The state of an entry is the 16 bytes after the first 20.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_expiry_sets_the_state_of_the_record_and_keeps_its_ttl() {
    let (server, db) = (Server::start(), Db::default());
    let (a, mut raw) = (node(&db, &server).await, server.raw());
    a.get(1).await.expect("a load");
    let before = raw.get(&users(1)).expect("a record");
    assert!(is_value(&before) && before[20..36] == [0; 16]);
    let ttl = raw.pttl(&users(1));
    a.expire(&1).await.expect("an expiry");
    let after = raw.get(&users(1)).expect("the record is kept");
    assert_eq!(
        (&after[..20], &after[36..]),
        (&before[..20], &before[36..]),
        "the value stays as it was"
    );
    assert!(is_value(&after) && after[20..36] != [0; 16]);
    let left = raw.pttl(&users(1));
    assert!(left > 0 && left <= ttl, "{left} of {ttl} ms");
    a.expire(&1).await.expect("an expiry");
    let again = raw.get(&users(1)).expect("the record is kept");
    assert_ne!(after[20..36], again[20..36], "each has its own mark");
    // The next look-up replaces the record.
    assert_eq!(source(&a, 1).await, Source::Loader);
    let replaced = raw.get(&users(1)).expect("a record");
    assert!(is_value(&replaced) && replaced[20..36] == [0; 16]);
    assert_ne!(before[4..20], replaced[4..20], "a version of its own");
    a.invalidate(&1).await.expect("an invalidation");
    assert_eq!(raw.get(&users(1)), None);
    a.check().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_invalidation_that_failed_is_not_waited_for() {
    let (server, db) = (Server::start(), Db::default());
    let proxy = Proxy::to(server.port()).await;
    let redis = long_timeout_builder(proxy.port())
        .timeout(Duration::from_millis(300))
        .connect()
        .await
        .expect("connect");
    let minute = Duration::from_secs(60);
    let a = build(&db, redis, |builder| builder.degraded_l1_ttl(minute));
    warm(&a, 1).await;
    proxy.set(ProxyMode::Refuse).await;
    let waits = {
        let a = a.clone();
        begin(async move { a.invalidate_everywhere(&1).await }).await
    };
    let failed = answer(waits).await.expect_err("no server");
    assert!(failed.is_unreachable() || failed.is_timeout(), "{failed:?}");
    a.check().await;
}
