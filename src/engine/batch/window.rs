//! The window: single look-ups of one cache wait here for others and are loaded as a batch.
//!
//! A flight that needs a load waits for [`window`](crate::Batching::window) at most:
//!
//! | it is sent to a batch | when |
//! |---|---|
//! | at once | the cache loads nothing and no other flight is expected: an idle cache adds no latency |
//! | with the others that wait | the cache loads nothing and no more flights are expected, or the batch is full, or its window is over |
//!
//! So a burst of look-ups becomes one batch without a wait for a timer. While a load runs, the
//! flights that come are collected for the next one.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use tokio::runtime::Handle;
use tokio::sync::oneshot;
use tokio::time::Instant;

use super::members::{Batch, BatchRunner, BatchTicket, Candidate};
use crate::batch::Batching;
use crate::engine::load::permits::Priority;
use crate::erased::AnyKey;
use crate::ttl;

/// The window of one cache.
pub(crate) struct BatchWindow {
    window: Duration,
    max_size: usize,
    wait_when_idle: bool,
    /// Flights that may still come.
    expected: AtomicUsize,
    state: Mutex<WindowState>,
}

struct WindowState {
    waiting: Vec<WaitingLoad>,
    /// When the flights that wait now are sent on at the latest.
    until: Instant,
    /// The number of the batch that is collected now.
    number: u64,
    /// Batches that were sent on and are not loaded yet.
    loading: usize,
}

/// A flight that waits in the window.
struct WaitingLoad {
    runner: Arc<dyn BatchRunner>,
    runtime: Handle,
    candidate: Candidate,
}

/// A flight that the window expects, until dropped.
pub(crate) struct ArrivalGuard(Arc<BatchWindow>);

/// A batch that is being loaded, until dropped.
struct LoadingBatch(Arc<BatchWindow>);

/// How often a flight that seems to be alone yields to other tasks: flights that were started at
/// the same moment may not be expected yet.
const MAX_YIELDS: usize = 3;

impl BatchWindow {
    pub(crate) fn new(settings: &Batching) -> Arc<Self> {
        Arc::new(Self {
            window: settings.window,
            max_size: settings.max_size,
            wait_when_idle: settings.wait_when_idle,
            expected: AtomicUsize::new(0),
            state: Mutex::new(WindowState {
                waiting: Vec::new(),
                until: Instant::now(),
                number: 0,
                loading: 0,
            }),
        })
    }

    /// Counts a flight as expected.
    pub(crate) fn expect_arrival(self: &Arc<Self>) -> ArrivalGuard {
        self.expected.fetch_add(1, Ordering::SeqCst);
        ArrivalGuard(Arc::clone(self))
    }

    /// The flight needs a load: waits for its ticket of a batch. `arrival`: it was expected.
    pub(crate) async fn join(
        self: &Arc<Self>,
        runner: Arc<dyn BatchRunner>,
        key: &AnyKey,
        priority: Priority,
        arrival: Option<ArrivalGuard>,
    ) -> Option<BatchTicket> {
        let runtime = Handle::try_current().ok()?;
        let own = usize::from(arrival.is_some());
        for _ in 0..MAX_YIELDS {
            if self.expected.load(Ordering::SeqCst) > own {
                break;
            }
            tokio::task::yield_now().await;
        }
        let (sender, mut ticket) = oneshot::channel();
        let waiting = WaitingLoad {
            runner,
            runtime,
            candidate: Candidate {
                key: key.clone(),
                priority,
                sender,
            },
        };
        let (number, until, full) = {
            let mut state = self.state.lock();
            if state.waiting.is_empty() {
                state.until = ttl::deadline(Instant::now(), self.window);
            }
            state.waiting.push(waiting);
            let full = state.waiting.len() >= self.max_size;
            (state.number, state.until, full)
        };
        if full {
            self.flush(|state| state.number == number);
        }
        drop(arrival);
        self.flush_if_idle();
        tokio::select! {
            biased;
            ticket = &mut ticket => return ticket.ok(),
            () = tokio::time::sleep_until(until) => self.flush(|state| state.number == number),
        }
        ticket.await.ok()
    }

    /// Sends on what waits if no flight is expected and nothing is being loaded.
    fn flush_if_idle(self: &Arc<Self>) {
        if !self.wait_when_idle {
            self.flush(|state| state.loading == 0 && self.expected.load(Ordering::SeqCst) == 0);
        }
    }

    /// Forms a batch of what waits, if `now` says so.
    fn flush(self: &Arc<Self>, now: impl FnOnce(&WindowState) -> bool) {
        let waiting = {
            let mut state = self.state.lock();
            if state.waiting.is_empty() || !now(&state) {
                return;
            }
            state.number += 1;
            state.loading += 1;
            std::mem::take(&mut state.waiting)
        };
        let loading = LoadingBatch(Arc::clone(self));
        let Some(first) = waiting.first() else {
            return;
        };
        let (runner, runtime) = (Arc::clone(&first.runner), first.runtime.clone());
        let candidates = waiting
            .into_iter()
            .map(|waiting| waiting.candidate)
            .collect();
        Batch::form(runner, runtime, candidates, None, Some(Box::new(loading)));
    }
}

impl Drop for ArrivalGuard {
    fn drop(&mut self) {
        if self.0.expected.fetch_sub(1, Ordering::SeqCst) == 1 {
            self.0.flush_if_idle();
        }
    }
}

impl Drop for LoadingBatch {
    fn drop(&mut self) {
        self.0.state.lock().loading -= 1;
        self.0.flush_if_idle();
    }
}

impl fmt::Debug for ArrivalGuard {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ArrivalGuard")
    }
}
