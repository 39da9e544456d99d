//! Leases of partitions: one worker at a time applies the writes of a partition.

use std::time::Duration;

use tidegate::write_behind::Event;

use super::process::{Process, Role};
use super::{Events, STREAM, applied, unapplied, worker, write, writer};
use crate::support::eventually;
use crate::support::server::Server;

const LEASE: &str = "tidegate:wb:{stock:0}:lease";

/// Another worker has taken the lease, and this one does not know.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_its_lease_a_worker_neither_acknowledges_nor_reads_nor_dead_letters() {
    for failing in [false, true] {
        let server = Server::start();
        let mut raw = server.raw();
        let events = Events::default();
        // Long enough that the lease is not renewed during the test.
        let minute = Duration::from_secs(60);
        let (stock, mut calls) = worker(&server, |builder| {
            events.record(builder.lease_ttl(minute).attempts(1))
        })
        .await;
        write(&stock, 1, "a").await;
        let call = calls.next().await;
        write(&stock, 1, "b").await;
        raw.set(LEASE, b"somebody");
        if failing {
            call.fail("no");
        } else {
            call.ok();
        }
        events
            .wait_for("it has lost it", |event| {
                *event == Event::Lost { partition: 0 }
            })
            .await;
        assert_eq!(unapplied(&mut raw), (2, 1));
        assert_eq!(raw.keys("*:dead"), [""; 0]);
        assert_eq!(raw.get(LEASE).as_deref(), Some(&b"somebody"[..]));
        assert!(calls.none());
        assert_eq!((stock.stats().applied, stock.stats().lost), (0, 1));
        stock.close().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lease_is_given_up_only_by_its_holder() {
    let server = Server::start();
    let mut raw = server.raw();
    let minute = Duration::from_secs(60);
    let (stock, _calls) = worker(&server, |builder| builder.lease_ttl(minute)).await;
    eventually("it has it", async || raw.get(LEASE).is_some()).await;
    raw.set(LEASE, b"somebody");
    stock.close().await;
    assert_eq!(raw.get(LEASE).as_deref(), Some(&b"somebody"[..]));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_worker_that_is_stopped_is_replaced_and_acknowledges_nothing_when_it_goes_on() {
    let server = Server::start();
    let mut raw = server.raw();
    let lease = Duration::from_secs(2);
    let stock = writer(&server).await;
    let mut stopped = Process::start(&server, Role::Gated, lease).await;
    stopped.expect_line("claimed 0").await;
    let first = write(&stock, 1, "a").await;
    let line = stopped.expect_line("apply").await;
    let (epoch, ids) = line.split_once(' ').expect("epoch and ids");
    assert_eq!(ids, first.to_string());
    stopped.stop();
    write(&stock, 1, "b").await;
    let (other, mut calls) = worker(&server, |builder| builder.lease_ttl(lease * 2)).await;
    // The new worker begins with the writes that were not acknowledged.
    let call = calls.next().await;
    assert_eq!(call.writes(), [(1, "a"), (1, "b")]);
    assert_eq!(call.ids[0], first, "with the same id");
    assert!(call.epoch > epoch.parse().expect("a number"));
    stopped.resume();
    // The stopped worker has applied its batch and does not know of the other worker.
    stopped.send("ok").await;
    stopped.expect_line("lost 0").await;
    assert_eq!(unapplied(&mut raw), (2, 2));
    call.ok();
    applied(&mut raw).await;
    other.close().await;
    // The partition is free again.
    write(&stock, 1, "c").await;
    stopped.expect_line("apply").await;
    stopped.send("ok").await;
    applied(&mut raw).await;
    stopped.ask("close", "closed").await;
    assert_eq!(raw.keys("*:lease"), [""; 0]);
}

/// The lease is renewed while the call of the sink lasts.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_call_that_takes_longer_than_the_lease_keeps_it() {
    let server = Server::start();
    let mut raw = server.raw();
    let lease = Duration::from_secs(4);
    let (stock, mut calls) = worker(&server, |builder| builder.lease_ttl(lease)).await;
    write(&stock, 1, "a").await;
    let call = calls.next().await;
    let token = raw.get(LEASE).expect("a lease");
    for _ in 0..3 {
        // The remaining time falls, and a renewal raises it.
        eventually("it is older", async || raw.pttl(LEASE) < 3_000).await;
        eventually("it is renewed", async || raw.pttl(LEASE) > 3_500).await;
    }
    assert_eq!(raw.get(LEASE), Some(token));
    call.ok();
    applied(&mut raw).await;
    assert_eq!((stock.stats().batches, stock.stats().lost), (1, 0));
    stock.close().await;
}

/// Another client deletes the consumer group, and then all keys.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_consumer_group_that_was_deleted_is_made_again_and_no_write_is_left_out() {
    let server = Server::start();
    let mut raw = server.raw();
    let (stock, mut calls) = worker(&server, |builder| builder).await;
    write(&stock, 1, "a").await;
    let call = calls.next().await;
    write(&stock, 1, "b").await;
    raw.ask(&format!("XGROUP DESTROY {STREAM} tidegate"));
    call.ok();
    assert_eq!(calls.drain(1).await, [(1, "b".to_owned())]);
    applied(&mut raw).await;
    raw.ask("FLUSHALL");
    write(&stock, 1, "c").await;
    assert_eq!(calls.drain(1).await, [(1, "c".to_owned())]);
    applied(&mut raw).await;
    stock.close().await;
}
