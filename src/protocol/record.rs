//! The record: what one key of the shared tier holds.
//!
//! A header of 104 bytes, then the tags, then the payload. Integers are little-endian, but for the
//! version.
//!
//! | offset | bytes | field |
//! |---|---|---|
//! | 0 | 2 | magic, `TG` |
//! | 2 | 1 | format, 1 |
//! | 3 | 1 | kind: 1 value, 2 negative, 3 lease, 4 failed load, 5 hold-off |
//! | 4 | 16 | token: random; identifies this version of the value, or this one load |
//! | 20 | 16 | state: what is set in place, see below; zero when written |
//! | 36 | 1 | value only: codec id; else 0 |
//! | 37 | 1 | zero |
//! | 38 | 2 | value only: schema version; else 0 |
//! | 40 | 2 | value or absence: how many tags; else 0 |
//! | 42 | 2 | zero |
//! | 44 | 8 | hash of the whole key (XXH3) |
//! | 52 | 8 | created, in milliseconds of the server's clock |
//! | 60 | 8 | value or absence: fresh for, in milliseconds; failed load: no attempt for, in milliseconds |
//! | 68 | 4 | value or absence: what a load costs, in milliseconds; lease, failed load: failures in a row |
//! | 72 | 16 | era and mark: how much was known to be invalidated as a whole when the load began |
//! | 88 | 8 | the user's version of the value, or 0; big-endian |
//! | 96 | 8 | checksum: XXH3 of what follows, seeded with XXH3 of the header before it, state taken as zero |
//! | 104 | 8 each | hashes of the tags (XXH3) |
//!
//! The first 20 bytes, the **head**, are what the fill of a lease is compared against. Magic,
//! format and the checksum keep their places in every later format, so that a record of a later one
//! can be told from a damaged one: the first is left alone, the second is replaced.
//!
//! The **state** is changed by scripts, which cannot compute the checksum, so it carries its own.
//! In a lease the first byte is 1 when someone waits, and the rest is zero. In a value or an
//! absence it is zero, or, once the entry was expired by hand, 8 random bytes and their complement:
//! what is compared with the first 36 bytes notices every expiry, and no flipped bit looks like
//! one.

use xxhash_rust::xxh3::{xxh3_64, xxh3_64_with_seed};

use crate::random;

/// Bytes of the header.
pub(crate) const HEADER: usize = 104;
/// Bytes of the head.
pub(crate) const HEAD: usize = 20;
/// Bytes of head and state: what replacing a value is compared against.
pub(crate) const STATED: usize = 36;
/// Where a lease says that someone waits.
pub(crate) const WAITERS: usize = 20;
/// Where era and mark are.
pub(crate) const STAMP: usize = 72;
/// Where the user's version is.
pub(crate) const VERSION: usize = 88;
/// Tags that a value can have.
pub(crate) const MOST_TAGS: usize = 64;

const MAGIC: [u8; 2] = *b"TG";
const FORMAT: u8 = 1;
const CHECKSUM: usize = 96;
/// Bytes of the header that say something of the record: all but the checksum.
pub(crate) const FIELDS: usize = CHECKSUM;

/// The first 20 bytes of a record: magic, format, kind, token.
pub(crate) type Head = [u8; HEAD];

/// Random, unique to one load or one version of a value; never one per process, because two loads
/// that share a token let the older one commit.
pub(crate) type Token = [u8; 16];

/// What the state of an entry is set to when it is expired by hand.
pub(crate) type Expiry = [u8; 16];

/// The watermarks of a cache, as L2 answers them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Watermarks {
    /// Random. A new one begins where the watermarks were lost.
    pub(crate) incarnation: u64,
    /// Counts the invalidations of tags and of everything.
    pub(crate) current: u64,
    /// The watermark of the last invalidation of everything.
    pub(crate) all: u64,
}

/// How much was known to be invalidated as a whole: see [`marks`](crate::coherence::watermarks).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Baseline {
    /// Random; a new one when the marks were lost.
    pub(crate) incarnation: u64,
    /// The last mark.
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

/// A header as it is written, and as it was read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Header {
    pub(crate) kind: Kind,
    pub(crate) token: Token,
    /// Not fresh any more, because somebody said so. Never written, only read.
    pub(crate) expired: bool,
    pub(crate) codec: u8,
    pub(crate) schema: u16,
    pub(crate) tags: u16,
    pub(crate) key_hash: u64,
    pub(crate) created_ms: u64,
    pub(crate) fresh_ms: u64,
    /// Of a lease and of a failed load: failures in a row.
    pub(crate) load_cost_ms: u32,
    pub(crate) baseline: Baseline,
    pub(crate) version: u64,
}

/// Why bytes are not a record that can be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Malformed {
    /// Not ours, or damaged: to be replaced.
    Damaged,
    /// An intact record of a later format: to be left alone.
    LaterFormat,
}

impl Header {
    /// A header without a value: a lease, a negative entry or the mark of a failed load.
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

    /// Room for the header; [`seal`](Self::seal) fills it in when the payload stands behind it.
    pub(crate) fn reserve() -> Vec<u8> {
        vec![0; HEADER]
    }

    /// Writes the header in front of the payload: `record` begins with `HEADER` bytes of room.
    pub(crate) fn seal(&self, record: &mut [u8]) {
        debug_assert!(record.len() >= HEADER, "the record has room for a header");
        let Some((header, payload)) = record.split_at_mut_checked(HEADER) else {
            return;
        };
        header[..FIELDS].copy_from_slice(&self.fields());
        let sum = checksum(header, payload);
        header[CHECKSUM..].copy_from_slice(&sum.to_le_bytes());
    }

    /// The header but for its checksum, with the state that it is written with: what stays as it is
    /// as long as the payload does.
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

    /// The header for the body of another record: the same value with other times.
    pub(crate) fn reseal(&self, record: &[u8]) -> Vec<u8> {
        let mut renewed = record.to_vec();
        self.seal(&mut renewed);
        renewed.truncate(HEADER);
        renewed
    }

    /// What tells this version of the value from others, short.
    pub(crate) fn version_id(&self) -> u64 {
        version_id(&self.token)
    }

    /// A whole record without payload.
    pub(crate) fn to_record(self) -> Vec<u8> {
        let mut record = Self::reserve();
        self.seal(&mut record);
        record
    }

    /// Takes a record apart, strictly: every byte has one meaning, and none is left over.
    pub(crate) fn parse(record: &[u8], key_hash: u64) -> Result<(Self, Body<'_>), Malformed> {
        let (header, body) = record.split_at_checked(HEADER).ok_or(Malformed::Damaged)?;
        if header[..2] != MAGIC || read_u64(header, CHECKSUM) != checksum(header, body) {
            return Err(Malformed::Damaged);
        }
        if header[2] > FORMAT {
            return Err(Malformed::LaterFormat);
        }
        let parsed = Self::read(header).ok_or(Malformed::Damaged)?;
        let kind = parsed.kind;
        let mut state = [0; 16];
        state.copy_from_slice(&header[HEAD..STATED]);
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
            && usize::from(parsed.tags) <= MOST_TAGS
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

    /// What the fields of a header say, unchecked but for the kind.
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
            expired: kind != Kind::Lease && header[HEAD..STATED] != [0; 16],
            codec: header[36],
            schema: read_u16(header, 38),
            tags: read_u16(header, 40),
            key_hash: read_u64(header, 44),
            created_ms: read_u64(header, 52),
            fresh_ms: read_u64(header, 60),
            load_cost_ms: u32::from_le_bytes([header[68], header[69], header[70], header[71]]),
            baseline: Baseline {
                incarnation: read_u64(header, STAMP),
                watermark: read_u64(header, STAMP + 8),
            },
            version: version(header),
        })
    }

    /// The header of a record of which only the beginning is here, so that its checksum says
    /// nothing.
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

/// What stands behind a header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Body<'a> {
    /// The hashes of the tags, as they stand there.
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

/// A state for an entry that is expired by hand; no two are alike.
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

/// What tells a version of a value from others, short.
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

// A tier does not read further than this.

/// Whether this is a lease.
pub(crate) fn is_lease(record: &[u8]) -> bool {
    record.len() == HEADER && is_of(record, &[Kind::Lease])
}

/// Whether this is a value or an absence.
pub(crate) fn is_entry(record: &[u8]) -> bool {
    record.len() >= HEADER && is_of(record, &[Kind::Value, Kind::Negative])
}

/// For how many milliseconds after a failed load there is no attempt, and how many failed in a row.
pub(crate) fn failed(record: &[u8]) -> Option<(u64, u32)> {
    let failed = record.len() == HEADER && is_of(record, &[Kind::Failed]);
    failed.then(|| {
        let failures = [record[68], record[69], record[70], record[71]];
        (read_u64(record, 60), u32::from_le_bytes(failures))
    })
}

pub(crate) fn is_hold_off(record: &[u8]) -> bool {
    is_of(record, &[Kind::HoldOff])
}

fn is_of(record: &[u8], kinds: &[Kind]) -> bool {
    record.len() >= 4
        && record[..2] == MAGIC
        && record[2] == FORMAT
        && kinds.iter().any(|kind| record[3] == *kind as u8)
}

/// The era that a lease's load began in.
pub(crate) fn lease_baseline(lease: &[u8]) -> Baseline {
    Baseline {
        incarnation: read_u64(lease, STAMP),
        watermark: read_u64(lease, STAMP + 8),
    }
}

/// The user's version of an entry. Scripts compare it byte by byte, hence its order.
pub(crate) fn version(entry: &[u8]) -> u64 {
    read_u64(entry, VERSION).swap_bytes()
}

/// The hash of a key as records carry it.
pub(crate) fn key_hash(redis_key: &[u8]) -> u64 {
    xxh3_64(redis_key)
}

fn checksum(header: &[u8], payload: &[u8]) -> u64 {
    let mut covered = [0; CHECKSUM];
    covered.copy_from_slice(&header[..CHECKSUM]);
    covered[HEAD..STATED].fill(0);
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
        header.seal(&mut record);
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
                bit == WAITERS * 8,
                "bit {bit}"
            );
        }
    }

    #[test]
    fn an_entry_that_was_expired_by_hand_says_so_and_no_flipped_bit_of_that_goes_unnoticed() {
        let (header, mut record) = sample();
        let first = expiry();
        record[HEAD..STATED].copy_from_slice(&first);
        let expired = Header {
            expired: true,
            ..header
        };
        assert_eq!(
            Header::parse(&record, KEY).map(|(header, _)| header),
            Ok(expired)
        );
        assert_ne!(first, expiry());
        for bit in HEAD * 8..STATED * 8 {
            record[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(Header::parse(&record, KEY), Err(Malformed::Damaged));
            record[bit / 8] ^= 1 << (bit % 8);
        }
        for kind in [Kind::Lease, Kind::Failed, Kind::HoldOff] {
            let mut other = Header::plain(kind, [9; 16], KEY, 5).to_record();
            other[HEAD..STATED].copy_from_slice(&first);
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
            header.seal(&mut record);
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
        header[CHECKSUM..].copy_from_slice(&sum.to_le_bytes());
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
            id in any::<u64>(), mark in any::<u64>(), version in any::<u64>(),
            tags in prop::collection::vec(any::<u64>(), 0..5), payload in prop::collection::vec(any::<u8>(), 0..100)
        ) {
            let baseline = Baseline {
        incarnation: id,
        watermark: mark,
    };
            let header = Header {
                kind: Kind::Value, token, expired: false, codec, schema, tags: tags.len() as u16, key_hash,
                created_ms, fresh_ms, load_cost_ms, baseline, version,
            };
            let mut record = Header::reserve();
            record.extend(tags.iter().flat_map(|tag| tag.to_le_bytes()));
            record.extend_from_slice(&payload);
            header.seal(&mut record);
            let (parsed, body) = Header::parse(&record, key_hash).unwrap();
            prop_assert_eq!((parsed, body.payload), (header, &payload[..]));
            prop_assert_eq!(body.tags().collect::<Vec<_>>(), tags);
        }
    }
}
