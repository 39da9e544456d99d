//! What other processes say: invalidations, inserts, wake-ups. And what is done when something may
//! have been missed.

use std::sync::{Arc, Weak};

use tokio::sync::Notify;
use tokio::time::Instant;

use crate::coherence::sequence::Delivery;
use crate::coherence::watermarks::News;
use crate::engine::Engine;
use crate::engine::remote::RemoteTier;
use crate::health::Event;
use crate::l2::Listener;
use crate::protocol::message::{About, Message, Operation};
use crate::protocol::record::Watermarks;

impl Listener for Engine {
    fn on_message(&self, bytes: &[u8]) {
        let Some(remote) = &self.remote else { return };
        let now = Instant::now();
        let Some(message) = Message::parse(bytes) else {
            // Something was said that this version does not understand.
            return self.on_gap();
        };
        let own = remote.origin == message.origin;
        if !own && message.operation == Operation::Beat {
            return;
        }
        remote.channel.message_heard(now);
        let numbered = !matches!(message.operation, Operation::Wake | Operation::Beat);
        if numbered && !own {
            let said = self
                .numbers
                .lock()
                .hear(message.origin, message.number, now);
            match said {
                Delivery::New => {}
                // It was executed before it came for the first time, and done with then.
                Delivery::Again => return,
                Delivery::AfterGap => self.on_gap(),
            }
        }
        match message.about {
            About::Keys(keys) => {
                for encoded in keys {
                    self.on_key(message.operation, encoded, own, now);
                }
            }
            About::Watermarks { tag, watermarks } => {
                self.on_watermarks(message.operation, tag, watermarks);
                if message.operation == Operation::Beat {
                    remote.channel.heartbeat_returned(message.number, now);
                    if self.numbers.lock().lost(remote.channel.period(), now) {
                        self.on_gap();
                    }
                }
            }
        }
    }

    fn on_up(&self) {
        let Some(remote) = &self.remote else { return };
        // Listen first (the tier has confirmed it), then forget what was read before, then prove
        // the channel: in any other order an invalidation can fall between.
        self.distrust();
        if !self.is_closed() && remote.channel.set_up(Instant::now()) {
            self.gap();
        }
        self.repairs.wake.notify_one();
        self.emit(&Event::ChannelUp);
    }

    #[cfg(any(feature = "redis", feature = "testing", all(test, feature = "bincode")))]
    fn on_down(&self) {
        if let Some(remote) = &self.remote {
            let was_up = remote.channel.is_up();
            remote.channel.set_down(Instant::now());
            if was_up {
                self.emit(&Event::ChannelDown);
            }
        }
    }

    fn on_gap(&self) {
        self.distrust();
        self.gap();
    }

    #[cfg(feature = "redis")]
    fn on_breaker(&self, open: bool) {
        if open {
            self.emit(&Event::BreakerOpened);
        } else {
            self.repairs.wake.notify_one();
            self.emit(&Event::BreakerClosed);
        }
    }

    #[cfg(feature = "redis")]
    fn on_denied(&self, denied: bool) {
        if denied {
            self.emit(&Event::Denied);
        } else {
            self.repairs.wake.notify_one();
            self.emit(&Event::Granted);
        }
    }
}

impl Engine {
    fn on_key(&self, operation: Operation, encoded: &[u8], own: bool, now: Instant) {
        match operation {
            // Also from ourselves: a flight of this cache may wait for one that was detached.
            Operation::Wake => self.flights.wake(encoded),
            // What this cache does itself it does to L1 as well, when the reply is here.
            _ if own => {}
            _ => {
                self.stats.remote_invalidations.add();
                let hash = self.flights.hash(encoded);
                let mut shard = self.flights.lock(hash);
                if operation == Operation::Invalidate {
                    self.fence.hold_off(hash, now);
                }
                self.fence.bump(hash);
                shard.detach(hash, encoded);
            }
        }
    }

    /// The marks, in the order of execution: from others, and from ourselves, whose reply may not
    /// be here yet or never come.
    fn on_watermarks(&self, operation: Operation, tag: u64, watermarks: Watermarks) {
        if self.watermarks.contradicts(watermarks) {
            return match operation {
                Operation::InvalidateAll => self.drop_everything(),
                _ => self.start_new_epoch(),
            };
        }
        match operation {
            Operation::InvalidateTag => {
                self.watermarks.heard(watermarks);
                self.apply_advance(Some(tag), watermarks);
            }
            Operation::InvalidateAll => {
                self.watermarks.heard(watermarks);
                self.apply_advance(None, watermarks);
            }
            _ => match self.watermarks.learn(watermarks, true) {
                News::Nothing => {}
                News::Everything => self.start_new_epoch(),
                News::Missed => self.on_gap(),
            },
        }
    }

    /// Listens to the bus, from the first call on: without it L1 is not used.
    pub(crate) async fn attach(self: &Arc<Self>, remote: &RemoteTier) {
        let begin = || {
            let weak: Weak<Self> = Arc::downgrade(self);
            tokio::spawn(heartbeat(
                Weak::clone(&weak),
                Arc::clone(&remote.channel.wake),
            ));
            weak as Weak<dyn Listener>
        };
        remote.attach(begin).await;
    }

    /// Messages may have been missed: nothing that was read until now is answered before L2 has
    /// been asked about it.
    fn distrust(&self) {
        self.numbers.lock().clear();
        self.watermarks.distrust();
        self.start_new_epoch();
    }

    fn gap(&self) {
        self.stats.gaps.add();
        self.emit(&Event::Gap);
    }

    /// Nothing that was read until now is answered any more.
    pub(crate) fn start_new_epoch(&self) {
        self.fence.bump_epoch();
        self.flights.detach_before(self.fence.epoch());
    }

    /// One beat, and what is to be done when none came back.
    async fn heartbeat_once(&self, remote: &RemoteTier) {
        let now = Instant::now();
        if remote.channel.is_up() {
            if remote.channel.is_silent(now) {
                self.emit(&Event::ChannelSilent);
                remote.tier.renew_bus();
            }
            let message = remote.heartbeat_message(remote.channel.heartbeat_sent(now));
            let known = self.watermarks.known().unwrap_or_default();
            // What comes of it is heard on the bus, or not.
            let _ = remote
                .tier
                .beat(&remote.watermarks_key, known, message)
                .await;
        }
    }
}

/// Proves the channel as long as the cache lives.
async fn heartbeat(engine: Weak<Engine>, wake: Arc<Notify>) {
    loop {
        let period = {
            let Some(engine) = engine.upgrade() else {
                return;
            };
            let Some(remote) = &engine.remote else {
                return;
            };
            if engine.is_closed() {
                return;
            }
            engine.heartbeat_once(remote).await;
            (!remote.channel.is_direct()).then(|| remote.channel.period())
        };
        match period {
            Some(period) => drop(tokio::time::timeout(period, wake.notified()).await),
            // Once, for the marks.
            None => wake.notified().await,
        }
    }
}
