//! The codec `Sealed`: payloads that are encrypted and authenticated.
//!
//! | offset | bytes | field |
//! |---|---|---|
//! | 0 | 1 | format, 1 |
//! | 1 | 1 | id of the codec within |
//! | 2 | 4 | id of the key, little-endian |
//! | 6 | 24 | nonce, random |
//! | 30 | n | what the codec within wrote, encrypted |
//! | 30 + n | 16 | tag of XChaCha20-Poly1305 |
//!
//! The tag also covers data that is not stored in the payload: a name for this use ([`DOMAIN`]),
//! the first six bytes, and the [associated data](RecordContext::associated_data) of the record.

use std::fmt;
use std::sync::Arc;

use chacha20poly1305::{AeadInOut, KeyInit, Tag, XChaCha20Poly1305, XNonce};
use rand::TryRng;
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::{Codec, CodecError, RecordContext};
use crate::error::BuildError;

const FORMAT: u8 = 1;
const PREFIX: usize = 6;
const NONCE: usize = 24;
const TAG: usize = 16;
const KEY: usize = 32;
/// Separates this use of a key from any other one: it is part of the authenticated data.
const DOMAIN: &[u8] = b"tidegate sealed 1";

/// Encrypts and authenticates what another codec writes: XChaCha20-Poly1305, with keys that can be
/// rotated.
///
/// A reader of Redis without a key learns no value, and a writer without one cannot make one: a
/// sealed payload opens in the record that it was sealed for and in no other. It is bound to the
/// whole key in Redis (prefix, cache, key), to the codec within, to the `schema_version`, and to
/// the fields of the header: when it was created, for how long it is fresh, its version, its tags,
/// and what was invalidated when its load began. Anything else is a miss, counts in
/// [`decode_failures`](crate::Stats::decode_failures) and is replaced: a record with a flipped bit,
/// one that is not sealed, or one that was sealed under a key that is not in the ring.
///
/// ```
/// use std::time::Duration;
/// use tidegate::{BoxError, Cache, InProcess, Json, Sealed, loader_fn};
///
/// # fn key(_: &str) -> Vec<u8> { vec![7; 32] }
/// # fn main() -> Result<(), tidegate::BuildError> {
/// let sealed = Sealed::builder(Json)
///     .sealing_key(2, key("CACHE_KEY_2")) // 32 random bytes, from the store of your secrets
///     .opening_key(1, key("CACHE_KEY_1")) // what was sealed before the last rotation
///     .build()?;
/// let load = loader_fn(|id: u64| async move { Ok::<_, BoxError>(format!("user {id}")) });
/// let users = Cache::builder("users", load)
///     .l2(InProcess::new())
///     .codec(sealed)
///     .build()?;
/// # let _ = users; Ok(())
/// # }
/// ```
///
/// # What it does not hide, and does not prevent
///
/// - Only the value is hidden. These stay readable: the keys (those of more than 200 bytes are
///   hashed), the name of the cache, the size of each value (46 bytes less than the payload), the
///   header with its times, versions and hashes of tags, the id of the key that sealed it, and
///   which process asks for which key at which time.
/// - Absences, leases and records of failed loads have no payload and are not sealed. A writer to
///   Redis can make a key look absent, expired, leased or failing, and can delete anything.
/// - A writer to Redis can put back an older record of the **same key**. It is answered as long as
///   its own times allow, counted from when it was sealed: its TTL and the stale windows. An
///   invalidation of that key in between does not prevent it. Nor do `invalidate_all` and
///   `invalidate_tag`, if the writer puts the watermarks back too and no process is left that has
///   known the later ones. The operator of the server also sets its clock, and is not bound by
///   times.
/// - A writer to Redis can mark a sealed value as expired, and can remove such a mark.
/// - Processes hold their values in L1 unencrypted, and the keys in memory. Keys are overwritten
///   with zeros when the codec is dropped; copies that moves and encodings left in memory are not.
///
/// [`guide::threat_model`](crate::guide::threat_model) describes all of this in full.
///
/// # Rotation
///
/// 1. Give every process the new key as an [`opening_key`](SealedBuilder::opening_key).
/// 2. Only then make it the [`sealing_key`](SealedBuilder::sealing_key), and the old key an opening
///    key.
/// 3. Drop the old key when the longest TTL with its stale windows has passed.
///
/// In this order the rotation causes no load. Without step 1, a process without the new key finds
/// records under it unreadable and replaces them with its own, which the others can read: one load
/// for each record. Two processes of which neither has the other's key would replace each other's
/// records with every read: never let two such processes share a cache.
///
/// Drop a key that has leaked at once in every process: as long as a process opens with it, values
/// can be forged for that process.
///
/// To begin sealing a cache that has not been sealed, raise the
/// [`schema_version`](crate::CacheBuilder::schema_version) with it: processes of the old version
/// leave the sealed records alone, and sealing processes never read the others.
///
/// # Cost
///
/// - 46 bytes for each value.
/// - Some microseconds for each fill and each hit in L2, and one or two more for each kilobyte. A
///   hit in L1 costs nothing more.
/// - [`Loaded::unchanged`](crate::Loaded::unchanged) sends the whole record again, not only its
///   header.
///
/// A nonce of 192 random bits from the operating system is drawn for each value. So a key need not
/// be replaced because of how often it was used.
#[derive(Clone)]
pub struct Sealed<C> {
    inner: C,
    ring: Arc<Vec<(u32, XChaCha20Poly1305)>>,
}

impl<C: Codec> Sealed<C> {
    /// A codec that seals what `inner` writes. The builder takes the keys.
    pub fn builder(inner: C) -> SealedBuilder<C> {
        SealedBuilder {
            inner,
            keys: Vec::new(),
        }
    }

    pub(crate) fn seal<V: Serialize>(
        &self,
        nonce: [u8; NONCE],
        value: &V,
        context: &RecordContext<'_>,
        out: &mut Vec<u8>,
    ) -> Result<(), CodecError> {
        let Some((id, key)) = self.ring.first() else {
            return Err(CodecError::new(Unopenable::UnknownKey));
        };
        let prefix = prefix(self.inner.id(), *id);
        out.extend_from_slice(&prefix);
        out.extend_from_slice(&nonce);
        let plain = out.len();
        self.inner.encode_in(value, context, out)?;
        let associated = authenticated_data(&prefix, context);
        let tag = key
            .encrypt_inout_detached(
                &XNonce::from(nonce),
                &associated,
                (&mut out[plain..]).into(),
            )
            .map_err(|_| CodecError::new("too large to be sealed"))?;
        out.extend_from_slice(&tag);
        Ok(())
    }

    fn open(&self, bytes: &[u8], context: &RecordContext<'_>) -> Result<Vec<u8>, Unopenable> {
        let (prefix, rest) = bytes
            .split_first_chunk::<PREFIX>()
            .ok_or(Unopenable::Foreign)?;
        let (nonce, rest) = rest
            .split_first_chunk::<NONCE>()
            .ok_or(Unopenable::Foreign)?;
        let (sealed, tag) = rest.split_last_chunk::<TAG>().ok_or(Unopenable::Foreign)?;
        let [format, codec, id @ ..] = *prefix;
        if format != FORMAT || codec != self.inner.id() {
            return Err(Unopenable::Foreign);
        }
        let id = u32::from_le_bytes(id);
        let (_, key) = self
            .ring
            .iter()
            .find(|(key_id, _)| *key_id == id)
            .ok_or(Unopenable::UnknownKey)?;
        let (nonce, tag, associated) = (
            XNonce::from(*nonce),
            Tag::from(*tag),
            authenticated_data(prefix, context),
        );
        let mut plain = sealed.to_vec();
        key.decrypt_inout_detached(&nonce, &associated, plain.as_mut_slice().into(), &tag)
            .map_err(|_| Unopenable::Altered)?;
        Ok(plain)
    }
}

fn prefix(codec: u8, key: u32) -> [u8; PREFIX] {
    let [a, b, c, d] = key.to_le_bytes();
    [FORMAT, codec, a, b, c, d]
}

/// The data that the tag covers beside the payload. The first two parts have a fixed length, so no
/// byte can move from one part to the next.
fn authenticated_data(prefix: &[u8; PREFIX], context: &RecordContext<'_>) -> Vec<u8> {
    [DOMAIN, prefix, &context.associated_data()].concat()
}

/// A nonce from the operating system, not from [`random`](crate::random): a fork would copy the
/// state of a generator in this process, and no nonce may be used twice.
fn nonce() -> Result<[u8; NONCE], CodecError> {
    let mut nonce = [0; NONCE];
    rand::rngs::SysRng
        .try_fill_bytes(&mut nonce)
        .map_err(CodecError::new)?;
    Ok(nonce)
}

/// Why bytes do not open.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
enum Unopenable {
    #[error("not sealed, or over another codec")]
    Foreign,
    #[error("sealed under a key that is not in the ring")]
    UnknownKey,
    #[error("altered since it was sealed, or sealed for another record, or under another key")]
    Altered,
}

/// [`encode`](Codec::encode) and [`decode`](Codec::decode), which know no record, seal for the
/// default [context](RecordContext).
impl<C: Codec> Codec for Sealed<C> {
    fn id(&self) -> u8 {
        16
    }

    fn encode<V: Serialize>(&self, value: &V, out: &mut Vec<u8>) -> Result<(), CodecError> {
        self.encode_in(value, &RecordContext::default(), out)
    }

    fn decode<V: DeserializeOwned>(&self, bytes: &[u8]) -> Result<V, CodecError> {
        self.decode_in(bytes, &RecordContext::default())
    }

    fn encode_in<V: Serialize>(
        &self,
        value: &V,
        context: &RecordContext<'_>,
        out: &mut Vec<u8>,
    ) -> Result<(), CodecError> {
        let before = out.len();
        let sealed = nonce().and_then(|nonce| self.seal(nonce, value, context, out));
        if sealed.is_err() {
            // Bytes that were not encrypted must not stay in `out`.
            out.truncate(before);
        }
        sealed
    }

    fn decode_in<V: DeserializeOwned>(
        &self,
        bytes: &[u8],
        context: &RecordContext<'_>,
    ) -> Result<V, CodecError> {
        let plain = self.open(bytes, context).map_err(CodecError::new)?;
        self.inner.decode_in(&plain, context)
    }

    fn is_bound(&self) -> bool {
        true
    }
}

impl<C: fmt::Debug> fmt::Debug for Sealed<C> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let ids: Vec<u32> = self.ring.iter().map(|(id, _)| *id).collect();
        f.debug_struct("Sealed")
            .field("inner", &self.inner)
            .field("key_ids", &ids)
            .finish_non_exhaustive()
    }
}

/// The keys of a [`Sealed`] codec: one key that seals, and any number of others that only open.
///
/// A key is 32 random bytes and is used for nothing else. You choose its id, which is in each
/// record and is no secret. Never give the id of one key to another one.
#[must_use = "a builder does nothing until `build` is called"]
pub struct SealedBuilder<C> {
    inner: C,
    keys: Vec<GivenKey>,
}

/// A key as it was given to a setter.
struct GivenKey {
    setter: &'static str,
    id: u32,
    /// If the bytes are no key: how many they are, and the reason.
    key: Result<XChaCha20Poly1305, (usize, &'static str)>,
}

const SEALING: &str = "sealing_key";
const OPENING: &str = "opening_key";

impl<C: Codec> SealedBuilder<C> {
    /// The key that seals, and opens what it has sealed. Exactly one is needed.
    pub fn sealing_key(self, id: u32, key: impl AsRef<[u8]>) -> Self {
        self.add(SEALING, id, key.as_ref())
    }

    /// A key that only opens: an old key whose records are still in Redis, or a new key that does
    /// not seal yet. May be set several times.
    ///
    /// Default: none.
    pub fn opening_key(self, id: u32, key: impl AsRef<[u8]>) -> Self {
        self.add(OPENING, id, key.as_ref())
    }

    fn add(mut self, setter: &'static str, id: u32, key: &[u8]) -> Self {
        let key = if key.len() == KEY && key.iter().all(|byte| *byte == 0) {
            Err((KEY, "not all of its bytes may be zero"))
        } else {
            XChaCha20Poly1305::new_from_slice(key)
                .map_err(|_| (key.len(), "it must be 32 random bytes"))
        };
        self.keys.push(GivenKey { setter, id, key });
        self
    }

    /// Checks the keys.
    ///
    /// # Errors
    ///
    /// [`BuildError`] names the setter where a key is not 32 bytes long or is all zeros, an id is
    /// given twice, a second sealing key is given, or no sealing key is given. It never contains a
    /// key.
    pub fn build(self) -> Result<Sealed<C>, BuildError> {
        let mut ring: Vec<(u32, XChaCha20Poly1305)> = Vec::with_capacity(self.keys.len());
        let mut seen: Vec<(&'static str, u32)> = Vec::with_capacity(self.keys.len());
        for given in self.keys {
            let GivenKey { setter, id, key } = given;
            let key = key.map_err(|(bytes, allowed)| BuildError::OutOfRange {
                setter,
                value: format!("{id}, {bytes} bytes"),
                allowed,
            })?;
            let sealing = setter == SEALING;
            let clash = seen
                .iter()
                .find(|(earlier, key_id)| *key_id == id || (sealing && *earlier == SEALING));
            if let Some((earlier, key_id)) = clash {
                return Err(BuildError::Clash {
                    setter: earlier,
                    value: key_id.to_string(),
                    other: setter,
                    other_value: id.to_string(),
                    why: if *key_id == id {
                        "one id is one key"
                    } else {
                        "one key seals"
                    },
                });
            }
            seen.push((setter, id));
            ring.push((id, key));
            if sealing {
                let last = ring.len() - 1;
                ring.swap(0, last);
            }
        }
        if !seen.iter().any(|(setter, _)| *setter == SEALING) {
            return Err(BuildError::OutOfRange {
                setter: SEALING,
                value: "none".to_owned(),
                allowed: "one key must seal",
            });
        }
        Ok(Sealed {
            inner: self.inner,
            ring: Arc::new(ring),
        })
    }
}

impl<C: fmt::Debug> fmt::Debug for SealedBuilder<C> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let ids: Vec<u32> = self.keys.iter().map(|given| given.id).collect();
        f.debug_struct("SealedBuilder")
            .field("inner", &self.inner)
            .field("key_ids", &ids)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
#[cfg(all(feature = "bincode", feature = "json"))]
mod tests;
