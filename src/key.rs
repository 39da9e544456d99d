//! Keys: how a typed key becomes bytes, without two keys ever becoming the same bytes.

use std::borrow::Cow;
use std::io::Write as _;
use std::marker::PhantomData;
use std::sync::Arc;

use sha2::{Digest, Sha256};

/// Encoded keys longer than this many bytes are replaced by their SHA-256, so that neither Redis
/// keys nor bus messages grow with what a user sends.
pub(crate) const LONGEST: usize = 200;

/// What is written beyond this goes into the hash at once: a long key needs no memory of its length.
const SPILL: usize = 4096;

/// A type whose values name entries of a cache.
///
/// A key writes its parts into a [`KeyBuf`], which keeps them apart: two different sequences of
/// parts never give the same bytes. Implemented for integers, `bool`, `char`, strings, byte arrays
/// and vectors, [`Uuid`](https://docs.rs/uuid) (feature `uuid`), `Option`s, and tuples of up to six of
/// these.
///
/// For a type of your own, derive it (feature `derive`): a struct writes its fields in their order, an
/// enum the name of its variant and then its fields.
///
/// ```
/// # #[cfg(feature = "derive")] {
/// use tidegate::CacheKey;
///
/// #[derive(Clone, PartialEq, Eq, Hash, CacheKey)]
/// struct Report { team: u64, month: String } // tidegate:reports:7,May
///
/// #[derive(Clone, PartialEq, Eq, Hash, CacheKey)]
/// enum Page {
///     Start,                        // tidegate:pages:Start
///     Article(u64),                 // tidegate:pages:Article,42
///     #[cache_key(rename = "Team")] // tidegate:pages:Team,7,2: what is there under the old name is found
///     Group { id: u64, page: u32 },
/// }
/// # }
/// ```
///
/// Names of fields are not written. So after two fields have changed places, or a variant has lost a
/// field, an encoding may mean another key than before: raise the
/// [`schema_version`](crate::CacheBuilder::schema_version) with such a change, and what was stored under
/// the old meaning is a miss. Type parameters must be keys; where that is not what is needed,
/// `#[cache_key(bound = "…")]` on the type replaces these bounds. Where tidegate has another name, or is
/// re-exported, `#[cache_key(crate = "path::to::tidegate")]` says which.
///
/// By hand, write the parts that make two keys different, in a fixed order:
///
/// ```
/// use tidegate::{CacheKey, KeyBuf};
///
/// #[derive(Clone, PartialEq, Eq, Hash)]
/// struct Report { team: u64, month: String }
///
/// impl CacheKey for Report {
///     fn encode(&self, key: &mut KeyBuf) {
///         self.team.encode(key);
///         self.month.encode(key);
///     }
/// }
/// ```
///
/// In Redis the entry of `("berlin", 7)` in the cache `prices` is found as
/// `tidegate:prices:berlin,7`. Bytes other than printable ASCII, and the few that separate parts,
/// are written `%2C`-like; encoded keys of more than 200 bytes become `#` and their SHA-256. So a key
/// may be of any length, and neither Redis nor the bus sees it grow; but L1 holds each key as it is,
/// beside its value, and counts entries, not bytes (unless a
/// [weigher](crate::CacheBuilder::l1_weigher) does, which is given both): bound the length of
/// what users send before it becomes a key.
#[diagnostic::on_unimplemented(
    message = "`{Self}` is no key of a cache",
    label = "not a `CacheKey`",
    note = "derive it, with the feature `derive` of tidegate: `#[derive(Clone, PartialEq, Eq, Hash, CacheKey)]`"
)]
pub trait CacheKey: Clone + Eq + std::hash::Hash + Send + Sync + 'static {
    /// Writes the parts of this key, always the same number of them in the same order (or such
    /// that the first parts tell how many follow).
    fn encode(&self, key: &mut KeyBuf);
}

/// Where a [`CacheKey`] writes its parts.
#[derive(Debug, Default)]
pub struct KeyBuf {
    bytes: Vec<u8>,
    parts: usize,
    /// Of a long key, what stood before `bytes`.
    hashed: Option<Sha256>,
}

impl KeyBuf {
    /// One part: any bytes.
    pub fn push_bytes(&mut self, part: &[u8]) {
        self.separate();
        if part.is_empty() {
            // `%` is always followed by two hexadecimal digits otherwise, so no part reads `%_`.
            self.bytes.extend_from_slice(b"%_");
            return;
        }
        for chunk in part.chunks(SPILL) {
            self.bytes.reserve(chunk.len());
            for &byte in chunk {
                if plain(byte) {
                    self.bytes.push(byte);
                } else {
                    const HEX: &[u8; 16] = b"0123456789ABCDEF";
                    let (high, low) = (usize::from(byte >> 4), usize::from(byte & 15));
                    self.bytes.extend_from_slice(&[b'%', HEX[high], HEX[low]]);
                }
            }
            if self.bytes.len() >= SPILL {
                self.hashed
                    .get_or_insert_default()
                    .update(self.bytes.as_slice());
                self.bytes.clear();
            }
        }
    }

    /// One part: a string.
    pub fn push_str(&mut self, part: &str) {
        self.push_bytes(part.as_bytes());
    }

    /// One part: a number, as `Display` writes it, which takes ten times as long.
    fn push_digits(&mut self, negative: bool, mut number: u64) {
        self.separate();
        if negative {
            self.bytes.push(b'-');
        }
        let mut digits = [b'0'; 20];
        let mut at = digits.len();
        loop {
            at -= 1;
            digits[at] += (number % 10) as u8;
            number /= 10;
            if number == 0 {
                break;
            }
        }
        self.bytes.extend_from_slice(&digits[at..]);
    }

    /// One part that needs no escape: digits and a sign.
    fn push_number(&mut self, number: impl std::fmt::Display) {
        self.separate();
        // Writing to a Vec cannot fail.
        let _ = write!(self.bytes, "{number}");
    }

    /// What is encoded already, as the whole key.
    #[cfg(feature = "inspect")]
    pub(crate) fn push_encoded(&mut self, encoded: &[u8]) {
        self.separate();
        self.bytes.extend_from_slice(encoded);
    }

    fn separate(&mut self) {
        if self.parts > 0 {
            self.bytes.push(b',');
        }
        self.parts += 1;
    }

    pub(crate) fn finish(self) -> Vec<u8> {
        if self.hashed.is_none() && self.bytes.len() <= LONGEST {
            return self.bytes;
        }
        let mut whole = self.hashed.unwrap_or_default();
        whole.update(&self.bytes);
        let mut hashed = Vec::with_capacity(65);
        // `#` is escaped everywhere else.
        hashed.push(b'#');
        for byte in whole.finalize() {
            let _ = write!(hashed, "{byte:02x}");
        }
        hashed
    }
}

/// Printable ASCII, less what separates segments (`:`), parts (`,`), hash tags of a cluster
/// (`{}`), marks escapes (`%`) and hashed keys (`#`), and what a shell would mangle.
pub(crate) fn plain(byte: u8) -> bool {
    byte.is_ascii_graphic() && !b":,{}%#\"'\\`".contains(&byte)
}

/// An encoded key with its hash in this process.
#[derive(Clone, Debug)]
pub(crate) struct HashedKey {
    pub(crate) hash: u64,
    pub(crate) encoded: Arc<[u8]>,
}

/// The bytes of a key within its cache.
pub(crate) fn encode<K: CacheKey>(key: &K) -> Vec<u8> {
    let mut buf = KeyBuf::default();
    key.encode(&mut buf);
    buf.finish()
}

/// What all keys of one cache begin with in Redis: `prefix:name:`. The prefix is taken as it is;
/// the name and the key are escaped and hold no `:`, so the last two segments are always the name
/// and the key, and no two caches meet in one key.
pub(crate) fn namespace(prefix: &str, name: &str) -> Vec<u8> {
    let mut escaped = KeyBuf::default();
    escaped.push_str(name);
    let mut bytes = prefix.as_bytes().to_vec();
    bytes.push(b':');
    bytes.extend_from_slice(&escaped.bytes);
    bytes.push(b':');
    bytes
}

// No key is named like these: encoded keys hold no `:`.

/// The bus of a cache.
pub(crate) fn bus(namespace: &[u8]) -> Vec<u8> {
    [namespace, b":bus"].concat()
}

/// The key of a cache's marks. The braces put it and what a tier keeps beside it on one node of a cluster.
pub(crate) fn marks(namespace: &[u8]) -> Vec<u8> {
    [namespace, b":{marks}"].concat()
}

macro_rules! numbers {
    ($($number:ty)*) => {$(
        impl CacheKey for $number {
            fn encode(&self, key: &mut KeyBuf) {
                key.push_number(self);
            }
        }
    )*};
}
numbers!(u128 i128 bool);

macro_rules! unsigned {
    ($($number:ty)*) => {$(
        impl CacheKey for $number {
            fn encode(&self, key: &mut KeyBuf) {
                key.push_digits(false, *self as u64);
            }
        }
    )*};
}
unsigned!(u8 u16 u32 u64 usize);

macro_rules! signed {
    ($($number:ty)*) => {$(
        impl CacheKey for $number {
            fn encode(&self, key: &mut KeyBuf) {
                key.push_digits(*self < 0, self.unsigned_abs() as u64);
            }
        }
    )*};
}
signed!(i8 i16 i32 i64 isize);

macro_rules! strings {
    ($($string:ty)*) => {$(
        impl CacheKey for $string {
            fn encode(&self, key: &mut KeyBuf) {
                key.push_str(self);
            }
        }
    )*};
}
strings!(String Box<str> Arc<str> &'static str Cow<'static, str>);

impl CacheKey for char {
    fn encode(&self, key: &mut KeyBuf) {
        key.push_str(self.encode_utf8(&mut [0; 4]));
    }
}

macro_rules! byte_strings {
    ($($bytes:ty)*) => {$(
        impl CacheKey for $bytes {
            fn encode(&self, key: &mut KeyBuf) {
                key.push_bytes(self);
            }
        }
    )*};
}
byte_strings!(Vec<u8> Box<[u8]> Arc<[u8]> &'static [u8]);

impl<const N: usize> CacheKey for [u8; N] {
    fn encode(&self, key: &mut KeyBuf) {
        key.push_bytes(self);
    }
}

#[cfg(feature = "uuid")]
#[cfg_attr(docsrs, doc(cfg(feature = "uuid")))]
impl CacheKey for uuid::Uuid {
    fn encode(&self, key: &mut KeyBuf) {
        key.push_str(
            self.hyphenated()
                .encode_lower(&mut uuid::Uuid::encode_buffer()),
        );
    }
}

/// Says first whether there is something.
impl<T: CacheKey> CacheKey for Option<T> {
    fn encode(&self, key: &mut KeyBuf) {
        match self {
            None => key.push_str("None"),
            Some(part) => {
                key.push_str("Some");
                part.encode(key);
            }
        }
    }
}

/// One value, so no part.
impl<T: ?Sized + Send + Sync + 'static> CacheKey for PhantomData<T> {
    fn encode(&self, _: &mut KeyBuf) {}
}

macro_rules! tuples {
    ($(($($part:ident)+))*) => {$(
        impl<$($part: CacheKey),+> CacheKey for ($($part,)+) {
            #[expect(non_snake_case, reason = "one name for the type and the value of a part")]
            fn encode(&self, key: &mut KeyBuf) {
                let ($($part,)+) = self;
                $($part.encode(key);)+
            }
        }
    )*};
}
tuples!((A) (A B) (A B C) (A B C D) (A B C D E) (A B C D E F));

#[cfg(all(test, feature = "derive"))]
mod derived;

/// The types of derived keys must be keys:
///
/// ```
/// #[derive(Clone, PartialEq, Eq, Hash, tidegate::CacheKey)]
/// struct Report { team: u64, month: String }
/// ```
///
/// A `Duration` is none:
///
/// ```compile_fail,E0277
/// #[derive(Clone, PartialEq, Eq, Hash, tidegate::CacheKey)]
/// struct Report { team: u64, month: std::time::Duration }
/// ```
#[cfg(all(doctest, feature = "derive"))]
struct PartsAreKeys;

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn text<K: CacheKey>(key: &K) -> String {
        String::from_utf8(encode(key)).expect("encoded keys are ASCII")
    }

    /// Takes an encoded key apart again: that this exists is the proof that no two sequences of
    /// parts share an encoding.
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

    /// However it is cut into parts and pieces, the hash is that of the whole encoding.
    #[test]
    fn a_long_key_is_hashed_as_a_whole() {
        let hash = |encoded: &[u8]| {
            let mut text = String::from("#");
            for byte in Sha256::digest(encoded) {
                text.push_str(&format!("{byte:02x}"));
            }
            text
        };
        for len in [LONGEST + 1, SPILL - 1, SPILL, SPILL + 1, 3 * SPILL + 7] {
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
}
