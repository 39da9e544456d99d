//! Where single look-ups come together to be loaded as a batch.
//!
//! A flight that needs a load waits here for others, for [`window`](crate::Batching::window) at most:
//!
//! | it is sent on | |
//! |---|---|
//! | at once | if nothing of this cache is being loaded and no other flight is on its way here: an idle cache adds no latency |
//! | with the others | as soon as no more are on their way and nothing is being loaded, or the batch is full, or its window is over |
//!
//! So a burst of look-ups becomes one batch without waiting for a timer, and while a load runs, what
//! comes collects for the next.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use tokio::runtime::Handle;
use tokio::sync::oneshot;
use tokio::time::Instant;

use crate::batch::Batching;
use crate::engine::Engine;
use crate::engine::batch::{Batch, BatchTicket};
use crate::engine::load::permits::Priority;
use crate::erased::AnyKey;
use crate::ttl;

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
    /// Of those who wait.
    until: Instant,
    /// Tells one batch from the next.
    number: u64,
    /// Batches that have been sent on and are not loaded yet.
    loading: usize,
}

struct WaitingLoad {
    engine: Arc<Engine>,
    runtime: Handle,
    key: AnyKey,
    priority: Priority,
    sender: oneshot::Sender<BatchTicket>,
}

/// A flight that is on its way, until dropped.
pub(crate) struct ArrivalGuard(Arc<dyn ArrivalCount>);

trait ArrivalCount: Send + Sync {
    fn one_fewer(self: Arc<Self>);
}

/// A batch that is being loaded, until dropped.
pub(crate) struct LoadingBatch(Arc<BatchWindow>);

/// How often a flight that seems to be alone lets others run first: those who came with it may not
/// have set out yet.
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

    /// Counts a flight in.
    pub(crate) fn expect_arrival(self: &Arc<Self>) -> ArrivalGuard {
        self.expected.fetch_add(1, Ordering::SeqCst);
        ArrivalGuard(Arc::clone(self) as Arc<dyn ArrivalCount>)
    }

    /// Waits for a seat in a batch.
    pub(crate) async fn join(
        self: &Arc<Self>,
        engine: &Arc<Engine>,
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
        let (sender, mut mine) = oneshot::channel();
        let waiting = WaitingLoad {
            engine: Arc::clone(engine),
            runtime,
            key: key.clone(),
            priority,
            sender,
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
            ticket = &mut mine => return ticket.ok(),
            () = tokio::time::sleep_until(until) => self.flush(|state| state.number == number),
        }
        mine.await.ok()
    }

    /// Sends those who wait on if there is nobody to wait for.
    fn flush_if_idle(self: &Arc<Self>) {
        if !self.wait_when_idle {
            self.flush(|state| state.loading == 0 && self.expected.load(Ordering::SeqCst) == 0);
        }
    }

    fn flush(self: &Arc<Self>, now: impl FnOnce(&WindowState) -> bool) {
        let batch = {
            let mut state = self.state.lock();
            if state.waiting.is_empty() || !now(&state) {
                return;
            }
            state.number += 1;
            state.loading += 1;
            std::mem::take(&mut state.waiting)
        };
        let loading = LoadingBatch(Arc::clone(self));
        let Some((engine, runtime)) = batch
            .first()
            .map(|first| (Arc::clone(&first.engine), first.runtime.clone()))
        else {
            return;
        };
        let (keys, senders) = batch
            .into_iter()
            .map(|waiting| ((waiting.key, waiting.priority), waiting.sender))
            .unzip();
        Batch::form(&engine, &runtime, keys, senders, None, Some(loading));
    }
}

impl ArrivalCount for BatchWindow {
    fn one_fewer(self: Arc<Self>) {
        if self.expected.fetch_sub(1, Ordering::SeqCst) == 1 {
            self.flush_if_idle();
        }
    }
}

impl Drop for ArrivalGuard {
    fn drop(&mut self) {
        Arc::clone(&self.0).one_fewer();
    }
}

impl fmt::Debug for ArrivalGuard {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Approach")
    }
}

impl Drop for LoadingBatch {
    fn drop(&mut self) {
        self.0.state.lock().loading -= 1;
        self.0.flush_if_idle();
    }
}
