//! The lease: how one process of the fleet regenerates a key, and how the others wait for it.
//!
//! The token is random and belongs to one load. A value enters L2 only by a fill that is compared
//! with the lease which was there before the load began; whatever invalidates or replaces the key
//! destroys that lease, so a fill with an older value loses. No clock takes part in that.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use super::Engine;
use super::flight::{Flight, Id};
use super::load::{Nesting, Place};
use super::read::Landing;
use super::shared::{RemoteKey, Shared};
use crate::codec::envelope::{self, Era, Head, Header, Kind, Token};
use crate::error::RemoteError;
use crate::key::CacheKey;
use crate::l1::Answer;
use crate::l2::message::Operation;
use crate::random;
use crate::ttl;

/// A lease that may be, or has been, acquired.
pub(crate) struct Lease<'a, V> {
    shared: &'a Shared<V>,
    remote: &'a RemoteKey,
    token: Token,
    /// What was known to be invalidated as a whole before the load began.
    era: Era,
}

/// What goes into an entry's header.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Seal<'a> {
    pub(crate) token: Token,
    pub(crate) era: Era,
    pub(crate) life: Duration,
    pub(crate) cost: Duration,
    pub(crate) version: u64,
    pub(crate) tags: &'a [u64],
}

impl<'a, V> Lease<'a, V> {
    pub(crate) fn new(shared: &'a Shared<V>, remote: &'a RemoteKey, era: Era) -> Self {
        Self {
            shared,
            remote,
            token: random::bytes(),
            era,
        }
    }

    pub(crate) fn record(&self) -> Result<Vec<u8>, RemoteError> {
        let now_ms = self.shared.now_ms()?;
        Ok(self.mark(Kind::Lease, now_ms))
    }

    /// A record without a value.
    fn mark(&self, kind: Kind, now_ms: u64) -> Vec<u8> {
        let mut header = Header::plain(kind, self.token, self.remote.hash, now_ms);
        header.era = self.era;
        header.to_record()
    }

    fn head(&self) -> Head {
        envelope::head(Kind::Lease, &self.token)
    }
}

impl<K, V, E> Engine<K, V, E>
where
    K: CacheKey,
    V: Send + Sync + 'static,
    E: Send + Sync + 'static,
{
    /// Loads under a lease, fills L2 and gives the lease up, in this order and before anyone is
    /// answered: a process that ends right after its answer leaves nothing behind.
    #[expect(
        clippy::too_many_arguments,
        reason = "the state of one flight, handed on once"
    )]
    pub(crate) async fn regenerate(
        self: &Arc<Self>,
        shared: &Shared<V>,
        key: &K,
        flight: &Arc<Flight<V, E>>,
        nesting: &Nesting,
        place: Place,
        deadline: Instant,
        lease: &Lease<'_, V>,
    ) -> Landing<V, E> {
        let loaded = self
            .load(key, flight, nesting, place, deadline, self.renew(lease))
            .await;
        let (loaded, cost) = match loaded {
            Ok(loaded) => loaded,
            Err(error) => {
                self.give_up(lease, &flight.id).await;
                return Landing::error(error);
            }
        };
        let (version, tags) = (loaded.version, loaded.tags.clone());
        let (answer, life) = self.answer(loaded, lease.era);
        // Revoked: L2 could not be told of an invalidation, and would take the fill.
        let record = match life {
            Some(life) if !flight.is_revoked() => {
                let seal = Seal {
                    token: lease.token,
                    era: lease.era,
                    life,
                    cost,
                    version,
                    tags: &tags,
                };
                self.record(shared, lease, &answer, seal)
            }
            _ => Fill::Not,
        };
        let wake = shared.notice(Operation::Wake, &flight.id);
        let (bytes, life) = match record {
            Fill::With(bytes, life) => (bytes, life),
            Fill::Not => {
                self.release(lease, &flight.id).await;
                return Landing::answer(answer, None);
            }
            Fill::L1Only(life) => {
                self.release(lease, &flight.id).await;
                return Landing::answer(answer, Some(self.config.l1_life(life)));
            }
        };
        let filled = shared.tier.replace(
            &lease.remote.bytes,
            lease.head(),
            bytes,
            ttl::millis(life),
            wake,
        );
        let life = match self.tier(filled.await) {
            Ok(true) => {
                self.stats.fills.add();
                Some(self.config.l1_life(life))
            }
            Ok(false) => {
                self.stats.fills_refused.add();
                None
            }
            // The server said no and stored nothing; this process still hears of invalidations.
            Err(error) if error.is_refused() => Some(self.unshared_life(life)),
            // Nobody knows whether it was stored, or before or after what.
            Err(_) => None,
        };
        Landing::answer(answer, life)
    }

    /// The record to fill L2 with, if the value goes there.
    fn record(
        &self,
        shared: &Shared<V>,
        lease: &Lease<'_, V>,
        answer: &Answer<V>,
        seal: Seal<'_>,
    ) -> Fill {
        let life = seal.life;
        let Ok(now_ms) = shared.now_ms() else {
            return Fill::Not;
        };
        if answer.value.is_none() && !self.negatives.take(answer.at) {
            self.stats.negatives_not_stored.add();
            return Fill::L1Only(life);
        }
        match self.seal(shared, lease.remote, answer.value.as_deref(), now_ms, seal) {
            Ok(record) => Fill::With(record, life),
            Err(_) => Fill::Not,
        }
    }

    /// Encodes a value, or an absence, into a record.
    pub(crate) fn seal(
        &self,
        shared: &Shared<V>,
        remote: &RemoteKey,
        value: Option<&V>,
        created_ms: u64,
        seal: Seal<'_>,
    ) -> Result<Vec<u8>, RemoteError> {
        let kind = if value.is_some() {
            Kind::Value
        } else {
            Kind::Negative
        };
        let mut header = Header::plain(kind, seal.token, remote.hash, created_ms);
        header.fresh_ms = ttl::millis(seal.life);
        header.load_cost_ms = u32::try_from(seal.cost.as_millis()).unwrap_or(u32::MAX);
        (header.era, header.version) = (seal.era, seal.version);
        header.tags = u16::try_from(seal.tags.len()).unwrap_or(u16::MAX);
        let mut record = Header::reserve();
        record.extend(seal.tags.iter().flat_map(|tag| tag.to_le_bytes()));
        if let Some(value) = value {
            header.codec = shared.codec_id();
            header.schema = self.config.schema_version;
            let unencodable = |cause| {
                self.stats.encode_failures.add();
                RemoteError::because(crate::error::RemoteKind::Unencodable, "encode", cause)
            };
            shared.encode(value, &mut record).map_err(unencodable)?;
            if record.len() > self.config.max_record_bytes {
                let bytes = record.len();
                let cause = format!("a record of {bytes} bytes is larger than max_record_bytes");
                return Err(unencodable(crate::codec::CodecError::new(cause)));
            }
        }
        header.seal(&mut record);
        Ok(record)
    }

    /// Keeps the lease while its load runs. A renewal that is lost, or gets no answer, changes
    /// nothing: the fill will find out.
    async fn renew(&self, lease: &Lease<'_, V>) -> Infallible {
        let (every, ttl_ms) = (
            self.config.lease_ttl / 3,
            ttl::millis(self.config.lease_ttl),
        );
        loop {
            tokio::time::sleep(every).await;
            let renewed = lease
                .shared
                .tier
                .renew(&lease.remote.bytes, lease.head(), ttl_ms)
                .await;
            if let Ok(false) = self.tier(renewed) {
                std::future::pending().await
            }
        }
    }

    async fn release(&self, lease: &Lease<'_, V>, id: &Id) {
        let wake = lease.shared.notice(Operation::Wake, id);
        let _ = self.tier(
            lease
                .shared
                .tier
                .release(&lease.remote.bytes, lease.head(), wake)
                .await,
        );
    }

    /// After a failed load: a mark instead of the lease, so that the processes that wait do not
    /// take turns at a dead database.
    async fn give_up(&self, lease: &Lease<'_, V>, id: &Id) {
        let backoff = self.config.error_backoff;
        let Ok(now_ms) = lease.shared.now_ms() else {
            return;
        };
        if backoff.is_zero() {
            return self.release(lease, id).await;
        }
        let mark = lease.mark(Kind::Failed, now_ms);
        let wake = lease.shared.notice(Operation::Wake, id);
        let tier = &lease.shared.tier;
        let _ = self.tier(
            tier.replace(
                &lease.remote.bytes,
                lease.head(),
                mark,
                ttl::millis(backoff),
                wake,
            )
            .await,
        );
    }

    /// Drops a lease that may have been granted without our knowing, in the background.
    pub(crate) fn release_later(
        self: &Arc<Self>,
        remote: &RemoteKey,
        id: &Id,
        lease: Lease<'_, V>,
    ) {
        let (engine, remote, id) = (Arc::clone(self), remote.clone(), id.clone());
        let (token, era) = (lease.token, lease.era);
        let running = self.tasks.enter_late();
        tokio::spawn(async move {
            if let Some(shared) = &engine.shared {
                engine
                    .release(
                        &Lease {
                            shared,
                            remote: &remote,
                            token,
                            era,
                        },
                        &id,
                    )
                    .await;
            }
            drop(running);
        });
    }
}

enum Fill {
    With(Vec<u8>, Duration),
    /// Nothing for L2 and nothing for L1.
    Not,
    L1Only(Duration),
}

/// A flight's wait for somebody else's lease.
#[derive(Debug, Default)]
pub(crate) struct Waited {
    until: Option<Instant>,
    counted: bool,
    woken: bool,
}

/// The processes that wait for a holder that died do not all come at the same moment.
const JITTER: Duration = Duration::from_millis(25);

impl Waited {
    /// Whether this is the first wait of the flight.
    pub(crate) fn count(&mut self) -> bool {
        !std::mem::replace(&mut self.counted, true)
    }

    /// Whether the last wait ended with a wake-up, not with the lease.
    pub(crate) fn woken(&self) -> bool {
        self.woken
    }

    /// Waits for the wake-up, or for the lease to end: a message may get lost. `false`: the time
    /// that the user gave is over.
    pub(crate) async fn wait<V, E>(
        &mut self,
        flight: &Flight<V, E>,
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
