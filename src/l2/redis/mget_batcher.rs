//! Batches of single reads: which read joins which batch, and when a batch is full.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use bytes::Bytes;
use fred::error::Error as FredError;
use parking_lot::Mutex;
use tokio::runtime::Id;
use tokio::sync::oneshot;

use crate::error::RemoteError;

pub(super) type Reply = Result<Option<Bytes>, FredError>;

/// The batch that is open, and the number of reads in flight.
#[derive(Debug, Default)]
pub(super) struct MgetBatcher {
    in_flight: AtomicUsize,
    /// The batch that further reads join, and the runtime whose reads they are.
    open: Mutex<Option<(Id, Arc<Batch>)>>,
    /// This user may not send `MGET`.
    mget_denied: AtomicBool,
}

/// A read in a batch.
#[derive(Debug)]
pub(super) struct PendingRead {
    pub(super) key: Bytes,
    /// Dropped without a reply: the read was not sent.
    pub(super) reply: oneshot::Sender<Reply>,
}

/// The reads of a batch. Empty once they were taken.
pub(super) type Batch = Mutex<Vec<PendingRead>>;

/// Counts a read as in flight until it is dropped.
pub(super) struct InFlightGuard<'a>(&'a MgetBatcher);

impl Drop for InFlightGuard<'_> {
    fn drop(&mut self) {
        self.0.in_flight.fetch_sub(1, Ordering::Relaxed);
    }
}

/// A place in a batch.
pub(super) struct Joined {
    pub(super) batch: Arc<Batch>,
    /// The number of reads that joined before.
    pub(super) index: usize,
    /// The batch has as many reads as it should have.
    pub(super) full: bool,
}

impl MgetBatcher {
    /// Counts a read. Answers the number of others in flight.
    pub(super) fn begin(&self) -> (usize, InFlightGuard<'_>) {
        let others_in_flight = self.in_flight.fetch_add(1, Ordering::Relaxed);
        (others_in_flight, InFlightGuard(self))
    }

    /// Whether every key needs a command of its own.
    pub(super) fn is_mget_denied(&self) -> bool {
        self.mget_denied.load(Ordering::Relaxed)
    }

    /// From now on every key has a command of its own.
    pub(super) fn set_mget_denied(&self) {
        self.mget_denied.store(true, Ordering::Relaxed);
    }

    /// Looks at the answer to an `MGET`: this user may not be allowed to send it.
    pub(super) fn note_denial<T>(&self, read: &Result<T, RemoteError>) {
        if read.as_ref().is_err_and(RemoteError::is_denied) {
            self.set_mget_denied();
        }
    }

    /// Joins the open batch of this runtime, or opens one.
    pub(super) fn join(&self, runtime: Id, pending: PendingRead, full_at: usize) -> Joined {
        let mut open = self.open.lock();
        let batch = match &*open {
            Some((of, batch)) if *of == runtime => Arc::clone(batch),
            _ => {
                let batch = Arc::default();
                *open = Some((runtime, Arc::clone(&batch)));
                batch
            }
        };
        let (index, full) = {
            let mut collected = batch.lock();
            collected.push(pending);
            (collected.len() - 1, collected.len() >= full_at)
        };
        if full {
            *open = None;
        }
        Joined { batch, index, full }
    }

    /// Closes a batch and takes its reads.
    pub(super) fn take(&self, batch: &Arc<Batch>) -> Vec<PendingRead> {
        let mut open = self.open.lock();
        if open
            .as_ref()
            .is_some_and(|(_, open)| Arc::ptr_eq(open, batch))
        {
            *open = None;
        }
        drop(open);
        std::mem::take(&mut *batch.lock())
    }
}
