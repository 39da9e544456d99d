//! The measurements, one module for one or two tables.

use std::sync::Arc;

use tokio::runtime::Runtime;

use crate::contenders::Contender;
use crate::peer::{BoxError, Instance, Setup};
use crate::server::Server;
use crate::source::Source;
use crate::table::Table;

mod coalesced;
mod delay;
mod failing;
mod hits;
mod invalidation;
mod killed;
mod l2;
mod many;
mod miss;
mod outage;

/// The size of a measurement.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Scale {
    /// A small round, to check that everything runs.
    pub(crate) quick: bool,
}

impl Scale {
    pub(crate) fn pick<T>(self, full: T, quick: T) -> T {
        if self.quick { quick } else { full }
    }
}

pub(crate) type Measure = fn(Scale) -> Result<Vec<Table>, BoxError>;

/// All measurements by their names on the command line, in the order of the file.
pub(crate) const MEASUREMENTS: [(&str, Measure); 10] = [
    ("hits", hits::measure),
    ("l2", l2::measure),
    ("miss", miss::measure),
    ("coalesced", coalesced::measure),
    ("killed", killed::measure),
    ("outage", outage::measure),
    ("failing", failing::measure),
    ("invalidation", invalidation::measure),
    ("many", many::measure),
    ("delay", delay::measure),
];

/// Two workers, as many as the machine of the published tables has cores.
fn runtime() -> Result<Runtime, BoxError> {
    Ok(tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()?)
}

/// A contender with a server of its own, so that the commands of one contender do not count for
/// another.
struct Participant {
    who: Contender,
    server: Server,
    source: &'static Source,
}

impl Participant {
    fn all(of: Vec<Contender>, source: fn() -> &'static Source) -> Result<Vec<Self>, BoxError> {
        of.into_iter()
            .map(|who| {
                let server = Server::start()?;
                let source = source();
                Ok(Self {
                    who,
                    server,
                    source,
                })
            })
            .collect()
    }

    fn setup(&self) -> Setup {
        Setup::new(self.server.url(), self.source)
    }

    async fn open(&self) -> Result<Instance, BoxError> {
        self.open_with(self.setup()).await
    }

    async fn open_with(&self, setup: Setup) -> Result<Instance, BoxError> {
        let opened = (self.who.open)(setup).await;
        opened.map_err(|error| format!("{}: {error}", self.who.slug).into())
    }
}

/// Looks all keys up with this many tasks. Returns the number of failed look-ups.
async fn ask_all(peer: &Instance, ids: &[u64], tasks: usize) -> Result<usize, BoxError> {
    let mut running = tokio::task::JoinSet::new();
    for share in ids.chunks(ids.len().div_ceil(tasks).max(1)) {
        let (peer, share) = (Arc::clone(peer), share.to_vec());
        running.spawn(async move {
            let mut failed = 0;
            for id in share {
                failed += usize::from(peer.get(id).await.is_err());
            }
            failed
        });
    }
    Ok(running.join_all().await.into_iter().sum())
}
