//! The invalidation bus: one connection, one channel per cache.
//!
//! The order that keeps L1 honest: the connection is lost, L1 is not used; the channels are
//! subscribed to again; the server has confirmed it (fred returns before it has, so a `PING` on the
//! same connection is waited for); what was read before is forgotten; L1 is used.

use std::sync::{Arc, Weak};
use std::time::Duration;

use bytes::Bytes;
use fred::clients::Client;
use fred::interfaces::{ClientLike, EventInterface, PubsubInterface};
use tokio::sync::broadcast::error::RecvError;
use tokio::sync::mpsc;

use super::Shared;
use crate::l2::Listener;

/// How long to wait before a subscription that failed is tried again.
const RETRY: Duration = Duration::from_millis(500);

/// What handles ask of the bus.
#[derive(Debug)]
pub(super) enum Order {
    Subscribe(Bytes, Weak<dyn Listener>),
    Unsubscribe(Bytes),
}

pub(super) async fn run(shared: Weak<Shared>, client: Client, mut orders: mpsc::UnboundedReceiver<Order>) {
    let mut messages = client.message_rx();
    let mut connected = client.reconnect_rx();
    let mut failed = client.error_rx();
    let connection = client.connect();
    let mut up = false;
    let mut retry = false;
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
        let Some(shared) = shared.upgrade() else { break };
        match event {
            Event::Message(message) => {
                let bytes = message.value.as_bytes().unwrap_or_default();
                for listener in shared.on(message.channel.as_bytes()) {
                    listener.on_message(bytes);
                }
            }
            Event::Gap => shared.all().iter().for_each(|listener| listener.on_gap()),
            Event::Failed => {
                up = false;
                shared.all().iter().for_each(|listener| listener.on_down());
            }
            Event::Connected => {
                if up {
                    shared.all().iter().for_each(|listener| listener.on_down());
                }
                let channels: Vec<Bytes> = shared.listeners.lock().keys().cloned().collect();
                up = shared.subscribe(&client, &channels).await;
                retry = !up && !channels.is_empty();
                if up {
                    shared.all().iter().for_each(|listener| listener.on_up());
                }
            }
            // Not connected: it is subscribed to with the others when the connection stands.
            Event::Order(Order::Subscribe(channel, listener)) if up => {
                if shared.subscribe(&client, std::slice::from_ref(&channel)).await {
                    if let Some(listener) = listener.upgrade() {
                        listener.on_up();
                    }
                } else {
                    (up, retry) = (false, true);
                    shared.all().iter().for_each(|listener| listener.on_down());
                }
            }
            Event::Order(Order::Subscribe(..)) => {}
            Event::Order(Order::Unsubscribe(channel)) => {
                if let Ok(channel) = String::from_utf8(channel.to_vec()) {
                    let _ = client.unsubscribe(channel).await;
                }
            }
        }
    }
    connection.abort();
}

enum Event {
    Message(fred::types::Message),
    Gap,
    Connected,
    Failed,
    Order(Order),
}

impl Shared {
    /// Subscribes and waits for the server's confirmation.
    async fn subscribe(&self, client: &Client, channels: &[Bytes]) -> bool {
        let channels: Vec<String> =
            channels.iter().filter_map(|channel| String::from_utf8(channel.to_vec()).ok()).collect();
        let client = client.with_options(&self.options);
        if !channels.is_empty() && client.subscribe(channels).await.is_err() {
            return false;
        }
        client.ping::<fred::types::Value>(None).await.is_ok()
    }

    fn on(&self, channel: &[u8]) -> Vec<Arc<dyn Listener>> {
        let listeners = self.listeners.lock();
        listeners.get(channel).into_iter().flatten().filter_map(Weak::upgrade).collect()
    }

    fn all(&self) -> Vec<Arc<dyn Listener>> {
        self.listeners.lock().values().flatten().filter_map(Weak::upgrade).collect()
    }
}
