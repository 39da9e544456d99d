//! A member of the HTTP field `Cache-Status` (RFC 9211), which is a list of items in the sense of
//! structured fields (RFC 8941): a token or a string, with parameters.

use std::fmt::Write;

use tokio::time::Instant;

use crate::entry::{Entry, Freshness, Provenance, Source};

/// The largest integer of RFC 8941.
const LARGEST: i64 = 999_999_999_999_999;

/// Whole seconds from `now` on, rounded down: negative as soon as the moment is past.
pub(crate) fn seconds(until: Instant, now: Instant) -> i64 {
    let whole = |secs: u64| i64::try_from(secs).unwrap_or(LARGEST).min(LARGEST);
    let over = now.saturating_duration_since(until);
    if over.is_zero() {
        return whole(until.saturating_duration_since(now).as_secs());
    }
    let begun = u64::from(over.subsec_nanos() > 0);
    -whole(over.as_secs().saturating_add(begun))
}

pub(crate) fn member<V>(cache: &str, entry: &Entry<V>, ttl: i64) -> String {
    let mut member = name(cache);
    let joined = entry.source == Source::Coalesced;
    let failed = entry.freshness == Freshness::StaleOnError;
    let (fwd, stored) = match entry.provenance {
        Provenance::Forwarded { why, stored } => (Some(why.word()), stored),
        Provenance::FromTier if failed => (Some("stale"), false),
        Provenance::FromTier => (None, false),
    };
    // Writing into a text does not fail.
    let _ = match fwd {
        Some(fwd) => write!(member, "; fwd={fwd}; ttl={ttl}"),
        None => write!(member, "; hit; ttl={ttl}"),
    };
    for (said, parameter) in [
        (stored, "; stored"),
        (joined && fwd.is_some(), "; collapsed"),
        (failed, "; detail=stale-if-error"),
    ] {
        if said {
            member.push_str(parameter);
        }
    }
    member
}

/// A token where it is one, else a string.
fn name(cache: &str) -> String {
    let mut bytes = cache.bytes();
    let begins = bytes
        .next()
        .is_some_and(|first| first.is_ascii_alphabetic() || first == b'*');
    if begins && bytes.all(is_of_token) {
        return cache.to_owned();
    }
    let mut quoted = String::with_capacity(cache.len() + 2);
    quoted.push('"');
    for letter in cache.chars() {
        match letter {
            '"' | '\\' => quoted.extend(['\\', letter]),
            ' '..='~' => quoted.push(letter),
            _ => quoted.push('?'),
        }
    }
    quoted.push('"');
    quoted
}

fn is_of_token(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~:/".contains(&byte)
}
