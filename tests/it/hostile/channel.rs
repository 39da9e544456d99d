//! The channel: messages that a client with the right to publish may forge.

use tidegate::{Channel, Source};

use super::{Fixture, changes_reach_both, source};
use crate::support::backend::WATERMARKS_KEY;
use crate::support::eventually;
use crate::support::node::value;
use crate::support::server::{Raw, Reply};

const CHANNEL: &[u8] = b"tidegate:users::bus";
const INVALIDATE_ALL: u8 = 6;
const INVALIDATE_TAG: u8 = 7;

fn publish(raw: &mut Raw, message: &[u8]) {
    let subscribers = raw.send(&[b"PUBLISH", CHANNEL, message]);
    assert!(
        matches!(subscribers, Reply::Number(1..)),
        "there is no subscriber"
    );
}

fn header(operation: u8, origin: u8, number: u64) -> Vec<u8> {
    let mut message = vec![1, operation];
    message.extend_from_slice(&[origin; 16]);
    message.extend_from_slice(&number.to_le_bytes());
    message
}

fn key_message(operation: u8, number: u64, key: &[u8]) -> Vec<u8> {
    let mut message = header(operation, 9, number);
    let len = u32::try_from(key.len()).expect("a short key");
    message.extend_from_slice(&len.to_le_bytes());
    message.extend_from_slice(key);
    message
}

/// Four numbers: the tag, the incarnation, the watermark, and the watermark of the last
/// invalidation of everything.
fn watermark_message(operation: u8, origin: u8, number: u64, watermarks: [u64; 4]) -> Vec<u8> {
    let mut message = header(operation, origin, number);
    message.extend(watermarks.iter().flat_map(|number| number.to_le_bytes()));
    message
}

/// The watermarks as Redis holds them.
fn watermarks(raw: &mut Raw) -> [u64; 3] {
    let value_of_key = raw.get(WATERMARKS_KEY).expect("the watermarks");
    let value_of_key = String::from_utf8(value_of_key).expect("text");
    let mut numbers = value_of_key
        .split(' ')
        .map(|number| number.parse().expect("a number"));
    std::array::from_fn(|_| numbers.next().expect("a number"))
}

fn garbage() -> Vec<(String, Vec<u8>)> {
    let mut all: Vec<(String, Vec<u8>)> = vec![
        ("nothing".to_owned(), Vec::new()),
        ("a text".to_owned(), b"hello".to_vec()),
        ("a megabyte".to_owned(), vec![1; 1 << 20]),
    ];
    for operation in 0..=8 {
        let mut push = |what: &str, message| all.push((format!("{operation}: {what}"), message));
        push("nothing behind it", header(operation, 9, 1));
        push("a key", key_message(operation, 2, b"1"));
        push("no key", key_message(operation, 3, b""));
        push(
            "a key of any bytes",
            key_message(operation, 3, &[0xff; 300]),
        );
        push("the last number", key_message(operation, u64::MAX, b"1"));
        push(
            "the last number but one",
            key_message(operation, u64::MAX - 1, b"1"),
        );
        push("a number from before", key_message(operation, 0, b"1"));
        let mut wrong_length = key_message(operation, 4, b"1");
        wrong_length[26..30].copy_from_slice(&u32::MAX.to_le_bytes());
        push("a length that is not there", wrong_length);
        let many = key_message(operation, 5, b"1")[26..].repeat(10_000);
        push("many keys", [header(operation, 9, 5), many].concat());
        for watermarks in [[0; 4], [u64::MAX; 4], [1, 2, 3, 4], [1, 2, u64::MAX, 0]] {
            let message = watermark_message(operation, 9, 6, watermarks);
            push(&format!("watermarks {watermarks:?}"), message);
        }
    }
    all
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_published_message_makes_an_entry_stale_or_ends_the_subscription() {
    let mut fixture = Fixture::new();
    fixture.db.tag(1, &["team"]);
    let (a, b) = (fixture.node().await, fixture.node().await);
    changes_reach_both(&fixture.db, &a, &b, "the beginning").await;
    for (what, message) in garbage() {
        publish(&mut fixture.raw, &message);
        changes_reach_both(&fixture.db, &a, &b, &what).await;
    }
    for node in [&a, &b] {
        assert_eq!(node.health().channel, Channel::Proven);
        assert_eq!(node.stats().l2_failures, 0);
        node.check().await;
    }
}

/// As a member of the fleet could publish them: with the current incarnation.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn watermarks_that_were_never_reached_are_overcome() {
    let mut fixture = Fixture::new();
    fixture.db.tag(1, &["team"]);
    let (a, b) = (fixture.node().await, fixture.node().await);
    changes_reach_both(&fixture.db, &a, &b, "the beginning").await;
    let (top, mut number) = (1 << 53, 0);
    for far in [1_000, top / 2 - 1, top / 2, top - 1, top, top + 1, u64::MAX] {
        for operation in [INVALIDATE_ALL, INVALIDATE_TAG] {
            let incarnation = watermarks(&mut fixture.raw)[0];
            number += 1;
            let message = watermark_message(operation, 9, number, [7, incarnation, far, far]);
            publish(&mut fixture.raw, &message);
            changes_reach_both(&fixture.db, &a, &b, &format!("{operation} at {far}")).await;
        }
    }
    let [_, mark, all] = watermarks(&mut fixture.raw);
    assert!(all <= mark && mark < top, "{mark}, {all}");
    // The same for the value of the key.
    let forged = |rest: &str| format!("{} {rest}", 77);
    for value_of_key in [
        forged("1 1 1 1"),
        forged("9007199254740992 0 0 0"),
        forged("99999999999999999999 0 0 0"),
        "99999999999999999999 1 0 0 0".to_owned(),
        "nonsense".to_owned(),
    ] {
        fixture.set_without_expiry(WATERMARKS_KEY, value_of_key.as_bytes());
        changes_reach_both(&fixture.db, &a, &b, &value_of_key).await;
    }
    // Watermarks of an earlier incarnation must not stop a process from hearing later changes.
    let over = fixture.raw.get(WATERMARKS_KEY).expect("the watermarks");
    fixture.raw.ask(&format!("DEL {WATERMARKS_KEY}"));
    changes_reach_both(&fixture.db, &a, &b, "their loss").await;
    fixture.set_without_expiry(WATERMARKS_KEY, &over);
    changes_reach_both(&fixture.db, &a, &b, "their return").await;
    fixture.raw.ask(&format!("DEL {WATERMARKS_KEY}"));
    fixture.raw.ask(&format!("HSET {WATERMARKS_KEY} a b"));
    changes_reach_both(&fixture.db, &a, &b, "a hash").await;
    for node in [&a, &b] {
        node.check().await;
    }
}

/// A thousand forged invalidations of everything.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_flood_of_invalidations_costs_reads_and_loads_and_nothing_else() {
    let mut fixture = Fixture::new();
    let a = fixture.node().await;
    a.get(1).await.expect("a look-up");
    let [incarnation, mark, _] = watermarks(&mut fixture.raw);
    for number in 0..1_000 {
        let forged = mark + 1 + number;
        let message =
            watermark_message(INVALIDATE_ALL, 9, number, [0, incarnation, forged, forged]);
        publish(&mut fixture.raw, &message);
        assert_eq!(value(a.get(1).await), "row 1");
    }
    // Redis treats a watermark that it has not reached itself as lost watermarks, and follows it.
    eventually("Redis has followed", async || {
        watermarks(&mut fixture.raw)[1] > mark + 1_000
    })
    .await;
    eventually("L1 is used", async || source(&a, 1).await == Source::L1).await;
    let loads = fixture.db.loads();
    assert!(loads <= 1_002, "{loads} loads");
    // Messages of another incarnation are checked with the server and cause no load.
    for number in 1_000..1_100 {
        let message = watermark_message(INVALIDATE_ALL, 9, number, [0, incarnation + number, 5, 5]);
        publish(&mut fixture.raw, &message);
        assert_eq!(value(a.get(1).await), "row 1");
    }
    assert_eq!(fixture.db.loads(), loads);
    a.check().await;
}
