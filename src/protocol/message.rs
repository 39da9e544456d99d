//! The messages of the invalidation bus, and their encoding.
//!
//! | bytes | field |
//! |---|---|
//! | 1 | format, 1 |
//! | 1 | operation, see [`Operation`] |
//! | 16 | origin: random, one per cache handle |
//! | 8 | sequence number among the origin's messages that change something; else 0 |
//!
//! In an operation on keys, one or more keys follow: 4 bytes of length and the encoded key. In the
//! others, four numbers of 8 bytes follow: the hash of the tag (or 0), the incarnation, the current
//! watermark, and the watermark of the last invalidation of everything. The script that reads the
//! last three adds them.
//!
//! Any other message counts as a gap: the reader has missed a message that it does not understand.

use crate::protocol::record::Watermarks;

const FORMAT: u8 = 1;
/// The largest number with which a script counts exactly. No script sends a larger one.
const LARGEST: u64 = 1 << 53;
const FIXED: usize = 1 + 1 + 16 + 8;

/// The sender of a message.
pub(crate) type Origin = [u8; 16];

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Operation {
    /// The key was dropped.
    Invalidate = 1,
    /// `insert` gave the key a new value.
    Insert = 2,
    /// The lease on the key has ended: flights that wait for it read again. The value may be
    /// unchanged.
    Wake = 3,
    /// The entry is not fresh any more.
    Expire = 4,
    /// A heartbeat: it proves the channel, and carries the watermarks.
    Heartbeat = 5,
    /// Everything was dropped.
    InvalidateAll = 6,
    /// Everything with a tag was dropped.
    InvalidateTag = 7,
}

#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Message<'a> {
    pub(crate) operation: Operation,
    pub(crate) origin: Origin,
    pub(crate) number: u64,
    pub(crate) about: About<'a>,
}

#[derive(Debug, PartialEq, Eq)]
pub(crate) enum About<'a> {
    Keys(Vec<&'a [u8]>),
    Watermarks { tag: u64, watermarks: Watermarks },
}

impl<'a> Message<'a> {
    /// The bytes. In a message about watermarks the watermarks are missing; the tier adds them.
    pub(crate) fn to_bytes(&self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(FIXED + 64);
        bytes.extend_from_slice(&[FORMAT, self.operation as u8]);
        bytes.extend_from_slice(&self.origin);
        bytes.extend_from_slice(&self.number.to_le_bytes());
        match &self.about {
            About::Keys(keys) => {
                for key in keys {
                    // Encoded keys are short by construction.
                    let len = u32::try_from(key.len()).unwrap_or(u32::MAX);
                    bytes.extend_from_slice(&len.to_le_bytes());
                    bytes.extend_from_slice(key);
                }
            }
            About::Watermarks { tag, .. } => bytes.extend_from_slice(&tag.to_le_bytes()),
        }
        bytes
    }

    pub(crate) fn parse(bytes: &'a [u8]) -> Option<Self> {
        let (fixed, rest) = bytes.split_at_checked(FIXED)?;
        let operation = match fixed[..2] {
            [FORMAT, 1] => Operation::Invalidate,
            [FORMAT, 2] => Operation::Insert,
            [FORMAT, 3] => Operation::Wake,
            [FORMAT, 4] => Operation::Expire,
            [FORMAT, 5] => Operation::Heartbeat,
            [FORMAT, 6] => Operation::InvalidateAll,
            [FORMAT, 7] => Operation::InvalidateTag,
            _ => return None,
        };
        let origin = fixed[2..18].try_into().ok()?;
        let number = u64::from_le_bytes(fixed[18..].try_into().ok()?);
        let about = match operation {
            Operation::Heartbeat | Operation::InvalidateAll | Operation::InvalidateTag => {
                parse_watermarks(rest)?
            }
            _ => parse_keys(rest)?,
        };
        Some(Self {
            operation,
            origin,
            number,
            about,
        })
    }
}

fn parse_keys(mut rest: &[u8]) -> Option<About<'_>> {
    let mut keys = Vec::with_capacity(1);
    while !rest.is_empty() {
        let (len, tail) = rest.split_first_chunk::<4>()?;
        let len = usize::try_from(u32::from_le_bytes(*len)).ok()?;
        let (key, tail) = tail.split_at_checked(len)?;
        keys.push(key);
        rest = tail;
    }
    (!keys.is_empty()).then_some(About::Keys(keys))
}

fn parse_watermarks(rest: &[u8]) -> Option<About<'_>> {
    let rest: &[u8; 32] = rest.try_into().ok()?;
    let mut numbers = rest.chunks_exact(8).map(|number| {
        let number: [u8; 8] = number.try_into().unwrap_or_default();
        u64::from_le_bytes(number)
    });
    let mut next = || numbers.next().unwrap_or_default();
    let tag = next();
    let watermarks = Watermarks {
        incarnation: next(),
        current: next(),
        all: next(),
    };
    let largest = watermarks
        .incarnation
        .max(watermarks.current)
        .max(watermarks.all);
    (largest <= LARGEST).then_some(About::Watermarks { tag, watermarks })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn messages_survive(
            origin in any::<[u8; 16]>(), number in any::<u64>(),
            keys in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..20), 1..4)
        ) {
            let about = About::Keys(keys.iter().map(Vec::as_slice).collect());
            let message = Message { operation: Operation::Insert, origin, number, about };
            let bytes = message.to_bytes();
            prop_assert_eq!(Message::parse(&bytes), Some(message));
            for len in 0..bytes.len() {
                // A message that is cut off at the end of a key reads as a message of fewer keys.
                // Redis delivers whole messages, so a length field would prove nothing more.
                let _ = Message::parse(&bytes[..len]);
            }
        }

        #[test]
        fn marks_survive(number in any::<u64>(), tag in any::<u64>(), numbers in prop::array::uniform3(0..=LARGEST)) {
            let [incarnation, current, all] = numbers;
            let about = About::Watermarks { tag, watermarks: Watermarks { incarnation, current, all } };
            let message = Message { operation: Operation::InvalidateTag, origin: [3; 16], number, about };
            let mut bytes = message.to_bytes();
            prop_assert_eq!(Message::parse(&bytes), None, "the tier has not added the watermarks");
            bytes.extend(numbers.iter().flat_map(|number| number.to_le_bytes()));
            prop_assert_eq!(Message::parse(&bytes), Some(message));
        }

        #[test]
        fn no_bytes_panic(bytes in prop::collection::vec(any::<u8>(), 0..80)) {
            let _ = Message::parse(&bytes);
        }
    }

    #[test]
    fn what_is_not_understood_is_refused() {
        let message = Message {
            operation: Operation::Wake,
            origin: [1; 16],
            number: 1,
            about: About::Keys(vec![b"42"]),
        };
        let bytes = message.to_bytes();
        assert!(Message::parse(&bytes).is_some());
        for (at, value) in [(0, 2), (1, 0), (1, 9)] {
            let mut other = bytes.clone();
            other[at] = value;
            assert_eq!(Message::parse(&other), None);
        }
        for (incarnation, current, all) in [(LARGEST, 1, 1), (1, LARGEST, 1), (1, 1, LARGEST)] {
            let message_with = |by: u64| {
                let begun = [&bytes[..FIXED], &[0; 8]].concat();
                let at = |number: u64| {
                    if number == LARGEST {
                        number + by
                    } else {
                        number
                    }
                };
                let numbers = [incarnation, current, all].map(|number| at(number).to_le_bytes());
                let mut message = [begun, numbers.concat()].concat();
                message[1] = Operation::InvalidateAll as u8;
                message
            };
            assert!(Message::parse(&message_with(0)).is_some());
            assert_eq!(
                Message::parse(&message_with(1)),
                None,
                "{incarnation} {current} {all}"
            );
        }
        assert_eq!(Message::parse(&bytes[..FIXED]), None, "no keys");
        assert_eq!(
            Message::parse(&bytes[..bytes.len() - 1]),
            None,
            "half a key"
        );
    }
}
