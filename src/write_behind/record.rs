//! The record of a write: the field `w` of a stream entry.
//!
//! | offset | bytes | field |
//! |---|---|---|
//! | 0 | 2 | magic, `TW` |
//! | 2 | 1 | format, 1 |
//! | 3 | 1 | kind: 1 value, 2 deletion |
//! | 4 | 1 | codec id |
//! | 5 | 1 | zero |
//! | 6 | 2 | schema version |
//! | 8 | 4 | bytes of the key |
//! | 12 | 8 | checksum: XXH3 of the bytes after it, seeded with XXH3 of those before it |
//! | 20 | | the key, then the value |
//!
//! Integers are little-endian. An entry that was re-driven from the dead letters has a field `was`:
//! the id that it had first.

use xxhash_rust::xxh3::{xxh3_64, xxh3_64_with_seed};

use crate::codec::{CodecError, ErasedCodec, RecordContext};

const HEADER: usize = 20;
const KEY_LEN: usize = 8;
const CHECKSUM: usize = 12;
const MAGIC: [u8; 2] = *b"TW";
const FORMAT: u8 = 1;
const VALUE: u8 = 1;
const DELETION: u8 = 2;

/// Why this process cannot apply a stream entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum Unreadable {
    #[error("the entry was deleted from the stream")]
    Deleted,
    #[error("not an entry of this crate, or a damaged one")]
    Damaged,
    #[error("an entry of a later format")]
    LaterFormat,
    #[error("an entry of another codec or schema version")]
    Other,
    #[error("the codec cannot decode the entry")]
    Undecodable,
}

/// The partition of an encoded key. It is the same in every process and for ever.
pub(super) fn partition(encoded_key: &[u8], partitions: u16) -> u16 {
    let partition = xxh3_64(encoded_key) % u64::from(partitions.max(1));
    // It is less than a u16, so there is no default.
    u16::try_from(partition).unwrap_or_default()
}

/// The codecs of keys and values.
pub(super) struct Records<K, V> {
    pub(super) keys: std::sync::Arc<dyn ErasedCodec<K>>,
    pub(super) values: std::sync::Arc<dyn ErasedCodec<V>>,
    pub(super) schema: u16,
}

impl<K, V> Records<K, V> {
    pub(super) fn encode(&self, key: &K, value: Option<&V>) -> Result<Vec<u8>, CodecError> {
        let mut record = vec![0; HEADER];
        let kind = if value.is_some() { VALUE } else { DELETION };
        record[..2].copy_from_slice(&MAGIC);
        record[2..6].copy_from_slice(&[FORMAT, kind, self.values.id(), 0]);
        record[6..KEY_LEN].copy_from_slice(&self.schema.to_le_bytes());
        let mut fields = [0; KEY_LEN];
        fields.copy_from_slice(&record[..KEY_LEN]);
        let context = RecordContext::elsewhere(b"", &fields);
        self.keys.encode(key, &context, &mut record)?;
        let key_len = u32::try_from(record.len() - HEADER).map_err(CodecError::new)?;
        if let Some(value) = value {
            let encoded_key = record[HEADER..].to_vec();
            let context = RecordContext::elsewhere(&encoded_key, &fields);
            self.values.encode(value, &context, &mut record)?;
        }
        record[KEY_LEN..CHECKSUM].copy_from_slice(&key_len.to_le_bytes());
        let checksum = checksum(&record);
        record[CHECKSUM..HEADER].copy_from_slice(&checksum.to_le_bytes());
        Ok(record)
    }

    pub(super) fn decode(&self, record: &[u8]) -> Result<(K, Option<V>), Unreadable> {
        let Some((header, payload)) = record.split_at_checked(HEADER) else {
            return Err(Unreadable::Damaged);
        };
        if header[..2] != MAGIC || header[CHECKSUM..] != checksum(record).to_le_bytes() {
            return Err(Unreadable::Damaged);
        }
        if header[2] != FORMAT {
            return Err(Unreadable::LaterFormat);
        }
        if header[4] != self.values.id() || header[6..8] != self.schema.to_le_bytes() {
            return Err(Unreadable::Other);
        }
        let key_len = u32::from_le_bytes([header[8], header[9], header[10], header[11]]);
        let parts = usize::try_from(key_len).ok();
        let parts = parts.and_then(|len| payload.split_at_checked(len));
        let (key, value) = parts.ok_or(Unreadable::Damaged)?;
        let fields = &header[..KEY_LEN];
        let encoded_key = key;
        let key = self
            .keys
            .decode(key, &RecordContext::elsewhere(b"", fields));
        let key = key.map_err(|_| Unreadable::Undecodable)?;
        let context = RecordContext::elsewhere(encoded_key, fields);
        let value = match header[3] {
            VALUE => Some(self.values.decode(value, &context)),
            DELETION if value.is_empty() => None,
            _ => return Err(Unreadable::Damaged),
        };
        let value = value.transpose().map_err(|_| Unreadable::Undecodable)?;
        Ok((key, value))
    }
}

fn checksum(record: &[u8]) -> u64 {
    xxh3_64_with_seed(&record[HEADER..], xxh3_64(&record[..CHECKSUM]))
}

#[cfg(test)]
#[cfg(feature = "bincode")]
mod tests {
    use std::sync::Arc;

    use proptest::prelude::*;

    use super::*;
    use crate::Bincode;

    fn records(schema: u16) -> Records<u64, String> {
        Records {
            keys: Arc::new(Bincode),
            values: Arc::new(Bincode),
            schema,
        }
    }

    #[test]
    fn the_partition_of_a_key_never_changes() {
        let partitions = ["42", "berlin,7", ""].map(|key| partition(key.as_bytes(), 8));
        assert_eq!(partitions, [1, 6, 2]);
        assert_eq!(partition(b"42", 1), 0);
        assert_eq!(partition(b"42", 256), 145);
    }

    #[test]
    fn a_record_never_changes() {
        let record = records(7).encode(&300, Some(&"hi".to_owned()));
        let record = record.expect("encodes");
        let hex: String = record.iter().map(|byte| format!("{byte:02x}")).collect();
        assert_eq!(hex, "545701010100070003000000b3931558e5c537a5fb2c01026869");
    }

    /// A value cannot be combined with another key, and a written key cannot be read as a deleted
    /// one.
    #[cfg(feature = "sealed")]
    #[test]
    fn what_was_sealed_together_is_good_together_and_no_other_way() {
        let codec = crate::Sealed::builder(Bincode).sealing_key(1, [1; 32]);
        let codec = Arc::new(codec.build().expect("a sound ring"));
        let records: Records<u64, String> = Records {
            keys: codec.clone(),
            values: codec,
            schema: 7,
        };
        let one = records.encode(&1, Some(&"one".to_owned())).expect("seals");
        let two = records.encode(&2, Some(&"two".to_owned())).expect("seals");
        assert_eq!(records.decode(&one), Ok((1, Some("one".to_owned()))));
        let key_ends = HEADER + 46 + 1;
        let forged = |mut record: Vec<u8>| {
            let sum = checksum(&record);
            record[CHECKSUM..HEADER].copy_from_slice(&sum.to_le_bytes());
            records.decode(&record)
        };
        assert_eq!(forged(one.clone()), Ok((1, Some("one".to_owned()))));
        let mixed = [&one[..key_ends], &two[key_ends..]].concat();
        assert_eq!(forged(mixed), Err(Unreadable::Undecodable));
        let mut deleted = one[..key_ends].to_vec();
        deleted[3] = DELETION;
        assert_eq!(forged(deleted), Err(Unreadable::Undecodable));
        let plain = self::records(7).encode(&1, Some(&"one".to_owned()));
        assert_eq!(
            records.decode(&plain.expect("encodes")),
            Err(Unreadable::Other)
        );
    }

    #[test]
    fn entries_of_other_processes_are_told_apart() {
        let record = records(7).encode(&1, None).expect("encodes");
        assert_eq!(records(7).decode(&record), Ok((1, None)));
        assert_eq!(records(8).decode(&record), Err(Unreadable::Other));
        let mut later = record.clone();
        later[2] = 2;
        let sum = checksum(&later);
        later[CHECKSUM..HEADER].copy_from_slice(&sum.to_le_bytes());
        assert_eq!(records(7).decode(&later), Err(Unreadable::LaterFormat));
    }

    proptest! {
        #[test]
        fn what_was_encoded_is_decoded(key: u64, value: Option<String>) {
            let record = records(0).encode(&key, value.as_ref()).expect("encodes");
            prop_assert_eq!(records(0).decode(&record), Ok((key, value)));
        }

        #[test]
        fn a_damaged_record_is_noticed(key: u64, value: String, at: prop::sample::Index, flip in 1_u8..) {
            let mut record = records(0).encode(&key, Some(&value)).expect("encodes");
            let at = at.index(record.len());
            record[at] ^= flip;
            prop_assert_eq!(records(0).decode(&record), Err(Unreadable::Damaged));
        }

        #[test]
        fn foreign_bytes_are_no_record(bytes: Vec<u8>) {
            prop_assert_eq!(records(0).decode(&bytes), Err(Unreadable::Damaged));
        }
    }
}
