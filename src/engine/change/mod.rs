//! Changes on purpose: `invalidate`, `expire`, `insert`, writes to the source, and invalidations of
//! everything or of a tag.
//!
//! The order of a change is: the database (the caller's part), L2, then L1. If L1 were evicted
//! first, a reader could put L2's old value back. Every change runs to its end in a task of its
//! own, so a caller that goes away does not leave it half done. A change that L2 has not confirmed
//! is an error, and is repeated as a [repair](crate::coherence::repairs).
//!
//! | file | what it holds |
//! |---|---|
//! | `invalidate` | the calls that make entries unusable, and what they do in this process |
//! | `insert` | the calls that give keys new values |
//! | `write` | a write to the source, and the change that follows it |
//! | `announce` | how L2 and the other processes learn of a change |
//! | `repair_worker` | the task that repeats what L2 has not confirmed |
//! | `listener` | what this process does when another one announces a change |

mod announce;
mod insert;
mod invalidate;
mod listener;
mod repair_worker;
pub(crate) mod write;

use std::sync::Arc;

use tokio::runtime::Handle;
use tokio::task::{JoinError, JoinSet};

use crate::engine::Engine;
use crate::error::{RemoteError, RemoteKind};
use crate::telemetry::Trace;

/// How many keys of one call are changed at once.
const PIPELINED: usize = 256;

impl Engine {
    /// Runs a change in a task of its own, to its end.
    async fn run_to_end<Fut>(
        self: &Arc<Self>,
        operation: &'static str,
        change: impl FnOnce(Arc<Self>) -> Fut,
    ) -> Result<(), RemoteError>
    where
        Fut: Future<Output = Result<(), RemoteError>> + Send + 'static,
    {
        let Some(running) = self.tasks.enter() else {
            return Err(RemoteError::new(RemoteKind::Closed, operation));
        };
        let Ok(runtime) = Handle::try_current() else {
            let cause = "this future must be polled inside a tokio runtime";
            let kind = RemoteKind::Unreachable;
            return Err(RemoteError::because(kind, operation, cause));
        };
        let change = change(Arc::clone(self));
        let done = runtime.spawn(Trace::here().within(async move {
            let _running = running;
            change.await
        }));
        match done.await {
            Ok(result) => result,
            Err(ended) => Err(unfinished(operation, ended)),
        }
    }

    /// Runs the same change for each item, many at a time. A change that fails does not stop the
    /// others. Answers the first error.
    async fn pipelined<T, Fut>(
        self: &Arc<Self>,
        operation: &'static str,
        items: Vec<T>,
        change: impl Fn(Arc<Self>, T) -> Fut + Send + 'static,
    ) -> Result<(), RemoteError>
    where
        T: Send + 'static,
        Fut: Future<Output = Result<(), RemoteError>> + Send + 'static,
    {
        self.run_to_end(operation, move |engine| async move {
            let (mut changes, mut first_error) = (JoinSet::new(), None);
            for item in items {
                if changes.len() >= PIPELINED {
                    keep_first(operation, &mut first_error, changes.join_next().await);
                }
                changes.spawn(Trace::here().within(change(Arc::clone(&engine), item)));
            }
            while let Some(ended) = changes.join_next().await {
                keep_first(operation, &mut first_error, Some(ended));
            }
            first_error.map_or(Ok(()), Err)
        })
        .await
    }
}

fn keep_first(
    operation: &'static str,
    first: &mut Option<RemoteError>,
    ended: Option<Result<Result<(), RemoteError>, JoinError>>,
) {
    let error = match ended {
        Some(Ok(Err(error))) => error,
        Some(Err(ended)) => unfinished(operation, ended),
        Some(Ok(Ok(()))) | None => return,
    };
    first.get_or_insert(error);
}

/// The error of a change whose task has panicked, or ended with its runtime.
fn unfinished(operation: &'static str, ended: JoinError) -> RemoteError {
    RemoteError::because(RemoteKind::Unreachable, operation, ended)
}
