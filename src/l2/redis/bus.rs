//! The invalidation bus: one connection, one channel per cache.
//!
//! The order that keeps L1 honest: the connection is lost, L1 is not used; the channels are
//! subscribed to again; the server has confirmed it (fred returns before it has, so a `PING` on the
//! same connection is waited for); what was read before is forgotten; L1 is used.

use std::sync::{Arc, Weak};
use std::time::Duration;

use bytes::Bytes;
use fred::clients::Client;
use fred::error::Error as FredError;
use fred::interfaces::{ClientLike, EventInterface, PubsubInterface};
use fred::types::Message;
use fred::types::config::Server;
use tokio::sync::broadcast::Receiver;
use tokio::sync::broadcast::error::RecvError;
use tokio::sync::mpsc;
use tokio::time::Instant;

use super::Shared;
use crate::l2::Listener;

/// How long to wait before a subscription that failed is tried again.
const RETRY: Duration = Duration::from_millis(500);
const RENEWED_AT_MOST_EVERY: Duration = Duration::from_secs(1);

/// A listener, and whether it has been told that its channel stands.
#[derive(Debug)]
pub(super) struct Subscriber {
    pub(super) listener: Weak<dyn Listener>,
    pub(super) up: bool,
}

/// What handles ask of the bus.
#[derive(Debug)]
pub(super) enum Order {
    Subscribe(Bytes),
    Unsubscribe(Bytes),
    /// The connection is silent: make another.
    Renew,
}

/// What the bus hears of its connection and of its handle. Made before the connection is, so that
/// nothing is missed.
pub(super) struct Ears {
    messages: Receiver<Message>,
    connected: Receiver<Server>,
    failed: Receiver<(FredError, Option<Server>)>,
    orders: mpsc::UnboundedReceiver<Order>,
}

impl Ears {
    pub(super) fn new(client: &Client, orders: mpsc::UnboundedReceiver<Order>) -> Self {
        Self {
            messages: client.message_rx(),
            connected: client.reconnect_rx(),
            failed: client.error_rx(),
            orders,
        }
    }
}

/// `connects`: whether the connection is still to be made.
pub(super) async fn run(shared: Weak<Shared>, client: Client, ears: Ears, connects: bool) {
    let Ears {
        mut messages,
        mut connected,
        mut failed,
        mut orders,
    } = ears;
    let connection = connects.then(|| client.connect());
    let mut up = false;
    let mut retry = false;
    let mut renewed = Instant::now();
    loop {
        // Nothing below keeps the handle alive while it waits.
        let event = tokio::select! {
            message = messages.recv() => match message {
                Ok(message) => Event::Message(message),
                Err(RecvError::Lagged(_)) => Event::Gap,
                Err(RecvError::Closed) => break,
            },
            _ = connected.recv() => Event::Connected,
            _ = failed.recv() => Event::Failed,
            order = orders.recv() => match order {
                Some(order) => Event::Order(order),
                None => break,
            },
            () = tokio::time::sleep(RETRY), if retry => Event::Connected,
        };
        let Some(shared) = shared.upgrade() else {
            break;
        };
        match event {
            Event::Message(message) => {
                let bytes = message.value.as_bytes().unwrap_or_default();
                let channel = message.channel.as_bytes();
                let listeners = if *channel == *shared.private {
                    shared.all()
                } else {
                    shared.on(channel)
                };
                for listener in listeners {
                    listener.on_message(bytes);
                }
            }
            Event::Gap => shared.all().iter().for_each(|listener| listener.on_gap()),
            Event::Failed => {
                // Try again even if no news of a connection follows: it may have come before.
                (up, retry) = (false, true);
                shared.lower();
            }
            Event::Connected => {
                if up {
                    shared.lower();
                }
                let channels: Vec<Bytes> = shared.listeners.lock().keys().cloned().collect();
                up = shared.subscribe(&client, &channels).await;
                retry = !up;
                if up {
                    shared.raise(&channels);
                }
            }
            // Not connected: it is subscribed to with the others when the connection stands.
            Event::Order(Order::Subscribe(channel)) if up => {
                let channels = [channel];
                if !shared.waits_for(&channels[0]) {
                    // It was there in time to be subscribed to with the others.
                } else if shared.subscribe(&client, &channels).await {
                    shared.raise(&channels);
                } else {
                    (up, retry) = (false, true);
                    shared.lower();
                }
            }
            Event::Order(Order::Subscribe(_)) => {}
            // Somebody may have begun to listen to it again.
            Event::Order(Order::Unsubscribe(channel))
                if shared.listeners.lock().contains_key(&channel) => {}
            // All caches of the process see the same silence.
            Event::Order(Order::Renew) if renewed.elapsed() < RENEWED_AT_MOST_EVERY => {}
            Event::Order(Order::Renew) => {
                renewed = Instant::now();
                up = false;
                shared.lower();
                // It waits for the old connection's writer, which may be what is stuck.
                let _ = tokio::time::timeout(RETRY, client.force_reconnection()).await;
            }
            Event::Order(Order::Unsubscribe(channel)) => {
                if let Ok(channel) = String::from_utf8(channel.to_vec()) {
                    let _ = client.unsubscribe(channel).await;
                }
            }
        }
    }
    if let Some(connection) = connection {
        connection.abort();
    }
}

enum Event {
    Message(Message),
    Gap,
    Connected,
    Failed,
    Order(Order),
}

impl Shared {
    /// Subscribes and waits for the server's confirmation.
    async fn subscribe(&self, client: &Client, channels: &[Bytes]) -> bool {
        let channels: Vec<String> = channels
            .iter()
            .chain([&self.private])
            .filter_map(|channel| String::from_utf8(channel.to_vec()).ok())
            .collect();
        let client = client.with_options(&self.options);
        if client.subscribe(channels).await.is_err() {
            return false;
        }
        client.ping::<fred::types::Value>(None).await.is_ok()
    }

    /// Tells those who have not heard that their channel stands.
    fn raise(&self, channels: &[Bytes]) {
        let mut raised = Vec::new();
        let mut listeners = self.listeners.lock();
        for channel in channels {
            for subscriber in listeners.get_mut(channel).into_iter().flatten() {
                if !std::mem::replace(&mut subscriber.up, true) {
                    raised.extend(subscriber.listener.upgrade());
                }
            }
        }
        drop(listeners);
        raised.iter().for_each(|listener| listener.on_up());
    }

    /// Tells everyone that nothing stands.
    fn lower(&self) {
        let mut lowered = Vec::new();
        for subscriber in self.listeners.lock().values_mut().flatten() {
            subscriber.up = false;
            lowered.extend(subscriber.listener.upgrade());
        }
        lowered.iter().for_each(|listener| listener.on_down());
    }

    fn waits_for(&self, channel: &[u8]) -> bool {
        self.listeners
            .lock()
            .get(channel)
            .into_iter()
            .flatten()
            .any(|subscriber| !subscriber.up)
    }

    fn on(&self, channel: &[u8]) -> Vec<Arc<dyn Listener>> {
        let listeners = self.listeners.lock();
        listeners
            .get(channel)
            .into_iter()
            .flatten()
            .filter_map(|one| one.listener.upgrade())
            .collect()
    }

    fn all(&self) -> Vec<Arc<dyn Listener>> {
        self.listeners
            .lock()
            .values()
            .flatten()
            .filter_map(|one| one.listener.upgrade())
            .collect()
    }
}
