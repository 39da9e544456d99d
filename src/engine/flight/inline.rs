//! Polling inline: a flight's leader polls it, until the flight needs a task.
//!
//! Most look-ups behind L1 end with one answer of L2. A task for each of them would cost more than
//! the command: it is allocated, scheduled, often on another core, and has to wake its caller at the
//! end. So the caller that begins a flight polls it. The flight moves to a task of its own, as it is
//! and wherever it stands,
//!
//! | when | because |
//! |---|---|
//! | more than that one read is needed | a load does not end with its caller |
//! | its leader is dropped | nor does a read for which others may wait |
//! | a caller joins or follows it | a leader may be polled late, or never again |
//! | the cache is closed | for the same reason |
//!
//! | state | who changes it | to |
//! |---|---|---|
//! | not started | its leader | idle; or in a task, if a task was requested by then, or nothing else is possible |
//! | | anybody | not started, with a task requested |
//! | idle | its leader, to poll it | polling |
//! | | anybody | in a task |
//! | polling | its leader, afterwards | idle; or in a task, if a task was requested by then |
//! | | anybody | polling, with a task requested |
//! | in a task | nobody | |

use std::fmt;
use std::panic::AssertUnwindSafe;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, Waker};

use parking_lot::Mutex;
use tokio::runtime::Handle;

/// A flight's future. It holds its [`Flight`](super::Flight), which holds the future: so a flight
/// that was started inline must get into a task, or be polled to its end.
pub(crate) type FlightFuture = Pin<Box<dyn Future<Output = ()> + Send>>;

/// Holds a flight's future, or knows that a task does.
#[derive(Debug, Default)]
pub(crate) struct Driver {
    /// The same as the state, for a look without the lock.
    in_task: AtomicBool,
    state: Mutex<DriverState>,
}

enum DriverState {
    /// In the table. Its leader has not come to it yet.
    NotStarted {
        task_wanted: bool,
    },
    /// With the leader's waker, once the leader has polled it.
    Idle(Handle, FlightFuture, Option<Waker>),
    Polling {
        task_wanted: bool,
    },
    /// In a task, or completed.
    InTask,
}

impl Default for DriverState {
    fn default() -> Self {
        Self::NotStarted { task_wanted: false }
    }
}

/// What the leader knows after a poll.
pub(crate) enum InlinePoll {
    /// The leader has to poll it again.
    Idle,
    /// It is completed, or has a task.
    InTask,
    /// It has panicked, and has to be completed before this is dropped.
    Panicked(#[expect(dead_code, reason = "held, not polled")] FlightFuture),
}

impl Driver {
    /// The leader polls it from now on, unless another caller waits for it already.
    pub(crate) fn start_inline(&self, runtime: Handle, future: FlightFuture) {
        {
            let mut state = self.state.lock();
            if !matches!(*state, DriverState::NotStarted { task_wanted: true }) {
                *state = DriverState::Idle(runtime, future, None);
                return;
            }
        }
        self.mark_in_task();
        runtime.spawn(future);
    }

    /// Its future is in a task.
    pub(crate) fn mark_in_task(&self) {
        self.in_task.store(true, Ordering::SeqCst);
        *self.state.lock() = DriverState::InTask;
    }

    pub(crate) fn is_in_task(&self) -> bool {
        self.in_task.load(Ordering::SeqCst)
    }

    /// Polls it for its leader. `is_closing` is asked under the lock under which the future becomes
    /// idle: a `close` that looks for idle futures after that misses none.
    pub(crate) fn poll(
        &self,
        cx: &mut Context<'_>,
        is_closing: impl FnOnce() -> bool,
    ) -> InlinePoll {
        let (runtime, mut future) = {
            let mut state = self.state.lock();
            match std::mem::replace(&mut *state, DriverState::InTask) {
                DriverState::Idle(runtime, future, _) => {
                    *state = DriverState::Polling { task_wanted: false };
                    (runtime, future)
                }
                other => {
                    *state = other;
                    return InlinePoll::InTask;
                }
            }
        };
        // Outside a runtime no timer can begin.
        let elsewhere = Handle::try_current().is_err();
        if elsewhere {
            self.mark_in_task();
            runtime.spawn(future);
            return InlinePoll::InTask;
        }
        // A panic ends here, as it would in a task.
        let polled = std::panic::catch_unwind(AssertUnwindSafe(|| future.as_mut().poll(cx)));
        let polled = match polled {
            Ok(Poll::Pending) => {
                let mut state = self.state.lock();
                if !matches!(*state, DriverState::Polling { task_wanted: true }) && !is_closing() {
                    *state = DriverState::Idle(runtime, future, Some(cx.waker().clone()));
                    return InlinePoll::Idle;
                }
                drop(state);
                self.mark_in_task();
                // Not under the lock: a runtime that ends drops it at once.
                runtime.spawn(future);
                return InlinePoll::InTask;
            }
            Ok(Poll::Ready(())) => InlinePoll::InTask,
            Err(_) => InlinePoll::Panicked(future),
        };
        self.mark_in_task();
        polled
    }

    /// Gives it a task of its own, if it has none. Not to be called under a lock.
    pub(crate) fn spawn_if_inline(&self) {
        if self.is_in_task() {
            return;
        }
        let parked = {
            let mut state = self.state.lock();
            match &mut *state {
                DriverState::Idle(..) => std::mem::replace(&mut *state, DriverState::InTask),
                DriverState::NotStarted { task_wanted } | DriverState::Polling { task_wanted } => {
                    *task_wanted = true;
                    return;
                }
                DriverState::InTask => return,
            }
        };
        self.in_task.store(true, Ordering::SeqCst);
        if let DriverState::Idle(runtime, future, leader) = parked {
            runtime.spawn(future);
            // The leader waits for it as other callers do, from now on.
            if let Some(leader) = leader {
                leader.wake();
            }
        }
    }

    /// For the flight itself: goes on in a task of its own.
    pub(crate) async fn move_to_task(&self) {
        let mut asked = false;
        std::future::poll_fn(|_| {
            if asked || !self.request_task() {
                return Poll::Ready(());
            }
            asked = true;
            // Its leader sees the request, and the task polls it again.
            Poll::Pending
        })
        .await;
    }

    /// `false`: it has a task already.
    fn request_task(&self) -> bool {
        match &mut *self.state.lock() {
            DriverState::Polling { task_wanted } => {
                *task_wanted = true;
                true
            }
            DriverState::NotStarted { .. } | DriverState::Idle(..) | DriverState::InTask => false,
        }
    }
}

impl fmt::Debug for DriverState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::NotStarted { .. } => "Ground",
            Self::Idle(..) => "Parked",
            Self::Polling { .. } => "Moving",
            Self::InTask => "Away",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn what_is_wanted_before_its_leader_comes_has_a_task_at_once() {
        let (driver, (completed, completion)) =
            (Driver::default(), tokio::sync::oneshot::channel());
        driver.spawn_if_inline();
        assert!(!driver.is_in_task());
        let future = Box::pin(async move {
            let _ = completed.send(());
        });
        driver.start_inline(Handle::current(), future);
        assert!(driver.is_in_task());
        completion.await.expect("it is flown");
    }
}
