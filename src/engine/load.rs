//! Running the user's loader: in a task of its own, bounded in time and number.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::OwnedSemaphorePermit;
use tokio::task::AbortHandle;
use tokio::time::Instant;

use super::Engine;
use super::flight::{Flight, Found, Purpose};
use super::places::{self, Hopeless, Turn};
use super::together::{ChunkSeat, Company};
use crate::entry::Forward;
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
pub(crate) enum Place {
    Own(
        #[expect(dead_code, reason = "held, not read")] Option<OwnedSemaphorePermit>,
        #[expect(dead_code, reason = "held, not read")] Option<places::Place>,
    ),
    Shared(ChunkSeat),
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
    pub(crate) async fn place(
        self: &Arc<Self>,
        deadline: Instant,
        flight: &Flight,
    ) -> Result<Place, Error<AnyError>> {
        let turn = match flight.purpose {
            Purpose::Replace(_) => Turn::Known,
            _ if flight.interim().is_some() => Turn::Known,
            _ => Turn::Unknown,
        };
        let since = Instant::now();
        let place = self.place_in(&flight.key, turn, deadline, flight.company());
        let place = tokio::select! {
            biased;
            place = place => place,
            () = self.cut_off(flight) => return Err(Error::Closed),
        };
        if self.places.is_some() || self.batches.is_some() {
            self.telemetry.waited(Wait::Permit, since);
        }
        place.map_err(|Hopeless| {
            self.stats.overloaded.add();
            Error::Overloaded
        })
    }

    async fn place_in(
        self: &Arc<Self>,
        key: &AnyKey,
        turn: Turn,
        deadline: Instant,
        company: Company,
    ) -> Result<Place, Hopeless> {
        let gather = self
            .batches
            .as_ref()
            .and_then(|batches| batches.gather.as_ref());
        let (mut permit, mut approach) = (None, None);
        let seat = match company {
            Company::Seat(seat) => seat.chunk(turn).await,
            company => {
                match company {
                    Company::InTurn(turns) => {
                        let turn = tokio::time::timeout_at(deadline, turns.acquire_owned());
                        permit = Some(turn.await.map_err(|_| Hopeless)?.map_err(|_| Hopeless)?);
                    }
                    Company::Approaching(own) => approach = Some(own),
                    Company::Alone | Company::Seat(_) => {}
                }
                match gather {
                    Some(gather) => gather.join(self, key, turn, approach).await,
                    None => None,
                }
            }
        };
        if let Some(seat) = seat {
            seat.place(self.places.as_ref(), deadline).await?;
            return Ok(Place::Shared(seat));
        }
        let place = match &self.places {
            Some(places) => Some(places.take(turn, deadline).await?),
            None => None,
        };
        Ok(Place::Own(permit, place))
    }

    /// One load, with what loads of this key cost. `meanwhile` is driven beside it.
    pub(crate) async fn load(
        self: &Arc<Self>,
        flight: &Flight,
        nesting: &Nesting,
        place: Place,
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
        let why = Forward::because(flight.purpose == Purpose::Load, compares);
        let trace = match &place {
            Place::Own(..) => self.telemetry.load_trace(Some(why), 1),
            Place::Shared(_) => Trace::none(),
        };
        let result = {
            let run = self.run(flight, nesting, place, (previous, &trace));
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
        place: Place,
        (previous, trace): (Option<AnyEntry>, &Trace),
    ) -> Result<Loaded<AnyValue>, Error<AnyError>> {
        let place = match place {
            Place::Shared(seat) => {
                let nesting = nesting.clone();
                return seat.board(flight.serial, nesting, previous).found().await;
            }
            own @ Place::Own(..) => own,
        };
        let nesting: Nesting = nesting
            .serials()
            .iter()
            .copied()
            .chain([flight.serial])
            .collect();
        let running = self.tasks.enter_late();
        let (loader, key) = (Arc::clone(&self.loader), flight.key.clone());
        // A task of its own: a panic ends there, and a loader that blocks its thread can still be
        // timed out here. The place is given back when the loader has really ended.
        let loading = async move {
            let _held = (running, place);
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
