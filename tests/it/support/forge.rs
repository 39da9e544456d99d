//! Forged records: what a client that writes to Redis can build without a sealing key.

use xxhash_rust::xxh3::{xxh3_64, xxh3_64_with_seed};

pub(crate) const HEADER: usize = 104;
const CHECKSUM: usize = 96;

/// Recomputes the checksum, which is no secret.
pub(crate) fn checksummed(mut record: Vec<u8>) -> Vec<u8> {
    let mut covered = [0; CHECKSUM];
    covered.copy_from_slice(&record[..CHECKSUM]);
    covered[20..36].fill(0);
    let sum = xxh3_64_with_seed(&record[HEADER..], xxh3_64(&covered));
    record[CHECKSUM..HEADER].copy_from_slice(&sum.to_le_bytes());
    record
}

/// The record with other bytes from `at` on.
pub(crate) fn changed(record: &[u8], at: usize, bytes: &[u8]) -> Vec<u8> {
    let mut changed = record.to_vec();
    changed[at..at + bytes.len()].copy_from_slice(bytes);
    checksummed(changed)
}

/// The same record for another key.
pub(crate) fn moved(record: &[u8], to: &str) -> Vec<u8> {
    changed(record, 44, &xxh3_64(to.as_bytes()).to_le_bytes())
}

/// A record of another kind without a payload, with the key, the times and the watermarks of
/// `record`.
pub(crate) fn plain(record: &[u8], kind: u8) -> Vec<u8> {
    let mut plain = record[..HEADER].to_vec();
    plain[3] = kind;
    plain[36..44].fill(0);
    checksummed(plain)
}

pub(crate) const NEGATIVE: u8 = 2;
pub(crate) const LEASE: u8 = 3;
pub(crate) const FAILED: u8 = 4;
pub(crate) const HOLD_OFF: u8 = 5;

/// Offsets of the fields of a record.
pub(crate) const FORMAT_AT: usize = 2;
pub(crate) const CODEC_AT: usize = 36;
pub(crate) const SCHEMA_AT: usize = 38;
pub(crate) const CREATED_AT: usize = 52;
pub(crate) const FRESH_AT: usize = 60;
pub(crate) const COST_AT: usize = 68;
pub(crate) const INCARNATION_AT: usize = 72;
