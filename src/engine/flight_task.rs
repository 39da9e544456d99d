//! A flight's task: what runs one flight to its completion, in a task or polled by its leader.
//!
//! Its methods are in the files of their subjects: the read path in [`fetch`](super::fetch), loads
//! in [`load`](super::load), the lease's side in [`regenerate`](super::regenerate).

use std::sync::Arc;

use parking_lot::Mutex;
use tokio::time::Instant;

use super::batch::LoadRoute;
use super::completion::{Completion, Retention};
use super::core::Engine;
use super::flight::{Flight, Outcome, Purpose};
use super::load::nesting::Nesting;
use super::memory::RETRY_AFTER;
use super::tasks::Running;
use crate::entry::Freshness;
use crate::error::Error;
use crate::protocol::request::RecordRead;
use crate::ttl;

/// A flight that is not completed yet. When it is dropped before that, with its runtime, it leaves
/// nothing behind, and its callers look again.
pub(crate) struct FlightTask {
    pub(super) engine: Arc<Engine>,
    pub(super) flight: Arc<Flight>,
    /// The flights whose loads asked for this one.
    pub(super) nesting: Nesting,
    /// What L2 holds, if that was read already.
    pub(super) read: Option<RecordRead>,
    route: Mutex<LoadRoute>,
    completed: bool,
    /// Counted as running until it is dropped, which is last.
    _running: Running,
}

impl FlightTask {
    /// The task of a flight that was put into the table a moment ago. Not to be called under a lock:
    /// a collector of traces may be slow.
    pub(super) fn new(
        engine: &Arc<Engine>,
        flight: &Arc<Flight>,
        nesting: Nesting,
        running: Running,
    ) -> Self {
        let background = matches!(flight.purpose, Purpose::Replace(_));
        let (serial, encoded) = (flight.serial, &flight.key.id.encoded);
        flight.traced(engine.telemetry.flight_trace(serial, background, encoded));
        Self {
            engine: Arc::clone(engine),
            flight: Arc::clone(flight),
            nesting,
            read: None,
            route: Mutex::new(LoadRoute::Single),
            completed: false,
            _running: running,
        }
    }

    /// The way to its load, if it needs one.
    pub(super) fn set_route(&self, route: LoadRoute) {
        *self.route.lock() = route;
    }

    /// The way to its load. From then on it is a single one.
    pub(super) fn take_route(&self) -> LoadRoute {
        self.route.lock().take()
    }

    /// Whether no caller waits for it.
    pub(super) fn is_background(&self) -> bool {
        self.flight.is_background(&self.engine.config.windows)
    }

    /// Waits until the cache is closed, if no caller waits for this flight then.
    pub(super) async fn cut_off(&self) {
        self.engine.tasks.closing().await;
        if !self.is_background() {
            std::future::pending::<()>().await;
        }
    }

    /// Takes the flight out of the table, keeps what is to be kept, and answers its callers.
    pub(super) fn complete(mut self, completion: Completion) {
        // Other loads of its batch do not wait for this one any more.
        drop(self.take_route());
        let flight = &self.flight;
        let in_l1 = self.retain(
            completion.retention,
            completion.outcome.as_ref().is_some_and(Result::is_ok),
        );
        flight.complete(match completion.outcome {
            Some(outcome) => Outcome::Completed(outcome.map(|mut answer| {
                if in_l1 {
                    answer.provenance.store();
                }
                answer
            })),
            None => Outcome::Abandoned,
        });
        self.completed = true;
    }

    /// Keeps what is to be kept, and takes the flight out of the table, in one critical section with
    /// whatever detaches it. Answers whether L1 holds the entry.
    fn retain(&self, retention: Retention, answered: bool) -> bool {
        let (engine, flight, now) = (&self.engine, &self.flight, Instant::now());
        let (mut stored, mut in_l1, mut retry_after) = (false, false, RETRY_AFTER);
        let mut shard = engine.flights.lock(flight.key.id.hash);
        // The fence: a flight that was detached stores nothing.
        let current = shard.is_current(flight);
        match retention {
            Retention::Entry(found, l1_lifetime) if current => {
                if found.lifetime.freshness(now) == Freshness::Fresh {
                    shard.clear_failure(&flight.key.id);
                }
                in_l1 = engine.store(flight, &found, l1_lifetime, (now, None));
                stored = true;
            }
            Retention::Failure(failure) if current && !failure.hold.is_zero() => {
                retry_after = failure.hold;
                shard.hold(&flight.key.id, failure, now);
            }
            // What was loaded is not kept, and nothing older is answered from now on.
            Retention::Nothing if current && answered => engine.l1.remove(&flight.key),
            _ => {}
        }
        if flight.suspends_refresh() && !stored {
            engine.rearm_refresh(&flight.key, ttl::deadline(now, retry_after));
        }
        shard.remove(flight);
        in_l1
    }
}

impl Drop for FlightTask {
    fn drop(&mut self) {
        if self.completed {
            return;
        }
        drop(self.take_route());
        let id = &self.flight.key.id;
        self.engine.flights.lock(id.hash).remove(&self.flight);
        self.flight.complete(if std::thread::panicking() {
            Outcome::Completed(Err(Error::LoadPanicked))
        } else {
            Outcome::Abandoned
        });
    }
}
