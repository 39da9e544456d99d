//! The first leg of a flight, flown by its leader.
//!
//! Most look-ups behind L1 end with one answer of L2. A task for each of them would cost more than the
//! command does: it is allocated, scheduled, often on another core, and has to wake its caller in the
//! end. So whoever begins a flight polls it himself. It moves to a task of its own, as it is and
//! wherever it stands,
//!
//! | when | because |
//! |---|---|
//! | more than that one read is needed | a load does not end with its caller |
//! | its leader is dropped | nor does a read that others may wait for |
//! | somebody joins or follows it | a leader may be polled late, or never again |
//! | the cache is closed | for the same reason |
//!
//! | state | who changes it | to |
//! |---|---|---|
//! | on the ground | its leader | parked; away and into a task, if that is wanted by then, or it cannot be otherwise |
//! | | anybody | on the ground, and wanted |
//! | parked | its leader, to poll it | moving |
//! | | anybody | away, and into a task |
//! | moving | its leader, afterwards | parked; away and into a task, if that is wanted by then |
//! | | anybody | moving, and wanted |
//! | away | nobody | |

use std::fmt;
use std::panic::AssertUnwindSafe;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, Waker};

use parking_lot::Mutex;
use tokio::runtime::Handle;

/// A flight, as it is polled. It keeps the [`Flight`](super::flight::Flight) that it belongs to, and is
/// kept by it: whoever boards has to see to it that it gets away.
pub(crate) type Flying = Pin<Box<dyn Future<Output = ()> + Send>>;

/// Where a flight's future is.
#[derive(Debug, Default)]
pub(crate) struct Craft {
    /// It needs nobody any more, who would otherwise have to look.
    away: AtomicBool,
    place: Mutex<Place>,
}

enum Place {
    /// In the table, and its leader has not come to it yet.
    Ground {
        wanted: bool,
    },
    /// With its leader's waker, once that has polled it.
    Parked(Handle, Flying, Option<Waker>),
    Moving {
        wanted: bool,
    },
    /// Landed, or in a task.
    Away,
}

impl Default for Place {
    fn default() -> Self {
        Self::Ground { wanted: false }
    }
}

/// What the leader knows after a poll.
pub(crate) enum Leg {
    /// It is for the leader to poll it again.
    Aboard,
    /// It has landed, or has a task.
    Away,
    /// It has panicked, and has to be landed before this is dropped.
    Crashed(#[expect(dead_code, reason = "held, not polled")] Flying),
}

impl Craft {
    /// The leader polls it from now on, unless somebody else waits for it already.
    pub(crate) fn board(&self, runtime: Handle, flying: Flying) {
        {
            let mut place = self.place.lock();
            if !matches!(*place, Place::Ground { wanted: true }) {
                *place = Place::Parked(runtime, flying, None);
                return;
            }
        }
        self.has_task();
        runtime.spawn(flying);
    }

    /// Nobody has to see to it.
    pub(crate) fn has_task(&self) {
        self.away.store(true, Ordering::SeqCst);
        *self.place.lock() = Place::Away;
    }

    pub(crate) fn is_away(&self) -> bool {
        self.away.load(Ordering::SeqCst)
    }

    /// Polls it for its leader. `leave`: asked under the lock under which it is parked, so that whoever
    /// changes that and then looks for it misses nothing.
    pub(crate) fn poll(&self, cx: &mut Context<'_>, leave: impl FnOnce() -> bool) -> Leg {
        let (runtime, mut flying) = {
            let mut place = self.place.lock();
            match std::mem::replace(&mut *place, Place::Away) {
                Place::Parked(runtime, flying, _) => {
                    *place = Place::Moving { wanted: false };
                    (runtime, flying)
                }
                other => {
                    *place = other;
                    return Leg::Away;
                }
            }
        };
        // Outside a runtime no timer can begin.
        let elsewhere = Handle::try_current().is_err();
        if elsewhere {
            self.has_task();
            runtime.spawn(flying);
            return Leg::Away;
        }
        // As in a task: nobody who waits for it is to blame.
        let polled = std::panic::catch_unwind(AssertUnwindSafe(|| flying.as_mut().poll(cx)));
        let leg = match polled {
            Ok(Poll::Pending) => {
                let mut place = self.place.lock();
                if !matches!(*place, Place::Moving { wanted: true }) && !leave() {
                    *place = Place::Parked(runtime, flying, Some(cx.waker().clone()));
                    return Leg::Aboard;
                }
                drop(place);
                self.has_task();
                // Not under the lock: a runtime that ends drops it at once.
                runtime.spawn(flying);
                return Leg::Away;
            }
            Ok(Poll::Ready(())) => Leg::Away,
            Err(_) => Leg::Crashed(flying),
        };
        self.has_task();
        leg
    }

    /// Gives it a task of its own, if it has none. Not to be called under a lock.
    pub(crate) fn hand_over(&self) {
        if self.is_away() {
            return;
        }
        let parked = {
            let mut place = self.place.lock();
            match &mut *place {
                Place::Parked(..) => std::mem::replace(&mut *place, Place::Away),
                Place::Ground { wanted } | Place::Moving { wanted } => {
                    *wanted = true;
                    return;
                }
                Place::Away => return,
            }
        };
        self.away.store(true, Ordering::SeqCst);
        if let Place::Parked(runtime, flying, leader) = parked {
            runtime.spawn(flying);
            // He waits for it like everybody else from now on.
            if let Some(leader) = leader {
                leader.wake();
            }
        }
    }

    /// For the flight itself: goes on in a task of its own, whoever polls it now.
    pub(crate) async fn depart(&self) {
        let mut asked = false;
        std::future::poll_fn(|_| {
            if asked || !self.want() {
                return Poll::Ready(());
            }
            asked = true;
            // Its leader sees that it is wanted, and the task polls it again.
            Poll::Pending
        })
        .await;
    }

    /// `false`: it has a task already.
    fn want(&self) -> bool {
        match &mut *self.place.lock() {
            Place::Moving { wanted } => {
                *wanted = true;
                true
            }
            Place::Ground { .. } | Place::Parked(..) | Place::Away => false,
        }
    }
}

impl fmt::Debug for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Ground { .. } => "Ground",
            Self::Parked(..) => "Parked",
            Self::Moving { .. } => "Moving",
            Self::Away => "Away",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn what_is_wanted_before_its_leader_comes_has_a_task_at_once() {
        let (craft, (landed, landing)) = (Craft::default(), tokio::sync::oneshot::channel());
        craft.hand_over();
        assert!(!craft.is_away());
        let flying = Box::pin(async move {
            let _ = landed.send(());
        });
        craft.board(Handle::current(), flying);
        assert!(craft.is_away());
        landing.await.expect("it is flown");
    }
}
