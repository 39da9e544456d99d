//! `RecordContext`: the record that a codec's bytes belong to.

use crate::protocol::record::FIELDS;

/// The record that a codec's bytes are for: see
/// [`Codec::encode_in`](crate::Codec::encode_in).
///
/// The [default](Default) is the context of no record: no key, no fields.
#[derive(Clone, Copy, Debug, Default)]
pub struct RecordContext<'a> {
    key: &'a [u8],
    fields: &'a [u8],
    tags: &'a [u8],
}

impl<'a> RecordContext<'a> {
    /// `tags` are the hashes of the tags, as the record has them.
    pub(crate) fn new(key: &'a [u8], fields: &'a [u8; FIELDS], tags: &'a [u8]) -> Self {
        Self { key, fields, tags }
    }

    /// The context of bytes that are not kept in a record.
    #[cfg(feature = "write-behind")]
    pub(crate) fn elsewhere(key: &'a [u8], fields: &'a [u8]) -> Self {
        Self {
            key,
            fields,
            tags: &[],
        }
    }

    /// The whole key in Redis, with its prefix and the cache's name.
    pub fn key(&self) -> &'a [u8] {
        self.key
    }

    /// Bytes that are the same when the record is read as when it was written, and that differ
    /// between any two records. They hold the key and all fields of the header that no script
    /// changes later: format, kind, token, codec, schema version, created, fresh for, the cost of
    /// the load, incarnation and watermark, version, tags. Use them as the associated data of a
    /// cipher, or let a MAC cover them.
    pub fn associated_data(&self) -> Vec<u8> {
        let parts = [self.key, self.fields, self.tags];
        let len = parts.iter().map(|part| part.len() + 8).sum();
        let mut bytes = Vec::with_capacity(len);
        for part in parts {
            // The lengths keep the parts apart.
            bytes.extend_from_slice(&(part.len() as u64).to_le_bytes());
            bytes.extend_from_slice(part);
        }
        bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_byte_can_move_from_one_part_to_the_next() {
        let data = |key, fields, tags| RecordContext { key, fields, tags }.associated_data();
        let all = [
            data(b"ab", b"c", b""),
            data(b"a", b"bc", b""),
            data(b"a", b"b", b"c"),
            data(b"", b"ab", b"c"),
            RecordContext::default().associated_data(),
        ];
        for (at, one) in all.iter().enumerate() {
            assert!(all[at + 1..].iter().all(|other| one != other), "{at}");
        }
    }
}
