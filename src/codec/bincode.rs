//! The codec `Bincode`: compact, fast, and the default.

use bincode::config::{self, Configuration, Limit, LittleEndian, Varint};
use bincode::enc::write::Writer;
use bincode::error::EncodeError;
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::{Codec, CodecError};

/// Compact and fast, and the default: bincode 2 with variable-length integers.
///
/// The format does not describe itself. Bytes of a struct whose fields have changed may decode into
/// nonsense without an error, so raise [`schema_version`](crate::CacheBuilder::schema_version) with
/// every change of the type. Types that use `#[serde(untagged)]`, `flatten` or
/// `skip_serializing_if` do not decode at all. For these, and for types that change often, use
/// [`Json`](crate::Json).
///
/// Decoding limits what it allocates, and refuses bytes that are left over. The crate bincode is
/// finished and no longer maintained (RUSTSEC-2025-0141 says so of every version). Therefore it is
/// a feature: without default features it is not among the dependencies.
#[derive(Clone, Copy, Debug, Default)]
pub struct Bincode;

const MIB: usize = 1 << 20;

fn limited<const N: usize>() -> Configuration<LittleEndian, Varint, Limit<N>> {
    config::standard().with_limit::<N>()
}

/// A writer that appends to a vector.
struct Appending<'a>(&'a mut Vec<u8>);

impl Writer for Appending<'_> {
    fn write(&mut self, bytes: &[u8]) -> Result<(), EncodeError> {
        self.0.extend_from_slice(bytes);
        Ok(())
    }
}

impl Codec for Bincode {
    fn id(&self) -> u8 {
        1
    }

    fn encode<V: Serialize>(&self, value: &V, out: &mut Vec<u8>) -> Result<(), CodecError> {
        bincode::serde::encode_into_writer(value, Appending(out), config::standard())
            .map_err(CodecError::new)
    }

    fn decode<V: DeserializeOwned>(&self, bytes: &[u8]) -> Result<V, CodecError> {
        // Without a limit, a nonsensical length is allocated before its bytes are read, and the
        // process aborts. The limit counts the bytes of the decoded value. In sound bytes these are
        // at most eight times the encoded ones (a `u64` may take one byte). The limit is a constant
        // of the configuration's type, therefore it goes in steps.
        let decoded = match bytes.len() {
            0..=0x1_0000 => bincode::serde::decode_from_slice(bytes, limited::<MIB>()),
            0x1_0001..=0x20_0000 => {
                bincode::serde::decode_from_slice(bytes, limited::<{ 16 * MIB }>())
            }
            0x20_0001..=0x100_0000 => {
                bincode::serde::decode_from_slice(bytes, limited::<{ 128 * MIB }>())
            }
            _ => bincode::serde::decode_from_slice(bytes, limited::<{ 2048 * MIB }>()),
        };
        let (value, read) = decoded.map_err(CodecError::new)?;
        if read != bytes.len() {
            return Err(CodecError::new("bytes left over after the value"));
        }
        Ok(value)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_length_that_is_nonsense_is_an_error_and_allocates_nothing() {
        // 253 announces a u64: a length of 2^63.
        let mut bytes = vec![253];
        bytes.extend_from_slice(&(1_u64 << 63).to_le_bytes());
        assert!(Bincode.decode::<String>(&bytes).is_err());
        assert!(Bincode.decode::<Vec<u8>>(&bytes).is_err());
        assert!(Bincode.decode::<Vec<u64>>(&bytes).is_err());
    }

    #[test]
    fn bytes_left_over_are_an_error() {
        let mut bytes = Vec::new();
        Bincode.encode(&7_u32, &mut bytes).expect("encodes");
        assert_eq!(Bincode.decode::<u32>(&bytes).expect("decodes"), 7);
        bytes.push(0);
        assert!(Bincode.decode::<u32>(&bytes).is_err());
    }

    #[test]
    fn honest_values_at_every_step_of_the_limit_decode() {
        for len in [0, 1, 60_000, 70_000, 2 << 20, 5 << 20] {
            let value = vec![0_u64; len];
            let mut bytes = Vec::new();
            Bincode.encode(&value, &mut bytes).expect("encodes");
            assert_eq!(
                Bincode.decode::<Vec<u64>>(&bytes).expect("decodes").len(),
                len
            );
        }
    }
}
