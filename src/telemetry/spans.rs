//! Traces, through the crate `tracing`.
//!
//! | span (all DEBUG) | parent | fields |
//! |---|---|---|
//! | `flight` | the span of the call that leads it. Without a waiting call none; it follows from the call that began it | `cache`, `flight` |
//! | `load` | the flight. A load of several keys has none; it follows from their flights | `cache`, `keys`, `fwd`, `outcome` |
//! | `l2` | the flight, or the call | those of OpenTelemetry for database clients |

use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::time::Instant;
use tracing::field::Empty;
use tracing::instrument::Instrumented;
use tracing::{Instrument, Span, debug_span, info, trace, warn};

use crate::entry::ForwardReason;
use crate::health::Event;

/// A span, or none.
#[derive(Clone, Debug)]
pub(crate) struct Trace(Span);

impl Trace {
    /// Whether traces exist.
    pub(crate) const ARE_KEPT: bool = true;

    pub(crate) fn none() -> Self {
        Self(Span::none())
    }

    /// The span of the caller.
    pub(crate) fn here() -> Self {
        Self(Span::current())
    }

    pub(crate) fn within<F: Future>(&self, doing: F) -> Instrumented<F> {
        doing.instrument(self.0.clone())
    }

    /// Links this span to the span that led to it.
    pub(crate) fn follows(&self, earlier: &Self) {
        if self.0.id() != earlier.0.id() {
            self.0.follows_from(&earlier.0);
        }
    }

    /// Notes that the caller waits for this flight.
    pub(crate) fn joined_here(&self, serial: u64) {
        Self::here().follows(self);
        trace!(flight = serial, "joined a flight");
    }

    pub(crate) fn failed(&self, error: &'static str) {
        self.0.record("error.type", error);
    }

    pub(crate) fn ended(&self, outcome: &'static str) {
        self.0.record("outcome", outcome);
    }
}

/// Makes the spans and logs the events of one cache.
#[derive(Debug)]
pub(super) struct Tracer {
    name: Arc<str>,
    /// When a gap was last logged.
    last_gap: Mutex<Option<Instant>>,
}

/// At most one gap is logged in this time, however many a process notices.
const GAP_LOG_INTERVAL: Duration = Duration::from_secs(1);

impl Tracer {
    pub(super) fn new(name: &str) -> Self {
        Self {
            name: name.into(),
            last_gap: Mutex::new(None),
        }
    }

    pub(super) fn flight(&self, serial: u64, background: bool, encoded: &[u8]) -> Trace {
        let cache = &*self.name;
        let trace = if background {
            let span = debug_span!(parent: None, "flight", cache, flight = serial);
            let trace = Trace(span);
            trace.follows(&Trace::here());
            trace
        } else {
            Trace(debug_span!("flight", cache, flight = serial).or_current())
        };
        // Keys may hold personal data: this is the only place that names one.
        let key = || String::from_utf8_lossy(encoded);
        trace!(parent: &trace.0, cache, flight = serial, key = %key(), "a flight begins");
        trace
    }

    /// The span is in the context of its flight, if it has one.
    pub(super) fn load(&self, why: Option<ForwardReason>, keys: usize) -> Trace {
        let (cache, fwd) = (&*self.name, why.map(ForwardReason::word));
        Trace(debug_span!("load", cache, keys, fwd, outcome = Empty).or_current())
    }

    pub(super) fn operation(&self, system: &'static str, operation: &'static str) -> Trace {
        Trace(
            debug_span!(
                "l2",
                cache = &*self.name,
                otel.kind = "client",
                db.system.name = system,
                db.operation.name = operation,
                error.type = Empty
            )
            .or_current(),
        )
    }

    pub(super) fn event(&self, event: &Event) {
        if *event == Event::Gap && !self.may_log_gap() {
            return;
        }
        let (cache, name) = (&*self.name, event.name());
        match event {
            Event::ChannelUp | Event::BreakerClosed | Event::Granted => {
                info!(cache, event = name, "{}", text(event));
            }
            _ => warn!(cache, event = name, "{}", text(event)),
        }
    }

    fn may_log_gap(&self) -> bool {
        let (mut last, now) = (self.last_gap.lock(), Instant::now());
        let due = last.is_none_or(|last| now.saturating_duration_since(last) >= GAP_LOG_INTERVAL);
        if due {
            *last = Some(now);
        }
        due
    }
}

fn text(event: &Event) -> &'static str {
    match event {
        Event::ChannelUp => "the invalidation bus is subscribed to",
        Event::ChannelDown => "the invalidation bus is lost: L1 is not used until it is back",
        Event::ChannelSilent => "the invalidation bus is silent: a new connection is made",
        Event::Gap => "a message may have been missed: what was read before is asked for again",
        Event::BreakerOpened => "the server does not answer: it is not asked until it does",
        Event::BreakerClosed => "the server answers again",
        Event::Denied => "the server denies something to the user: see the health of the cache",
        Event::Granted => "the server denies nothing any more",
        Event::RepairPending => "an invalidation is not confirmed: it is repeated until it is",
        Event::RepairsOverflowed => {
            "too many invalidations are not confirmed: everything is invalidated instead"
        }
    }
}
