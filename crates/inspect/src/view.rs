//! A record as it is reported: judged by the clock of the server and by the marks.

use serde::Serialize;
use tidegate::inspect::{Kind, Marks, Record, codec_name};

use crate::connection::{Held, left_ms};
use crate::print::{self, Fields};

/// What a record is to a reader.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Freshness {
    /// Within its TTL.
    Fresh,
    /// Past its TTL; answered where the cache's stale windows allow.
    Stale,
    /// Expired by hand; answered where a load fails, if `stale_if_error` allows.
    Expired,
    /// Invalidated as a whole after its load began: never answered, and no hindrance to a load.
    Dead,
}

/// A readable record with all that is told of it.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct View {
    pub(crate) kind: &'static str,
    /// Values and absences alone.
    pub(crate) freshness: Option<Freshness>,
    /// Until it is stale, or until the next attempt after a failed load.
    pub(crate) left_ms: Option<u64>,
    pub(crate) age_ms: u64,
    pub(crate) created_ms: u64,
    pub(crate) fresh_ms: u64,
    /// Until Redis drops it.
    pub(crate) ttl_ms: Option<u64>,
    pub(crate) version: Option<u64>,
    pub(crate) schema_version: Option<u16>,
    pub(crate) codec: Option<&'static str>,
    pub(crate) codec_id: Option<u8>,
    pub(crate) payload_bytes: usize,
    pub(crate) record_bytes: usize,
    pub(crate) load_cost_ms: Option<u32>,
    pub(crate) failures: Option<u32>,
    /// Of a lease: somebody in another process waits.
    pub(crate) waited_for: Option<bool>,
    /// Whose lease, or which version of the value.
    pub(crate) token: String,
    /// Hashes.
    pub(crate) tags: Vec<String>,
    pub(crate) era: u64,
    pub(crate) mark: u64,
}

impl View {
    /// `latest`: the latest mark of its tags. Without marks nothing counts as dead.
    pub(crate) fn of(
        record: &Record,
        held: &Held,
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
        let loads = matches!(record.kind, Kind::Lease | Kind::Failed);
        Self {
            kind: kind(record.kind),
            freshness: is_entry.then_some(freshness),
            left_ms: (is_entry || record.kind == Kind::Failed).then_some(left),
            age_ms: now_ms.saturating_sub(record.created_ms),
            created_ms: record.created_ms,
            fresh_ms: record.fresh_ms,
            ttl_ms: held.ttl_ms,
            version: (record.version > 0).then_some(record.version),
            schema_version: is_value.then_some(record.schema_version),
            codec: is_value.then(|| codec_name(record.codec)),
            codec_id: is_value.then_some(record.codec),
            payload_bytes: record.payload_bytes,
            record_bytes: held.bytes,
            load_cost_ms: is_entry.then_some(record.load_cost_ms),
            failures: loads.then_some(record.failures),
            waited_for: (record.kind == Kind::Lease).then_some(record.waited_for),
            token: print::hex(&record.token),
            tags: record.tags.iter().map(|tag| hash(*tag)).collect(),
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

    /// The lines of a table, as far as they say something of this kind.
    pub(crate) fn fields(&self, fields: &mut Fields) {
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

pub(crate) fn hash(tag: u64) -> String {
    format!("{tag:016x}")
}

fn kind(kind: Kind) -> &'static str {
    match kind {
        Kind::Value => "value",
        Kind::Negative => "negative",
        Kind::Lease => "lease",
        Kind::Failed => "failed load",
        Kind::HoldOff => "hold-off",
        _ => "of a later version",
    }
}
