//! Warm-up: loads keys ahead of time, in one process of the fleet at a time.
//!
//! The process whose turn it is holds a lease in a key of its own, `prefix:name::warm`, and renews
//! it. The other processes try again until they get it. The lease only saves work: if two processes
//! warmed up at once, the leases of the keys would still allow only one load of each.

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
use crate::l2::{Acquired, Replacing};
use crate::many::WarmProgress;
use crate::random;
use crate::ttl;

/// Keys that are looked up together, at most.
const MAX_GROUP: u32 = 1_000;

/// The longest wait before a process tries again to get its turn.
const RETRY_EVERY: Duration = Duration::from_millis(250);

/// The encoded key of the lease. No entry has it, because encoded keys hold no `:`.
const WARM_UP_KEY: &[u8] = b":warm";

type KeyIterator<'a> = &'a mut (dyn Iterator<Item = AnyKey> + Send);
type OnProgress<'a> = &'a mut (dyn FnMut(&WarmProgress) + Send);

impl Engine {
    pub(crate) async fn warm(
        self: &Arc<Self>,
        keys: KeyIterator<'_>,
        loads_per_second: u32,
        on_progress: OnProgress<'_>,
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
            self.warm_all(keys, loads_per_second, &mut progress, on_progress)
                .await;
            return progress;
        };
        let id = self.flights.id(WARM_UP_KEY.to_vec());
        let remote_key = remote.key(&id);
        let turn = self
            .wait_for_turn(&id, &remote_key, &mut progress, on_progress)
            .await;
        let warming = self.warm_all(keys, loads_per_second, &mut progress, on_progress);
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

    /// Waits for this process's turn. `None`: L2 cannot say whose turn it is, or the cache is
    /// closed.
    async fn wait_for_turn<'a>(
        self: &'a Arc<Self>,
        id: &'a HashedKey,
        remote_key: &'a RemoteKey,
        progress: &mut WarmProgress,
        on_progress: OnProgress<'_>,
    ) -> Option<Turn<'a>> {
        let remote = self.remote.as_ref()?;
        self.attach(remote).await;
        while !self.is_closed() {
            self.know_watermarks(remote).await.ok()?;
            let lease = Lease::new(remote, remote_key, self.watermarks.baseline(), None, 0);
            let record = lease.record().ok()?;
            let known = self.watermarks.known().unwrap_or_default();
            let ttl_ms = ttl::millis(self.config.lease_ttl);
            // Made before the request, so that the lease is released if this future is dropped
            // while it waits for the answer.
            let mut turn = Turn {
                engine: self,
                id,
                lease,
                is_ours: true,
            };
            let keys = turn.lease.keys();
            let acquired = remote
                .tier
                .acquire(keys, record, ttl_ms, Replacing::Nothing, known);
            let acquired = self.tier(acquired.await);
            match acquired {
                Ok(Acquired::Granted(_)) => {
                    progress.waiting = false;
                    return Some(turn);
                }
                Ok(Acquired::Held(left_ms)) => {
                    turn.is_ours = false;
                    progress.waiting = true;
                    on_progress(progress);
                    let wait = Duration::from_millis(left_ms).min(RETRY_EVERY);
                    tokio::time::sleep(random::duration(wait / 2, wait + RETRY_EVERY / 10)).await;
                }
                Ok(Acquired::Record(_) | Acquired::Failed(_)) => {
                    turn.is_ours = false;
                    break;
                }
                // The lease may have been granted, so it is released.
                Err(_) => break,
            }
        }
        progress.waiting = false;
        None
    }

    async fn warm_all(
        self: &Arc<Self>,
        keys: KeyIterator<'_>,
        loads_per_second: u32,
        progress: &mut WarmProgress,
        on_progress: OnProgress<'_>,
    ) {
        let group_size = match loads_per_second {
            0 => MAX_GROUP,
            loads => (loads / 10).clamp(1, MAX_GROUP),
        };
        let group_size = usize::try_from(group_size).unwrap_or(1);
        while !self.is_closed() {
            let group: Vec<AnyKey> = (&mut *keys).take(group_size).collect();
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
            on_progress(progress);
            if loads_per_second > 0 {
                let loads = u32::try_from(progress.loaded - loaded).unwrap_or(u32::MAX);
                let least = Duration::from_secs(1).saturating_mul(loads) / loads_per_second;
                tokio::time::sleep_until(ttl::deadline(begun, least)).await;
            }
        }
    }
}

/// This process's turn. Dropped, it releases the lease in the background.
struct Turn<'a> {
    engine: &'a Arc<Engine>,
    id: &'a HashedKey,
    lease: Lease<'a>,
    /// The lease was granted, or may have been.
    is_ours: bool,
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        if self.is_ours && Handle::try_current().is_ok() {
            self.engine.release_later(&self.lease, self.id);
        }
    }
}
