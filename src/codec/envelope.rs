//! The record: what one key of the shared tier holds.
//!
//! A header of 64 bytes, then the payload. Integers are little-endian.
//!
//! | offset | bytes | field |
//! |---|---|---|
//! | 0 | 2 | magic, `TG` |
//! | 2 | 1 | format, 1 |
//! | 3 | 1 | kind: 1 value, 2 negative, 3 lease, 4 failed load |
//! | 4 | 16 | token: random; identifies this version of the value, or this one load |
//! | 20 | 1 | lease only: 1 when someone waits (set in place, hence outside the checksum); else 0 |
//! | 21 | 1 | value only: codec id; else 0 |
//! | 22 | 2 | zero |
//! | 24 | 2 | value only: schema version; else 0 |
//! | 26 | 2 | zero |
//! | 28 | 8 | hash of the whole key (XXH3) |
//! | 36 | 8 | created, in milliseconds of the server's clock |
//! | 44 | 8 | fresh for, in milliseconds |
//! | 52 | 4 | what the load cost, in milliseconds |
//! | 56 | 8 | checksum: XXH3 of the payload, seeded with XXH3 of the header before it |
//!
//! The first 20 bytes, the **head**, are what a fill is compared against. Magic, format and the
//! checksum keep their places in every later format, so that a record of a later one can be told
//! from a damaged one: the first is left alone, the second is replaced.

use xxhash_rust::xxh3::{xxh3_64, xxh3_64_with_seed};

/// Bytes of the header.
pub(crate) const HEADER: usize = 64;
/// Bytes of the head.
pub(crate) const HEAD: usize = 20;
/// Where a lease says that someone waits.
pub(crate) const WAITERS: usize = 20;

const MAGIC: [u8; 2] = *b"TG";
const FORMAT: u8 = 1;
const CHECKSUM: usize = 56;

/// The first 20 bytes of a record: magic, format, kind, token.
pub(crate) type Head = [u8; HEAD];

/// Random, unique to one load or one version of a value; never one per process, because two loads
/// that share a token let the older one commit.
pub(crate) type Token = [u8; 16];

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Kind {
    Value = 1,
    Negative = 2,
    Lease = 3,
    Failed = 4,
}

/// A header as it is written, and as it was read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Header {
    pub(crate) kind: Kind,
    pub(crate) token: Token,
    pub(crate) codec: u8,
    pub(crate) schema: u16,
    pub(crate) key_hash: u64,
    pub(crate) created_ms: u64,
    pub(crate) fresh_ms: u64,
    pub(crate) load_cost_ms: u32,
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
            codec: 0,
            schema: 0,
            key_hash,
            created_ms,
            fresh_ms: 0,
            load_cost_ms: 0,
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
        header.fill(0);
        header[..HEAD].copy_from_slice(&self.head());
        header[21] = self.codec;
        header[24..26].copy_from_slice(&self.schema.to_le_bytes());
        header[28..36].copy_from_slice(&self.key_hash.to_le_bytes());
        header[36..44].copy_from_slice(&self.created_ms.to_le_bytes());
        header[44..52].copy_from_slice(&self.fresh_ms.to_le_bytes());
        header[52..56].copy_from_slice(&self.load_cost_ms.to_le_bytes());
        let sum = checksum(header, payload);
        header[CHECKSUM..].copy_from_slice(&sum.to_le_bytes());
    }

    /// A whole record without payload.
    pub(crate) fn to_record(self) -> Vec<u8> {
        let mut record = Self::reserve();
        self.seal(&mut record);
        record
    }

    /// Takes a record apart, strictly: every byte has one meaning, and none is left over.
    pub(crate) fn parse(record: &[u8], key_hash: u64) -> Result<(Self, &[u8]), Malformed> {
        let (header, payload) = record.split_at_checked(HEADER).ok_or(Malformed::Damaged)?;
        if header[..2] != MAGIC || read_u64(header, CHECKSUM) != checksum(header, payload) {
            return Err(Malformed::Damaged);
        }
        if header[2] > FORMAT {
            return Err(Malformed::LaterFormat);
        }
        let kind = match header[3] {
            1 => Kind::Value,
            2 => Kind::Negative,
            3 => Kind::Lease,
            4 => Kind::Failed,
            _ => return Err(Malformed::Damaged),
        };
        let mut token = Token::default();
        token.copy_from_slice(&header[4..HEAD]);
        let parsed = Self {
            kind,
            token,
            codec: header[21],
            schema: u16::from_le_bytes([header[24], header[25]]),
            key_hash: read_u64(header, 28),
            created_ms: read_u64(header, 36),
            fresh_ms: read_u64(header, 44),
            load_cost_ms: u32::from_le_bytes([header[52], header[53], header[54], header[55]]),
        };
        let waiters = header[WAITERS];
        let sound = header[2] == FORMAT
            && header[22..24] == [0, 0]
            && header[26..28] == [0, 0]
            && parsed.key_hash == key_hash
            && (waiters == 0 || (kind == Kind::Lease && waiters == 1))
            && (kind == Kind::Value
                || (payload.is_empty() && parsed.codec == 0 && parsed.schema == 0));
        if sound {
            Ok((parsed, payload))
        } else {
            Err(Malformed::Damaged)
        }
    }
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

/// What a lease looks like to a tier, which does not read further: the first four bytes, and no
/// payload.
pub(crate) fn is_lease(record: &[u8]) -> bool {
    record.len() == HEADER
        && record[..2] == MAGIC
        && record[2] == FORMAT
        && record[3] == Kind::Lease as u8
}

/// The hash of a key as records carry it.
pub(crate) fn key_hash(redis_key: &[u8]) -> u64 {
    xxh3_64(redis_key)
}

fn checksum(header: &[u8], payload: &[u8]) -> u64 {
    let mut covered = [0; CHECKSUM];
    covered.copy_from_slice(&header[..CHECKSUM]);
    covered[WAITERS] = 0;
    xxh3_64_with_seed(payload, xxh3_64(&covered))
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
            codec: 1,
            schema: 7,
            key_hash: KEY,
            created_ms: 1_700_000_000_000,
            fresh_ms: 300_000,
            load_cost_ms: 12,
        };
        let mut record = Header::reserve();
        record.extend_from_slice(b"payload");
        header.seal(&mut record);
        (header, record)
    }

    #[test]
    fn what_was_sealed_is_read_again() {
        let (header, record) = sample();
        assert_eq!(Header::parse(&record, KEY), Ok((header, &b"payload"[..])));
        for kind in [Kind::Negative, Kind::Lease, Kind::Failed] {
            let header = Header::plain(kind, [9; 16], KEY, 5);
            let record = header.to_record();
            assert_eq!(Header::parse(&record, KEY), Ok((header, &b""[..])));
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
            payload in prop::collection::vec(any::<u8>(), 0..100)
        ) {
            let header = Header { kind: Kind::Value, token, codec, schema, key_hash, created_ms, fresh_ms, load_cost_ms };
            let mut record = Header::reserve();
            record.extend_from_slice(&payload);
            header.seal(&mut record);
            prop_assert_eq!(Header::parse(&record, key_hash), Ok((header, &payload[..])));
        }
    }
}
