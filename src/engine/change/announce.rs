//! Announcements: how L2 and the other processes learn of a change, and what this process drops
//! when everything was invalidated.

use tokio::time::Instant;

use crate::coherence::watermarks::Learned;
use crate::engine::Engine;
use crate::error::RemoteError;
use crate::key::HashedKey;
use crate::l2::{Advance, Keys, WatermarkRequest};
use crate::protocol::message::Operation;
use crate::protocol::record::{self, Header, Kind, Watermarks};
use crate::random;
use crate::ttl;

impl Engine {
    pub(super) async fn announce_invalidation(&self, id: &HashedKey) -> Result<(), RemoteError> {
        let Some(remote) = &self.remote else {
            return Ok(());
        };
        let remote_key = remote.key(id);
        let hold_off = if self.config.hold_off.is_zero() {
            None
        } else {
            // The time in the record is for people who look at it. The server ends the hold-off.
            let now_ms = remote.now_ms().unwrap_or_default();
            let record = Header::plain(Kind::HoldOff, random::bytes(), remote_key.hash, now_ms);
            Some((record.to_record(), ttl::millis(self.config.hold_off)))
        };
        let keys = Keys::of(&remote_key.bytes);
        let publication = remote.notice(Operation::Invalidate, id);
        self.tier(remote.tier.invalidate(&keys, hold_off, publication).await)
    }

    pub(super) async fn announce_expiry(&self, id: &HashedKey) -> Result<(), RemoteError> {
        let Some(remote) = &self.remote else {
            return Ok(());
        };
        let publication = remote.notice(Operation::Expire, id);
        let (keys, state) = (Keys::of(&remote.key(id).bytes), record::expiry());
        self.tier(remote.tier.expire(&keys, state, publication).await)
    }

    /// Advances the watermark of a tag, or of everything, in L2 or in a cache without L2.
    pub(super) async fn announce_advance(&self, tag: Option<u64>) -> Result<(), RemoteError> {
        let Some(remote) = &self.remote else {
            self.watermarks.advance(tag);
            return Ok(());
        };
        let publication = match tag {
            Some(tag) => remote.watermark_notice(Operation::InvalidateTag, tag),
            None => remote.watermark_notice(Operation::InvalidateAll, 0),
        };
        let request = WatermarkRequest {
            advance: tag.map_or(Advance::All, Advance::Tag),
            known: self.watermarks.known().unwrap_or_default(),
            tags: Vec::new(),
            publication: Some(publication),
        };
        let query = self.watermarks.begin_query();
        let answer = remote.tier.marks(&remote.watermarks_key, request).await;
        let (watermarks, _) = self.tier(answer)?;
        self.watermarks.end_query(watermarks, query);
        self.apply_advance(tag, watermarks);
        Ok(())
    }

    /// Takes in that this process or another one has invalidated a tag, or everything.
    pub(super) fn apply_advance(&self, tag: Option<u64>, watermarks: Watermarks) {
        if let Some(tag) = tag {
            self.watermarks.learn_tag(tag, watermarks);
        }
        if self.watermarks.learn(watermarks, false) == Learned::Everything {
            self.drop_everything();
        }
    }

    /// Everything was invalidated.
    pub(super) fn drop_everything(&self) {
        self.fence.hold_off_all(Instant::now());
        self.start_new_epoch();
    }

    /// Makes everything unusable that was read until now, in L1 and in flights.
    pub(crate) fn start_new_epoch(&self) {
        self.fence.bump_epoch();
        self.flights.detach_before(self.fence.epoch());
    }
}
