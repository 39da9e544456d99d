//! The commands that only read: `key`, `leases`, `marks` and `top`.

use std::cmp::Reverse;
use std::collections::HashMap;

use serde::Serialize;
use serde_json::{Value, json};
use tidegate::inspect::{self, EncodedKey, Kind, Marks, Names};

use crate::connection::{Connection, StoredRecord};
use crate::error::Failure;
use crate::print::{self, Fields, Report};
use crate::view::{self, Freshness, View};

/// What the freshness of a record depends on beside the record: the server's clock and the
/// watermarks.
struct FreshnessContext {
    now_ms: u64,
    marks: Option<Marks>,
    /// The watermarks of tags, by the hash of the tag.
    tags: HashMap<u64, u64>,
}

impl FreshnessContext {
    async fn read(connection: &Connection, names: &Names) -> Result<Self, Failure> {
        Ok(Self {
            now_ms: connection.now_ms().await?,
            marks: connection.marks(names).await?,
            tags: HashMap::new(),
        })
    }

    /// Reads the watermarks of the tags that these records have.
    async fn read_tags<'a>(
        &mut self,
        connection: &Connection,
        names: &Names,
        stored: impl Iterator<Item = &'a StoredRecord>,
    ) -> Result<(), Failure> {
        let records = stored.filter_map(|stored| stored.record.as_ref().ok());
        let mut tags: Vec<u64> = records.flat_map(|record| record.tags.clone()).collect();
        tags.sort_unstable();
        tags.dedup();
        self.tags = connection.tag_marks(names, tags).await?;
        Ok(())
    }

    fn view(&self, stored: &StoredRecord) -> Option<View> {
        let record = stored.record.as_ref().ok()?;
        let marks = record.tags.iter().filter_map(|tag| self.tags.get(tag));
        let latest = marks.copied().max().unwrap_or_default();
        let marks = self.marks.as_ref();
        Some(View::of(record, stored, self.now_ms, marks, latest))
    }

    /// Adds the content of a key to a table, and returns it as JSON.
    fn describe(&self, stored: Option<&StoredRecord>, fields: &mut Fields) -> Value {
        let Some(stored) = stored else {
            fields.add("kind", "nothing");
            return Value::Null;
        };
        if let Some(view) = self.view(stored) {
            view.add_to(fields);
            return json!(view);
        }
        let why = stored.record.as_ref().err().map(ToString::to_string);
        let why = why.unwrap_or_default();
        fields.add("kind", format!("unreadable: {why}"));
        fields.add("size", print::size(stored.bytes));
        fields.add("ends in", view::ttl_text(stored.ttl_ms));
        json!({ "unreadable": why, "record_bytes": stored.bytes, "ttl_ms": stored.ttl_ms })
    }
}

pub(crate) async fn key(
    connection: &Connection,
    names: &Names,
    key: &EncodedKey,
) -> Result<Report, Failure> {
    let (redis_key, claim_key) = (names.record(key), names.claim(key));
    let record = connection.read(&redis_key).await?;
    let claim = connection.read(&claim_key).await?;
    let mut context = FreshnessContext::read(connection, names).await?;
    context.read_tags(connection, names, record.iter()).await?;
    let listeners = connection.listeners(names).await?;

    let mut fields = Fields::new();
    fields.add("key", redis_key.as_str());
    let record_json = context.describe(record.as_ref(), &mut fields);
    if let Some(listeners) = listeners {
        fields.add("listeners", listeners.to_string());
    }
    let mut text = fields.text();
    let mut claim_json = Value::Null;
    if let Some(claim) = &claim {
        let mut fields = Fields::new();
        fields.add("claim", claim_key.as_str());
        claim_json = context.describe(Some(claim), &mut fields);
        text = format!("{text}\n{}", fields.text());
    }
    let json = json!({
        "key": redis_key,
        "record": record_json,
        "claim": claim_json,
        "listeners": listeners,
    });
    let unreadable = |stored: &Option<StoredRecord>| {
        stored.as_ref().is_some_and(|stored| stored.record.is_err())
    };
    let mut report = Report::new(json, text);
    report.code = match (&record, &claim) {
        _ if unreadable(&record) || unreadable(&claim) => 4,
        (None, None) => 1,
        _ => 0,
    };
    Ok(report)
}

/// A lease. It stands under the key itself while an absent value is loaded, or under the claim key
/// while a present one is refreshed.
#[derive(Serialize)]
struct Lease {
    key: String,
    refreshes: bool,
    #[serde(flatten)]
    view: View,
}

pub(crate) async fn leases(
    connection: &Connection,
    names: &Names,
    scan_limit: u64,
) -> Result<Report, Failure> {
    let context = FreshnessContext::read(connection, names).await?;
    let select = |redis_key: &str| match names.key_of(redis_key.as_bytes()) {
        Some(key) => Some((key, false)),
        None => Some((names.key_of_claim(redis_key.as_bytes())?, true)),
    };
    let mut leases = Vec::new();
    let visit = |(key, refreshes): (EncodedKey, bool), stored: StoredRecord| {
        let is_lease = stored
            .record
            .as_ref()
            .is_ok_and(|record| record.kind == Kind::Lease);
        if let (true, Some(view)) = (is_lease, context.view(&stored)) {
            leases.push(Lease {
                key: key.to_string(),
                refreshes,
                view,
            });
        }
    };
    let scanned = connection
        .scan(&names.namespace(), scan_limit, select, visit)
        .await?;
    leases.sort_by_key(|lease| Reverse(lease.view.age_ms));
    let rows: Vec<Vec<String>> = leases.iter().map(lease_row).collect();
    let headers = [
        "KEY",
        "FOR",
        "HELD BY",
        "SINCE",
        "ENDS IN",
        "WAITED FOR",
        "FAILURES",
    ];
    let text = print::table(&headers, &rows) + &scanned_text(scanned);
    let json = json!({ "leases": leases, "scanned": scanned.0, "complete": !scanned.1 });
    Ok(Report::new(json, text))
}

fn lease_row(lease: &Lease) -> Vec<String> {
    let view = &lease.view;
    let is_waited_for = view.waited_for == Some(true);
    vec![
        lease.key.clone(),
        if lease.refreshes { "refresh" } else { "load" }.to_owned(),
        view.token[..16].to_owned(),
        print::span(view.age_ms),
        view::ttl_text(view.ttl_ms),
        if is_waited_for { "yes" } else { "no" }.to_owned(),
        view.failures.unwrap_or_default().to_string(),
    ]
}

fn scanned_text((scanned, more): (u64, bool)) -> String {
    let more = if more {
        "; there are more, see --scan"
    } else {
        ""
    };
    format!("{scanned} keys of Redis looked at{more}\n")
}

pub(crate) async fn marks(
    connection: &Connection,
    names: &Names,
    tags: &[String],
) -> Result<Report, Failure> {
    let marks = connection.marks(names).await?;
    let known = connection.tags_known(names).await?;
    let ttl_ms = connection.ttl_ms(&names.marks()).await?;
    let hashes = tags.iter().map(inspect::tag_hash);
    let tag_marks = connection.tag_marks(names, hashes).await?;
    let Some(marks) = marks else {
        let text = format!("{}: nothing\n", names.marks());
        let mut report = Report::new(json!({ "key": names.marks(), "marks": null }), text);
        report.code = 1;
        return Ok(report);
    };
    let mut fields = Fields::new();
    fields.add("marks", names.marks());
    fields.add("era", marks.era.to_string());
    fields.add("last mark", marks.mark.to_string());
    fields.add("everything", mark_text(marks.all));
    fields.add("latest tag", mark_text(marks.tagged));
    fields.add("tags known", known.to_string());
    if marks.floor > 0 {
        fields.add("forgotten up to", marks.floor.to_string());
    }
    fields.add("ends in", view::ttl_text(ttl_ms));
    let mut text = fields.text();
    let mut tags_json = Vec::new();
    let mut rows = Vec::new();
    for tag in tags {
        let hash = inspect::tag_hash(tag);
        let mark = tag_marks.get(&hash).copied();
        tags_json.push(json!({ "tag": tag, "hash": view::tag_hash_text(hash), "mark": mark }));
        rows.push(vec![
            tag.clone(),
            view::tag_hash_text(hash),
            mark_text(mark.unwrap_or(0)),
        ]);
    }
    if !rows.is_empty() {
        text = format!("{text}\n{}", print::table(&["TAG", "HASH", "MARK"], &rows));
    }
    let json = json!({
        "key": names.marks(),
        "marks": {
            "era": marks.era,
            "mark": marks.mark,
            "all": marks.all,
            "tagged": marks.tagged,
            "floor": marks.floor,
        },
        "tags_known": known,
        "ttl_ms": ttl_ms,
        "tags": tags_json,
    });
    Ok(Report::new(json, text))
}

fn mark_text(mark: u64) -> String {
    match mark {
        0 => "never invalidated".to_owned(),
        mark => format!("invalidated at mark {mark}"),
    }
}

#[derive(Serialize)]
struct Entry {
    key: String,
    /// The load cost in milliseconds times the size in bytes.
    score: u64,
    #[serde(flatten)]
    view: View,
}

pub(crate) async fn top(
    connection: &Connection,
    names: &Names,
    limit: usize,
    scan_limit: u64,
) -> Result<Report, Failure> {
    let mut entries: Vec<(u64, EncodedKey, StoredRecord)> = Vec::new();
    let select = |redis_key: &str| names.key_of(redis_key.as_bytes());
    let visit = |key: EncodedKey, stored: StoredRecord| {
        let Ok(record) = &stored.record else { return };
        if matches!(record.kind, Kind::Value | Kind::Negative) {
            let score = u64::from(record.load_cost_ms).saturating_mul(stored.bytes as u64);
            entries.push((score, key, stored));
            // Bounds the memory: only the first `limit` entries are shown.
            if entries.len() >= 2 * limit + 1_000 {
                truncate_to_top(&mut entries, limit);
            }
        }
    };
    let scanned = connection
        .scan(&names.namespace(), scan_limit, select, visit)
        .await?;
    truncate_to_top(&mut entries, limit);
    let mut context = FreshnessContext::read(connection, names).await?;
    let stored = entries.iter().map(|(_, _, stored)| stored);
    context.read_tags(connection, names, stored).await?;
    let entries = entries.iter().filter_map(|(score, key, stored)| {
        Some(Entry {
            key: key.to_string(),
            score: *score,
            view: context.view(stored)?,
        })
    });
    let entries: Vec<Entry> = entries.collect();
    let rows: Vec<Vec<String>> = entries.iter().map(entry_row).collect();
    let headers = [
        "KEY",
        "KIND",
        "LOAD COST",
        "SIZE",
        "AGE",
        "ENDS IN",
        "FRESHNESS",
    ];
    let text = print::table(&headers, &rows) + &scanned_text(scanned);
    let json = json!({ "entries": entries, "scanned": scanned.0, "complete": !scanned.1 });
    Ok(Report::new(json, text))
}

fn truncate_to_top(entries: &mut Vec<(u64, EncodedKey, StoredRecord)>, limit: usize) {
    entries.sort_by(|one, other| (Reverse(one.0), &one.1).cmp(&(Reverse(other.0), &other.1)));
    entries.truncate(limit);
}

fn entry_row(entry: &Entry) -> Vec<String> {
    let view = &entry.view;
    let freshness = match view.freshness {
        Some(Freshness::Dead) => "dead".to_owned(),
        _ => view.freshness_text(),
    };
    vec![
        entry.key.clone(),
        view.kind.to_owned(),
        print::span(view.load_cost_ms.unwrap_or_default().into()),
        print::size(view.record_bytes),
        print::span(view.age_ms),
        view::ttl_text(view.ttl_ms),
        freshness,
    ]
}
