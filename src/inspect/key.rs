//! Encoded keys, as they stand in Redis.

use std::fmt;

use crate::key::{self, CacheKey, KeyBuf};

/// A key in its encoded form, as it follows `prefix:name:` in Redis. As a [`CacheKey`] it names the
/// same entry as the key that it was encoded from.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct EncodedKey(pub(super) String);

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

    /// Takes an encoded key from Redis: `berlin,7`, `a%2Cb`, or `#` and a hash.
    ///
    /// # Errors
    ///
    /// [`InvalidKey`] if no key is encoded like this.
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

/// Whether a part is written exactly as [`KeyBuf`] writes it.
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

/// The error for a text that is no encoded key. An encoded key is printable ASCII. The characters
/// `: , { } % # " ' \` and backticks are written like `%2C`. A `,` stands between parts, `%_` is an
/// empty part, and `#` with 64 hexadecimal digits is a long key.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "no key is encoded like this: a `,` stands between parts, and bytes other than plain ASCII are written \
     `%2C`-like"
)]
pub struct InvalidKey(());

/// The text of a name. It is ASCII: other prefixes are refused, and keys are escaped.
pub(super) fn text(ascii: &[u8]) -> String {
    String::from_utf8_lossy(ascii).into_owned()
}
