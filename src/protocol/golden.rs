//! Golden records: files of every released format, byte for byte. A record that was written once
//! can be read for ever, and records are written today as they were then.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::record::{Baseline, Header, Kind};
use crate::codec::{Bincode, Codec, Json};

const KEY: &[u8] = b"tidegate:users:42";
const BASELINE: Baseline = Baseline {
    incarnation: 0x000f_1234_5678_9abc,
    watermark: 3,
};
const TAG: u64 = 0x0102_0304_0506_0708;

#[derive(Debug, PartialEq, Serialize, Deserialize)]
struct User {
    id: u64,
    name: String,
    tags: Vec<String>,
    score: Option<i32>,
    admin: bool,
}

fn user() -> User {
    let tags = vec!["a".to_owned(), "ß".to_owned()];
    User {
        id: 42,
        name: "Ada".to_owned(),
        tags,
        score: Some(-7),
        admin: true,
    }
}

fn value(codec: &impl Codec) -> (Header, Vec<u8>) {
    let mut header = Header::plain(
        Kind::Value,
        *b"0123456789abcdef",
        super::record::key_hash(KEY),
        1_700_000_000_123,
    );
    (header.codec, header.schema) = (codec.id(), 3);
    (header.fresh_ms, header.load_cost_ms) = (300_000, 12);
    (header.baseline, header.version) = (BASELINE, 9);
    header.tags = 1;
    let mut record = Header::reserve();
    record.extend_from_slice(&TAG.to_le_bytes());
    codec.encode(&user(), &mut record).unwrap();
    header.write_to(&mut record);
    (header, record)
}

fn plain(kind: Kind, waited_for: bool) -> (Header, Vec<u8>) {
    let mut header = Header::plain(
        kind,
        *b"0123456789abcdef",
        super::record::key_hash(KEY),
        1_700_000_000_123,
    );
    if kind == Kind::Negative {
        header.fresh_ms = 30_000;
    }
    header.baseline = BASELINE;
    let mut record = header.to_record();
    record[super::record::WAITERS_AT] = u8::from(waited_for);
    (header, record)
}

fn expired((mut header, mut record): (Header, Vec<u8>)) -> (Header, Vec<u8>) {
    header.expired = true;
    record[20..28].copy_from_slice(&[0x5a; 8]);
    record[28..36].copy_from_slice(&[0xa5; 8]);
    (header, record)
}

/// Every file, its header, and its bytes as they are written today.
fn files() -> Vec<(&'static str, (Header, Vec<u8>))> {
    vec![
        ("v1_value_bincode.bin", value(&Bincode)),
        ("v1_value_json.bin", value(&Json)),
        ("v1_negative.bin", plain(Kind::Negative, false)),
        ("v1_lease.bin", plain(Kind::Lease, false)),
        ("v1_lease_waited_for.bin", plain(Kind::Lease, true)),
        ("v1_failed.bin", plain(Kind::Failed, false)),
        ("v1_hold_off.bin", plain(Kind::HoldOff, false)),
        ("v1_value_expired.bin", expired(value(&Bincode))),
    ]
}

/// The sealed record. It needs the feature `sealed`, and the last test writes and reads it.
const SEALED: &str = "v1_value_sealed.bin";

fn payloads() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/it/payloads")
}

#[test]
fn records_of_every_released_format_are_read_and_written_as_they_were() {
    for (name, (header, written)) in files() {
        let stored =
            std::fs::read(payloads().join(name)).unwrap_or_else(|error| panic!("{name}: {error}"));
        let (parsed, body) = Header::parse(&stored, super::record::key_hash(KEY)).unwrap();
        assert_eq!(parsed, header, "{name}");
        let tags: Vec<u64> = body.tags().collect();
        assert_eq!(
            tags,
            if parsed.kind == Kind::Value {
                vec![TAG]
            } else {
                vec![]
            }
        );
        let payload = body.payload;
        match parsed.codec {
            1 => assert_eq!(Bincode.decode::<User>(payload).unwrap(), user()),
            2 => assert_eq!(Json.decode::<User>(payload).unwrap(), user()),
            _ => assert!(payload.is_empty()),
        }
        assert_eq!(stored, written, "{name} is not what would be written today");
    }
}

#[test]
fn no_file_of_an_old_record_is_left_out() {
    let named: Vec<_> = files()
        .into_iter()
        .map(|(name, _)| name.to_owned())
        .chain([SEALED.to_owned()])
        .collect();
    for file in std::fs::read_dir(payloads()).unwrap() {
        let name = file.unwrap().file_name().into_string().unwrap();
        assert!(named.contains(&name), "{name} is read by no test");
    }
}

#[cfg(feature = "sealed")]
#[test]
fn sealed_records_of_every_released_format_are_opened_and_sealed_as_they_were() {
    use crate::codec::{RecordContext, Sealed};
    let key: [u8; 32] = std::array::from_fn(|at| at as u8);
    let nonce: [u8; 24] = std::array::from_fn(|at| 0x40 + at as u8);
    let codec = Sealed::builder(Bincode).sealing_key(0x0102_0304, key);
    let codec = codec.build().unwrap();
    let (mut header, _) = value(&Bincode);
    header.codec = codec.id();
    let (fields, tags) = (header.fields(), TAG.to_le_bytes());
    let context = RecordContext::new(KEY, &fields, &tags);
    let mut written = Header::reserve();
    written.extend_from_slice(&tags);
    codec.seal(nonce, &user(), &context, &mut written).unwrap();
    header.write_to(&mut written);

    let stored = std::fs::read(payloads().join(SEALED)).unwrap();
    let (parsed, body) = Header::parse(&stored, super::record::key_hash(KEY)).unwrap();
    assert_eq!(parsed, header);
    let opened: User = codec.decode_in(body.payload, &context).unwrap();
    assert_eq!(opened, user());
    assert_eq!(stored, written, "not what would be written today");
}
