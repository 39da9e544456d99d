//! The requests of the tier protocol: their arguments and their answers.

use bytes::Bytes;

use crate::protocol::record::Watermarks;

/// The key of a record, and the key of its claim. The claim is the lease of the process that
/// refreshes the record. It has a key of its own, because the record stays readable until the new
/// value replaces it.
#[derive(Clone, Debug)]
pub(crate) struct Keys {
    pub(crate) record: Bytes,
    pub(crate) claim: Bytes,
}

impl Keys {
    /// The claim of `prefix:users:42` is `prefix:users::{prefix:users:42}`. It is on the same node
    /// of a cluster as its record and has the same prefix for access rules. It is the name of no
    /// record, because encoded keys hold no `:`.
    pub(crate) fn of(record: &Bytes) -> Self {
        let key_at = record
            .iter()
            .rposition(|byte| *byte == b':')
            .map_or(0, |at| at + 1);
        let (namespace, key) = record.split_at(key_at);
        // A hash tag in the prefix decides the slot of both. Without one the claim's tag is the
        // whole key of the record.
        let claim = if namespace.contains(&b'{') {
            [namespace, b":claim:", key].concat()
        } else {
            [namespace, b":{", record, b"}"].concat()
        };
        Self {
            record: record.clone(),
            claim: claim.into(),
        }
    }
}

/// The answer to a read: a record or nothing. `Err`: L2 may not be asked, or did not answer.
pub(crate) type RecordRead = Result<Option<Bytes>, ()>;

/// What the key must hold for a lease to be acquired.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Replacing<'a> {
    /// Nothing: the load fills an empty key.
    Nothing,
    /// A record with this beginning, which is no longer of use: the lease replaces it.
    Useless(&'a [u8]),
    /// An entry with this beginning: the load refreshes it, and it stays until then.
    Entry(&'a [u8]),
}

/// The result of an attempt to acquire a lease.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Acquired {
    /// The lease is ours. The number of loads that failed in a row before, as far as is known.
    Granted(u32),
    /// Another process has the lease, for this many milliseconds more. It knows that we wait.
    Held(u64),
    /// A refresh failed recently. No attempt for this many milliseconds.
    Failed(u64),
    /// The key holds another record than the caller has seen, or nothing.
    Record(Option<Bytes>),
}

/// What a refresh writes.
#[derive(Debug)]
pub(crate) enum RefreshWrite {
    /// A new record.
    Record(Vec<u8>),
    /// A new header for the record that the key holds: the value is unchanged, its times are not.
    Header(Vec<u8>),
    /// Nothing that may be stored. The record that the key holds is out of date and is removed.
    Nothing,
}

/// A message for a channel of the bus.
#[derive(Clone, Debug)]
pub(crate) struct Publication {
    pub(crate) channel: Bytes,
    pub(crate) message: Bytes,
}

/// What is to be invalidated as a whole.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Advance {
    Nothing,
    All,
    Tag(u64),
}

/// A request for the watermarks of a cache.
#[derive(Clone, Debug)]
pub(crate) struct WatermarkRequest {
    pub(crate) advance: Advance,
    /// The watermarks that the caller knows. A server that knows lower ones has lost some.
    pub(crate) known: Watermarks,
    /// Tags whose latest watermark is wanted.
    pub(crate) tags: Vec<u64>,
    /// Published with the watermarks.
    pub(crate) publication: Option<Publication>,
}

/// How long the watermarks live after they were last read.
#[cfg(feature = "redis")]
pub(crate) const WATERMARKS_TTL: std::time::Duration =
    std::time::Duration::from_secs(30 * 24 * 3600);

/// Adds the watermarks to a message about them.
pub(crate) fn with_watermarks(mut message: Vec<u8>, watermarks: Watermarks) -> Vec<u8> {
    for number in [watermarks.incarnation, watermarks.current, watermarks.all] {
        message.extend_from_slice(&number.to_le_bytes());
    }
    message
}

/// An incarnation for a cache that has none: random, and small enough for every script to count
/// with.
pub(crate) fn new_incarnation() -> u64 {
    (crate::random::number() >> 12).max(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_claim_has_the_prefix_and_the_slot_of_its_record() {
        let claim = |record: &'static str| {
            let keys = Keys::of(&Bytes::from_static(record.as_bytes()));
            String::from_utf8(keys.claim.to_vec()).expect("a text")
        };
        assert_eq!(claim("app:users:42"), "app:users::{app:users:42}");
        assert_eq!(claim("a:b:users:%2f"), "a:b:users::{a:b:users:%2f}");
        assert_eq!(claim("{app}:users:42"), "{app}:users::claim:42");
        assert_eq!(claim("x{app}y:users:42"), "x{app}y:users::claim:42");
    }
}
