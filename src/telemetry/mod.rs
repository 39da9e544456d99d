//! Metrics and traces: what the engine reports to them.
//!
//! The engine calls [`Telemetry`] and [`Trace`] in a few places. Without the features `metrics` and
//! `tracing` they are empty. A hit in L1 calls nothing here: hits are counted in
//! [`Stats`](crate::Stats), and the increase is published once a second.
//!
//! The collectors of metrics and traces are the user's code: no lock is held while they are called.

use std::sync::Arc;
#[cfg(feature = "metrics")]
use std::time::Duration;

use tokio::time::Instant;

use crate::entry::ForwardReason;
use crate::error::{Error, RemoteError};
use crate::health::Event;
use crate::loader::Loaded;

#[cfg(feature = "metrics")]
mod meters;
#[cfg(feature = "tracing")]
mod spans;
#[cfg(not(feature = "tracing"))]
#[path = "no_spans.rs"]
mod spans;

#[cfg(feature = "metrics")]
pub(crate) use self::meters::Gauges;
pub(crate) use self::spans::Trace;

/// What a call waits for.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Wait {
    /// A read or a load of another call.
    Flight,
    /// The load of another process.
    Lease,
    /// A permit of `max_concurrent_loads`, or a batch.
    Permit,
}

#[cfg(feature = "metrics")]
impl Wait {
    /// As a label.
    fn reason(self) -> &'static str {
        match self {
            Self::Flight => "flight",
            Self::Lease => "lease",
            Self::Permit => "place",
        }
    }
}

/// The telemetry of one cache.
#[derive(Debug)]
pub(crate) struct Telemetry {
    #[cfg(feature = "metrics")]
    meters: meters::Meters,
    #[cfg(feature = "tracing")]
    tracer: spans::Tracer,
}

impl Telemetry {
    #[cfg_attr(
        not(any(feature = "metrics", feature = "tracing")),
        expect(unused_variables, reason = "without a feature there is no receiver")
    )]
    pub(crate) fn new(name: &str) -> Arc<Self> {
        Arc::new(Self {
            #[cfg(feature = "metrics")]
            meters: meters::Meters::new(name),
            #[cfg(feature = "tracing")]
            tracer: spans::Tracer::new(name),
        })
    }

    /// Begins to measure an operation of the shared tier.
    pub(crate) fn measure(
        &self,
        system: &'static str,
        operation: &'static str,
    ) -> OperationTimer<'_> {
        OperationTimer {
            trace: self.operation_trace(system, operation),
            telemetry: self,
            #[cfg(feature = "metrics")]
            of: (system, operation, Instant::now()),
        }
    }

    /// Reports a wait that has ended.
    #[cfg_attr(
        not(feature = "metrics"),
        expect(
            unused_variables,
            clippy::unused_self,
            reason = "without a feature there is no receiver"
        )
    )]
    pub(crate) fn waited(&self, what: Wait, since: Instant) {
        #[cfg(feature = "metrics")]
        self.meters.waited(what.reason(), since.elapsed());
    }

    /// Reports a load that has ended.
    #[cfg_attr(
        not(feature = "metrics"),
        expect(
            unused_variables,
            clippy::unused_self,
            reason = "without a feature there is no receiver"
        )
    )]
    pub(crate) fn loaded<V, E, C>(
        &self,
        why: ForwardReason,
        result: &Result<(Loaded<V>, C), Error<E>>,
        begun: Instant,
    ) {
        #[cfg(feature = "metrics")]
        self.meters.loaded(why, outcome(result), begun.elapsed());
    }

    /// Reports an event, which `on_event` is given too. `first`: it is a change of the state.
    #[cfg_attr(
        not(any(feature = "metrics", feature = "tracing")),
        expect(
            unused_variables,
            clippy::unused_self,
            reason = "without a feature there is no receiver"
        )
    )]
    pub(crate) fn event(&self, event: &Event, first: bool) {
        #[cfg(feature = "metrics")]
        self.meters.event(event);
        #[cfg(feature = "tracing")]
        if first {
            self.tracer.event(event);
        }
        let _ = first;
    }

    #[cfg(feature = "metrics")]
    pub(crate) fn publish(&self, stats: crate::Stats, gauges: Option<&Gauges>) {
        self.meters.publish(stats, gauges);
    }

    /// Makes the caller the publisher of this cache, until the guard is dropped. `None`: there is
    /// one.
    #[cfg(feature = "metrics")]
    pub(crate) fn begin_publishing(self: &Arc<Self>) -> Option<PublishGuard> {
        self.meters
            .begin_publishing()
            .then(|| PublishGuard(Arc::clone(self)))
    }

    fn operation_trace(&self, system: &'static str, operation: &'static str) -> Trace {
        #[cfg(feature = "tracing")]
        return self.tracer.operation(system, operation);
        #[cfg(not(feature = "tracing"))]
        {
            let _ = (system, operation);
            Trace::none()
        }
    }

    /// The span of a flight, which begins in the context of the call that leads it. `background`:
    /// no call waits for the flight.
    #[cfg_attr(
        not(feature = "tracing"),
        expect(
            unused_variables,
            clippy::unused_self,
            reason = "without a feature there is no receiver"
        )
    )]
    pub(crate) fn flight_trace(&self, serial: u64, background: bool, encoded: &[u8]) -> Trace {
        #[cfg(feature = "tracing")]
        return self.tracer.flight(serial, background, encoded);
        #[cfg(not(feature = "tracing"))]
        Trace::none()
    }

    /// The span of a call of the loader for this number of keys.
    #[cfg_attr(
        not(feature = "tracing"),
        expect(
            unused_variables,
            clippy::unused_self,
            reason = "without a feature there is no receiver"
        )
    )]
    pub(crate) fn load_trace(&self, why: Option<ForwardReason>, keys: usize) -> Trace {
        #[cfg(feature = "tracing")]
        return self.tracer.load(why, keys);
        #[cfg(not(feature = "tracing"))]
        Trace::none()
    }
}

/// Measures one operation of the shared tier.
pub(crate) struct OperationTimer<'a> {
    pub(crate) trace: Trace,
    #[cfg_attr(
        not(feature = "metrics"),
        expect(dead_code, reason = "without a feature there is no receiver")
    )]
    telemetry: &'a Telemetry,
    #[cfg(feature = "metrics")]
    of: (&'static str, &'static str, Instant),
}

impl OperationTimer<'_> {
    pub(crate) fn end(&self, outcome: &impl Outcome) {
        let error = outcome.error_type();
        if let Some(error) = error {
            self.trace.failed(error);
        }
        #[cfg(feature = "metrics")]
        {
            let (system, operation, begun) = self.of;
            let meters = &self.telemetry.meters;
            meters.operation(system, operation, error, begun.elapsed());
        }
    }
}

/// The right to publish the counters of a cache. At most one exists.
#[cfg(feature = "metrics")]
#[derive(Debug)]
pub(crate) struct PublishGuard(Arc<Telemetry>);

#[cfg(feature = "metrics")]
impl Drop for PublishGuard {
    fn drop(&mut self) {
        self.0.meters.end_publishing();
    }
}

/// How often counters are published.
#[cfg(feature = "metrics")]
pub(crate) const PUBLISH_INTERVAL: Duration = Duration::from_secs(1);

/// How an operation ended, in one word.
pub(crate) trait Outcome {
    /// The kind of the error. `None`: there was none.
    fn error_type(&self) -> Option<&'static str>;
}

impl<T> Outcome for Result<T, RemoteError> {
    fn error_type(&self) -> Option<&'static str> {
        let error = self.as_ref().err()?;
        let words = [
            (error.is_timeout(), "timeout"),
            (error.is_tls(), "tls"),
            (error.is_unreachable(), "unreachable"),
            (error.is_denied(), "denied"),
        ];
        let mut words = words.into_iter().filter(|(is, _)| *is);
        Some(words.next().map_or("refused", |(_, word)| word))
    }
}

impl<T> Outcome for (T, Result<(), RemoteError>) {
    fn error_type(&self) -> Option<&'static str> {
        self.1.error_type()
    }
}

/// How a load ended, in one word.
pub(crate) fn outcome<V, E, C>(result: &Result<(Loaded<V>, C), Error<E>>) -> &'static str {
    match result {
        Ok((loaded, _)) if loaded.unchanged => "unchanged",
        Ok((loaded, _)) if loaded.value.is_none() => "missing",
        Ok(_) => "found",
        Err(Error::LoadPanicked) => "panicked",
        Err(Error::LoadTimedOut(_)) => "timed_out",
        Err(Error::Closed) => "closed",
        Err(_) => "error",
    }
}

impl Event {
    /// As a label.
    #[cfg(any(feature = "metrics", feature = "tracing"))]
    fn name(&self) -> &'static str {
        match self {
            Self::ChannelUp => "channel_up",
            Self::ChannelDown => "channel_down",
            Self::ChannelSilent => "channel_silent",
            Self::Gap => "gap",
            Self::BreakerOpened => "breaker_opened",
            Self::BreakerClosed => "breaker_closed",
            Self::Denied => "denied",
            Self::Granted => "granted",
            Self::RepairPending => "repair_pending",
            Self::RepairsOverflowed => "repairs_overflowed",
        }
    }
}
