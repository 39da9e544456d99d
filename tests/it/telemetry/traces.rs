//! Traces: parents of spans, what no line contains, and how few lines are above DEBUG.

use std::collections::BTreeMap;
use std::fmt::{Debug, Write};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use tidegate::{Batching, BoxError, Cache, Loaded, loader_fn};
use tokio::time::sleep;
use tracing::field::{Field, Visit};
use tracing::span::{Attributes, Id, Record};
use tracing::subscriber::DefaultGuard;
use tracing::{Event, Instrument, Level, Subscriber, info_span};
use tracing_subscriber::layer::{Context, Layer, SubscriberExt};
use tracing_subscriber::registry;

use crate::support::aging::with_stale_while_revalidate;
use crate::support::backend::Backend;
use crate::support::eventually;
use crate::support::loader::Db;
use crate::support::node::{Node, answer};
use crate::support::server::Server;

/// All spans and events of this thread.
#[derive(Clone, Default)]
struct Traces(Arc<Mutex<Recorded>>);

#[derive(Default)]
struct Recorded {
    spans: BTreeMap<u64, Span>,
    events: Vec<Line>,
    /// Pairs of spans: the first follows from the second.
    follows: Vec<(u64, u64)>,
}

#[derive(Clone, Debug)]
struct Span {
    name: &'static str,
    level: Level,
    parent: Option<u64>,
    fields: String,
}

#[derive(Clone, Debug)]
struct Line {
    level: Level,
    target: String,
    within: Option<u64>,
    fields: String,
}

impl Traces {
    fn begin() -> (Self, DefaultGuard) {
        let traces = Self::default();
        let subscriber = registry().with(traces.clone());
        (traces, tracing::subscriber::set_default(subscriber))
    }

    fn recorded(&self) -> MutexGuard<'_, Recorded> {
        self.0.lock().expect("no panic under this lock")
    }

    fn clear(&self) {
        *self.recorded() = Recorded::default();
    }

    fn follows(&self) -> Vec<(u64, u64)> {
        self.recorded().follows.clone()
    }

    fn events(&self) -> Vec<Line> {
        self.recorded().events.clone()
    }

    fn named(&self, name: &str) -> Vec<(u64, Span)> {
        let recorded = self.recorded();
        let those = recorded.spans.iter().filter(|(_, span)| span.name == name);
        those.map(|(id, span)| (*id, span.clone())).collect()
    }

    /// The only span of this name.
    fn one(&self, name: &str) -> (u64, Span) {
        let mut those = self.named(name);
        assert_eq!(those.len(), 1, "{name}: {those:?}");
        those.remove(0)
    }

    /// Spans and events above DEBUG.
    fn above_debug(&self) -> Vec<String> {
        let recorded = self.recorded();
        let events = recorded.events.iter();
        let lines = events.filter(|line| line.level < Level::DEBUG);
        let spans = recorded.spans.values();
        let spans = spans.filter(|span| span.level < Level::DEBUG);
        let lines = lines.map(|line| format!("{} {}", line.level, line.fields));
        lines
            .chain(spans.map(|span| format!("{} {}", span.level, span.name)))
            .collect()
    }
}

struct Fields<'a>(&'a mut String);

impl Visit for Fields<'_> {
    fn record_debug(&mut self, field: &Field, value: &dyn Debug) {
        write!(self.0, "{}={value:?} ", field.name()).expect("a text");
    }
}

impl<S: Subscriber> Layer<S> for Traces
where
    S: for<'a> registry::LookupSpan<'a>,
{
    fn on_new_span(&self, attributes: &Attributes<'_>, id: &Id, context: Context<'_, S>) {
        let mut fields = String::new();
        attributes.record(&mut Fields(&mut fields));
        let metadata = attributes.metadata();
        let parent = context.span(id).and_then(|span| Some(span.parent()?.id()));
        let span = Span {
            name: metadata.name(),
            level: *metadata.level(),
            parent: parent.map(|id| id.into_u64()),
            fields,
        };
        self.recorded().spans.insert(id.into_u64(), span);
    }

    fn on_record(&self, id: &Id, record: &Record<'_>, _: Context<'_, S>) {
        if let Some(span) = self.recorded().spans.get_mut(&id.into_u64()) {
            record.record(&mut Fields(&mut span.fields));
        }
    }

    fn on_follows_from(&self, id: &Id, earlier: &Id, _: Context<'_, S>) {
        let pair = (id.into_u64(), earlier.into_u64());
        self.recorded().follows.push(pair);
    }

    fn on_event(&self, event: &Event<'_>, context: Context<'_, S>) {
        let mut fields = String::new();
        event.record(&mut Fields(&mut fields));
        let line = Line {
            level: *event.metadata().level(),
            target: event.metadata().target().to_owned(),
            within: context.event_span(event).map(|span| span.id().into_u64()),
            fields,
        };
        self.recorded().events.push(line);
    }
}

#[tokio::test(start_paused = true)]
async fn the_loader_runs_in_the_span_of_its_load_and_that_in_the_callers() {
    let backend = Backend::in_process();
    let load = loader_fn(|id: u64| async move {
        tracing::info!("SELECT");
        Ok::<_, BoxError>(Loaded::found(format!("row {id}")))
    });
    let a: Node = backend.named("users", load, |builder| builder).await;
    a.get(1).await.expect("the first one asks for more");
    let (traces, _guard) = Traces::begin();
    let request = info_span!("request");
    let id = request.id().expect("a span").into_u64();
    a.get(123_456_789)
        .instrument(request)
        .await
        .expect("a value");
    let (flight, span) = traces.one("flight");
    assert_eq!(span.parent, Some(id));
    assert!(span.fields.contains("cache=\"users\""), "{}", span.fields);
    let (load, span) = traces.one("load");
    assert_eq!(span.parent, Some(flight));
    assert!(
        span.fields.contains("fwd=\"miss\"") && span.fields.contains("outcome=\"found\""),
        "{}",
        span.fields
    );
    let mut lines = traces.events().into_iter();
    let select = lines.find(|line| line.fields.contains("SELECT"));
    assert_eq!(select.expect("the line was written").within, Some(load));
    let operations = traces.named("l2");
    let names = operations.iter().map(|(_, span)| {
        assert_eq!(span.parent, Some(flight), "{span:?}");
        let name = span.fields.split_once("db.operation.name=\"");
        let (name, _) = name
            .and_then(|(_, rest)| rest.split_once('"'))
            .expect("a name");
        name
    });
    let names: Vec<&str> = names.collect();
    assert_eq!(names, ["get", "acquire", "replace"]);
    backend.check(&[&a]).await;
}

#[tokio::test(start_paused = true)]
async fn a_waiter_follows_from_the_flight() {
    let (backend, db) = (Backend::in_process(), Db::default());
    let a = backend.node(&db).await;
    let (traces, _guard) = Traces::begin();
    let gate = db.gate();
    let leader = a.caller(1).await;
    gate.reached().await;
    let request = info_span!("request");
    let waiter = a.caller(1).instrument(request.clone()).await;
    drop(waiter);
    let (node, id) = (a.clone(), request.id().expect("a span").into_u64());
    let waiter = tokio::spawn(async move { node.get(1).await }.instrument(request));
    eventually("it waits", async || {
        let (flight, _) = traces.one("flight");
        traces.follows().contains(&(id, flight))
    })
    .await;
    gate.open();
    answer(leader).await.expect("a value");
    answer(waiter).await.expect("a value");
    backend.check(&[&a]).await;
}

/// The trace of a request ends with the request, so a refresh that outlives it is a trace of its
/// own.
#[tokio::test(start_paused = true)]
async fn a_refresh_in_the_background_is_a_trace_of_its_own_that_follows_from_its_hit() {
    let (backend, db) = (Backend::in_process(), Db::default());
    let a = backend.node_with(&db, with_stale_while_revalidate).await;
    crate::support::aging::make_stale(&db, &[&a], 1).await;
    let (traces, _guard) = Traces::begin();
    let request = info_span!("request");
    let id = request.id().expect("a span").into_u64();
    a.get(1).instrument(request).await.expect("the old value");
    backend.check(&[&a]).await;
    let (flight, span) = traces.one("flight");
    assert_eq!(span.parent, None);
    assert_eq!(traces.follows(), [(flight, id)]);
    let (_, load) = traces.one("load");
    assert_eq!(load.parent, Some(flight));
    assert!(load.fields.contains("fwd=\"stale\""), "{}", load.fields);
}

#[tokio::test(start_paused = true)]
async fn a_load_of_many_keys_is_one_span_that_follows_from_their_flights() {
    let (backend, db) = (Backend::in_process(), Db::default());
    let a = backend
        .node_with(&db, |builder| builder.batched(Batching::new()))
        .await;
    let (traces, _guard) = Traces::begin();
    a.get_many(&[1, 2, 3]).await;
    let (load, span) = traces.one("load");
    assert!(span.fields.contains("keys=3"), "{}", span.fields);
    let flights = traces.named("flight");
    assert_eq!(flights.len(), 3);
    let follows = traces.follows();
    for (flight, _) in flights {
        assert!(follows.contains(&(load, flight)), "{follows:?}");
    }
    backend.check(&[&a]).await;
}

#[tokio::test(start_paused = true)]
async fn no_key_is_named_but_at_trace() {
    let (backend, db) = (Backend::in_process(), Db::default());
    let a = backend.node(&db).await;
    let (traces, _guard) = Traces::begin();
    let key = 123_456_789;
    db.behave(crate::support::loader::Behaviour::fails());
    a.get(key).await.expect_err("the source fails");
    a.invalidate(&key).await.expect("an invalidation");
    db.behave(crate::support::loader::Behaviour::default());
    a.get(key).await.expect("a value");
    a.expire(&key).await.expect("an expiry");
    let names = |fields: &str| fields.contains("123456789");
    for name in ["flight", "load", "l2"] {
        let spans = traces.named(name);
        assert!(!spans.is_empty());
        assert!(
            spans.iter().all(|(_, span)| !names(&span.fields)),
            "{spans:?}"
        );
    }
    let lines = traces.events();
    let lines = lines.iter().filter(|line| names(&line.fields));
    let levels: Vec<Level> = lines.map(|line| line.level).collect();
    assert_eq!(levels, [Level::TRACE, Level::TRACE], "one for each flight");
    backend.check(&[&a]).await;
}

/// Hits write no line. With a healthy server and in an outage, lines above DEBUG report changes of
/// state, and their number does not grow with the requests.
#[tokio::test]
async fn ten_thousand_requests_are_not_ten_thousand_lines() {
    let (mut server, db) = (Server::start(), Db::default());
    let redis = server
        .long_timeout_builder()
        .connect()
        .await
        .expect("connect");
    let builder = Cache::builder("users", db.clone()).ttl_jitter(0.0);
    let lease = Duration::from_secs(60);
    let build = builder.channel_lease(lease).l2(redis).build();
    let a = Node::new(build.expect("settings that make sense"));
    a.get(0).await.expect("a value");
    eventually("L1 answers", async || a.peek(&0).is_some()).await;
    let (traces, _guard) = Traces::begin();
    for _ in 0..1_000 {
        a.get(0).await.expect("a hit");
    }
    let lines = traces.events().into_iter();
    let ours = lines.filter(|line| line.target.starts_with("tidegate"));
    assert_eq!(ours.count(), 0);
    for name in ["flight", "load", "l2"] {
        let spans = traces.named(name).into_iter();
        // Heartbeats do not belong to requests.
        let spans = spans.filter(|(_, span)| !span.fields.contains("name=\"beat\""));
        assert_eq!(spans.count(), 0, "{name}");
    }
    traces.clear();
    for key in 0..10_000 {
        a.get(key % 1_000).await.expect("a value");
    }
    assert_eq!(traces.above_debug(), [""; 0]);
    server.kill();
    for key in 0..10_000 {
        a.get(key % 2_000).await.expect("a value, without Redis");
        if key % 10 == 0 {
            a.invalidate(&key).await.expect_err("Redis is gone");
        }
    }
    let lines = traces.above_debug();
    assert!(
        (1..=8).contains(&lines.len()),
        "{}: {lines:#?}",
        lines.len()
    );
    for event in ["channel_down", "breaker_opened", "repair_pending"] {
        let of = lines.iter().filter(|line| line.contains(event));
        assert_eq!(of.count(), 1, "{event}: {lines:#?}");
    }
    server.restart();
    traces.clear();
    eventually("it is whole again", async || {
        a.health().pending_repairs == 0 && a.health().channel == tidegate::Channel::Proven
    })
    .await;
    sleep(Duration::from_millis(10)).await;
    let lines = traces.above_debug();
    assert!(
        (1..=8).contains(&lines.len()),
        "{}: {lines:#?}",
        lines.len()
    );
    let back = lines.iter().filter(|line| line.contains("breaker_closed"));
    assert_eq!(back.count(), 1, "{lines:#?}");
    a.check().await;
}
