//! Invalidation and expiry: the calls that make entries unusable, and what they do in this process.

use std::sync::Arc;

use tokio::time::Instant;

use crate::coherence::repairs::Repair;
use crate::engine::Engine;
use crate::engine::flight::Flight;
use crate::erased::AnyKey;
use crate::error::RemoteError;
use crate::key::HashedKey;

impl Engine {
    pub(crate) async fn invalidate(self: &Arc<Self>, key: AnyKey) -> Result<(), RemoteError> {
        self.run_to_end("invalidate", move |engine| async move {
            engine.invalidate_one(&key).await
        })
        .await
    }

    /// `invalidate`, and a wait until no process can answer the old value.
    pub(crate) async fn invalidate_everywhere(
        self: &Arc<Self>,
        key: AnyKey,
    ) -> Result<(), RemoteError> {
        self.invalidate(key).await?;
        if self.remote.is_some() {
            // A process that is cut off answers from L1 until its channel lease has ended, and then
            // for `degraded_l1_ttl`. Clocks of hosts run at rates that differ by far less than
            // this.
            let longest = self.config.channel_lease + self.config.degraded_l1_ttl;
            tokio::time::sleep(longest.mul_f64(1.001)).await;
        }
        Ok(())
    }

    pub(crate) async fn invalidate_many(
        self: &Arc<Self>,
        keys: Vec<AnyKey>,
    ) -> Result<(), RemoteError> {
        self.pipelined("invalidate_many", keys, |engine, key| async move {
            engine.invalidate_one(&key).await
        })
        .await
    }

    pub(crate) async fn invalidate_all(self: &Arc<Self>) -> Result<(), RemoteError> {
        self.run_to_end("invalidate_all", move |engine| async move {
            engine.advance(None).await
        })
        .await
    }

    pub(crate) async fn invalidate_tag(self: &Arc<Self>, tag: u64) -> Result<(), RemoteError> {
        self.run_to_end("invalidate_tag", move |engine| async move {
            engine.advance(Some(tag)).await
        })
        .await
    }

    pub(crate) async fn expire(self: &Arc<Self>, key: AnyKey) -> Result<(), RemoteError> {
        self.run_to_end("expire", move |engine| async move {
            engine.expire_one(&key).await
        })
        .await
    }

    pub(super) async fn invalidate_one(self: &Arc<Self>, key: &AnyKey) -> Result<(), RemoteError> {
        self.stats.invalidations.add();
        let last = self.repairs.last_ticket();
        let result = self.announce_invalidation(&key.id).await;
        // After the reply, whether it is a success or not.
        self.settle_key(key, last, result, Repair::Invalidate)
    }

    pub(super) async fn expire_one(self: &Arc<Self>, key: &AnyKey) -> Result<(), RemoteError> {
        self.stats.expirations.add();
        let last = self.repairs.last_ticket();
        let result = self.announce_expiry(&key.id).await;
        self.settle_key(key, last, result, Repair::Expire)
    }

    /// Invalidates everything with a tag, or everything.
    async fn advance(self: &Arc<Self>, tag: Option<u64>) -> Result<(), RemoteError> {
        self.stats.invalidations.add();
        let result = self.announce_advance(tag).await;
        if result.is_err() {
            match tag {
                Some(tag) => self.enqueue_repair(Repair::Tag(tag), Some(self.watermarks.tag(tag))),
                None => self.enqueue_repair(Repair::All, None),
            }
        }
        if tag.is_none() {
            // Another task may have learnt of it first, for instance from a heartbeat, and may not
            // have dropped everything yet.
            self.drop_everything();
        }
        result
    }

    /// Carries out a change of a key in this process: no older value is answered or joined from now
    /// on. A change that L2 has not confirmed becomes a repair.
    pub(super) fn settle_key(
        self: &Arc<Self>,
        key: &AnyKey,
        last: u64,
        result: Result<(), RemoteError>,
        repair: impl FnOnce(HashedKey) -> Repair,
    ) -> Result<(), RemoteError> {
        let id = &key.id;
        let repair = repair(id.clone());
        let expires = matches!(repair, Repair::Expire(_));
        if matches!(repair, Repair::Invalidate(_)) {
            self.fence.hold_off(id.hash, Instant::now());
        }
        if result.is_err() {
            // Before the eviction, so that no reader takes the old value from L2 in between.
            self.enqueue_repair(repair, None);
        } else {
            self.repairs.settle(&id.encoded, last, expires);
        }
        let keeps = expires && !self.config.windows.if_error.is_zero();
        let detached = self.evict(key, keeps);
        if let (Err(_), Some(flight)) = (&result, detached) {
            flight.revoke();
        }
        result
    }

    /// Ends what is older: the flight of the key is detached, and its entry leaves L1. `keeps`: the
    /// entry stays as expired, for the case that a load fails. Answers the detached flight.
    pub(super) fn evict(&self, key: &AnyKey, keeps: bool) -> Option<Arc<Flight>> {
        let mut shard = self.flights.lock(key.id.hash);
        let detached = shard.detach(key.id.hash, &key.id.encoded);
        if keeps {
            self.l1.amend(key, |meta| {
                meta.lifetime.expired = true;
                meta.no_refresh_before = meta.stored;
            });
        } else {
            self.l1.remove(key);
        }
        detached
    }
}
