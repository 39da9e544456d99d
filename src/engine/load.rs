//! Running the user's loader: in a task of its own, bounded in time and number.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use tokio::task::AbortHandle;
use tokio::time::Instant;

use super::Engine;
use super::flight::{Aim, Flight, Found};
use super::places::{self, Hopeless, Turn};
use crate::error::Error;
use crate::key::CacheKey;
use crate::loader::Loaded;
use crate::ttl;

tokio::task_local! {
    /// The flights whose loads this task runs in, outermost first: what a loader must not wait for.
    static NESTING: Nesting;
}

pub(crate) type Nesting = Arc<[u64]>;

/// The flights whose loads the calling task runs in.
pub(crate) fn nesting() -> Nesting {
    NESTING
        .try_with(Arc::clone)
        .unwrap_or_else(|_| Arc::new([]))
}

/// A place among `max_concurrent_loads`, or none where there is no limit.
#[derive(Debug)]
pub(crate) struct Place(#[expect(dead_code, reason = "held, not read")] Option<places::Place>);

/// Ends the load when the flight's task is dropped, with its runtime.
struct AbortOnDrop(AbortHandle);

impl Drop for AbortOnDrop {
    fn drop(&mut self) {
        self.0.abort();
    }
}

impl<K, V, E> Engine<K, V, E>
where
    K: CacheKey,
    V: Send + Sync + 'static,
    E: Send + Sync + 'static,
{
    /// Waits until the cache is closed, if nobody waits for this flight then.
    pub(crate) async fn cut_off(&self, flight: &Flight<V, E>) {
        self.tasks.closing().await;
        if !flight.is_behind(&self.config.windows) {
            std::future::pending::<()>().await;
        }
    }

    /// When a load that begins now is cut off.
    pub(crate) fn load_deadline(&self) -> Instant {
        ttl::deadline(Instant::now(), self.config.load_timeout)
    }

    /// Waits for a place until the load's deadline, unless there will be none.
    pub(crate) async fn place(
        &self,
        deadline: Instant,
        flight: &Flight<V, E>,
    ) -> Result<Place, Error<E>> {
        let Some(places) = &self.places else {
            return Ok(Place(None));
        };
        let turn = match flight.aim {
            Aim::Replace(_) => Turn::Known,
            _ if flight.offered().is_some() => Turn::Known,
            _ => Turn::Unknown,
        };
        let place = places.take(turn, deadline);
        let place = tokio::select! {
            biased;
            place = place => place,
            () = self.cut_off(flight) => return Err(Error::Closed),
        };
        match place {
            Ok(place) => Ok(Place(Some(place))),
            Err(Hopeless) => {
                self.stats.overloaded.add();
                Err(Error::Overloaded)
            }
        }
    }

    /// One load, with what loads of this key cost. `meanwhile` is driven beside it.
    #[expect(
        clippy::too_many_arguments,
        reason = "the state of one flight, handed on once"
    )]
    pub(crate) async fn load(
        self: &Arc<Self>,
        key: &K,
        flight: &Flight<V, E>,
        nesting: &Nesting,
        place: Place,
        deadline: Instant,
        previous: Option<&Found<V>>,
        meanwhile: impl Future<Output = Infallible>,
    ) -> Result<(Loaded<V>, Duration), Error<E>> {
        self.stats.loads.add();
        flight.begin_load();
        let begun = Instant::now();
        let estimate = previous.map_or(Duration::ZERO, |previous| previous.life.cost);
        let previous = previous.and_then(|previous| previous.answer_at(begun).into_entry());
        let compares = previous.is_some();
        let nesting: Nesting = nesting.iter().copied().chain([flight.serial]).collect();
        let running = self.tasks.enter_late();
        let (loader, key) = (Arc::clone(&self.loader), key.clone());
        // A task of its own: a panic ends there, and a loader that blocks its thread can still be
        // timed out here. The place is given back when the loader has really ended.
        let load = tokio::spawn(NESTING.scope(nesting, async move {
            let _held = (running, place);
            loader.load(&key, previous.as_ref()).await
        }));
        let abort = AbortOnDrop(load.abort_handle());
        let result = tokio::select! {
            biased;
            ended = load => match ended {
                Ok(Ok(loaded)) if loaded.unchanged && !compares => {
                    Err(Error::UnchangedWithoutPrevious)
                }
                Ok(Ok(loaded)) => Ok((loaded, ttl::upper_cost(estimate, begun.elapsed()))),
                Ok(Err(error)) => Err(Error::Load(Arc::new(error))),
                Err(ended) if ended.is_panic() => Err(Error::LoadPanicked),
                // The runtime is shutting down, and this task goes with it.
                Err(_) => std::future::pending().await,
            },
            () = tokio::time::sleep_until(deadline) => Err(Error::LoadTimedOut(self.config.load_timeout)),
            () = self.cut_off(flight) => Err(Error::Closed),
            never = meanwhile => match never {},
        };
        drop(abort);
        if result.is_ok() {
            self.note_cost(begun.elapsed());
        }
        match &result {
            Ok((loaded, _)) if loaded.unchanged => self.stats.unchanged.add(),
            Ok(_) | Err(Error::Closed) => {}
            Err(_) => self.stats.load_failures.add(),
        }
        result
    }
}
