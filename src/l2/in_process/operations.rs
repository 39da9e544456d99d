//! The operations of the protocol on the embedded tier, as the scripts carry them out on a server.

use std::sync::{Arc, Weak};
use std::time::Duration;

use bytes::Bytes;
use tokio::time::Instant;

use super::store::Store;
use super::tier::InProcess;
use crate::error::RemoteError;
use crate::l2::listener::Listener;
use crate::l2::operations::TierOperations;
use crate::protocol::record::Watermarks;
use crate::protocol::record::{self, Expiry, HEAD, HEAD_AND_STATE, HEADER, Head};
use crate::protocol::request::{
    Acquired, Advance, Keys, Publication, RecordRead, RefreshWrite, Replacing, WatermarkRequest,
    with_watermarks,
};
use crate::ttl;

impl TierOperations for InProcess {
    fn prefix(&self) -> &'static str {
        "tidegate"
    }

    fn is_direct(&self) -> bool {
        self.has_no_connection()
    }

    fn denied(&self) -> Option<Arc<str>> {
        None
    }

    fn timeout(&self) -> Duration {
        Duration::from_millis(100)
    }

    fn now_ms(&self) -> Option<u64> {
        let since = self.shared.started.elapsed();
        let now = self
            .shared
            .started_ms
            .saturating_add(u64::try_from(since.as_millis()).unwrap_or(u64::MAX));
        #[cfg(feature = "testing")]
        let now = match &self.shared.faults {
            Some(faults) => faults.shifted_clock(now),
            None => now,
        };
        Some(now)
    }

    fn listen(&self, channel: &Bytes, listener: Weak<dyn Listener>) {
        #[cfg(all(test, feature = "bincode"))]
        if self.shared.hooks.add_wire(channel, &listener) {
            return;
        }
        let strong = listener.upgrade();
        self.shared
            .listeners
            .lock()
            .entry(channel.clone())
            .or_default()
            .push(listener);
        let Some(listener) = strong else { return };
        #[cfg(feature = "testing")]
        if let Some(faults) = &self.shared.faults {
            if !faults.channel_stands() {
                return faults.refuse_listener(&*listener);
            }
        }
        listener.on_up();
    }

    fn unlisten(&self, channel: &Bytes) {
        let mut listeners = self.shared.listeners.lock();
        if let Some(here) = listeners.get_mut(channel) {
            here.retain(|listener| listener.strong_count() > 0);
            if here.is_empty() {
                listeners.remove(channel);
            }
        }
    }

    async fn get(&self, key: &Bytes) -> Result<Option<Bytes>, RemoteError> {
        self.run("get", |store, now| {
            store.get(key, now).map(|stored| stored.bytes.clone())
        })
        .await
    }

    async fn get_many(&self, keys: &[Bytes]) -> (Vec<RecordRead>, Result<(), RemoteError>) {
        let read = self.run("get_many", |store, now| {
            let get = |key: &Bytes| store.get(key, now).map(|stored| stored.bytes.clone());
            keys.iter().map(get).collect::<Vec<_>>()
        });
        match read.await {
            Ok(records) => (records.into_iter().map(Ok).collect(), Ok(())),
            Err(error) => (vec![Err(()); keys.len()], Err(error)),
        }
    }

    async fn acquire(
        &self,
        keys: &Keys,
        lease: Vec<u8>,
        ttl_ms: u64,
        over: Replacing<'_>,
        known: Watermarks,
    ) -> Result<Acquired, RemoteError> {
        let refresh = matches!(over, Replacing::Entry(_));
        self.run("acquire", |store, now| {
            if let Some(left) = store.held_by_another(&keys.record, known, now) {
                return Acquired::Held(left);
            }
            match store.get(&keys.record, now) {
                Some(stored) if record::is_lease(&stored.bytes) && !refresh => {}
                Some(stored) => {
                    let replaced = match over {
                        Replacing::Nothing => false,
                        Replacing::Useless(seen) | Replacing::Entry(seen) => {
                            stored.bytes.starts_with(seen)
                        }
                    };
                    if !replaced {
                        return Acquired::Record(Some(stored.bytes.clone()));
                    }
                }
                None if refresh => return Acquired::Record(None),
                None => {}
            }
            let mut failures = 0;
            // A refresh of a dead record does not hold up this load.
            let respects_claim = !matches!(over, Replacing::Useless(_));
            if let Some(left) = store
                .held_by_another(&keys.claim, known, now)
                .filter(|_| respects_claim)
            {
                return Acquired::Held(left);
            }
            if let Some(claim) = store.get(&keys.claim, now).filter(|_| respects_claim) {
                if let Some((hold_ms, failed)) = record::failed(&claim.bytes) {
                    let left = ttl::millis(claim.expires_at - now).saturating_sub(hold_ms);
                    if left > 0 {
                        return Acquired::Failed(left);
                    }
                    failures = failed;
                }
            }
            if refresh {
                store.set(&keys.claim, lease, ttl_ms, now);
                store.extend_ttl(&keys.record, ttl_ms, now);
            } else {
                store.set(&keys.record, lease, ttl_ms, now);
            }
            Acquired::Granted(failures)
        })
        .await
    }

    async fn refill(
        &self,
        keys: &Keys,
        seen: &[u8],
        head: Head,
        refill: RefreshWrite,
        ttl_ms: u64,
        wake: Publication,
    ) -> Result<bool, RemoteError> {
        self.run("refill", |store, now| {
            let mut waited_for = false;
            if let Some(claim) = store.with_head(&keys.claim, head, now) {
                waited_for = claim.waited_for();
                store.records.remove(&keys.claim);
            }
            let found = store.get(&keys.record, now);
            let unchanged = found.filter(|stored| stored.bytes.starts_with(seen));
            let mut stored = false;
            if let Some(old) = unchanged {
                stored = true;
                match refill {
                    RefreshWrite::Record(record) => store.set(&keys.record, record, ttl_ms, now),
                    RefreshWrite::Header(header) => {
                        let renewed = [&header[..], &old.bytes[HEADER..]].concat();
                        store.set(&keys.record, renewed, ttl_ms, now);
                    }
                    RefreshWrite::Nothing => drop(store.records.remove(&keys.record)),
                }
            }
            if waited_for {
                self.publish(wake);
            }
            stored
        })
        .await
    }

    async fn replace(
        &self,
        key: &Bytes,
        head: Head,
        record: Vec<u8>,
        ttl_ms: u64,
        wake: Publication,
    ) -> Result<bool, RemoteError> {
        self.finish("replace", key, head, wake, |store, now| {
            store.set(key, record, ttl_ms, now)
        })
        .await
    }

    async fn renew(
        &self,
        key: &Bytes,
        refreshed: Option<&Bytes>,
        head: Head,
        ttl_ms: u64,
    ) -> Result<bool, RemoteError> {
        self.run("renew", |store, now| {
            let Some(stored) = store.with_head(key, head, now) else {
                return false;
            };
            stored.expires_at = ttl::deadline(now, Duration::from_millis(ttl_ms));
            if let Some(refreshed) = refreshed {
                store.extend_ttl(refreshed, ttl_ms, now);
            }
            true
        })
        .await
    }

    async fn release(
        &self,
        key: &Bytes,
        head: Head,
        wake: Publication,
    ) -> Result<bool, RemoteError> {
        self.finish("release", key, head, wake, |store, _| {
            store.records.remove(key);
        })
        .await
    }

    async fn invalidate(
        &self,
        keys: &Keys,
        hold_off: Option<(Vec<u8>, u64)>,
        publication: Publication,
    ) -> Result<(), RemoteError> {
        self.run("invalidate", |store, now| {
            store.records.remove(&keys.record);
            store.records.remove(&keys.claim);
            if let Some((record, ttl_ms)) = hold_off {
                store.set(&keys.record, record, ttl_ms, now);
            }
            self.publish(publication);
        })
        .await
    }

    async fn expire(
        &self,
        keys: &Keys,
        state: Expiry,
        publication: Publication,
    ) -> Result<(), RemoteError> {
        self.run("expire", |store, now| {
            store.records.remove(&keys.claim);
            match store.get(&keys.record, now) {
                Some(stored) if record::is_entry(&stored.bytes) => {
                    let mut expired = stored.bytes.to_vec();
                    expired[HEAD..HEAD_AND_STATE].copy_from_slice(&state);
                    stored.bytes = expired.into();
                }
                Some(stored) if record::is_hold_off(&stored.bytes) => {}
                _ => {
                    store.records.remove(&keys.record);
                }
            }
            self.publish(publication);
        })
        .await
    }

    async fn insert(
        &self,
        keys: &Keys,
        record: Vec<u8>,
        versioned: bool,
        ttl_ms: u64,
        publication: Publication,
    ) -> Result<bool, RemoteError> {
        self.run("insert", |store, now| {
            let superseded = versioned
                && store.get(&keys.record, now).is_some_and(|stored| {
                    record::is_entry(&stored.bytes)
                        && record::version(&stored.bytes) > record::version(&record)
                });
            if !superseded {
                store.set(&keys.record, record, ttl_ms, now);
                store.records.remove(&keys.claim);
                self.publish(publication);
            }
            !superseded
        })
        .await
    }

    async fn marks(
        &self,
        key: &Bytes,
        mut look: WatermarkRequest,
    ) -> Result<(Watermarks, u64), RemoteError> {
        let operation = match look.advance {
            Advance::Nothing => "marks",
            Advance::All | Advance::Tag(_) => "raise",
        };
        self.run(operation, |store, _| {
            let publication = look.publication.take();
            let (watermarks, latest) = store.update_marks(key, &look);
            if let Some(publication) = publication {
                self.publish(with_watermarks_added(publication, watermarks));
            }
            (watermarks, latest)
        })
        .await
    }

    /// Is not counted among the commands: within one process no message is lost.
    async fn beat(
        &self,
        key: &Bytes,
        known: Watermarks,
        message: Vec<u8>,
    ) -> Result<(), RemoteError> {
        let look = WatermarkRequest {
            advance: Advance::Nothing,
            known,
            tags: Vec::new(),
            publication: None,
        };
        self.run_uncounted("beat", |store, _| {
            let (watermarks, _) = store.update_marks(key, &look);
            let publication = Publication {
                channel: Bytes::new(),
                message: message.into(),
            };
            self.publish(with_watermarks_added(publication, watermarks));
        })
        .await
    }

    fn renew_bus(&self) {}
}

impl InProcess {
    /// Replaces or drops the record with this head, if the key still holds it, and wakes the
    /// waiters of the lease that it was.
    async fn finish(
        &self,
        operation: &'static str,
        key: &Bytes,
        head: Head,
        wake: Publication,
        how: impl FnOnce(&mut Store, Instant),
    ) -> Result<bool, RemoteError> {
        self.run(operation, |store, now| {
            let Some(stored) = store.with_head(key, head, now) else {
                return false;
            };
            let waited_for = stored.waited_for();
            how(store, now);
            if waited_for {
                self.publish(wake);
            }
            true
        })
        .await
    }
}

/// Adds the marks to a message about them, as the script does on a server.
fn with_watermarks_added(publication: Publication, watermarks: Watermarks) -> Publication {
    Publication {
        channel: publication.channel,
        message: with_watermarks(publication.message.to_vec(), watermarks).into(),
    }
}
