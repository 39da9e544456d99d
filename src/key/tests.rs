//! Tests of the encoding of keys.

use super::*;
use proptest::prelude::*;

fn text<K: CacheKey>(key: &K) -> String {
    String::from_utf8(encode(key)).expect("encoded keys are ASCII")
}

/// Splits an encoded key into its parts. Because this function exists, no two sequences of parts
/// share an encoding.
fn parts(encoded: &[u8]) -> Vec<Vec<u8>> {
    if encoded.is_empty() {
        return Vec::new();
    }
    encoded
        .split(|&byte| byte == b',')
        .map(|part| {
            let (mut out, mut rest) = (Vec::new(), part);
            if part == b"%_" {
                return out;
            }
            while let Some((&byte, tail)) = rest.split_first() {
                if byte == b'%' {
                    let hex = std::str::from_utf8(&tail[..2]).expect("two digits");
                    out.push(u8::from_str_radix(hex, 16).expect("hexadecimal"));
                    rest = &tail[2..];
                } else {
                    out.push(byte);
                    rest = tail;
                }
            }
            out
        })
        .collect()
}

#[test]
fn numbers_are_as_they_are_displayed() {
    fn check<N: CacheKey + std::fmt::Display + Copy>(numbers: &[N]) {
        for number in numbers {
            let mut key = KeyBuf::default();
            number.encode(&mut key);
            assert_eq!(key.finish(), number.to_string().into_bytes());
        }
    }
    check(&[u8::MIN, 9, 10, 99, 100, u8::MAX]);
    check(&[u16::MIN, u16::MAX]);
    check(&[u32::MIN, u32::MAX]);
    check(&[u64::MIN, 1, 10_000_000_000_000_000_000, u64::MAX]);
    check(&[usize::MIN, usize::MAX]);
    check(&[u128::MIN, u128::MAX]);
    check(&[i8::MIN, -10, -1, 0, 1, i8::MAX]);
    check(&[i16::MIN, i16::MAX]);
    check(&[i32::MIN, i32::MAX]);
    check(&[i64::MIN, -1, 0, i64::MAX]);
    check(&[isize::MIN, isize::MAX]);
    check(&[i128::MIN, i128::MAX]);
}

proptest! {
#[test]
    fn an_encoding_can_be_taken_apart_again(
        given in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..12), 0..5)
    ) {
        let mut buf = KeyBuf::default();
        for part in &given {
            buf.push_bytes(part);
        }
        prop_assert_eq!(parts(&buf.finish()), given);
    }

    #[test]
    fn different_keys_have_different_encodings(
        a in any::<(String, String, i32)>(), b in any::<(String, String, i32)>()
    ) {
        prop_assert_eq!(a == b, encode(&a) == encode(&b));
    }

    #[test]
    fn no_encoding_is_long_or_holds_a_colon(bytes in prop::collection::vec(any::<u8>(), 0..400)) {
        let encoded = encode(&bytes);
        prop_assert!(encoded.len() <= LONGEST);
        prop_assert!(encoded.iter().all(|&byte| byte.is_ascii_graphic() && byte != b':'));
    }
}

#[test]
fn keys_read_well_and_stay_apart() {
    assert_eq!(text(&42_u64), "42");
    assert_eq!(text(&-7_i32), "-7");
    assert_eq!(text(&"berlin".to_owned()), "berlin");
    assert_eq!(text(&("a-b", "c")), "a-b,c");
    assert_eq!(text(&("a", "b-c")), "a,b-c");
    assert_eq!(text(&("a,b", "c")), "a%2Cb,c");
    assert_eq!(text(&("", "a")), "%_,a");
    assert_eq!(text(&String::new()), "%_");
    assert_eq!(text(&vec![0_u8, 255, b'x']), "%00%FFx");
    assert_eq!(text(&"user:1"), "user%3A1");
    assert_eq!(text(&'ß'), "%C3%9F");
    assert_eq!(text(&(true, [1_u8, 2])), "true,%01%02");
}

#[test]
fn long_keys_are_hashed_and_still_differ() {
    let long = "x".repeat(1 << 20);
    assert_eq!(text(&long).len(), 65);
    assert!(text(&long).starts_with('#'));
    assert_ne!(text(&long), text(&format!("{long}y")));
    let edge = "y".repeat(LONGEST);
    assert_eq!(text(&edge), edge);
    assert_ne!(text(&"#abc"), "#abc");
}

/// The hash is that of the whole encoding, into however many parts and chunks it was cut.
#[test]
fn a_long_key_is_hashed_as_a_whole() {
    let hash = |encoded: &[u8]| {
        let mut text = String::from("#");
        for byte in Sha256::digest(encoded) {
            text.push_str(&format!("{byte:02x}"));
        }
        text
    };
    for len in [
        LONGEST + 1,
        HASH_CHUNK - 1,
        HASH_CHUNK,
        HASH_CHUNK + 1,
        3 * HASH_CHUNK + 7,
    ] {
        let plain = "x".repeat(len);
        assert_eq!(text(&plain), hash(plain.as_bytes()), "{len}");
        let escaped = vec![b':'; len];
        assert_eq!(text(&escaped), hash("%3A".repeat(len).as_bytes()), "{len}");
        let parts = (plain.clone(), 7_u8, String::new(), plain.clone());
        let whole = format!("{plain},7,%_,{plain}");
        assert_eq!(text(&parts), hash(whole.as_bytes()), "{len}");
    }
}

#[test]
fn names_and_prefixes_never_meet() {
    let key = |prefix, name, key: &str| {
        let mut bytes = namespace(prefix, name);
        bytes.extend(encode(&key.to_owned()));
        String::from_utf8(bytes).expect("ASCII")
    };
    assert_eq!(key("tidegate", "users", "42"), "tidegate:users:42");
    assert_ne!(key("t", "users", "1:5"), key("t", "users:1", "5"));
    assert_ne!(key("a:b", "c", "d"), key("a", "b:c", "d"));
    assert_ne!(key("a:b", "c", "d"), key("a", "b", "c:d"));
}
