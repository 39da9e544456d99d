//! A loader for tests, which is counted, held up, and made to fail on command.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use parking_lot::Mutex;
use tokio::sync::watch;

use crate::entry::Entry;
use crate::loader::{Loaded, Loader};

/// A loader around yours, for tests: it counts loads, holds them up, and makes them fail.
///
/// `Clone` gives another handle to the same loader: one for the cache, one for the test.
///
/// ```
/// use tidegate::testing::Scripted;
/// use tidegate::{BoxError, Cache, InProcess, loader_fn};
///
/// # #[tokio::main(flavor = "current_thread", start_paused = true)]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let load = loader_fn(|id: u64| async move { Ok::<_, BoxError>(format!("user {id}")) });
/// let source = Scripted::new(load);
/// let users: Cache<u64, String> = Cache::builder("users", source.clone()).build()?;
///
/// // Two callers, one load.
/// let held = source.hold();
/// let calls = async {
///     held.reached().await;
///     drop(held);
/// };
/// let (first, second, ()) = tokio::join!(users.get(&1), users.get(&1), calls);
/// assert_eq!((first?, source.loads()), (second?, 1));
///
/// source.fail_next(1, || BoxError::new("deadlock detected"));
/// assert!(users.get(&2).await.is_err());
/// # Ok(())
/// # }
/// ```
pub struct Scripted<L: Loader>(Arc<Script<L>>);

struct Script<L: Loader> {
    loader: L,
    loads: AtomicUsize,
    /// The number of loads that wait at a hold.
    waiting: watch::Sender<usize>,
    /// The number of holds that have not been dropped.
    holds: watch::Sender<usize>,
    failing: Mutex<Failing<L::Error>>,
}

/// Which loads fail: a number of them, or all.
enum Failing<E> {
    No,
    Next(usize, MakeError<E>),
    All(MakeError<E>),
}

type MakeError<E> = Box<dyn Fn() -> E + Send>;

impl<L: Loader> Clone for Scripted<L> {
    fn clone(&self) -> Self {
        Self(Arc::clone(&self.0))
    }
}

impl<L: Loader> Scripted<L> {
    /// Does what `loader` does, until a test says otherwise.
    pub fn new(loader: L) -> Self {
        Self(Arc::new(Script {
            loader,
            loads: AtomicUsize::new(0),
            waiting: watch::Sender::new(0),
            holds: watch::Sender::new(0),
            failing: Mutex::new(Failing::No),
        }))
    }

    /// The number of loads that have begun, including reloads, whether they succeeded or not.
    pub fn loads(&self) -> usize {
        self.0.loads.load(Ordering::SeqCst)
    }

    /// The next `count` loads answer this error, without your loader. This replaces earlier calls
    /// of it and of [`fail`](Self::fail).
    pub fn fail_next(&self, count: usize, error: impl Fn() -> L::Error + Send + 'static) {
        *self.0.failing.lock() = match count {
            0 => Failing::No,
            _ => Failing::Next(count, Box::new(error)),
        };
    }

    /// Loads answer this error, without your loader, until [`work`](Self::work).
    pub fn fail(&self, error: impl Fn() -> L::Error + Send + 'static) {
        *self.0.failing.lock() = Failing::All(Box::new(error));
    }

    /// Loads fail no more.
    pub fn work(&self) {
        *self.0.failing.lock() = Failing::No;
    }

    /// Loads that begin from now on wait until this hold, and every other one, is dropped. Whether
    /// they fail is decided after that; then your loader is called.
    pub fn hold(&self) -> Held {
        self.0.holds.send_modify(|holds| *holds += 1);
        Held {
            holds: self.0.holds.clone(),
            waiting: self.0.waiting.subscribe(),
        }
    }

    async fn begin(&self) -> Result<(), L::Error> {
        self.0.loads.fetch_add(1, Ordering::SeqCst);
        let mut holds = self.0.holds.subscribe();
        if *holds.borrow_and_update() > 0 {
            let _waiting = WaitingLoad::count(&self.0.waiting);
            // The sender lives as long as `self`, so there is no error.
            let _ = holds.wait_for(|holds| *holds == 0).await;
        }
        self.0.failing.lock().next_error().map_or(Ok(()), Err)
    }
}

impl<E> Failing<E> {
    fn next_error(&mut self) -> Option<E> {
        let (error, over) = match self {
            Self::No => return None,
            Self::All(make) => (make(), false),
            Self::Next(left, make) => {
                *left -= 1;
                (make(), *left == 0)
            }
        };
        if over {
            *self = Self::No;
        }
        Some(error)
    }
}

impl<L: Loader> Loader for Scripted<L> {
    type Key = L::Key;
    type Value = L::Value;
    type Error = L::Error;

    async fn load(&self, key: &L::Key) -> Result<Loaded<L::Value>, L::Error> {
        self.begin().await?;
        self.0.loader.load(key).await
    }

    async fn reload(
        &self,
        key: &L::Key,
        previous: &Entry<L::Value>,
    ) -> Result<Loaded<L::Value>, L::Error> {
        self.begin().await?;
        self.0.loader.reload(key, previous).await
    }
}

impl<L: Loader> fmt::Debug for Scripted<L> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Scripted")
            .field("loads", &self.loads())
            .field("holds", &*self.0.holds.borrow())
            .finish_non_exhaustive()
    }
}

/// Holds loads up until it is dropped: see [`Scripted::hold`].
#[derive(Debug)]
#[must_use = "loads go on when it is dropped"]
pub struct Held {
    holds: watch::Sender<usize>,
    waiting: watch::Receiver<usize>,
}

impl Held {
    /// Waits until a load is held up. Cancel safe.
    pub async fn reached(&self) {
        // If the loader is dropped, the wait ends.
        let _ = self.waiting.clone().wait_for(|loads| *loads > 0).await;
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        self.holds.send_modify(|holds| *holds -= 1);
    }
}

/// Counts one load as held up, until it goes on or is dropped.
struct WaitingLoad<'a>(&'a watch::Sender<usize>);

impl<'a> WaitingLoad<'a> {
    fn count(waiting: &'a watch::Sender<usize>) -> Self {
        waiting.send_modify(|loads| *loads += 1);
        Self(waiting)
    }
}

impl Drop for WaitingLoad<'_> {
    fn drop(&mut self) {
        self.0.send_modify(|loads| *loads -= 1);
    }
}
