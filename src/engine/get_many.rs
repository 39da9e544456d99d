//! Look-ups of many keys at once.
//!
//! One pass over L1 and the flight table answers the hits, joins the flights that are under way, and
//! begins flights for the other keys, as single look-ups do. The new flights run together: their first
//! reads are one round trip, and their loads are one call of the loader, if it is a batch loader. In
//! between each flight is on its own (see [`fetch`](super::fetch)). That is one round trip too, because
//! all of them send their commands at the same moment.

use std::panic::AssertUnwindSafe;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};

use tokio::runtime::Handle;
use tokio::sync::Semaphore;
use tokio::time::Instant;

use super::batch::{BatchPlan, LoadRoute};
use super::coalesce::{Entered, Want};
use super::core::Engine;
use super::flight_task::FlightTask;
use crate::answer::Answer;
use crate::entry::Read;
use crate::erased::{AnyError, AnyKey};
use crate::error::Error;
use crate::telemetry::Trace;

/// The loads of one call that run at once, where they are not batched.
const MAX_CONCURRENT: usize = 64;

/// The flights that complete before other tasks of this thread have their turn.
const YIELD_EVERY: usize = 64;

impl Engine {
    /// One outcome for each look-up, in their order. Cancel safe: the flights that it began go on.
    pub(crate) async fn get_many(
        self: &Arc<Self>,
        look_ups: Vec<LookUp>,
    ) -> Vec<Result<Answer, Error<AnyError>>> {
        let want = Want::look_up(Read::new());
        let entered = self.enter_all(look_ups, &want);
        let mut outcomes = Vec::with_capacity(entered.len());
        for entered in entered {
            outcomes.push(match entered {
                EnteredLookUp::Hit(answer) => Ok(answer),
                EnteredLookUp::Entered(entered) => match entered.or_wait(want) {
                    Ok(wait) => self.wait_for_task(wait).await,
                    Err(received) => self.counted(received),
                },
            });
        }
        outcomes
    }

    /// The first step of a look-up without the types of its cache: what L1 answers is answered.
    pub(crate) fn look_up(self: &Arc<Self>, key: AnyKey) -> LookUp {
        let now = Instant::now();
        let found = self.l1.get(&key, now);
        let hit = found.and_then(|found| self.hit(found, Read::new(), now, &|| key.clone()));
        hit.map_or(LookUp::Key(key), LookUp::Hit)
    }

    fn enter_all(self: &Arc<Self>, look_ups: Vec<LookUp>, want: &Want) -> Vec<EnteredLookUp> {
        let closed = self.tasks.is_closed();
        let mut tasks = Vec::new();
        let enter = |look_up| match look_up {
            LookUp::Hit(answer) => EnteredLookUp::Hit(answer),
            LookUp::Key(_) if closed => EnteredLookUp::Entered(Entered::Refused(Error::Closed)),
            LookUp::Key(key) => EnteredLookUp::Entered(match self.admit() {
                Ok(admission) => self.enter(key, want, admission, |_, new| tasks.push(new)),
                Err(refused) => Entered::Refused(refused),
            }),
        };
        let entered = look_ups.into_iter().map(enter).collect();
        if let (false, Ok(runtime)) = (tasks.is_empty(), Handle::try_current()) {
            self.route_loads(&runtime, &tasks);
            for task in &tasks {
                task.flight.driver.mark_in_task();
            }
            runtime.spawn(Trace::here().within(run_together(Arc::clone(self), tasks)));
        }
        entered
    }

    /// Gives each task its way to a load: in batches, or a limited number at once.
    fn route_loads(self: &Arc<Self>, runtime: &Handle, tasks: &[FlightTask]) {
        let Some(batches) = &self.batches else {
            let concurrency = Arc::new(Semaphore::new(MAX_CONCURRENT));
            for task in tasks {
                task.set_route(LoadRoute::Throttled(Arc::clone(&concurrency)));
            }
            return;
        };
        let keys = tasks.iter().map(|task| task.flight.key.clone()).collect();
        let settings = &batches.settings;
        let tickets = BatchPlan::tickets(
            self.batch_runner(),
            runtime,
            keys,
            settings.max_size,
            settings.concurrency,
        );
        for (task, ticket) in tasks.iter().zip(tickets) {
            task.set_route(LoadRoute::Batch(ticket));
        }
    }

    /// Reads L2 for all of them at once.
    async fn first_reads(self: &Arc<Self>, tasks: &mut [FlightTask]) {
        let Some(remote) = &self.remote else {
            return;
        };
        self.attach(remote).await;
        let known = self.know_watermarks(remote).await.is_ok();
        // Before the read is sent, so that a gap from now on detaches these flights.
        let epoch = self.fence.epoch();
        let (mut asking, mut names) = (Vec::new(), Vec::new());
        for task in tasks {
            let flight = &task.flight;
            flight.register(epoch);
            if known && !self.repairs.blocks(&flight.key.id.encoded) {
                names.push(remote.key(&flight.key.id).bytes);
                asking.push(task);
            } else {
                task.read = Some(Err(()));
            }
        }
        let (records, asked) = remote.tier.get_many(&names).await;
        let _ = self.tier(asked);
        for (task, record) in asking.into_iter().zip(records) {
            task.read = Some(record);
        }
    }
}

/// One look-up of many.
pub(crate) enum LookUp {
    /// L1 has answered it.
    Hit(Answer),
    Key(AnyKey),
}

enum EnteredLookUp {
    Hit(Answer),
    Entered(Entered),
}

/// The task of flights that begin together.
async fn run_together(engine: Arc<Engine>, mut tasks: Vec<FlightTask>) {
    engine.first_reads(&mut tasks).await;
    drop(engine);
    for (index, task) in tasks.into_iter().enumerate() {
        if index % YIELD_EVERY == YIELD_EVERY - 1 {
            tokio::task::yield_now().await;
        }
        let mut running = Box::pin(task.run());
        // A hit completes here. A flight that takes longer goes on in a task of its own. A panic ends
        // its own flight in both cases.
        let begun = std::panic::catch_unwind(AssertUnwindSafe(|| poll_once(running.as_mut())));
        if let Ok(Poll::Pending) = begun {
            tokio::spawn(running);
        }
    }
}

fn poll_once<T>(future: Pin<&mut impl Future<Output = T>>) -> Poll<T> {
    future.poll(&mut Context::from_waker(Waker::noop()))
}
