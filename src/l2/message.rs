//! What travels on the invalidation bus.
//!
//! | bytes | field |
//! |---|---|
//! | 1 | format, 1 |
//! | 1 | operation: 1 invalidate, 2 insert, 3 wake |
//! | 16 | origin: random, one per cache handle |
//! | 8 | sequence number of that origin |
//! | 4 + n, once or more | length and bytes of an encoded key |
//!
//! A reader takes anything else for a gap: something was said that it does not understand.

const FORMAT: u8 = 1;
const FIXED: usize = 1 + 1 + 16 + 8;

/// Who published a message.
pub(crate) type Origin = [u8; 16];

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Operation {
    /// The key was dropped.
    Invalidate = 1,
    /// The key was given a new value by hand.
    Insert = 2,
    /// The lease on the key is gone: its waiters should look again. Says nothing about values.
    Wake = 3,
}

#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Message<'a> {
    pub(crate) operation: Operation,
    pub(crate) origin: Origin,
    pub(crate) sequence: u64,
    pub(crate) keys: Vec<&'a [u8]>,
}

impl<'a> Message<'a> {
    pub(crate) fn to_bytes(&self) -> Vec<u8> {
        let keys: usize = self.keys.iter().map(|key| 4 + key.len()).sum();
        let mut bytes = Vec::with_capacity(FIXED + keys);
        bytes.extend_from_slice(&[FORMAT, self.operation as u8]);
        bytes.extend_from_slice(&self.origin);
        bytes.extend_from_slice(&self.sequence.to_le_bytes());
        for key in &self.keys {
            // Encoded keys are short by construction.
            let len = u32::try_from(key.len()).unwrap_or(u32::MAX);
            bytes.extend_from_slice(&len.to_le_bytes());
            bytes.extend_from_slice(key);
        }
        bytes
    }

    pub(crate) fn parse(bytes: &'a [u8]) -> Option<Self> {
        let (fixed, mut rest) = bytes.split_at_checked(FIXED)?;
        let operation = match fixed[..2] {
            [FORMAT, 1] => Operation::Invalidate,
            [FORMAT, 2] => Operation::Insert,
            [FORMAT, 3] => Operation::Wake,
            _ => return None,
        };
        let origin = fixed[2..18].try_into().ok()?;
        let sequence = u64::from_le_bytes(fixed[18..].try_into().ok()?);
        let mut keys = Vec::with_capacity(1);
        while !rest.is_empty() {
            let (len, tail) = rest.split_first_chunk::<4>()?;
            let len = usize::try_from(u32::from_le_bytes(*len)).ok()?;
            let (key, tail) = tail.split_at_checked(len)?;
            keys.push(key);
            rest = tail;
        }
        (!keys.is_empty()).then_some(Self {
            operation,
            origin,
            sequence,
            keys,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn messages_survive(
            origin in any::<[u8; 16]>(), sequence in any::<u64>(),
            keys in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..20), 1..4)
        ) {
            let message = Message {
                operation: Operation::Insert, origin, sequence, keys: keys.iter().map(Vec::as_slice).collect(),
            };
            let bytes = message.to_bytes();
            prop_assert_eq!(Message::parse(&bytes), Some(message));
            for len in 0..bytes.len() {
                // A cut at the end of a key reads as a message of fewer keys: Redis delivers whole
                // messages, a length field of its own would prove nothing more.
                let _ = Message::parse(&bytes[..len]);
            }
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
            sequence: 1,
            keys: vec![b"42"],
        };
        let bytes = message.to_bytes();
        assert!(Message::parse(&bytes).is_some());
        for (at, value) in [(0, 2), (1, 0), (1, 9)] {
            let mut other = bytes.clone();
            other[at] = value;
            assert_eq!(Message::parse(&other), None);
        }
        assert_eq!(Message::parse(&bytes[..FIXED]), None, "no keys");
        assert_eq!(
            Message::parse(&bytes[..bytes.len() - 1]),
            None,
            "half a key"
        );
    }
}
