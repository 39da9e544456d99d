//! The names of what a cache keeps in Redis.

use bytes::Bytes;

use super::key::{EncodedKey, text};
use crate::key;
use crate::l2::Keys;
use crate::l2::redis as l2_redis;

/// The Redis keys and the channel of a cache.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Names {
    namespace: Vec<u8>,
}

impl Names {
    /// The names for the cache with this name, in the tier with this
    /// [`prefix`](crate::RedisBuilder::prefix).
    pub fn new(prefix: &str, cache: &str) -> Self {
        Self {
            namespace: key::namespace(prefix, cache),
        }
    }

    /// The beginning of the keys of all records: `prefix:name:`.
    pub fn namespace(&self) -> String {
        text(&self.namespace)
    }

    /// The key of a record.
    pub fn record(&self, key: &EncodedKey) -> String {
        self.namespace() + key.as_str()
    }

    /// The key of the claim: the lease of the process that refreshes the record.
    pub fn claim(&self, key: &EncodedKey) -> String {
        text(&Keys::of(&Bytes::from(self.record(key))).claim)
    }

    /// The encoded key of a claim. `None`: the Redis key is not that of a claim of this cache.
    pub fn key_of_claim(&self, redis_key: &[u8]) -> Option<EncodedKey> {
        let key = redis_key.rsplit(|byte| *byte == b':').next()?;
        let key = key.strip_suffix(b"}").unwrap_or(key);
        let key = EncodedKey::parse(std::str::from_utf8(key).ok()?).ok()?;
        (self.claim(&key).as_bytes() == redis_key).then_some(key)
    }

    /// The key of the [`Marks`](super::Marks).
    pub fn marks(&self) -> String {
        text(&key::marks(&self.namespace))
    }

    /// The key of the sorted set of invalidated tags, by the mark of the last invalidation of each.
    /// Its members are those of [`tag_member`](super::tag_member).
    pub fn tags(&self) -> String {
        text(&l2_redis::tags_key(&key::marks(&self.namespace)))
    }

    /// The channel of [`Message`](super::Message)s.
    pub fn bus(&self) -> String {
        text(&key::bus(&self.namespace))
    }

    /// The encoded key of a record. `None`: the Redis key is not that of a record of this cache.
    pub fn key_of(&self, redis_key: &[u8]) -> Option<EncodedKey> {
        let key = redis_key.strip_prefix(self.namespace.as_slice())?;
        EncodedKey::parse(std::str::from_utf8(key).ok()?).ok()
    }
}
