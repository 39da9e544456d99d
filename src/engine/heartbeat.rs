//! The heartbeat: the task that subscribes to the bus and proves the channel.

use std::sync::{Arc, Weak};

use tokio::sync::Notify;
use tokio::time::Instant;

use super::Engine;
use super::remote::RemoteTier;
use crate::health::Event;
use crate::l2::Listener;

impl Engine {
    /// Listens to the bus, from the first call on. Without the bus L1 is not used.
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

    /// Sends one heartbeat. A channel on which none came back for too long is reported and renewed.
    async fn heartbeat_once(&self, remote: &RemoteTier) {
        let now = Instant::now();
        if remote.channel.is_up() {
            if remote.channel.is_silent(now) {
                self.emit(&Event::ChannelSilent);
                remote.tier.renew_bus();
            }
            let message = remote.heartbeat_message(remote.channel.heartbeat_sent(now));
            let known = self.watermarks.known().unwrap_or_default();
            // The reply does not matter: the heartbeat comes back on the bus, or it does not.
            let _ = remote
                .tier
                .beat(&remote.watermarks_key, known, message)
                .await;
        }
    }
}

/// Proves the channel for as long as the cache is open.
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
            // A direct channel needs no proof. One heartbeat brings the watermarks.
            None => wake.notified().await,
        }
    }
}
