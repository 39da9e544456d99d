//! Messages of the invalidation bus, parsed.

use super::key::{EncodedKey, text};
use crate::protocol::message::{self, About};

/// The operation that a message is about.
#[non_exhaustive]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Operation {
    /// Keys were dropped.
    Invalidate,
    /// Keys were given new values by hand.
    Insert,
    /// The lease on a key is gone: the calls that wait for it read again.
    Wake,
    /// Entries are not fresh any more.
    Expire,
    /// A heartbeat: the marks alone, for the process that sent it.
    Beat,
    /// Everything was dropped.
    InvalidateAll,
    /// Everything with a tag was dropped.
    InvalidateTag,
}

/// A message of a cache's bus.
#[non_exhaustive]
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Message {
    /// What it is about.
    pub operation: Operation,
    /// The sender: random, one per handle of a cache.
    pub origin: [u8; 16],
    /// Its number among the messages of its origin that change something. Of a heartbeat, the
    /// number of the heartbeat. Of others, zero.
    pub number: u64,
    /// The keys, if it is about keys.
    pub keys: Vec<EncodedKey>,
    /// The hash of the tag, if it is about one.
    pub tag: Option<u64>,
    /// The era, the mark, and the mark of the last invalidation of everything, if it is about
    /// these.
    pub marks: Option<(u64, u64, u64)>,
}

impl Message {
    /// Parses a message from [`Names::bus`](super::Names::bus). `None`: it is of a later format, or
    /// not ours. A cache takes it for a gap.
    pub fn parse(bytes: &[u8]) -> Option<Self> {
        let parsed = message::Message::parse(bytes)?;
        let operation = match parsed.operation {
            message::Operation::Invalidate => Operation::Invalidate,
            message::Operation::Insert => Operation::Insert,
            message::Operation::Wake => Operation::Wake,
            message::Operation::Expire => Operation::Expire,
            message::Operation::Heartbeat => Operation::Beat,
            message::Operation::InvalidateAll => Operation::InvalidateAll,
            message::Operation::InvalidateTag => Operation::InvalidateTag,
        };
        let (mut keys, mut tag, mut marks) = (Vec::new(), None, None);
        match parsed.about {
            About::Keys(encoded) => {
                let encoded = encoded.into_iter().map(text);
                keys.extend(encoded.map(EncodedKey));
            }
            About::Watermarks {
                tag: hash,
                watermarks,
                ..
            } => {
                tag = (operation == Operation::InvalidateTag).then_some(hash);
                marks = Some((watermarks.incarnation, watermarks.current, watermarks.all));
            }
        }
        Some(Self {
            operation,
            origin: parsed.origin,
            number: parsed.number,
            keys,
            tag,
            marks,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::protocol::record::Watermarks;

    #[test]
    fn messages_are_parsed() {
        let said = |operation, about| {
            message::Message {
                operation,
                origin: [3; 16],
                number: 4,
                about,
            }
            .to_bytes()
        };
        let keys = said(
            message::Operation::Expire,
            About::Keys(vec![b"42", b"a%2Cb"]),
        );
        let parsed = Message::parse(&keys).expect("a message");
        assert_eq!((parsed.operation, parsed.number), (Operation::Expire, 4));
        assert_eq!(parsed.origin, [3; 16]);
        let texts: Vec<_> = parsed.keys.iter().map(EncodedKey::as_str).collect();
        assert_eq!(texts, ["42", "a%2Cb"]);
        assert_eq!((parsed.tag, parsed.marks), (None, None));

        let watermarks = Watermarks::default();
        let mut tag = said(
            message::Operation::InvalidateTag,
            About::Watermarks { tag: 9, watermarks },
        );
        for number in [1_u64, 2, 3] {
            tag.extend_from_slice(&number.to_le_bytes());
        }
        let parsed = Message::parse(&tag).expect("a message");
        assert_eq!((parsed.tag, parsed.marks), (Some(9), Some((1, 2, 3))));
        assert_eq!(Message::parse(&tag[1..]), None);
    }
}
