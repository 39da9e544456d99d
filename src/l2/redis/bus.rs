//! The invalidation bus: one connection to a server, one channel per cache.
//!
//! L1 is used again after a loss in this order. The connection is lost, and L1 is not used. The
//! channels are subscribed to again. The server confirms it: fred returns before that, so the
//! subscription is [proven](super::subscription). Entries that were read before count as outdated.
//! L1 is used.
//!
//! In a cluster there is a connection to each primary. A script publishes on the node of its key,
//! and only messages from that node itself come in the order of execution. The cluster also passes
//! each message on to other nodes; such a message may come again or get lost, and neither matters.
//! L1 is used while **every** connection has proven itself. So each entry depends on the proof of
//! its own node, also while its slot moves to another node.

use std::sync::{Arc, Weak};
use std::time::Duration;

use bytes::Bytes;
use fred::clients::Client;
use fred::interfaces::{ClientLike, PubsubInterface};
use fred::types::{ClusterHash, CustomCommand, Message, Value};
use tokio::sync::broadcast::error::RecvError;
use tokio::time::Instant;

use super::acl;
use super::bus_connections::{BusCommand, Inbox};
use super::errors::is_no_answer;
use super::shared::Shared;
use super::subscription::SubscribeError;
use crate::l2::listener::Listener;

/// How long to wait before a subscription that failed is tried again.
const RETRY_DELAY: Duration = Duration::from_millis(500);

/// The shortest time between two new connections that caches ask for.
const MIN_RENEWAL_INTERVAL: Duration = Duration::from_secs(1);

/// How often to check whether commands are answered, before the bus is used.
const COMMANDS_CHECK_INTERVAL: Duration = Duration::from_millis(20);

enum Event {
    Message(Message),
    Gap,
    Connected,
    Failed,
    /// The server refused to subscribe: the replies on this connection may be out of step.
    UnexpectedReply,
    Command(BusCommand),
}

/// The task of one connection.
struct BusTask {
    id: u64,
    client: Client,
    /// The channels are subscribed to.
    up: bool,
    /// When to subscribe again. Messages that come until then do not put it off.
    retry: Option<Instant>,
    /// Subscribe on another connection then, because the server answered on this one.
    unexpected_reply: bool,
    last_renewal: Instant,
}

/// Runs one connection. `needs_connect`: whether the connection is still to be made.
pub(super) async fn run(
    shared: Weak<Shared>,
    id: u64,
    client: Client,
    mut inbox: Inbox,
    needs_connect: bool,
) {
    let connect_task = needs_connect.then(|| client.connect());
    let mut task = BusTask {
        id,
        client,
        up: false,
        retry: None,
        unexpected_reply: false,
        last_renewal: Instant::now(),
    };
    while let Some(event) = task.next_event(&mut inbox).await {
        // The task does not keep the handle alive while it waits for an event.
        let Some(shared) = shared.upgrade() else {
            break;
        };
        task.handle(&shared, event).await;
    }
    if let Some(connect_task) = connect_task {
        connect_task.abort();
    }
}

impl BusTask {
    /// `None`: the handle is gone.
    async fn next_event(&self, inbox: &mut Inbox) -> Option<Event> {
        tokio::select! {
            message = inbox.messages.recv() => match message {
                Ok(message) => Some(Event::Message(message)),
                Err(RecvError::Lagged(_)) => Some(Event::Gap),
                Err(RecvError::Closed) => None,
            },
            _ = inbox.connected.recv() => Some(Event::Connected),
            _ = inbox.failed.recv() => Some(Event::Failed),
            command = inbox.commands.recv() => command.map(Event::Command),
            () = sleep_until(self.retry) => match self.unexpected_reply {
                true => Some(Event::UnexpectedReply),
                false => Some(Event::Connected),
            },
        }
    }

    async fn handle(&mut self, shared: &Arc<Shared>, event: Event) {
        match event {
            Event::Message(message) => shared.deliver(self.id, &message),
            Event::Gap => shared.notify_gap(),
            Event::Failed => {
                // The event of the next connection may have come already, so a retry is planned.
                self.set_down(planned_or_after(self.retry, RETRY_DELAY));
                shared.mark_down(self.id);
            }
            Event::Connected => self.subscribe_all(shared).await,
            Event::UnexpectedReply => {
                self.set_down(Instant::now() + RETRY_DELAY);
                reconnect(&self.client).await;
            }
            // Without a connection the channel is subscribed to with the others later.
            Event::Command(BusCommand::Subscribe(channel)) => {
                if self.up {
                    self.subscribe_one(shared, channel).await;
                }
            }
            Event::Command(BusCommand::Renew) => {
                // All caches of the process notice the same silence.
                if self.last_renewal.elapsed() < MIN_RENEWAL_INTERVAL {
                    return;
                }
                self.last_renewal = Instant::now();
                self.set_down(planned_or_after(self.retry, RETRY_DELAY));
                shared.mark_down(self.id);
                reconnect(&self.client).await;
            }
            Event::Command(BusCommand::Unsubscribe(channel)) => {
                // Another listener may have subscribed to it again.
                if shared.is_listened_to(&channel) {
                    return;
                }
                shared
                    .bus_connections
                    .lock()
                    .remove_confirmed(self.id, &channel);
                if let Ok(channel) = String::from_utf8(channel.to_vec()) {
                    let _ = self.client.unsubscribe(channel).await;
                }
            }
        }
    }

    fn set_down(&mut self, retry: Instant) {
        (self.up, self.retry, self.unexpected_reply) = (false, Some(retry), false);
    }

    /// Subscribes to all channels: a connection stands, or it is time to try again.
    async fn subscribe_all(&mut self, shared: &Shared) {
        if self.up {
            shared.mark_down(self.id);
        }
        let channels: Vec<Bytes> = shared.channels();
        let ready = shared.answers_commands().await;
        let failed = if ready {
            shared.subscribe(self.id, &self.client, &channels).await
        } else {
            Some(SubscribeError::NoAnswer)
        };
        self.up = failed.is_none();
        let wait = |error| match ready {
            true => retry_delay(error),
            false => COMMANDS_CHECK_INTERVAL,
        };
        self.retry = failed.map(|error| Instant::now() + wait(error));
        self.unexpected_reply = failed.is_some_and(|error| error != SubscribeError::NoAnswer);
        if self.up {
            shared.add_confirmed(self.id, channels);
        }
    }

    /// Subscribes to one more channel.
    async fn subscribe_one(&mut self, shared: &Shared, channel: Bytes) {
        let is_confirmed = shared
            .bus_connections
            .lock()
            .is_confirmed(self.id, &channel);
        let channels = vec![channel];
        let failed = match is_confirmed {
            true => None,
            false => shared.subscribe(self.id, &self.client, &channels).await,
        };
        if let Some(error) = failed {
            self.set_down(planned_or_after(self.retry, retry_delay(error)));
            self.unexpected_reply = error != SubscribeError::NoAnswer;
            shared.mark_down(self.id);
        } else {
            shared.add_confirmed(self.id, channels);
        }
    }
}

fn planned_or_after(planned: Option<Instant>, pause: Duration) -> Instant {
    planned.unwrap_or_else(|| Instant::now() + pause)
}

async fn sleep_until(moment: Option<Instant>) {
    match moment {
        Some(moment) => tokio::time::sleep_until(moment).await,
        None => std::future::pending().await,
    }
}

/// Makes another connection in the place of one.
async fn reconnect(client: &Client) {
    // fred waits for the writer of the old connection, which may be stuck.
    let _ = tokio::time::timeout(RETRY_DELAY, client.force_reconnection()).await;
}

/// How long to wait before a subscription that failed is tried again.
fn retry_delay(error: SubscribeError) -> Duration {
    match error {
        SubscribeError::NoAnswer | SubscribeError::UnexpectedReply => RETRY_DELAY,
        SubscribeError::Denied => acl::RECHECK_INTERVAL,
    }
}

impl Shared {
    /// Delivers a message that came on a connection.
    fn deliver(&self, id: u64, message: &Message) {
        let bytes = message.value.as_bytes().unwrap_or_default();
        let channel = message.channel.as_bytes();
        let is_probe = self.bus_connections.lock().is_probe_channel(id, channel);
        if !is_probe {
            for listener in self.listeners_on(channel) {
                listener.on_message(bytes);
            }
        } else if self.clustered {
            let round = bytes.try_into().map(u64::from_le_bytes);
            let ended = round
                .ok()
                .and_then(|round| self.bus_connections.lock().end_round(id, round));
            if let Some(message) = ended {
                self.deliver_to_all(&message);
            }
        } else {
            self.deliver_to_all(bytes);
        }
    }

    fn deliver_to_all(&self, message: &[u8]) {
        for listener in self.all_listeners() {
            listener.on_message(message);
        }
    }

    pub(super) fn notify_gap(&self) {
        for listener in self.all_listeners() {
            listener.on_gap();
        }
    }

    /// Sends a message to this handle through every primary of a cluster.
    pub(super) async fn send_heartbeat(&self, message: Bytes) {
        let (round, connections) = self.bus_connections.lock().begin_round(message);
        for (client, probe_channel) in connections {
            let command = CustomCommand::new_static("PUBLISH", ClusterHash::FirstKey, false);
            let heartbeat = Bytes::copy_from_slice(&round.to_le_bytes());
            // The reply does not matter: the heartbeat comes back on the connection, or it does
            // not.
            let _ = client
                .with_options(&self.options)
                .custom::<Value, _>(command, vec![probe_channel, heartbeat])
                .await;
        }
    }

    fn channels(&self) -> Vec<Bytes> {
        self.listeners.lock().keys().cloned().collect()
    }

    fn is_listened_to(&self, channel: &Bytes) -> bool {
        self.listeners.lock().contains_key(channel)
    }

    /// Whether commands are answered, too. Once the bus stands, L2 is asked for all entries that
    /// were read before, by the whole fleet. Until L2 answers commands, L1 is used as it is.
    async fn answers_commands(&self) -> bool {
        if self.breaker.is_open() || !self.pool.next_connected().is_connected() {
            return false;
        }
        let answered = self.sync_clock().await;
        answered.err().is_none_or(|error| !is_no_answer(&error))
    }

    /// Subscribes and waits for the proof. `None`: the channels are subscribed to.
    async fn subscribe(
        &self,
        id: u64,
        client: &Client,
        channels: &[Bytes],
    ) -> Option<SubscribeError> {
        let probe_channel = self.bus_connections.lock().probe_channel(id);
        let channels: Vec<String> = channels
            .iter()
            .chain(&probe_channel)
            .filter_map(|channel| String::from_utf8(channel.to_vec()).ok())
            .collect();
        let client = client.with_options(&self.options);
        let subscribed = self.subscribe_confirmed(&client, channels).await;
        self.note_subscription(subscribed)
    }

    /// A connection has subscribed to channels. Tells their listeners, for the channels that every
    /// connection has subscribed to now.
    fn add_confirmed(&self, id: u64, channels: Vec<Bytes>) {
        let everywhere = self.bus_connections.lock().add_confirmed(id, channels);
        let mut newly_up = Vec::new();
        let mut listeners = self.listeners.lock();
        for channel in &everywhere {
            for subscriber in listeners.get_mut(channel).into_iter().flatten() {
                if !std::mem::replace(&mut subscriber.up, true) {
                    newly_up.extend(subscriber.listener.upgrade());
                }
            }
        }
        drop(listeners);
        newly_up.iter().for_each(|listener| listener.on_up());
    }

    /// A connection is down.
    fn mark_down(&self, id: u64) {
        self.bus_connections.lock().mark_down(id);
        self.mark_all_down();
    }

    /// Tells all listeners that no channel stands.
    pub(super) fn mark_all_down(&self) {
        let mut informed = Vec::new();
        for subscriber in self.listeners.lock().values_mut().flatten() {
            subscriber.up = false;
            informed.extend(subscriber.listener.upgrade());
        }
        informed.iter().for_each(|listener| listener.on_down());
    }

    fn listeners_on(&self, channel: &[u8]) -> Vec<Arc<dyn Listener>> {
        let listeners = self.listeners.lock();
        listeners
            .get(channel)
            .into_iter()
            .flatten()
            .filter_map(|one| one.listener.upgrade())
            .collect()
    }
}
