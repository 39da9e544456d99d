//! What Redis holds, parsed, for tools: the view that `tidegate-inspect` prints.
//!
//! It describes format 1 of records and of messages, and the names of the keys. A later format may
//! add fields and variants, hence `#[non_exhaustive]`. Nothing here changes Redis. To change an
//! entry, use a [`Cache`](crate::Cache) of the same name, so that the other processes are told;
//! [`EncodedKey`] is its key type then.
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

use fred::clients::Client;

use crate::Redis;
use crate::l2::redis as l2_redis;

mod key;
mod marks;
mod message;
mod names;
mod record;

pub use self::key::{EncodedKey, InvalidKey};
pub use self::marks::Marks;
pub use self::message::{Message, Operation};
pub use self::names::Names;
pub use self::record::{Kind, Record, Unreadable, codec_name};

/// The hash that stands for a tag in records and messages.
pub fn tag_hash(tag: impl AsRef<[u8]>) -> u64 {
    crate::loader::tag_hash(tag.as_ref())
}

/// A tag's hash as a member of [`Names::tags`].
pub fn tag_member(hash: u64) -> String {
    l2_redis::tag_member(hash)
}

/// Another client with the configuration of a handle. It is not connected yet. If
/// [`init`](fred::interfaces::ClientLike::init) cannot connect it, that is an error at once.
pub fn client(redis: &Redis) -> Client {
    redis.another_client()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::key;

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
