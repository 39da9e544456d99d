//! Loads: the user's loader runs in a task of its own, bounded in time and number.

mod batched;
pub(crate) mod nesting;
pub(crate) mod permits;

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::OwnedSemaphorePermit;
use tokio::task::AbortHandle;
use tokio::time::Instant;

use self::nesting::Nesting;
use self::permits::{Priority, WouldTimeOut};
use super::batch::{BatchTicket, LoadRoute};
use super::flight::{FoundEntry, Purpose};
use super::flight_task::FlightTask;
use crate::entry::AnyEntry;
use crate::entry::ForwardReason;
use crate::erased::{AnyError, AnyValue};
use crate::error::Error;
use crate::loader::Loaded;
use crate::telemetry::{self, Trace, Wait};
use crate::ttl;

/// The right to run a load within `max_concurrent_loads`: a flight's own permit, or that of its batch.
#[derive(Debug)]
pub(crate) enum LoadPermit {
    Own(
        #[expect(dead_code, reason = "held, not read")] Option<OwnedSemaphorePermit>,
        #[expect(dead_code, reason = "held, not read")] Option<permits::Permit>,
    ),
    Batch(BatchTicket),
}

/// Ends the load when the flight's task is dropped, with its runtime.
struct AbortOnDrop(AbortHandle);

impl Drop for AbortOnDrop {
    fn drop(&mut self) {
        self.0.abort();
    }
}

impl FlightTask {
    /// Waits for a permit until the load's deadline, or not at all where there will be none in time.
    pub(crate) async fn load_permit(
        &self,
        deadline: Instant,
    ) -> Result<LoadPermit, Error<AnyError>> {
        let engine = &self.engine;
        let priority = match self.flight.purpose {
            Purpose::Replace(_) => Priority::Warm,
            _ if self.flight.has_interim() => Priority::Warm,
            _ => Priority::Cold,
        };
        let since = Instant::now();
        let permit = tokio::select! {
            biased;
            permit = self.permit_on(priority, deadline, self.take_route()) => permit,
            () = self.cut_off() => return Err(Error::Closed),
        };
        if engine.limiter.is_some() || engine.batches.is_some() {
            engine.telemetry.waited(Wait::Permit, since);
        }
        permit.map_err(|WouldTimeOut| {
            engine.stats.overloaded.add();
            Error::Overloaded
        })
    }

    /// A permit on the way to its load that the flight's call has given it.
    async fn permit_on(
        &self,
        priority: Priority,
        deadline: Instant,
        route: LoadRoute,
    ) -> Result<LoadPermit, WouldTimeOut> {
        let engine = &self.engine;
        let window = engine.batches.as_ref();
        let mut window = window.and_then(|batches| batches.window.as_ref());
        let (mut throttled, mut arrival) = (None, None);
        match route {
            LoadRoute::Batch(plan) => {
                if let Some(ticket) = plan.batch(priority).await {
                    return self.batch_permit(ticket, deadline).await;
                }
                // The plan has ended without it: the flight loads alone.
                window = None;
            }
            LoadRoute::Throttled(concurrency) => {
                let acquired = tokio::time::timeout_at(deadline, concurrency.acquire_owned());
                let acquired = acquired.await.map_err(|_| WouldTimeOut)?;
                throttled = Some(acquired.map_err(|_| WouldTimeOut)?);
            }
            LoadRoute::Window(own) => arrival = Some(own),
            LoadRoute::Single => {}
        }
        if let Some(window) = window {
            let runner = engine.batch_runner();
            let joined = window.join(runner, &self.flight.key, priority, arrival);
            if let Some(ticket) = joined.await {
                return self.batch_permit(ticket, deadline).await;
            }
        }
        let permit = match &engine.limiter {
            Some(limiter) => Some(limiter.acquire(priority, deadline).await?),
            None => None,
        };
        Ok(LoadPermit::Own(throttled, permit))
    }

    async fn batch_permit(
        &self,
        ticket: BatchTicket,
        deadline: Instant,
    ) -> Result<LoadPermit, WouldTimeOut> {
        let limiter = self.engine.limiter.as_ref();
        ticket.wait_for_permit(limiter, deadline).await?;
        Ok(LoadPermit::Batch(ticket))
    }

    /// One load, with what loads of this key cost. `meanwhile` is driven beside it.
    pub(crate) async fn load(
        &self,
        permit: LoadPermit,
        deadline: Instant,
        previous: Option<&FoundEntry>,
        meanwhile: impl Future<Output = Infallible>,
    ) -> Result<(Loaded<AnyValue>, Duration), Error<AnyError>> {
        let (engine, flight) = (&self.engine, &self.flight);
        engine.stats.loads.add();
        flight.begin_load();
        let begun = Instant::now();
        let estimate = previous.map_or(Duration::ZERO, |previous| previous.lifetime.cost);
        let previous = previous.and_then(|previous| previous.answer_at(begun).into_entry());
        let compares = previous.is_some();
        let why = ForwardReason::because(flight.purpose == Purpose::Load, compares);
        let trace = match &permit {
            LoadPermit::Own(..) => engine.telemetry.load_trace(Some(why), 1),
            LoadPermit::Batch(_) => Trace::none(),
        };
        let load_timeout = engine.config.load_timeout;
        let result = tokio::select! {
            biased;
            loaded = self.run_loader(permit, previous, &trace) => match loaded {
                Ok(loaded) if loaded.unchanged && !compares => Err(Error::UnchangedWithoutPrevious),
                Ok(loaded) => Ok((loaded, ttl::upper_cost(estimate, begun.elapsed()))),
                Err(error) => Err(error),
            },
            () = tokio::time::sleep_until(deadline) => Err(Error::LoadTimedOut(load_timeout)),
            () = self.cut_off() => Err(Error::Closed),
            never = meanwhile => match never {},
        };
        if result.is_ok() {
            engine.note_cost(begun.elapsed());
        }
        trace.ended(telemetry::outcome(&result));
        engine.telemetry.loaded(why, &result, begun);
        match &result {
            Ok((loaded, _)) if loaded.unchanged => engine.stats.unchanged.add(),
            Ok(_) | Err(Error::Closed) => {}
            Err(_) => engine.stats.load_failures.add(),
        }
        result
    }

    /// The loader's work, alone or in a batch. Ends when dropped.
    async fn run_loader(
        &self,
        permit: LoadPermit,
        previous: Option<AnyEntry>,
        trace: &Trace,
    ) -> Result<Loaded<AnyValue>, Error<AnyError>> {
        let (engine, flight) = (&self.engine, &self.flight);
        let around = self.nesting.serials().iter().copied();
        let nesting: Nesting = around.chain([flight.serial]).collect();
        let permit = match permit {
            LoadPermit::Batch(ticket) => {
                let result = ticket.join(nesting.serials(), previous);
                return result.found().await;
            }
            own @ LoadPermit::Own(..) => own,
        };
        let running = engine.tasks.enter_late();
        let (loader, key) = (Arc::clone(&engine.loader), flight.key.clone());
        // A task of its own: a panic ends there, and a loader that blocks its thread is still timed
        // out here. The permit is given back when the loader has really ended.
        let loading = async move {
            let _held = (running, permit);
            loader.load(&key, previous).await
        };
        let load = tokio::spawn(trace.within(nesting::within(nesting, loading)));
        let _abort = AbortOnDrop(load.abort_handle());
        match load.await {
            Ok(loaded) => loaded.map_err(|error| Error::Load(Arc::new(error))),
            Err(ended) if ended.is_panic() => Err(Error::LoadPanicked),
            // The runtime is shutting down, and this task goes with it.
            Err(_) => std::future::pending().await,
        }
    }
}
