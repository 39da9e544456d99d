//! Look-ups of many keys at once.
//!
//! One sweep of L1 and of the flight table: what is there is answered, what is under way is joined, and
//! for the rest flights are put into the table, as single look-ups would. They are flown together:
//! their first reads are one round trip, and their loads are one call of the loader, if it can do that.
//! In between each of them is on its own (see [`read`]), which is one round trip too, for
//! all send their commands at the same moment.

use std::panic::AssertUnwindSafe;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};

use tokio::runtime::Handle;
use tokio::sync::Semaphore;
use tokio::time::Instant;

use super::read::{self, Leader};
use super::together::{Company, Seat};
use super::{Calm, Engine, Entered, Want, flight};
use crate::entry::Read;
use crate::error::Error;
use crate::key::CacheKey;
use crate::l1::Answer;
use crate::telemetry::Trace;

/// Loads of one call at once, where they are not batched.
const AT_ONCE: usize = 64;

/// Flights that may land before others have their turn on this thread.
const AT_A_STRETCH: usize = 64;

impl<K, V, E> Engine<K, V, E>
where
    K: CacheKey,
    V: Send + Sync + 'static,
    E: Send + Sync + 'static,
{
    /// One outcome for each key, in their order. Cancel safe: what it began goes on without it.
    pub(crate) async fn get_many(self: &Arc<Self>, keys: &[K]) -> Vec<Result<Answer<V>, Error<E>>> {
        let want = Want {
            read: Read::new(),
            load: false,
            since: flight::now_in_serials(),
        };
        let swept = self.sweep(keys, &want);
        let mut outcomes = Vec::with_capacity(keys.len());
        for (key, swept) in keys.iter().zip(swept) {
            outcomes.push(match swept {
                Swept::Hit(answer) => Ok(answer),
                Swept::Entered(entered) => {
                    let flown = match entered.at_once() {
                        Ok(answer) => Some(answer),
                        Err((flight, role)) => self.outcome(&flight, role, &want).await,
                    };
                    self.counted(match flown {
                        Some(flown) => flown,
                        None => self.fly_or_join(key, want).await,
                    })
                }
            });
        }
        outcomes
    }

    fn sweep(self: &Arc<Self>, keys: &[K], want: &Want) -> Vec<Swept<V, E>> {
        let closed = self.tasks.is_closed();
        let now = Instant::now();
        let mut leaders = Vec::new();
        let swept = keys
            .iter()
            .map(|key| {
                if closed {
                    return Swept::Entered(Entered::Refused(Error::Closed));
                }
                let hit = match self.calm_hit(key, || now, |seen, now| seen.slot.answer(now)) {
                    Calm::Hit(answer) => Some(answer),
                    Calm::Something => self.hit(key, want.read, now),
                    Calm::Nothing => None,
                };
                match hit {
                    Some(answer) => Swept::Hit(answer),
                    None => Swept::Entered(self.enter(key, want, |_, new| leaders.push(new))),
                }
            })
            .collect();
        if let (false, Ok(runtime)) = (leaders.is_empty(), Handle::try_current()) {
            self.join_up(&runtime, &leaders);
            for leader in &leaders {
                leader.claim.flight.craft.has_task();
            }
            runtime.spawn(Trace::here().within(fly_together(Arc::clone(self), leaders)));
        }
        swept
    }

    /// Lets flights come to their loads together.
    fn join_up(self: &Arc<Self>, runtime: &Handle, leaders: &[Leader<K, V, E>]) {
        let Some(batches) = &self.batches else {
            let turns = Arc::new(Semaphore::new(AT_ONCE));
            for leader in leaders {
                leader
                    .claim
                    .flight
                    .join(Company::InTurn(Arc::clone(&turns)));
            }
            return;
        };
        let keys = leaders.iter().map(|leader| leader.key.clone()).collect();
        let settings = &batches.settings;
        let seats = Seat::of(self, runtime, keys, settings.max_size, settings.concurrency);
        for (leader, seat) in leaders.iter().zip(seats) {
            leader.claim.flight.join(Company::Seat(seat));
        }
    }

    /// Reads what L2 has, of all of them at once.
    async fn first_reads(self: &Arc<Self>, leaders: &mut [Leader<K, V, E>]) {
        let Some(shared) = &self.shared else {
            return;
        };
        self.attach(shared).await;
        let known = self.know_marks(shared).await.is_ok();
        // Before the read is sent, so that whatever is missed from now on ends these flights.
        let epoch = self.fence.epoch();
        let (mut asking, mut names) = (Vec::new(), Vec::new());
        for leader in leaders {
            let flight = &leader.claim.flight;
            flight.register(epoch);
            if known && !self.repairs.block(&flight.id.encoded) {
                names.push(shared.key(&flight.id).bytes);
                asking.push(leader);
            } else {
                leader.read = Some(Err(()));
            }
        }
        let (records, asked) = shared.tier.get_many(&names).await;
        let _ = self.tier(asked);
        for (leader, record) in asking.into_iter().zip(records) {
            leader.read = Some(record);
        }
    }
}

enum Swept<V, E> {
    Hit(Answer<V>),
    Entered(Entered<V, E>),
}

/// The task of flights that begin together.
async fn fly_together<K, V, E>(engine: Arc<Engine<K, V, E>>, mut leaders: Vec<Leader<K, V, E>>)
where
    K: CacheKey,
    V: Send + Sync + 'static,
    E: Send + Sync + 'static,
{
    engine.first_reads(&mut leaders).await;
    drop(engine);
    for (index, leader) in leaders.into_iter().enumerate() {
        if index % AT_A_STRETCH == AT_A_STRETCH - 1 {
            tokio::task::yield_now().await;
        }
        let mut flying = Box::pin(read::fly(leader));
        // A hit lands here. Whatever takes longer goes on in a task of its own, and so does not
        // concern the others if it panics, nor does it here.
        let begun = std::panic::catch_unwind(AssertUnwindSafe(|| poll_once(flying.as_mut())));
        if let Ok(Poll::Pending) = begun {
            tokio::spawn(flying);
        }
    }
}

fn poll_once<T>(future: Pin<&mut impl Future<Output = T>>) -> Poll<T> {
    future.poll(&mut Context::from_waker(Waker::noop()))
}
