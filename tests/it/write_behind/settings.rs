//! Settings that are refused.

use std::time::Duration;

use tidegate::Redis;
use tidegate::write_behind::{OpenError, WriteBehind, WriteError};

use super::{Stock, StockBuilder, connect};
use crate::support::server::Server;

const MS: Duration = Duration::from_millis(1);

/// A port without a server: these settings are refused before any connection.
fn nowhere() -> Redis {
    Redis::open("redis://127.0.0.1:1").expect("a sound URL")
}

async fn refusal(builder: StockBuilder) -> String {
    match builder.open().await {
        Err(OpenError::Settings(error)) => error.to_string(),
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn every_setting_that_makes_no_sense_is_refused_by_name_and_value() {
    macro_rules! refused {
        ($($setting:ident($($value:expr),*)).+ => $says:expr) => {
            let text = refusal(WriteBehind::writer("n", nowhere())$(.$setting($($value),*))+).await;
            for part in $says.split('|') {
                assert!(text.contains(part), "{text:?} does not say {part:?}");
            }
        };
    }
    refused!(partitions(0) => "partitions(0)|1 to 256");
    refused!(partitions(257) => "partitions(257)|1 to 256");
    refused!(max_unapplied(0) => "max_unapplied(0)");
    refused!(max_unapplied(10_000_001) => "max_unapplied(10000001)");
    refused!(max_write_bytes(63) => "max_write_bytes(63)|64 bytes");
    refused!(max_write_bytes(usize::MAX) => "max_write_bytes(|64 MiB");
    refused!(batch_size(0) => "batch_size(0)|1 to 1,000");
    refused!(batch_size(1_001) => "batch_size(1001)");
    refused!(linger(MS * 60_001) => "linger(60.001s)|60 s");
    refused!(attempts(0) => "attempts(0)|at least 1");
    refused!(backoff(Duration::ZERO, MS) => "backoff(0ns)");
    refused!(backoff(MS, Duration::MAX) => "backoff(|1 hour");
    refused!(backoff(MS * 2, MS) => "backoff(2ms)|backoff(1ms)");
    refused!(sink_timeout(Duration::ZERO) => "sink_timeout(0ns)");
    refused!(sink_timeout(Duration::MAX) => "sink_timeout(|1 hour");
    refused!(max_dead_letters(0) => "max_dead_letters(0)");
    refused!(lease_ttl(MS * 99) => "lease_ttl(99ms)|100 ms");
    refused!(lease_ttl(Duration::MAX) => "lease_ttl(|10 minutes");
    refused!(lease_ttl(MS * 199) => "lease_ttl(199ms)|timeout(100ms)");
    refused!(batch_size(1).linger(MS) => "batch_size(1)|linger(1ms)");
    refused!(batch_size(1).coalesce(true) => "batch_size(1)|coalesce(true)");
    for name in [String::new(), "x".repeat(101)] {
        let text = refusal(WriteBehind::writer(&name, nowhere())).await;
        assert!(text.contains("name(") && text.contains("1 to 100 bytes"));
    }
    let unreachable: Result<Stock, _> = WriteBehind::writer("n", nowhere()).open().await;
    assert!(matches!(unreachable, Err(OpenError::Remote(_))));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn processes_that_disagree_on_the_partitions_are_refused() {
    let server = Server::start();
    let redis = connect(&server).await;
    let open = |name: &'static str, partitions: u16| {
        let builder: StockBuilder = WriteBehind::writer(name, redis.clone());
        builder.partitions(partitions).open()
    };
    let four = open("stock", 4).await.expect("the first");
    for other in [1, 3, 5, 256] {
        let error = open("stock", other).await.expect_err("another number");
        let text = error.to_string();
        assert!(
            text.contains(&format!("partitions({other})")) && text.contains("have: 4"),
            "{text}"
        );
    }
    open("stock", 4).await.expect("the same number");
    open("stock:4", 5).await.expect("another name");
    // A server that was flushed, and another process that was quicker.
    server.raw().ask("FLUSHALL");
    let five = open("stock", 5).await.expect("no other partitions");
    for key in 0..50 {
        five.write(&key, &String::new()).await.expect("accepted");
    }
    for key in 0..50 {
        let error = four.write(&key, &String::new()).await;
        assert!(
            matches!(&error, Err(WriteError::Partitions { there }) if there == "5"),
            "{error:?}"
        );
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_write_that_is_too_large_is_refused() {
    let server = Server::start();
    let builder: StockBuilder = WriteBehind::writer("stock", connect(&server).await);
    let stock = builder.max_write_bytes(100).open().await.expect("opens");
    stock.write(&1, &"x".repeat(70)).await.expect("accepted");
    let error = stock.write(&1, &"x".repeat(100)).await;
    assert!(
        matches!(error, Err(WriteError::TooLarge { bytes: 122 })),
        "{error:?}"
    );
}
