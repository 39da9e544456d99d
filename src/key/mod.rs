//! Keys: how a typed key becomes bytes. Two different keys never become the same bytes.

use std::borrow::Cow;
use std::io::Write as _;
use std::marker::PhantomData;
use std::sync::Arc;

use sha2::{Digest, Sha256};

/// The longest encoded key, in bytes. A longer one is replaced by its SHA-256, so that neither
/// Redis keys nor bus messages grow with what a user sends.
pub(crate) const LONGEST: usize = 200;

/// About how many encoded bytes are buffered before they go into the hash. Because of this limit, a
/// long key needs no buffer of its length.
const HASH_CHUNK: usize = 4096;

/// A type whose values name entries of a cache.
///
/// A key writes its parts into a [`KeyBuf`], which keeps them apart: two different sequences of
/// parts never give the same bytes. Implemented for integers, `bool`, `char`, strings, byte arrays
/// and vectors, [`Uuid`](https://docs.rs/uuid) (feature `uuid`), `Option`s, and tuples of up to six
/// of these.
///
/// For a type of your own, derive it (feature `derive`): a struct writes its fields in their order,
/// an enum the name of its variant and then its fields.
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
///     #[cache_key(rename = "Team")] // tidegate:pages:Team,7,2, as before it was renamed
///     Group { id: u64, page: u32 },
/// }
/// # }
/// ```
///
/// Names of fields are not written. So after two fields have changed places, or a variant has lost
/// a field, an encoding may mean another key than before. Raise the
/// [`schema_version`](crate::CacheBuilder::schema_version) with such a change: entries with the old
/// meaning are misses then. Type parameters must be keys; `#[cache_key(bound = "…")]` on the type
/// replaces these bounds. If tidegate has another name in your crate, or is re-exported,
/// `#[cache_key(crate = "path::to::tidegate")]` gives its path.
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
/// In Redis the entry of `("berlin", 7)` in the cache `prices` has the key
/// `tidegate:prices:berlin,7`. Bytes outside printable ASCII, and the few that separate parts, are
/// escaped as in `%2C`. An encoded key of more than 200 bytes is replaced by `#` and its SHA-256,
/// so neither Redis keys nor bus messages grow with the key. L1 however holds each key as it is,
/// beside its value, and counts entries, not bytes (unless a
/// [weigher](crate::CacheBuilder::l1_weigher) is set, which sees the key and the value). So limit
/// the length of what users send before it becomes a key.
#[diagnostic::on_unimplemented(
    message = "`{Self}` is no key of a cache",
    label = "not a `CacheKey`",
    note = "derive it, with the feature `derive` of tidegate: `#[derive(Clone, PartialEq, Eq, Hash, CacheKey)]`"
)]
pub trait CacheKey: Clone + Eq + std::hash::Hash + Send + Sync + 'static {
    /// Writes the parts of this key: always the same number of parts in the same order, or such
    /// that the first parts tell how many follow.
    fn encode(&self, key: &mut KeyBuf);
}

/// Where a [`CacheKey`] writes its parts.
#[derive(Debug, Default)]
pub struct KeyBuf {
    bytes: Vec<u8>,
    parts: usize,
    /// The hash of what was written before `bytes`, if the key is long.
    hashed: Option<Sha256>,
}

impl KeyBuf {
    /// One part: any bytes.
    pub fn push_bytes(&mut self, part: &[u8]) {
        self.separate();
        if part.is_empty() {
            // In every other part two hexadecimal digits follow a `%`, so no other part reads `%_`.
            self.bytes.extend_from_slice(b"%_");
            return;
        }
        for chunk in part.chunks(HASH_CHUNK) {
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
            if self.bytes.len() >= HASH_CHUNK {
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

    /// One part: a number, written as by `Display`, in a tenth of its time.
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

    /// One part that needs no escape: digits with a sign, `true` or `false`.
    fn push_number(&mut self, number: impl std::fmt::Display) {
        self.separate();
        // A write to a `Vec` does not fail.
        let _ = write!(self.bytes, "{number}");
    }

    /// A whole key that is encoded already.
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

    /// The encoded key, of at most [`LONGEST`] bytes.
    pub(crate) fn finish(self) -> Vec<u8> {
        if self.hashed.is_none() && self.bytes.len() <= LONGEST {
            return self.bytes;
        }
        let mut whole = self.hashed.unwrap_or_default();
        whole.update(&self.bytes);
        let mut hashed = Vec::with_capacity(65);
        // Every other `#` is escaped, so no other key begins with one.
        hashed.push(b'#');
        for byte in whole.finalize() {
            let _ = write!(hashed, "{byte:02x}");
        }
        hashed
    }
}

/// Whether a byte is written without an escape: printable ASCII except the bytes that separate
/// segments (`:`) and parts (`,`), enclose the hash tag of a cluster (`{}`), begin an escape (`%`)
/// or a hashed key (`#`), or mean something to a shell.
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

/// The beginning of all keys of one cache in Redis: `prefix:name:`. The prefix is taken as it is.
/// The name and the key are escaped and hold no `:`, so the last two segments are always the name
/// and the key, and no two caches share a key.
pub(crate) fn namespace(prefix: &str, name: &str) -> Vec<u8> {
    let mut escaped = KeyBuf::default();
    escaped.push_str(name);
    let mut bytes = prefix.as_bytes().to_vec();
    bytes.push(b':');
    bytes.extend_from_slice(&escaped.bytes);
    bytes.push(b':');
    bytes
}

// No entry has one of these two names, because encoded keys hold no `:`.

/// The channel of a cache on the invalidation bus.
pub(crate) fn bus(namespace: &[u8]) -> Vec<u8> {
    [namespace, b":bus"].concat()
}

/// The key of a cache's watermarks. The braces put it on one node of a cluster, with the keys that
/// a tier keeps beside it.
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

/// The first part tells whether another key follows: `Some` or `None`.
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

/// No part, because the type has one value.
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
#[cfg(test)]
mod tests;

/// The types of derived keys must be keys:
///
/// ```
/// #[derive(Clone, PartialEq, Eq, Hash, tidegate::CacheKey)]
/// struct Report { team: u64, month: String }
/// ```
///
/// A `Duration` is not a key:
///
/// ```compile_fail,E0277
/// #[derive(Clone, PartialEq, Eq, Hash, tidegate::CacheKey)]
/// struct Report { team: u64, month: std::time::Duration }
/// ```
#[cfg(all(doctest, feature = "derive"))]
struct PartsAreKeys;
