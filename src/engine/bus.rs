//! What other processes say: invalidations, inserts, wake-ups. And what is done when something may
//! have been missed.

use std::sync::{Arc, Weak};

use super::Engine;
use super::shared::Shared;
use crate::key::CacheKey;
use crate::l2::Listener;
use crate::l2::message::{Message, Operation};

impl<K, V, E> Listener for Engine<K, V, E>
where
    K: CacheKey,
    V: Send + Sync + 'static,
    E: Send + Sync + 'static,
{
    fn on_message(&self, bytes: &[u8]) {
        let Some(message) = Message::parse(bytes) else {
            // Something was said that this version does not understand.
            return self.on_gap();
        };
        let own = self
            .shared
            .as_ref()
            .is_some_and(|shared| shared.origin == message.origin);
        for encoded in message.keys {
            match message.operation {
                // Also from ourselves: a flight of this cache may wait for one that was detached.
                Operation::Wake => self.flights.wake(encoded),
                // What this cache does itself it does to L1 as well, when the reply is here.
                Operation::Invalidate | Operation::Insert if own => {}
                Operation::Invalidate | Operation::Insert => {
                    self.stats.remote_invalidations.add();
                    let hash = self.flights.hash(encoded);
                    let mut shard = self.flights.lock(hash);
                    self.fence.bump(hash);
                    shard.detach(hash, encoded);
                }
            }
        }
    }

    fn on_up(&self) {
        // Listen first (the tier has confirmed it), then forget what was read before, then use L1:
        // in any other order an invalidation can fall between.
        self.forget();
        if let Some(shared) = &self.shared {
            if !self.is_closed() && shared.link.set_up() {
                self.stats.gaps.add();
            }
        }
    }

    #[cfg(any(feature = "redis", all(test, feature = "bincode")))]
    fn on_down(&self) {
        if let Some(shared) = &self.shared {
            shared.link.set_down();
        }
    }

    fn on_gap(&self) {
        self.stats.gaps.add();
        self.forget();
    }
}

impl<K, V, E> Engine<K, V, E>
where
    K: CacheKey,
    V: Send + Sync + 'static,
    E: Send + Sync + 'static,
{
    /// Listens to the bus, from the first call on: without it L1 is not used.
    pub(crate) async fn attach(self: &Arc<Self>, shared: &Shared<V>) {
        let listener = || {
            let weak: Weak<Self> = Arc::downgrade(self);
            weak as Weak<dyn Listener>
        };
        shared.attach(listener).await;
    }

    /// Nothing that was read until now is answered any more.
    fn forget(&self) {
        self.fence.bump_epoch();
        self.flights.detach_before(self.fence.epoch());
    }
}
