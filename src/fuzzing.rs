//! The entry point of the fuzz target: every decoder of bytes that come from Redis. Compiled under
//! `cfg(fuzzing)` only.

use std::collections::HashMap;

use serde::{Deserialize, Serialize};

use crate::codec::{Bincode, Codec, Json, RecordContext, Sealed};
use crate::protocol::message::Message;
use crate::protocol::record::{self, HEADER, Header, Kind};

#[derive(Debug, Serialize, Deserialize)]
struct Sample {
    text: String,
    bytes: Vec<u8>,
    numbers: Vec<u64>,
    units: Option<Box<Sample>>,
    map: HashMap<String, i32>,
}

/// Decodes the bytes as a message, a record, a lease, a value of each codec and a sealed payload.
pub fn any_bytes(bytes: &[u8]) {
    let _ = Message::parse(bytes);
    let _ = Header::parse(bytes, 7);
    let _ = record::is_lease(bytes);
    let _ = Bincode.decode::<Sample>(bytes);
    let _ = Json.decode::<Sample>(bytes);
    sealed(bytes);
    // A sealed record around these bytes is read back, and one changed byte is noticed.
    let header = Header::plain(Kind::Value, [1; 16], 7, 0);
    let mut record = Header::reserve();
    record.extend_from_slice(bytes);
    header.seal(&mut record);
    let (parsed, body) = Header::parse(&record, 7).expect("what was sealed is read");
    assert!(parsed == header && body.payload == bytes);
    if let Some((&at, _)) = bytes.split_first() {
        let at = usize::from(at) % record.len().min(HEADER + bytes.len());
        record[at] ^= 0x10;
        assert!(Header::parse(&record, 7).is_err());
    }
}

/// Bytes that were not sealed do not open. Sealed bytes open, and do not once one of them is
/// changed.
fn sealed(bytes: &[u8]) {
    let ring = Sealed::builder(Bincode)
        .sealing_key(1, [1; 32])
        .opening_key(2, [2; 32]);
    let codec = ring.build().expect("a sound ring");
    for id in [1, 2] {
        let prefixed = [&[1, 1, id, 0, 0, 0], bytes].concat();
        assert!(codec.decode::<Sample>(&prefixed).is_err());
    }
    let fields = Header::plain(Kind::Value, [1; 16], 7, 0).fields();
    let context = RecordContext::new(bytes, &fields, &[]);
    let (value, mut out) = (bytes.to_vec(), Vec::new());
    codec.encode_in(&value, &context, &mut out).expect("seals");
    let opened: Vec<u8> = codec.decode_in(&out, &context).expect("opens");
    assert!(opened == value);
    let at = bytes.first().map_or(0, |at| usize::from(*at) % out.len());
    out[at] ^= 0x10;
    assert!(codec.decode_in::<Vec<u8>>(&out, &context).is_err());
}
