//! What changes keys on purpose: `invalidate`, `expire`, `insert`, and invalidations as a whole.
//!
//! The order is: database (the caller), L2, then L1. Evicting L1 first would let a reader put L2's
//! old value back. The work is a task of its own: a caller that goes away does not leave it half
//! done. What L2 did not confirm is an error, and goes on the list of [`repairs`](crate::coherence::repairs).

mod listener;
pub(crate) mod write;

use std::sync::{Arc, Weak};
use std::time::Duration;

use tokio::runtime::Handle;
use tokio::sync::Notify;
use tokio::task::JoinSet;
use tokio::time::Instant;

use crate::coherence::repairs::Repair;
use crate::coherence::watermarks::{News, TagWatermark};
use crate::engine::Engine;
use crate::engine::flight::Flight;
use crate::engine::remote::RemoteTier;
use crate::engine::transcode::{EndedLoad, RecordFields};
use crate::entry::ForwardReason;
use crate::erased::{AnyKey, AnyValue};
use crate::error::{RemoteError, RemoteKind};
use crate::health::Event;
use crate::key::HashedKey;
use crate::l1::Meta;
use crate::l2::{Advance, Keys, WatermarkRequest};
use crate::loader::Loaded;
use crate::protocol::message::Operation;
use crate::protocol::record::Watermarks;
use crate::protocol::record::{self, Header, Kind};
use crate::random;
use crate::telemetry::Trace;
use crate::ttl;

/// Keys of one call that are under way at once.
const PIPELINED: usize = 256;

impl Engine {
    pub(crate) async fn invalidate(self: &Arc<Self>, key: AnyKey) -> Result<(), RemoteError> {
        self.owned("invalidate", move |engine| async move {
            engine.invalidate_one(&key).await
        })
        .await
    }

    /// `invalidate`, and the time after which no process can answer the old value.
    pub(crate) async fn invalidate_everywhere(
        self: &Arc<Self>,
        key: AnyKey,
    ) -> Result<(), RemoteError> {
        self.invalidate(key).await?;
        if self.remote.is_some() {
            // One that is cut off answers until its proof has ended, and then what it has for
            // `degraded_l1_ttl`. Clocks of hosts run at rates that differ by far less than this.
            let longest = self.config.channel_lease + self.config.degraded_l1_ttl;
            tokio::time::sleep(longest.mul_f64(1.001)).await;
        }
        Ok(())
    }

    pub(crate) async fn expire(self: &Arc<Self>, key: AnyKey) -> Result<(), RemoteError> {
        self.owned("expire", move |engine| async move {
            engine.expire_one(&key).await
        })
        .await
    }

    pub(crate) async fn invalidate_all(self: &Arc<Self>) -> Result<(), RemoteError> {
        self.owned("invalidate_all", move |engine| async move {
            engine.advance(None).await
        })
        .await
    }

    pub(crate) async fn invalidate_tag(self: &Arc<Self>, tag: u64) -> Result<(), RemoteError> {
        self.owned("invalidate_tag", move |engine| async move {
            engine.advance(Some(tag)).await
        })
        .await
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

    pub(crate) async fn insert_many(
        self: &Arc<Self>,
        entries: Vec<(AnyKey, Loaded<AnyValue>)>,
    ) -> Result<(), RemoteError> {
        self.pipelined("insert_many", entries, |engine, (key, loaded)| async move {
            engine.insert_one(key, loaded).await
        })
        .await
    }

    /// The same work for each, many at a time, whatever becomes of the others. Answers the first error.
    async fn pipelined<T, Fut>(
        self: &Arc<Self>,
        doing: &'static str,
        all: Vec<T>,
        run_repairs: impl Fn(Arc<Self>, T) -> Fut + Send + 'static,
    ) -> Result<(), RemoteError>
    where
        T: Send + 'static,
        Fut: Future<Output = Result<(), RemoteError>> + Send + 'static,
    {
        self.owned(doing, move |engine| async move {
            let (mut under_way, mut first_error) = (JoinSet::new(), None);
            for one in all {
                if under_way.len() >= PIPELINED {
                    keep_first(doing, &mut first_error, under_way.join_next().await);
                }
                under_way.spawn(Trace::here().within(run_repairs(Arc::clone(&engine), one)));
            }
            while let Some(ended) = under_way.join_next().await {
                keep_first(doing, &mut first_error, Some(ended));
            }
            first_error.map_or(Ok(()), Err)
        })
        .await
    }

    pub(crate) async fn insert(
        self: &Arc<Self>,
        key: AnyKey,
        loaded: Loaded<AnyValue>,
    ) -> Result<(), RemoteError> {
        self.owned("insert", move |engine| async move {
            engine.insert_one(key, loaded).await
        })
        .await
    }

    /// Runs work that changes something in a task of its own, to its end.
    async fn owned<Fut>(
        self: &Arc<Self>,
        doing: &'static str,
        run_repairs: impl FnOnce(Arc<Self>) -> Fut,
    ) -> Result<(), RemoteError>
    where
        Fut: Future<Output = Result<(), RemoteError>> + Send + 'static,
    {
        let Some(running) = self.tasks.enter() else {
            return Err(RemoteError::new(RemoteKind::Closed, doing));
        };
        let Ok(runtime) = Handle::try_current() else {
            let cause = "this future must be polled inside a tokio runtime";
            return Err(RemoteError::because(RemoteKind::Unreachable, doing, cause));
        };
        let run_repairs = run_repairs(Arc::clone(self));
        let done = runtime.spawn(Trace::here().within(async move {
            let _running = running;
            run_repairs.await
        }));
        match done.await {
            Ok(result) => result,
            Err(ended) => Err(RemoteError::because(RemoteKind::Unreachable, doing, ended)),
        }
    }

    pub(crate) async fn invalidate_one(self: &Arc<Self>, key: &AnyKey) -> Result<(), RemoteError> {
        self.stats.invalidations.add();
        let last = self.repairs.last();
        let result = self.announce_invalidation(&key.id).await;
        // After the reply, and whatever it was.
        self.settle_key(key, last, result, Repair::Invalidate)
    }

    pub(crate) async fn expire_one(self: &Arc<Self>, key: &AnyKey) -> Result<(), RemoteError> {
        self.stats.expirations.add();
        let last = self.repairs.last();
        let result = self.announce_expiry(&key.id).await;
        self.settle_key(key, last, result, Repair::Expire)
    }

    async fn announce_invalidation(&self, id: &HashedKey) -> Result<(), RemoteError> {
        let Some(remote) = &self.remote else {
            return Ok(());
        };
        let remote_key = remote.key(id);
        let hold_off = if self.config.hold_off.is_zero() {
            None
        } else {
            // The time in it is for people; the server ends it.
            let now_ms = remote.now_ms().unwrap_or_default();
            let record = Header::plain(Kind::HoldOff, random::bytes(), remote_key.hash, now_ms);
            Some((record.to_record(), ttl::millis(self.config.hold_off)))
        };
        let notice = remote.notice(Operation::Invalidate, id);
        self.tier(
            remote
                .tier
                .invalidate(&Keys::of(&remote_key.bytes), hold_off, notice)
                .await,
        )
    }

    async fn announce_expiry(&self, id: &HashedKey) -> Result<(), RemoteError> {
        let Some(remote) = &self.remote else {
            return Ok(());
        };
        let notice = remote.notice(Operation::Expire, id);
        let (keys, state) = (Keys::of(&remote.key(id).bytes), record::expiry());
        self.tier(remote.tier.expire(&keys, state, notice).await)
    }

    /// What a change of a key means here: nothing older is answered or joined from now on, and what
    /// L2 has not confirmed is repeated.
    fn settle_key(
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
            // Before the eviction: nobody reads the old value from L2 in between.
            self.enqueue_repair(repair, None);
        } else {
            self.repairs.settled(&id.encoded, last, expires);
        }
        let keeps = expires && !self.config.windows.if_error.is_zero();
        let detached = self.evict(key, keeps);
        if let (Err(_), Some(flight)) = (&result, detached) {
            flight.revoke();
        }
        result
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
            // Whoever has heard of it first, from a beat for instance, may not be done yet.
            self.drop_everything();
        }
        result
    }

    async fn announce_advance(&self, tag: Option<u64>) -> Result<(), RemoteError> {
        let Some(remote) = &self.remote else {
            self.watermarks.advance(tag);
            return Ok(());
        };
        let notice = match tag {
            Some(tag) => remote.watermark_notice(Operation::InvalidateTag, tag),
            None => remote.watermark_notice(Operation::InvalidateAll, 0),
        };
        let look = WatermarkRequest {
            advance: tag.map_or(Advance::All, Advance::Tag),
            known: self.watermarks.known().unwrap_or_default(),
            tags: Vec::new(),
            notice: Some(notice),
        };
        let asked = self.watermarks.asks();
        let (watermarks, _) = self.tier(remote.tier.marks(&remote.watermarks_key, look).await)?;
        self.watermarks.answered(watermarks, asked);
        self.apply_advance(tag, watermarks);
        Ok(())
    }

    /// Something was invalidated as a whole, here or elsewhere.
    pub(crate) fn apply_advance(&self, tag: Option<u64>, watermarks: Watermarks) {
        if let Some(tag) = tag {
            self.watermarks.learn_tag(tag, watermarks);
        }
        if self.watermarks.learn(watermarks, false) == News::Everything {
            self.drop_everything();
        }
    }

    pub(crate) fn drop_everything(&self) {
        self.fence.hold_off_all(Instant::now());
        self.start_new_epoch();
    }

    pub(crate) async fn insert_one(
        self: &Arc<Self>,
        key: AnyKey,
        loaded: Loaded<AnyValue>,
    ) -> Result<(), RemoteError> {
        if let Some(remote) = &self.remote {
            self.attach(remote).await;
            // A record that carries no era is dead. Where this fails the insert fails, too.
            let _ = self.know_watermarks(remote).await;
        }
        let (baseline, epoch, begun) = (
            self.watermarks.baseline(),
            self.fence.epoch(),
            Instant::now(),
        );
        let (version, tags) = (loaded.version, loaded.tags.clone());
        if loaded.unchanged {
            // The source may have anything now: the old value must not stay.
            self.invalidate_one(&key).await?;
            let cause = "`Loaded::unchanged` is for `Loader::reload`: there is no value in it";
            return Err(RemoteError::because(
                RemoteKind::Unencodable,
                "insert",
                cause,
            ));
        }
        let token = random::bytes();
        let version_id = record::version_id(&token);
        let cost = self.usual_cost();
        let ended = EndedLoad {
            loaded,
            cost,
            baseline,
            why: ForwardReason::Request,
            version_id,
        };
        let (found, kept) = self.entry_from_load(ended, None);
        if !kept {
            // Nothing to keep, so the old value goes.
            return self.invalidate_one(&key).await;
        }
        let (answer, windows) = (&found.answer, &self.config.windows);
        let fresh_for = found
            .lifetime
            .fresh_until
            .saturating_duration_since(answer.at);
        self.stats.inserts.add();
        let last = self.repairs.last();
        let insert = Insert::begin(self, key.id.clone());
        if let Some(remote) = &self.remote {
            let fields = RecordFields {
                token,
                baseline,
                fresh_for,
                cost,
                version,
                tags: &tags,
            };
            let value = answer.value.as_ref();
            let result = match self.insert_record(remote, &insert.id, value, fields) {
                Ok(record) => {
                    let keys = Keys::of(&remote.key(&insert.id).bytes);
                    let notice = remote.notice(Operation::Insert, &insert.id);
                    let ms = ttl::millis(
                        self.config
                            .hard_ttl(fresh_for, found.lifetime.has_stale_windows),
                    );
                    let insert_record = remote.tier.insert(&keys, record, version > 0, ms, notice);
                    self.tier(insert_record.await)
                }
                Err(unencodable) => {
                    // The old value must not stay in its place.
                    self.invalidate_one(&key).await?;
                    return Err(unencodable);
                }
            };
            match result {
                Ok(true) => self.repairs.settled(&insert.id.encoded, last, false),
                Ok(false) => {
                    self.stats.inserts_superseded.add();
                    self.evict(&key, false);
                    return Err(RemoteError::new(RemoteKind::Superseded, "insert"));
                }
                Err(error) => {
                    let failed = Err(error);
                    return self.settle_key(&key, last, failed, Repair::Invalidate);
                }
            }
        }
        let hash = insert.id.hash;
        let mut shard = self.flights.lock(hash);
        // What is stored here is only as good as the order of things: whatever changed the key
        // before the reply came may have been first or last in L2.
        let undisturbed = shard.end_insert(&insert.id);
        shard.detach(hash, &insert.id.encoded);
        if undisturbed {
            let l1_deadline = ttl::deadline(answer.at, self.config.l1_lifetime());
            let meta = Meta {
                begun,
                stored: answer.at,
                age: Duration::ZERO,
                lifetime: found.lifetime,
                no_refresh_before: found
                    .lifetime
                    .no_refresh_before(answer.at, windows)
                    .min(l1_deadline),
                l1_deadline,
                version_id,
                stamp: self.fence.stamp_in(hash, epoch),
            };
            self.l1.store(&key, answer, meta);
        } else {
            self.l1.remove(&key);
        }
        drop(shard);
        Ok(())
    }

    fn insert_record(
        &self,
        remote: &RemoteTier,
        id: &HashedKey,
        value: Option<&AnyValue>,
        fields: RecordFields<'_>,
    ) -> Result<Vec<u8>, RemoteError> {
        let now_ms = remote.now_ms()?;
        self.encode_record(remote, &remote.key(id), value, now_ms, fields)
    }

    /// Puts something on the list of repairs, and sees to it that somebody works at it.
    fn enqueue_repair(self: &Arc<Self>, repair: Repair, held: Option<Arc<TagWatermark>>) {
        let added = self.repairs.add(repair, held);
        self.emit_change(&Event::RepairPending, added.first);
        if added.overflowed {
            self.stats.repairs_overflowed.add();
            self.emit(&Event::RepairsOverflowed);
            self.drop_everything();
        }
        if added.needs_worker {
            let (engine, wake) = (Arc::downgrade(self), Arc::clone(&self.repairs.wake));
            tokio::spawn(run_repairs(engine, wake));
        }
    }

    /// One attempt at one repair.
    async fn repair(&self, repair: &Repair) -> Result<(), RemoteError> {
        match repair {
            Repair::Invalidate(id) => self.announce_invalidation(id).await,
            Repair::Expire(id) => self.announce_expiry(id).await,
            Repair::Tag(tag) => self.announce_advance(Some(*tag)).await,
            Repair::All => self.announce_advance(None).await,
        }
    }

    /// Before the process may end: what can still be repaired.
    pub(crate) async fn last_repairs(&self) {
        while let Some((ticket, repair)) = self.repairs.first() {
            if self.repair(&repair).await.is_err() {
                self.repairs.leave();
                return;
            }
            self.stats.repairs.add();
            self.repairs.done(ticket);
        }
    }

    /// From now on nothing older is answered or joined here. `keeps`: but the entry stays, for the
    /// case that a load fails.
    fn evict(&self, key: &AnyKey, keeps: bool) -> Option<Arc<Flight>> {
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

/// An insert that is under way; taken out of the table when it is over, however that is.
struct Insert<'a> {
    engine: &'a Engine,
    id: Arc<HashedKey>,
}

impl<'a> Insert<'a> {
    fn begin(engine: &'a Engine, id: HashedKey) -> Self {
        let id = Arc::new(id);
        engine.flights.lock(id.hash).begin_insert(&id);
        Self { engine, id }
    }
}

impl Drop for Insert<'_> {
    fn drop(&mut self) {
        self.engine.flights.lock(self.id.hash).end_insert(&self.id);
    }
}

/// How long to wait after a repair that failed: at first, and at most.
const FIRST_PAUSE: Duration = Duration::from_millis(100);
const LONGEST_PAUSE: Duration = Duration::from_secs(5);

/// Works at the list of repairs until it is empty, one after the other.
async fn run_repairs(engine: Weak<Engine>, wake: Arc<Notify>) {
    let mut pause = FIRST_PAUSE;
    loop {
        {
            let Some(engine) = engine.upgrade() else {
                return;
            };
            if engine.is_closed() {
                return engine.repairs.leave();
            }
            let Some((ticket, repair)) = engine.repairs.first() else {
                return;
            };
            if engine.repair(&repair).await.is_ok() {
                engine.stats.repairs.add();
                engine.repairs.done(ticket);
                pause = FIRST_PAUSE;
                continue;
            }
        }
        // A fleet that lost its server does not come back to it as one.
        let jittered = random::duration(pause.mul_f64(0.75), pause.mul_f64(1.25));
        let _ = tokio::time::timeout(jittered, wake.notified()).await;
        pause = (pause * 2).min(LONGEST_PAUSE);
    }
}

fn keep_first(
    doing: &'static str,
    first: &mut Option<RemoteError>,
    ended: Option<Result<Result<(), RemoteError>, tokio::task::JoinError>>,
) {
    let error = match ended {
        Some(Ok(Err(error))) => error,
        Some(Err(ended)) => RemoteError::because(RemoteKind::Unreachable, doing, ended),
        Some(Ok(Ok(()))) | None => return,
    };
    first.get_or_insert(error);
}
