//! Codecs: how values become bytes for the shared tier.

use std::fmt;
use std::marker::PhantomData;
use std::sync::Arc;

use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::erased::{self, AnyValue};

#[cfg(feature = "bincode")]
mod bincode;
mod context;
#[cfg(feature = "json")]
mod json;
#[cfg(feature = "sealed")]
pub(crate) mod sealed;

#[cfg(feature = "bincode")]
#[cfg_attr(docsrs, doc(cfg(feature = "bincode")))]
pub use self::bincode::Bincode;
pub use context::RecordContext;
#[cfg(feature = "json")]
#[cfg_attr(docsrs, doc(cfg(feature = "json")))]
pub use json::Json;
#[cfg(feature = "sealed")]
#[cfg_attr(docsrs, doc(cfg(feature = "sealed")))]
pub use sealed::{Sealed, SealedBuilder};

/// Encodes values for the shared tier.
///
/// The bytes are stored in a record with a checksum, a hash of the key, the codec's
/// [`id`](Self::id) and the [`schema_version`](crate::CacheBuilder::schema_version). So a codec
/// only sees bytes that a codec of the same id wrote for a value of the same version. Still, for
/// arbitrary bytes it must return an error, and neither panic nor allocate without bound.
///
/// ```
/// use serde::{Serialize, de::DeserializeOwned};
/// use tidegate::{Codec, CodecError};
///
/// /// Indented JSON, for people who read their Redis by hand.
/// struct Pretty;
///
/// impl Codec for Pretty {
///     fn id(&self) -> u8 { 200 }
///     fn encode<V: Serialize>(&self, value: &V, out: &mut Vec<u8>) -> Result<(), CodecError> {
///         serde_json::to_writer_pretty(out, value).map_err(CodecError::new)
///     }
///     fn decode<V: DeserializeOwned>(&self, bytes: &[u8]) -> Result<V, CodecError> {
///         serde_json::from_slice(bytes).map_err(CodecError::new)
///     }
/// }
/// ```
pub trait Codec: Send + Sync + 'static {
    /// Identifies the codec in every record: a record of another codec is a miss. Ids below 128 are
    /// reserved for this crate (`Bincode` 1, `Json` 2, `Sealed` 16). The id of your codec is 128 or
    /// above.
    fn id(&self) -> u8;

    /// Appends the encoded value to `out`.
    fn encode<V: Serialize>(&self, value: &V, out: &mut Vec<u8>) -> Result<(), CodecError>;

    /// Decodes the bytes that [`encode`](Self::encode) wrote, all of them: bytes left over are an
    /// error.
    fn decode<V: DeserializeOwned>(&self, bytes: &[u8]) -> Result<V, CodecError>;

    /// Appends the encoded value to `out`, for the record that `context` describes. The crate calls
    /// this method, not [`encode`](Self::encode).
    ///
    /// Default: calls `encode`. A codec that authenticates its bytes overrides it, together with
    /// [`decode_in`](Self::decode_in) and [`is_bound`](Self::is_bound), so that the bytes are valid
    /// in one record alone.
    fn encode_in<V: Serialize>(
        &self,
        value: &V,
        context: &RecordContext<'_>,
        out: &mut Vec<u8>,
    ) -> Result<(), CodecError> {
        let _ = context;
        self.encode(value, out)
    }

    /// Decodes the bytes that [`encode_in`](Self::encode_in) wrote in the same context.
    ///
    /// Default: calls [`decode`](Self::decode).
    fn decode_in<V: DeserializeOwned>(
        &self,
        bytes: &[u8],
        context: &RecordContext<'_>,
    ) -> Result<V, CodecError> {
        let _ = context;
        self.decode(bytes)
    }

    /// Whether [`decode_in`](Self::decode_in) refuses the bytes in any other context. If so, a
    /// record of which only the times are renewed ([`Loaded::unchanged`](crate::Loaded::unchanged))
    /// is encoded and sent again as a whole. If not, only its header is sent.
    ///
    /// Default: `false`.
    fn is_bound(&self) -> bool {
        false
    }
}

/// The reason why a codec could not encode or decode.
pub struct CodecError(Box<dyn std::error::Error + Send + Sync>);

impl CodecError {
    /// Wraps the cause, an error or a message.
    pub fn new(cause: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> Self {
        Self(cause.into())
    }
}

impl fmt::Debug for CodecError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&self.0, f)
    }
}

impl fmt::Display for CodecError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.0, f)
    }
}

impl std::error::Error for CodecError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        self.0.source()
    }
}

/// A codec for one type of value, without the type of the codec or of the value.
pub(crate) trait AnyCodec: Send + Sync {
    fn id(&self) -> u8;
    fn is_bound(&self) -> bool;
    fn encode(
        &self,
        value: &AnyValue,
        context: &RecordContext<'_>,
        out: &mut Vec<u8>,
    ) -> Result<(), CodecError>;
    fn decode(&self, bytes: &[u8], context: &RecordContext<'_>) -> Result<AnyValue, CodecError>;
}

/// The codec of a cache whose values are `V`.
pub(crate) struct CodecFor<V, C> {
    codec: C,
    values: PhantomData<fn() -> V>,
}

impl<V, C> CodecFor<V, C> {
    pub(crate) fn new(codec: C) -> Self {
        Self {
            codec,
            values: PhantomData,
        }
    }
}

impl<V, C> AnyCodec for CodecFor<V, C>
where
    V: Serialize + DeserializeOwned + Send + Sync + 'static,
    C: Codec,
{
    fn id(&self) -> u8 {
        self.codec.id()
    }

    fn is_bound(&self) -> bool {
        self.codec.is_bound()
    }

    fn encode(
        &self,
        value: &AnyValue,
        context: &RecordContext<'_>,
        out: &mut Vec<u8>,
    ) -> Result<(), CodecError> {
        match value.downcast_ref::<V>() {
            Some(value) => self.codec.encode_in(value, context, out),
            None => erased::other_type(Err(CodecError::new("a value of another cache"))),
        }
    }

    fn decode(&self, bytes: &[u8], context: &RecordContext<'_>) -> Result<AnyValue, CodecError> {
        let value: V = self.codec.decode_in(bytes, context)?;
        Ok(Arc::new(value))
    }
}

/// A codec for one type of value, without the codec's type.
#[cfg(feature = "write-behind")]
pub(crate) trait ErasedCodec<V>: Send + Sync {
    fn id(&self) -> u8;
    fn encode(
        &self,
        value: &V,
        context: &RecordContext<'_>,
        out: &mut Vec<u8>,
    ) -> Result<(), CodecError>;
    fn decode(&self, bytes: &[u8], context: &RecordContext<'_>) -> Result<V, CodecError>;
}

#[cfg(feature = "write-behind")]
impl<V: Serialize + DeserializeOwned, C: Codec> ErasedCodec<V> for C {
    fn id(&self) -> u8 {
        Codec::id(self)
    }

    fn encode(
        &self,
        value: &V,
        context: &RecordContext<'_>,
        out: &mut Vec<u8>,
    ) -> Result<(), CodecError> {
        self.encode_in(value, context, out)
    }

    fn decode(&self, bytes: &[u8], context: &RecordContext<'_>) -> Result<V, CodecError> {
        self.decode_in(bytes, context)
    }
}
