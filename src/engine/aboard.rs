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
    /// Not away; a hint for those who would not have to look.
    aboard: AtomicBool,
    place: Mutex<Place>,
}

#[derive(Default)]
enum Place {
    /// With its leader's waker, once that has polled it.
    Parked(Handle, Flying, Option<Waker>),
    Moving {
        wanted: bool,
    },
    /// Landed, in a task, or in nobody's way from the beginning.
    #[default]
    Away,
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
    /// The leader polls it from now on.
    pub(crate) fn board(&self, runtime: Handle, flying: Flying) {
        *self.place.lock() = Place::Parked(runtime, flying, None);
        self.aboard.store(true, Ordering::SeqCst);
    }

    pub(crate) fn is_aboard(&self) -> bool {
        self.aboard.load(Ordering::SeqCst)
    }

    /// Polls it for its leader. `leave`: asked under the lock under which it is parked, so that whoever
    /// changes that and then looks for it misses nothing.
    pub(crate) fn poll(&self, cx: &mut Context<'_>, leave: impl FnOnce() -> bool) -> Leg {
        let (runtime, mut flying) = {
            let mut place = self.place.lock();
            match std::mem::take(&mut *place) {
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
            self.away();
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
                self.away();
                // Not under the lock: a runtime that ends drops it at once.
                runtime.spawn(flying);
                return Leg::Away;
            }
            Ok(Poll::Ready(())) => Leg::Away,
            Err(_) => Leg::Crashed(flying),
        };
        self.away();
        leg
    }

    fn away(&self) {
        self.aboard.store(false, Ordering::SeqCst);
        *self.place.lock() = Place::Away;
    }

    /// Gives it a task of its own, if it has none. Not to be called under a lock.
    pub(crate) fn hand_over(&self) {
        if !self.is_aboard() {
            return;
        }
        let parked = {
            let mut place = self.place.lock();
            match &mut *place {
                Place::Parked(..) => std::mem::take(&mut *place),
                Place::Moving { wanted } => {
                    *wanted = true;
                    return;
                }
                Place::Away => return,
            }
        };
        self.aboard.store(false, Ordering::SeqCst);
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
            Place::Parked(..) | Place::Away => false,
        }
    }
}

impl fmt::Debug for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Parked(..) => "Parked",
            Self::Moving { .. } => "Moving",
            Self::Away => "Away",
        })
    }
}
