//! Regeneration: a key is loaded, under a lease with a fill, or without one.

use std::time::Duration;

use tokio::time::Instant;

use super::completion::{Completion, Retention};
use super::flight::{Failure, FoundEntry, Purpose};
use super::flight_task::FlightTask;
use super::lease::{Lease, ObservedRecord};
use super::load::LoadPermit;
use super::memory::L1Entry;
use super::transcode::{EndedLoad, RecordFields};
use crate::entry::{ForwardReason, Freshness, Read};
use crate::erased::{AnyError, AnyValue};
use crate::error::{Error, RemoteError};
use crate::loader::Loaded;
use crate::protocol::message::Operation;
use crate::protocol::record::{self, Header};
use crate::protocol::request::RefreshWrite;
use crate::random;
use crate::ttl;

/// Why a load runs without a lease, and so without a fill.
#[derive(Clone, Copy)]
pub(super) enum UnleasedReason {
    /// There is no shared tier.
    NoTier,
    /// L2 holds the record of a newer version of the value's type.
    Newer,
    /// L2 did not answer, or must not be asked.
    Unreachable,
    /// The key was invalidated a moment ago.
    HeldOff,
    /// The holder of the lease took longer than `lease_wait`.
    WaitedEnough,
}

/// What L2 is filled with.
enum Fill {
    With(RefreshWrite),
    /// The value is kept in neither tier.
    Not,
    /// The value is kept in L1 alone.
    L1Only,
}

impl FlightTask {
    /// Loads under a lease, fills L2 and releases the lease, in this order and before any caller is
    /// answered: a process that ends right after its answer leaves nothing behind.
    pub(super) async fn regenerate(
        &self,
        permit: LoadPermit,
        deadline: Instant,
        lease: &Lease<'_>,
    ) -> Completion {
        let (engine, id) = (&self.engine, &self.flight.key.id);
        let observed = lease.observed.as_ref();
        let previous = observed.map(|observed| &observed.found);
        let previous = previous.filter(|found| engine.is_of_use(found));
        let renew = engine.renew(lease);
        match self.load(permit, deadline, previous, renew).await {
            Ok((loaded, cost)) => self.fill(lease, previous, loaded, cost).await,
            Err(Error::Closed) => {
                engine.release(lease, id).await;
                Completion::closed()
            }
            Err(error) => {
                let completion = self.failed(error, lease.failures);
                if let Retention::Failure(failure) = &completion.retention {
                    engine.leave_failed_mark(lease, id, failure).await;
                }
                completion
            }
        }
    }

    /// Fills L2 with what was loaded, if it may be kept there.
    async fn fill(
        &self,
        lease: &Lease<'_>,
        previous: Option<&FoundEntry>,
        mut loaded: Loaded<AnyValue>,
        cost: Duration,
    ) -> Completion {
        let (engine, flight) = (&self.engine, &self.flight);
        let unchanged = lease.observed.as_ref().filter(|_| loaded.unchanged);
        if let Some(observed) = unchanged {
            // The version is kept, unless the loader knows a later one.
            loaded.version = loaded.version.max(observed.header.version);
        }
        let (version, tags) = (loaded.version, loaded.tags.clone());
        let (found, kept) = engine.entry_from_load(
            EndedLoad {
                loaded,
                cost,
                baseline: lease.baseline,
                why: self.forward_reason(previous),
                version_id: record::version_id(&lease.token),
            },
            previous,
        );
        let fresh_until = found.lifetime.fresh_until;
        let fields = RecordFields {
            token: lease.token,
            baseline: lease.baseline,
            fresh_for: fresh_until.saturating_duration_since(found.answer.at),
            cost,
            version,
            tags: &tags,
        };
        // Revoked: L2 could not be told of an invalidation, and would take the fill.
        let fill = if kept && !flight.is_revoked() {
            self.fill_of(lease, &found, fields, unchanged)
        } else {
            Fill::Not
        };
        match fill {
            Fill::With(refill) => {
                let written = self
                    .write_fill(lease, &found, fields.fresh_for, refill)
                    .await;
                self.filled(found, written)
            }
            Fill::Not => {
                self.drop_lease(lease).await;
                Completion::entry(found, None)
            }
            Fill::L1Only => {
                self.drop_lease(lease).await;
                Completion::entry(found, Some(engine.config.l1_lifetime()))
            }
        }
    }

    /// Why the load was begun, as `Cache-Status` says it.
    fn forward_reason(&self, previous: Option<&FoundEntry>) -> ForwardReason {
        ForwardReason::because(self.flight.purpose == Purpose::Load, previous.is_some())
    }

    /// What to fill L2 with. `unchanged`: the entry that the loader has confirmed.
    fn fill_of(
        &self,
        lease: &Lease<'_>,
        found: &FoundEntry,
        fields: RecordFields<'_>,
        unchanged: Option<&ObservedRecord>,
    ) -> Fill {
        let (engine, remote) = (&self.engine, lease.remote);
        let Ok(now_ms) = remote.now_ms() else {
            return Fill::Not;
        };
        let value = found.answer.value.as_ref();
        let encode = |fields| {
            let encoded = engine.encode_record(remote, lease.remote_key, value, now_ms, fields);
            encoded.map_or(Fill::Not, |record| Fill::With(RefreshWrite::Record(record)))
        };
        if let Some(observed) = unchanged {
            if value.is_some() && remote.binds_headers() {
                // The payload is good under the old header alone.
                let tags: Vec<u64> = record::tags(&observed.record, &observed.header).collect();
                return encode(RecordFields {
                    tags: &tags,
                    ..fields
                });
            }
            let header = Header {
                expired: false,
                ..fields.header(observed.header, now_ms)
            };
            return Fill::With(RefreshWrite::Header(header.renewed_for(&observed.record)));
        }
        if value.is_none() && !engine.negatives.take(found.answer.at) {
            engine.stats.negatives_not_stored.add();
            return Fill::L1Only;
        }
        encode(fields)
    }

    /// Writes a fill, compared with the lease, or with the entry that it refreshes.
    async fn write_fill(
        &self,
        lease: &Lease<'_>,
        found: &FoundEntry,
        fresh_for: Duration,
        refill: RefreshWrite,
    ) -> Result<bool, RemoteError> {
        let has_stale_windows = found.lifetime.has_stale_windows;
        let hard_ttl = self.engine.config.hard_ttl(fresh_for, has_stale_windows);
        let ms = ttl::millis(hard_ttl);
        let (tier, head) = (&lease.remote.tier, lease.head());
        let wake = lease.remote.notice(Operation::Wake, &self.flight.key.id);
        match (&lease.observed, refill) {
            (Some(observed), refill) => {
                let seen = observed.stated();
                tier.refill(lease.keys(), seen, head, refill, ms, wake)
                    .await
            }
            (None, RefreshWrite::Record(record)) => {
                let key = &lease.keys().record;
                tier.replace(key, head, record, ms, wake).await
            }
            // Only an entry can be confirmed or dropped.
            (None, RefreshWrite::Header(_) | RefreshWrite::Nothing) => {
                tier.release(lease.key(), head, wake).await
            }
        }
    }

    /// What was loaded is not kept in L2: the lease goes, and with it an entry that it refreshes. A
    /// revoked flight leaves the entry alone, for its invalidation is repeated.
    async fn drop_lease(&self, lease: &Lease<'_>) {
        let (engine, id) = (&self.engine, &self.flight.key.id);
        match &lease.observed {
            Some(observed) if !self.flight.is_revoked() => {
                let (seen, head) = (observed.stated(), lease.head());
                let wake = lease.remote.notice(Operation::Wake, id);
                let (keys, tier) = (lease.keys(), &lease.remote.tier);
                let dropped = tier.refill(keys, seen, head, RefreshWrite::Nothing, 1, wake);
                let _ = engine.tier(dropped.await);
            }
            _ => engine.release(lease, id).await,
        }
    }

    /// The completion after a fill.
    fn filled(&self, mut found: FoundEntry, written: Result<bool, RemoteError>) -> Completion {
        let engine = &self.engine;
        let l1_lifetime = match engine.tier(written) {
            Ok(true) => {
                engine.stats.fills.add();
                found.answer.provenance.store();
                Some(engine.config.l1_lifetime())
            }
            Ok(false) => {
                engine.stats.fills_refused.add();
                None
            }
            // The server said no and stored nothing. This process still hears of invalidations.
            Err(error) if error.is_refused() => Some(engine.unshared_l1_lifetime()),
            // It is not known whether it was stored, or before or after which change.
            Err(_) => None,
        };
        Completion::entry(found, l1_lifetime)
    }

    /// L2 cannot be asked, or must not be.
    pub(super) async fn unreachable(&self, permit: Option<LoadPermit>) -> Completion {
        let (engine, flight) = (&self.engine, &self.flight);
        // Now that it is known, L1 may answer for a while what it could not when the call came.
        let local = engine.l1_entry(&flight.key, Instant::now());
        let is_fresh = |local: &L1Entry| local.suits(Read::fresh());
        let has_l1 = !flight.past_l1 && local.as_ref().is_some_and(is_fresh);
        if let Some(local) = local.filter(|_| flight.interim().is_none()) {
            flight.set_interim(local.found());
        }
        let now = Instant::now();
        let fresh = |found: FoundEntry| found.lifetime.freshness(now) == Freshness::Fresh;
        let is_done = match flight.purpose {
            Purpose::Load => false,
            // There is time. Without L2 every process would load for itself.
            Purpose::Replace(_) => flight.interim().is_some_and(fresh),
            // The callers find it there. Otherwise every process would load every key that is asked
            // for at the moment when L2 is lost.
            Purpose::Any | Purpose::Fresh => has_l1,
        };
        if is_done {
            return Completion::l1_usable_again();
        }
        if let Some(error) = &flight.held_error {
            engine.stats.errors_held.add();
            return Completion::error(error.clone());
        }
        self.load_unleased(permit, UnleasedReason::Unreachable)
            .await
    }

    /// A load that no other process knows of: its value enters no L2.
    pub(super) async fn load_unleased(
        &self,
        permit: Option<LoadPermit>,
        reason: UnleasedReason,
    ) -> Completion {
        let engine = &self.engine;
        let deadline = engine.load_deadline();
        let permit = match permit {
            Some(permit) => Ok(permit),
            None => self.load_permit(deadline).await,
        };
        let baseline = engine.watermarks.baseline();
        let previous = self.flight.interim();
        let previous = previous.filter(|found| engine.is_of_use(found));
        let loaded = match permit {
            Ok(permit) => {
                let meanwhile = std::future::pending();
                self.load(permit, deadline, previous.as_ref(), meanwhile)
                    .await
            }
            Err(error) => Err(error),
        };
        let (loaded, cost) = match loaded {
            Ok(loaded) => loaded,
            Err(error) => return self.failed(error, self.flight.failures),
        };
        let ended = EndedLoad {
            loaded,
            cost,
            baseline,
            why: self.forward_reason(previous.as_ref()),
            version_id: random::number(),
        };
        let (found, kept) = engine.entry_from_load(ended, previous.as_ref());
        let l1_lifetime = match reason {
            UnleasedReason::NoTier | UnleasedReason::Newer => engine.config.l1_lifetime(),
            UnleasedReason::Unreachable | UnleasedReason::WaitedEnough => {
                engine.unshared_l1_lifetime()
            }
            UnleasedReason::HeldOff => Duration::ZERO,
        };
        Completion::entry(found, kept.then_some(l1_lifetime))
    }

    /// The completion after a failed load.
    fn failed(&self, error: Error<AnyError>, failures: u32) -> Completion {
        if matches!(error, Error::Overloaded | Error::Closed) {
            return Completion::error(error);
        }
        let failures = self.flight.failures.max(failures).saturating_add(1);
        let hold = ttl::backoff(self.engine.config.error_backoff, failures);
        Completion::failure(Failure {
            error,
            hold,
            failures,
        })
    }

    /// A load failed in another process a moment ago.
    pub(super) fn failed_elsewhere(&self, left: Duration) -> Completion {
        Completion::failure(Failure {
            error: Error::LoadFailedElsewhere,
            hold: left,
            failures: self.flight.failures,
        })
    }
}
