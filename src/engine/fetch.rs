//! The read path behind L1, from top to bottom: one flight's task.
//!
//! ```text
//! GET ── a fresh value or absence ──────────────────────────────► hit
//!  │     a failed load elsewhere ───────────────────────────────► LoadFailedElsewhere, or stale
//!  │     a newer version's record ─► load, L1 only
//!  │     (no answer from L2) ──────► load, L1 for degraded_l1_ttl
//!  │     an entry past its TTL, or soon ─► put up for the callers who may have it; it stays in L2
//!  ▼
//! acquire ── granted ──► load ──► fill, compared with the lease, or with that entry ─► loaded
//!  │    ▲
//!  │    └── a record after all ─► read it
//!  ▼
//! held by another ──► wait for its wake-up or the lease's end ──► GET, or acquire
//!                     lease_wait over ─► load, L1 for degraded_l1_ttl; nothing, if nobody waits
//! ```

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::OwnedSemaphorePermit;
use tokio::time::Instant;

use super::flight::{Failure, Flight, Found, Outcome, Purpose};
use super::load::{LoadPermit, Nesting};
use super::refresh::{self, Replaces};
use super::regenerate::{Lease, LeaseWaits, ObservedRecord};
use super::remote::{RemoteKey, RemoteTier};
use super::tasks::Running;
use super::{Engine, L1Entry};
use crate::answer::Answer;
use crate::codec::RecordContext;
use crate::coherence::watermarks::{Learned, Liveness};
use crate::entry::{ForwardReason, Freshness, Provenance, Read, Source};
use crate::erased::{AnyError, AnyValue};
use crate::error::{Error, RemoteError};
use crate::l2::{Acquired, Advance, RecordRead as FirstRead, WatermarkRequest};
use crate::lifetime::Lifetime;
use crate::loader::Loaded;
use crate::protocol::record::{Baseline, HEAD_AND_STATE, Header, Kind, MAX_TAGS, Malformed};
use crate::random;
use crate::telemetry::Wait;
use crate::ttl;

/// What a flight comes down with.
pub(crate) struct Completion {
    /// `None`: it has come to nothing, and nobody who waits is to blame it for that.
    pub(crate) outcome: Option<Result<Answer, Error<AnyError>>>,
    pub(crate) keep: Retention,
}

/// What is kept of it in this process.
pub(crate) enum Retention {
    Nothing,
    /// An entry, which L1 may answer for so long at most.
    Entry(Found, Duration),
    /// An error.
    Failure(Failure),
}

impl Completion {
    /// An answer that is kept in L1, if it may be.
    pub(crate) fn entry(found: Found, l1_lifetime: Option<Duration>) -> Self {
        let outcome = Some(Ok(found.answer.clone()));
        let keep = match l1_lifetime {
            Some(l1_lifetime) if !l1_lifetime.is_zero() => Retention::Entry(found, l1_lifetime),
            _ => Retention::Nothing,
        };
        Self { outcome, keep }
    }

    pub(crate) fn error(error: Error<AnyError>) -> Self {
        Self {
            outcome: Some(Err(error)),
            keep: Retention::Nothing,
        }
    }

    /// An error that is answered again for a while.
    pub(crate) fn failure(failure: Failure) -> Self {
        Self {
            outcome: Some(Err(failure.error.clone())),
            keep: Retention::Failure(failure),
        }
    }

    pub(crate) fn nothing() -> Self {
        Self {
            outcome: None,
            keep: Retention::Nothing,
        }
    }
}

/// What a record of L2 says.
#[expect(clippy::large_enum_variant, reason = "taken apart where it is made")]
enum Reading {
    /// An entry, fresh or not.
    Entry(Found, Header),
    /// Somebody loads it.
    Leased,
    /// Somebody failed to load it: no attempt for so long.
    Failed(Duration),
    /// A newer version's record: to be left alone.
    Newer,
    /// It was invalidated a moment ago, and nothing is to be stored yet.
    HeldOff,
    /// Dead or unreadable: to be replaced. So many loads have failed in a row.
    Replace(u32),
}

/// Why a record was not read.
enum Unread {
    Failed(RemoteError),
    /// Whether it is alive is for L2 to say: it begins in this era, and has these tags.
    Doubtful(Baseline, Vec<u64>),
}

impl From<RemoteError> for Unread {
    fn from(error: RemoteError) -> Self {
        Self::Failed(error)
    }
}

/// Why a load runs without a lease, and so without a fill.
enum UnleasedReason {
    /// There is no shared tier.
    NoTier,
    /// L2 holds a newer version's record.
    Newer,
    /// L2 did not answer, or must not be asked.
    Unreachable,
    /// The key was invalidated a moment ago.
    HeldOff,
    /// The holder of the lease took longer than `lease_wait`.
    WaitedEnough,
}

/// See [`Engine::longest_hold`].
const LONGEST_HOLD: Duration = Duration::from_secs(60);

/// Attempts of a flight at one key, each after something has changed.
const MAX_ATTEMPTS: usize = 100;

/// How far a flight has come with its first read.
struct FirstReadResult {
    remote_key: RemoteKey,
    background_permit: Option<OwnedSemaphorePermit>,
    replaces: Replaces,
    /// What was found, and what it says.
    record: Option<Bytes>,
    reading: Option<Result<Reading, RemoteError>>,
}

/// A flight that is to be flown: whoever drops it instead lets its callers go on.
pub(crate) struct Leader {
    pub(crate) guard: FlightGuard,
    pub(crate) nesting: Nesting,
    pub(crate) running: Running,
    /// What L2 has of it, if that was read already.
    pub(crate) read: Option<FirstRead>,
}

/// Flies it, in a task or for its leader.
pub(crate) async fn run(leader: Leader) {
    let Leader {
        guard,
        nesting,
        running,
        read,
    } = leader;
    let running_flight = guard.engine.resolve_in_time(&guard.flight, &nesting, read);
    let completion = guard.flight.trace().within(running_flight).await;
    guard.complete(completion);
    drop(running);
}

/// A flight that has not landed yet. Dropped with its task, it leaves nothing behind and lets its
/// waiters go on.
pub(crate) struct FlightGuard {
    pub(crate) engine: Arc<Engine>,
    pub(crate) flight: Arc<Flight>,
    pub(crate) completed: bool,
}

impl FlightGuard {
    fn complete(mut self, completion: Completion) {
        let (engine, flight) = (&self.engine, &self.flight);
        let (now, mut stored, mut in_l1) = (Instant::now(), false, false);
        {
            let mut shard = engine.flights.lock(flight.key.id.hash);
            let mut quiet = refresh::RETRY_AFTER;
            // The fence: a flight that was detached stores nothing, in one critical section with
            // whatever detaches.
            let current = shard.is_current(flight);
            match completion.keep {
                Retention::Entry(found, l1_lifetime) if current => {
                    if found.lifetime.freshness(now) == Freshness::Fresh {
                        shard.clear_failure(&flight.key.id);
                    }
                    in_l1 = engine.store(flight, &found, l1_lifetime, (now, None));
                    stored = true;
                }
                Retention::Failure(failure) if current && !failure.hold.is_zero() => {
                    quiet = failure.hold;
                    shard.hold(&flight.key.id, failure, now);
                }
                // What was loaded is not kept, and nobody is answered what is older.
                Retention::Nothing
                    if current && completion.outcome.as_ref().is_some_and(Result::is_ok) =>
                {
                    engine.l1.remove(&flight.key);
                }
                _ => {}
            }
            if flight.suspends_refresh() && !stored {
                engine.rearm_refresh(&flight.key, ttl::deadline(now, quiet));
            }
            shard.remove(flight);
        }
        flight.complete(match completion.outcome {
            Some(outcome) => Outcome::Completed(outcome.map(|mut answer| {
                if in_l1 {
                    answer.provenance.store();
                }
                answer
            })),
            None => Outcome::Abandoned,
        });
        self.completed = true;
    }
}

impl Drop for FlightGuard {
    fn drop(&mut self) {
        if self.completed {
            return;
        }
        self.engine
            .flights
            .lock(self.flight.key.id.hash)
            .remove(&self.flight);
        self.flight.complete(if std::thread::panicking() {
            Outcome::Completed(Err(Error::LoadPanicked))
        } else {
            Outcome::Abandoned
        });
    }
}

impl Engine {
    /// Lets callers have what is there when the soft timeout is over, and goes on.
    async fn resolve_in_time(
        self: &Arc<Self>,
        flight: &Arc<Flight>,
        nesting: &Nesting,
        read: Option<FirstRead>,
    ) -> Completion {
        let Some(after) = self.config.load_soft_timeout else {
            return self.resolve(flight, nesting, read).await;
        };
        let mut resolving = Box::pin(self.resolve(flight, nesting, read));
        tokio::select! {
            biased;
            completion = &mut resolving => return completion,
            () = tokio::time::sleep_until(ttl::deadline(flight.begun, after)) => flight.pass_soft_timeout(),
        }
        resolving.await
    }

    async fn first_read(
        self: &Arc<Self>,
        remote: &RemoteTier,
        flight: &Flight,
        remote_key: &RemoteKey,
    ) -> FirstRead {
        self.attach(remote).await;
        let known = if flight.past_l1 {
            Box::pin(self.ask_watermarks(remote, Vec::new()))
                .await
                .map(drop)
        } else {
            self.know_watermarks(remote).await
        };
        // Before the read is sent, so that whatever is missed from now on ends this flight.
        flight.register(self.fence.epoch());
        if known.is_err() || self.repairs.blocks(&flight.key.id.encoded) {
            return Err(());
        }
        self.tier(remote.tier.get(&remote_key.bytes).await)
            .map_err(drop)
    }

    async fn resolve(
        self: &Arc<Self>,
        flight: &Arc<Flight>,
        nesting: &Nesting,
        read: Option<FirstRead>,
    ) -> Completion {
        let mut background_permit = None;
        if flight.is_background(&self.config.windows) {
            background_permit = self.background_permit();
            if background_permit.is_none() {
                return Completion::nothing();
            }
        }
        let Some(remote) = &self.remote else {
            flight.register(self.fence.epoch());
            let load = self.load_unleased(flight, nesting, None, UnleasedReason::NoTier);
            return Box::pin(load).await;
        };
        let remote_key = remote.key(&flight.key.id);
        let read = match read {
            Some(read) => read,
            None => self.first_read(remote, flight, &remote_key).await,
        };
        let mut replaces = Replaces::default();
        let (record, reading) = match read {
            Ok(Some(record)) => {
                let reading = self.interpret(remote, flight, &remote_key, &record).await;
                if let Ok(Reading::Entry(found, _)) = &reading {
                    if !self.replaces(flight, found, &mut replaces, &LeaseWaits::default()) {
                        return Completion::entry(found.clone(), Some(self.config.l1_lifetime()));
                    }
                }
                (Some(record), Some(reading))
            }
            Ok(None) => (None, None),
            Err(()) => {
                flight.driver.move_to_task().await;
                let completion = self.unreachable(flight, nesting, None);
                return Box::pin(completion).await;
            }
        };
        // Most flights end before, and what they need from here on would make all of them large.
        let first_read_result = Box::new(FirstReadResult {
            remote_key,
            background_permit,
            replaces,
            record,
            reading,
        });
        flight.driver.move_to_task().await;
        Box::pin(self.go_on(remote, flight, nesting, *first_read_result)).await
    }

    /// What L2 has is not enough: loads it, or waits for who does.
    async fn go_on(
        self: &Arc<Self>,
        remote: &RemoteTier,
        flight: &Arc<Flight>,
        nesting: &Nesting,
        first_read_result: FirstReadResult,
    ) -> Completion {
        let FirstReadResult {
            remote_key,
            mut background_permit,
            mut replaces,
            mut record,
            reading: mut first,
        } = first_read_result;
        let (mut waits, mut failures) = (LeaseWaits::default(), flight.failures);
        for _ in 0..MAX_ATTEMPTS {
            let (mut observed, mut replacing) = (None, None);
            if let Some(bytes) = record.take() {
                let reading = match first.take() {
                    Some(reading) => reading,
                    None => self.interpret(remote, flight, &remote_key, &bytes).await,
                };
                match reading {
                    Ok(Reading::Entry(found, header)) => {
                        let mut done = !self.replaces(flight, &found, &mut replaces, &waits);
                        if !done {
                            if let Some(error) = &flight.held_error {
                                return self.spare(flight, error, found);
                            }
                            self.publish_interim(flight, &found);
                            if flight.is_background(&self.config.windows)
                                && background_permit.is_none()
                            {
                                background_permit = self.background_permit();
                                match background_permit {
                                    Some(_) => self.stats.refreshes.add(),
                                    None => done = true,
                                }
                            }
                        }
                        if done {
                            return Completion::entry(found, Some(self.config.l1_lifetime()));
                        }
                        let record = bytes;
                        observed = Some(ObservedRecord {
                            found,
                            header,
                            record,
                        });
                    }
                    // The mark may be our own: the error of that load is at hand.
                    Ok(Reading::Failed(_)) if flight.held_error.is_some() => {}
                    Ok(Reading::Failed(left)) => {
                        return self.failed_elsewhere(flight, left);
                    }
                    Ok(Reading::Newer) => {
                        return self
                            .load_unleased(flight, nesting, None, UnleasedReason::Newer)
                            .await;
                    }
                    Ok(Reading::HeldOff) => {
                        return self
                            .load_unleased(flight, nesting, None, UnleasedReason::HeldOff)
                            .await;
                    }
                    Ok(Reading::Leased) => {}
                    Ok(Reading::Replace(failed)) => {
                        failures = failures.max(failed);
                        replacing = Some(bytes.slice(..bytes.len().min(HEAD_AND_STATE)));
                    }
                    Err(_) => return self.unreachable(flight, nesting, None).await,
                }
            }
            if let Some(error) = &flight.held_error {
                self.stats.errors_held.add();
                return Completion::error(error.clone());
            }
            // A place first, the lease then: who waits for a place holds nobody up.
            let deadline = self.load_deadline();
            let permit = match self.load_permit(deadline, flight).await {
                Ok(permit) => permit,
                Err(error) => return Completion::error(error),
            };
            // Hear of wake-ups before the attempt that asks for them.
            self.flights.lock(flight.key.id.hash).listen(flight);
            // And know what is invalidated as a whole before the load begins.
            let mut lease = Lease::new(
                remote,
                &remote_key,
                self.watermarks.baseline(),
                observed,
                failures,
            );
            let Ok(lease_record) = lease.record() else {
                return self.unreachable(flight, nesting, Some(permit)).await;
            };
            let ttl_ms = ttl::millis(self.config.lease_ttl);
            let known = self.watermarks.known().unwrap_or_default();
            let over = lease.over(replacing.as_deref());
            let acquired = remote
                .tier
                .acquire(lease.keys(), lease_record, ttl_ms, over, known)
                .await;
            match self.tier(acquired) {
                Ok(Acquired::Granted(failed)) => {
                    lease.failures = failures.max(failed);
                    return self
                        .regenerate(remote, flight, nesting, permit, deadline, &lease)
                        .await;
                }
                Ok(Acquired::Record(found)) => record = found,
                Ok(Acquired::Failed(left_ms)) => {
                    let left = Duration::from_millis(left_ms);
                    if left <= self.longest_hold() {
                        return self.failed_elsewhere(flight, left);
                    }
                    // Nobody of us has said so.
                    self.stats.decode_failures.add();
                    return self
                        .load_unleased(flight, nesting, Some(permit), UnleasedReason::WaitedEnough)
                        .await;
                }
                Ok(Acquired::Held(remaining_ms)) => {
                    drop(permit);
                    if waits.count() {
                        self.stats.lease_waits.add();
                    }
                    let remaining = Duration::from_millis(remaining_ms);
                    let wait = waits.wait(flight, remaining, self.config.lease_wait);
                    let since = Instant::now();
                    let goes_on = tokio::select! {
                        biased;
                        goes_on = wait => goes_on,
                        () = self.cut_off(flight) => return Completion::nothing(),
                    };
                    self.telemetry.waited(Wait::Lease, since);
                    if !goes_on && flight.is_background(&self.config.windows) {
                        // Whoever comes has something to answer; another hit tries again.
                        return Completion::nothing();
                    }
                    if !goes_on {
                        self.stats.lease_wait_exceeded.add();
                        return self
                            .load_unleased(flight, nesting, None, UnleasedReason::WaitedEnough)
                            .await;
                    }
                    if waits.woken() || lease.is_claim() {
                        // Most likely the value is there: the cheapest command will do.
                        match self.tier(remote.tier.get(&remote_key.bytes).await) {
                            Ok(found) => record = found,
                            Err(_) => return self.unreachable(flight, nesting, None).await,
                        }
                    }
                }
                Err(error) => {
                    let completion = self.unreachable(flight, nesting, Some(permit)).await;
                    if error.is_timeout() {
                        // It may have been granted after all, too late to fill against.
                        self.release_later(&lease, &flight.key.id);
                    }
                    return completion;
                }
            }
        }
        // Others are quicker all the time, or L2 says one thing to a read and another to an attempt.
        self.unreachable(flight, nesting, None).await
    }

    /// For how long a mark in L2 is believed that says that a load failed: as long as any process of
    /// the fleet would hold off, whose settings may differ a little. What says more is forged.
    fn longest_hold(&self) -> Duration {
        ttl::backoff(self.config.error_backoff, u32::MAX).max(LONGEST_HOLD)
    }

    /// Counts an operation's failure and notes whether L2 can be reached.
    pub(crate) fn tier<T>(&self, result: Result<T, RemoteError>) -> Result<T, RemoteError> {
        if let Some(remote) = &self.remote {
            remote.note(&result);
        }
        if result.is_err() {
            self.stats.l2_failures.add();
        }
        result
    }

    /// Sees to it that the marks are known: from the channel while it is proven, else from L2.
    pub(crate) async fn know_watermarks(&self, remote: &RemoteTier) -> Result<(), RemoteError> {
        if self.watermarks.is_certain() && remote.channel.is_proven(Instant::now()) {
            return Ok(());
        }
        Box::pin(self.ask_watermarks(remote, Vec::new()))
            .await
            .map(drop)
    }

    /// Asks L2 for the marks. Answers the latest one that concerns the tags.
    async fn ask_watermarks(
        &self,
        remote: &RemoteTier,
        tags: Vec<u64>,
    ) -> Result<u64, RemoteError> {
        let look = WatermarkRequest {
            advance: Advance::Nothing,
            known: self.watermarks.known().unwrap_or_default(),
            tags,
            publication: None,
        };
        let query = self.watermarks.begin_query();
        let (watermarks, latest) =
            self.tier(remote.tier.marks(&remote.watermarks_key, look).await)?;
        self.watermarks.end_query(watermarks, query);
        if self.watermarks.learn(watermarks, false) == Learned::Everything {
            self.start_new_epoch();
        }
        Ok(latest)
    }

    /// As far as that is known here.
    fn judge_now(
        &self,
        remote: &RemoteTier,
        baseline: Baseline,
        tags: &[u64],
        ask: bool,
    ) -> Liveness {
        // Which is asked about tags alone.
        let proven = !ask && !tags.is_empty() && remote.channel.is_proven(Instant::now());
        self.watermarks
            .check_liveness(baseline, tags.iter().copied(), proven)
    }

    /// Whether a record that begins in `era` is alive, with its tags if it has some. `ask`: L2, also
    /// where what the messages have told would do.
    async fn judge(
        &self,
        remote: &RemoteTier,
        baseline: Baseline,
        tags: &[u64],
        ask: bool,
    ) -> Result<Liveness, RemoteError> {
        let judge = || self.judge_now(remote, baseline, tags, ask);
        let mut verdict = judge();
        if matches!(verdict, Liveness::OtherIncarnation) {
            self.ask_watermarks(remote, Vec::new()).await?;
            verdict = judge();
        }
        if let Liveness::AskTags(of) = verdict {
            let latest = self.ask_watermarks(remote, tags.to_vec()).await?;
            // Whoever invalidated everything meanwhile had the marks of the tags dropped.
            let none: [u64; 0] = [];
            let alive = latest <= baseline.watermark
                && of.hold()
                && matches!(
                    self.watermarks
                        .check_liveness(baseline, none.into_iter(), true),
                    Liveness::Alive(_)
                );
            verdict = if alive {
                Liveness::Alive(Some(of))
            } else {
                Liveness::Dead
            };
        }
        Ok(verdict)
    }

    async fn interpret(
        &self,
        remote: &RemoteTier,
        flight: &Flight,
        remote_key: &RemoteKey,
        record: &Bytes,
    ) -> Result<Reading, RemoteError> {
        let known = |baseline, tags: &[u64]| self.judge_now(remote, baseline, tags, flight.past_l1);
        let (baseline, tags) = match self.decode_record(remote, remote_key, record, known) {
            Ok(reading) => return Ok(reading),
            Err(Unread::Failed(error)) => return Err(error),
            Err(Unread::Doubtful(baseline, tags)) => (baseline, tags),
        };
        let judged = self.judge(remote, baseline, &tags, flight.past_l1);
        let verdict = match Box::pin(judged).await? {
            Liveness::Alive(tags) => Liveness::Alive(tags),
            Liveness::Dead | Liveness::OtherIncarnation | Liveness::AskTags(_) => Liveness::Dead,
        };
        match self.decode_record(remote, remote_key, record, |_, _| verdict) {
            Ok(reading) => Ok(reading),
            Err(Unread::Failed(error)) => Err(error),
            Err(Unread::Doubtful(..)) => Ok(Reading::Replace(0)),
        }
    }

    /// What a record says, if it is known whether it is alive.
    fn decode_record(
        &self,
        remote: &RemoteTier,
        remote_key: &RemoteKey,
        record: &Bytes,
        judge: impl FnOnce(Baseline, &[u64]) -> Liveness,
    ) -> Result<Reading, Unread> {
        let unreadable = || {
            self.stats.decode_failures.add();
            Ok(Reading::Replace(0))
        };
        if record.len() > self.config.max_record_bytes {
            return unreadable();
        }
        let (header, body) = match Header::parse(record, remote_key.hash) {
            Ok(parsed) => parsed,
            Err(Malformed::Damaged) => return unreadable(),
            Err(Malformed::LaterFormat) => {
                self.stats.newer_records.add();
                return Ok(Reading::Newer);
            }
        };
        match header.kind {
            Kind::Lease => return Ok(Reading::Leased),
            Kind::HoldOff => return Ok(Reading::HeldOff),
            Kind::Value if header.schema > self.config.schema_version => {
                self.stats.newer_records.add();
                return Ok(Reading::Newer);
            }
            Kind::Value | Kind::Negative | Kind::Failed => {}
        }
        let tags: Vec<u64> = body.tags().collect();
        let tags = match judge(header.baseline, &tags) {
            Liveness::Alive(tags) => tags,
            Liveness::Dead => return Ok(Reading::Replace(0)),
            Liveness::OtherIncarnation | Liveness::AskTags(_) => {
                return Err(Unread::Doubtful(header.baseline, tags));
            }
        };
        let now_ms = remote.now_ms()?;
        if header.kind == Kind::Failed {
            let longest = ttl::millis(self.longest_hold());
            let from_later = header.created_ms > now_ms.saturating_add(longest);
            if from_later || header.fresh_ms > longest {
                return unreadable();
            }
        }
        let age_ms = now_ms.saturating_sub(header.created_ms);
        let left = Duration::from_millis(header.fresh_ms.saturating_sub(age_ms));
        if header.kind == Kind::Failed {
            return Ok(if left.is_zero() {
                Reading::Replace(header.load_cost_ms)
            } else {
                Reading::Failed(left)
            });
        }
        let now = Instant::now();
        let over = Duration::from_millis(age_ms.saturating_sub(header.fresh_ms));
        // Longer ago than this clock goes back: whatever its windows are.
        let Some(ended) = now.checked_sub(over.min(ttl::LONGEST)) else {
            return Ok(Reading::Replace(0));
        };
        let lifetime = Lifetime {
            fresh_until: if left.is_zero() {
                ended
            } else {
                ttl::deadline(now, left)
            },
            expired: header.expired,
            has_stale_windows: header.kind == Kind::Value,
            cost: Duration::from_millis(header.load_cost_ms.into()),
        };
        let value = if header.kind == Kind::Value {
            let ours =
                header.schema == self.config.schema_version && header.codec == remote.codec_id();
            if !ours {
                return unreadable();
            }
            let fields = header.fields();
            let context = RecordContext::new(&remote_key.bytes, &fields, body.raw_tags);
            match remote.decode(body.payload, &context) {
                Ok(value) => Some(value),
                Err(_) => return unreadable(),
            }
        } else {
            None
        };
        let answer = Answer {
            value,
            source: Source::L2,
            age: Duration::from_millis(age_ms),
            at: now,
            fresh_until: lifetime.fresh_until,
            freshness: lifetime.freshness(now),
            provenance: Provenance::FromTier,
            tags,
        };
        let version_id = header.version_id();
        let found = Found {
            answer,
            lifetime,
            of_l1: None,
            version_id,
        };
        Ok(Reading::Entry(found, header))
    }

    /// L2 cannot be asked, or must not be.
    async fn unreachable(
        self: &Arc<Self>,
        flight: &Flight,
        nesting: &Nesting,
        permit: Option<LoadPermit>,
    ) -> Completion {
        // Now that it is known, L1 may answer for a while what it could not when the call came.
        let local = self.look(&flight.key, Instant::now());
        let is_fresh = |local: &L1Entry| local.suits(Read::fresh());
        let has_l1 = !flight.past_l1 && local.as_ref().is_some_and(is_fresh);
        if let Some(local) = local.filter(|_| flight.interim().is_none()) {
            flight.set_interim(local.found());
        }
        let fresh = |found: Found| found.lifetime.freshness(Instant::now()) == Freshness::Fresh;
        let is_done = match flight.purpose {
            Purpose::Load => false,
            // There is time, and without L2 everybody would load for himself.
            Purpose::Replace(_) => flight.interim().is_some_and(fresh),
            // Whoever waits finds it there. Else every process would load every key that is asked for
            // at the moment when L2 is lost.
            Purpose::Any | Purpose::Fresh => has_l1,
        };
        if is_done {
            return Completion::nothing();
        }
        if let Some(error) = &flight.held_error {
            self.stats.errors_held.add();
            return Completion::error(error.clone());
        }
        self.load_unleased(flight, nesting, permit, UnleasedReason::Unreachable)
            .await
    }

    /// A load that nobody in the fleet knows of: its value enters no L2.
    async fn load_unleased(
        self: &Arc<Self>,
        flight: &Flight,
        nesting: &Nesting,
        permit: Option<LoadPermit>,
        why: UnleasedReason,
    ) -> Completion {
        let deadline = self.load_deadline();
        let permit = match permit {
            Some(permit) => Ok(permit),
            None => self.load_permit(deadline, flight).await,
        };
        let baseline = self.watermarks.baseline();
        let previous = flight.interim().filter(|found| self.is_of_use(found));
        let loaded = match permit {
            Ok(permit) => {
                let previous = previous.as_ref();
                let meanwhile = std::future::pending();
                self.load(flight, nesting, permit, deadline, previous, meanwhile)
                    .await
            }
            Err(error) => Err(error),
        };
        match loaded {
            Ok((loaded, cost)) => {
                let fwd =
                    ForwardReason::because(flight.purpose == Purpose::Load, previous.is_some());
                let found = self.found(
                    loaded,
                    baseline,
                    previous.as_ref(),
                    (cost, fwd),
                    random::number(),
                );
                let l1_lifetime = match why {
                    UnleasedReason::NoTier | UnleasedReason::Newer => self.config.l1_lifetime(),
                    UnleasedReason::Unreachable | UnleasedReason::WaitedEnough => {
                        self.unshared_l1_lifetime()
                    }
                    UnleasedReason::HeldOff => Duration::ZERO,
                };
                match found {
                    (found, true) => Completion::entry(found, Some(l1_lifetime)),
                    (found, false) => Completion::entry(found, None),
                }
            }
            Err(error) => self.failed(flight, error, flight.failures),
        }
    }

    /// What a failed load comes down with.
    pub(crate) fn failed(
        &self,
        flight: &Flight,
        error: Error<AnyError>,
        failures: u32,
    ) -> Completion {
        match error {
            Error::Overloaded | Error::Closed => Completion::error(error),
            error => {
                let failures = flight.failures.max(failures).saturating_add(1);
                let hold = ttl::backoff(self.config.error_backoff, failures);
                Completion::failure(Failure {
                    error,
                    hold,
                    failures,
                })
            }
        }
    }

    /// What a loader found, as an entry, and whether it may be kept. `era`: what was known before it
    /// began. `previous`: what it was told to compare with.
    pub(crate) fn found(
        &self,
        loaded: Loaded<AnyValue>,
        baseline: Baseline,
        previous: Option<&Found>,
        (cost, why): (Duration, ForwardReason),
        version_id: u64,
    ) -> (Found, bool) {
        let at = Instant::now();
        let previous = previous.filter(|_| loaded.unchanged);
        let too_many_tags = loaded.tags.len() > MAX_TAGS;
        if too_many_tags {
            self.stats.encode_failures.add();
        }
        let value = match previous {
            Some(previous) => previous.answer.value.clone(),
            None => loaded.value,
        };
        let tags = match previous {
            Some(previous) => previous
                .answer
                .tags
                .as_ref()
                .map(|tags| tags.renewed(baseline)),
            None => self.watermarks.tags(baseline, loaded.tags.into_iter()),
        };
        let life = match &value {
            _ if !loaded.store || too_many_tags => Duration::ZERO,
            Some(_) => self.config.draw_ttl(loaded.ttl, self.is_cold(at)),
            None => loaded
                .ttl
                .unwrap_or(self.config.negative_ttl)
                .min(ttl::LONGEST),
        };
        // Without a shared tier nothing is left to ask when L1 has had it for long enough.
        let fresh_for = match self.config.l1_ttl {
            Some(_) if self.remote.is_none() => life.min(self.config.l1_lifetime()),
            _ => life,
        };
        let fresh_until = ttl::deadline(at, fresh_for);
        let answer = Answer {
            source: Source::Loader,
            age: Duration::ZERO,
            at,
            fresh_until,
            freshness: Freshness::Fresh,
            provenance: Provenance::Forwarded { why, stored: false },
            tags,
            value,
        };
        let has_stale_windows = answer.value.is_some();
        let found = Found {
            lifetime: Lifetime::new(fresh_until, has_stale_windows, cost),
            of_l1: None,
            answer,
            version_id,
        };
        (found, !life.is_zero())
    }
}
