//! Inserts: the calls that give keys new values, in both tiers.
//!
//! | the insert | L2 | L1 |
//! |---|---|---|
//! | is confirmed | has the record | has the entry, unless another change of the key came in between |
//! | has a lower version than the record in L2 | keeps its record | loses the entry |
//! | is not confirmed | is repaired with an invalidation | loses the entry |
//! | has no value, or none that may be kept | the key is invalidated | the key is invalidated |

use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use crate::coherence::repairs::Repair;
use crate::engine::Engine;
use crate::engine::flight::FoundEntry;
use crate::engine::remote::RemoteTier;
use crate::engine::transcode::{EndedLoad, RecordFields};
use crate::entry::ForwardReason;
use crate::erased::{AnyKey, AnyValue};
use crate::error::{RemoteError, RemoteKind};
use crate::key::HashedKey;
use crate::l1::Meta;
use crate::l2::Keys;
use crate::loader::Loaded;
use crate::protocol::message::Operation;
use crate::protocol::record;
use crate::random;
use crate::ttl;

/// An insert that is under way. Dropped, it is taken out of the flight table.
struct InsertGuard<'a> {
    engine: &'a Engine,
    id: Arc<HashedKey>,
}

impl<'a> InsertGuard<'a> {
    fn begin(engine: &'a Engine, id: HashedKey) -> Self {
        let id = Arc::new(id);
        engine.flights.lock(id.hash).begin_insert(&id);
        Self { engine, id }
    }
}

impl Drop for InsertGuard<'_> {
    fn drop(&mut self) {
        self.engine.flights.lock(self.id.hash).end_insert(&self.id);
    }
}

impl Engine {
    pub(crate) async fn insert(
        self: &Arc<Self>,
        key: AnyKey,
        loaded: Loaded<AnyValue>,
    ) -> Result<(), RemoteError> {
        self.run_to_end("insert", move |engine| async move {
            engine.insert_one(key, loaded).await
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

    pub(super) async fn insert_one(
        self: &Arc<Self>,
        key: AnyKey,
        loaded: Loaded<AnyValue>,
    ) -> Result<(), RemoteError> {
        if let Some(remote) = &self.remote {
            self.attach(remote).await;
            // A record without an incarnation is dead. Where this fails, the insert fails as well.
            let _ = self.know_watermarks(remote).await;
        }
        let (baseline, epoch) = (self.watermarks.baseline(), self.fence.epoch());
        let begun = Instant::now();
        let (version, tags) = (loaded.version, loaded.tags.clone());
        if loaded.unchanged {
            return self.refuse_unchanged(&key).await;
        }
        let (token, cost) = (random::bytes(), self.usual_cost());
        let version_id = record::version_id(&token);
        let ended = EndedLoad {
            loaded,
            cost,
            baseline,
            why: ForwardReason::Request,
            version_id,
        };
        let (found, kept) = self.entry_from_load(ended, None);
        if !kept {
            // No value is kept, so the old one must not stay.
            return self.invalidate_one(&key).await;
        }
        self.stats.inserts.add();
        let last = self.repairs.last_ticket();
        let insert = InsertGuard::begin(self, key.id.clone());
        if let Some(remote) = &self.remote {
            let (answer, lifetime) = (&found.answer, &found.lifetime);
            let fields = RecordFields {
                token,
                baseline,
                fresh_for: lifetime.fresh_until.saturating_duration_since(answer.at),
                cost,
                version,
                tags: &tags,
            };
            self.insert_in_l2(remote, &key, &found, fields, last)
                .await?;
        }
        self.insert_in_l1(&key, &insert, &found, (begun, epoch));
        Ok(())
    }

    /// `Loaded::unchanged` has no value. The source may have changed, so the old value must not
    /// stay.
    async fn refuse_unchanged(self: &Arc<Self>, key: &AnyKey) -> Result<(), RemoteError> {
        self.invalidate_one(key).await?;
        let cause = "`Loaded::unchanged` is for `Loader::reload`: there is no value in it";
        let kind = RemoteKind::Unencodable;
        Err(RemoteError::because(kind, "insert", cause))
    }

    /// Writes the record. Where this fails, the old value does not stay in this process either.
    /// `last`: the repairs up to this ticket are done when L2 confirms the insert.
    async fn insert_in_l2(
        self: &Arc<Self>,
        remote: &RemoteTier,
        key: &AnyKey,
        found: &FoundEntry,
        fields: RecordFields<'_>,
        last: u64,
    ) -> Result<(), RemoteError> {
        let id = &key.id;
        let record = match self.insert_record(remote, id, found, fields) {
            Ok(record) => record,
            Err(unencodable) => {
                self.invalidate_one(key).await?;
                return Err(unencodable);
            }
        };
        let keys = Keys::of(&remote.key(id).bytes);
        let publication = remote.notice(Operation::Insert, id);
        let has_stale_windows = found.lifetime.has_stale_windows;
        let ttl_ms = ttl::millis(self.config.hard_ttl(fields.fresh_for, has_stale_windows));
        let versioned = fields.version > 0;
        let inserted = remote
            .tier
            .insert(&keys, record, versioned, ttl_ms, publication);
        match self.tier(inserted.await) {
            Ok(true) => {
                self.repairs.settle(&id.encoded, last, false);
                Ok(())
            }
            Ok(false) => {
                self.stats.inserts_superseded.add();
                self.evict(key, false);
                Err(RemoteError::new(RemoteKind::Superseded, "insert"))
            }
            Err(error) => self.settle_key(key, last, Err(error), Repair::Invalidate),
        }
    }

    fn insert_record(
        &self,
        remote: &RemoteTier,
        id: &HashedKey,
        found: &FoundEntry,
        fields: RecordFields<'_>,
    ) -> Result<Vec<u8>, RemoteError> {
        let now_ms = remote.now_ms()?;
        let value = found.answer.value.as_ref();
        self.encode_record(remote, &remote.key(id), value, now_ms, fields)
    }

    /// Stores the entry, unless another change of the key came in between. `since`: when the insert
    /// began, as a time and an epoch.
    fn insert_in_l1(
        &self,
        key: &AnyKey,
        insert: &InsertGuard<'_>,
        found: &FoundEntry,
        (begun, epoch): (Instant, u32),
    ) {
        let (answer, lifetime, hash) = (&found.answer, found.lifetime, insert.id.hash);
        let mut shard = self.flights.lock(hash);
        // L1 must hold what L2 holds. Of the insert and another change that came before the reply,
        // this process does not know which one L2 has carried out last.
        let undisturbed = shard.end_insert(&insert.id);
        shard.detach(hash, &insert.id.encoded);
        if undisturbed {
            let l1_deadline = ttl::deadline(answer.at, self.config.l1_lifetime());
            let no_refresh_before = lifetime.no_refresh_before(answer.at, &self.config.windows);
            let meta = Meta {
                begun,
                stored: answer.at,
                age: Duration::ZERO,
                lifetime,
                no_refresh_before: no_refresh_before.min(l1_deadline),
                l1_deadline,
                version_id: found.version_id,
                stamp: self.fence.stamp_in(hash, epoch),
            };
            self.l1.store(key, answer, meta);
        } else {
            self.l1.remove(key);
        }
    }
}
