//! The engine's side of the shared tier: names, stamps, and whether L1 may be trusted.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock, Weak};
use std::time::Duration;

use bytes::Bytes;
use parking_lot::Mutex;
use tokio::sync::Notify;
use tokio::time::Instant;

use super::flight::Id;
use crate::codec::{CodecError, ErasedCodec, envelope};
use crate::error::{RemoteError, RemoteKind};
use crate::key;
use crate::l2::message::{Message, Operation, Origin};
use crate::l2::{Listener, Notice, Tier};

pub(crate) struct Shared<V> {
    pub(crate) tier: Tier,
    codec: Arc<dyn ErasedCodec<V>>,
    /// `prefix:name:`
    namespace: Vec<u8>,
    pub(crate) channel: Bytes,
    pub(crate) origin: Origin,
    sequence: AtomicU64,
    pub(crate) link: Link,
}

/// One key as the shared tier knows it.
#[derive(Clone, Debug)]
pub(crate) struct RemoteKey {
    pub(crate) bytes: Bytes,
    pub(crate) hash: u64,
}

impl<V> Shared<V> {
    pub(crate) fn new(name: &str, tier: Tier, codec: Arc<dyn ErasedCodec<V>>) -> Self {
        let namespace = key::namespace(tier.prefix(), name);
        // No key is named like this: encoded keys hold no `:`.
        let channel = [namespace.as_slice(), b":bus"].concat().into();
        Self {
            tier,
            codec,
            namespace,
            channel,
            origin: rand::random(),
            sequence: AtomicU64::new(0),
            link: Link::new(),
        }
    }

    pub(crate) fn key(&self, id: &Id) -> RemoteKey {
        let bytes: Bytes = [self.namespace.as_slice(), &id.encoded].concat().into();
        RemoteKey {
            hash: envelope::key_hash(&bytes),
            bytes,
        }
    }

    pub(crate) fn notice(&self, operation: Operation, id: &Id) -> Notice {
        let message = Message {
            operation,
            origin: self.origin,
            sequence: self.sequence.fetch_add(1, Ordering::Relaxed),
            keys: vec![&id.encoded],
        };
        Notice {
            channel: self.channel.clone(),
            message: message.to_bytes().into(),
        }
    }

    /// The server's clock; without it no record can be read or written.
    pub(crate) fn now_ms(&self) -> Result<u64, RemoteError> {
        self.tier
            .now_ms()
            .ok_or_else(|| RemoteError::new(RemoteKind::Unreachable, "read the clock"))
    }

    pub(crate) fn codec_id(&self) -> u8 {
        self.codec.id()
    }

    /// A codec that panics is a codec that fails.
    pub(crate) fn encode(&self, value: &V, out: &mut Vec<u8>) -> Result<(), CodecError> {
        unpanicked(|| self.codec.encode(value, out))
    }

    pub(crate) fn decode(&self, payload: &[u8]) -> Result<V, CodecError> {
        unpanicked(|| self.codec.decode(payload))
    }

    /// Listens to the bus, from the first call on. Waits until the subscription stands or has
    /// failed, for an operation's timeout at most and only right after the first call.
    pub(crate) async fn attach(&self, listener: impl FnOnce() -> Weak<dyn Listener>) {
        let mut first = false;
        let begun = *self.link.begun.get_or_init(|| {
            first = true;
            Instant::now()
        });
        if first {
            self.tier.listen(&self.channel, listener());
        }
        self.link.settle(begun + self.tier.timeout()).await;
    }

    /// Notes whether the tier could be reached.
    pub(crate) fn note<T>(&self, result: &Result<T, RemoteError>) {
        let reachable = match result {
            Ok(_) => true,
            Err(error) => !matches!(error.kind(), RemoteKind::Unreachable | RemoteKind::Timeout),
        };
        self.link.reachable.store(reachable, Ordering::Relaxed);
    }
}

fn unpanicked<T>(what: impl FnOnce() -> Result<T, CodecError>) -> Result<T, CodecError> {
    std::panic::catch_unwind(std::panic::AssertUnwindSafe(what))
        .unwrap_or_else(|_| Err(CodecError::new("the codec panicked")))
}

/// The state of the subscription, and what it means for L1.
///
/// | subscription | L2 | L1 |
/// |---|---|---|
/// | stands | | answers |
/// | down | answers | does not: an invalidation could be missed, and L2 knows better |
/// | down | cannot be reached | answers for `degraded_l1_ttl` |
#[derive(Debug)]
pub(crate) struct Link {
    begun: OnceLock<Instant>,
    up: AtomicBool,
    was_up: AtomicBool,
    settled: AtomicBool,
    changed: Notify,
    reachable: AtomicBool,
    down_since: Mutex<Instant>,
}

impl Link {
    fn new() -> Self {
        Self {
            begun: OnceLock::new(),
            up: AtomicBool::new(false),
            was_up: AtomicBool::new(false),
            settled: AtomicBool::new(false),
            changed: Notify::new(),
            reachable: AtomicBool::new(true),
            down_since: Mutex::new(Instant::now()),
        }
    }

    pub(crate) fn l1_usable(&self, stored: Instant, now: Instant, degraded: Duration) -> bool {
        if self.up.load(Ordering::Acquire) {
            return true;
        }
        if self.reachable.load(Ordering::Relaxed) {
            return false;
        }
        let since = stored.max(*self.down_since.lock());
        now.saturating_duration_since(since) < degraded
    }

    async fn settle(&self, until: Instant) {
        loop {
            let changed = self.changed.notified();
            if self.settled.load(Ordering::SeqCst) {
                return;
            }
            if tokio::time::timeout_at(until, changed).await.is_err() {
                return;
            }
        }
    }

    /// Up from now on. Answers whether it was up before.
    pub(crate) fn set_up(&self) -> bool {
        self.up.store(true, Ordering::SeqCst);
        self.reachable.store(true, Ordering::Relaxed);
        self.mark_settled();
        self.was_up.swap(true, Ordering::SeqCst)
    }

    pub(crate) fn set_down(&self) {
        if self.up.swap(false, Ordering::SeqCst) {
            *self.down_since.lock() = Instant::now();
        }
        self.mark_settled();
    }

    /// The cache is closed: nothing is listened to any more.
    pub(crate) fn end(&self) {
        self.set_down();
    }

    fn mark_settled(&self) {
        self.settled.store(true, Ordering::SeqCst);
        self.changed.notify_waiters();
    }
}
