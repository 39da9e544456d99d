//! What every contender can do, whatever it calls it.

use std::error::Error;
use std::future::Future;
use std::hint::black_box;
use std::pin::Pin;
use std::sync::{Arc, Barrier};
use std::time::{Duration, Instant};

use crate::source::{Held, Source};

pub(crate) type Fault = Box<dyn Error + Send + Sync>;
pub(crate) type Later<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;
pub(crate) type Instance = Arc<dyn Peer>;
pub(crate) type Opening = Later<'static, Result<Instance, Fault>>;

/// What an instance is made of.
#[derive(Clone, Debug)]
pub(crate) struct Setup {
    pub(crate) url: String,
    pub(crate) source: &'static Source,
    /// Entries that L1 has room for.
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

/// TTL of everything, longer than any measurement.
pub(crate) const TTL: Duration = Duration::from_secs(3_600);

/// One instance, with an L1 and connections of its own.
pub(crate) trait Peer: Send + Sync + 'static {
    /// Gets, or loads and stores, with a key that is a number.
    fn get(&self, id: u64) -> Later<'_, Result<Held, Fault>>;

    /// The same with a key that is a string. Contenders with typed keys keep these in a second cache.
    fn get_by_name<'a>(&'a self, name: &'a str) -> Later<'a, Result<Held, Fault>>;

    fn invalidate(&self, id: u64) -> Later<'_, Result<(), Fault>>;

    /// How many of them are there, where many can be asked for in one call.
    fn get_many(&self, _ids: Vec<u64>) -> Option<Later<'_, Result<usize, Fault>>> {
        None
    }

    /// Looks up what L1 holds, in a loop without boxes.
    fn hits(&self, draws: &Draws<'_>) -> Result<Duration, Fault>;

    fn close(&self) -> Later<'_, ()> {
        Box::pin(async {})
    }
}

/// Keys that one thread looks up one after the other.
pub(crate) struct Draws<'a> {
    pub(crate) ids: &'a [u64],
    /// Where keys are strings: by their numbers.
    pub(crate) names: Option<&'a [String]>,
    /// Where the threads meet before they begin.
    pub(crate) barrier: &'a Barrier,
}

impl<'a> Draws<'a> {
    /// For contenders whose look-ups are futures.
    pub(crate) fn spin<A, B, T, U>(
        &self,
        by_id: impl Fn(u64) -> A,
        by_name: impl Fn(&'a str, u64) -> B,
    ) -> Result<Duration, Fault>
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

    /// For contenders whose look-ups block.
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

/// What has no look-ups in L1, or no tier but it.
pub(crate) fn unable<T>(what: &'static str) -> Result<T, Fault> {
    Err(what.into())
}
