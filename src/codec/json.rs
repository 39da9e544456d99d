//! The codec `Json`: readable, and tolerant of changed types.

use serde::Serialize;
use serde::de::DeserializeOwned;

use super::{Codec, CodecError};

/// Text that describes itself: fields may come and go as serde allows, and people can read it. It
/// is larger and slower than [`Bincode`](crate::Bincode), which rarely matters beside a round trip
/// to Redis.
///
/// ```
/// # use std::collections::BTreeMap;
/// use tidegate::{Cache, InProcess, Json};
///
/// # let load = tidegate::loader_fn(|id: u64| async move { Ok::<_, std::io::Error>(Some(BTreeMap::from([(id, id)]))) });
/// let maps: Cache<u64, BTreeMap<u64, u64>, std::io::Error> =
///     Cache::builder("maps", load).l2(InProcess::new()).codec(Json).build()?;
/// # Ok::<_, tidegate::BuildError>(())
/// ```
#[derive(Clone, Copy, Debug, Default)]
pub struct Json;

impl Codec for Json {
    fn id(&self) -> u8 {
        2
    }

    fn encode<V: Serialize>(&self, value: &V, out: &mut Vec<u8>) -> Result<(), CodecError> {
        serde_json::to_writer(out, value).map_err(CodecError::new)
    }

    fn decode<V: DeserializeOwned>(&self, bytes: &[u8]) -> Result<V, CodecError> {
        serde_json::from_slice(bytes).map_err(CodecError::new)
    }
}
