//! How soon another instance sees an invalidation.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use fred::interfaces::{ClientLike, EventInterface, PubsubInterface};
use tokio::runtime::Runtime;

use super::{Participant, Scale};
use crate::contenders::{Kind, connect, contenders_where};
use crate::peer::{BoxError, Instance};
use crate::server::Server;
use crate::source::Source;
use crate::table::{Table, Values, micros, number, times};

/// An instance that answers the old value for this long is not going to change.
const BUDGET: Duration = Duration::from_secs(2);

pub(super) fn measure(scale: Scale) -> Result<Vec<Table>, BoxError> {
    let turns = scale.pick(2_000, 20);
    let (writes, reads) = (one_thread()?, one_thread()?);
    let server = Server::start()?;
    let bare = Bare::new(&server.url(), &writes, &reads)?;
    let participants = Participant::all(
        contenders_where(|one| one.bus && one.l1 && one.kind == Kind::Cache),
        Source::new,
    )?;
    let mut pairs = Vec::new();
    for participant in &participants {
        pairs.push((
            writes.block_on(participant.open())?,
            reads.block_on(participant.open())?,
        ));
    }
    std::thread::sleep(Duration::from_millis(500));
    let mut limit = Values::default();
    let mut measured = vec![(Values::default(), 0); participants.len()];
    for turn in 1..=turns {
        limit.push(micros(bare.received(&writes, turn)?));
        for ((participant, (writer, reader)), into) in
            participants.iter().zip(&pairs).zip(&mut measured)
        {
            reads.block_on(reader.get(turn))?;
            let revision = participant.source.changes();
            let start = Start::default();
            let task = writes.spawn({
                let (writer, start) = (Arc::clone(writer), start.clone());
                async move {
                    start.wait();
                    writer.invalidate(turn).await
                }
            });
            match seen(&reads, reader, turn, revision, &start)? {
                Some(took) => into.0.push(micros(took)),
                None => into.1 += 1,
            }
            writes.block_on(task)??;
        }
    }
    for (writer, reader) in &pairs {
        writes.block_on(writer.close());
        reads.block_on(reader.close());
    }
    let mut table = Table::new(
        "An invalidation, until another instance answers the new value",
        "Two instances with runtimes and connections of their own. B has loaded the key, A invalidates it, and B is asked again \
        and again. The time from A's call to the beginning of the first look-up of B that answers the new value. The limit is a \
        bare PUBLISH to a bare subscriber. 2,000 turns. The caches that are not in the table do not tell other processes.",
        &[
            "",
            "p50, µs",
            "multiple of the limit",
            "p99, µs",
            "multiple of the limit",
            "never within 2 s",
        ],
    );
    let row = |name: &str, of: &Values, never: String| {
        let mut row = vec![name.to_owned()];
        for share in [0.5, 0.99] {
            row.extend([number(of.at(share)), times(of.at(share) / limit.at(share))]);
        }
        row.push(never);
        row
    };
    table.row(row("*PUBLISH to a subscriber*", &limit, "–".to_owned()));
    for (participant, (ours, never)) in participants.iter().zip(&measured) {
        table.row(row(participant.who.name, ours, never.to_string()));
    }
    Ok(vec![table])
}

fn one_thread() -> Result<Runtime, BoxError> {
    Ok(tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .enable_all()
        .build()?)
}

fn seen(
    reads: &Runtime,
    reader: &Instance,
    id: u64,
    revision: u64,
    start: &Start,
) -> Result<Option<Duration>, BoxError> {
    let limit = Instant::now() + BUDGET;
    loop {
        let at = Instant::now();
        let found = reads.block_on(reader.get(id))?;
        if found.is_some_and(|user| user.revision >= revision) {
            return Ok(Some(start.until(at)));
        }
        if at > limit {
            return Ok(None);
        }
        start.looking();
        std::thread::yield_now();
    }
}

/// A start signal: the writer begins only when the reader polls. Otherwise the wake-up of the
/// writer's thread would be measured as well.
#[derive(Clone, Default)]
struct Start(Arc<(AtomicBool, OnceLock<Instant>)>);

impl Start {
    fn looking(&self) {
        self.0.0.store(true, Ordering::Release);
    }

    fn wait(&self) {
        while !self.0.0.load(Ordering::Acquire) {
            std::thread::yield_now();
        }
        let _ = self.0.1.set(Instant::now());
    }

    fn until(&self, at: Instant) -> Duration {
        let begun = self.0.1.get().copied().unwrap_or(at);
        at.saturating_duration_since(begun)
    }
}

/// A bare publisher and a bare subscriber.
struct Bare {
    publisher: fred::clients::Client,
    received: Arc<AtomicU64>,
    _subscriber: fred::clients::Client,
}

impl Bare {
    fn new(url: &str, writes: &Runtime, reads: &Runtime) -> Result<Self, BoxError> {
        let publisher = writes.block_on(connect(url))?;
        let subscriber = reads.block_on(connect(url))?;
        let received = Arc::new(AtomicU64::new(0));
        let mut messages = subscriber.message_rx();
        reads.spawn({
            let received = Arc::clone(&received);
            async move {
                while let Ok(message) = messages.recv().await {
                    let turn = message.value.as_u64().unwrap_or_default();
                    received.store(turn, Ordering::Release);
                }
            }
        });
        reads.block_on(async {
            subscriber.subscribe("bare").await?;
            // fred returns before the server has confirmed the subscription.
            subscriber.ping::<fred::types::Value>(None).await
        })?;
        Ok(Self {
            publisher,
            received,
            _subscriber: subscriber,
        })
    }

    fn received(&self, writes: &Runtime, turn: u64) -> Result<Duration, BoxError> {
        let start = Start::default();
        let task = writes.spawn({
            let (publisher, start) = (self.publisher.clone(), start.clone());
            async move {
                let text = turn.to_string();
                start.wait();
                publisher.publish::<u64, _, _>("bare", text).await
            }
        });
        while self.received.load(Ordering::Acquire) != turn {
            start.looking();
            std::thread::yield_now();
        }
        let took = start.until(Instant::now());
        writes.block_on(task)??;
        Ok(took)
    }
}
