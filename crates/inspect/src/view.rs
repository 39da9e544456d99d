//! The report of one record: its header, and its freshness by the server's clock and the
//! watermarks.

use serde::Serialize;
use tidegate::inspect::{Kind, Marks, Record, codec_name};

use crate::connection::{StoredRecord, left_ms};
use crate::print::{self, Fields};

/// Whether a look-up may answer with a record.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Freshness {
    /// Within its TTL.
    Fresh,
    /// Past its TTL. It is an answer where the cache's stale windows allow it.
    Stale,
    /// Expired by `Cache::expire`. It is an answer where a load fails and `stale_if_error` allows
    /// it.
    Expired,
    /// Invalidated by a tag or by `invalidate_all` after its load began. It is never an answer, and
    /// the next look-up loads.
    Dead,
}

/// The fields that are reported of a readable record.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct View {
    pub(crate) kind: &'static str,
    /// `None`: the record is neither a value nor a negative entry.
    pub(crate) freshness: Option<Freshness>,
    /// Milliseconds until the entry is stale, or until the next attempt after a failed load.
    pub(crate) left_ms: Option<u64>,
    pub(crate) age_ms: u64,
    pub(crate) created_ms: u64,
    pub(crate) fresh_ms: u64,
    /// Milliseconds until Redis drops the key. `None`: it has no expiry.
    pub(crate) ttl_ms: Option<u64>,
    pub(crate) version: Option<u64>,
    pub(crate) schema_version: Option<u16>,
    pub(crate) codec: Option<&'static str>,
    pub(crate) codec_id: Option<u8>,
    pub(crate) payload_bytes: usize,
    pub(crate) record_bytes: usize,
    pub(crate) load_cost_ms: Option<u32>,
    pub(crate) failures: Option<u32>,
    /// Of a lease: whether a caller in another process waits for the load.
    pub(crate) waited_for: Option<bool>,
    /// The random token that identifies the holder of a lease, or the fill of a value.
    pub(crate) token: String,
    /// The hashes of the tags.
    pub(crate) tags: Vec<String>,
    pub(crate) era: u64,
    pub(crate) mark: u64,
}

impl View {
    /// `latest` is the highest watermark of the record's tags. Without watermarks no record is
    /// dead.
    pub(crate) fn of(
        record: &Record,
        stored: &StoredRecord,
        now_ms: u64,
        marks: Option<&Marks>,
        latest: u64,
    ) -> Self {
        let is_entry = matches!(record.kind, Kind::Value | Kind::Negative);
        let is_value = record.kind == Kind::Value;
        let left = left_ms(record.created_ms, record.fresh_ms, now_ms);
        let freshness = if marks.is_some_and(|marks| record.is_dead(marks, latest)) {
            Freshness::Dead
        } else if record.expired {
            Freshness::Expired
        } else if left == 0 {
            Freshness::Stale
        } else {
            Freshness::Fresh
        };
        let has_failures = matches!(record.kind, Kind::Lease | Kind::Failed);
        Self {
            kind: kind_name(record.kind),
            freshness: is_entry.then_some(freshness),
            left_ms: (is_entry || record.kind == Kind::Failed).then_some(left),
            age_ms: now_ms.saturating_sub(record.created_ms),
            created_ms: record.created_ms,
            fresh_ms: record.fresh_ms,
            ttl_ms: stored.ttl_ms,
            version: (record.version > 0).then_some(record.version),
            schema_version: is_value.then_some(record.schema_version),
            codec: is_value.then(|| codec_name(record.codec)),
            codec_id: is_value.then_some(record.codec),
            payload_bytes: record.payload_bytes,
            record_bytes: stored.bytes,
            load_cost_ms: is_entry.then_some(record.load_cost_ms),
            failures: has_failures.then_some(record.failures),
            waited_for: (record.kind == Kind::Lease).then_some(record.waited_for),
            token: print::hex(&record.token),
            tags: record.tags.iter().map(|tag| tag_hash_text(*tag)).collect(),
            era: record.era,
            mark: record.mark,
        }
    }

    pub(crate) fn freshness_text(&self) -> String {
        let past = print::span(self.age_ms.saturating_sub(self.fresh_ms));
        match self.freshness {
            None => "–".to_owned(),
            Some(Freshness::Fresh) => {
                let left = print::span(self.left_ms.unwrap_or_default());
                format!("fresh for {left} more")
            }
            Some(Freshness::Stale) => format!("stale for {past}"),
            Some(Freshness::Expired) => "expired by hand".to_owned(),
            Some(Freshness::Dead) => "dead: invalidated as a whole".to_owned(),
        }
    }

    /// Adds the fields that apply to this kind of record to a table.
    pub(crate) fn add_to(&self, fields: &mut Fields) {
        fields.add("kind", self.kind);
        if self.freshness.is_some() {
            fields.add("freshness", self.freshness_text());
        }
        fields.add("age", print::span(self.age_ms));
        fields.add("ends in", ttl_text(self.ttl_ms));
        if let Some(waited_for) = self.waited_for {
            fields.add("held by", &self.token[..16]);
            fields.add("waited for", if waited_for { "yes" } else { "no" });
        } else {
            fields.add("token", &self.token[..16]);
        }
        if let (Some(failures), true) = (self.failures, self.waited_for.is_none()) {
            let left = print::span(self.left_ms.unwrap_or_default());
            fields.add("no attempt for", left);
            fields.add("failures", format!("{failures} in a row"));
        } else if let Some(failures) = self.failures.filter(|failures| *failures > 0) {
            fields.add("failures", format!("{failures} in a row before"));
        }
        if let Some(cost) = self.load_cost_ms {
            fields.add("load cost", print::span(cost.into()));
        }
        if let (Some(codec), Some(id)) = (self.codec, self.codec_id) {
            fields.add("payload", print::size(self.payload_bytes));
            fields.add("codec", format!("{codec} ({id})"));
        }
        if let Some(schema) = self.schema_version {
            fields.add("schema version", schema.to_string());
        }
        if let Some(version) = self.version {
            fields.add("version", version.to_string());
        }
        if !self.tags.is_empty() {
            fields.add("tags", self.tags.join(" "));
        }
        fields.add("era, mark", format!("{}, {}", self.era, self.mark));
    }
}

pub(crate) fn ttl_text(ttl_ms: Option<u64>) -> String {
    ttl_ms.map_or_else(|| "never".to_owned(), print::span)
}

pub(crate) fn tag_hash_text(tag: u64) -> String {
    format!("{tag:016x}")
}

fn kind_name(kind: Kind) -> &'static str {
    match kind {
        Kind::Value => "value",
        Kind::Negative => "negative",
        Kind::Lease => "lease",
        Kind::Failed => "failed load",
        Kind::HoldOff => "hold-off",
        _ => "of a later version",
    }
}
