//! The operations that every contender has, under one name.

use std::error::Error;
use std::future::Future;
use std::hint::black_box;
use std::pin::Pin;
use std::sync::{Arc, Barrier};
use std::time::{Duration, Instant};

use crate::source::{CachedUser, Source};

pub(crate) type BoxError = Box<dyn Error + Send + Sync>;
pub(crate) type BoxFuture<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;
pub(crate) type Instance = Arc<dyn Peer>;
pub(crate) type Opening = BoxFuture<'static, Result<Instance, BoxError>>;

/// The ingredients of an instance.
#[derive(Clone, Debug)]
pub(crate) struct Setup {
    pub(crate) url: String,
    pub(crate) source: &'static Source,
    /// The capacity of L1, in entries.
    pub(crate) capacity: u64,
}

impl Setup {
    pub(crate) fn new(url: impl Into<String>, source: &'static Source) -> Self {
        Self {
            url: url.into(),
            source,
            capacity: 50_000,
        }
    }
}

/// The TTL of everything, longer than any measurement.
pub(crate) const TTL: Duration = Duration::from_secs(3_600);

/// One instance with an L1 and connections of its own.
pub(crate) trait Peer: Send + Sync + 'static {
    /// Gets, or loads and stores, with a number as the key.
    fn get(&self, id: u64) -> BoxFuture<'_, Result<CachedUser, BoxError>>;

    /// The same with a string as the key. Contenders with typed keys keep these in a second cache.
    fn get_by_name<'a>(&'a self, name: &'a str) -> BoxFuture<'a, Result<CachedUser, BoxError>>;

    fn invalidate(&self, id: u64) -> BoxFuture<'_, Result<(), BoxError>>;

    /// How many of the keys exist, if the contender has a call for many keys.
    fn get_many(&self, _ids: Vec<u64>) -> Option<BoxFuture<'_, Result<usize, BoxError>>> {
        None
    }

    /// Looks up keys that L1 holds, in a loop without boxed futures.
    fn hits(&self, draws: &Draws<'_>) -> Result<Duration, BoxError>;

    fn close(&self) -> BoxFuture<'_, ()> {
        Box::pin(async {})
    }
}

/// Keys that one thread looks up one after the other.
pub(crate) struct Draws<'a> {
    pub(crate) ids: &'a [u64],
    /// The string keys by their numbers, for look-ups by string.
    pub(crate) names: Option<&'a [String]>,
    /// All threads wait here before they begin.
    pub(crate) barrier: &'a Barrier,
}

impl<'a> Draws<'a> {
    /// Runs look-ups that are futures.
    pub(crate) fn spin<A, B, T, U>(
        &self,
        by_id: impl Fn(u64) -> A,
        by_name: impl Fn(&'a str, u64) -> B,
    ) -> Result<Duration, BoxError>
    where
        A: Future<Output = T>,
        B: Future<Output = U>,
    {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()?;
        runtime.block_on(async {
            self.barrier.wait();
            let begun = Instant::now();
            match self.names {
                None => {
                    for &id in self.ids {
                        black_box(by_id(id).await);
                    }
                }
                Some(names) => {
                    for (name, id) in self.ids.iter().filter_map(|&id| named(names, id)) {
                        black_box(by_name(name, id).await);
                    }
                }
            }
            Ok(begun.elapsed())
        })
    }

    /// Runs look-ups that block.
    pub(crate) fn spin_blocking<T, U>(
        &self,
        by_id: impl Fn(u64) -> T,
        by_name: impl Fn(&'a str, u64) -> U,
    ) -> Duration {
        self.barrier.wait();
        let begun = Instant::now();
        match self.names {
            None => {
                for &id in self.ids {
                    black_box(by_id(id));
                }
            }
            Some(names) => {
                for (name, id) in self.ids.iter().filter_map(|&id| named(names, id)) {
                    black_box(by_name(name, id));
                }
            }
        }
        begun.elapsed()
    }
}

fn named(names: &[String], id: u64) -> Option<(&str, u64)> {
    let name = names.get(usize::try_from(id).ok()?)?;
    Some((name, id))
}

/// The error of a contender that cannot do a measurement.
pub(crate) fn unsupported<T>(what: &'static str) -> Result<T, BoxError> {
    Err(what.into())
}
