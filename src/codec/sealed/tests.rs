//! Tests of the codec `Sealed`.

use proptest::prelude::*;

use super::*;
use crate::protocol::record::{Baseline, Header, Kind};
use crate::{Bincode, Json};

const ONE: [u8; 32] = [1; 32];
const TWO: [u8; 32] = [2; 32];
const REDIS_KEY: &[u8] = b"tidegate:users:42";

fn sealing(id: u32, key: [u8; 32]) -> Sealed<Bincode> {
    let builder = Sealed::builder(Bincode).sealing_key(id, key);
    builder.build().expect("a sound ring")
}

/// A codec that seals under the first key, and also opens with the second.
fn ring(seals: (u32, [u8; 32]), opens: (u32, [u8; 32])) -> Sealed<Bincode> {
    let builder = Sealed::builder(Bincode).sealing_key(seals.0, seals.1);
    let builder = builder.opening_key(opens.0, opens.1);
    builder.build().expect("a sound ring")
}

fn header() -> Header {
    let mut header = Header::plain(Kind::Value, [9; 16], 5, 1_700_000_000_000);
    (header.codec, header.schema, header.tags) = (16, 3, 1);
    (header.fresh_ms, header.load_cost_ms, header.version) = (300_000, 12, 9);
    header.baseline = Baseline {
        incarnation: 7,
        watermark: 8,
    };
    header
}

fn sealed_in(codec: &Sealed<impl Codec>, header: &Header, value: &str) -> Vec<u8> {
    let (fields, mut out) = (header.fields(), Vec::new());
    let context = RecordContext::new(REDIS_KEY, &fields, &[1; 8]);
    let value = value.to_owned();
    codec.encode_in(&value, &context, &mut out).expect("seals");
    out
}

fn opened(codec: &Sealed<impl Codec>, header: &Header, bytes: &[u8]) -> Result<String, CodecError> {
    let fields = header.fields();
    codec.decode_in(bytes, &RecordContext::new(REDIS_KEY, &fields, &[1; 8]))
}

#[test]
fn no_bit_can_be_flipped_and_no_byte_be_cut_off_or_added() {
    let (codec, header) = (sealing(1, ONE), header());
    let bytes = sealed_in(&codec, &header, "a value");
    assert_eq!(opened(&codec, &header, &bytes).expect("opens"), "a value");
    for bit in 0..bytes.len() * 8 {
        let mut damaged = bytes.clone();
        damaged[bit / 8] ^= 1 << (bit % 8);
        assert!(opened(&codec, &header, &damaged).is_err(), "bit {bit}");
    }
    for len in 0..bytes.len() {
        assert!(opened(&codec, &header, &bytes[..len]).is_err(), "{len}");
    }
    let longer = [bytes.as_slice(), &[0]].concat();
    assert!(opened(&codec, &header, &longer).is_err());
}

#[test]
fn bytes_open_under_the_header_that_they_were_sealed_for_and_under_no_other() {
    let (codec, header) = (sealing(1, ONE), header());
    let bytes = sealed_in(&codec, &header, "a value");
    let others: Vec<fn(&mut Header)> = vec![
        |header| header.kind = Kind::Negative,
        |header| header.token[15] ^= 1,
        |header| header.codec = 1,
        |header| header.schema += 1,
        |header| header.tags += 1,
        |header| header.key_hash += 1,
        |header| header.created_ms += 1,
        |header| header.fresh_ms += 1,
        |header| header.load_cost_ms += 1,
        |header| header.baseline.incarnation += 1,
        |header| header.baseline.watermark += 1,
        |header| header.version += 1,
    ];
    for (at, change) in others.iter().enumerate() {
        let mut other = header;
        change(&mut other);
        assert!(opened(&codec, &other, &bytes).is_err(), "change {at}");
    }
    let fields = header.fields();
    for (key, tags) in [
        (b"tidegate:users:43".as_slice(), [1; 8]),
        (b"tidegate:users2:42", [1; 8]),
        (REDIS_KEY, [2; 8]),
    ] {
        let context = RecordContext::new(key, &fields, &tags);
        assert!(codec.decode_in::<String>(&bytes, &context).is_err());
    }
    assert!(codec.decode::<String>(&bytes).is_err(), "of no record");
    // The flag that scripts set later is not authenticated.
    let mut expired = header;
    expired.expired = true;
    assert!(opened(&codec, &expired, &bytes).is_ok());
}

#[test]
fn only_a_codec_with_the_key_under_its_id_opens() {
    let header = header();
    let by_one = sealed_in(&sealing(1, ONE), &header, "by one");
    let by_two = sealed_in(&ring((2, TWO), (1, ONE)), &header, "by two");
    for (codec, opens_one, opens_two) in [
        (sealing(1, ONE), true, false),
        (ring((1, ONE), (2, TWO)), true, true),
        (ring((2, TWO), (1, ONE)), true, true),
        (sealing(2, TWO), false, true),
        (sealing(1, TWO), false, false),
        (sealing(2, ONE), false, false),
    ] {
        assert_eq!(opened(&codec, &header, &by_one).is_ok(), opens_one);
        assert_eq!(opened(&codec, &header, &by_two).is_ok(), opens_two);
    }
    let context = RecordContext::default();
    let open = |codec: Sealed<Bincode>, bytes| codec.open(bytes, &context).expect_err("shut");
    assert_eq!(open(sealing(2, TWO), &by_one), Unopenable::UnknownKey);
    assert_eq!(open(sealing(1, TWO), &by_one), Unopenable::Altered);
    assert_eq!(open(sealing(1, ONE), b"plain"), Unopenable::Foreign);
}

#[test]
fn nothing_is_opened_that_was_sealed_over_another_codec() {
    let header = header();
    let json = Sealed::builder(Json).sealing_key(1, ONE).build();
    let bytes = sealed_in(&json.expect("a sound ring"), &header, "a value");
    assert!(opened(&sealing(1, ONE), &header, &bytes).is_err());
}

#[test]
fn the_same_value_is_never_sealed_twice_to_the_same_bytes_and_its_length_shows() {
    let (codec, header) = (sealing(1, ONE), header());
    let bytes = sealed_in(&codec, &header, "a value");
    let again = sealed_in(&codec, &header, "a value");
    assert_ne!(bytes[6..30], again[6..30], "the nonces");
    assert_ne!(bytes[30..], again[30..]);
    assert!(!bytes.windows(7).any(|window| window == b"a value"));
    assert_eq!(bytes.len(), 46 + 8);
}

#[test]
fn a_ring_that_makes_no_sense_is_refused_by_name_and_no_key_is_repeated() {
    let builder = || Sealed::builder(Bincode);
    let says = |builder: SealedBuilder<Bincode>, parts: &str| {
        let text = builder.build().expect_err(parts).to_string();
        for part in parts.split('|') {
            assert!(text.contains(part), "{text:?} does not say {part:?}");
        }
        assert!(!text.contains("120") && !text.contains("xxx"), "{text:?}");
    };
    says(builder(), "sealing_key(none)");
    says(builder().opening_key(1, ONE), "sealing_key(none)");
    let short = [b'x'; 31];
    says(
        builder().sealing_key(1, short),
        "sealing_key(1, 31 bytes)|32 random bytes",
    );
    says(builder().sealing_key(1, ""), "sealing_key(1, 0 bytes)");
    says(
        builder().sealing_key(1, ONE).opening_key(2, [b'x'; 33]),
        "opening_key(2, 33 bytes)",
    );
    says(
        builder().sealing_key(1, [0; 32]),
        "sealing_key(1, 32 bytes)|zero",
    );
    says(
        builder().sealing_key(1, ONE).opening_key(1, TWO),
        "sealing_key(1)|opening_key(1)|one id",
    );
    says(
        builder().opening_key(3, ONE).opening_key(3, ONE),
        "opening_key(3)|one id",
    );
    says(
        builder().sealing_key(1, ONE).sealing_key(2, TWO),
        "sealing_key(1)|sealing_key(2)|one key seals",
    );
    let many = (2..100).fold(builder().sealing_key(1, ONE), |builder, id| {
        builder.opening_key(id, [id as u8; 32])
    });
    many.build().expect("any number of opening keys");
}

#[test]
fn no_key_shows_in_debug() {
    let key = *b"SECRETSECRETSECRETSECRETSECRETSE";
    let builder = Sealed::builder(Bincode).sealing_key(77, key);
    let text = format!("{builder:?}");
    let codec = builder.build().expect("a sound ring");
    let text = format!("{text} {codec:?}");
    assert!(text.contains("77") && text.contains("Bincode"), "{text}");
    // The key shows neither as text nor as numbers.
    assert!(
        !text.contains("SECRET") && !text.contains("83, 69"),
        "{text}"
    );
}

struct Failing;

impl Codec for Failing {
    fn id(&self) -> u8 {
        200
    }

    fn encode<V: Serialize>(&self, _: &V, out: &mut Vec<u8>) -> Result<(), CodecError> {
        out.extend_from_slice(b"half of a secret");
        Err(CodecError::new("cannot"))
    }

    fn decode<V: DeserializeOwned>(&self, _: &[u8]) -> Result<V, CodecError> {
        Err(CodecError::new("cannot"))
    }
}

#[test]
fn of_a_value_that_cannot_be_encoded_nothing_is_left() {
    let codec = Sealed::builder(Failing).sealing_key(1, ONE).build();
    let mut out = b"before".to_vec();
    let failed = codec.expect("a sound ring").encode(&1, &mut out);
    assert_eq!(failed.expect_err("fails").to_string(), "cannot");
    assert_eq!(out, b"before");
}

proptest! {
    #[test]
    fn what_was_sealed_is_opened(
        value in any::<String>(), key in any::<[u8; 32]>().prop_filter("a key", |key| *key != [0; 32]),
        id in any::<u32>(), created_ms in any::<u64>(), schema in any::<u16>()
    ) {
        let codec = sealing(id, key);
        let header = Header { created_ms, schema, ..header() };
        let bytes = sealed_in(&codec, &header, &value);
        prop_assert_eq!(opened(&codec, &header, &bytes).expect("opens"), value);
    }

    #[test]
    fn any_bytes_are_refused(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        prop_assert!(opened(&sealing(1, ONE), &header(), &bytes).is_err());
        // Bytes behind a sound prefix are refused too.
        let bytes = [prefix(1, 1).as_slice(), &bytes].concat();
        prop_assert!(opened(&sealing(1, ONE), &header(), &bytes).is_err());
    }
}
