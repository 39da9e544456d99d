//! Warm-up: loading ahead of time, one process of the fleet at a time.
//!
//! Whoever warms holds a lease in a key of its own, `prefix:name::warm`, and renews it. The others
//! look again until they get it. It only saves work: were two to warm at once, the leases of the keys
//! would still see to it that each is loaded once.

use std::sync::Arc;
use std::time::Duration;

use tokio::runtime::Handle;
use tokio::time::Instant;

use super::Engine;
use super::lease::Lease;
use super::remote::RemoteKey;
use crate::entry::Source;
use crate::erased::AnyKey;
use crate::key::HashedKey;
use crate::l2::{Acquired, Over};
use crate::many::WarmProgress;
use crate::random;
use crate::ttl;

/// Keys that are looked up together.
const TOGETHER: u32 = 1_000;

/// How often a process looks whether it is its turn, at least.
const LOOK_EVERY: Duration = Duration::from_millis(250);

/// Follows the cache's name in the key that says whose turn it is. No key is named like it: encoded
/// keys hold no `:`.
const TURN: &[u8] = b":warm";

type Keys<'a> = &'a mut (dyn Iterator<Item = AnyKey> + Send);
type Tell<'a> = &'a mut (dyn FnMut(&WarmProgress) + Send);

impl Engine {
    pub(crate) async fn warm(
        self: &Arc<Self>,
        keys: Keys<'_>,
        loads_per_second: u32,
        emit: Tell<'_>,
    ) -> WarmProgress {
        let total = match keys.size_hint() {
            (least, Some(most)) if least == most => u64::try_from(most).ok(),
            _ => None,
        };
        let mut progress = WarmProgress {
            total,
            ..WarmProgress::default()
        };
        let Some(remote) = &self.remote else {
            self.warm_all(keys, loads_per_second, &mut progress, emit)
                .await;
            return progress;
        };
        let id = self.flights.id(TURN.to_vec());
        let remote_key = remote.key(&id);
        let turn = self.turn(&id, &remote_key, &mut progress, emit).await;
        let warming = self.warm_all(keys, loads_per_second, &mut progress, emit);
        match &turn {
            Some(turn) => tokio::select! {
                biased;
                () = warming => {}
                never = self.renew(&turn.lease) => match never {},
            },
            None => warming.await,
        }
        progress
    }

    /// Waits for this process's turn. `None`: nobody can say whose it is.
    async fn turn<'a>(
        self: &'a Arc<Self>,
        id: &'a HashedKey,
        remote_key: &'a RemoteKey,
        progress: &mut WarmProgress,
        emit: Tell<'_>,
    ) -> Option<Turn<'a>> {
        let remote = self.remote.as_ref()?;
        self.attach(remote).await;
        while !self.is_closed() {
            self.know_watermarks(remote).await.ok()?;
            let lease = Lease::new(remote, remote_key, self.watermarks.baseline(), None, 0);
            let record = lease.record().ok()?;
            let known = self.watermarks.known().unwrap_or_default();
            let ttl_ms = ttl::millis(self.config.lease_ttl);
            // Before it is asked for: whoever is dropped while he waits for the answer gives it up.
            let mut turn = Turn {
                engine: self,
                id,
                lease,
                ours: true,
            };
            let keys = turn.lease.keys();
            let acquired = remote
                .tier
                .acquire(keys, record, ttl_ms, Over::Nothing, known);
            let acquired = self.tier(acquired.await);
            match acquired {
                Ok(Acquired::Granted(_)) => {
                    progress.waiting = false;
                    return Some(turn);
                }
                Ok(Acquired::Held(left_ms)) => {
                    turn.ours = false;
                    progress.waiting = true;
                    emit(progress);
                    let wait = Duration::from_millis(left_ms).min(LOOK_EVERY);
                    tokio::time::sleep(random::duration(wait / 2, wait + LOOK_EVERY / 10)).await;
                }
                Ok(Acquired::Record(_) | Acquired::Failed(_)) => {
                    turn.ours = false;
                    break;
                }
                // It may have been granted: given up as what is granted is.
                Err(_) => break,
            }
        }
        progress.waiting = false;
        None
    }

    async fn warm_all(
        self: &Arc<Self>,
        keys: Keys<'_>,
        loads_per_second: u32,
        progress: &mut WarmProgress,
        emit: Tell<'_>,
    ) {
        let together = match loads_per_second {
            0 => TOGETHER,
            loads => (loads / 10).clamp(1, TOGETHER),
        };
        let together = usize::try_from(together).unwrap_or(1);
        while !self.is_closed() {
            let group: Vec<AnyKey> = (&mut *keys).take(together).collect();
            if group.is_empty() {
                return;
            }
            let (begun, loaded) = (Instant::now(), progress.loaded);
            let look_ups = group.into_iter().map(|key| self.look_up(key)).collect();
            for outcome in self.get_many(look_ups).await {
                progress.done += 1;
                match outcome.map(|answer| answer.source) {
                    Ok(Source::L1 | Source::L2) => progress.cached += 1,
                    Ok(Source::Loader | Source::Coalesced) => progress.loaded += 1,
                    Err(_) => progress.failed += 1,
                }
            }
            emit(progress);
            if loads_per_second > 0 {
                let loads = u32::try_from(progress.loaded - loaded).unwrap_or(u32::MAX);
                let least = Duration::from_secs(1).saturating_mul(loads) / loads_per_second;
                tokio::time::sleep_until(ttl::deadline(begun, least)).await;
            }
        }
    }
}

/// This process's turn, until dropped.
struct Turn<'a> {
    engine: &'a Arc<Engine>,
    id: &'a HashedKey,
    lease: Lease<'a>,
    ours: bool,
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        if self.ours && Handle::try_current().is_ok() {
            self.engine.release_later(&self.lease, self.id);
        }
    }
}
