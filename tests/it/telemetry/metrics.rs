//! Metrics: each one is produced once and checked.

use std::collections::BTreeMap;
use std::time::Duration;

use metrics::LocalRecorderGuard;
use metrics_util::debugging::{DebugValue, DebuggingRecorder, Snapshotter};
use tidegate::{BoxError, Cache, CacheBuilder, Error, Read};
use tokio::time::{advance, sleep};

use crate::support::aging::{LONG, make_stale, with_stale_if_error, with_stale_while_revalidate};
use crate::support::backend::Backend;
use crate::support::eventually;
use crate::support::loader::{Behaviour, Db};
use crate::support::node::{Node, answer, value};
use crate::support::server::Server;

/// The metrics of this thread's caches.
struct Collected {
    snapshots: Snapshotter,
    counters: BTreeMap<String, u64>,
    histograms: BTreeMap<String, Vec<f64>>,
    gauges: BTreeMap<String, f64>,
}

impl Collected {
    /// Records from now on, while the guard lives.
    fn begin(recorder: &DebuggingRecorder) -> (Self, LocalRecorderGuard<'_>) {
        let collected = Self {
            snapshots: recorder.snapshotter(),
            counters: BTreeMap::new(),
            histograms: BTreeMap::new(),
            gauges: BTreeMap::new(),
        };
        (collected, metrics::set_default_local_recorder(recorder))
    }

    /// Adds the metrics since the last call. A series reads `name{label=value,…}`, without
    /// `cache=users` and without `db_system_name=in_process`.
    fn collect(&mut self) {
        for (key, _, _, value) in self.snapshots.snapshot().into_vec() {
            let key = key.key();
            let mut labels: Vec<String> = key
                .labels()
                .map(|label| format!("{}={}", label.key(), label.value()))
                .filter(|label| label != "cache=users" && label != "db_system_name=in_process")
                .collect();
            labels.sort();
            let series = format!("{}{{{}}}", key.name(), labels.join(","));
            match value {
                DebugValue::Counter(more) => *self.counters.entry(series).or_default() += more,
                DebugValue::Gauge(value) => drop(self.gauges.insert(series, value.into_inner())),
                DebugValue::Histogram(more) => {
                    let more = more.into_iter().map(f64::from);
                    self.histograms.entry(series).or_default().extend(more);
                }
            }
        }
    }

    /// Counters above zero whose names begin with `prefix`, with their values.
    fn counted(&mut self, nodes: &[&Node], prefix: &str) -> Vec<(String, u64)> {
        for node in nodes {
            node.publish_metrics();
        }
        self.collect();
        let counters = self.counters.iter();
        let those = counters.filter(|(name, count)| name.starts_with(prefix) && **count > 0);
        those.map(|(name, count)| (name.clone(), *count)).collect()
    }

    /// The number of observations of each histogram of this name, by its labels.
    fn observed(&mut self, name: &str) -> Vec<(String, usize)> {
        self.collect();
        let of = self.histograms.iter().filter_map(|(series, values)| {
            let labels = series.strip_prefix(name)?.strip_prefix('{')?;
            let some = !values.is_empty();
            some.then(|| (labels.trim_end_matches('}').to_owned(), values.len()))
        });
        of.collect()
    }

    fn values(&self, series: &str) -> &[f64] {
        self.histograms.get(series).map_or(&[], Vec::as_slice)
    }
}

fn once(names: &[&str]) -> Vec<(String, u64)> {
    names.iter().map(|name| ((*name).to_owned(), 1)).collect()
}

fn observed_once(labels: &[&str]) -> Vec<(String, usize)> {
    labels.iter().map(|name| ((*name).to_owned(), 1)).collect()
}

const LOAD: &str = "tidegate_load_duration_seconds";
const WAIT: &str = "tidegate_wait_duration_seconds";
const OPERATION: &str = "db_client_operation_duration_seconds";

#[tokio::test(start_paused = true)]
async fn a_look_up_is_counted_where_it_was_answered() {
    let recorder = DebuggingRecorder::new();
    let (mut collected, _guard) = Collected::begin(&recorder);
    let (backend, db) = (Backend::in_process(), Db::default());
    let (a, b) = (backend.node(&db).await, backend.node(&db).await);
    a.get(1).await.expect("a load");
    a.get(1).await.expect("a hit in L1");
    b.get(1).await.expect("a hit in L2");
    let expected = once(&[
        "tidegate_lookups_total{outcome=hit,tier=l1}",
        "tidegate_lookups_total{outcome=hit,tier=l2}",
        "tidegate_lookups_total{outcome=miss,tier=source}",
    ]);
    assert_eq!(collected.counted(&[&a, &b], "tidegate_lookups"), expected);
    assert_eq!(
        collected.counted(&[&a, &b], "tidegate_"),
        [
            once(&["tidegate_events_total{event=channel_up}"]).remove(0),
            once(&["tidegate_fills_total{outcome=stored}"]).remove(0),
            once(&["tidegate_loads_total{}"]).remove(0),
        ]
        .into_iter()
        .chain(expected)
        .map(|(name, count)| {
            // Each node has its own channel.
            let both = name.contains("channel_up");
            (name, if both { 2 } else { count })
        })
        .collect::<Vec<_>>(),
        "and nothing else, however often it is published"
    );
    backend.check(&[&a, &b]).await;
}

#[tokio::test(start_paused = true)]
async fn the_kind_of_each_answer_is_counted() {
    let recorder = DebuggingRecorder::new();
    let (mut collected, _guard) = Collected::begin(&recorder);
    let (backend, db) = (Backend::in_process(), Db::default());
    let a = backend.node_with(&db, with_stale_while_revalidate).await;
    make_stale(&db, &[&a], 1).await;
    let gate = db.gate();
    assert_eq!(value(a.get(1).await), "old");
    gate.open();
    db.delete(2);
    for _ in 0..2 {
        assert!(a.get(2).await.expect("an absence").is_none());
    }
    db.behave(Behaviour::fails());
    for _ in 0..2 {
        a.get(3).await.expect_err("the source fails");
    }
    db.behave(Behaviour::default());
    let gate = db.gate();
    let callers = a.callers(2, 4).await;
    gate.reached().await;
    gate.open();
    for caller in callers {
        answer(caller).await.expect("a value");
    }
    let expected = once(&[
        "tidegate_lookups_collapsed_total{}",
        "tidegate_lookups_held_total{}",
        "tidegate_lookups_negative_total{}",
        "tidegate_lookups_stale_total{}",
    ]);
    let mut counted = collected.counted(&[&a], "tidegate_lookups");
    counted.retain(|(name, _)| !name.starts_with("tidegate_lookups_total"));
    assert_eq!(counted, expected);
    assert_eq!(
        collected.counted(&[&a], "tidegate_refreshes"),
        once(&["tidegate_refreshes_total{}"])
    );
    assert_eq!(
        collected.counted(&[&a], "tidegate_loads_failed"),
        once(&["tidegate_loads_failed_total{}"])
    );
    backend.check(&[&a]).await;
}

#[tokio::test(start_paused = true)]
async fn a_load_is_observed_by_why_it_was_begun_and_how_it_ended() {
    let recorder = DebuggingRecorder::new();
    let (mut collected, _guard) = Collected::begin(&recorder);
    let (backend, db) = (Backend::in_process(), Db::default());
    let settings = |builder: CacheBuilder<Db>| with_stale_if_error(builder).load_timeout(LONG);
    let a = backend.node_with(&db, settings).await;
    make_stale(&db, &[&a], 1).await;
    collected.collect();
    collected.histograms.clear();
    db.behave(Behaviour {
        unchanged: true,
        ..Behaviour::default()
    });
    a.get(1).await.expect("a value that has not changed");
    db.behave(Behaviour {
        takes: Duration::from_millis(250),
        ..Behaviour::default()
    });
    a.get(2).await.expect("a value");
    db.behave(Behaviour::default());
    a.refresh(&2).await.expect("a value again");
    db.delete(3);
    a.get(3).await.expect("an absence");
    for (key, behaviour) in [
        (4, Behaviour::fails()),
        (
            5,
            Behaviour {
                panics: true,
                ..Behaviour::default()
            },
        ),
        (
            6,
            Behaviour {
                hangs: true,
                ..Behaviour::default()
            },
        ),
    ] {
        db.behave(behaviour);
        let caller = a.caller(key).await;
        advance(LONG).await;
        answer(caller).await.expect_err("no value");
    }
    assert_eq!(
        collected.observed(LOAD),
        observed_once(&[
            "fwd=miss,outcome=error",
            "fwd=miss,outcome=found",
            "fwd=miss,outcome=missing",
            "fwd=miss,outcome=panicked",
            "fwd=miss,outcome=timed_out",
            "fwd=request,outcome=found",
            "fwd=stale,outcome=unchanged",
        ])
    );
    let took = collected.values("tidegate_load_duration_seconds{fwd=miss,outcome=found}");
    assert!((0.25..0.26).contains(&took[0]), "in seconds: {took:?}");
    backend.check(&[&a]).await;
}

#[tokio::test(start_paused = true)]
async fn an_operation_of_the_shared_tier_is_observed_by_its_name() {
    let recorder = DebuggingRecorder::new();
    let (mut collected, _guard) = Collected::begin(&recorder);
    let (backend, db) = (Backend::in_process(), Db::default());
    let a = backend.node_with(&db, with_stale_if_error).await;
    let since = |what: &str, collected: &mut Collected| {
        let names = collected.observed(OPERATION);
        collected.histograms.clear();
        let names = names.into_iter().map(|(name, count)| {
            let name = name.trim_start_matches("db_operation_name=").to_owned();
            (name, count)
        });
        (what.to_owned(), names.collect::<Vec<_>>())
    };
    let mut operations = Vec::new();
    a.get(1).await.expect("a value");
    operations.push(since("the first miss", &mut collected));
    a.get(2).await.expect("a value");
    operations.push(since("a miss", &mut collected));
    a.get(2).await.expect("a value");
    operations.push(since("a hit in L1", &mut collected));
    a.refresh(&2).await.expect("a value");
    operations.push(since("a refresh", &mut collected));
    a.insert(3, "row".to_owned()).await.expect("an insert");
    operations.push(since("an insert", &mut collected));
    a.expire(&3).await.expect("an expiry");
    operations.push(since("an expiry", &mut collected));
    a.invalidate(&3).await.expect("an invalidation");
    operations.push(since("an invalidation", &mut collected));
    a.invalidate_all().await.expect("an invalidation of all");
    operations.push(since("of all", &mut collected));
    a.get_many(&[4, 5]).await;
    operations.push(since("many", &mut collected));
    db.behave(Behaviour {
        do_not_store: true,
        ..Behaviour::default()
    });
    a.get(6).await.expect("a value");
    operations.push(since("not to be stored", &mut collected));
    db.behave(Behaviour::default());
    let gate = db.gate();
    let caller = a.caller(7).await;
    gate.reached().await;
    sleep(Duration::from_secs(21)).await;
    gate.open();
    answer(caller).await.expect("a value");
    operations.push(since("a long load", &mut collected));
    let operations: Vec<String> = operations
        .into_iter()
        .map(|(what, names)| {
            let names: Vec<String> = names
                .into_iter()
                .map(|(name, count)| match count {
                    1 => name,
                    _ => format!("{name} x{count}"),
                })
                .collect();
            format!("{what}: {}", names.join(" "))
        })
        .collect();
    assert_eq!(
        operations,
        [
            "the first miss: acquire beat x2 get replace",
            "a miss: acquire get replace",
            "a hit in L1: ",
            "a refresh: acquire get refill",
            "an insert: insert",
            "an expiry: expire",
            "an invalidation: invalidate",
            "of all: marks",
            "many: acquire x2 get_many replace x2",
            "not to be stored: acquire get release",
            "a long load: acquire get renew replace",
        ]
    );
    backend.check(&[&a]).await;
}

#[tokio::test]
async fn an_operation_that_fails_says_how() {
    let recorder = DebuggingRecorder::new();
    let (mut collected, _guard) = Collected::begin(&recorder);
    let (server, db) = (Server::start(), Db::default());
    let redis = server
        .long_timeout_builder()
        .connect()
        .await
        .expect("connect");
    let build = Cache::builder("users", db.clone()).l2(redis).build();
    let a = Node::new(build.expect("settings that make sense"));
    a.get(1).await.expect("a value");
    drop(server);
    eventually("Redis is missed", async || {
        let _: Result<(), _> = a.invalidate(&1).await;
        let names = collected.observed(OPERATION);
        names.iter().any(|(labels, _)| {
            *labels == "db_operation_name=invalidate,db_system_name=redis,error_type=unreachable"
        })
    })
    .await;
    let names = collected.observed(OPERATION);
    let good = "db_operation_name=replace,db_system_name=redis".to_owned();
    assert!(names.contains(&(good, 1)), "{names:?}");
    assert!(!collected.counted(&[&a], "tidegate_l2_failures").is_empty());
    a.check().await;
}

#[tokio::test(start_paused = true)]
async fn waiting_for_others_is_observed_by_what_for() {
    let recorder = DebuggingRecorder::new();
    let (mut collected, _guard) = Collected::begin(&recorder);
    let (backend, db) = (Backend::in_process(), Db::default());
    let bounded = |builder: CacheBuilder<Db>| builder.max_concurrent_loads(1);
    let (a, b) = (backend.node(&db).await, backend.node(&db).await);
    let c = backend.node_with(&db, bounded).await;
    let gate = db.gate();
    let mut callers = a.callers(2, 1).await;
    gate.reached().await;
    callers.push(b.caller(1).await);
    eventually("it waits for the lease", async || {
        b.stats().lease_waits == 1
    })
    .await;
    sleep(Duration::from_millis(250)).await;
    gate.open();
    for caller in callers {
        answer(caller).await.expect("a value");
    }
    assert_eq!(
        collected.observed(WAIT),
        observed_once(&["reason=flight", "reason=lease"])
    );
    for reason in ["flight", "lease"] {
        let waited = collected.values(&format!("{WAIT}{{reason={reason}}}"));
        assert!(waited[0] >= 0.25, "{reason}: {waited:?}");
    }
    c.get(2).await.expect("a value");
    let waits = collected.observed(WAIT);
    assert!(waits.contains(&("reason=place".to_owned(), 1)), "{waits:?}");
    assert_eq!(
        collected.counted(&[&a, &b, &c], "tidegate_lease"),
        once(&["tidegate_lease_waits_total{}"])
    );
    backend.check(&[&a, &b, &c]).await;
}

#[tokio::test(start_paused = true)]
async fn changes_and_remote_invalidations_are_counted() {
    let recorder = DebuggingRecorder::new();
    let (mut collected, _guard) = Collected::begin(&recorder);
    let (backend, db) = (Backend::in_process(), Db::default());
    let (a, b) = (backend.node(&db).await, backend.node(&db).await);
    b.get(1).await.expect("a value");
    a.get(2).await.expect("a value");
    a.invalidate(&1).await.expect("an invalidation");
    assert_eq!(
        collected.counted(&[&b], "tidegate_remote"),
        once(&["tidegate_remote_invalidations_total{}"])
    );
    a.expire(&2).await.expect("an expiry");
    a.insert(3, "row".to_owned()).await.expect("an insert");
    let write = async { Ok::<_, BoxError>("row".to_owned()) };
    a.invalidate_after(4, write).await.expect("a write");
    let counted = collected.counted(&[&a], "tidegate_changes");
    assert_eq!(
        counted,
        [
            ("tidegate_changes_total{operation=expire}".to_owned(), 1),
            ("tidegate_changes_total{operation=insert}".to_owned(), 1),
            ("tidegate_changes_total{operation=invalidate}".to_owned(), 2),
            ("tidegate_changes_total{operation=write}".to_owned(), 1),
        ]
    );
    backend.check(&[&a, &b]).await;
}

/// Counters are published every second, and the rest when the last handle is dropped.
#[tokio::test(start_paused = true)]
async fn counters_are_published_once_a_second_and_at_the_end() {
    let recorder = DebuggingRecorder::new();
    let (mut collected, _guard) = Collected::begin(&recorder);
    let (backend, db) = (Backend::in_process(), Db::default());
    let a = backend.node(&db).await;
    a.get(1).await.expect("a value");
    let hits = "tidegate_lookups_total{outcome=hit,tier=l1}";
    let hits = |collected: &mut Collected| {
        collected.collect();
        collected.counters.get(hits).copied()
    };
    a.get(1).await.expect("a hit");
    assert_eq!(hits(&mut collected), None);
    sleep(Duration::from_millis(1_100)).await;
    assert_eq!(hits(&mut collected), Some(1));
    a.get(1).await.expect("a hit");
    assert_eq!(hits(&mut collected), Some(1));
    sleep(Duration::from_secs(1)).await;
    assert_eq!(hits(&mut collected), Some(2));
    a.get(1).await.expect("a hit");
    backend.check(&[&a]).await;
    drop(a);
    assert_eq!(hits(&mut collected), Some(3));
    // Another cache of this name continues the series.
    let b = backend.node(&db).await;
    b.get(1).await.expect("a value");
    b.get(1).await.expect("a hit");
    b.close().await;
    assert_eq!(hits(&mut collected), Some(4));
    assert!(matches!(b.get(1).await, Err(Error::Closed)));
}

#[tokio::test(start_paused = true)]
async fn gauges_report_flights_repairs_and_the_channel() {
    let recorder = DebuggingRecorder::new();
    let (mut collected, _guard) = Collected::begin(&recorder);
    let (backend, db) = (Backend::in_process(), Db::default());
    let a = backend.node(&db).await;
    a.get(1).await.expect("a value");
    let gate = db.gate();
    let caller = a.caller(2).await;
    gate.reached().await;
    a.publish_metrics();
    collected.collect();
    for (gauge, stands) in [
        ("tidegate_flights{}", 1.0),
        ("tidegate_repairs_pending{}", 0.0),
        ("tidegate_channel_proven{}", 1.0),
        ("tidegate_l2_reachable{}", 1.0),
    ] {
        assert_eq!(collected.gauges.get(gauge), Some(&stands), "{gauge}");
    }
    assert!(collected.gauges.contains_key("tidegate_l1_entries{}"));
    gate.open();
    answer(caller).await.expect("a value");
    let read = Read::fresh();
    a.get_with(2, read).await.expect("a value");
    backend.check(&[&a]).await;
    a.publish_metrics();
    collected.collect();
    assert_eq!(collected.gauges.get("tidegate_flights{}"), Some(&0.0));
}

/// Statistics of the server are published on request only.
#[tokio::test]
async fn server_statistics_are_published_on_request() {
    let recorder = DebuggingRecorder::new();
    let (mut collected, _guard) = Collected::begin(&recorder);
    let server = Server::start();
    server.raw().ask("CONFIG SET maxmemory 64mb");
    let redis = server
        .long_timeout_builder()
        .connect()
        .await
        .expect("connect");
    let stats = redis.server_stats().await;
    collected.collect();
    assert!(collected.gauges.is_empty(), "not by itself");
    stats.publish();
    collected.collect();
    let node = &stats.nodes[0];
    let gauge = |name: &str| {
        let series = format!("tidegate_redis_{name}{{node={}}}", node.address);
        collected.gauges.get(&series).copied()
    };
    assert_eq!(gauge("memory_max_bytes"), Some(67_108_864.0));
    assert_eq!(gauge("memory_used_bytes"), Some(node.used_memory as f64));
    assert_eq!(gauge("primary"), Some(1.0));
    assert_eq!(
        collected.gauges.get("tidegate_redis_nodes_unanswered{}"),
        Some(&0.0)
    );
    for counter in [
        "keys_evicted",
        "keys_expired",
        "keyspace_hits",
        "keyspace_misses",
    ] {
        let series = format!("tidegate_redis_{counter}_total{{node={}}}", node.address);
        assert!(collected.counters.contains_key(&series), "{series}");
    }
}
