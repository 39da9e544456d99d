//! What the live page shows: a sample each second, of this process's own counters.

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

/// Seconds that averages are taken over.
const WINDOW: usize = 10;
/// Samples that a page is given to begin with.
const HISTORY: usize = 90;

/// The samples, as JSON.
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

    /// What there has been, and whatever comes: nothing twice, and nothing left out.
    pub(crate) fn follow(&self) -> (VecDeque<Arc<str>>, broadcast::Receiver<Arc<str>>) {
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
        // Nobody looks: fine.
        let _ = self.sender.send(sample);
    }

    pub(crate) async fn run(self: Arc<Self>, shop: Arc<Shop>, traffic: Arc<Traffic>) {
        let mut ticks = interval(Duration::from_secs(1));
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        ticks.tick().await;
        let mut moments = VecDeque::from([Moment::now(&shop, &traffic)]);
        let mut number = 0_u64;
        loop {
            ticks.tick().await;
            number += 1;
            moments.push_back(Moment::now(&shop, &traffic));
            if moments.len() > WINDOW + 1 {
                moments.pop_front();
            }
            let sample = sample(number, &moments, &shop, &traffic).await;
            self.push(&sample);
        }
    }
}

/// All counters at one moment.
#[derive(Debug)]
struct Moment {
    at: Instant,
    caches: [(&'static str, Stats); 4],
    traffic: Counts,
    queries: u64,
    /// Since the moment before.
    latencies: Histogram<u64>,
}

impl Moment {
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

async fn sample(number: u64, moments: &VecDeque<Moment>, shop: &Shop, traffic: &Traffic) -> Value {
    let (first, last) = (&moments[0], &moments[moments.len() - 1]);
    let before = &moments[moments.len() - 2];
    let counts = last.traffic;
    json!({
        "number": number,
        "at_ms": now_ms(),
        "traffic": {
            "target": traffic.rate(),
            "rate": per_second(before, last, |moment| moment.traffic.answered),
            "answered": counts.answered,
            "errors": counts.errors,
            "not_sent": counts.not_sent,
            "in_flight": counts.in_flight,
            "seconds_left": traffic.left().as_secs(),
        },
        "latency": latency(moments.iter().skip(1)),
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
            "queries": per_second(before, last, |moment| moment.queries),
        },
        "events": shop.events.latest(12),
    })
}

/// In milliseconds; null where there was no request.
fn latency<'m>(moments: impl IntoIterator<Item = &'m Moment>) -> Value {
    let mut all: Option<Histogram<u64>> = None;
    for moment in moments {
        match &mut all {
            Some(all) => drop(all.add(&moment.latencies)),
            None => all = Some(moment.latencies.clone()),
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

/// Of all caches, a second.
fn lookups(from: &Moment, to: &Moment) -> Value {
    let rate = |of: fn(&Stats) -> u64| {
        per_second(from, to, |moment| {
            moment.caches.iter().map(|(_, stats)| of(stats)).sum()
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

fn caches(from: &Moment, to: &Moment) -> Vec<Value> {
    let seconds = seconds(from, to);
    let both = from.caches.iter().zip(&to.caches);
    let line = |((_, from), (name, to)): (&(_, Stats), &(&str, Stats))| {
        let stats = to.since(from);
        json!({
            "name": name,
            "lookups": a_second(stats.lookups(), seconds),
            "l1": a_second(stats.l1_hits, seconds),
            "l2": a_second(stats.l2_hits, seconds),
            "source": a_second(stats.misses, seconds),
            "loads": a_second(stats.loads, seconds),
            "coalesced": a_second(stats.coalesced, seconds),
            "stale": a_second(stats.stale_hits, seconds),
            "ratio": ratio([stats]),
        })
    };
    both.map(line).collect()
}

/// The worst that any of the caches says: they share one connection.
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
        // Null where there is none of our own.
        "server_running": server,
        "reachable": health.iter().all(|(_, health)| health.l2_reachable),
        "channel": routes::channel(worst.unwrap_or(Channel::None)),
        "breaker_open": shop.events.is_breaker_open(),
        "pending_repairs": health.iter().map(|(_, health)| health.pending_repairs).sum::<usize>(),
        "gaps": health.iter().map(|(_, health)| health.gaps).sum::<u64>(),
    })
}

/// Null where nobody asked.
fn ratio(stats: impl IntoIterator<Item = Stats>) -> Option<f64> {
    let (hits, all) = stats.into_iter().fold((0, 0), |(hits, all), stats| {
        (hits + stats.l1_hits + stats.l2_hits, all + stats.lookups())
    });
    #[expect(clippy::cast_precision_loss, reason = "a share")]
    let ratio = hits as f64 / all as f64;
    (all > 0).then_some(ratio)
}

fn per_second(from: &Moment, to: &Moment, of: impl Fn(&Moment) -> u64) -> f64 {
    a_second(of(to).saturating_sub(of(from)), seconds(from, to))
}

fn seconds(from: &Moment, to: &Moment) -> f64 {
    to.at.duration_since(from.at).as_secs_f64().max(0.001)
}

fn a_second(count: u64, seconds: f64) -> f64 {
    #[expect(clippy::cast_precision_loss, reason = "a rate, for people")]
    let count = count as f64;
    (count / seconds * 10.0).round() / 10.0
}
