//! What Redis holds, parsed, for tools: the view that `tidegate-inspect` prints.
//!
//! It describes format 1 of records and of messages, and the names of keys beside them. What a later
//! format adds comes as fields and variants, hence `#[non_exhaustive]`. Nothing here changes anything: who
//! changes an entry does it with a [`Cache`](crate::Cache) of the same name, so that processes are
//! told; [`EncodedKey`] is its key type then.
//!
//! ```
//! use tidegate::inspect::{EncodedKey, Names, Record};
//!
//! let names = Names::new("tidegate", "users");
//! let key = EncodedKey::of(&("berlin", 7));
//! assert_eq!(names.record(&key), "tidegate:users:berlin,7");
//! // GET tidegate:users:berlin,7
//! assert!(Record::parse(names.record(&key).as_bytes(), b"nonsense").is_err());
//! ```

use std::fmt;

use bytes::Bytes;
use fred::clients::Client;

use crate::Redis;
use crate::key::{self, CacheKey, KeyBuf};
use crate::l2::Keys;
use crate::l2::redis as l2_redis;

mod message;
mod record;

pub use message::{Message, Operation};
pub use record::{Kind, Record, Unreadable, codec_name};

/// The names of what a cache keeps in Redis.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Names {
    namespace: Vec<u8>,
}

impl Names {
    /// Those of the cache with this name, in the tier with this [`prefix`](crate::RedisBuilder::prefix).
    pub fn new(prefix: &str, cache: &str) -> Self {
        Self {
            namespace: key::namespace(prefix, cache),
        }
    }

    /// What the keys of all records begin with: `prefix:name:`.
    pub fn namespace(&self) -> String {
        text(&self.namespace)
    }

    /// The key of a record.
    pub fn record(&self, key: &EncodedKey) -> String {
        self.namespace() + &key.0
    }

    /// The key beside a record where whoever refreshes it holds its lease, the claim.
    pub fn claim(&self, key: &EncodedKey) -> String {
        text(&Keys::of(&Bytes::from(self.record(key))).claim)
    }

    /// The encoded key of a claim, or `None` where a Redis key is none of a claim of this cache.
    pub fn key_of_claim(&self, redis_key: &[u8]) -> Option<EncodedKey> {
        let key = redis_key.rsplit(|byte| *byte == b':').next()?;
        let key = key.strip_suffix(b"}").unwrap_or(key);
        let key = EncodedKey::parse(std::str::from_utf8(key).ok()?).ok()?;
        (self.claim(&key).as_bytes() == redis_key).then_some(key)
    }

    /// The key of the [`Marks`].
    pub fn marks(&self) -> String {
        text(&key::marks(&self.namespace))
    }

    /// The sorted set of the tags that were invalidated, by the mark at which they last were. The members
    /// are [`tag_member`]s.
    pub fn tags(&self) -> String {
        text(&l2_redis::tags_key(&key::marks(&self.namespace)))
    }

    /// The channel of [`Message`]s.
    pub fn bus(&self) -> String {
        text(&key::bus(&self.namespace))
    }

    /// The encoded key of a record, or `None` where a Redis key is none of a record of this cache.
    pub fn key_of(&self, redis_key: &[u8]) -> Option<EncodedKey> {
        let key = redis_key.strip_prefix(self.namespace.as_slice())?;
        EncodedKey::parse(std::str::from_utf8(key).ok()?).ok()
    }
}

/// A key as it stands in Redis, behind `prefix:name:`. As a [`CacheKey`] it names the same entry as the
/// key that it was encoded from.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct EncodedKey(String);

impl EncodedKey {
    /// The encoded form of a key.
    pub fn of<K: CacheKey>(key: &K) -> Self {
        Self(text(&key::encode(key)))
    }

    /// The key of these parts: strings as they are, numbers in decimal.
    pub fn from_parts<P: AsRef<[u8]>>(parts: impl IntoIterator<Item = P>) -> Self {
        let mut buf = KeyBuf::default();
        for part in parts {
            buf.push_bytes(part.as_ref());
        }
        Self(text(&buf.finish()))
    }

    /// Takes what stands in Redis: `berlin,7`, `a%2Cb`, or `#` and a hash.
    ///
    /// # Errors
    ///
    /// [`InvalidKey`] when no key is encoded like this.
    pub fn parse(encoded: &str) -> Result<Self, InvalidKey> {
        let sound = match encoded.strip_prefix('#') {
            Some(hash) => {
                let is_hex = |byte: u8| matches!(byte, b'0'..=b'9' | b'a'..=b'f');
                hash.len() == 64 && hash.bytes().all(is_hex)
            }
            None => {
                let parts = || encoded.split(',');
                encoded.len() <= key::LONGEST && (encoded.is_empty() || parts().all(is_part))
            }
        };
        if sound {
            Ok(Self(encoded.to_owned()))
        } else {
            Err(InvalidKey(()))
        }
    }

    /// The encoded form.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for EncodedKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl CacheKey for EncodedKey {
    fn encode(&self, key: &mut KeyBuf) {
        key.push_encoded(self.0.as_bytes());
    }
}

/// Whether a part is written as [`KeyBuf`] writes it, and not otherwise.
fn is_part(part: &str) -> bool {
    if part == "%_" {
        return true;
    }
    let mut rest = part.as_bytes();
    while let Some((&first, tail)) = rest.split_first() {
        rest = match (first, tail) {
            (b'%', [high, low, tail @ ..]) => {
                let digit = |hex: u8| char::from(hex).to_digit(16);
                let upper = |hex: &u8| matches!(hex, b'0'..=b'9' | b'A'..=b'F');
                let (Some(above), Some(below)) = (digit(*high), digit(*low)) else {
                    return false;
                };
                let escaped = u8::try_from(above * 16 + below).unwrap_or_default();
                if !upper(high) || !upper(low) || key::plain(escaped) {
                    return false;
                }
                tail
            }
            _ if key::plain(first) => tail,
            _ => return false,
        };
    }
    !part.is_empty()
}

/// A text that no key is encoded as. What it may be: printable ASCII but for `: , { } % # " ' \` and
/// backticks, which are `%2C`-like; `,` between parts; `%_` for an empty part; `#` and 64 hexadecimal
/// digits for a long key.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "no key is encoded like this: a `,` stands between parts, and bytes other than plain ASCII are written \
     `%2C`-like"
)]
pub struct InvalidKey(());

/// What was invalidated as a whole in a cache, and in which era.
#[non_exhaustive]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Marks {
    /// Random; another one when the marks were lost, and then records of before are dead.
    pub era: u64,
    /// How often something was invalidated as a whole, as far as is known: the last mark.
    pub mark: u64,
    /// The mark at which everything last was; zero for never.
    pub all: u64,
    /// The mark at which a tag last was; zero for never since `all`.
    pub tagged: u64,
    /// Marks of tags up to here have been forgotten: what has a tag and began before is dead.
    pub floor: u64,
}

impl Marks {
    /// Parses what lies under [`Names::marks`]. `None`: nothing of ours.
    pub fn parse(bytes: &[u8]) -> Option<Self> {
        let text = std::str::from_utf8(bytes).ok()?;
        let mut numbers = text.split(' ').map(str::parse);
        let mut next = || numbers.next()?.ok();
        let parsed = Self {
            era: next()?,
            mark: next()?,
            all: next()?,
            tagged: next()?,
            floor: next()?,
        };
        next().is_none().then_some(parsed)
    }
}

/// The hash by which records and messages know a tag.
pub fn tag_hash(tag: impl AsRef<[u8]>) -> u64 {
    crate::loader::tag_hash(tag.as_ref())
}

/// A tag's hash as a member of [`Names::tags`].
pub fn tag_member(hash: u64) -> String {
    l2_redis::tag_member(hash)
}

/// A client of its own with the configuration of a handle, not connected yet. When it is
/// ([`init`](fred::interfaces::ClientLike::init)) and cannot be, that is an error at once.
pub fn client(redis: &Redis) -> Client {
    redis.another_client()
}

/// Prefixes are refused if they are not ASCII, and all else is escaped.
fn text(ascii: &[u8]) -> String {
    String::from_utf8_lossy(ascii).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn what_is_encoded_is_parsed_and_names_the_same_entry(
            parts in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..60), 0..5)
        ) {
            let encoded = EncodedKey::from_parts(&parts);
            let parsed = EncodedKey::parse(encoded.as_str()).expect("encoded");
            prop_assert_eq!(key::encode(&parsed), encoded.as_str().as_bytes());
            prop_assert_eq!(EncodedKey::of(&parsed), encoded);
        }

        /// Else an entry could be looked for under a name that no key has.
        #[test]
        fn what_is_parsed_can_be_a_key(text in "[a%_,0-9A-F#:]{0,8}") {
            if let Ok(parsed) = EncodedKey::parse(&text) {
                let unescape = |part: &str| -> Vec<u8> {
                    if part == "%_" { return Vec::new(); }
                    let mut pieces = part.split('%');
                    let mut bytes = pieces.next().unwrap_or_default().as_bytes().to_vec();
                    for piece in pieces {
                        bytes.push(u8::from_str_radix(&piece[..2], 16).expect("hexadecimal"));
                        bytes.extend_from_slice(&piece.as_bytes()[2..]);
                    }
                    bytes
                };
                let parts: Vec<_> = if text.is_empty() { Vec::new() } else { text.split(',').map(unescape).collect() };
                prop_assert_eq!(EncodedKey::from_parts(parts), parsed);
            }
        }
    }

    #[test]
    fn what_no_key_is_encoded_as_is_refused() {
        let (hash, long) = ("#".to_owned() + &"a".repeat(64), "x".repeat(201));
        for good in ["42", "berlin,7", "%_", "a%2Cb", "%_,%_", "", &hash] {
            assert!(EncodedKey::parse(good).is_ok(), "{good}");
        }
        for bad in [
            "a:b", "a b", "%2c", "%41", "%", "%2", "%__", ",", "a,", "#ab", "{a}", "ä", &long,
        ] {
            assert!(EncodedKey::parse(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn names_are_those_that_the_engine_takes() {
        let names = Names::new("app", "us:ers");
        let key = EncodedKey::of(&42_u64);
        assert_eq!(names.record(&key), "app:us%3Aers:42");
        assert_eq!(names.claim(&key), "app:us%3Aers::{app:us%3Aers:42}");
        assert_eq!(names.marks(), "app:us%3Aers::{marks}");
        assert_eq!(names.tags(), "app:us%3Aers::{marks}:tags");
        assert_eq!(names.bus(), "app:us%3Aers::bus");
        assert_eq!(names.key_of(b"app:us%3Aers:42"), Some(key.clone()));
        for prefix in ["app", "{app}"] {
            let names = Names::new(prefix, "users");
            let claim = names.claim(&key);
            assert_eq!(names.key_of(claim.as_bytes()), None);
            assert_eq!(names.key_of_claim(claim.as_bytes()), Some(key.clone()));
            for other in [names.record(&key), names.marks(), names.tags()] {
                assert_eq!(names.key_of_claim(other.as_bytes()), None, "{other}");
            }
        }
        for other in [names.marks(), names.tags(), "app:users:42".to_owned()] {
            assert_eq!(names.key_of(other.as_bytes()), None, "{other}");
        }
    }

    #[test]
    fn marks_are_five_numbers() {
        let marks = Marks::parse(b"7 5 1 5 0").expect("marks");
        assert_eq!((marks.era, marks.mark, marks.all), (7, 5, 1));
        assert_eq!((marks.tagged, marks.floor), (5, 0));
        for other in [&b""[..], b"1 2 3 4", b"1 2 3 4 5 6", b"1 2 3 4 x", b"\xff"] {
            assert_eq!(Marks::parse(other), None);
        }
    }
}
