//! The samples for the live page: once a second, the counters of this process as JSON.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use hdrhistogram::Histogram;
use serde_json::{Value, json};
use tidegate::{Channel, Stats};
use tokio::sync::broadcast;
use tokio::time::{Instant, MissedTickBehavior, interval};

use crate::events::now_ms;
use crate::traffic::{Counts, Traffic};
use crate::{Shop, routes};

/// The seconds over which rates are averaged.
const WINDOW: usize = 10;
/// The number of past samples that a page receives first.
const HISTORY: usize = 90;

/// The past samples, and the channel for new ones.
#[derive(Debug)]
pub(crate) struct Live {
    history: Mutex<VecDeque<Arc<str>>>,
    sender: broadcast::Sender<Arc<str>>,
}

impl Live {
    pub(crate) fn new() -> Self {
        Self {
            history: Mutex::default(),
            sender: broadcast::channel(16).0,
        }
    }

    /// The past samples and a receiver of the following ones. No sample is in both, and none is
    /// left out.
    pub(crate) fn subscribe(&self) -> (VecDeque<Arc<str>>, broadcast::Receiver<Arc<str>>) {
        let history = self.history.lock().unwrap_or_else(PoisonError::into_inner);
        (history.clone(), self.sender.subscribe())
    }

    fn push(&self, sample: &Value) {
        let sample: Arc<str> = sample.to_string().into();
        let mut history = self.history.lock().unwrap_or_else(PoisonError::into_inner);
        if history.len() == HISTORY {
            history.pop_front();
        }
        history.push_back(Arc::clone(&sample));
        // An error means only that no page is open.
        let _ = self.sender.send(sample);
    }

    pub(crate) async fn run(self: Arc<Self>, shop: Arc<Shop>, traffic: Arc<Traffic>) {
        let mut ticks = interval(Duration::from_secs(1));
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        ticks.tick().await;
        let mut snapshots = VecDeque::from([Snapshot::now(&shop, &traffic)]);
        let mut number = 0_u64;
        loop {
            ticks.tick().await;
            number += 1;
            snapshots.push_back(Snapshot::now(&shop, &traffic));
            if snapshots.len() > WINDOW + 1 {
                snapshots.pop_front();
            }
            let sample = sample(number, &snapshots, &shop, &traffic).await;
            self.push(&sample);
        }
    }
}

/// All counters at one point in time.
#[derive(Debug)]
struct Snapshot {
    at: Instant,
    caches: [(&'static str, Stats); 4],
    traffic: Counts,
    queries: u64,
    /// The latencies since the previous snapshot.
    latencies: Histogram<u64>,
}

impl Snapshot {
    fn now(shop: &Shop, traffic: &Traffic) -> Self {
        Self {
            at: Instant::now(),
            caches: shop.caches.stats(),
            traffic: traffic.counts(),
            queries: shop.database.queries(),
            latencies: traffic.take_latencies(),
        }
    }
}

async fn sample(
    number: u64,
    snapshots: &VecDeque<Snapshot>,
    shop: &Shop,
    traffic: &Traffic,
) -> Value {
    let (first, last) = (&snapshots[0], &snapshots[snapshots.len() - 1]);
    let before = &snapshots[snapshots.len() - 2];
    let counts = last.traffic;
    json!({
        "number": number,
        "at_ms": now_ms(),
        "traffic": {
            "target": traffic.rate(),
            "rate": per_second(before, last, |snapshot| snapshot.traffic.answered),
            "answered": counts.answered,
            "errors": counts.errors,
            "not_sent": counts.not_sent,
            "in_flight": counts.in_flight,
            "seconds_left": traffic.left().as_secs(),
        },
        "latency": latency(snapshots.iter().skip(1)),
        "latency_now": latency([last]),
        "now": lookups(before, last),
        "window": lookups(first, last),
        "total_lookups": last.caches.iter().map(|(_, stats)| stats.lookups()).sum::<u64>(),
        "total_ratio": ratio(last.caches.iter().map(|(_, stats)| *stats)),
        "caches": caches(first, last),
        "l2": l2(shop).await,
        "database": {
            "kind": shop.database.kind(),
            "delay_ms": u64::try_from(shop.database.delay().as_millis()).unwrap_or(u64::MAX),
            "queries": per_second(before, last, |snapshot| snapshot.queries),
        },
        "events": shop.events.latest(12),
    })
}

/// The quantiles of the latency in milliseconds. Null if there was no request.
fn latency<'m>(snapshots: impl IntoIterator<Item = &'m Snapshot>) -> Value {
    let mut all: Option<Histogram<u64>> = None;
    for snapshot in snapshots {
        match &mut all {
            Some(all) => drop(all.add(&snapshot.latencies)),
            None => all = Some(snapshot.latencies.clone()),
        }
    }
    let Some(all) = all.filter(|all| !all.is_empty()) else {
        return Value::Null;
    };
    #[expect(
        clippy::cast_precision_loss,
        reason = "microseconds of less than a minute"
    )]
    let ms = |us: u64| us as f64 / 1_000.0;
    json!({
        "requests": all.len(),
        "p50": ms(all.value_at_quantile(0.5)),
        "p95": ms(all.value_at_quantile(0.95)),
        "p99": ms(all.value_at_quantile(0.99)),
        "max": ms(all.max()),
    })
}

/// The look-ups of all caches, per second.
fn lookups(from: &Snapshot, to: &Snapshot) -> Value {
    let rate = |of: fn(&Stats) -> u64| {
        per_second(from, to, |snapshot| {
            snapshot.caches.iter().map(|(_, stats)| of(stats)).sum()
        })
    };
    json!({
        "l1": rate(|stats| stats.l1_hits),
        "l2": rate(|stats| stats.l2_hits),
        "source": rate(|stats| stats.misses),
        "stale": rate(|stats| stats.stale_hits),
        "coalesced": rate(|stats| stats.coalesced),
        "loads": rate(|stats| stats.loads),
        "load_failures": rate(|stats| stats.load_failures),
        "l2_failures": rate(|stats| stats.l2_failures),
    })
}

/// The look-ups of each cache, per second.
fn caches(from: &Snapshot, to: &Snapshot) -> Vec<Value> {
    let seconds = seconds(from, to);
    let both = from.caches.iter().zip(&to.caches);
    let line = |((_, from), (name, to)): (&(_, Stats), &(&str, Stats))| {
        let stats = to.since(from);
        json!({
            "name": name,
            "lookups": round_rate(stats.lookups(), seconds),
            "l1": round_rate(stats.l1_hits, seconds),
            "l2": round_rate(stats.l2_hits, seconds),
            "source": round_rate(stats.misses, seconds),
            "loads": round_rate(stats.loads, seconds),
            "coalesced": round_rate(stats.coalesced, seconds),
            "stale": round_rate(stats.stale_hits, seconds),
            "ratio": ratio([stats]),
        })
    };
    both.map(line).collect()
}

/// The state of L2. The caches share one connection, so the worst report of any of them counts.
async fn l2(shop: &Shop) -> Value {
    let health = shop.caches.health();
    let channels = health.iter().map(|(_, health)| health.channel);
    let worst = channels.max_by_key(|channel| match channel {
        Channel::None => 0,
        Channel::Proven => 1,
        Channel::Unproven => 2,
        _ => 3,
    });
    let server = match shop.tier.server() {
        Some(server) => Some(server.is_running().await),
        None => None,
    };
    json!({
        "kind": shop.tier.kind(),
        // Null if the service started no server.
        "server_running": server,
        "reachable": health.iter().all(|(_, health)| health.l2_reachable),
        "channel": routes::channel(worst.unwrap_or(Channel::None)),
        "breaker_open": shop.events.is_breaker_open(),
        "pending_repairs": health.iter().map(|(_, health)| health.pending_repairs).sum::<usize>(),
        "gaps": health.iter().map(|(_, health)| health.gaps).sum::<u64>(),
    })
}

/// The share of hits in all look-ups. Null if there was no look-up.
fn ratio(stats: impl IntoIterator<Item = Stats>) -> Option<f64> {
    let (hits, all) = stats.into_iter().fold((0, 0), |(hits, all), stats| {
        (hits + stats.l1_hits + stats.l2_hits, all + stats.lookups())
    });
    #[expect(clippy::cast_precision_loss, reason = "a share")]
    let ratio = hits as f64 / all as f64;
    (all > 0).then_some(ratio)
}

/// The growth of a counter per second.
fn per_second(from: &Snapshot, to: &Snapshot, of: impl Fn(&Snapshot) -> u64) -> f64 {
    round_rate(of(to).saturating_sub(of(from)), seconds(from, to))
}

fn seconds(from: &Snapshot, to: &Snapshot) -> f64 {
    to.at.duration_since(from.at).as_secs_f64().max(0.001)
}

fn round_rate(count: u64, seconds: f64) -> f64 {
    #[expect(clippy::cast_precision_loss, reason = "a rate, for display")]
    let count = count as f64;
    (count / seconds * 10.0).round() / 10.0
}
