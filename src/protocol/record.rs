//! The record: what one key of the shared tier holds.
//!
//! A record is a header of 104 bytes, then the tags, then the payload. Integers are little-endian,
//! except the version.
//!
//! | offset | bytes | field |
//! |---|---|---|
//! | 0 | 2 | magic, `TG` |
//! | 2 | 1 | format, 1 |
//! | 3 | 1 | kind: 1 value, 2 negative, 3 lease, 4 failed load, 5 hold-off |
//! | 4 | 16 | token: random; identifies this version of the value, or this one load |
//! | 20 | 16 | state: changed in place, see below; zero when written |
//! | 36 | 1 | value only: codec id; else 0 |
//! | 37 | 1 | zero |
//! | 38 | 2 | value only: schema version; else 0 |
//! | 40 | 2 | value or absence: number of tags; else 0 |
//! | 42 | 2 | zero |
//! | 44 | 8 | hash of the whole key (XXH3) |
//! | 52 | 8 | created, in milliseconds of the server's clock |
//! | 60 | 8 | value or absence: fresh for, in milliseconds; failed load: no attempt for, in milliseconds |
//! | 68 | 4 | value or absence: cost of a load, in milliseconds; lease, failed load: failures in a row |
//! | 72 | 16 | baseline: the incarnation and the watermark that were known when the load began |
//! | 88 | 8 | the user's version of the value, or 0; big-endian |
//! | 96 | 8 | checksum: XXH3 of tags and payload, seeded with XXH3 of the header before it with the state as zero |
//! | 104 | 8 each | hashes of the tags (XXH3) |
//!
//! The first 20 bytes are the **head**. The fill of a lease compares it with the head of the lease.
//! Magic, format and checksum keep their places in every later format. So a reader can tell a
//! record of a later format, which it leaves alone, from a damaged one, which it replaces.
//!
//! The **state** is changed by scripts, which cannot compute the checksum, so the checksum does not
//! cover it. In a lease its first byte is 1 when a process waits, and the rest is zero. In a value
//! or an absence it is zero. When the entry is expired by hand, the state becomes 8 random bytes
//! and their complement. So a comparison of the first 36 bytes notices every expiry, and no flipped
//! bit looks like one.

use xxhash_rust::xxh3::{xxh3_64, xxh3_64_with_seed};

use crate::random;

/// Bytes of the header.
pub(crate) const HEADER: usize = 104;
/// Bytes of the head.
pub(crate) const HEAD: usize = 20;
/// Bytes of head and state. A write that replaces a value compares them with those of the old one.
pub(crate) const HEAD_AND_STATE: usize = 36;
/// The offset of the byte of a lease that says that a process waits.
pub(crate) const WAITERS_AT: usize = 20;
/// The offset of the baseline.
pub(crate) const BASELINE_AT: usize = 72;
/// The offset of the user's version.
pub(crate) const VERSION_AT: usize = 88;
/// The number of tags that a value can have.
pub(crate) const MAX_TAGS: usize = 64;

const MAGIC: [u8; 2] = *b"TG";
const FORMAT: u8 = 1;
const CHECKSUM_AT: usize = 96;
/// Bytes of the header without the checksum.
pub(crate) const FIELDS: usize = CHECKSUM_AT;

/// The first 20 bytes of a record: magic, format, kind, token.
pub(crate) type Head = [u8; HEAD];

/// Random, and unique to one load or one version of a value. It is never one per process: of two
/// loads that shared a token, the older one could be stored.
pub(crate) type Token = [u8; 16];

/// The state of an entry that was expired by hand.
pub(crate) type Expiry = [u8; 16];

/// The watermarks of a cache, as L2 answers them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Watermarks {
    /// Random. A new one begins when the watermarks were lost.
    pub(crate) incarnation: u64,
    /// Counts the invalidations of tags and of everything.
    pub(crate) current: u64,
    /// The watermark of the last invalidation of everything.
    pub(crate) all: u64,
}

/// The watermark that was known when a load began: see
/// [`watermarks`](crate::coherence::watermarks).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Baseline {
    pub(crate) incarnation: u64,
    pub(crate) watermark: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Kind {
    Value = 1,
    Negative = 2,
    Lease = 3,
    Failed = 4,
    HoldOff = 5,
}

/// The fields of a header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Header {
    pub(crate) kind: Kind,
    pub(crate) token: Token,
    /// The entry was expired by hand. This field is read from the state and never written.
    pub(crate) expired: bool,
    pub(crate) codec: u8,
    pub(crate) schema: u16,
    pub(crate) tags: u16,
    pub(crate) key_hash: u64,
    pub(crate) created_ms: u64,
    pub(crate) fresh_ms: u64,
    /// In a lease and in a failed load: failures in a row.
    pub(crate) load_cost_ms: u32,
    pub(crate) baseline: Baseline,
    pub(crate) version: u64,
}

/// Why bytes cannot be used as a record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Malformed {
    /// Damaged, or no record at all: to be replaced.
    Damaged,
    /// An intact record of a later format: to be left alone.
    LaterFormat,
}

impl Header {
    /// A header without a value, for instance of a lease, an absence or a failed load.
    pub(crate) fn plain(kind: Kind, token: Token, key_hash: u64, created_ms: u64) -> Self {
        Self {
            kind,
            token,
            expired: false,
            codec: 0,
            schema: 0,
            tags: 0,
            key_hash,
            created_ms,
            fresh_ms: 0,
            load_cost_ms: 0,
            baseline: Baseline::default(),
            version: 0,
        }
    }

    pub(crate) fn head(&self) -> Head {
        head(self.kind, &self.token)
    }

    /// A record with room for the header. [`write_to`](Self::write_to) writes the header when tags
    /// and payload have been appended.
    pub(crate) fn reserve() -> Vec<u8> {
        vec![0; HEADER]
    }

    /// Writes the header, with its checksum, into the room that [`reserve`](Self::reserve) has
    /// left.
    pub(crate) fn write_to(&self, record: &mut [u8]) {
        debug_assert!(record.len() >= HEADER, "the record has room for a header");
        let Some((header, payload)) = record.split_at_mut_checked(HEADER) else {
            return;
        };
        header[..FIELDS].copy_from_slice(&self.fields());
        let sum = checksum(header, payload);
        header[CHECKSUM_AT..].copy_from_slice(&sum.to_le_bytes());
    }

    /// The header without its checksum, as it is when written. It does not change as long as the
    /// payload does not.
    pub(crate) fn fields(&self) -> [u8; FIELDS] {
        let mut header = [0; FIELDS];
        header[..HEAD].copy_from_slice(&self.head());
        header[36] = self.codec;
        header[38..40].copy_from_slice(&self.schema.to_le_bytes());
        header[40..42].copy_from_slice(&self.tags.to_le_bytes());
        header[44..52].copy_from_slice(&self.key_hash.to_le_bytes());
        header[52..60].copy_from_slice(&self.created_ms.to_le_bytes());
        header[60..68].copy_from_slice(&self.fresh_ms.to_le_bytes());
        header[68..72].copy_from_slice(&self.load_cost_ms.to_le_bytes());
        header[72..80].copy_from_slice(&self.baseline.incarnation.to_le_bytes());
        header[80..88].copy_from_slice(&self.baseline.watermark.to_le_bytes());
        header[88..96].copy_from_slice(&self.version.to_be_bytes());
        header
    }

    /// This header for the body of another record: the same value with other times.
    pub(crate) fn renewed_for(&self, record: &[u8]) -> Vec<u8> {
        let mut renewed = record.to_vec();
        self.write_to(&mut renewed);
        renewed.truncate(HEADER);
        renewed
    }

    /// A short identifier of this version of the value.
    pub(crate) fn version_id(&self) -> u64 {
        version_id(&self.token)
    }

    /// A complete record without payload.
    pub(crate) fn to_record(self) -> Vec<u8> {
        let mut record = Self::reserve();
        self.write_to(&mut record);
        record
    }

    /// Parses a record strictly: every byte has one meaning, and no byte is left over.
    pub(crate) fn parse(record: &[u8], key_hash: u64) -> Result<(Self, Body<'_>), Malformed> {
        let (header, body) = record.split_at_checked(HEADER).ok_or(Malformed::Damaged)?;
        if header[..2] != MAGIC || read_u64(header, CHECKSUM_AT) != checksum(header, body) {
            return Err(Malformed::Damaged);
        }
        if header[2] > FORMAT {
            return Err(Malformed::LaterFormat);
        }
        let parsed = Self::read(header).ok_or(Malformed::Damaged)?;
        let kind = parsed.kind;
        let mut state = [0; 16];
        state.copy_from_slice(&header[HEAD..HEAD_AND_STATE]);
        let state_is_sound = match kind {
            Kind::Lease => state[0] <= 1 && state[1..] == [0; 15],
            Kind::Value | Kind::Negative => state == [0; 16] || is_expiry(&state),
            Kind::Failed | Kind::HoldOff => state == [0; 16],
        };
        let (tags, payload) = body
            .split_at_checked(usize::from(parsed.tags) * 8)
            .ok_or(Malformed::Damaged)?;
        let sound = header[2] == FORMAT
            && header[37] == 0
            && header[42..44] == [0, 0]
            && parsed.key_hash == key_hash
            && state_is_sound
            && usize::from(parsed.tags) <= MAX_TAGS
            && (parsed.tags == 0 || matches!(kind, Kind::Value | Kind::Negative))
            && (kind == Kind::Value
                || (payload.is_empty() && parsed.codec == 0 && parsed.schema == 0));
        if sound {
            Ok((
                parsed,
                Body {
                    raw_tags: tags,
                    payload,
                },
            ))
        } else {
            Err(Malformed::Damaged)
        }
    }

    /// The fields of a header. Only the kind is checked.
    fn read(header: &[u8]) -> Option<Self> {
        let kind = match header[3] {
            1 => Kind::Value,
            2 => Kind::Negative,
            3 => Kind::Lease,
            4 => Kind::Failed,
            5 => Kind::HoldOff,
            _ => return None,
        };
        let mut token = Token::default();
        token.copy_from_slice(&header[4..HEAD]);
        Some(Self {
            kind,
            token,
            expired: kind != Kind::Lease && header[HEAD..HEAD_AND_STATE] != [0; 16],
            codec: header[36],
            schema: read_u16(header, 38),
            tags: read_u16(header, 40),
            key_hash: read_u64(header, 44),
            created_ms: read_u64(header, 52),
            fresh_ms: read_u64(header, 60),
            load_cost_ms: u32::from_le_bytes([header[68], header[69], header[70], header[71]]),
            baseline: Baseline {
                incarnation: read_u64(header, BASELINE_AT),
                watermark: read_u64(header, BASELINE_AT + 8),
            },
            version: version(header),
        })
    }

    /// The header of a record of which only the beginning is known, so its checksum is not checked.
    #[cfg(feature = "inspect")]
    pub(crate) fn peek(start: &[u8], key_hash: u64) -> Result<Self, Malformed> {
        let header = start.get(..HEADER).ok_or(Malformed::Damaged)?;
        if header[..2] == MAGIC && header[2] > FORMAT {
            return Err(Malformed::LaterFormat);
        }
        Self::read(header)
            .filter(|read| header[..3] == [MAGIC[0], MAGIC[1], FORMAT] && read.key_hash == key_hash)
            .ok_or(Malformed::Damaged)
    }
}

/// Tags and payload.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Body<'a> {
    /// The hashes of the tags, as bytes.
    pub(crate) raw_tags: &'a [u8],
    pub(crate) payload: &'a [u8],
}

impl Body<'_> {
    /// The hashes of the tags.
    pub(crate) fn tags(&self) -> impl ExactSizeIterator<Item = u64> {
        self.raw_tags.chunks_exact(8).map(|tag| read_u64(tag, 0))
    }
}

/// The hashes of the tags of a record with this header.
pub(crate) fn tags(record: &[u8], header: &Header) -> impl Iterator<Item = u64> {
    let tags = record.get(HEADER..).unwrap_or_default().chunks_exact(8);
    tags.take(header.tags.into()).map(|tag| read_u64(tag, 0))
}

/// A state for an entry that is expired by hand. No two are alike.
pub(crate) fn expiry() -> Expiry {
    let nonce = random::number();
    let mut expiry = [0; 16];
    expiry[..8].copy_from_slice(&nonce.to_le_bytes());
    expiry[8..].copy_from_slice(&(!nonce).to_le_bytes());
    expiry
}

fn is_expiry(state: &Expiry) -> bool {
    read_u64(state, 0) == !read_u64(state, 8)
}

/// A short identifier of a version of a value: the first half of its token.
pub(crate) fn version_id(token: &Token) -> u64 {
    read_u64(token, 0)
}

/// The head of a record of this kind and token.
pub(crate) fn head(kind: Kind, token: &Token) -> Head {
    let mut head = Head::default();
    head[..2].copy_from_slice(&MAGIC);
    head[2] = FORMAT;
    head[3] = kind as u8;
    head[4..].copy_from_slice(token);
    head
}

// The functions below are all that a tier reads of a record.

/// Whether this is a lease.
pub(crate) fn is_lease(record: &[u8]) -> bool {
    record.len() == HEADER && is_kind(record, &[Kind::Lease])
}

/// Whether this is a value or an absence.
pub(crate) fn is_entry(record: &[u8]) -> bool {
    record.len() >= HEADER && is_kind(record, &[Kind::Value, Kind::Negative])
}

/// Of a failed load: for how many milliseconds there is no attempt, and how many failed in a row.
pub(crate) fn failed(record: &[u8]) -> Option<(u64, u32)> {
    let failed = record.len() == HEADER && is_kind(record, &[Kind::Failed]);
    failed.then(|| {
        let failures = [record[68], record[69], record[70], record[71]];
        (read_u64(record, 60), u32::from_le_bytes(failures))
    })
}

pub(crate) fn is_hold_off(record: &[u8]) -> bool {
    is_kind(record, &[Kind::HoldOff])
}

fn is_kind(record: &[u8], kinds: &[Kind]) -> bool {
    record.len() >= 4
        && record[..2] == MAGIC
        && record[2] == FORMAT
        && kinds.iter().any(|kind| record[3] == *kind as u8)
}

/// The baseline of a lease's load.
pub(crate) fn lease_baseline(lease: &[u8]) -> Baseline {
    Baseline {
        incarnation: read_u64(lease, BASELINE_AT),
        watermark: read_u64(lease, BASELINE_AT + 8),
    }
}

/// The user's version of an entry. It is big-endian because scripts compare it byte by byte.
pub(crate) fn version(entry: &[u8]) -> u64 {
    read_u64(entry, VERSION_AT).swap_bytes()
}

/// The hash of a key, as in a record's header.
pub(crate) fn key_hash(redis_key: &[u8]) -> u64 {
    xxh3_64(redis_key)
}

fn checksum(header: &[u8], payload: &[u8]) -> u64 {
    let mut covered = [0; CHECKSUM_AT];
    covered.copy_from_slice(&header[..CHECKSUM_AT]);
    covered[HEAD..HEAD_AND_STATE].fill(0);
    xxh3_64_with_seed(payload, xxh3_64(&covered))
}

fn read_u16(bytes: &[u8], at: usize) -> u16 {
    u16::from_le_bytes([bytes[at], bytes[at + 1]])
}

fn read_u64(bytes: &[u8], at: usize) -> u64 {
    let mut eight = [0; 8];
    eight.copy_from_slice(&bytes[at..at + 8]);
    u64::from_le_bytes(eight)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const KEY: u64 = 0x1234_5678_9abc_def0;

    fn sample() -> (Header, Vec<u8>) {
        let header = Header {
            kind: Kind::Value,
            token: *b"0123456789abcdef",
            expired: false,
            codec: 1,
            schema: 7,
            tags: 2,
            key_hash: KEY,
            created_ms: 1_700_000_000_000,
            fresh_ms: 300_000,
            load_cost_ms: 12,
            baseline: Baseline {
                incarnation: 5,
                watermark: 6,
            },
            version: 9,
        };
        let mut record = Header::reserve();
        record.extend_from_slice(&11_u64.to_le_bytes());
        record.extend_from_slice(&12_u64.to_le_bytes());
        record.extend_from_slice(b"payload");
        header.write_to(&mut record);
        (header, record)
    }

    #[test]
    fn what_was_sealed_is_read_again() {
        let (header, record) = sample();
        let (parsed, body) = Header::parse(&record, KEY).unwrap();
        assert_eq!((parsed, body.payload), (header, &b"payload"[..]));
        assert_eq!(body.tags().collect::<Vec<_>>(), [11, 12]);
        for kind in [Kind::Negative, Kind::Lease, Kind::Failed, Kind::HoldOff] {
            let header = Header::plain(kind, [9; 16], KEY, 5);
            let record = header.to_record();
            let (parsed, body) = Header::parse(&record, KEY).unwrap();
            assert_eq!((parsed, body.payload), (header, &b""[..]));
            assert_eq!(is_lease(&record), kind == Kind::Lease);
        }
    }

    #[test]
    fn every_truncation_and_every_flipped_bit_is_refused() {
        let (_, record) = sample();
        for len in 0..record.len() {
            assert!(
                Header::parse(&record[..len], KEY).is_err(),
                "truncated to {len}"
            );
        }
        for bit in 0..record.len() * 8 {
            let mut damaged = record.clone();
            damaged[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(
                Header::parse(&damaged, KEY),
                Err(Malformed::Damaged),
                "bit {bit}"
            );
        }
    }

    #[test]
    fn a_flipped_bit_in_a_lease_is_refused_but_for_the_one_that_says_waiting() {
        let record = Header::plain(Kind::Lease, [9; 16], KEY, 5).to_record();
        for bit in 0..record.len() * 8 {
            let mut damaged = record.clone();
            damaged[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(
                Header::parse(&damaged, KEY).is_ok(),
                bit == WAITERS_AT * 8,
                "bit {bit}"
            );
        }
    }

    #[test]
    fn an_entry_that_was_expired_by_hand_says_so_and_no_flipped_bit_of_that_goes_unnoticed() {
        let (header, mut record) = sample();
        let first = expiry();
        record[HEAD..HEAD_AND_STATE].copy_from_slice(&first);
        let expired = Header {
            expired: true,
            ..header
        };
        assert_eq!(
            Header::parse(&record, KEY).map(|(header, _)| header),
            Ok(expired)
        );
        assert_ne!(first, expiry());
        for bit in HEAD * 8..HEAD_AND_STATE * 8 {
            record[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(Header::parse(&record, KEY), Err(Malformed::Damaged));
            record[bit / 8] ^= 1 << (bit % 8);
        }
        for kind in [Kind::Lease, Kind::Failed, Kind::HoldOff] {
            let mut other = Header::plain(kind, [9; 16], KEY, 5).to_record();
            other[HEAD..HEAD_AND_STATE].copy_from_slice(&first);
            assert_eq!(Header::parse(&other, KEY), Err(Malformed::Damaged));
        }
    }

    #[test]
    fn more_tags_than_there_can_be_are_refused() {
        let (mut header, _) = sample();
        for (tags, bytes) in [(3, 23), (65, 65 * 8), (u16::MAX, 0)] {
            header.tags = tags;
            let mut record = Header::reserve();
            record.resize(HEADER + bytes, 0);
            header.write_to(&mut record);
            assert_eq!(Header::parse(&record, KEY), Err(Malformed::Damaged));
        }
    }

    #[test]
    fn a_record_of_another_key_is_refused() {
        let (_, record) = sample();
        assert_eq!(Header::parse(&record, KEY + 1), Err(Malformed::Damaged));
    }

    #[test]
    fn an_intact_record_of_a_later_format_is_told_from_a_damaged_one() {
        let (_, mut record) = sample();
        record[2] = 2;
        assert_eq!(Header::parse(&record, KEY), Err(Malformed::Damaged));
        let (header, payload) = record.split_at_mut(HEADER);
        let sum = checksum(header, payload);
        header[CHECKSUM_AT..].copy_from_slice(&sum.to_le_bytes());
        assert_eq!(Header::parse(&record, KEY), Err(Malformed::LaterFormat));
    }

    proptest! {
        #[test]
        fn no_bytes_panic(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            prop_assert!(Header::parse(&bytes, KEY).is_err());
        }

        #[test]
        fn headers_survive(
            token in any::<[u8; 16]>(), codec in any::<u8>(), schema in any::<u16>(), key_hash in any::<u64>(),
            created_ms in any::<u64>(), fresh_ms in any::<u64>(), load_cost_ms in any::<u32>(),
            incarnation in any::<u64>(), watermark in any::<u64>(), version in any::<u64>(),
            tags in prop::collection::vec(any::<u64>(), 0..5), payload in prop::collection::vec(any::<u8>(), 0..100)
        ) {
            let baseline = Baseline { incarnation, watermark };
            let header = Header {
                kind: Kind::Value, token, expired: false, codec, schema, tags: tags.len() as u16, key_hash,
                created_ms, fresh_ms, load_cost_ms, baseline, version,
            };
            let mut record = Header::reserve();
            record.extend(tags.iter().flat_map(|tag| tag.to_le_bytes()));
            record.extend_from_slice(&payload);
            header.write_to(&mut record);
            let (parsed, body) = Header::parse(&record, key_hash).unwrap();
            prop_assert_eq!((parsed, body.payload), (header, &payload[..]));
            prop_assert_eq!(body.tags().collect::<Vec<_>>(), tags);
        }
    }
}
