//! The settings of batches.

use std::time::Duration;

use crate::error::BuildError;

/// How keys are loaded together: see [`CacheBuilder::batched`](crate::CacheBuilder::batched).
///
/// | setting | default | |
/// |---|---|---|
/// | [`max_size`](Self::max_size) | 1,000 | keys in one call of `load_many` at most |
/// | [`window`](Self::window) | 2 ms | how long a single look-up may wait for others; zero turns that off |
/// | [`wait_when_idle`](Self::wait_when_idle) | off | whether it also waits when no others are on their way |
/// | [`concurrency`](Self::concurrency) | 4 | batches of one `get_many` that are loaded at once |
///
/// ```
/// use std::time::Duration;
/// use tidegate::Batching;
///
/// let queries = Batching::new().max_size(500); // an `IN (…)` of the database's liking
/// let lists_alone = Batching::new().window(Duration::ZERO); // single keys do not wait
/// # let _ = (queries, lists_alone);
/// ```
#[derive(Clone, Debug)]
#[must_use = "settings do nothing until they are given to a builder"]
pub struct Batching {
    pub(crate) max_size: usize,
    pub(crate) window: Duration,
    pub(crate) wait_when_idle: bool,
    pub(crate) concurrency: usize,
}

impl Default for Batching {
    fn default() -> Self {
        Self {
            max_size: 1_000,
            window: Duration::from_millis(2),
            wait_when_idle: false,
            concurrency: 4,
        }
    }
}

impl Batching {
    /// The defaults.
    pub fn new() -> Self {
        Self::default()
    }

    /// The most keys that one call of [`load_many`](crate::BatchLoader::load_many) gets. A
    /// `get_many` that needs more is loaded in several calls. Single look-ups that make a batch
    /// full go on at once. Databases bound the parameters of one statement: SQLite 32,766,
    /// PostgreSQL 65,535, Oracle 1,000. From 1 to 65,536.
    ///
    /// Default: 1,000.
    pub fn max_size(mut self, keys: usize) -> Self {
        self.max_size = keys;
        self
    }

    /// How long a single look-up or refresh that needs a load waits for others to load with. It
    /// waits for the whole window only while another load runs. A burst of look-ups goes on as soon
    /// as all of it has arrived, and a lone look-up at once. Zero loads single look-ups one by one,
    /// with [`Loader::load`](crate::Loader::load). At most 1 second.
    ///
    /// Default: 2 ms.
    pub fn window(mut self, window: Duration) -> Self {
        self.window = window;
        self
    }

    /// Always waits for the end of the window, or for a full batch. Where look-ups come one after
    /// the other this gives fewer loads and more latency.
    ///
    /// Default: off.
    pub fn wait_when_idle(mut self, on: bool) -> Self {
        self.wait_when_idle = on;
        self
    }

    /// How many batches of one `get_many` are loaded at once.
    /// [`max_concurrent_loads`](crate::CacheBuilder::max_concurrent_loads) bounds the cache as a
    /// whole; a batch counts there as one load. From 1 to 1,024.
    ///
    /// Default: 4.
    pub fn concurrency(mut self, batches: usize) -> Self {
        self.concurrency = batches;
        self
    }

    pub(crate) fn check(&self) -> Result<(), BuildError> {
        let refused = |setter, value: String, allowed| {
            Err(BuildError::OutOfRange {
                setter,
                value,
                allowed,
            })
        };
        if !(1..=65_536).contains(&self.max_size) {
            let allowed = "a batch has from 1 to 65,536 keys";
            return refused("Batching::max_size", self.max_size.to_string(), allowed);
        }
        if self.window > Duration::from_secs(1) {
            let allowed = "a look-up waits for others for 1 second at most";
            return refused("Batching::window", format!("{:?}", self.window), allowed);
        }
        if self.wait_when_idle && self.window.is_zero() {
            let allowed = "with a window of zero there is nothing to wait for";
            return refused("Batching::wait_when_idle", "true".to_owned(), allowed);
        }
        if !(1..=1_024).contains(&self.concurrency) {
            let allowed = "from 1 to 1,024 batches of a call are loaded at once";
            return refused(
                "Batching::concurrency",
                self.concurrency.to_string(),
                allowed,
            );
        }
        Ok(())
    }
}
