//! The lease: one process of the fleet regenerates a key, and the others wait for it.
//!
//! The token is random and belongs to one load. A value enters L2 only by a fill that is compared
//! with the lease that was there before the load began. Anything that invalidates or replaces the
//! key destroys that lease, so a fill with an older value loses. No clock takes part in that.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tokio::time::Instant;

use super::core::Engine;
use super::flight::{Failure, Flight, FoundEntry};
use super::remote::{RemoteKey, RemoteTier};
use crate::error::RemoteError;
use crate::key::HashedKey;
use crate::protocol::message::Operation;
use crate::protocol::record::{self, Baseline, HEAD_AND_STATE, Head, Header, Kind, Token};
use crate::protocol::request::{Keys, Replacing};
use crate::random;
use crate::ttl;

/// A lease that is to be acquired, or is held.
pub(crate) struct Lease<'a> {
    pub(crate) remote: &'a RemoteTier,
    pub(crate) remote_key: &'a RemoteKey,
    keys: Keys,
    /// The entry that it refreshes. Such a lease is a claim, in a key beside the record. Without an
    /// entry the lease takes the place of the record.
    pub(crate) observed: Option<ObservedRecord>,
    pub(crate) token: Token,
    /// The watermark that was known before the load began.
    pub(crate) baseline: Baseline,
    /// Loads that failed in a row before this one.
    pub(crate) failures: u32,
}

/// An entry as it was found in L2.
pub(crate) struct ObservedRecord {
    pub(crate) found: FoundEntry,
    pub(crate) header: Header,
    pub(crate) record: Bytes,
}

impl ObservedRecord {
    /// Its first bytes. They differ from those of any record that takes its place, and from its own
    /// once it is expired by hand.
    pub(crate) fn stated(&self) -> &[u8] {
        &self.record[..HEAD_AND_STATE.min(self.record.len())]
    }
}

impl<'a> Lease<'a> {
    pub(crate) fn new(
        remote: &'a RemoteTier,
        remote_key: &'a RemoteKey,
        baseline: Baseline,
        observed: Option<ObservedRecord>,
        failures: u32,
    ) -> Self {
        Self {
            remote,
            remote_key,
            keys: Keys::of(&remote_key.bytes),
            observed,
            token: random::bytes(),
            baseline,
            failures,
        }
    }

    pub(crate) fn keys(&self) -> &Keys {
        &self.keys
    }

    /// What it is acquired over. `useless`: the first bytes of a record that is to be replaced.
    pub(crate) fn over<'b>(&'b self, useless: Option<&'b [u8]>) -> Replacing<'b> {
        match (&self.observed, useless) {
            (Some(observed), _) => Replacing::Entry(observed.stated()),
            (None, Some(useless)) => Replacing::Useless(useless),
            (None, None) => Replacing::Nothing,
        }
    }

    pub(crate) fn is_claim(&self) -> bool {
        self.observed.is_some()
    }

    /// The key that holds it.
    pub(crate) fn key(&self) -> &Bytes {
        if self.is_claim() {
            &self.keys.claim
        } else {
            &self.keys.record
        }
    }

    pub(crate) fn record(&self) -> Result<Vec<u8>, RemoteError> {
        let now_ms = self.remote.now_ms()?;
        let mut header = self.header(Kind::Lease, now_ms);
        header.load_cost_ms = self.failures;
        Ok(header.to_record())
    }

    /// The header of a record without a value.
    fn header(&self, kind: Kind, now_ms: u64) -> Header {
        let hash = if self.is_claim() {
            record::key_hash(&self.keys.claim)
        } else {
            self.remote_key.hash
        };
        let mut header = Header::plain(kind, self.token, hash, now_ms);
        header.baseline = self.baseline;
        header
    }

    pub(crate) fn head(&self) -> Head {
        record::head(Kind::Lease, &self.token)
    }
}

impl Engine {
    /// Renews the lease while its load runs. A renewal that is lost, or gets no answer, changes
    /// nothing: the fill finds out.
    pub(crate) async fn renew(&self, lease: &Lease<'_>) -> Infallible {
        let (every, ttl_ms) = (
            self.config.lease_ttl / 3,
            ttl::millis(self.config.lease_ttl),
        );
        loop {
            tokio::time::sleep(every).await;
            let refreshed = lease.is_claim().then_some(&lease.keys.record);
            let renewed = lease
                .remote
                .tier
                .renew(lease.key(), refreshed, lease.head(), ttl_ms)
                .await;
            if let Ok(false) = self.tier(renewed) {
                std::future::pending().await
            }
        }
    }

    pub(crate) async fn release(&self, lease: &Lease<'_>, id: &HashedKey) {
        let wake = lease.remote.notice(Operation::Wake, id);
        let _ = self.tier(
            lease
                .remote
                .tier
                .release(lease.key(), lease.head(), wake)
                .await,
        );
    }

    /// After a failed load: puts a mark in the place of the lease, so that the processes that wait do
    /// not take turns at a dead database. The mark lives twice as long as the error is held: the next
    /// attempt sees that it is not the first.
    pub(crate) async fn leave_failed_mark(
        &self,
        lease: &Lease<'_>,
        id: &HashedKey,
        failure: &Failure,
    ) {
        let Ok(now_ms) = lease.remote.now_ms() else {
            return;
        };
        if failure.hold.is_zero() {
            return self.release(lease, id).await;
        }
        let mut mark = lease.header(Kind::Failed, now_ms);
        mark.fresh_ms = ttl::millis(failure.hold);
        mark.load_cost_ms = failure.failures;
        let wake = lease.remote.notice(Operation::Wake, id);
        let ms = mark.fresh_ms.saturating_mul(2);
        let tier = &lease.remote.tier;
        let _ = self.tier(
            tier.replace(lease.key(), lease.head(), mark.to_record(), ms, wake)
                .await,
        );
    }

    /// Releases, in the background, a lease that may have been granted though no answer came.
    pub(crate) fn release_later(self: &Arc<Self>, lease: &Lease<'_>, id: &HashedKey) {
        let (engine, id) = (Arc::clone(self), id.clone());
        let (key, head) = (lease.key().clone(), lease.head());
        let running = self.tasks.enter_late();
        tokio::spawn(async move {
            if let Some(remote) = &engine.remote {
                let wake = remote.notice(Operation::Wake, &id);
                let _ = engine.tier(remote.tier.release(&key, head, wake).await);
            }
            drop(running);
        });
    }
}

/// The waits of one flight for another process's lease.
#[derive(Debug, Default)]
pub(crate) struct LeaseWaits {
    until: Option<Instant>,
    counted: bool,
    woken: bool,
}

/// Spreads the processes that wait for a holder that has died.
const JITTER: Duration = Duration::from_millis(25);

impl LeaseWaits {
    /// Whether this is the first wait of the flight.
    pub(crate) fn count(&mut self) -> bool {
        !std::mem::replace(&mut self.counted, true)
    }

    pub(crate) fn has_waited(&self) -> bool {
        self.counted
    }

    /// Whether the last wait ended with a wake-up, not with the lease.
    pub(crate) fn woken(&self) -> bool {
        self.woken
    }

    /// Waits for the wake-up, or for the end of the lease: a message may get lost. `false`:
    /// `lease_wait` is over.
    pub(crate) async fn wait(
        &mut self,
        flight: &Flight,
        remaining: Duration,
        lease_wait: Duration,
    ) -> bool {
        let now = Instant::now();
        let until = *self
            .until
            .get_or_insert_with(|| ttl::deadline(now, lease_wait));
        if now >= until {
            return false;
        }
        let jitter = random::duration(Duration::from_millis(1), JITTER);
        let lease_ends = ttl::deadline(now, remaining + jitter);
        self.woken = tokio::time::timeout_at(lease_ends.min(until), flight.wake.notified())
            .await
            .is_ok();
        self.woken || Instant::now() < until
    }
}
