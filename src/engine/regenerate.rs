//! The lease: how one process of the fleet regenerates a key, and how the others wait for it.
//!
//! The token is random and belongs to one load. A value enters L2 only by a fill that is compared
//! with the lease which was there before the load began; whatever invalidates or replaces the key
//! destroys that lease, so a fill with an older value loses. No clock takes part in that.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tokio::time::Instant;

use super::Engine;
use super::fetch::{Completion, Retention};
use super::flight::{Failure, Flight, Found, Purpose};
use super::load::{LoadPermit, Nesting};
use super::remote::{RemoteKey, RemoteTier};
use crate::codec::RecordContext;
use crate::entry::ForwardReason;
use crate::erased::AnyValue;
use crate::error::{Error, RemoteError};
use crate::key::HashedKey;
use crate::l2::{Keys, RefreshWrite, Replacing};
use crate::protocol::message::Operation;
use crate::protocol::record::{self, Baseline, HEAD_AND_STATE, Head, Header, Kind, Token};
use crate::random;
use crate::ttl;

/// A lease that may be, or has been, acquired.
pub(crate) struct Lease<'a> {
    remote: &'a RemoteTier,
    remote_key: &'a RemoteKey,
    keys: Keys,
    /// The entry that it is the claim to refresh; without one it takes the place of the record.
    observed: Option<ObservedRecord>,
    token: Token,
    /// What was known to be invalidated as a whole before the load began.
    baseline: Baseline,
    /// Loads that failed in a row before this one.
    pub(crate) failures: u32,
}

/// An entry as it was found in L2.
pub(crate) struct ObservedRecord {
    pub(crate) found: Found,
    pub(crate) header: Header,
    pub(crate) record: Bytes,
}

impl ObservedRecord {
    /// What tells it from whatever takes its place, and from itself once it is expired by hand.
    fn stated(&self) -> &[u8] {
        &self.record[..HEAD_AND_STATE.min(self.record.len())]
    }
}

/// What goes into an entry's header.
#[derive(Clone, Copy, Debug)]
pub(crate) struct RecordFields<'a> {
    pub(crate) token: Token,
    pub(crate) baseline: Baseline,
    pub(crate) fresh_for: Duration,
    pub(crate) cost: Duration,
    pub(crate) version: u64,
    pub(crate) tags: &'a [u64],
}

impl RecordFields<'_> {
    /// Puts everything into a header but what concerns the payload.
    fn header(&self, header: Header, created_ms: u64) -> Header {
        // A load that took less than a millisecond costs one: zero would be no cost at all.
        let cost_ms = ttl::millis(self.cost + Duration::from_micros(999));
        Header {
            token: self.token,
            created_ms,
            fresh_ms: ttl::millis(self.fresh_for),
            load_cost_ms: u32::try_from(cost_ms).unwrap_or(u32::MAX),
            baseline: self.baseline,
            version: self.version,
            ..header
        }
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

    /// What it is acquired over; `useless`: what a record begins with that is to be replaced.
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
    fn key(&self) -> &Bytes {
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

    fn head(&self) -> Head {
        record::head(Kind::Lease, &self.token)
    }
}

impl Engine {
    /// Loads under a lease, fills L2 and gives the lease up, in this order and before anyone is
    /// answered: a process that ends right after its answer leaves nothing behind.
    pub(crate) async fn regenerate(
        self: &Arc<Self>,
        remote: &RemoteTier,
        flight: &Arc<Flight>,
        nesting: &Nesting,
        permit: LoadPermit,
        deadline: Instant,
        lease: &Lease<'_>,
    ) -> Completion {
        let observed = lease.observed.as_ref();
        let previous = observed
            .map(|observed| &observed.found)
            .filter(|found| self.is_of_use(found));
        let renew = self.renew(lease);
        let loaded = self
            .load(flight, nesting, permit, deadline, previous, renew)
            .await;
        let (mut loaded, cost) = match loaded {
            Ok(loaded) => loaded,
            Err(Error::Closed) => {
                self.release(lease, &flight.key.id).await;
                return Completion::nothing();
            }
            Err(error) => {
                let completion = self.failed(flight, error, lease.failures);
                if let Retention::Failure(failure) = &completion.keep {
                    self.give_up(lease, &flight.key.id, failure).await;
                }
                return completion;
            }
        };
        let unchanged = observed.filter(|_| loaded.unchanged);
        if let Some(observed) = unchanged {
            // Kept, unless the loader knows a later one.
            loaded.version = loaded.version.max(observed.header.version);
        }
        let (version, tags) = (loaded.version, loaded.tags.clone());
        let version_id = record::version_id(&lease.token);
        let why = ForwardReason::because(flight.purpose == Purpose::Load, previous.is_some());
        let (mut found, kept) =
            self.found(loaded, lease.baseline, previous, (cost, why), version_id);
        let fresh_for = found
            .lifetime
            .fresh_until
            .saturating_duration_since(found.answer.at);
        let fields = RecordFields {
            token: lease.token,
            baseline: lease.baseline,
            fresh_for,
            cost,
            version,
            tags: &tags,
        };
        // Revoked: L2 could not be told of an invalidation, and would take the fill.
        let fill = if kept && !flight.is_revoked() {
            self.fill_of(remote, lease, &found, fields, unchanged)
        } else {
            Fill::Not
        };
        let hard_ttl = self
            .config
            .hard_ttl(fresh_for, found.lifetime.has_stale_windows);
        let ms = ttl::millis(hard_ttl);
        let wake = remote.notice(Operation::Wake, &flight.key.id);
        let (fill, l1_only) = match fill {
            Fill::With(fill) => (fill, false),
            Fill::Not => (RefreshWrite::Nothing, false),
            Fill::L1Only => (RefreshWrite::Nothing, true),
        };
        let stores = !matches!(fill, RefreshWrite::Nothing);
        let filled = match (observed, fill) {
            (Some(_), RefreshWrite::Nothing) if flight.is_revoked() => {
                self.release(lease, &flight.key.id).await;
                return Completion::entry(found, None);
            }
            (Some(observed), fill) => {
                let keys = &lease.keys;
                remote
                    .tier
                    .refill(keys, observed.stated(), lease.head(), fill, ms, wake)
                    .await
            }
            (None, RefreshWrite::Record(record)) => {
                let key = &lease.keys.record;
                remote
                    .tier
                    .replace(key, lease.head(), record, ms, wake)
                    .await
            }
            (None, _) => {
                self.release(lease, &flight.key.id).await;
                Ok(false)
            }
        };
        if !stores {
            let _ = self.tier(filled);
            return Completion::entry(found, l1_only.then(|| self.config.l1_lifetime()));
        }
        let l1_lifetime = match self.tier(filled) {
            Ok(true) => {
                self.stats.fills.add();
                found.answer.provenance.store();
                Some(self.config.l1_lifetime())
            }
            Ok(false) => {
                self.stats.fills_refused.add();
                None
            }
            // The server said no and stored nothing; this process still hears of invalidations.
            Err(error) if error.is_refused() => Some(self.unshared_l1_lifetime()),
            // Nobody knows whether it was stored, or before or after what.
            Err(_) => None,
        };
        Completion::entry(found, l1_lifetime)
    }

    /// What to fill L2 with, if the value goes there. `unchanged`: the entry that it is.
    fn fill_of(
        &self,
        remote: &RemoteTier,
        lease: &Lease<'_>,
        found: &Found,
        fields: RecordFields<'_>,
        unchanged: Option<&ObservedRecord>,
    ) -> Fill {
        let Ok(now_ms) = remote.now_ms() else {
            return Fill::Not;
        };
        let value = found.answer.value.as_ref();
        if let Some(observed) = unchanged {
            if value.is_some() && remote.binds_headers() {
                // The payload is good under the old header alone.
                let tags: Vec<u64> = record::tags(&observed.record, &observed.header).collect();
                let tags = &tags;
                return match self.encode_record(
                    remote,
                    lease.remote_key,
                    value,
                    now_ms,
                    RecordFields { tags, ..fields },
                ) {
                    Ok(record) => Fill::With(RefreshWrite::Record(record)),
                    Err(_) => Fill::Not,
                };
            }
            let header = Header {
                expired: false,
                ..fields.header(observed.header, now_ms)
            };
            return Fill::With(RefreshWrite::Header(header.renewed_for(&observed.record)));
        }
        if value.is_none() && !self.negatives.take(found.answer.at) {
            self.stats.negatives_not_stored.add();
            return Fill::L1Only;
        }
        match self.encode_record(remote, lease.remote_key, value, now_ms, fields) {
            Ok(record) => Fill::With(RefreshWrite::Record(record)),
            Err(_) => Fill::Not,
        }
    }

    /// Encodes a value, or an absence, into a record.
    pub(crate) fn encode_record(
        &self,
        remote: &RemoteTier,
        remote_key: &RemoteKey,
        value: Option<&AnyValue>,
        created_ms: u64,
        fields: RecordFields<'_>,
    ) -> Result<Vec<u8>, RemoteError> {
        let kind = if value.is_some() {
            Kind::Value
        } else {
            Kind::Negative
        };
        let plain = Header::plain(kind, fields.token, remote_key.hash, created_ms);
        let mut header = fields.header(plain, created_ms);
        header.tags = u16::try_from(fields.tags.len()).unwrap_or(u16::MAX);
        let mut record = Header::reserve();
        let tags: Vec<u8> = fields
            .tags
            .iter()
            .flat_map(|tag| tag.to_le_bytes())
            .collect();
        record.extend_from_slice(&tags);
        if let Some(value) = value {
            header.codec = remote.codec_id();
            header.schema = self.config.schema_version;
            let unencodable = |cause| {
                self.stats.encode_failures.add();
                RemoteError::because(crate::error::RemoteKind::Unencodable, "encode", cause)
            };
            let fields = header.fields();
            let context = RecordContext::new(&remote_key.bytes, &fields, &tags);
            let encoded = remote.encode(value, &context, &mut record);
            encoded.map_err(unencodable)?;
            if record.len() > self.config.max_record_bytes {
                let bytes = record.len();
                let cause = format!("a record of {bytes} bytes is larger than max_record_bytes");
                return Err(unencodable(crate::codec::CodecError::new(cause)));
            }
        }
        header.write_to(&mut record);
        Ok(record)
    }

    /// Keeps the lease while its load runs. A renewal that is lost, or gets no answer, changes
    /// nothing: the fill will find out.
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

    async fn release(&self, lease: &Lease<'_>, id: &HashedKey) {
        let wake = lease.remote.notice(Operation::Wake, id);
        let _ = self.tier(
            lease
                .remote
                .tier
                .release(lease.key(), lease.head(), wake)
                .await,
        );
    }

    /// After a failed load: a mark instead of the lease, so that the processes that wait do not
    /// take turns at a dead database. It lives twice as long as it is heeded, for the next attempt to
    /// know that it is not the first.
    async fn give_up(&self, lease: &Lease<'_>, id: &HashedKey, failure: &Failure) {
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

    /// Drops a lease that may have been granted without our knowing, in the background.
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

enum Fill {
    With(RefreshWrite),
    /// Nothing for L2 and nothing for L1.
    Not,
    L1Only,
}

/// A flight's wait for somebody else's lease.
#[derive(Debug, Default)]
pub(crate) struct LeaseWaits {
    until: Option<Instant>,
    counted: bool,
    woken: bool,
}

/// The processes that wait for a holder that died do not all come at the same moment.
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

    /// Waits for the wake-up, or for the lease to end: a message may get lost. `false`: the time
    /// that the user gave is over.
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
