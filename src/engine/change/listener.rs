//! The listener: what this process does with messages of the bus, and when it may have missed one.

use tokio::time::Instant;

use crate::coherence::sequence::Delivery;
use crate::coherence::watermarks::Learned;
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
            // A message that this version does not understand counts as a missed one.
            return self.on_gap();
        };
        let own = remote.origin == message.origin;
        if !own && message.operation == Operation::Heartbeat {
            return;
        }
        remote.channel.message_received(now);
        if !own && self.is_duplicate(&message, now) {
            return;
        }
        match message.about {
            About::Keys(keys) => {
                for encoded in keys {
                    self.on_key(message.operation, encoded, own, now);
                }
            }
            About::Watermarks { tag, watermarks } => {
                self.on_watermarks(message.operation, tag, watermarks);
                if message.operation == Operation::Heartbeat {
                    self.on_heartbeat(remote, message.number, now);
                }
            }
        }
    }

    fn on_up(&self) {
        let Some(remote) = &self.remote else { return };
        // First listen (the tier has confirmed it), then forget what was read before, then prove
        // the channel. In any other order an invalidation can be missed.
        self.distrust();
        if !self.is_closed() && remote.channel.set_up(Instant::now()) {
            self.report_gap();
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
        self.report_gap();
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
    /// Whether a message of another process has been handled before. A gap before it is handled
    /// here.
    fn is_duplicate(&self, message: &Message<'_>, now: Instant) -> bool {
        if matches!(message.operation, Operation::Wake | Operation::Heartbeat) {
            // These have no sequence number.
            return false;
        }
        let delivery = self
            .numbers
            .lock()
            .observe(message.origin, message.number, now);
        match delivery {
            Delivery::New => false,
            // It was executed before it came for the first time, so it is done with.
            Delivery::Duplicate => true,
            Delivery::AfterGap => {
                self.on_gap();
                false
            }
        }
    }

    fn on_key(&self, operation: Operation, encoded: &[u8], own: bool, now: Instant) {
        match operation {
            // Also from this process: a flight of this cache may wait for one that was detached.
            Operation::Wake => self.flights.wake(encoded),
            // A change that this process makes is carried out in L1 when its reply is here.
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

    /// Takes in watermarks, in the order of execution. They come from other processes, and from
    /// this one, whose reply may not be here yet or may never come.
    fn on_watermarks(&self, operation: Operation, tag: u64, watermarks: Watermarks) {
        if self.watermarks.contradicts(watermarks) {
            return match operation {
                Operation::InvalidateAll => self.drop_everything(),
                _ => self.start_new_epoch(),
            };
        }
        match operation {
            Operation::InvalidateTag => {
                self.watermarks.observe_message(watermarks);
                self.apply_advance(Some(tag), watermarks);
            }
            Operation::InvalidateAll => {
                self.watermarks.observe_message(watermarks);
                self.apply_advance(None, watermarks);
            }
            _ => match self.watermarks.learn(watermarks, true) {
                Learned::Nothing => {}
                Learned::Everything => self.start_new_epoch(),
                Learned::Missed => self.on_gap(),
            },
        }
    }

    /// A heartbeat of this process came back.
    fn on_heartbeat(&self, remote: &RemoteTier, number: u64, now: Instant) {
        remote.channel.heartbeat_returned(number, now);
        if self.numbers.lock().take_gap(remote.channel.period(), now) {
            self.on_gap();
        }
    }

    /// Messages may have been missed: nothing that was read until now is answered before L2 has
    /// been asked about it.
    fn distrust(&self) {
        self.numbers.lock().clear();
        self.watermarks.distrust();
        self.start_new_epoch();
    }

    fn report_gap(&self) {
        self.stats.gaps.add();
        self.emit(&Event::Gap);
    }
}
