//! The repair worker: one task that repeats what L2 has not confirmed, until the list is empty.

use std::sync::{Arc, Weak};
use std::time::Duration;

use tokio::sync::Notify;

use crate::coherence::repairs::Repair;
use crate::coherence::watermarks::TagWatermark;
use crate::engine::Engine;
use crate::error::RemoteError;
use crate::health::Event;
use crate::random;

/// How long the worker waits after a repair that failed: the first time, and at most.
const FIRST_PAUSE: Duration = Duration::from_millis(100);
const LONGEST_PAUSE: Duration = Duration::from_secs(5);

impl Engine {
    /// Adds a repair to the list, and starts a worker if there is none. `tag`: its entries are dead
    /// until the repair is done.
    pub(super) fn enqueue_repair(self: &Arc<Self>, repair: Repair, tag: Option<Arc<TagWatermark>>) {
        let added = self.repairs.add(repair, tag);
        self.emit_change(&Event::RepairPending, added.first);
        if added.overflowed {
            self.stats.repairs_overflowed.add();
            self.emit(&Event::RepairsOverflowed);
            self.drop_everything();
        }
        if added.needs_worker {
            let (engine, wake) = (Arc::downgrade(self), Arc::clone(&self.repairs.wake));
            tokio::spawn(run_repairs(engine, wake));
        }
    }

    /// One attempt at one repair.
    async fn repair(&self, repair: &Repair) -> Result<(), RemoteError> {
        match repair {
            Repair::Invalidate(id) => self.announce_invalidation(id).await,
            Repair::Expire(id) => self.announce_expiry(id).await,
            Repair::Tag(tag) => self.announce_advance(Some(*tag)).await,
            Repair::All => self.announce_advance(None).await,
        }
    }

    /// One attempt at each repair before the process may end, up to the first that fails.
    pub(crate) async fn last_repairs(&self) {
        while let Some((ticket, repair)) = self.repairs.next_repair() {
            if self.repair(&repair).await.is_err() {
                self.repairs.release_worker();
                return;
            }
            self.stats.repairs.add();
            self.repairs.confirm(ticket);
        }
    }
}

/// Repeats the repairs, one after the other, until the list is empty.
async fn run_repairs(engine: Weak<Engine>, wake: Arc<Notify>) {
    let mut pause = FIRST_PAUSE;
    loop {
        {
            let Some(engine) = engine.upgrade() else {
                return;
            };
            if engine.is_closed() {
                return engine.repairs.release_worker();
            }
            let Some((ticket, repair)) = engine.repairs.next_repair() else {
                return;
            };
            if engine.repair(&repair).await.is_ok() {
                engine.stats.repairs.add();
                engine.repairs.confirm(ticket);
                pause = FIRST_PAUSE;
                continue;
            }
        }
        // With jitter, so that the processes of a fleet do not return to their server all at once.
        let jittered = random::duration(pause.mul_f64(0.75), pause.mul_f64(1.25));
        let _ = tokio::time::timeout(jittered, wake.notified()).await;
        pause = (pause * 2).min(LONGEST_PAUSE);
    }
}
