//! What is accepted, and how it reaches the sink.

use std::time::Duration;

use tidegate::Redis;
use tidegate::write_behind::{WriteBehind, WriteError};

use super::{
    Events, STREAM, Stock, applied, connect, gated, unapplied, with_short_times, worker, write,
    writer,
};
use crate::support::cluster::Cluster;
use crate::support::server::{Reply, Server};
use crate::support::{eventually, within};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn writes_and_deletions_reach_the_sink_in_order_with_growing_ids() {
    let server = Server::start();
    let (stock, mut calls) = worker(&server, |builder| builder).await;
    let first = write(&stock, 1, "a").await;
    let call = calls.next().await;
    assert_eq!(call.given, [(1, Some("a".into()), 1)]);
    assert_eq!(call.ids, [first]);
    // What comes meanwhile is the next batch.
    let second = write(&stock, 1, "b").await;
    let third = stock.delete(&1).await.expect("accepted");
    write(&stock, 2, "c").await;
    assert!(first < second && second < third && first.version() < second.version());
    call.ok();
    let call = calls.next().await;
    assert_eq!(call.writes(), [(1, "b"), (1, "-"), (2, "c")]);
    assert_eq!(stock.lag().await.expect("an answer").unapplied, 3);
    call.ok();
    let mut raw = server.raw();
    applied(&mut raw).await;
    assert_eq!(stock.lag().await.expect("an answer"), Default::default());
    stock.close().await;
    let stats = stock.stats();
    assert_eq!((stats.accepted, stats.applied, stats.batches), (4, 4, 2));
    assert!(matches!(
        stock.write(&1, &String::new()).await,
        Err(WriteError::Closed)
    ));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn full_is_an_error_of_its_own_without_a_race_and_passes_when_writes_are_applied() {
    let server = Server::start();
    let bounded = |builder: super::StockBuilder| builder.max_unapplied(3);
    let redis = connect(&server).await;
    let stock: Stock = bounded(with_short_times(WriteBehind::writer("stock", redis)))
        .open()
        .await
        .expect("opens");
    let tasks: Vec<_> = (0..20_u64)
        .map(|key| {
            let stock = stock.clone();
            tokio::spawn(async move { stock.write(&key, &String::new()).await })
        })
        .collect();
    let (mut accepted, mut full) = (0, 0);
    for task in tasks {
        match task.await.expect("it ends") {
            Ok(_) => accepted += 1,
            Err(error @ WriteError::Full { unapplied: 3 }) => {
                assert!(error.is_not_accepted());
                full += 1;
            }
            Err(error) => panic!("{error:?}"),
        }
    }
    assert_eq!((accepted, full), (3, 17));
    assert_eq!((stock.stats().accepted, stock.stats().refused), (3, 17));
    let (other, mut calls) = worker(&server, bounded).await;
    calls.drain(3).await;
    applied(&mut server.raw()).await;
    write(&stock, 1, "again").await;
    assert_eq!(calls.drain(1).await, [(1, "again".to_owned())]);
    other.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_write_that_redis_does_not_answer_is_unknown_and_may_be_applied() {
    let server = Server::start();
    let (stock, mut calls) = worker(&server, |builder| builder).await;
    let short_timeout = server
        .long_timeout_builder()
        .timeout(Duration::from_millis(500));
    let redis = short_timeout.connect().await.expect("connect");
    let with_short_timeout: Stock = with_short_times(WriteBehind::writer("stock", redis))
        .open()
        .await
        .expect("opens");
    // Teaches the server the script, so that one command is enough.
    write(&with_short_timeout, 1, "before").await;
    calls.drain(1).await;
    server.stop();
    let error = with_short_timeout.write(&1, &"during".to_owned()).await;
    let error = error.expect_err("no answer");
    assert!(matches!(error, WriteError::Unknown(_)), "{error:?}");
    assert!(!error.is_not_accepted());
    server.resume();
    assert_eq!(calls.drain(1).await, [(1, "during".to_owned())]);
    assert_eq!(with_short_timeout.stats().unknown, 1);
    stock.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_a_server_a_write_is_refused_for_certain() {
    let mut server = Server::start();
    let stock = writer(&server).await;
    server.kill();
    eventually("the connection is lost", async || {
        matches!(
            stock.write(&1, &String::new()).await,
            Err(WriteError::Refused(_))
        )
    })
    .await;
    server.restart();
    eventually("it is connected again", async || {
        stock.write(&1, &String::new()).await.is_ok()
    })
    .await;
    assert_eq!(unapplied(&mut server.raw()).0, 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_write_that_redis_refuses_is_refused() {
    let server = Server::start();
    let stock = writer(&server).await;
    server.raw().set(STREAM, b"no stream");
    let error = stock.write(&1, &String::new()).await;
    assert!(matches!(error, Err(WriteError::Refused(_))), "{error:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn coalescing_gives_the_last_write_of_each_key_and_acknowledges_all() {
    let server = Server::start();
    let stock = writer(&server).await;
    for (key, value) in [(1, "a"), (2, "b"), (1, "c"), (1, "d"), (3, "e"), (2, "f")] {
        write(&stock, key, value).await;
    }
    let (other, mut calls) = worker(&server, |builder| builder.coalesce(true)).await;
    let call = calls.next().await;
    assert_eq!(call.writes(), [(1, "d"), (3, "e"), (2, "f")]);
    call.ok();
    applied(&mut server.raw()).await;
    other.close().await;
    assert_eq!((other.stats().applied, other.stats().coalesced), (6, 3));
    assert!(calls.none());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_batch_has_its_size_and_linger_waits_for_more() {
    let server = Server::start();
    let stock = writer(&server).await;
    for key in 0..5 {
        write(&stock, key, "x").await;
    }
    let linger = Duration::from_secs(2);
    let (other, mut calls) = worker(&server, |builder| builder.batch_size(4).linger(linger)).await;
    // Full: no reason to wait.
    let call = calls.next().await;
    assert_eq!(call.given.len(), 4);
    call.ok();
    // One write is there. The other comes within the `linger` of the worker.
    eventually("it is read", async || {
        unapplied(&mut server.raw()) == (1, 1)
    })
    .await;
    write(&stock, 9, "y").await;
    let call = calls.next().await;
    assert_eq!(call.writes(), [(4, "x"), (9, "y")]);
    call.ok();
    other.close().await;
    assert_eq!(unapplied(&mut server.raw()), (0, 0));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn close_finishes_the_batch_under_way_and_gives_the_partition_up_at_once() {
    let server = Server::start();
    let minute = Duration::from_secs(60);
    let (stock, mut calls) = worker(&server, |builder| builder.lease_ttl(minute)).await;
    write(&stock, 1, "a").await;
    let call = calls.next().await;
    write(&stock, 1, "b").await;
    let closing = tokio::spawn({
        let stock = stock.clone();
        async move { stock.close().await }
    });
    let events = Events::default();
    let (other, mut others) =
        worker(&server, |builder| events.record(builder.lease_ttl(minute))).await;
    eventually("both work", async || {
        let mut raw = server.raw();
        let workers = raw.keys("*:workers");
        let [workers] = &workers[..] else {
            return false;
        };
        raw.ask(&format!("ZCARD {workers}")) == Reply::Number(2)
    })
    .await;
    // The second worker has tried to claim the partition. By itself it tries again in a minute.
    tokio::time::sleep(Duration::from_millis(100)).await;
    assert!(!closing.is_finished() && others.none());
    let before = call.epoch;
    call.ok();
    within("it closes", closing).await.expect("it closes");
    assert_eq!(stock.stats().applied, 1);
    // Not in a minute.
    let call = others.next().await;
    assert_eq!(call.writes(), [(1, "b")]);
    assert!(call.epoch > before);
    call.ok();
    // The last handle that is dropped closes too.
    applied(&mut server.raw()).await;
    drop(other);
    eventually("the lease is given up", async || {
        server.raw().keys("*:lease").is_empty() && server.raw().keys("*:workers").is_empty()
    })
    .await;
    let (sink, mut calls) = gated();
    let redis = connect(&server).await;
    let third = with_short_times(WriteBehind::builder("stock", redis, sink))
        .open()
        .await;
    let third = third.expect("opens");
    write(&third, 5, "z").await;
    assert_eq!(calls.drain(1).await, [(5, "z".to_owned())]);
    third.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn in_a_cluster_the_partitions_are_spread_and_everything_holds() {
    let cluster = Cluster::start(3).await;
    let connect = async || {
        let url = format!("redis-cluster://127.0.0.1:{}", cluster.nodes[0].port());
        let redis = Redis::builder(&url).timeout(Duration::from_secs(2));
        redis.connect().await.expect("connect")
    };
    let minutes = Duration::from_secs(600);
    let (sink, mut calls) = gated();
    let builder = WriteBehind::builder("stock", connect().await, sink);
    let worker = builder.lease_ttl(minutes).open().await.expect("opens");
    let stock: Stock = WriteBehind::writer("stock", connect().await)
        .open()
        .await
        .expect("opens");
    // Also when it sleeps: a lease is renewed every 200 seconds only.
    for round in ["first", "second"] {
        for key in 0..40 {
            write(&stock, key, round).await;
        }
        let came = calls.drain(40).await;
        assert!(came.iter().all(|(_, value)| value == round));
        eventually("it is applied", async || {
            stock.lag().await.expect("an answer").unapplied == 0
        })
        .await;
    }
    for node in &cluster.nodes {
        let streams = node.raw().keys("tidegate:wb:{stock:?}");
        assert!(!streams.is_empty(), "every node has some");
    }
    worker.close().await;
    for node in &cluster.nodes {
        assert_eq!(node.raw().keys("*:lease"), [""; 0]);
    }
}
