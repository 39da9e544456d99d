//! Records, parsed.

use super::marks::Marks;
use crate::protocol::record::{self, Header, Malformed, WAITERS_AT};

/// The kind of a record.
#[non_exhaustive]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A value.
    Value,
    /// An absence: the source of truth has nothing under this key.
    Negative,
    /// A lease: a process loads the value.
    Lease,
    /// A load failed: for some time there is no further attempt.
    Failed,
    /// A hold-off after an invalidation: for some time nothing is stored.
    HoldOff,
}

/// A parsed record.
#[non_exhaustive]
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Record {
    /// Its kind, which decides what the other fields mean.
    pub kind: Kind,
    /// Random: names this version of the value, or this one load. Nothing else in a lease
    /// identifies its holder.
    pub token: [u8; 16],
    /// When it was made: milliseconds since the epoch, by the clock of the server.
    pub created_ms: u64,
    /// Value or absence: how many milliseconds it is fresh. Failed load: how many milliseconds
    /// there is no attempt. Else 0.
    pub fresh_ms: u64,
    /// Value or absence: whether `expire` was called.
    pub expired: bool,
    /// Lease: whether another process waits for it.
    pub waited_for: bool,
    /// Value or absence: how long a load takes, in milliseconds; else 0.
    pub load_cost_ms: u32,
    /// Lease, failed load: the number of loads that failed in a row; else 0.
    pub failures: u32,
    /// Value: the [id](crate::Codec::id) of the codec that wrote it; else 0.
    pub codec: u8,
    /// Value: the [`schema_version`](crate::CacheBuilder::schema_version); else 0.
    pub schema_version: u16,
    /// Value or absence: the [hashes](super::tag_hash) of its tags.
    pub tags: Vec<u64>,
    /// The era in which its load began.
    pub era: u64,
    /// The last mark that was known before its load began.
    pub mark: u64,
    /// The [version](crate::Loaded::version) that the loader gave it; 0 for none.
    pub version: u64,
    /// The length of the encoded value, in bytes.
    pub payload_bytes: usize,
}

/// Why bytes cannot be read as a record.
#[non_exhaustive]
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Unreadable {
    /// It is not a record of this key, or it is damaged. A cache ignores it and replaces it.
    #[error("no record of this key, or a damaged one")]
    Damaged,
    /// It is a record of a later format. A cache leaves it alone.
    #[error("a record of a later format")]
    LaterFormat,
}

impl Record {
    /// How many bytes of the beginning of a record [`peek`](Self::peek) needs at most, its tags
    /// included.
    pub const START: usize = record::HEADER + 8 * record::MAX_TAGS;

    /// Parses the value of a key, a [record](super::Names::record) or a
    /// [claim](super::Names::claim), as strictly as a cache does.
    ///
    /// # Errors
    ///
    /// [`Unreadable`] if a cache would not take it.
    pub fn parse(redis_key: &[u8], bytes: &[u8]) -> Result<Self, Unreadable> {
        let (header, body) = Header::parse(bytes, record::key_hash(redis_key))?;
        let waited_for = bytes.get(WAITERS_AT) == Some(&1);
        let tags = body.tags().collect();
        Ok(Self::of(&header, waited_for, tags, body.payload.len()))
    }

    /// Parses the [beginning](Self::START) of a record that has this many bytes. Cheaper than
    /// [`parse`](Self::parse), but no damage is noticed, because the checksum covers the whole
    /// record.
    ///
    /// # Errors
    ///
    /// [`Unreadable`] if it is no record of this key.
    pub fn peek(redis_key: &[u8], start: &[u8], bytes: usize) -> Result<Self, Unreadable> {
        let header = Header::peek(start, record::key_hash(redis_key))?;
        let waited_for = start.get(WAITERS_AT) == Some(&1);
        let tags: Vec<u64> = record::tags(start, &header).collect();
        let payload = bytes.saturating_sub(record::HEADER + 8 * usize::from(header.tags));
        Ok(Self::of(&header, waited_for, tags, payload))
    }

    fn of(header: &Header, waited_for: bool, tags: Vec<u64>, payload_bytes: usize) -> Self {
        let kind = match header.kind {
            record::Kind::Value => Kind::Value,
            record::Kind::Negative => Kind::Negative,
            record::Kind::Lease => Kind::Lease,
            record::Kind::Failed => Kind::Failed,
            record::Kind::HoldOff => Kind::HoldOff,
        };
        // The record has one field for both.
        let (load_cost_ms, failures) = match kind {
            Kind::Lease | Kind::Failed => (0, header.load_cost_ms),
            _ => (header.load_cost_ms, 0),
        };
        Self {
            kind,
            token: header.token,
            created_ms: header.created_ms,
            fresh_ms: header.fresh_ms,
            expired: header.expired,
            waited_for: kind == Kind::Lease && waited_for,
            load_cost_ms,
            failures,
            codec: header.codec,
            schema_version: header.schema,
            tags,
            era: header.baseline.incarnation,
            mark: header.baseline.watermark,
            version: header.version,
            payload_bytes,
        }
    }

    /// Whether it was invalidated with others since its load began: it is stored, but never
    /// answered. `latest`: the latest mark of its tags, or 0 if it has none.
    pub fn is_dead(&self, marks: &Marks, latest: u64) -> bool {
        let of_tags = if self.tags.is_empty() {
            0
        } else {
            latest.max(marks.floor)
        };
        self.era != marks.era || self.mark < marks.all.max(of_tags)
    }
}

impl From<Malformed> for Unreadable {
    fn from(malformed: Malformed) -> Self {
        match malformed {
            Malformed::Damaged => Self::Damaged,
            Malformed::LaterFormat => Self::LaterFormat,
        }
    }
}

/// The name of a codec, by its [id](crate::Codec::id).
pub fn codec_name(id: u8) -> &'static str {
    match id {
        1 => "bincode",
        2 => "json",
        16 => "sealed",
        128.. => "a codec of the user's",
        _ => "unknown",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const KEY: &[u8] = b"tidegate:users:42";

    /// Header and bytes of a value with two tags.
    fn value() -> Vec<u8> {
        let hash = record::key_hash(KEY);
        let mut header = Header::plain(record::Kind::Value, [7; 16], hash, 1_000);
        (header.codec, header.schema, header.tags) = (2, 3, 2);
        (header.fresh_ms, header.load_cost_ms, header.version) = (500, 20, 9);
        (header.baseline.incarnation, header.baseline.watermark) = (5, 6);
        let mut record = Header::reserve();
        record.extend_from_slice(&11_u64.to_le_bytes());
        record.extend_from_slice(&12_u64.to_le_bytes());
        record.extend_from_slice(b"payload");
        header.write_to(&mut record);
        record
    }

    #[test]
    fn every_field_is_where_it_belongs() {
        let bytes = value();
        let record = Record::parse(KEY, &bytes).expect("a record");
        assert_eq!((record.kind, record.token), (Kind::Value, [7; 16]));
        assert_eq!((record.created_ms, record.fresh_ms), (1_000, 500));
        assert_eq!((record.load_cost_ms, record.failures), (20, 0));
        assert_eq!((record.codec, record.schema_version), (2, 3));
        assert_eq!((record.era, record.mark, record.version), (5, 6, 9));
        assert_eq!((&record.tags[..], record.payload_bytes), (&[11, 12][..], 7));
        assert!(!record.expired && !record.waited_for);
        let start = &bytes[..bytes.len() - 7];
        assert_eq!(Record::peek(KEY, start, bytes.len()), Ok(record));
    }

    #[test]
    fn leases_say_who_waits_and_how_often_loads_failed() {
        let hash = record::key_hash(KEY);
        let mut header = Header::plain(record::Kind::Lease, [8; 16], hash, 2_000);
        header.load_cost_ms = 4;
        let mut bytes = header.to_record();
        let read = |bytes: &[u8]| Record::parse(KEY, bytes).expect("a record");
        assert_eq!((read(&bytes).failures, read(&bytes).load_cost_ms), (4, 0));
        assert!(!read(&bytes).waited_for);
        bytes[WAITERS_AT] = 1;
        assert!(read(&bytes).waited_for && !read(&bytes).expired);
        assert!(Record::peek(KEY, &bytes, bytes.len()).is_ok_and(|lease| lease.waited_for));
    }

    #[test]
    fn what_a_cache_would_not_take_is_refused() {
        let mut bytes = value();
        let other = b"tidegate:users:43";
        assert_eq!(Record::parse(other, &bytes), Err(Unreadable::Damaged));
        assert_eq!(Record::peek(other, &bytes, 127), Err(Unreadable::Damaged));
        assert_eq!(
            Record::peek(KEY, &bytes[..99], 99),
            Err(Unreadable::Damaged)
        );
        bytes[2] = 2;
        assert_eq!(Record::peek(KEY, &bytes, 127), Err(Unreadable::LaterFormat));
        bytes[2] = 1;
        *bytes.last_mut().expect("bytes") ^= 1;
        assert_eq!(Record::parse(KEY, &bytes), Err(Unreadable::Damaged));
        assert!(Record::peek(KEY, &bytes, 127).is_ok());
        bytes[0] = b'X';
        assert_eq!(Record::peek(KEY, &bytes, 127), Err(Unreadable::Damaged));
    }

    #[test]
    fn what_was_invalidated_as_a_whole_is_dead() {
        let record = Record::parse(KEY, &value()).expect("a record");
        let marks = |era, all, floor| Marks {
            era,
            mark: 9,
            all,
            tagged: 9,
            floor,
        };
        assert!(!record.is_dead(&marks(5, 6, 0), 6));
        assert!(record.is_dead(&marks(4, 6, 0), 6), "another era");
        assert!(record.is_dead(&marks(5, 7, 0), 6), "everything");
        assert!(record.is_dead(&marks(5, 6, 0), 7), "a tag");
        assert!(record.is_dead(&marks(5, 6, 7), 0), "perhaps a tag");
        let untagged = Record {
            tags: Vec::new(),
            ..record
        };
        assert!(!untagged.is_dead(&marks(5, 6, 7), 7));
    }
}
