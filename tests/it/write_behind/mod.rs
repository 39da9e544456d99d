//! Write-behind on real servers.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tidegate::write_behind::{Batch, Event, Sink, WriteBehind, WriteBehindBuilder, WriteId};
use tidegate::{BoxError, Redis};
use tokio::sync::{mpsc, oneshot};

use crate::support::server::{Raw, Reply, Server};
use crate::support::{eventually, within};

mod crash;
mod failing;
mod leases;
mod process;
mod settings;
mod writes;

/// The stream of partition 0.
const STREAM: &str = "tidegate:wb:{stock:0}";

type Stock = WriteBehind<u64, String>;
type StockBuilder = WriteBehindBuilder<u64, String>;

/// A write as a sink receives it: key, value, attempt.
type Given = (u64, Option<String>, u32);

/// A call of a sink that waits for its answer.
struct Call {
    epoch: u64,
    ids: Vec<WriteId>,
    given: Vec<Given>,
    answer: oneshot::Sender<Result<(), BoxError>>,
}

impl Call {
    fn ok(self) {
        let _ = self.answer.send(Ok(()));
    }

    fn fail(self, error: &str) {
        let _ = self.answer.send(Err(error.into()));
    }

    /// Keys and values only.
    fn writes(&self) -> Vec<(u64, &str)> {
        let writes = self.given.iter();
        writes
            .map(|(key, value, _)| (*key, value.as_deref().unwrap_or("-")))
            .collect()
    }
}

/// A sink whose calls the test answers.
struct Gated(mpsc::UnboundedSender<Call>);

impl Sink for Gated {
    type Key = u64;
    type Value = String;
    type Error = BoxError;

    async fn apply(&self, batch: &Batch<u64, String>) -> Result<(), BoxError> {
        let (answer, answered) = oneshot::channel();
        let writes = batch.writes().iter();
        let call = Call {
            epoch: batch.epoch(),
            ids: writes.clone().map(|write| write.id()).collect(),
            given: writes
                .map(|write| (*write.key(), write.value().cloned(), write.attempt()))
                .collect(),
            answer,
        };
        self.0.send(call).map_err(|_| "the test has ended")?;
        match answered.await {
            Ok(Err(error)) if error.to_string() == "panic" => panic!("as the test wants it"),
            Ok(answer) => answer,
            Err(_) => std::future::pending().await,
        }
    }

    /// The error `reject 12-0` rejects the write with that id.
    fn rejected(&self, error: &BoxError) -> Option<WriteId> {
        let text = error.to_string();
        WriteId::parse(text.strip_prefix("reject ")?)
    }
}

/// The calls of a gated sink.
struct Calls(mpsc::UnboundedReceiver<Call>);

impl Calls {
    async fn next(&mut self) -> Call {
        within("the sink is called", self.0.recv())
            .await
            .expect("it lives")
    }

    fn none(&mut self) -> bool {
        self.0.try_recv().is_err()
    }

    /// Answers calls with success until `writes` writes have arrived. Returns these writes.
    async fn drain(&mut self, writes: usize) -> Vec<(u64, String)> {
        let mut came = Vec::new();
        while came.len() < writes {
            let call = self.next().await;
            let now = call.writes();
            came.extend(now.into_iter().map(|(key, value)| (key, value.to_owned())));
            call.ok();
        }
        came
    }
}

fn gated() -> (Gated, Calls) {
    let (calls, called) = mpsc::unbounded_channel();
    (Gated(calls), Calls(called))
}

/// The events of a write-behind.
#[derive(Clone, Default)]
struct Events(Arc<Mutex<VecDeque<Event>>>);

impl Events {
    fn record(&self, builder: StockBuilder) -> StockBuilder {
        let events = self.clone();
        builder.on_event(move |event| events.0.lock().push_back(event.clone()))
    }

    /// Waits for an event and removes it.
    async fn wait_for(&self, what: &str, is_it: impl Fn(&Event) -> bool) -> Event {
        let mut found = None;
        eventually(what, async || {
            let mut events = self.0.lock();
            found = events
                .iter()
                .position(&is_it)
                .and_then(|at| events.remove(at));
            found.is_some()
        })
        .await;
        found.expect("it was heard")
    }
}

/// Short pauses, one partition, and a lease that a slow machine does not lose.
fn with_short_times(builder: StockBuilder) -> StockBuilder {
    let ms = Duration::from_millis;
    builder
        .partitions(1)
        .backoff(ms(1), ms(20))
        .lease_ttl(Duration::from_secs(4))
}

async fn connect(server: &Server) -> Redis {
    let redis = server.long_timeout_builder().connect().await;
    redis.expect("connect")
}

async fn writer(server: &Server) -> Stock {
    let builder = WriteBehind::writer("stock", connect(server).await);
    with_short_times(builder)
        .open()
        .await
        .expect("sound settings")
}

/// A write-behind with a gated sink and settings of the test.
async fn worker(
    server: &Server,
    settings: impl Fn(StockBuilder) -> StockBuilder,
) -> (Stock, Calls) {
    let (sink, calls) = gated();
    let builder = WriteBehind::builder("stock", connect(server).await, sink);
    let opened = settings(with_short_times(builder)).open().await;
    (opened.expect("sound settings"), calls)
}

async fn write(stock: &Stock, key: u64, value: &str) -> WriteId {
    let written = stock.write(&key, &value.to_owned()).await;
    written.unwrap_or_else(|error| panic!("{key} {value}: {error:?}"))
}

/// The number of unapplied writes, and how many of them a worker has received.
fn unapplied(raw: &mut Raw) -> (i64, i64) {
    let Reply::Number(length) = raw.ask(&format!("XLEN {STREAM}")) else {
        panic!("XLEN answers a number")
    };
    let pending = match raw.try_ask(&format!("XPENDING {STREAM} tidegate")) {
        Reply::List(pending) => match pending[0] {
            Reply::Number(pending) => pending,
            _ => panic!("XPENDING begins with a number"),
        },
        // The group does not exist yet.
        _ => 0,
    };
    (length, pending)
}

async fn applied(raw: &mut Raw) {
    eventually("everything is applied", async || unapplied(raw) == (0, 0)).await;
}
