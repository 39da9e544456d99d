//! `Entry::cache_status`: a member of the HTTP field `Cache-Status` (RFC 9211).
//!
//! The field is a list of items in the sense of structured fields (RFC 8941): an item is a token or
//! a string, with parameters.

use std::fmt::Write;

use tokio::time::Instant;

use crate::entry::{Entry, Freshness, Provenance, Source};

/// The largest integer of RFC 8941.
const MAX_INTEGER: i64 = 999_999_999_999_999;

impl<V> Entry<V> {
    /// How the look-up was answered, as a member of the HTTP field `Cache-Status` (RFC 9211), for
    /// the response that is made from the entry. `cache` is the name of this cache in the field.
    /// The field cannot hold control characters nor anything outside ASCII: each becomes `?`.
    ///
    /// | member | meaning |
    /// |---|---|
    /// | `users; hit; ttl=240` | a tier had it, and it is fresh for 240 seconds more |
    /// | `users; hit; ttl=-12` | a tier had it, and it is 12 seconds past its TTL |
    /// | `users; fwd=stale; ttl=-12; detail=stale-if-error` | the same, because the load failed |
    /// | `users; fwd=miss; ttl=300; stored` | it was loaded, and a tier keeps it |
    /// | `users; fwd=stale; ttl=300; stored; collapsed` | another look-up loaded it |
    ///
    /// `ttl` counts from the moment of this call. A `hit` past its TTL was answered within
    /// `stale_while_revalidate` or after the soft timeout. With `fwd=stale` the load replaced an
    /// older entry; `collapsed` says that this look-up joined the load of another one.
    ///
    /// The key is left out, because it may identify a person.
    ///
    /// ```
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// use std::time::Duration;
    /// use tidegate::{Cache, loader_fn};
    ///
    /// let load = loader_fn(|id: u64| async move { Ok::<_, std::io::Error>(format!("user {id}")) });
    /// let users: Cache<u64, String, std::io::Error> = Cache::builder("users", load)
    ///     .ttl(Duration::from_secs(300))
    ///     .ttl_jitter(0.0)
    ///     .build()?;
    /// let member = |entry: Option<tidegate::Entry<String>>| Some(entry?.cache_status("users"));
    ///
    /// let first = member(users.get_entry(&17).await?);
    /// assert_eq!(first.as_deref(), Some("users; fwd=miss; ttl=299; stored"));
    /// let second = member(users.get_entry(&17).await?);
    /// assert_eq!(second.as_deref(), Some("users; hit; ttl=299"));
    /// # Ok(())
    /// # }
    /// ```
    pub fn cache_status(&self, cache: &str) -> String {
        let (now, until) = (Instant::now(), self.fresh_until);
        let left = seconds(until, now);
        // An entry that was expired by hand is stale before its TTL ends.
        let left = match self.freshness {
            Freshness::Fresh => left,
            Freshness::Stale | Freshness::StaleOnError => left.min(0),
        };
        member(cache, self, left)
    }
}

/// Whole seconds from `now` to `until`, rounded down: negative as soon as the moment is past.
pub(crate) fn seconds(until: Instant, now: Instant) -> i64 {
    let whole = |secs: u64| i64::try_from(secs).unwrap_or(MAX_INTEGER).min(MAX_INTEGER);
    let over = now.saturating_duration_since(until);
    if over.is_zero() {
        return whole(until.saturating_duration_since(now).as_secs());
    }
    let begun = u64::from(over.subsec_nanos() > 0);
    -whole(over.as_secs().saturating_add(begun))
}

/// The member for an entry that is fresh for `ttl` seconds more.
pub(crate) fn member<V>(cache: &str, entry: &Entry<V>, ttl: i64) -> String {
    let mut member = name(cache);
    let joined = entry.source == Source::Coalesced;
    let failed = entry.freshness == Freshness::StaleOnError;
    let (fwd, stored) = match entry.provenance {
        Provenance::Forwarded { why, stored } => (Some(why.word()), stored),
        Provenance::FromTier if failed => (Some("stale"), false),
        Provenance::FromTier => (None, false),
    };
    // A write into a string does not fail.
    let _ = match fwd {
        Some(fwd) => write!(member, "; fwd={fwd}; ttl={ttl}"),
        None => write!(member, "; hit; ttl={ttl}"),
    };
    for (holds, parameter) in [
        (stored, "; stored"),
        (joined && fwd.is_some(), "; collapsed"),
        (failed, "; detail=stale-if-error"),
    ] {
        if holds {
            member.push_str(parameter);
        }
    }
    member
}

/// The name of the cache: a token if it can be written as one, else a string.
fn name(cache: &str) -> String {
    let mut bytes = cache.bytes();
    let begins = bytes
        .next()
        .is_some_and(|first| first.is_ascii_alphabetic() || first == b'*');
    if begins && bytes.all(is_token_byte) {
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

fn is_token_byte(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~:/".contains(&byte)
}
