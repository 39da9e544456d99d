//! What other processes say: invalidations, inserts, wake-ups. And what is done when something may
//! have been missed.

use std::sync::{Arc, Weak};

use tokio::sync::Notify;
use tokio::time::Instant;

use super::Engine;
use super::marks::{Marked, News};
use super::numbers::Said;
use super::shared::Shared;
use crate::health::Event;
use crate::l2::Listener;
use crate::l2::message::{About, Message, Operation};

impl Listener for Engine {
    fn on_message(&self, bytes: &[u8]) {
        let Some(shared) = &self.shared else { return };
        let now = Instant::now();
        let Some(message) = Message::parse(bytes) else {
            // Something was said that this version does not understand.
            return self.on_gap();
        };
        let own = shared.origin == message.origin;
        if !own && message.operation == Operation::Beat {
            return;
        }
        shared.link.message_heard(now);
        let numbered = !matches!(message.operation, Operation::Wake | Operation::Beat);
        if numbered && !own {
            let said = self
                .numbers
                .lock()
                .hear(message.origin, message.number, now);
            match said {
                Said::New => {}
                // It was executed before it came for the first time, and done with then.
                Said::Again => return,
                Said::AfterLoss => self.on_gap(),
            }
        }
        match message.about {
            About::Keys(keys) => {
                for encoded in keys {
                    self.on_key(message.operation, encoded, own, now);
                }
            }
            About::Marks { tag, marked } => {
                self.on_marks(message.operation, tag, marked);
                if message.operation == Operation::Beat {
                    shared.link.beat_heard(message.number, now);
                    if self.numbers.lock().lost(shared.link.period(), now) {
                        self.on_gap();
                    }
                }
            }
        }
    }

    fn on_up(&self) {
        let Some(shared) = &self.shared else { return };
        // Listen first (the tier has confirmed it), then forget what was read before, then prove
        // the channel: in any other order an invalidation can fall between.
        self.doubt();
        if !self.is_closed() && shared.link.set_up(Instant::now()) {
            self.gap();
        }
        self.repairs.nudge.notify_one();
        self.tell(&Event::ChannelUp);
    }

    #[cfg(any(feature = "redis", feature = "testing", all(test, feature = "bincode")))]
    fn on_down(&self) {
        if let Some(shared) = &self.shared {
            let was_up = shared.link.is_up();
            shared.link.set_down(Instant::now());
            if was_up {
                self.tell(&Event::ChannelDown);
            }
        }
    }

    fn on_gap(&self) {
        self.doubt();
        self.gap();
    }

    #[cfg(feature = "redis")]
    fn on_breaker(&self, open: bool) {
        if open {
            self.tell(&Event::BreakerOpened);
        } else {
            self.repairs.nudge.notify_one();
            self.tell(&Event::BreakerClosed);
        }
    }

    #[cfg(feature = "redis")]
    fn on_denied(&self, denied: bool) {
        if denied {
            self.tell(&Event::Denied);
        } else {
            self.repairs.nudge.notify_one();
            self.tell(&Event::Granted);
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
    fn on_marks(&self, operation: Operation, tag: u64, marked: Marked) {
        if self.marks.doubts(marked) {
            return match operation {
                Operation::InvalidateAll => self.drop_everything(),
                _ => self.forget(),
            };
        }
        match operation {
            Operation::InvalidateTag => {
                self.marks.heard(marked);
                self.raised(Some(tag), marked);
            }
            Operation::InvalidateAll => {
                self.marks.heard(marked);
                self.raised(None, marked);
            }
            _ => match self.marks.learn(marked, true) {
                News::Nothing => {}
                News::Everything => self.forget(),
                News::Missed => self.on_gap(),
            },
        }
    }

    /// Listens to the bus, from the first call on: without it L1 is not used.
    pub(crate) async fn attach(self: &Arc<Self>, shared: &Shared) {
        let begin = || {
            let weak: Weak<Self> = Arc::downgrade(self);
            tokio::spawn(beat(Weak::clone(&weak), Arc::clone(&shared.link.nudge)));
            weak as Weak<dyn Listener>
        };
        shared.attach(begin).await;
    }

    /// Messages may have been missed: nothing that was read until now is answered before L2 has
    /// been asked about it.
    fn doubt(&self) {
        self.numbers.lock().clear();
        self.marks.doubt();
        self.forget();
    }

    fn gap(&self) {
        self.stats.gaps.add();
        self.tell(&Event::Gap);
    }

    /// Nothing that was read until now is answered any more.
    pub(crate) fn forget(&self) {
        self.fence.bump_epoch();
        self.flights.detach_before(self.fence.epoch());
    }

    /// One beat, and what is to be done when none came back.
    async fn beat_once(&self, shared: &Shared) {
        let now = Instant::now();
        if shared.link.is_up() {
            if shared.link.is_silent(now) {
                self.tell(&Event::ChannelSilent);
                shared.tier.renew_bus();
            }
            let message = shared.beat_message(shared.link.beat_sent(now));
            let known = self.marks.known().unwrap_or_default();
            // What comes of it is heard on the bus, or not.
            let _ = shared.tier.beat(&shared.marks, known, message).await;
        }
    }
}

/// Proves the channel as long as the cache lives.
async fn beat(engine: Weak<Engine>, nudge: Arc<Notify>) {
    loop {
        let period = {
            let Some(engine) = engine.upgrade() else {
                return;
            };
            let Some(shared) = &engine.shared else {
                return;
            };
            if engine.is_closed() {
                return;
            }
            engine.beat_once(shared).await;
            (!shared.link.is_direct()).then(|| shared.link.period())
        };
        match period {
            Some(period) => drop(tokio::time::timeout(period, nudge.notified()).await),
            // Once, for the marks.
            None => nudge.notified().await,
        }
    }
}
