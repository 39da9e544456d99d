//! The records of the embedded tier, and what was invalidated as a whole in each cache.

use std::collections::HashMap;
use std::time::Duration;

use bytes::Bytes;
use tokio::time::Instant;

use crate::protocol::record::Watermarks;
use crate::protocol::record::{self, HEAD, Head, WAITERS_AT};
use crate::protocol::request::{Advance, WatermarkRequest, new_incarnation};
use crate::ttl;

#[derive(Default)]
pub(super) struct Store {
    pub(super) records: HashMap<Bytes, StoredRecord>,
    pub(super) marks: HashMap<Bytes, StoredMarks>,
    /// Expired records are removed when the map has grown to this size.
    sweep_at: usize,
}

pub(super) struct StoredRecord {
    pub(super) bytes: Bytes,
    pub(super) expires_at: Instant,
}

/// What was invalidated as a whole in one cache.
pub(super) struct StoredMarks {
    watermarks: Watermarks,
    /// The mark up to which marks of tags were forgotten: a record with any tag and an older load
    /// is dead.
    floor: u64,
    tags: HashMap<u64, u64>,
}

/// The number of tags whose marks are kept. Beyond it the older half is forgotten.
const MAX_TAGS: usize = 100_000;

/// The size of the map from which on expired records are removed.
const MIN_SWEEP_SIZE: usize = 1024;

impl Store {
    pub(super) fn get(&mut self, key: &[u8], now: Instant) -> Option<&mut StoredRecord> {
        if self
            .records
            .get(key)
            .is_some_and(|stored| stored.expires_at <= now)
        {
            self.records.remove(key);
        }
        self.records.get_mut(key)
    }

    pub(super) fn set(&mut self, key: &Bytes, bytes: impl Into<Bytes>, ttl_ms: u64, now: Instant) {
        if self.records.len() >= self.sweep_at.max(MIN_SWEEP_SIZE) {
            self.records.retain(|_, stored| stored.expires_at > now);
            self.sweep_at = self.records.len() * 2;
        }
        let expires_at = ttl::deadline(now, Duration::from_millis(ttl_ms));
        self.records.insert(
            key.clone(),
            StoredRecord {
                bytes: bytes.into(),
                expires_at,
            },
        );
    }

    /// Reads and raises the marks of a cache, as the script does on a server. Answers the marks and
    /// the latest mark of the tags asked for.
    pub(super) fn update_marks(
        &mut self,
        key: &Bytes,
        look: &WatermarkRequest,
    ) -> (Watermarks, u64) {
        if !self.marks.contains_key(key) {
            let marks = StoredMarks {
                watermarks: Watermarks {
                    incarnation: new_incarnation(),
                    ..Watermarks::default()
                },
                floor: 0,
                tags: HashMap::new(),
            };
            self.marks.insert(key.clone(), marks);
        }
        let Some(marks) = self.marks.get_mut(key) else {
            return Default::default();
        };
        let watermarks = &mut marks.watermarks;
        if watermarks.incarnation == look.known.incarnation
            && watermarks.current < look.known.current
        {
            watermarks.current = look.known.current + 1;
            watermarks.all = watermarks.current;
        }
        match look.advance {
            Advance::Nothing => {}
            Advance::All => {
                watermarks.current += 1;
                watermarks.all = watermarks.current;
                marks.tags.clear();
            }
            Advance::Tag(tag) => {
                watermarks.current += 1;
                marks.tags.insert(tag, watermarks.current);
                if marks.tags.len() > MAX_TAGS {
                    let mut ages: Vec<u64> = marks.tags.values().copied().collect();
                    let (_, middle, _) = ages.select_nth_unstable(MAX_TAGS / 2);
                    marks.floor = *middle;
                    marks.tags.retain(|_, mark| *mark > marks.floor);
                }
            }
        }
        let of_tags = look.tags.iter().filter_map(|tag| marks.tags.get(tag));
        let latest = of_tags.copied().fold(marks.floor, u64::max);
        (marks.watermarks, latest)
    }

    /// The remaining milliseconds of another's lease, which is marked as waited for. A lease whose
    /// load began before everything was invalidated does not count.
    pub(super) fn held_by_another(
        &mut self,
        key: &[u8],
        known: Watermarks,
        now: Instant,
    ) -> Option<u64> {
        let stored = self.get(key, now)?;
        if !record::is_lease(&stored.bytes) {
            return None;
        }
        let baseline = record::lease_baseline(&stored.bytes);
        if baseline.incarnation != known.incarnation || baseline.watermark < known.all {
            return None;
        }
        let mut awaited = stored.bytes.to_vec();
        awaited[WAITERS_AT] = 1;
        stored.bytes = awaited.into();
        Some(ttl::millis(stored.expires_at - now))
    }

    /// Extends the life of a record to this time at least.
    pub(super) fn extend_ttl(&mut self, key: &[u8], ttl_ms: u64, now: Instant) {
        if let Some(stored) = self.get(key, now) {
            let least = ttl::deadline(now, Duration::from_millis(ttl_ms));
            stored.expires_at = stored.expires_at.max(least);
        }
    }

    /// The record that still has this head.
    pub(super) fn with_head(
        &mut self,
        key: &[u8],
        head: Head,
        now: Instant,
    ) -> Option<&mut StoredRecord> {
        self.get(key, now)
            .filter(|stored| stored.bytes.get(..HEAD) == Some(&head))
    }
}

impl StoredRecord {
    pub(super) fn waited_for(&self) -> bool {
        record::is_lease(&self.bytes) && self.bytes[WAITERS_AT] != 0
    }
}
