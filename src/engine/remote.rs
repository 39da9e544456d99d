//! The shared tier as one cache's engine sees it: names of keys, messages, the codec and the channel.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Weak};
use std::time::Duration;

use bytes::Bytes;
use tokio::time::Instant;

use crate::codec::{AnyCodec, CodecError, RecordContext};
use crate::coherence::channel::ChannelLease;
use crate::erased::AnyValue;
use crate::error::{RemoteError, RemoteKind};
use crate::key::{self, HashedKey};
use crate::l2::{Listener, Publication, Tier};
use crate::protocol::message::{About, Message, Operation, Origin};
use crate::protocol::record;
use crate::protocol::record::Watermarks;
use crate::random;
use crate::time_base::TimeBase;

pub(crate) struct RemoteTier {
    pub(crate) tier: Tier,
    codec: Arc<dyn AnyCodec>,
    /// `prefix:name:`
    namespace: Vec<u8>,
    pub(crate) channel_name: Bytes,
    /// The key of this cache's watermarks.
    pub(crate) watermarks_key: Bytes,
    pub(crate) origin: Origin,
    number: AtomicU64,
    pub(crate) channel: ChannelLease,
}

/// A key in the shared tier, with its hash.
#[derive(Clone, Debug)]
pub(crate) struct RemoteKey {
    pub(crate) bytes: Bytes,
    pub(crate) hash: u64,
}

impl RemoteTier {
    pub(crate) fn new(
        name: &str,
        tier: Tier,
        codec: Arc<dyn AnyCodec>,
        channel_lease: Duration,
        now: Instant,
        time_base: TimeBase,
    ) -> Self {
        let namespace = key::namespace(tier.prefix(), name);
        let channel_name = key::bus(&namespace).into();
        let watermarks_key = key::marks(&namespace).into();
        let channel = ChannelLease::new(channel_lease, tier.is_direct(), now, time_base);
        Self {
            tier,
            codec,
            namespace,
            channel_name,
            watermarks_key,
            origin: random::bytes(),
            number: AtomicU64::new(0),
            channel,
        }
    }

    pub(crate) fn key(&self, id: &HashedKey) -> RemoteKey {
        let bytes: Bytes = [self.namespace.as_slice(), &id.encoded].concat().into();
        RemoteKey {
            hash: record::key_hash(&bytes),
            bytes,
        }
    }

    /// A message about one key. Messages about a change are numbered, so that a receiver notices one
    /// that it has missed.
    pub(crate) fn notice(&self, operation: Operation, id: &HashedKey) -> Publication {
        self.say(operation, About::Keys(vec![&id.encoded]))
    }

    /// A message about everything, or everything with a tag. The tier adds the watermarks.
    pub(crate) fn watermark_notice(&self, operation: Operation, tag: u64) -> Publication {
        let watermarks = Watermarks::default();
        self.say(operation, About::Watermarks { tag, watermarks })
    }

    fn say(&self, operation: Operation, about: About<'_>) -> Publication {
        let number = if operation == Operation::Wake {
            0
        } else {
            self.number.fetch_add(1, Ordering::Relaxed)
        };
        let message = Message {
            operation,
            origin: self.origin,
            number,
            about,
        };
        Publication {
            channel: self.channel_name.clone(),
            message: message.to_bytes().into(),
        }
    }

    /// A heartbeat: a message that this process sends to itself through the bus.
    pub(crate) fn heartbeat_message(&self, number: u64) -> Vec<u8> {
        let watermarks = Watermarks::default();
        let message = Message {
            operation: Operation::Heartbeat,
            origin: self.origin,
            number,
            about: About::Watermarks { tag: 0, watermarks },
        };
        message.to_bytes()
    }

    /// The server's clock. Without it no record can be read or written.
    pub(crate) fn now_ms(&self) -> Result<u64, RemoteError> {
        self.tier
            .now_ms()
            .ok_or_else(|| RemoteError::new(RemoteKind::Unreachable, "read the clock"))
    }

    pub(crate) fn codec_id(&self) -> u8 {
        self.codec.id()
    }

    /// Whether a payload can be decoded under its own header alone.
    pub(crate) fn binds_headers(&self) -> bool {
        self.codec.is_bound()
    }

    /// A panic of the codec is an error of the codec.
    pub(crate) fn encode(
        &self,
        value: &AnyValue,
        context: &RecordContext<'_>,
        out: &mut Vec<u8>,
    ) -> Result<(), CodecError> {
        unpanicked(|| self.codec.encode(value, context, out))
    }

    pub(crate) fn decode(
        &self,
        payload: &[u8],
        context: &RecordContext<'_>,
    ) -> Result<AnyValue, CodecError> {
        unpanicked(|| self.codec.decode(payload, context))
    }

    /// Listens to the bus, from the first call on. Waits until the subscription stands or has
    /// failed, for an operation's timeout at most and only right after the first call.
    pub(crate) async fn attach(&self, listener: impl FnOnce() -> Weak<dyn Listener>) {
        let mut first = false;
        let begun = self.channel.begin(|| first = true);
        if first {
            self.tier.listen(&self.channel_name, listener());
        }
        self.channel
            .wait_for_first_attempt(begun + self.tier.timeout())
            .await;
    }

    /// Notes whether the tier could be reached.
    pub(crate) fn note<T>(&self, result: &Result<T, RemoteError>) {
        let reachable = match result {
            Ok(_) => true,
            Err(error) => !(error.is_unreachable() || error.is_timeout()),
        };
        self.channel.set_reachable(reachable);
    }
}

fn unpanicked<T>(what: impl FnOnce() -> Result<T, CodecError>) -> Result<T, CodecError> {
    std::panic::catch_unwind(std::panic::AssertUnwindSafe(what))
        .unwrap_or_else(|_| Err(CodecError::new("the codec panicked")))
}
