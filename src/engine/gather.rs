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

use super::Engine;
use super::places::Turn;
use super::together::{Chunk, ChunkSeat};
use crate::batch::Batching;
use crate::erased::AnyKey;
use crate::ttl;

pub(crate) struct Gather {
    window: Duration,
    most: usize,
    lone_waits: bool,
    /// Flights that may still come.
    approaching: AtomicUsize,
    state: Mutex<State>,
}

struct State {
    waiting: Vec<Waiting>,
    /// Of those who wait.
    until: Instant,
    /// Tells one batch from the next.
    number: u64,
    /// Batches that have been sent on and are not loaded yet.
    loading: usize,
}

struct Waiting {
    engine: Arc<Engine>,
    runtime: Handle,
    key: AnyKey,
    turn: Turn,
    pass: oneshot::Sender<ChunkSeat>,
}

/// A flight that is on its way, until dropped.
pub(crate) struct Approach(Arc<dyn Approached>);

trait Approached: Send + Sync {
    fn one_less(self: Arc<Self>);
}

/// A batch that is being loaded, until dropped.
pub(super) struct Loading(Arc<Gather>);

/// How often a flight that seems to be alone lets others run first: those who came with it may not
/// have set out yet.
const LOOKS: usize = 3;

impl Gather {
    pub(crate) fn new(settings: &Batching) -> Arc<Self> {
        Arc::new(Self {
            window: settings.window,
            most: settings.max_size,
            lone_waits: settings.wait_when_idle,
            approaching: AtomicUsize::new(0),
            state: Mutex::new(State {
                waiting: Vec::new(),
                until: Instant::now(),
                number: 0,
                loading: 0,
            }),
        })
    }

    /// Counts a flight in.
    pub(crate) fn approach(self: &Arc<Self>) -> Approach {
        self.approaching.fetch_add(1, Ordering::SeqCst);
        Approach(Arc::clone(self) as Arc<dyn Approached>)
    }

    /// Waits for a seat in a batch.
    pub(crate) async fn join(
        self: &Arc<Self>,
        engine: &Arc<Engine>,
        key: &AnyKey,
        turn: Turn,
        approach: Option<Approach>,
    ) -> Option<ChunkSeat> {
        let runtime = Handle::try_current().ok()?;
        let own = usize::from(approach.is_some());
        for _ in 0..LOOKS {
            if self.approaching.load(Ordering::SeqCst) > own {
                break;
            }
            tokio::task::yield_now().await;
        }
        let (pass, mut mine) = oneshot::channel();
        let waiting = Waiting {
            engine: Arc::clone(engine),
            runtime,
            key: key.clone(),
            turn,
            pass,
        };
        let (number, until, full) = {
            let mut state = self.state.lock();
            if state.waiting.is_empty() {
                state.until = ttl::deadline(Instant::now(), self.window);
            }
            state.waiting.push(waiting);
            let full = state.waiting.len() >= self.most;
            (state.number, state.until, full)
        };
        if full {
            self.send_on(|state| state.number == number);
        }
        drop(approach);
        self.settle();
        tokio::select! {
            biased;
            seat = &mut mine => return seat.ok(),
            () = tokio::time::sleep_until(until) => self.send_on(|state| state.number == number),
        }
        mine.await.ok()
    }

    /// Sends those who wait on if there is nobody to wait for.
    fn settle(self: &Arc<Self>) {
        if !self.lone_waits {
            self.send_on(|state| {
                state.loading == 0 && self.approaching.load(Ordering::SeqCst) == 0
            });
        }
    }

    fn send_on(self: &Arc<Self>, now: impl FnOnce(&State) -> bool) {
        let batch = {
            let mut state = self.state.lock();
            if state.waiting.is_empty() || !now(&state) {
                return;
            }
            state.number += 1;
            state.loading += 1;
            std::mem::take(&mut state.waiting)
        };
        let loading = Loading(Arc::clone(self));
        let Some((engine, runtime)) = batch
            .first()
            .map(|first| (Arc::clone(&first.engine), first.runtime.clone()))
        else {
            return;
        };
        let (keys, passes) = batch
            .into_iter()
            .map(|waiting| ((waiting.key, waiting.turn), waiting.pass))
            .unzip();
        Chunk::form(&engine, &runtime, keys, passes, None, Some(loading));
    }
}

impl Approached for Gather {
    fn one_less(self: Arc<Self>) {
        if self.approaching.fetch_sub(1, Ordering::SeqCst) == 1 {
            self.settle();
        }
    }
}

impl Drop for Approach {
    fn drop(&mut self) {
        Arc::clone(&self.0).one_less();
    }
}

impl fmt::Debug for Approach {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Approach")
    }
}

impl Drop for Loading {
    fn drop(&mut self) {
        self.0.state.lock().loading -= 1;
        self.0.settle();
    }
}
