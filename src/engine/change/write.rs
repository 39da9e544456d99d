//! Writes to the source of truth, with the change of the cache that follows.
//!
//! The database comes first, then the cache. Both run in one task, so a caller that goes away does
//! not leave the second step out.
//!
//! | the write | the key |
//! |---|---|
//! | returned `Ok` | gets the value, or is invalidated, or is expired and loaded again |
//! | returned an error, or panicked | is invalidated: the write may have been carried out after all |
//! | was dropped with its runtime | is not invalidated: the process ends |

use std::any::Any;
use std::pin::Pin;
use std::sync::Arc;

use tokio::runtime::Handle;

use crate::engine::Engine;
use crate::erased::{AnyKey, AnyValue};
use crate::error::{RemoteError, RemoteKind, WriteError};
use crate::loader::Loaded;
use crate::telemetry::Trace;

/// The result of a write that returned `Ok`: the value that it wrote, or a value of another type.
pub(crate) enum Written {
    Value(Loaded<AnyValue>),
    Other(Box<dyn Any + Send>),
}

/// A write to the source, without its types.
pub(crate) type Write = Pin<Box<dyn Future<Output = Result<Written, Box<dyn Any + Send>>> + Send>>;

/// What follows a write that returned `Ok`.
#[derive(Clone, Copy)]
pub(crate) enum AfterWrite {
    /// The value that it wrote goes into both tiers.
    Insert,
    Invalidate,
    /// The entry is expired and loaded again. The outcome of the load does not matter to the
    /// writer.
    Refresh,
}

impl Engine {
    /// Runs the write and what follows, in a task of its own.
    pub(crate) async fn write(
        self: &Arc<Self>,
        key: AnyKey,
        after: AfterWrite,
        write: Write,
    ) -> Result<Written, WriteError<Box<dyn Any + Send>>> {
        const OPERATION: &str = "write";
        let Some(running) = self.tasks.enter() else {
            return Err(WriteError::Remote(RemoteError::new(
                RemoteKind::Closed,
                OPERATION,
            )));
        };
        let Ok(runtime) = Handle::try_current() else {
            let cause = "this future must be polled inside a tokio runtime";
            let error = RemoteError::because(RemoteKind::Unreachable, OPERATION, cause);
            return Err(WriteError::Remote(error));
        };
        let engine = Arc::clone(self);
        let here = Trace::here();
        let all = runtime.spawn(Trace::here().within(async move {
            let _running = running;
            // In a task of its own, so that a panic of the write ends there.
            let failed = match tokio::spawn(here.within(write)).await {
                Ok(Ok(written)) => {
                    engine.stats.writes.add();
                    let followed = engine.follow(key, after, written).await;
                    return followed.map_err(WriteError::Remote);
                }
                Ok(Err(error)) => WriteError::Source(error),
                Err(_) => WriteError::Panicked,
            };
            // An invalidation that fails becomes a repair. The caller has an error already.
            let _ = engine.invalidate_one(&key).await;
            Err(failed)
        }));
        match all.await {
            Ok(result) => result,
            Err(ended) => {
                let error = RemoteError::because(RemoteKind::Unreachable, OPERATION, ended);
                Err(WriteError::Remote(error))
            }
        }
    }

    /// What follows a write that returned `Ok`.
    async fn follow(
        self: &Arc<Self>,
        key: AnyKey,
        after: AfterWrite,
        written: Written,
    ) -> Result<Written, RemoteError> {
        match (after, written) {
            (AfterWrite::Insert, Written::Value(loaded)) => {
                match self.insert_one(key, loaded).await {
                    // Another writer was later, in the database as well. Its value stays.
                    Err(error) if error.is_superseded() => {}
                    result => result?,
                }
                Ok(Written::Other(Box::new(())))
            }
            (AfterWrite::Refresh, written) => {
                self.expire_one(&key).await?;
                if let Ok(admission) = self.admit() {
                    let _ = self.refresh(key, admission).await;
                }
                Ok(written)
            }
            (AfterWrite::Invalidate | AfterWrite::Insert, written) => {
                self.invalidate_one(&key).await?;
                Ok(written)
            }
        }
    }
}
