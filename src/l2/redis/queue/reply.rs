//! What the scripts of write-behind answer, and how it is parsed.

use bytes::Bytes;
use fred::types::Value;

/// The id of a stream entry: milliseconds, and a number within them.
pub(crate) type StreamId = (u64, u64);

/// The result of a write.
#[derive(Debug)]
pub(crate) enum Accepted {
    Id(StreamId),
    Full(u64),
    /// Other processes have this number of partitions.
    Partitions(String),
    /// There is no such dead letter.
    Gone,
    /// The command was not sent.
    NotConnected,
}

/// The result of an attempt to claim a partition.
#[derive(Debug)]
pub(crate) enum Claimed {
    Granted(Granted),
    /// Another worker has it, for this many milliseconds more.
    Held(u64),
    /// Other processes have this number of partitions.
    Partitions(String),
}

/// The state of a partition that was claimed.
#[derive(Debug)]
pub(crate) struct Granted {
    pub(crate) epoch: u64,
    pub(crate) failure_state: FailureState,
}

/// The failures of a partition, as they are stored for the next worker.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct FailureState {
    /// The entry that failed when it was tried alone.
    pub(crate) failed: Option<StreamId>,
    /// How often it failed.
    pub(crate) failures: u32,
    /// Up to this entry, entries are tried one by one.
    pub(crate) isolate: Option<StreamId>,
}

/// A stream entry as it is stored. It has no fields if another client deleted it from the stream.
#[derive(Clone, Debug)]
pub(crate) struct RawEntry {
    pub(crate) id: StreamId,
    pub(crate) fields: Vec<(Bytes, Bytes)>,
}

impl RawEntry {
    pub(crate) fn field(&self, name: &str) -> Option<&Bytes> {
        let mut fields = self.fields.iter();
        fields.find_map(|(field, value)| (field == name).then_some(value))
    }
}

/// Parses the text of an id.
pub(crate) fn parse_id(id: &str) -> Option<StreamId> {
    let (ms, seq) = id.split_once('-')?;
    Some((ms.parse().ok()?, seq.parse().ok()?))
}

pub(super) fn accepted(reply: Value) -> Option<Accepted> {
    let mut reply = reply.into_array().into_iter();
    let code = reply.next()?.as_u64()?;
    Some(match code {
        0 => Accepted::Id(parse_id(&reply.next()?.into_string()?)?),
        1 => Accepted::Full(reply.next()?.as_u64()?),
        2 => reply
            .next()
            .and_then(Value::into_string)
            .map_or(Accepted::Gone, Accepted::Partitions),
        _ => return None,
    })
}

pub(super) fn claimed(reply: Value) -> Option<Claimed> {
    let mut reply = reply.into_array().into_iter();
    let code = reply.next()?.as_u64()?;
    let mut text = || reply.next()?.into_string();
    Some(match code {
        0 => Claimed::Granted(Granted {
            epoch: text()?.parse().ok()?,
            // A text that is no id or number was not written by us, and counts as absent.
            failure_state: FailureState {
                failed: parse_id(&text()?),
                failures: text()?.parse().unwrap_or_default(),
                isolate: parse_id(&text()?),
            },
        }),
        1 => Claimed::Held(text()?.parse().ok()?),
        2 => Claimed::Partitions(text()?),
        _ => return None,
    })
}

pub(super) fn entries(reply: Value) -> Option<Vec<RawEntry>> {
    if reply.is_null() {
        return Some(Vec::new());
    }
    let entries = reply.into_array().into_iter().map(|entry| {
        let mut parts = entry.into_array().into_iter();
        let id = parse_id(&parts.next()?.into_string()?)?;
        // Null if the entry was deleted from the stream.
        let fields = match parts.next() {
            Some(fields) if !fields.is_null() => fields.into_array(),
            _ => Vec::new(),
        };
        let mut fields = fields.into_iter().map(|part| part.into_bytes());
        let mut pairs = Vec::new();
        while let (Some(name), Some(value)) = (fields.next(), fields.next()) {
            pairs.push((name?, value?));
        }
        Some(RawEntry { id, fields: pairs })
    });
    entries.collect()
}
