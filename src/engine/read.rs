//! The read path behind L1, from top to bottom: one flight's task.
//!
//! ```text
//! GET ── a fresh value or absence ──────────────────────────────► hit
//!  │     a failed load elsewhere ───────────────────────────────► LoadFailedElsewhere
//!  │     a newer version's record ─► load, L1 only
//!  │     (no answer from L2) ──────► load, L1 for degraded_l1_ttl
//!  ▼
//! acquire ── granted ──► load ──► fill, compared with the lease ─► loaded
//!  │    ▲
//!  │    └── a record after all ─► read it
//!  ▼
//! held by another ──► wait for its wake-up or the lease's end ──► GET, or acquire
//!                     lease_wait over ─► load, L1 for degraded_l1_ttl
//! ```

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tokio::time::Instant;

use super::Engine;
use super::flight::{Flight, Outcome};
use super::lease::{Lease, Waited};
use super::load::{Nesting, Place};
use super::marks::{News, Verdict};
use super::shared::{RemoteKey, Shared};
use super::tasks::Running;
use crate::codec::envelope::{Era, Header, Kind, MOST_TAGS, Malformed, STATED};
use crate::entry::Source;
use crate::error::{Error, RemoteError};
use crate::key::CacheKey;
use crate::l1::{Answer, Meta};
use crate::l2::{Acquired, Look, Raise};
use crate::loader::Loaded;
use crate::ttl;

/// What a flight comes down with.
pub(crate) struct Landing<V, E> {
    pub(crate) outcome: Result<Answer<V>, Error<E>>,
    pub(crate) keep: Keep,
}

/// What is kept of it in this process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Keep {
    Nothing,
    /// The answer, in L1, for this long from when it was read.
    Answer(Duration),
    /// The error, for `error_backoff`.
    Error,
}

impl<V, E> Landing<V, E> {
    pub(crate) fn answer(answer: Answer<V>, life: Option<Duration>) -> Self {
        let keep = life
            .filter(|life| !life.is_zero())
            .map_or(Keep::Nothing, Keep::Answer);
        Self {
            outcome: Ok(answer),
            keep,
        }
    }

    pub(crate) fn error(error: Error<E>) -> Self {
        let keep = match error {
            Error::Load(_) | Error::LoadPanicked | Error::LoadTimedOut(_) => Keep::Error,
            _ => Keep::Nothing,
        };
        Self {
            outcome: Err(error),
            keep,
        }
    }
}

/// What a record of L2 says.
enum Reading<V> {
    /// An answer that is fresh for so long.
    Hit(Answer<V>, Duration),
    /// Somebody loads it.
    Leased,
    /// Somebody failed to load it a moment ago.
    Failed,
    /// A newer version's record: to be left alone.
    Newer,
    /// It was invalidated a moment ago, and nothing is to be stored yet.
    HeldOff,
    /// Expired, dead or unreadable: to be replaced.
    Replace,
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

/// The task of a flight.
pub(crate) async fn fly<K, V, E>(
    engine: Arc<Engine<K, V, E>>,
    flight: Arc<Flight<V, E>>,
    key: K,
    nesting: Nesting,
    running: Running,
) where
    K: CacheKey,
    V: Send + Sync + 'static,
    E: Send + Sync + 'static,
{
    let claim = Claim {
        engine: &engine,
        flight: &flight,
    };
    let landing = engine.resolve(&key, &flight, &nesting).await;
    claim.land(key, landing);
    drop(running);
}

/// A flight that has not landed yet. Dropped with its task, it leaves nothing behind and lets its
/// waiters go on.
struct Claim<'a, K, V, E> {
    engine: &'a Engine<K, V, E>,
    flight: &'a Arc<Flight<V, E>>,
}

impl<K, V, E> Claim<'_, K, V, E>
where
    K: CacheKey,
    V: Send + Sync + 'static,
    E: Send + Sync + 'static,
{
    fn land(self, key: K, landing: Landing<V, E>) {
        let (engine, flight) = (self.engine, self.flight);
        let now = Instant::now();
        let hash = flight.id.hash;
        {
            let mut shard = engine.flights.lock(hash);
            // The fence: a flight that was detached stores nothing, in one critical section with
            // whatever detaches.
            if shard.is_current(flight) {
                match (&landing.outcome, landing.keep) {
                    (Ok(answer), Keep::Answer(life)) if !engine.fence.is_held_off(hash, now) => {
                        let epoch = flight.epoch().unwrap_or_default();
                        let meta = Meta {
                            begun: flight.begun,
                            stored: answer.at,
                            age: answer.age,
                            deadline: ttl::deadline(answer.at, life),
                            stamp: engine.fence.stamp_in(hash, epoch),
                        };
                        engine.l1.store(key, answer, meta);
                    }
                    (Err(error), Keep::Error) if !engine.config.error_backoff.is_zero() => {
                        let until = ttl::deadline(now, engine.config.error_backoff);
                        shard.hold(&flight.id, error.clone(), until, now);
                    }
                    _ => {}
                }
            }
            shard.remove(flight);
        }
        flight.land(Outcome::Landed(landing.outcome));
    }
}

impl<K, V, E> Drop for Claim<'_, K, V, E> {
    fn drop(&mut self) {
        self.engine
            .flights
            .lock(self.flight.id.hash)
            .remove(self.flight);
        self.flight.land(if std::thread::panicking() {
            Outcome::Landed(Err(Error::LoadPanicked))
        } else {
            Outcome::Abandoned
        });
    }
}

impl<K, V, E> Engine<K, V, E>
where
    K: CacheKey,
    V: Send + Sync + 'static,
    E: Send + Sync + 'static,
{
    async fn resolve(
        self: &Arc<Self>,
        key: &K,
        flight: &Arc<Flight<V, E>>,
        nesting: &Nesting,
    ) -> Landing<V, E> {
        let Some(shared) = &self.shared else {
            flight.register(self.fence.epoch());
            return self
                .load_alone(key, flight, nesting, None, Alone::NoTier)
                .await;
        };
        self.attach(shared).await;
        let known = self.know_marks(shared).await;
        // Before the read is sent, so that whatever is missed from now on ends this flight.
        flight.register(self.fence.epoch());
        if known.is_err() || self.repairs.block(&flight.id.encoded) {
            return self
                .load_alone(key, flight, nesting, None, Alone::Unreachable)
                .await;
        }
        let remote = shared.key(&flight.id);

        let mut waited = Waited::default();
        let Ok(mut record) = self.tier(shared.tier.get(&remote.bytes).await) else {
            return self
                .load_alone(key, flight, nesting, None, Alone::Unreachable)
                .await;
        };
        loop {
            let mut replacing = None;
            if let Some(bytes) = record.take() {
                match self.interpret(shared, &remote, &bytes).await {
                    Ok(Reading::Hit(answer, fresh_for)) => {
                        return Landing::answer(answer, Some(self.config.l1_life(fresh_for)));
                    }
                    Ok(Reading::Failed) => return Landing::error(Error::LoadFailedElsewhere),
                    Ok(Reading::Newer) => {
                        return self
                            .load_alone(key, flight, nesting, None, Alone::Newer)
                            .await;
                    }
                    Ok(Reading::HeldOff) => {
                        return self
                            .load_alone(key, flight, nesting, None, Alone::HeldOff)
                            .await;
                    }
                    Ok(Reading::Leased) => {}
                    Ok(Reading::Replace) => {
                        replacing = Some(bytes.slice(..bytes.len().min(STATED)));
                    }
                    Err(_) => {
                        return self
                            .load_alone(key, flight, nesting, None, Alone::Unreachable)
                            .await;
                    }
                }
            }
            // A place first, the lease then: who waits for a place holds nobody up.
            let deadline = self.load_deadline();
            let place = match self.place(deadline).await {
                Ok(place) => place,
                Err(error) => return Landing::error(error),
            };
            // Hear of wake-ups before the attempt that asks for them.
            self.flights.lock(flight.id.hash).listen(flight);
            // And know what is invalidated as a whole before the load begins.
            let lease = Lease::new(shared, &remote, self.marks.era());
            let Ok(lease_record) = lease.record() else {
                return self
                    .load_alone(key, flight, nesting, Some(place), Alone::Unreachable)
                    .await;
            };
            let ttl_ms = ttl::millis(self.config.lease_ttl);
            let known = self.marks.known().unwrap_or_default();
            let acquired = shared.tier.acquire(
                &remote.bytes,
                lease_record,
                ttl_ms,
                replacing.as_deref(),
                known,
            );
            match self.tier(acquired.await) {
                Ok(Acquired::Granted) => {
                    return self
                        .regenerate(shared, key, flight, nesting, place, deadline, &lease)
                        .await;
                }
                Ok(Acquired::Record(bytes)) => record = Some(bytes),
                Ok(Acquired::Held(remaining_ms)) => {
                    drop(place);
                    if waited.count() {
                        self.stats.lease_waits.add();
                    }
                    let remaining = Duration::from_millis(remaining_ms);
                    if !waited.wait(flight, remaining, self.config.lease_wait).await {
                        self.stats.lease_wait_exceeded.add();
                        return self
                            .load_alone(key, flight, nesting, None, Alone::WaitedEnough)
                            .await;
                    }
                    if waited.woken() {
                        // Most likely the value is there: the cheapest command will do.
                        match self.tier(shared.tier.get(&remote.bytes).await) {
                            Ok(found) => record = found,
                            Err(_) => {
                                return self
                                    .load_alone(key, flight, nesting, None, Alone::Unreachable)
                                    .await;
                            }
                        }
                    }
                }
                Err(error) => {
                    let landing = self
                        .load_alone(key, flight, nesting, Some(place), Alone::Unreachable)
                        .await;
                    if error.is_timeout() {
                        // It may have been granted after all, too late to fill against.
                        self.release_later(&remote, &flight.id, lease);
                    }
                    return landing;
                }
            }
        }
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
    pub(crate) async fn know_marks(&self, shared: &Shared<V>) -> Result<(), RemoteError> {
        if self.marks.known().is_some() && shared.link.is_proven(Instant::now()) {
            return Ok(());
        }
        self.look_at_marks(shared, Vec::new()).await.map(drop)
    }

    /// Asks L2 for the marks. Answers the latest one that concerns the tags.
    async fn look_at_marks(&self, shared: &Shared<V>, tags: Vec<u64>) -> Result<u64, RemoteError> {
        let look = Look {
            raise: Raise::Nothing,
            known: self.marks.known().unwrap_or_default(),
            tags,
            notice: None,
        };
        let (marked, latest) = self.tier(shared.tier.marks(&shared.marks, look).await)?;
        if self.marks.learn(marked, false) == News::Everything {
            self.forget();
        }
        Ok(latest)
    }

    /// Whether a record that begins in `era` is alive, with its tags if it has some.
    async fn judge(
        &self,
        shared: &Shared<V>,
        era: Era,
        tags: &[u64],
    ) -> Result<Verdict, RemoteError> {
        let judge = || {
            let proven = shared.link.is_proven(Instant::now());
            self.marks.judge(era, tags.iter().copied(), proven)
        };
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
        shared: &Shared<V>,
        remote: &RemoteKey,
        record: &Bytes,
    ) -> Result<Reading<V>, RemoteError> {
        let unreadable = || {
            self.stats.decode_failures.add();
            Ok(Reading::Replace)
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
        let Verdict::Alive(tags) = self.judge(shared, header.era, &tags).await? else {
            return Ok(Reading::Replace);
        };
        if header.kind == Kind::Failed {
            return Ok(Reading::Failed);
        }
        if header.expired {
            return Ok(Reading::Replace);
        }
        let age_ms = shared.now_ms()?.saturating_sub(header.created_ms);
        let fresh_ms = header.fresh_ms.saturating_sub(age_ms);
        if fresh_ms == 0 {
            return Ok(Reading::Replace);
        }
        let value = if header.kind == Kind::Value {
            let ours =
                header.schema == self.config.schema_version && header.codec == shared.codec_id();
            if !ours {
                return unreadable();
            }
            match shared.decode(body.payload) {
                Ok(value) => Some(Arc::new(value)),
                Err(_) => return unreadable(),
            }
        } else {
            None
        };
        let age = Duration::from_millis(age_ms);
        let answer = Answer {
            value,
            source: Source::L2,
            age,
            at: Instant::now(),
            tags,
        };
        Ok(Reading::Hit(answer, Duration::from_millis(fresh_ms)))
    }

    /// A load that nobody in the fleet knows of: its value enters no L2.
    async fn load_alone(
        self: &Arc<Self>,
        key: &K,
        flight: &Flight<V, E>,
        nesting: &Nesting,
        place: Option<Place>,
        why: Alone,
    ) -> Landing<V, E> {
        let deadline = self.load_deadline();
        let place = match place {
            Some(place) => Ok(place),
            None => self.place(deadline).await,
        };
        let era = self.marks.era();
        let loaded = match place {
            Ok(place) => {
                self.load(
                    key,
                    flight,
                    nesting,
                    place,
                    deadline,
                    std::future::pending(),
                )
                .await
            }
            Err(error) => Err(error),
        };
        match loaded {
            Ok((loaded, _)) => {
                let (answer, life) = self.answer(loaded, era);
                let life = life.map(|life| match why {
                    Alone::NoTier | Alone::Newer => self.config.l1_life(life),
                    Alone::Unreachable | Alone::WaitedEnough => self.unshared_life(life),
                    Alone::HeldOff => Duration::ZERO,
                });
                Landing::answer(answer, life)
            }
            Err(error) => Landing::error(error),
        }
    }

    /// What a loader found, as an answer, and how long it may be kept. `era`: what was known before
    /// it began.
    pub(crate) fn answer(&self, loaded: Loaded<V>, era: Era) -> (Answer<V>, Option<Duration>) {
        let at = Instant::now();
        let too_many_tags = loaded.tags.len() > MOST_TAGS;
        if too_many_tags {
            self.stats.encode_failures.add();
        }
        let life = match &loaded.value {
            _ if !loaded.store || too_many_tags => Duration::ZERO,
            Some(_) => self.config.life(loaded.ttl, self.is_cold(at)),
            None => loaded
                .ttl
                .unwrap_or(self.config.negative_ttl)
                .min(ttl::LONGEST),
        };
        let value = loaded.value.map(Arc::new);
        let answer = Answer {
            value,
            source: Source::Loader,
            age: Duration::ZERO,
            at,
            tags: self.marks.tags(era, loaded.tags.into_iter()),
        };
        (answer, (!life.is_zero()).then_some(life))
    }
}
