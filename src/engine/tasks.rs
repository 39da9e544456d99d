//! Counts what runs, so that `close` can wait for it.

use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use tokio::sync::Notify;

#[derive(Debug, Default)]
pub(crate) struct Tasks {
    running: AtomicUsize,
    closed: AtomicBool,
    idle: Notify,
    closing: Notify,
}

/// One running task; counted until it is dropped.
#[derive(Debug)]
pub(crate) struct Running(Arc<Tasks>);

impl Tasks {
    #[inline]
    pub(crate) fn is_closed(&self) -> bool {
        self.closed.load(Ordering::SeqCst)
    }

    /// Counts a task in; `None` once closed. Counted first and looked at then, so that `close`
    /// either sees the task or is seen by it.
    pub(crate) fn enter(self: &Arc<Self>) -> Option<Running> {
        let running = self.enter_late();
        (!self.is_closed()).then_some(running)
    }

    /// Counts in a part of a task that already runs.
    pub(crate) fn enter_late(self: &Arc<Self>) -> Running {
        self.running.fetch_add(1, Ordering::SeqCst);
        Running(Arc::clone(self))
    }

    /// Waits until nothing is let in any more: work that nobody waits for ends then.
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

    /// Lets nothing in any more.
    pub(crate) fn shut(&self) {
        self.closed.store(true, Ordering::SeqCst);
        self.closing.notify_waiters();
    }

    /// Lets nothing in any more and waits until all that runs has ended. Cancel safe; the door
    /// stays shut.
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
