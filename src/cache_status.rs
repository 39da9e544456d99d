//! A member of the HTTP field `Cache-Status` (RFC 9211), which is a list of items in the sense of
//! structured fields (RFC 8941): a token or a string, with parameters.

use std::fmt::Write;

use tokio::time::Instant;

use crate::entry::{Entry, Freshness, Provenance, Source};

/// The largest integer of RFC 8941.
const LARGEST: i64 = 999_999_999_999_999;

impl<V> Entry<V> {
    /// How the look-up was answered, as a member of the HTTP field `Cache-Status` (RFC 9211), for the
    /// response that is made of the entry. `cache` is the name that this cache goes by there; what it
    /// cannot be written with there (control characters, and what is not ASCII) becomes `?`.
    ///
    /// | member | |
    /// |---|---|
    /// | `users; hit; ttl=240` | a tier had it; fresh for 240 seconds more, at the moment of this call |
    /// | `users; hit; ttl=-12` | past its TTL for 12 seconds, answered within `stale_while_revalidate` or after the soft timeout |
    /// | `users; fwd=stale; ttl=-12; detail=stale-if-error` | the same, because the load failed |
    /// | `users; fwd=miss; ttl=300; stored` | it was loaded, and a tier keeps it |
    /// | `users; fwd=stale; ttl=300; stored; collapsed` | it was loaded in the place of an older one, and this look-up joined the load of another |
    ///
    /// The key is left out: it may be about a person.
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
        // One that was expired by hand is stale before its time.
        let left = match self.freshness {
            Freshness::Fresh => left,
            Freshness::Stale | Freshness::StaleOnError => left.min(0),
        };
        member(cache, self, left)
    }
}

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
