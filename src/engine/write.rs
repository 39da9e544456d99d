//! Writes to the source of truth with what follows from them: database first, then the cache, in one
//! task that a caller cannot leave half done.
//!
//! | the write | the key |
//! |---|---|
//! | returned `Ok` | gets the value, or is invalidated, or expired and loaded again |
//! | returned an error, or panicked | is invalidated: it may have been carried out after all |
//! | was dropped with its runtime | is invalidated by nobody: the process ends |

use std::sync::Arc;

use tokio::runtime::Handle;

use super::Engine;
use crate::error::{RemoteError, RemoteKind, WriteError};
use crate::key::CacheKey;
use crate::loader::Loaded;
use crate::telemetry::Trace;

/// What follows a write that returned.
pub(crate) enum Then {
    Invalidate,
    /// And a load, whose outcome is no concern of the writer.
    Refresh,
}

impl<K, V, E> Engine<K, V, E>
where
    K: CacheKey,
    V: Send + Sync + 'static,
    E: Send + Sync + 'static,
{
    /// Write-through: what the write answers goes into both tiers.
    pub(crate) async fn write<X>(
        self: &Arc<Self>,
        key: K,
        write: impl Future<Output = Result<Loaded<V>, X>> + Send + 'static,
    ) -> Result<(), WriteError<X>>
    where
        X: Send + 'static,
    {
        let insert = |engine: Arc<Self>, key, loaded| async move {
            match engine.insert_one(key, loaded).await {
                // Another writer was later, in the database too: that is what stays.
                Err(error) if error.is_superseded() => Ok(()),
                result => result,
            }
        };
        self.written(key, write, insert).await
    }

    /// A write, and then what makes everybody read again.
    pub(crate) async fn write_then<T, X>(
        self: &Arc<Self>,
        key: K,
        then: Then,
        write: impl Future<Output = Result<T, X>> + Send + 'static,
    ) -> Result<T, WriteError<X>>
    where
        T: Send + 'static,
        X: Send + 'static,
    {
        let follow = |engine: Arc<Self>, key: K, written| async move {
            match then {
                Then::Invalidate => engine.invalidate_one(&key).await?,
                Then::Refresh => {
                    engine.expire_one(&key).await?;
                    let _ = engine.refresh(&key).await;
                }
            }
            Ok(written)
        };
        self.written(key, write, follow).await
    }

    /// The write and what follows, in a task of its own.
    async fn written<T, U, X, Fut>(
        self: &Arc<Self>,
        key: K,
        write: impl Future<Output = Result<T, X>> + Send + 'static,
        follow: impl FnOnce(Arc<Self>, K, T) -> Fut + Send + 'static,
    ) -> Result<U, WriteError<X>>
    where
        T: Send + 'static,
        U: Send + 'static,
        X: Send + 'static,
        Fut: Future<Output = Result<U, RemoteError>> + Send,
    {
        const DOING: &str = "write";
        let Some(running) = self.tasks.enter() else {
            return Err(WriteError::Remote(RemoteError::new(
                RemoteKind::Closed,
                DOING,
            )));
        };
        let Ok(runtime) = Handle::try_current() else {
            let cause = "this future must be polled inside a tokio runtime";
            let error = RemoteError::because(RemoteKind::Unreachable, DOING, cause);
            return Err(WriteError::Remote(error));
        };
        let engine = Arc::clone(self);
        let here = Trace::here();
        let all = runtime.spawn(Trace::here().within(async move {
            let _running = running;
            // A task of its own: what it panics with ends there.
            let failed = match tokio::spawn(here.within(write)).await {
                Ok(Ok(written)) => {
                    engine.stats.writes.add();
                    return follow(engine, key, written)
                        .await
                        .map_err(WriteError::Remote);
                }
                Ok(Err(error)) => WriteError::Source(error),
                Err(_) => WriteError::Panicked,
            };
            // What it comes to is repaired, if need be; the caller has an error already.
            let _ = engine.invalidate_one(&key).await;
            Err(failed)
        }));
        match all.await {
            Ok(result) => result,
            Err(ended) => {
                let error = RemoteError::because(RemoteKind::Unreachable, DOING, ended);
                Err(WriteError::Remote(error))
            }
        }
    }
}
