//! Running the user's loader: in a task of its own, bounded in time and number.

mod batched;
pub(crate) mod permits;

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::OwnedSemaphorePermit;
use tokio::task::AbortHandle;
use tokio::time::Instant;

use self::permits::{Priority, WouldTimeOut};
use crate::engine::Engine;
use crate::engine::batch::{BatchTicket, LoadRoute};
use crate::engine::flight::{Flight, Found, Purpose};
use crate::entry::ForwardReason;
use crate::erased::{AnyEntry, AnyError, AnyKey, AnyValue};
use crate::error::Error;
use crate::loader::Loaded;
use crate::telemetry::{self, Trace, Wait};
use crate::ttl;

tokio::task_local! {
    /// The flights whose loads this task runs in, outermost first: what a loader must not wait for.
    static NESTING: Nesting;
}

/// Flights, by their numbers. `None`: none, as nearly always.
#[derive(Clone, Debug, Default)]
pub(crate) struct Nesting(Option<Arc<[u64]>>);

impl Nesting {
    pub(crate) fn serials(&self) -> &[u64] {
        self.0.as_deref().unwrap_or_default()
    }
}

impl FromIterator<u64> for Nesting {
    fn from_iter<I: IntoIterator<Item = u64>>(serials: I) -> Self {
        Self(Some(serials.into_iter().collect()))
    }
}

/// The flights whose loads the calling task runs in.
pub(crate) fn nesting() -> Nesting {
    NESTING.try_with(Clone::clone).unwrap_or_default()
}

/// Runs a load: what it looks up is compared with the flights that it is for.
pub(crate) async fn within<T>(nesting: Nesting, loading: impl Future<Output = T>) -> T {
    NESTING.scope(nesting, loading).await
}

/// A place among `max_concurrent_loads`, or none where there is no limit: a flight's own, or that of a
/// batch.
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

impl Engine {
    /// Waits until the cache is closed, if nobody waits for this flight then.
    pub(crate) async fn cut_off(&self, flight: &Flight) {
        self.tasks.closing().await;
        if !flight.is_background(&self.config.windows) {
            std::future::pending::<()>().await;
        }
    }

    /// When a load that begins now is cut off.
    pub(crate) fn load_deadline(&self) -> Instant {
        ttl::deadline(Instant::now(), self.config.load_timeout)
    }

    /// Waits for a place until the load's deadline, unless there will be none.
    pub(crate) async fn load_permit(
        self: &Arc<Self>,
        deadline: Instant,
        flight: &Flight,
    ) -> Result<LoadPermit, Error<AnyError>> {
        let priority = match flight.purpose {
            Purpose::Replace(_) => Priority::Warm,
            _ if flight.interim().is_some() => Priority::Warm,
            _ => Priority::Cold,
        };
        let since = Instant::now();
        let permit = self.permit_on(&flight.key, priority, deadline, flight.take_route());
        let permit = tokio::select! {
            biased;
            permit = permit => permit,
            () = self.cut_off(flight) => return Err(Error::Closed),
        };
        if self.limiter.is_some() || self.batches.is_some() {
            self.telemetry.waited(Wait::Permit, since);
        }
        permit.map_err(|WouldTimeOut| {
            self.stats.overloaded.add();
            Error::Overloaded
        })
    }

    /// A permit on the route that the flight's call has given it.
    async fn permit_on(
        self: &Arc<Self>,
        key: &AnyKey,
        priority: Priority,
        deadline: Instant,
        route: LoadRoute,
    ) -> Result<LoadPermit, WouldTimeOut> {
        let window = self.batches.as_ref();
        let window = window.and_then(|batches| batches.window.as_ref());
        let (mut throttled, mut arrival) = (None, None);
        match route {
            LoadRoute::Batch(plan) => {
                if let Some(ticket) = plan.batch(priority).await {
                    return self.batch_permit(ticket, deadline).await;
                }
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
            if let Some(ticket) = window
                .join(self.batch_runner(), key, priority, arrival)
                .await
            {
                return self.batch_permit(ticket, deadline).await;
            }
        }
        let permit = match &self.limiter {
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
        let limiter = self.limiter.as_ref();
        ticket.wait_for_permit(limiter, deadline).await?;
        Ok(LoadPermit::Batch(ticket))
    }

    /// One load, with what loads of this key cost. `meanwhile` is driven beside it.
    pub(crate) async fn load(
        self: &Arc<Self>,
        flight: &Flight,
        nesting: &Nesting,
        permit: LoadPermit,
        deadline: Instant,
        previous: Option<&Found>,
        meanwhile: impl Future<Output = Infallible>,
    ) -> Result<(Loaded<AnyValue>, Duration), Error<AnyError>> {
        self.stats.loads.add();
        flight.begin_load();
        let begun = Instant::now();
        let estimate = previous.map_or(Duration::ZERO, |previous| previous.lifetime.cost);
        let previous = previous.and_then(|previous| previous.answer_at(begun).into_entry());
        let compares = previous.is_some();
        let why = ForwardReason::because(flight.purpose == Purpose::Load, compares);
        let trace = match &permit {
            LoadPermit::Own(..) => self.telemetry.load_trace(Some(why), 1),
            LoadPermit::Batch(_) => Trace::none(),
        };
        let result = {
            let run = self.run(flight, nesting, permit, (previous, &trace));
            tokio::select! {
                biased;
                loaded = run => match loaded {
                    Ok(loaded) if loaded.unchanged && !compares => {
                        Err(Error::UnchangedWithoutPrevious)
                    }
                    Ok(loaded) => Ok((loaded, ttl::upper_cost(estimate, begun.elapsed()))),
                    Err(error) => Err(error),
                },
                () = tokio::time::sleep_until(deadline) => Err(Error::LoadTimedOut(self.config.load_timeout)),
                () = self.cut_off(flight) => Err(Error::Closed),
                never = meanwhile => match never {},
            }
        };
        if result.is_ok() {
            self.note_cost(begun.elapsed());
        }
        trace.ended(telemetry::outcome(&result));
        self.telemetry.loaded(why, &result, begun);
        match &result {
            Ok((loaded, _)) if loaded.unchanged => self.stats.unchanged.add(),
            Ok(_) | Err(Error::Closed) => {}
            Err(_) => self.stats.load_failures.add(),
        }
        result
    }
    /// The loader's work, alone or with others. Ends when dropped.
    async fn run(
        self: &Arc<Self>,
        flight: &Flight,
        nesting: &Nesting,
        permit: LoadPermit,
        (previous, trace): (Option<AnyEntry>, &Trace),
    ) -> Result<Loaded<AnyValue>, Error<AnyError>> {
        let nesting: Nesting = nesting
            .serials()
            .iter()
            .copied()
            .chain([flight.serial])
            .collect();
        let permit = match permit {
            LoadPermit::Batch(ticket) => {
                return ticket.join(nesting.serials(), previous).found().await;
            }
            own @ LoadPermit::Own(..) => own,
        };
        let running = self.tasks.enter_late();
        let (loader, key) = (Arc::clone(&self.loader), flight.key.clone());
        // A task of its own: a panic ends there, and a loader that blocks its thread can still be
        // timed out here. The place is given back when the loader has really ended.
        let loading = async move {
            let _held = (running, permit);
            loader.load(&key, previous).await
        };
        let load = tokio::spawn(trace.within(within(nesting, loading)));
        let _abort = AbortOnDrop(load.abort_handle());
        match load.await {
            Ok(loaded) => loaded.map_err(|error| Error::Load(Arc::new(error))),
            Err(ended) if ended.is_panic() => Err(Error::LoadPanicked),
            // The runtime is shutting down, and this task goes with it.
            Err(_) => std::future::pending().await,
        }
    }
}
