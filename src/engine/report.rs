//! What the engine says of itself: counted look-ups, events, health and published metrics.

#[cfg(feature = "metrics")]
use std::sync::Arc;

#[cfg(feature = "metrics")]
use tokio::runtime::Handle;
use tokio::time::Instant;

use super::core::Engine;
use crate::answer::Answer;
use crate::coherence::channel::ChannelLease;
use crate::entry::{Freshness, Source};
use crate::erased::AnyError;
use crate::error::Error;
use crate::health::{Channel, Event, Health};
#[cfg(feature = "metrics")]
use crate::telemetry::{self, Gauges};

/// An answer of a flight to one of its callers.
pub(super) struct CallerAnswer {
    pub(super) answer: Answer,
    /// The caller had joined the flight of another one.
    pub(super) joined: bool,
}

impl CallerAnswer {
    pub(super) fn own(answer: Answer) -> Self {
        Self {
            answer,
            joined: false,
        }
    }
}

impl Engine {
    /// Counts one answered look-up.
    pub(super) fn count(&self, answer: &Answer) {
        let stats = &self.stats;
        match answer.source {
            Source::L1 => stats.l1_hits.add(),
            Source::L2 => stats.l2_hits.add(),
            Source::Loader | Source::Coalesced => stats.misses.add(),
        }
        if answer.freshness != Freshness::Fresh {
            stats.stale_hits.add();
        }
        if answer.value.is_none() && matches!(answer.source, Source::L1 | Source::L2) {
            stats.negative_hits.add();
        }
    }

    /// Counts a look-up that L1 has not answered.
    pub(super) fn counted(
        &self,
        got: Result<CallerAnswer, Error<AnyError>>,
    ) -> Result<Answer, Error<AnyError>> {
        match &got {
            Ok(CallerAnswer { answer, .. }) => self.count(answer),
            Err(Error::Closed | Error::NoRuntime) => {}
            Err(_) => self.stats.misses.add(),
        }
        let CallerAnswer { mut answer, joined } = got?;
        if joined {
            self.stats.coalesced.add();
            if answer.freshness == Freshness::Fresh {
                answer.source = Source::Coalesced;
            }
        }
        Ok(answer)
    }

    /// Tells the user of an event.
    pub(crate) fn emit(&self, event: &Event) {
        self.emit_change(event, true);
    }

    /// The same. `first`: the state was another one before, so that it is logged.
    pub(super) fn emit_change(&self, event: &Event, first: bool) {
        self.telemetry.event(event, first);
        if let Some(on_event) = &self.config.on_event {
            // A panic in the user's function is its own trouble.
            let emit = std::panic::AssertUnwindSafe(|| on_event.0(event));
            let _ = std::panic::catch_unwind(emit);
        }
    }

    pub(crate) fn health(&self) -> Health {
        let now = Instant::now();
        let channel = self.remote.as_ref().map(|remote| &remote.channel);
        Health {
            channel: match channel {
                None => Channel::None,
                Some(channel) if channel.is_proven(now) => Channel::Proven,
                Some(channel) if channel.is_up() => Channel::Unproven,
                Some(_) => Channel::Down,
            },
            last_message: channel.and_then(|channel| channel.since_last_message(now)),
            gaps: self.stats.snapshot().gaps,
            pending_repairs: self.repairs.len(),
            l2_reachable: channel.is_some_and(ChannelLease::is_reachable),
            denied: self.remote.as_ref().and_then(|remote| remote.tier.denied()),
        }
    }

    #[cfg(feature = "metrics")]
    pub(crate) fn publish(&self) {
        let (health, remote) = (self.health(), self.remote.is_some());
        let gauges = Gauges {
            l1_entries: self.l1.entries(),
            flights: self.flights.under_way(),
            repairs_pending: health.pending_repairs,
            shared: remote.then_some((health.channel == Channel::Proven, health.l2_reachable)),
        };
        self.telemetry.publish(self.stats.snapshot(), Some(&gauges));
    }

    /// Publishes metrics at intervals, from the first look-up past L1 on.
    #[cfg(feature = "metrics")]
    pub(super) fn publish_from_now_on(self: &Arc<Self>, runtime: &Handle) {
        if let Some(publishing) = self.telemetry.begin_publishing() {
            let engine = Arc::downgrade(self);
            runtime.spawn(async move {
                let _publishing = publishing;
                loop {
                    tokio::time::sleep(telemetry::PUBLISH_INTERVAL).await;
                    match engine.upgrade() {
                        Some(engine) if !engine.is_closed() => engine.publish(),
                        _ => return,
                    }
                }
            });
        }
    }
}
