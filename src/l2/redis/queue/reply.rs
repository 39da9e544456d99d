//! What the scripts answer.

use fred::types::Value;

use super::{Accepted, Claimed, FailureState, Granted, RawEntry, parse_id};

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
            // Whatever somebody else has written there is nothing that is known.
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
        // Nothing where the entry was deleted behind the group's back.
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
