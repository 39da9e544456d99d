//! `key`, `leases`, `marks` and `top`: what lies there.

use std::cmp::Reverse;
use std::collections::HashMap;

use serde::Serialize;
use serde_json::{Value, json};
use tidegate::inspect::{self, EncodedKey, Kind, Marks, Names};

use crate::connection::{Connection, Held};
use crate::error::Failure;
use crate::print::{self, Fields, Report};
use crate::view::{self, Freshness, View};

/// What records are judged by.
struct Judge {
    now_ms: u64,
    marks: Option<Marks>,
    tags: HashMap<u64, u64>,
}

impl Judge {
    async fn of(connection: &Connection, names: &Names) -> Result<Self, Failure> {
        Ok(Self {
            now_ms: connection.now_ms().await?,
            marks: connection.marks(names).await?,
            tags: HashMap::new(),
        })
    }

    /// Asks for the marks of the tags of these records.
    async fn learn_tags<'a>(
        &mut self,
        connection: &Connection,
        names: &Names,
        held: impl Iterator<Item = &'a Held>,
    ) -> Result<(), Failure> {
        let records = held.filter_map(|held| held.record.as_ref().ok());
        let mut tags: Vec<u64> = records.flat_map(|record| record.tags.clone()).collect();
        tags.sort_unstable();
        tags.dedup();
        self.tags = connection.tag_marks(names, tags).await?;
        Ok(())
    }

    fn view(&self, held: &Held) -> Option<View> {
        let record = held.record.as_ref().ok()?;
        let marks = record.tags.iter().filter_map(|tag| self.tags.get(tag));
        let latest = marks.copied().max().unwrap_or_default();
        let marks = self.marks.as_ref();
        Some(View::of(record, held, self.now_ms, marks, latest))
    }

    /// What lies under a key, in a table and in JSON.
    fn tell(&self, held: Option<&Held>, fields: &mut Fields) -> Value {
        let Some(held) = held else {
            fields.add("kind", "nothing");
            return Value::Null;
        };
        if let Some(view) = self.view(held) {
            view.fields(fields);
            return json!(view);
        }
        let why = held.record.as_ref().err().map(ToString::to_string);
        let why = why.unwrap_or_default();
        fields.add("kind", format!("unreadable: {why}"));
        fields.add("size", print::size(held.bytes));
        fields.add("ends in", view::ttl_text(held.ttl_ms));
        json!({ "unreadable": why, "record_bytes": held.bytes, "ttl_ms": held.ttl_ms })
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
    let mut judge = Judge::of(connection, names).await?;
    judge.learn_tags(connection, names, record.iter()).await?;
    let listeners = connection.listeners(names).await?;

    let mut fields = Fields::new();
    fields.add("key", redis_key.as_str());
    let record_json = judge.tell(record.as_ref(), &mut fields);
    if let Some(listeners) = listeners {
        fields.add("listeners", listeners.to_string());
    }
    let mut text = fields.text();
    let mut claim_json = Value::Null;
    if let Some(claim) = &claim {
        let mut fields = Fields::new();
        fields.add("claim", claim_key.as_str());
        claim_json = judge.tell(Some(claim), &mut fields);
        text = format!("{text}\n{}", fields.text());
    }
    let json = json!({
        "key": redis_key,
        "record": record_json,
        "claim": claim_json,
        "listeners": listeners,
    });
    let unreadable = |held: &Option<Held>| held.as_ref().is_some_and(|held| held.record.is_err());
    let mut report = Report::new(json, text);
    report.code = match (&record, &claim) {
        _ if unreadable(&record) || unreadable(&claim) => 4,
        (None, None) => 1,
        _ => 0,
    };
    Ok(report)
}

/// A lease: in the place of a record that is to be filled, or as the claim of one that is refreshed.
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
    most: u64,
) -> Result<Report, Failure> {
    let judge = Judge::of(connection, names).await?;
    let keep = |redis_key: &str| match names.key_of(redis_key.as_bytes()) {
        Some(key) => Some((key, false)),
        None => Some((names.key_of_claim(redis_key.as_bytes())?, true)),
    };
    let mut leases = Vec::new();
    let take = |(key, refreshes): (EncodedKey, bool), held: Held| {
        let is_lease = held
            .record
            .as_ref()
            .is_ok_and(|record| record.kind == Kind::Lease);
        if let (true, Some(view)) = (is_lease, judge.view(&held)) {
            leases.push(Lease {
                key: key.to_string(),
                refreshes,
                view,
            });
        }
    };
    let scanned = connection
        .scan(&names.namespace(), most, keep, take)
        .await?;
    leases.sort_by_key(|lease| Reverse(lease.view.age_ms));
    let rows: Vec<Vec<String>> = leases.iter().map(lease_row).collect();
    let heads = [
        "KEY",
        "FOR",
        "HELD BY",
        "SINCE",
        "ENDS IN",
        "WAITED FOR",
        "FAILURES",
    ];
    let text = print::table(&heads, &rows) + &scanned_text(scanned);
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

fn scanned_text((seen, more): (u64, bool)) -> String {
    let more = if more {
        "; there are more, see --scan"
    } else {
        ""
    };
    format!("{seen} keys of Redis looked at{more}\n")
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
    fields.add("everything", never(marks.all));
    fields.add("latest tag", never(marks.tagged));
    fields.add("tags known", known.to_string());
    if marks.floor > 0 {
        fields.add("forgotten up to", marks.floor.to_string());
    }
    fields.add("ends in", view::ttl_text(ttl_ms));
    let mut text = fields.text();
    let mut told = Vec::new();
    let mut rows = Vec::new();
    for tag in tags {
        let hash = inspect::tag_hash(tag);
        let mark = tag_marks.get(&hash).copied();
        told.push(json!({ "tag": tag, "hash": view::hash(hash), "mark": mark }));
        rows.push(vec![
            tag.clone(),
            view::hash(hash),
            never(mark.unwrap_or(0)),
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
        "tags": told,
    });
    Ok(Report::new(json, text))
}

fn never(mark: u64) -> String {
    match mark {
        0 => "never invalidated".to_owned(),
        mark => format!("invalidated at mark {mark}"),
    }
}

#[derive(Serialize)]
struct Entry {
    key: String,
    /// Milliseconds times bytes.
    score: u64,
    #[serde(flatten)]
    view: View,
}

pub(crate) async fn top(
    connection: &Connection,
    names: &Names,
    limit: usize,
    most: u64,
) -> Result<Report, Failure> {
    let mut entries: Vec<(u64, EncodedKey, Held)> = Vec::new();
    let keep = |redis_key: &str| names.key_of(redis_key.as_bytes());
    let take = |key: EncodedKey, held: Held| {
        let Ok(record) = &held.record else { return };
        if matches!(record.kind, Kind::Value | Kind::Negative) {
            let score = u64::from(record.load_cost_ms).saturating_mul(held.bytes as u64);
            entries.push((score, key, held));
            // No more is kept than is shown, and some.
            if entries.len() >= 2 * limit + 1_000 {
                keep_first(&mut entries, limit);
            }
        }
    };
    let scanned = connection
        .scan(&names.namespace(), most, keep, take)
        .await?;
    keep_first(&mut entries, limit);
    let mut judge = Judge::of(connection, names).await?;
    let held = entries.iter().map(|(_, _, held)| held);
    judge.learn_tags(connection, names, held).await?;
    let entries = entries.iter().filter_map(|(score, key, held)| {
        Some(Entry {
            key: key.to_string(),
            score: *score,
            view: judge.view(held)?,
        })
    });
    let entries: Vec<Entry> = entries.collect();
    let rows: Vec<Vec<String>> = entries.iter().map(entry_row).collect();
    let heads = [
        "KEY",
        "KIND",
        "LOAD COST",
        "SIZE",
        "AGE",
        "ENDS IN",
        "FRESHNESS",
    ];
    let text = print::table(&heads, &rows) + &scanned_text(scanned);
    let json = json!({ "entries": entries, "scanned": scanned.0, "complete": !scanned.1 });
    Ok(Report::new(json, text))
}

fn keep_first(entries: &mut Vec<(u64, EncodedKey, Held)>, limit: usize) {
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
