//! Batches: loads of many keys with one call of `load_many`.
//!
//! Every key keeps its own flight, lease and fence: what happens to one key does not concern the
//! others. The keys of a batch share a permit of `max_concurrent_loads` and a call of the loader.
//! Their flights meet twice:
//!
//! | where | a flight waits for | result |
//! |---|---|---|
//! | before the permit | `get_many`: all flights of the call that may still need a load, see [`plan`]; single look-ups: see [`window`] | batches, each with one permit and one load |
//! | before the load | the flights of its batch that do not have their lease yet, see [`members`] | one `load_many` for those that have it |
//!
//! A flight that needs no load (a value has come, or another process holds the lease) drops its
//! ticket, and no flight waits for it any more. The flights that it would wait for are busy with
//! single commands of L2, and these have a timeout.
//!
//! The engine carries out the loads: it implements [`BatchRunner`].

mod members;
mod plan;
pub(crate) mod window;

use std::sync::Arc;

use tokio::sync::Semaphore;

pub(crate) use self::members::{BatchRunner, BatchTicket, HeldWhileLoading, Member};
pub(crate) use self::plan::{BatchPlan, PlanTicket};
use self::window::ArrivalGuard;

/// How a flight comes to its load.
#[derive(Debug)]
pub(crate) enum LoadRoute {
    /// With a load of its own, or through the window if the cache has one.
    Single,
    /// Through the window, which expects the flight.
    Window(ArrivalGuard),
    /// With a load of its own. The semaphore limits how many flights of one call load at once.
    Throttled(Arc<Semaphore>),
    /// With the other keys of one call.
    Batch(PlanTicket),
}

impl LoadRoute {
    pub(crate) fn take(&mut self) -> Self {
        std::mem::replace(self, Self::Single)
    }
}
