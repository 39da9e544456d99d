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

use super::flight::{Aim, Failure, Flight, Found, Outcome};
use super::lease::{Lease, Seen, Waited};
use super::load::{Nesting, Place};
use super::marks::{News, Verdict};
use super::refresh::{self, Replaces};
use super::shared::{RemoteKey, Shared};
use super::tasks::Running;
use super::{Engine, Local};
use crate::codec::RecordContext;
use crate::codec::envelope::{Era, Header, Kind, MOST_TAGS, Malformed, STATED};
use crate::entry::{Forward, Freshness, Read, Source, Way};
use crate::erased::{AnyError, AnyValue};
use crate::error::{Error, RemoteError};
use crate::l1::Answer;
use crate::l2::{Acquired, Look, Raise, Read as FirstRead};
use crate::life::Life;
use crate::loader::Loaded;
use crate::random;
use crate::telemetry::Wait;
use crate::ttl;

/// What a flight comes down with.
pub(crate) struct Landing {
    /// `None`: it has come to nothing, and nobody who waits is to blame it for that.
    pub(crate) outcome: Option<Result<Answer, Error<AnyError>>>,
    pub(crate) keep: Keep,
}

/// What is kept of it in this process.
pub(crate) enum Keep {
    Nothing,
    /// An entry, which L1 may answer for so long at most.
    Entry(Found, Duration),
    /// An error.
    Failure(Failure),
}

impl Landing {
    /// An answer that is kept in L1, if it may be.
    pub(crate) fn entry(found: Found, bound: Option<Duration>) -> Self {
        let outcome = Some(Ok(found.answer.clone()));
        let keep = match bound {
            Some(bound) if !bound.is_zero() => Keep::Entry(found, bound),
            _ => Keep::Nothing,
        };
        Self { outcome, keep }
    }

    pub(crate) fn error(error: Error<AnyError>) -> Self {
        Self {
            outcome: Some(Err(error)),
            keep: Keep::Nothing,
        }
    }

    /// An error that is answered again for a while.
    pub(crate) fn failure(failure: Failure) -> Self {
        Self {
            outcome: Some(Err(failure.error.clone())),
            keep: Keep::Failure(failure),
        }
    }

    pub(crate) fn nothing() -> Self {
        Self {
            outcome: None,
            keep: Keep::Nothing,
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
    Doubtful(Era, Vec<u64>),
}

impl From<RemoteError> for Unread {
    fn from(error: RemoteError) -> Self {
        Self::Failed(error)
    }
}

/// Why a load runs without a lease, and so without a fill.
enum Alone {
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

/// See [`Engine::longest_believed`].
const BELIEVED: Duration = Duration::from_secs(60);

/// Attempts of a flight at one key, each after something has changed.
const MOST_ROUNDS: usize = 100;

/// How far a flight has come with its first read.
struct Approach {
    remote: RemoteKey,
    place_behind: Option<OwnedSemaphorePermit>,
    replaces: Replaces,
    /// What was found, and what it says.
    record: Option<Bytes>,
    reading: Option<Result<Reading, RemoteError>>,
}

/// A flight that is to be flown: whoever drops it instead lets its callers go on.
pub(crate) struct Leader {
    pub(crate) claim: Claim,
    pub(crate) nesting: Nesting,
    pub(crate) running: Running,
    /// What L2 has of it, if that was read already.
    pub(crate) read: Option<FirstRead>,
}

/// Flies it, in a task or for its leader.
pub(crate) async fn fly(leader: Leader) {
    let Leader {
        claim,
        nesting,
        running,
        read,
    } = leader;
    let flying = claim.engine.resolve_in_time(&claim.flight, &nesting, read);
    let landing = claim.flight.trace().within(flying).await;
    claim.land(landing);
    drop(running);
}

/// A flight that has not landed yet. Dropped with its task, it leaves nothing behind and lets its
/// waiters go on.
pub(crate) struct Claim {
    pub(crate) engine: Arc<Engine>,
    pub(crate) flight: Arc<Flight>,
    pub(crate) landed: bool,
}

impl Claim {
    fn land(mut self, landing: Landing) {
        let (engine, flight) = (&self.engine, &self.flight);
        let (now, mut stored, mut in_l1) = (Instant::now(), false, false);
        {
            let mut shard = engine.flights.lock(flight.key.id.hash);
            let mut quiet = refresh::QUIET;
            // The fence: a flight that was detached stores nothing, in one critical section with
            // whatever detaches.
            let current = shard.is_current(flight);
            match landing.keep {
                Keep::Entry(found, bound) if current => {
                    if found.life.freshness(now) == Freshness::Fresh {
                        shard.forgive(&flight.key.id);
                    }
                    in_l1 = engine.store(flight, &found, bound, (now, None));
                    stored = true;
                }
                Keep::Failure(failure) if current && !failure.hold.is_zero() => {
                    quiet = failure.hold;
                    shard.hold(&flight.key.id, failure, now);
                }
                // What was loaded is not kept, and nobody is answered what is older.
                Keep::Nothing if current && landing.outcome.as_ref().is_some_and(Result::is_ok) => {
                    engine.l1.remove(&flight.key);
                }
                _ => {}
            }
            if flight.calms() && !stored {
                engine.end_calm(&flight.key, ttl::deadline(now, quiet));
            }
            shard.remove(flight);
        }
        flight.land(match landing.outcome {
            Some(outcome) => Outcome::Landed(outcome.map(|mut answer| {
                if in_l1 {
                    answer.way.store();
                }
                answer
            })),
            None => Outcome::Abandoned,
        });
        self.landed = true;
    }
}

impl Drop for Claim {
    fn drop(&mut self) {
        if self.landed {
            return;
        }
        self.engine
            .flights
            .lock(self.flight.key.id.hash)
            .remove(&self.flight);
        self.flight.land(if std::thread::panicking() {
            Outcome::Landed(Err(Error::LoadPanicked))
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
    ) -> Landing {
        let Some(after) = self.config.load_soft_timeout else {
            return self.resolve(flight, nesting, read).await;
        };
        let mut resolving = Box::pin(self.resolve(flight, nesting, read));
        tokio::select! {
            biased;
            landing = &mut resolving => return landing,
            () = tokio::time::sleep_until(ttl::deadline(flight.begun, after)) => flight.be_late(),
        }
        resolving.await
    }

    async fn first_read(
        self: &Arc<Self>,
        shared: &Shared,
        flight: &Flight,
        remote: &RemoteKey,
    ) -> FirstRead {
        self.attach(shared).await;
        let known = if flight.past_l1 {
            Box::pin(self.look_at_marks(shared, Vec::new()))
                .await
                .map(drop)
        } else {
            self.know_marks(shared).await
        };
        // Before the read is sent, so that whatever is missed from now on ends this flight.
        flight.register(self.fence.epoch());
        if known.is_err() || self.repairs.block(&flight.key.id.encoded) {
            return Err(());
        }
        self.tier(shared.tier.get(&remote.bytes).await)
            .map_err(drop)
    }

    async fn resolve(
        self: &Arc<Self>,
        flight: &Arc<Flight>,
        nesting: &Nesting,
        read: Option<FirstRead>,
    ) -> Landing {
        let mut place_behind = None;
        if flight.is_behind(&self.config.windows) {
            place_behind = self.place_behind();
            if place_behind.is_none() {
                return Landing::nothing();
            }
        }
        let Some(shared) = &self.shared else {
            flight.register(self.fence.epoch());
            let load = self.load_alone(flight, nesting, None, Alone::NoTier);
            return Box::pin(load).await;
        };
        let remote = shared.key(&flight.key.id);
        let read = match read {
            Some(read) => read,
            None => self.first_read(shared, flight, &remote).await,
        };
        let mut replaces = Replaces::default();
        let (record, reading) = match read {
            Ok(Some(record)) => {
                let reading = self.interpret(shared, flight, &remote, &record).await;
                if let Ok(Reading::Entry(found, _)) = &reading {
                    if !self.replaces(flight, found, &mut replaces, &Waited::default()) {
                        return Landing::entry(found.clone(), Some(self.config.l1_bound()));
                    }
                }
                (Some(record), Some(reading))
            }
            Ok(None) => (None, None),
            Err(()) => {
                flight.craft.depart().await;
                let landing = self.unreachable(flight, nesting, None);
                return Box::pin(landing).await;
            }
        };
        // Most flights end before, and what they need from here on would make all of them large.
        let approach = Box::new(Approach {
            remote,
            place_behind,
            replaces,
            record,
            reading,
        });
        flight.craft.depart().await;
        Box::pin(self.go_on(shared, flight, nesting, *approach)).await
    }

    /// What L2 has is not enough: loads it, or waits for who does.
    async fn go_on(
        self: &Arc<Self>,
        shared: &Shared,
        flight: &Arc<Flight>,
        nesting: &Nesting,
        approach: Approach,
    ) -> Landing {
        let Approach {
            remote,
            mut place_behind,
            mut replaces,
            mut record,
            reading: mut first,
        } = approach;
        let (mut waited, mut failures) = (Waited::default(), flight.failures);
        for _ in 0..MOST_ROUNDS {
            let (mut seen, mut replacing) = (None, None);
            if let Some(bytes) = record.take() {
                let reading = match first.take() {
                    Some(reading) => reading,
                    None => self.interpret(shared, flight, &remote, &bytes).await,
                };
                match reading {
                    Ok(Reading::Entry(found, header)) => {
                        let mut done = !self.replaces(flight, &found, &mut replaces, &waited);
                        if !done {
                            if let Some(error) = &flight.spared {
                                return self.spare(flight, error, found);
                            }
                            self.put_up(flight, &found);
                            if flight.is_behind(&self.config.windows) && place_behind.is_none() {
                                place_behind = self.place_behind();
                                match place_behind {
                                    Some(_) => self.stats.refreshes.add(),
                                    None => done = true,
                                }
                            }
                        }
                        if done {
                            return Landing::entry(found, Some(self.config.l1_bound()));
                        }
                        let record = bytes;
                        seen = Some(Seen {
                            found,
                            header,
                            record,
                        });
                    }
                    // The mark may be our own: the error of that load is at hand.
                    Ok(Reading::Failed(_)) if flight.spared.is_some() => {}
                    Ok(Reading::Failed(left)) => {
                        return self.failed_elsewhere(flight, left);
                    }
                    Ok(Reading::Newer) => {
                        return self.load_alone(flight, nesting, None, Alone::Newer).await;
                    }
                    Ok(Reading::HeldOff) => {
                        return self.load_alone(flight, nesting, None, Alone::HeldOff).await;
                    }
                    Ok(Reading::Leased) => {}
                    Ok(Reading::Replace(failed)) => {
                        failures = failures.max(failed);
                        replacing = Some(bytes.slice(..bytes.len().min(STATED)));
                    }
                    Err(_) => return self.unreachable(flight, nesting, None).await,
                }
            }
            if let Some(error) = &flight.spared {
                self.stats.errors_held.add();
                return Landing::error(error.clone());
            }
            // A place first, the lease then: who waits for a place holds nobody up.
            let deadline = self.load_deadline();
            let place = match self.place(deadline, flight).await {
                Ok(place) => place,
                Err(error) => return Landing::error(error),
            };
            // Hear of wake-ups before the attempt that asks for them.
            self.flights.lock(flight.key.id.hash).listen(flight);
            // And know what is invalidated as a whole before the load begins.
            let mut lease = Lease::new(shared, &remote, self.marks.era(), seen, failures);
            let Ok(lease_record) = lease.record() else {
                return self.unreachable(flight, nesting, Some(place)).await;
            };
            let ttl_ms = ttl::millis(self.config.lease_ttl);
            let known = self.marks.known().unwrap_or_default();
            let over = lease.over(replacing.as_deref());
            let acquired = shared
                .tier
                .acquire(lease.keys(), lease_record, ttl_ms, over, known)
                .await;
            match self.tier(acquired) {
                Ok(Acquired::Granted(failed)) => {
                    lease.failures = failures.max(failed);
                    return self
                        .regenerate(shared, flight, nesting, place, deadline, &lease)
                        .await;
                }
                Ok(Acquired::Record(found)) => record = found,
                Ok(Acquired::Failed(left_ms)) => {
                    let left = Duration::from_millis(left_ms);
                    if left <= self.longest_believed() {
                        return self.failed_elsewhere(flight, left);
                    }
                    // Nobody of us has said so.
                    self.stats.decode_failures.add();
                    return self
                        .load_alone(flight, nesting, Some(place), Alone::WaitedEnough)
                        .await;
                }
                Ok(Acquired::Held(remaining_ms)) => {
                    drop(place);
                    if waited.count() {
                        self.stats.lease_waits.add();
                    }
                    let remaining = Duration::from_millis(remaining_ms);
                    let wait = waited.wait(flight, remaining, self.config.lease_wait);
                    let since = Instant::now();
                    let goes_on = tokio::select! {
                        biased;
                        goes_on = wait => goes_on,
                        () = self.cut_off(flight) => return Landing::nothing(),
                    };
                    self.telemetry.waited(Wait::Lease, since);
                    if !goes_on && flight.is_behind(&self.config.windows) {
                        // Whoever comes has something to answer; another hit tries again.
                        return Landing::nothing();
                    }
                    if !goes_on {
                        self.stats.lease_wait_exceeded.add();
                        return self
                            .load_alone(flight, nesting, None, Alone::WaitedEnough)
                            .await;
                    }
                    if waited.woken() || lease.is_claim() {
                        // Most likely the value is there: the cheapest command will do.
                        match self.tier(shared.tier.get(&remote.bytes).await) {
                            Ok(found) => record = found,
                            Err(_) => return self.unreachable(flight, nesting, None).await,
                        }
                    }
                }
                Err(error) => {
                    let landing = self.unreachable(flight, nesting, Some(place)).await;
                    if error.is_timeout() {
                        // It may have been granted after all, too late to fill against.
                        self.release_later(&lease, &flight.key.id);
                    }
                    return landing;
                }
            }
        }
        // Others are quicker all the time, or L2 says one thing to a read and another to an attempt.
        self.unreachable(flight, nesting, None).await
    }

    /// For how long a mark in L2 is believed that says that a load failed: as long as any process of
    /// the fleet would hold off, whose settings may differ a little. What says more is forged.
    fn longest_believed(&self) -> Duration {
        ttl::backoff(self.config.error_backoff, u32::MAX).max(BELIEVED)
    }

    /// Counts an operation's failure and notes whether L2 can be reached.
    pub(crate) fn tier<T>(&self, result: Result<T, RemoteError>) -> Result<T, RemoteError> {
        if let Some(shared) = &self.shared {
            shared.note(&result);
        }
        if result.is_err() {
            self.stats.l2_failures.add();
        }
        result
    }

    /// Sees to it that the marks are known: from the channel while it is proven, else from L2.
    pub(crate) async fn know_marks(&self, shared: &Shared) -> Result<(), RemoteError> {
        if self.marks.is_certain() && shared.link.is_proven(Instant::now()) {
            return Ok(());
        }
        Box::pin(self.look_at_marks(shared, Vec::new()))
            .await
            .map(drop)
    }

    /// Asks L2 for the marks. Answers the latest one that concerns the tags.
    async fn look_at_marks(&self, shared: &Shared, tags: Vec<u64>) -> Result<u64, RemoteError> {
        let look = Look {
            raise: Raise::Nothing,
            known: self.marks.known().unwrap_or_default(),
            tags,
            notice: None,
        };
        let asked = self.marks.asks();
        let (marked, latest) = self.tier(shared.tier.marks(&shared.marks, look).await)?;
        self.marks.answered(marked, asked);
        if self.marks.learn(marked, false) == News::Everything {
            self.forget();
        }
        Ok(latest)
    }

    /// As far as that is known here.
    fn judge_now(&self, shared: &Shared, era: Era, tags: &[u64], ask: bool) -> Verdict {
        // Which is asked about tags alone.
        let proven = !ask && !tags.is_empty() && shared.link.is_proven(Instant::now());
        self.marks.judge(era, tags.iter().copied(), proven)
    }

    /// Whether a record that begins in `era` is alive, with its tags if it has some. `ask`: L2, also
    /// where what the messages have told would do.
    async fn judge(
        &self,
        shared: &Shared,
        era: Era,
        tags: &[u64],
        ask: bool,
    ) -> Result<Verdict, RemoteError> {
        let judge = || self.judge_now(shared, era, tags, ask);
        let mut verdict = judge();
        if matches!(verdict, Verdict::OtherEra) {
            self.look_at_marks(shared, Vec::new()).await?;
            verdict = judge();
        }
        if let Verdict::AskTags(of) = verdict {
            let latest = self.look_at_marks(shared, tags.to_vec()).await?;
            // Whoever invalidated everything meanwhile had the marks of the tags dropped.
            let none: [u64; 0] = [];
            let alive = latest <= era.mark
                && of.hold()
                && matches!(
                    self.marks.judge(era, none.into_iter(), true),
                    Verdict::Alive(_)
                );
            verdict = if alive {
                Verdict::Alive(Some(of))
            } else {
                Verdict::Dead
            };
        }
        Ok(verdict)
    }

    async fn interpret(
        &self,
        shared: &Shared,
        flight: &Flight,
        remote: &RemoteKey,
        record: &Bytes,
    ) -> Result<Reading, RemoteError> {
        let known = |era, tags: &[u64]| self.judge_now(shared, era, tags, flight.past_l1);
        let (era, tags) = match self.read_off(shared, remote, record, known) {
            Ok(reading) => return Ok(reading),
            Err(Unread::Failed(error)) => return Err(error),
            Err(Unread::Doubtful(era, tags)) => (era, tags),
        };
        let judged = self.judge(shared, era, &tags, flight.past_l1);
        let verdict = match Box::pin(judged).await? {
            Verdict::Alive(tags) => Verdict::Alive(tags),
            Verdict::Dead | Verdict::OtherEra | Verdict::AskTags(_) => Verdict::Dead,
        };
        match self.read_off(shared, remote, record, |_, _| verdict) {
            Ok(reading) => Ok(reading),
            Err(Unread::Failed(error)) => Err(error),
            Err(Unread::Doubtful(..)) => Ok(Reading::Replace(0)),
        }
    }

    /// What a record says, if it is known whether it is alive.
    fn read_off(
        &self,
        shared: &Shared,
        remote: &RemoteKey,
        record: &Bytes,
        judge: impl FnOnce(Era, &[u64]) -> Verdict,
    ) -> Result<Reading, Unread> {
        let unreadable = || {
            self.stats.decode_failures.add();
            Ok(Reading::Replace(0))
        };
        if record.len() > self.config.max_record_bytes {
            return unreadable();
        }
        let (header, body) = match Header::parse(record, remote.hash) {
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
        let tags = match judge(header.era, &tags) {
            Verdict::Alive(tags) => tags,
            Verdict::Dead => return Ok(Reading::Replace(0)),
            Verdict::OtherEra | Verdict::AskTags(_) => {
                return Err(Unread::Doubtful(header.era, tags));
            }
        };
        let now_ms = shared.now_ms()?;
        if header.kind == Kind::Failed {
            let longest = ttl::millis(self.longest_believed());
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
        let life = Life {
            fresh_until: if left.is_zero() {
                ended
            } else {
                ttl::deadline(now, left)
            },
            expired: header.expired,
            lingers: header.kind == Kind::Value,
            cost: Duration::from_millis(header.load_cost_ms.into()),
        };
        let value = if header.kind == Kind::Value {
            let ours =
                header.schema == self.config.schema_version && header.codec == shared.codec_id();
            if !ours {
                return unreadable();
            }
            let fields = header.fields();
            let context = RecordContext::new(&remote.bytes, &fields, body.raw_tags);
            match shared.decode(body.payload, &context) {
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
            fresh_until: life.fresh_until,
            freshness: life.freshness(now),
            way: Way::Found,
            tags,
        };
        let print = header.print();
        let found = Found {
            answer,
            life,
            of_l1: None,
            print,
        };
        Ok(Reading::Entry(found, header))
    }

    /// L2 cannot be asked, or must not be.
    async fn unreachable(
        self: &Arc<Self>,
        flight: &Flight,
        nesting: &Nesting,
        place: Option<Place>,
    ) -> Landing {
        // Now that it is known, L1 may answer for a while what it could not when the call came.
        let local = self.look(&flight.key, Instant::now());
        let is_fresh = |local: &Local| local.is_for(Read::fresh());
        let has_l1 = !flight.past_l1 && local.as_ref().is_some_and(is_fresh);
        if let Some(local) = local.filter(|_| flight.offered().is_none()) {
            flight.offer(local.found());
        }
        let fresh = |found: Found| found.life.freshness(Instant::now()) == Freshness::Fresh;
        let is_done = match flight.aim {
            Aim::Load => false,
            // There is time, and without L2 everybody would load for himself.
            Aim::Replace(_) => flight.offered().is_some_and(fresh),
            // Whoever waits finds it there. Else every process would load every key that is asked for
            // at the moment when L2 is lost.
            Aim::Any | Aim::Fresh => has_l1,
        };
        if is_done {
            return Landing::nothing();
        }
        if let Some(error) = &flight.spared {
            self.stats.errors_held.add();
            return Landing::error(error.clone());
        }
        self.load_alone(flight, nesting, place, Alone::Unreachable)
            .await
    }

    /// A load that nobody in the fleet knows of: its value enters no L2.
    async fn load_alone(
        self: &Arc<Self>,
        flight: &Flight,
        nesting: &Nesting,
        place: Option<Place>,
        why: Alone,
    ) -> Landing {
        let deadline = self.load_deadline();
        let place = match place {
            Some(place) => Ok(place),
            None => self.place(deadline, flight).await,
        };
        let era = self.marks.era();
        let previous = flight.offered().filter(|found| self.is_of_use(found));
        let loaded = match place {
            Ok(place) => {
                let previous = previous.as_ref();
                let meanwhile = std::future::pending();
                self.load(flight, nesting, place, deadline, previous, meanwhile)
                    .await
            }
            Err(error) => Err(error),
        };
        match loaded {
            Ok((loaded, cost)) => {
                let fwd = Forward::because(flight.aim == Aim::Load, previous.is_some());
                let found = self.found(
                    loaded,
                    era,
                    previous.as_ref(),
                    (cost, fwd),
                    random::number(),
                );
                let bound = match why {
                    Alone::NoTier | Alone::Newer => self.config.l1_bound(),
                    Alone::Unreachable | Alone::WaitedEnough => self.unshared_bound(),
                    Alone::HeldOff => Duration::ZERO,
                };
                match found {
                    (found, true) => Landing::entry(found, Some(bound)),
                    (found, false) => Landing::entry(found, None),
                }
            }
            Err(error) => self.failed(flight, error, flight.failures),
        }
    }

    /// What a failed load comes down with.
    pub(crate) fn failed(&self, flight: &Flight, error: Error<AnyError>, failures: u32) -> Landing {
        match error {
            Error::Overloaded | Error::Closed => Landing::error(error),
            error => {
                let failures = flight.failures.max(failures).saturating_add(1);
                let hold = ttl::backoff(self.config.error_backoff, failures);
                Landing::failure(Failure {
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
        era: Era,
        previous: Option<&Found>,
        (cost, why): (Duration, Forward),
        print: u64,
    ) -> (Found, bool) {
        let at = Instant::now();
        let previous = previous.filter(|_| loaded.unchanged);
        let too_many_tags = loaded.tags.len() > MOST_TAGS;
        if too_many_tags {
            self.stats.encode_failures.add();
        }
        let value = match previous {
            Some(previous) => previous.answer.value.clone(),
            None => loaded.value,
        };
        let tags = match previous {
            Some(previous) => previous.answer.tags.as_ref().map(|tags| tags.renewed(era)),
            None => self.marks.tags(era, loaded.tags.into_iter()),
        };
        let life = match &value {
            _ if !loaded.store || too_many_tags => Duration::ZERO,
            Some(_) => self.config.life(loaded.ttl, self.is_cold(at)),
            None => loaded
                .ttl
                .unwrap_or(self.config.negative_ttl)
                .min(ttl::LONGEST),
        };
        // Without a shared tier nothing is left to ask when L1 has had it for long enough.
        let fresh_for = match self.config.l1_ttl {
            Some(_) if self.shared.is_none() => life.min(self.config.l1_bound()),
            _ => life,
        };
        let fresh_until = ttl::deadline(at, fresh_for);
        let answer = Answer {
            source: Source::Loader,
            age: Duration::ZERO,
            at,
            fresh_until,
            freshness: Freshness::Fresh,
            way: Way::Forwarded { why, stored: false },
            tags,
            value,
        };
        let lingers = answer.value.is_some();
        let found = Found {
            life: Life::new(fresh_until, lingers, cost),
            of_l1: None,
            answer,
            print,
        };
        (found, !life.is_zero())
    }
}
