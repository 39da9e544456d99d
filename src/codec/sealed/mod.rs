//! Sealed payloads.
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
//! Authenticated beside it: a name for this use, the first six bytes, and the
//! [associated data](RecordContext::associated_data) of the record.

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
/// What keys are used for here and nowhere else.
const DOMAIN: &[u8] = b"tidegate sealed 1";

/// Encrypts and authenticates what another codec writes: XChaCha20-Poly1305, with keys that can be
/// rotated.
///
/// Whoever reads Redis without a key learns no value, and whoever writes to it without one cannot make
/// one: a sealed payload opens in the record that it was sealed for and in no other. It is bound to
/// the whole key in Redis (prefix, cache, key), to the codec within, the `schema_version`, and to all that
/// the header says: when it was created, for how long it is fresh, its version, its tags, and what was
/// invalidated when its load began. Anything else, be it a flipped bit, a record that is not sealed,
/// or one under a key that is not in the ring, is a miss, counts in
/// [`decode_failures`](crate::Stats::decode_failures) and is replaced.
///
/// ```
/// use std::time::Duration;
/// use tidegate::{BoxError, Cache, InProcess, Json, Sealed, loader_fn};
///
/// # fn key(_: &str) -> Vec<u8> { vec![7; 32] }
/// # fn main() -> Result<(), tidegate::BuildError> {
/// let sealed = Sealed::builder(Json)
///     .sealing_key(2, key("CACHE_KEY_2")) // 32 random bytes, from where your secrets are
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
/// - Hidden is the value, and nothing else. Readable stay the keys (unless they are longer than 200
///   bytes, which are hashed), the name of the cache, the size of each value (46 bytes less than the
///   payload), the header with its times, versions and hashes of tags, which key sealed it, and who
///   asks for what and when.
/// - Absences, leases and marks of failed loads have no payload and are not sealed. Whoever writes to
///   Redis can make a key look absent, expired, leased or failing, and can delete anything.
/// - Whoever writes to Redis can put back an older record of the **same key**. It is answered as
///   long as its own times allow, counted from when it was sealed: its TTL and the stale windows. An
///   invalidation of that key in between does not prevent it; nor do `invalidate_all` and
///   `invalidate_tag`, if he puts the marks back too and no process is left that has known them.
///   The one who runs the server sets the clock, too, and is not bound by times.
/// - A sealed value may be shown to be old by marking it expired, and such a mark can be taken away.
/// - Processes hold their values in L1 as they are, and the keys in memory. Keys are overwritten with
///   zeros when the codec is dropped; what moving and encoding leave behind is not.
///
/// [`guide::threat_model`](crate::guide::threat_model) has the whole of it.
///
/// # Rotation
///
/// 1. Every process gets the new key as an [`opening_key`](SealedBuilder::opening_key).
/// 2. Only then it becomes the [`sealing_key`](SealedBuilder::sealing_key), and the old one an opening key.
/// 3. When the longest TTL with its stale windows is over, the old key is dropped.
///
/// In this order nothing is loaded for the rotation's sake. Where step 1 is left out, a process without
/// the new key takes records under it for unreadable and replaces them with its own, which the others
/// can read: one load for each, and it stays at that. Two processes of which neither has the other's key
/// would replace each other's records with every read: never let two share a cache so.
///
/// A key that has leaked is dropped at once, everywhere: as long as one process opens with it, values can
/// be forged for that process.
///
/// To begin sealing a cache that has not been sealed, raise
/// [`schema_version`](crate::CacheBuilder::schema_version) with it: processes of the old version leave the
/// sealed records alone, and sealing ones never read the others.
///
/// # Cost
///
/// 46 bytes a value; some microseconds for each fill and each hit in L2 (none in L1), and one or two more
/// per kilobyte; and [`Loaded::unchanged`](crate::Loaded::unchanged) sends the whole record again. A nonce
/// of 192 random bits from the operating system is drawn for each value: a key need not be replaced
/// because of how often it was used.
#[derive(Clone)]
pub struct Sealed<C> {
    inner: C,
    ring: Arc<Vec<(u32, XChaCha20Poly1305)>>,
}

impl<C: Codec> Sealed<C> {
    /// Seals what `inner` writes; the keys come next.
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
        let beside = beside(&prefix, context);
        let tag = key
            .encrypt_inout_detached(&XNonce::from(nonce), &beside, (&mut out[plain..]).into())
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
            .find(|(of, _)| *of == id)
            .ok_or(Unopenable::UnknownKey)?;
        let (nonce, tag, beside) = (
            XNonce::from(*nonce),
            Tag::from(*tag),
            beside(prefix, context),
        );
        let mut plain = sealed.to_vec();
        key.decrypt_inout_detached(&nonce, &beside, plain.as_mut_slice().into(), &tag)
            .map_err(|_| Unopenable::Altered)?;
        Ok(plain)
    }
}

fn prefix(codec: u8, key: u32) -> [u8; PREFIX] {
    let [a, b, c, d] = key.to_le_bytes();
    [FORMAT, codec, a, b, c, d]
}

/// What is authenticated beside the payload. The first two parts have one length each.
fn beside(prefix: &[u8; PREFIX], context: &RecordContext<'_>) -> Vec<u8> {
    [DOMAIN, prefix, &context.associated_data()].concat()
}

/// Not [`random`](crate::random): the state of a generator in this process would be doubled by a fork,
/// and a nonce must never come twice.
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

/// Alone, outside a record, as [`encode`](Codec::encode) and [`decode`](Codec::decode), it seals for the
/// empty [context](RecordContext).
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
            // Nothing stays that was not encrypted.
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

/// The keys of a [`Sealed`] codec: one that seals, and any number of others that open.
///
/// A key is 32 random bytes, and serves nothing else; its id is yours to choose, stands in each record,
/// and is no secret. An id that was given to one key is never given to another.
#[must_use = "a builder does nothing until `build` is called"]
pub struct SealedBuilder<C> {
    inner: C,
    keys: Vec<Given>,
}

struct Given {
    setter: &'static str,
    id: u32,
    /// Or how many bytes were given, and why they are no key.
    key: Result<XChaCha20Poly1305, (usize, &'static str)>,
}

const SEALING: &str = "sealing_key";
const OPENING: &str = "opening_key";

impl<C: Codec> SealedBuilder<C> {
    /// The key that seals, and opens what it has sealed. Exactly one.
    pub fn sealing_key(self, id: u32, key: impl AsRef<[u8]>) -> Self {
        self.given(SEALING, id, key.as_ref())
    }

    /// A key that only opens: an old one whose records are still there, or a new one before it seals.
    ///
    /// Default: none.
    pub fn opening_key(self, id: u32, key: impl AsRef<[u8]>) -> Self {
        self.given(OPENING, id, key.as_ref())
    }

    fn given(mut self, setter: &'static str, id: u32, key: &[u8]) -> Self {
        let key = if key.len() == KEY && key.iter().all(|byte| *byte == 0) {
            Err((KEY, "not all of its bytes may be zero"))
        } else {
            XChaCha20Poly1305::new_from_slice(key)
                .map_err(|_| (key.len(), "it must be 32 random bytes"))
        };
        self.keys.push(Given { setter, id, key });
        self
    }

    /// Checks the keys.
    ///
    /// # Errors
    ///
    /// [`BuildError`] names the setter of a key that is not 32 bytes long or is nothing but zeros, of an
    /// id that is given twice, of a second sealing key, and says where there is none. No key is
    /// repeated in it.
    pub fn build(self) -> Result<Sealed<C>, BuildError> {
        let mut ring: Vec<(u32, XChaCha20Poly1305)> = Vec::with_capacity(self.keys.len());
        let mut first: Vec<(&'static str, u32)> = Vec::with_capacity(self.keys.len());
        for given in self.keys {
            let Given { setter, id, key } = given;
            let key = key.map_err(|(bytes, allowed)| BuildError::OutOfRange {
                setter,
                value: format!("{id}, {bytes} bytes"),
                allowed,
            })?;
            let sealing = setter == SEALING;
            let clash = first
                .iter()
                .find(|(other, of)| *of == id || (sealing && *other == SEALING));
            if let Some((other, of)) = clash {
                return Err(BuildError::Clash {
                    setter: other,
                    value: of.to_string(),
                    other: setter,
                    other_value: id.to_string(),
                    why: if *of == id {
                        "one id is one key"
                    } else {
                        "one key seals"
                    },
                });
            }
            first.push((setter, id));
            ring.push((id, key));
            if sealing {
                let last = ring.len() - 1;
                ring.swap(0, last);
            }
        }
        if !first.iter().any(|(setter, _)| *setter == SEALING) {
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
