//! The task counter: counts what runs in a cache, so that `close` can wait for it.

use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use tokio::sync::Notify;

/// The running tasks of one cache.
#[derive(Debug, Default)]
pub(crate) struct Tasks {
    running: AtomicUsize,
    closed: AtomicBool,
    idle: Notify,
    closing: Notify,
}

/// One running task. It is counted until this is dropped.
#[derive(Debug)]
pub(crate) struct Running(Arc<Tasks>);

impl Tasks {
    #[inline]
    pub(crate) fn is_closed(&self) -> bool {
        self.closed.load(Ordering::SeqCst)
    }

    /// Counts a task. `None`: the cache is closed. The task is counted before `closed` is read, so
    /// either `close` sees the task, or the task sees `close`.
    pub(crate) fn enter(self: &Arc<Self>) -> Option<Running> {
        let running = self.enter_late();
        (!self.is_closed()).then_some(running)
    }

    /// Counts a part of a task that already runs, also in a cache that is closed.
    pub(crate) fn enter_late(self: &Arc<Self>) -> Running {
        self.running.fetch_add(1, Ordering::SeqCst);
        Running(Arc::clone(self))
    }

    /// Waits until the cache is closed. Background work ends then.
    pub(crate) async fn closing(&self) {
        loop {
            let mut closing = pin!(self.closing.notified());
            closing.as_mut().enable();
            if self.is_closed() {
                return;
            }
            closing.await;
        }
    }

    pub(crate) fn running(&self) -> usize {
        self.running.load(Ordering::SeqCst)
    }

    /// Refuses new tasks from now on.
    pub(crate) fn shut(&self) {
        self.closed.store(true, Ordering::SeqCst);
        self.closing.notify_waiters();
    }

    /// Refuses new tasks and waits until all running ones have ended. Cancel safe: new tasks stay
    /// refused.
    pub(crate) async fn close(&self) {
        self.shut();
        loop {
            let mut idle = pin!(self.idle.notified());
            idle.as_mut().enable();
            if self.running() == 0 {
                return;
            }
            idle.await;
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if self.0.running.fetch_sub(1, Ordering::SeqCst) == 1 {
            self.0.idle.notify_waiters();
        }
    }
}
