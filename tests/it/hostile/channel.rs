//! The channel: anything that can be published, by whoever can.

use tidegate::{Channel, Source};

use super::{Fixture, all_is_well, source};
use crate::support::backend::WATERMARKS_KEY;
use crate::support::eventually;
use crate::support::node::value;
use crate::support::server::{Raw, Reply};

const CHANNEL: &[u8] = b"tidegate:users::bus";
const INVALIDATE_ALL: u8 = 6;
const INVALIDATE_TAG: u8 = 7;

fn publish(raw: &mut Raw, message: &[u8]) {
    let heard = raw.send(&[b"PUBLISH", CHANNEL, message]);
    assert!(matches!(heard, Reply::Number(1..)), "nobody listens");
}

fn begun(operation: u8, origin: u8, number: u64) -> Vec<u8> {
    let mut message = vec![1, operation];
    message.extend_from_slice(&[origin; 16]);
    message.extend_from_slice(&number.to_le_bytes());
    message
}

fn about_key(operation: u8, number: u64, key: &[u8]) -> Vec<u8> {
    let mut message = begun(operation, 9, number);
    let len = u32::try_from(key.len()).expect("a short key");
    message.extend_from_slice(&len.to_le_bytes());
    message.extend_from_slice(key);
    message
}

/// Tag, era, mark, mark of the last invalidation of everything.
fn about_marks(operation: u8, origin: u8, number: u64, marks: [u64; 4]) -> Vec<u8> {
    let mut message = begun(operation, origin, number);
    message.extend(marks.iter().flat_map(|number| number.to_le_bytes()));
    message
}

/// The marks as Redis has them.
fn marks(raw: &mut Raw) -> [u64; 3] {
    let held = raw.get(WATERMARKS_KEY).expect("the marks");
    let held = String::from_utf8(held).expect("text");
    let mut numbers = held
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
        push("nothing behind it", begun(operation, 9, 1));
        push("a key", about_key(operation, 2, b"1"));
        push("no key", about_key(operation, 3, b""));
        push("a key of any bytes", about_key(operation, 3, &[0xff; 300]));
        push("the last number", about_key(operation, u64::MAX, b"1"));
        push(
            "the last number but one",
            about_key(operation, u64::MAX - 1, b"1"),
        );
        push("a number from before", about_key(operation, 0, b"1"));
        let mut lies = about_key(operation, 4, b"1");
        lies[26..30].copy_from_slice(&u32::MAX.to_le_bytes());
        push("a length that is not there", lies);
        let many = about_key(operation, 5, b"1")[26..].repeat(10_000);
        push("many keys", [begun(operation, 9, 5), many].concat());
        for marks in [[0; 4], [u64::MAX; 4], [1, 2, 3, 4], [1, 2, u64::MAX, 0]] {
            let message = about_marks(operation, 9, 6, marks);
            push(&format!("marks {marks:?}"), message);
        }
    }
    all
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_that_is_published_makes_anything_stale_or_ends_the_listening() {
    let mut fixture = Fixture::new();
    fixture.db.tag(1, &["team"]);
    let (a, b) = (fixture.node().await, fixture.node().await);
    all_is_well(&fixture.db, &a, &b, "the beginning").await;
    for (what, message) in garbage() {
        publish(&mut fixture.raw, &message);
        all_is_well(&fixture.db, &a, &b, &what).await;
    }
    for node in [&a, &b] {
        assert_eq!(node.health().channel, Channel::Proven);
        assert_eq!(node.stats().l2_failures, 0);
        node.check().await;
    }
}

/// As from the inside: with the era that is current.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn marks_that_were_never_reached_are_overcome() {
    let mut fixture = Fixture::new();
    fixture.db.tag(1, &["team"]);
    let (a, b) = (fixture.node().await, fixture.node().await);
    all_is_well(&fixture.db, &a, &b, "the beginning").await;
    let (top, mut number) = (1 << 53, 0);
    for far in [1_000, top / 2 - 1, top / 2, top - 1, top, top + 1, u64::MAX] {
        for operation in [INVALIDATE_ALL, INVALIDATE_TAG] {
            let era = marks(&mut fixture.raw)[0];
            number += 1;
            let message = about_marks(operation, 9, number, [7, era, far, far]);
            publish(&mut fixture.raw, &message);
            all_is_well(&fixture.db, &a, &b, &format!("{operation} at {far}")).await;
        }
    }
    let [_, mark, all] = marks(&mut fixture.raw);
    assert!(all <= mark && mark < top, "{mark}, {all}");
    // And the key itself.
    let forged = |rest: &str| format!("{} {rest}", 77);
    for held in [
        forged("1 1 1 1"),
        forged("9007199254740992 0 0 0"),
        forged("99999999999999999999 0 0 0"),
        "99999999999999999999 1 0 0 0".to_owned(),
        "nonsense".to_owned(),
    ] {
        fixture.leave(WATERMARKS_KEY, held.as_bytes());
        all_is_well(&fixture.db, &a, &b, &held).await;
    }
    // Those of an era that is over: nobody goes deaf on it.
    let over = fixture.raw.get(WATERMARKS_KEY).expect("the marks");
    fixture.raw.ask(&format!("DEL {WATERMARKS_KEY}"));
    all_is_well(&fixture.db, &a, &b, "their loss").await;
    fixture.leave(WATERMARKS_KEY, &over);
    all_is_well(&fixture.db, &a, &b, "their return").await;
    fixture.raw.ask(&format!("DEL {WATERMARKS_KEY}"));
    fixture.raw.ask(&format!("HSET {WATERMARKS_KEY} a b"));
    all_is_well(&fixture.db, &a, &b, "a hash").await;
    for node in [&a, &b] {
        node.check().await;
    }
}

/// A thousand times "everything is invalid".
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_flood_of_invalidations_costs_reads_and_loads_and_nothing_else() {
    let mut fixture = Fixture::new();
    let a = fixture.node().await;
    a.get(1).await.expect("a look-up");
    let [era, mark, _] = marks(&mut fixture.raw);
    for number in 0..1_000 {
        let forged = mark + 1 + number;
        let message = about_marks(INVALIDATE_ALL, 9, number, [0, era, forged, forged]);
        publish(&mut fixture.raw, &message);
        assert_eq!(value(a.get(1).await), "row 1");
    }
    // Redis takes for lost what it has not counted so far itself.
    eventually("Redis has followed", async || {
        marks(&mut fixture.raw)[1] > mark + 1_000
    })
    .await;
    eventually("L1 is used", async || source(&a, 1).await == Source::L1).await;
    let loads = fixture.db.loads();
    assert!(loads <= 1_002, "{loads} loads");
    // Of another era: asked about, and no load at all.
    for number in 1_000..1_100 {
        let message = about_marks(INVALIDATE_ALL, 9, number, [0, era + number, 5, 5]);
        publish(&mut fixture.raw, &message);
        assert_eq!(value(a.get(1).await), "row 1");
    }
    assert_eq!(fixture.db.loads(), loads);
    a.check().await;
}
