//! Metrics, through the facade crate `metrics`.
//!
//! A recorder is looked up at each observation, so it may be installed at any time. Earlier
//! observations are lost.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use metrics::{
    Label, Unit, counter, describe_counter, describe_gauge, describe_histogram, gauge, histogram,
};
use parking_lot::Mutex;

use crate::entry::ForwardReason;
use crate::health::Event;
use crate::stats::{COUNTER_SERIES, CounterSeries, Stats};

const LOAD: &str = "tidegate_load_duration_seconds";
const WAIT: &str = "tidegate_wait_duration_seconds";
/// `db.client.operation.duration` of OpenTelemetry, as Prometheus spells it.
const OPERATION: &str = "db_client_operation_duration_seconds";
const EVENTS: &str = "tidegate_events_total";

/// The gauges of a cache, as they are now.
#[derive(Debug)]
pub(crate) struct Gauges {
    pub(crate) l1_entries: u64,
    pub(crate) flights: usize,
    pub(crate) repairs_pending: usize,
    /// Whether the channel is proven, and whether L2 was reached. `None`: the cache has no L2.
    pub(crate) shared: Option<(bool, bool)>,
}

/// One cache's metrics.
#[derive(Debug)]
pub(super) struct Meters {
    name: Arc<str>,
    /// The counters that were published. Two publishers at once take turns, and each publishes the
    /// increase.
    published: Mutex<Option<Stats>>,
    is_published: AtomicBool,
}

impl Meters {
    pub(super) fn new(name: &str) -> Self {
        Self {
            name: name.into(),
            published: Mutex::new(None),
            is_published: AtomicBool::new(false),
        }
    }

    fn cache(&self) -> Label {
        Label::new("cache", Arc::clone(&self.name))
    }

    pub(super) fn operation(
        &self,
        system: &'static str,
        operation: &'static str,
        error: Option<&'static str>,
        took: Duration,
    ) {
        let mut labels = vec![
            self.cache(),
            Label::from_static_parts("db_system_name", system),
            Label::from_static_parts("db_operation_name", operation),
        ];
        labels.extend(error.map(|error| Label::from_static_parts("error_type", error)));
        histogram!(OPERATION, labels).record(took);
    }

    pub(super) fn waited(&self, reason: &'static str, took: Duration) {
        let labels = vec![self.cache(), Label::from_static_parts("reason", reason)];
        histogram!(WAIT, labels).record(took);
    }

    pub(super) fn loaded(&self, why: ForwardReason, outcome: &'static str, took: Duration) {
        let labels = vec![
            self.cache(),
            Label::from_static_parts("fwd", why.word()),
            Label::from_static_parts("outcome", outcome),
        ];
        histogram!(LOAD, labels).record(took);
    }

    pub(super) fn event(&self, event: &Event) {
        let labels = vec![
            self.cache(),
            Label::from_static_parts("event", event.name()),
        ];
        counter!(EVENTS, labels).increment(1);
    }

    /// Publishes the increase since the last time. Because increases are published, the counters of
    /// several caches with one name add up, also of caches that follow each other.
    pub(super) fn publish(&self, stats: Stats, gauges: Option<&Gauges>) {
        let before = {
            let mut published = self.published.lock();
            // Another publisher may have published a later snapshot.
            let newest = published.map_or(stats, |before| before.max(&stats));
            published.replace(newest)
        };
        if before.is_none() {
            describe();
        }
        let new = stats.since(&before.unwrap_or_default());
        for CounterSeries { name, labels, of } in COUNTER_SERIES {
            let labels = labels
                .iter()
                .map(|(label, value)| Label::from_static_parts(label, value));
            let labels: Vec<Label> = std::iter::once(self.cache()).chain(labels).collect();
            counter!(*name, labels).increment(of(&new));
        }
        if let Some(gauges) = gauges {
            self.set(gauges);
        }
    }

    #[expect(clippy::cast_precision_loss, reason = "gauges are floats")]
    fn set(&self, gauges: &Gauges) {
        let set = |name: &'static str, value: f64| gauge!(name, vec![self.cache()]).set(value);
        set("tidegate_l1_entries", gauges.l1_entries as f64);
        set("tidegate_flights", gauges.flights as f64);
        set("tidegate_repairs_pending", gauges.repairs_pending as f64);
        if let Some((proven, reachable)) = gauges.shared {
            set("tidegate_channel_proven", f64::from(u8::from(proven)));
            set("tidegate_l2_reachable", f64::from(u8::from(reachable)));
        }
    }

    pub(super) fn begin_publishing(&self) -> bool {
        !self.is_published.load(Ordering::Relaxed)
            && !self.is_published.swap(true, Ordering::SeqCst)
    }

    pub(super) fn end_publishing(&self) {
        self.is_published.store(false, Ordering::SeqCst);
    }
}

/// Publishes what the servers report in `INFO`.
#[cfg(feature = "redis")]
#[expect(clippy::cast_precision_loss, reason = "gauges are floats")]
fn server(stats: &crate::ServerStats) {
    gauge!("tidegate_redis_nodes_unanswered").set(stats.unanswered as f64);
    for node in &stats.nodes {
        let label = || vec![Label::new("node", node.address.clone())];
        let count = |name: &'static str, value: u64| counter!(name, label()).absolute(value);
        let set = |name: &'static str, value: u64| gauge!(name, label()).set(value as f64);
        count("tidegate_redis_keys_evicted_total", node.evicted_keys);
        count("tidegate_redis_keys_expired_total", node.expired_keys);
        count("tidegate_redis_keyspace_hits_total", node.keyspace_hits);
        count("tidegate_redis_keyspace_misses_total", node.keyspace_misses);
        set("tidegate_redis_memory_used_bytes", node.used_memory);
        // As in Redis, 0 means no limit.
        set(
            "tidegate_redis_memory_max_bytes",
            node.max_memory.unwrap_or(0),
        );
        set("tidegate_redis_clients_connected", node.connected_clients);
        set("tidegate_redis_ops_per_second", node.ops_per_second);
        set("tidegate_redis_replicas_connected", node.connected_replicas);
        let primary = node.role == crate::Role::Primary;
        set("tidegate_redis_primary", u64::from(primary));
        if let Some(lag) = node.replication_lag {
            set("tidegate_redis_replication_lag_bytes", lag);
        }
    }
}

fn describe() {
    describe_histogram!(
        LOAD,
        Unit::Seconds,
        "What a load took, by why it was begun and how it ended"
    );
    describe_histogram!(
        WAIT,
        Unit::Seconds,
        "How long a call waited for another load, a lease or a place"
    );
    describe_histogram!(
        OPERATION,
        Unit::Seconds,
        "Duration of database client operations."
    );
    describe_counter!(EVENTS, Unit::Count, "What `on_event` was told");
    for CounterSeries { name, .. } in COUNTER_SERIES {
        describe_counter!(
            *name,
            Unit::Count,
            "See `Stats` in the documentation of tidegate"
        );
    }
    describe_gauge!(
        "tidegate_l1_entries",
        Unit::Count,
        "Entries in L1, values and absences"
    );
    describe_gauge!("tidegate_flights", Unit::Count, "Reads and loads under way");
    describe_gauge!(
        "tidegate_repairs_pending",
        Unit::Count,
        "Invalidations that the shared tier has not confirmed"
    );
    describe_gauge!(
        "tidegate_channel_proven",
        "1 while L1 may answer, 0 while it may not"
    );
    describe_gauge!(
        "tidegate_l2_reachable",
        "1 if the last operation of the shared tier was answered"
    );
}

#[cfg(feature = "redis")]
impl crate::l2::redis::ServerStats {
    /// Sets the [metrics](crate::guide::telemetry) `tidegate_redis_…` of each node to these values.
    #[cfg_attr(docsrs, doc(cfg(feature = "metrics")))]
    pub fn publish(&self) {
        server(self);
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use metrics_util::debugging::{DebugValue, DebuggingRecorder};

    use super::*;
    use crate::stats::one_of_each;

    /// Each counter of `Stats` has one series, and no two have the same.
    #[test]
    fn every_counter_is_published_as_a_series_of_its_own() {
        let mut all = BTreeSet::new();
        for (field, one) in one_of_each() {
            let recorder = DebuggingRecorder::new();
            let _guard = metrics::set_default_local_recorder(&recorder);
            Meters::new("users").publish(one, None);
            let published = recorder.snapshotter().snapshot().into_vec();
            let counted: Vec<String> = published
                .into_iter()
                .filter(|(.., value)| *value == DebugValue::Counter(1))
                .map(|(key, ..)| format!("{}", key.key()))
                .collect();
            assert_eq!(counted.len(), 1, "{field}: {counted:?}");
            all.extend(counted);
        }
        assert_eq!(
            (all.len(), COUNTER_SERIES.len()),
            (one_of_each().len(), all.len())
        );
    }

    #[test]
    fn what_was_published_is_not_published_again_in_any_order() {
        let recorder = DebuggingRecorder::new();
        let _guard = metrics::set_default_local_recorder(&recorder);
        let (meters, snapshots) = (Meters::new("users"), recorder.snapshotter());
        let at = |l1_hits| Stats {
            l1_hits,
            ..Stats::default()
        };
        let mut published = 0;
        for hits in [2, 5, 3, 5, 6] {
            meters.publish(at(hits), None);
            for (.., value) in snapshots.snapshot().into_vec() {
                if let DebugValue::Counter(count) = value {
                    published += count;
                }
            }
        }
        assert_eq!(published, 6);
    }

    /// The guide names every metric.
    #[test]
    fn every_metric_is_in_the_guide() {
        let guide = include_str!("../guide/telemetry.md");
        let code = [include_str!("meters.rs"), include_str!("../stats.rs")].concat();
        let names = code.split('"').filter(|word| {
            let name = word.starts_with("tidegate_") || word.starts_with("db_client_");
            name && word
                .bytes()
                .all(|byte| byte.is_ascii_lowercase() || byte == b'_' || byte.is_ascii_digit())
        });
        let missing: Vec<&str> = names
            .filter(|name| name.len() > "tidegate_".len() + 1)
            .filter(|name| !guide.contains(&format!("`{name}`")))
            .collect();
        assert!(missing.is_empty(), "{missing:?}");
    }
}
