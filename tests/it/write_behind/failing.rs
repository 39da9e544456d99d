//! Sinks that fail, and entries that cannot be read.

use std::time::{Duration, Instant};

use tidegate::Json;
use tidegate::write_behind::{Event, WriteBehind, WriteError};

use super::{
    Events, STREAM, Stock, applied, connect, unapplied, with_short_times, worker, write, writer,
};
use crate::support::eventually;
use crate::support::server::Server;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_write_that_fails_is_tried_alone_then_dead_lettered_and_can_be_driven_again() {
    let server = Server::start();
    let stock = writer(&server).await;
    let bad = write(&stock, 1, "bad").await;
    write(&stock, 2, "good").await;
    write(&stock, 1, "later").await;
    let events = Events::default();
    let wait = Duration::from_millis(40);
    let (other, mut calls) = worker(&server, |builder| {
        events.record(builder.attempts(3).backoff(wait, wait * 4))
    })
    .await;
    let call = calls.next().await;
    assert_eq!(call.writes(), [(1, "bad"), (2, "good"), (1, "later")]);
    let mut failed = Instant::now();
    call.fail("the database is away");
    // The write is tried alone, after growing pauses, and no later write overtakes it.
    for attempt in [2, 3] {
        let call = calls.next().await;
        assert_eq!(call.given, [(1, Some("bad".into()), attempt)]);
        let waited = failed.elapsed();
        assert!(waited >= wait * (attempt - 1) / 2, "{waited:?}");
        assert_eq!(unapplied(&mut server.raw()).0, 3);
        failed = Instant::now();
        call.fail("no such column");
    }
    // The others of the batch follow one by one, among them the later write of the same key.
    let call = calls.next().await;
    assert_eq!(call.given, [(2, Some("good".into()), 2)]);
    call.ok();
    let call = calls.next().await;
    assert_eq!(call.given, [(1, Some("later".into()), 2)]);
    call.ok();
    applied(&mut server.raw()).await;
    let event = events
        .wait_for("it is dead-lettered", |event| {
            matches!(event, Event::DeadLettered { .. })
        })
        .await;
    let expected = Event::DeadLettered {
        partition: 0,
        id: bad,
        error: "no such column".into(),
        dropped: 0,
    };
    assert_eq!(event, expected);
    eventually("it is counted", async || {
        let stats = other.stats();
        (stats.applied, stats.failed, stats.dead_lettered) == (2, 3, 1)
    })
    .await;

    // Any process can list the dead letters.
    let letters = stock.dead_letters(10).await.expect("an answer");
    let [letter] = &letters[..] else {
        panic!("{letters:?}")
    };
    assert_eq!((letter.id(), letter.attempts()), (Some(bad), 3));
    assert_eq!(letter.error(), "no such column");
    assert_eq!(letter.write(), Some((&1, Some(&"bad".to_owned()))));
    assert_eq!(stock.redrive(letter).await.expect("accepted"), bad);
    let again = stock.redrive(letter).await;
    assert!(matches!(again, Err(WriteError::NoSuchLetter)), "{again:?}");
    assert!(stock.dead_letters(10).await.expect("an answer").is_empty());
    // The write keeps its id, so that a sink which compares ids recognises it as old.
    let call = calls.next().await;
    assert_eq!((&call.ids[..], call.given[0].2), (&[bad][..], 1));
    call.fail("still bad");
    for _ in 0..2 {
        calls.next().await.fail("still bad");
    }
    events
        .wait_for("again", |event| matches!(event, Event::DeadLettered { .. }))
        .await;
    let letters = stock.dead_letters(10).await.expect("an answer");
    assert_eq!(letters[0].id(), Some(bad), "also the second time");
    assert!(stock.discard(&letters[0]).await.expect("an answer"));
    assert!(!stock.discard(&letters[0]).await.expect("an answer"));
    other.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_rejected_write_is_dead_lettered_at_once_and_the_others_go_on_together() {
    let server = Server::start();
    let stock = writer(&server).await;
    write(&stock, 1, "a").await;
    let bad = write(&stock, 2, "b").await;
    write(&stock, 3, "c").await;
    let hour = Duration::from_secs(3_600);
    let (other, mut calls) = worker(&server, |builder| builder.backoff(hour, hour)).await;
    calls.next().await.fail(&format!("reject {bad}"));
    let call = calls.next().await;
    assert_eq!(call.writes(), [(1, "a"), (3, "c")]);
    call.ok();
    applied(&mut server.raw()).await;
    let letters = stock.dead_letters(10).await.expect("an answer");
    assert_eq!((letters.len(), letters[0].attempts()), (1, 1));
    other.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_sink_that_panics_or_hangs_has_failed_and_is_called_again() {
    let server = Server::start();
    let events = Events::default();
    let (stock, mut calls) = worker(&server, |builder| {
        events.record(builder.sink_timeout(Duration::from_millis(1_500)))
    })
    .await;
    write(&stock, 1, "a").await;
    calls.next().await.fail("panic");
    let call = calls.next().await;
    assert_eq!(call.given[0].2, 2);
    // The test does not answer this call.
    let next = calls.next().await;
    assert_eq!(next.given[0].2, 3);
    assert!(call.answer.is_closed(), "it was cut off");
    next.ok();
    applied(&mut server.raw()).await;
    for says in ["the sink panicked", "the sink did not end within 1.5s"] {
        let event = events.wait_for(says, |event| matches!(event, Event::Failed { .. }));
        let event = event.await;
        assert!(
            matches!(&event, Event::Failed { error, writes: 1, .. } if error == says),
            "{event:?}"
        );
    }
    stock.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_failed_write_stays_before_later_ones_when_the_partition_changes_hands() {
    let server = Server::start();
    let hour = Duration::from_secs(3_600);
    let (stock, mut calls) = worker(&server, |builder| builder.backoff(hour, hour)).await;
    write(&stock, 1, "a").await;
    calls.next().await.fail("no");
    eventually("it has failed", async || stock.stats().failed == 1).await;
    write(&writer(&server).await, 1, "b").await;
    stock.close().await;
    let (other, mut calls) = worker(&server, |builder| builder).await;
    let call = calls.next().await;
    assert_eq!(call.writes(), [(1, "a"), (1, "b")]);
    call.ok();
    other.close().await;
    assert_eq!(unapplied(&mut server.raw()), (0, 0));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn failed_attempts_still_count_when_the_partition_changes_hands() {
    let server = Server::start();
    let mut raw = server.raw();
    let hour = Duration::from_secs(3_600);
    write(&writer(&server).await, 1, "a").await;
    for attempt in 1..=3 {
        let settings = |builder: super::StockBuilder| builder.attempts(3).backoff(hour, hour);
        let (stock, mut calls) = worker(&server, settings).await;
        let call = calls.next().await;
        assert_eq!(call.given[0].2, attempt);
        call.fail("no");
        eventually("it is counted", async || stock.stats().failed == 1).await;
        // A backoff of an hour does not delay `close`.
        stock.close().await;
    }
    assert_eq!(unapplied(&mut raw), (0, 0));
    let letters = writer(&server).await.dead_letters(10).await;
    assert_eq!(letters.expect("an answer")[0].attempts(), 3);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn entries_that_cannot_be_read_are_dead_lettered_and_stop_nothing() {
    let server = Server::start();
    let mut raw = server.raw();
    let stock = writer(&server).await;
    write(&stock, 1, "first").await;
    raw.ask(&format!("XADD {STREAM} * foreign entry"));
    raw.ask(&format!("XADD {STREAM} * w nonsense"));
    raw.ask(&format!("XADD {STREAM} * was 7-7 w {}", "TW".repeat(40)));
    let many = "field value ".repeat(1_500);
    raw.ask(&format!("XADD {STREAM} * {many}"));
    // Another codec, and another schema version.
    let redis = connect(&server).await;
    let json: Stock = with_short_times(WriteBehind::writer("stock", redis.clone()).codec(Json))
        .open()
        .await
        .expect("opens");
    write(&json, 1, "json").await;
    let newer: Stock = with_short_times(WriteBehind::writer("stock", redis).schema_version(1))
        .open()
        .await
        .expect("opens");
    write(&newer, 1, "newer").await;
    write(&stock, 1, "last").await;
    let (other, mut calls) = worker(&server, |builder| builder).await;
    let call = calls.next().await;
    assert_eq!(call.writes(), [(1, "first"), (1, "last")]);
    // Deleted by another client while the worker holds them.
    raw.ask(&format!("XDEL {STREAM} {} {}", call.ids[0], call.ids[1]));
    call.fail("again");
    applied(&mut raw).await;
    let letters = stock.dead_letters(100).await.expect("an answer");
    let says: Vec<_> = letters.iter().map(|letter| letter.error()).collect();
    let damaged = "not an entry of this crate, or a damaged one";
    let foreign = "an entry of another codec or schema version";
    let deleted = "the entry was deleted from the stream";
    let expected = [
        damaged, damaged, damaged, damaged, foreign, foreign, deleted, deleted,
    ];
    assert_eq!(says, expected);
    assert!(letters.iter().all(|letter| letter.write().is_none()));
    assert_eq!(letters[2].id().map(|id| id.ms()), Some(7));
    eventually("it is counted", async || {
        let stats = other.stats();
        (stats.unreadable, stats.dead_lettered) == (8, 8)
    })
    .await;
    // A process with the right schema version can read the letter.
    assert_eq!(
        newer.dead_letters(100).await.expect("an answer")[5].write(),
        Some((&1, Some(&"newer".to_owned())))
    );
    // An entry that is no write of this crate is not applied when it is driven again.
    stock.redrive(&letters[0]).await.expect("accepted");
    applied(&mut raw).await;
    assert_eq!(stock.dead_letters(100).await.expect("an answer").len(), 8);
    // The partition continues.
    write(&stock, 1, "after").await;
    assert_eq!(calls.drain(1).await, [(1, "after".to_owned())]);
    other.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn dead_letters_are_bounded_and_the_oldest_is_dropped_with_an_event() {
    let server = Server::start();
    let events = Events::default();
    let stock = writer(&server).await;
    for key in 0..5 {
        write(&stock, key, "bad").await;
    }
    let (other, mut calls) = worker(&server, |builder| {
        events.record(builder.attempts(1).batch_size(1).max_dead_letters(3))
    })
    .await;
    for _ in 0..5 {
        calls.next().await.fail("no");
    }
    applied(&mut server.raw()).await;
    let letters = stock.dead_letters(10).await.expect("an answer");
    let keys: Vec<_> = letters.iter().filter_map(|letter| letter.write()).collect();
    assert_eq!(
        keys.iter().map(|(key, _)| **key).collect::<Vec<_>>(),
        [2, 3, 4]
    );
    assert_eq!(stock.dead_letters(2).await.expect("an answer").len(), 2);
    events
        .wait_for("one was dropped", |event| {
            matches!(event, Event::DeadLettered { dropped: 1, .. })
        })
        .await;
    other.close().await;
    assert_eq!(other.stats().dead_letters_dropped, 2);
}
