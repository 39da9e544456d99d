//! The invalidation bus: one connection to a server, one channel per cache.
//!
//! The order that keeps L1 honest: the connection is lost, L1 is not used; the channels are
//! subscribed to again; the server has confirmed it (fred returns before it has, so a `PING` on the
//! same connection is waited for); what was read before is forgotten; L1 is used.
//!
//! In a cluster there is a connection to each primary. A script publishes on the node of its key, and only
//! what comes from that node itself comes in the order of execution; what the cluster's own bus
//! passes on comes again, which changes nothing, and may get lost, which changes nothing either. L1
//! is used while **every** connection has proven itself, so that each entry is tied to the proof of its own
//! node, whichever that is, and also while its slot moves from one to the other.

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Weak};
use std::time::Duration;

use bytes::Bytes;
use fred::clients::Client;
use fred::error::Error as FredError;
use fred::interfaces::{ClientLike, EventInterface, PubsubInterface};
use fred::types::cluster::ClusterRouting;
use fred::types::config::{Server, ServerConfig};
use fred::types::{Builder, ClusterHash, CustomCommand, Message, Value};
use tokio::sync::broadcast::Receiver;
use tokio::sync::broadcast::error::RecvError;
use tokio::sync::mpsc;
use tokio::task::AbortHandle;
use tokio::time::Instant;

use super::Shared;
use super::acl::{self, SubscribeError};
use crate::l2::Listener;

/// How long to wait before a subscription that failed is tried again.
const RETRY_DELAY: Duration = Duration::from_millis(500);
const MIN_RENEWAL_INTERVAL: Duration = Duration::from_secs(1);

/// How often to look whether commands are answered, before the bus is used.
const COMMANDS_CHECK_INTERVAL: Duration = Duration::from_millis(20);

/// A listener, and whether it has been told that its channel stands.
#[derive(Debug)]
pub(super) struct Subscriber {
    pub(super) listener: Weak<dyn Listener>,
    pub(super) up: bool,
}

/// How often the nodes of a cluster are asked for.
const TOPOLOGY_INTERVAL: Duration = Duration::from_secs(1);

/// Rounds of beats that are remembered.
const MAX_ROUNDS: usize = 64;

/// The connections of a handle: to a server one, to a cluster one for each primary.
#[derive(Debug, Default)]
pub(super) struct BusConnections {
    all: Vec<BusConnection>,
    next: u64,
    /// Beats of a cluster: they are over when they have come back on every connection.
    rounds: HashMap<u64, HeartbeatRound>,
}

#[derive(Debug)]
pub(super) struct BusConnection {
    number: u64,
    pub(super) client: Client,
    /// A channel that this handle alone publishes to, and hears on this connection.
    pub(super) probe_channel: Bytes,
    commands: mpsc::UnboundedSender<BusCommand>,
    /// Channels that the server has confirmed.
    confirmed: HashSet<Bytes>,
    pub(super) task: Option<AbortHandle>,
}

#[derive(Debug)]
struct HeartbeatRound {
    message: Bytes,
    missing: HashSet<u64>,
}

/// What handles ask of the bus.
#[derive(Clone, Debug)]
pub(super) enum BusCommand {
    Subscribe(Bytes),
    Unsubscribe(Bytes),
    /// The connection is silent: make another.
    Renew,
}

/// A channel of which nobody knows yet.
pub(super) fn probe_channel(prefix: &str) -> String {
    format!("{prefix}::beat:{:016x}", crate::random::number())
}

/// What the bus hears of its connection and of its handle. Made before the connection is, so that
/// nothing is missed.
pub(super) struct Inbox {
    messages: Receiver<Message>,
    connected: Receiver<Server>,
    failed: Receiver<(FredError, Option<Server>)>,
    commands: mpsc::UnboundedReceiver<BusCommand>,
}

impl Inbox {
    pub(super) fn new(client: &Client, commands: mpsc::UnboundedReceiver<BusCommand>) -> Self {
        Self {
            messages: client.message_rx(),
            connected: client.reconnect_rx(),
            failed: client.error_rx(),
            commands,
        }
    }
}

impl BusConnections {
    /// A new connection, and what it hears. It is not run yet.
    pub(super) fn add(&mut self, client: Client, prefix: &str) -> (u64, Inbox) {
        let (commands, command_rx) = mpsc::unbounded_channel();
        let inbox = Inbox::new(&client, command_rx);
        let probe_channel = probe_channel(prefix);
        let number = self.next;
        self.next += 1;
        self.all.push(BusConnection {
            number,
            client,
            probe_channel: probe_channel.into(),
            commands,
            confirmed: HashSet::new(),
            task: None,
        });
        (number, inbox)
    }

    pub(super) fn set_task(&mut self, number: u64, task: AbortHandle) {
        if let Some(connection) = self.connection(number) {
            connection.task = Some(task);
        }
    }

    /// Asks something of every connection.
    pub(super) fn send_all(&self, command: &BusCommand) {
        for connection in &self.all {
            let _ = connection.commands.send(command.clone());
        }
    }

    /// The only connection, where there is one server.
    pub(super) fn only(&self) -> Option<(Client, Bytes)> {
        let connection = self.all.first()?;
        Some((connection.client.clone(), connection.probe_channel.clone()))
    }

    /// Ends every connection. The caller has their clients quit.
    pub(super) fn take(&mut self) -> Vec<Client> {
        self.rounds.clear();
        let ended = self.all.drain(..).map(|connection| {
            if let Some(task) = connection.task {
                task.abort();
            }
            connection.client
        });
        ended.collect()
    }

    fn connection(&mut self, number: u64) -> Option<&mut BusConnection> {
        self.all
            .iter_mut()
            .find(|connection| connection.number == number)
    }

    /// Whether every connection hears a channel.
    fn all_confirmed(&self, channel: &[u8]) -> bool {
        !self.all.is_empty()
            && self
                .all
                .iter()
                .all(|connection| connection.confirmed.contains(channel))
    }

    /// Begins a round: a message that is to be heard when it has come back on every connection.
    fn begin_round(&mut self, message: Bytes) -> (u64, Vec<(Client, Bytes)>) {
        if self.rounds.len() >= MAX_ROUNDS {
            self.rounds.clear();
        }
        self.next += 1;
        let missing = self
            .all
            .iter()
            .map(|connection| connection.number)
            .collect();
        self.rounds
            .insert(self.next, HeartbeatRound { message, missing });
        let connections = self.all.iter();
        let connections = connections
            .map(|connection| (connection.client.clone(), connection.probe_channel.clone()));
        (self.next, connections.collect())
    }

    /// A beat came back on a connection. The message, if that was the last one.
    fn end_round(&mut self, connection: u64, round: u64) -> Option<Bytes> {
        let open = self.rounds.get_mut(&round)?;
        open.missing.remove(&connection);
        if !open.missing.is_empty() {
            return None;
        }
        self.rounds.remove(&round).map(|round| round.message)
    }
}

/// Runs one connection. `needs_connect`: whether the connection is still to be made.
pub(super) async fn run(
    shared: Weak<Shared>,
    number: u64,
    client: Client,
    inbox: Inbox,
    needs_connect: bool,
) {
    let Inbox {
        mut messages,
        mut connected,
        mut failed,
        mut commands,
    } = inbox;
    let connect_task = needs_connect.then(|| client.connect());
    let mut up = false;
    // When to try again, whatever is heard until then; and on another connection if the server has
    // answered on this one.
    let mut retry: Option<Instant> = None;
    let mut unexpected_reply = false;
    let mut last_renewal = Instant::now();
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
            command = commands.recv() => match command {
                Some(command) => Event::Command(command),
                None => break,
            },
            () = sleep_until(retry) => match unexpected_reply {
                true => Event::UnexpectedReply,
                false => Event::Connected,
            },
        };
        let Some(shared) = shared.upgrade() else {
            break;
        };
        match event {
            Event::Message(message) => shared.deliver(number, &message),
            Event::Gap => shared.notify_gap(),
            Event::Failed => {
                // Try again even if no news of a connection follows: it may have come before.
                (up, retry, unexpected_reply) =
                    (false, Some(planned_or_after(retry, RETRY_DELAY)), false);
                shared.mark_down(number);
            }
            Event::Connected => {
                if up {
                    shared.mark_down(number);
                }
                let channels: Vec<Bytes> = shared.channels();
                let ready = shared.answers_commands().await;
                let failed = if ready {
                    shared.subscribe(number, &client, &channels).await
                } else {
                    Some(SubscribeError::NoAnswer)
                };
                up = failed.is_none();
                let wait = |error| {
                    if ready {
                        retry_delay(error)
                    } else {
                        COMMANDS_CHECK_INTERVAL
                    }
                };
                retry = failed.map(|error| Instant::now() + wait(error));
                unexpected_reply = failed.is_some_and(|error| error != SubscribeError::NoAnswer);
                if up {
                    shared.add_confirmed(number, channels);
                }
            }
            Event::UnexpectedReply => {
                (up, retry, unexpected_reply) = (false, Some(Instant::now() + RETRY_DELAY), false);
                renew(&client).await;
            }
            // Not connected: it is subscribed to with the others when the connection stands.
            Event::Command(BusCommand::Subscribe(channel)) if up => {
                let channels = vec![channel];
                let failed = match shared.is_confirmed(number, &channels[0]) {
                    true => None,
                    false => shared.subscribe(number, &client, &channels).await,
                };
                if let Some(error) = failed {
                    (up, retry) = (false, Some(planned_or_after(retry, retry_delay(error))));
                    unexpected_reply = error != SubscribeError::NoAnswer;
                    shared.mark_down(number);
                } else {
                    shared.add_confirmed(number, channels);
                }
            }
            Event::Command(BusCommand::Subscribe(_)) => {}
            // All caches of the process see the same silence.
            Event::Command(BusCommand::Renew) if last_renewal.elapsed() < MIN_RENEWAL_INTERVAL => {}
            Event::Command(BusCommand::Renew) => {
                last_renewal = Instant::now();
                (up, retry, unexpected_reply) =
                    (false, Some(planned_or_after(retry, RETRY_DELAY)), false);
                shared.mark_down(number);
                renew(&client).await;
            }
            // Somebody may have begun to listen to it again.
            Event::Command(BusCommand::Unsubscribe(channel)) if shared.is_listened_to(&channel) => {
            }
            Event::Command(BusCommand::Unsubscribe(channel)) => {
                shared.remove_confirmed(number, &channel);
                if let Ok(channel) = String::from_utf8(channel.to_vec()) {
                    let _ = client.unsubscribe(channel).await;
                }
            }
        }
    }
    if let Some(connect_task) = connect_task {
        connect_task.abort();
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

/// Makes the connection of a connection anew.
async fn renew(client: &Client) {
    // It waits for the old connection's writer, which may be what is stuck.
    let _ = tokio::time::timeout(RETRY_DELAY, client.force_reconnection()).await;
}

/// How long to wait before a subscription that failed is tried again.
fn retry_delay(error: SubscribeError) -> Duration {
    match error {
        SubscribeError::NoAnswer | SubscribeError::UnexpectedReply => RETRY_DELAY,
        SubscribeError::Denied => acl::RECHECK_INTERVAL,
    }
}

/// Keeps a connection to each primary of a cluster.
pub(super) async fn watch_cluster(shared: Weak<Shared>) {
    let mut known: Vec<(u16, Server)> = Vec::new();
    loop {
        {
            let Some(shared) = shared.upgrade() else {
                return;
            };
            let slots = shared.slots().await;
            if let Some(slots) = slots.filter(|slots| *slots != known) {
                let (before, now) = (primaries(&known), primaries(&slots));
                if before == now {
                    // A slot has moved: both its nodes are heard, but be on the safe side.
                    shared.notify_gap();
                } else {
                    shared.replace_connections(now);
                }
                known = slots;
            }
        }
        tokio::time::sleep(TOPOLOGY_INTERVAL).await;
    }
}

fn primaries(slots: &[(u16, Server)]) -> Vec<Server> {
    let mut primaries: Vec<Server> = slots.iter().map(|(_, server)| server.clone()).collect();
    primaries.sort();
    primaries.dedup();
    primaries
}

enum Event {
    Message(Message),
    Gap,
    Connected,
    Failed,
    /// The server has refused to subscribe: the replies on this connection may be out of step.
    UnexpectedReply,
    Command(BusCommand),
}

impl Shared {
    /// Something came over a connection.
    fn deliver(&self, connection: u64, message: &Message) {
        let bytes = message.value.as_bytes().unwrap_or_default();
        let channel = message.channel.as_bytes();
        let is_probe = self
            .bus_connections
            .lock()
            .connection(connection)
            .is_some_and(|connection| *connection.probe_channel == *channel);
        if !is_probe {
            for listener in self.listeners_on(channel) {
                listener.on_message(bytes);
            }
        } else if self.clustered {
            let round = bytes.try_into().map(u64::from_le_bytes);
            let ended = round
                .ok()
                .and_then(|round| self.bus_connections.lock().end_round(connection, round));
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
        self.all_listeners()
            .iter()
            .for_each(|listener| listener.on_gap());
    }

    /// Sends a message to this handle through every primary of a cluster.
    pub(super) async fn send_heartbeat(&self, message: Bytes) {
        let (round, connections) = self.bus_connections.lock().begin_round(message);
        for (client, probe_channel) in connections {
            let command = CustomCommand::new_static("PUBLISH", ClusterHash::FirstKey, false);
            let beat = Bytes::copy_from_slice(&round.to_le_bytes());
            // What comes of it is heard on the connection, or not.
            let _ = client
                .with_options(&self.options)
                .custom::<Value, _>(command, vec![probe_channel, beat])
                .await;
        }
    }

    /// The first slot of each range, and its primary.
    async fn slots(&self) -> Option<Vec<(u16, Server)>> {
        let command = CustomCommand::new_static("CLUSTER", ClusterHash::Random, false);
        let client = self.client();
        let reply: Value = client.custom(command, vec!["SLOTS"]).await.ok()?;
        let config = self.bus.client_config();
        let asked = config.server.hosts().first().map(|host| host.host.clone());
        let routing = ClusterRouting::from_cluster_slots(reply, asked?).ok()?;
        let mut slots: Vec<(u16, Server)> = Vec::new();
        for slot in 0..16_384 {
            let server = routing.get_server(slot)?;
            if slots.last().is_none_or(|(_, last)| last != server) {
                slots.push((slot, server.clone()));
            }
        }
        Some(slots)
    }

    /// Gives up all connections, and makes one to each of these.
    fn replace_connections(self: &Arc<Self>, primaries: Vec<Server>) {
        let old = self.bus_connections.lock().take();
        self.mark_all_down();
        tokio::spawn(async move {
            for client in old {
                let _ = client.quit().await;
            }
        });
        let mut connections = self.bus_connections.lock();
        for server in primaries {
            let client = self.bus_client_for(server, false);
            let (number, inbox) = connections.add(client.clone(), &self.prefix);
            let connection = run(Arc::downgrade(self), number, client, inbox, true);
            connections.set_task(number, tokio::spawn(connection).abort_handle());
        }
    }

    /// A client for the bus of one node.
    pub(super) fn bus_client_for(&self, server: Server, fail_fast: bool) -> Client {
        let mut config = self.config();
        config.server = ServerConfig::Centralized { server };
        let mut builder = Builder::from_config(config);
        builder.set_connection_config(self.bus.connection_config().clone());
        super::bus_client(builder, fail_fast)
    }

    pub(super) async fn any_primary(&self) -> Option<Server> {
        let slots = self.slots().await?;
        slots.into_iter().next().map(|(_, server)| server)
    }

    fn channels(&self) -> Vec<Bytes> {
        self.listeners.lock().keys().cloned().collect()
    }

    fn is_listened_to(&self, channel: &Bytes) -> bool {
        self.listeners.lock().contains_key(channel)
    }

    /// Whether commands are answered, too. While they are not, L1 has to do; once the bus stands L2 is
    /// asked about all that was read before, and a whole fleet would load it.
    async fn answers_commands(&self) -> bool {
        if self.breaker.is_open() || !self.pool.next_connected().is_connected() {
            return false;
        }
        let answered = self.sync_clock().await;
        answered
            .err()
            .is_none_or(|error| !super::is_no_answer(&error))
    }

    /// Subscribes and waits for the server's confirmation. `None`: it is there.
    async fn subscribe(
        &self,
        connection: u64,
        client: &Client,
        channels: &[Bytes],
    ) -> Option<SubscribeError> {
        let probe_channel = self
            .bus_connections
            .lock()
            .connection(connection)
            .map(|connection| connection.probe_channel.clone());
        let channels: Vec<String> = channels
            .iter()
            .chain(&probe_channel)
            .filter_map(|channel| String::from_utf8(channel.to_vec()).ok())
            .collect();
        let client = client.with_options(&self.options);
        let subscribed = self.subscribe_confirmed(&client, channels).await;
        self.note_subscription(subscribed)
    }

    fn is_confirmed(&self, connection: u64, channel: &Bytes) -> bool {
        let mut connections = self.bus_connections.lock();
        connections
            .connection(connection)
            .is_some_and(|connection| connection.confirmed.contains(channel))
    }

    fn remove_confirmed(&self, connection: u64, channel: &Bytes) {
        if let Some(connection) = self.bus_connections.lock().connection(connection) {
            connection.confirmed.remove(channel);
        }
    }

    /// A connection hears channels. Tells those who have not heard that theirs is heard on every connection.
    fn add_confirmed(&self, connection: u64, channels: Vec<Bytes>) {
        let heard: Vec<Bytes> = {
            let mut connections = self.bus_connections.lock();
            if let Some(connection) = connections.connection(connection) {
                connection.confirmed.extend(channels.iter().cloned());
            }
            let heard = channels
                .into_iter()
                .filter(|channel| connections.all_confirmed(channel));
            heard.collect()
        };
        let mut informed = Vec::new();
        let mut listeners = self.listeners.lock();
        for channel in &heard {
            for subscriber in listeners.get_mut(channel).into_iter().flatten() {
                if !std::mem::replace(&mut subscriber.up, true) {
                    informed.extend(subscriber.listener.upgrade());
                }
            }
        }
        drop(listeners);
        informed.iter().for_each(|listener| listener.on_up());
    }

    /// A connection is down.
    fn mark_down(&self, connection: u64) {
        {
            let mut connections = self.bus_connections.lock();
            connections.rounds.clear();
            if let Some(connection) = connections.connection(connection) {
                connection.confirmed.clear();
            }
        }
        self.mark_all_down();
    }

    /// Tells everyone that nothing stands.
    fn mark_all_down(&self) {
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

    pub(super) fn all_listeners(&self) -> Vec<Arc<dyn Listener>> {
        self.listeners
            .lock()
            .values()
            .flatten()
            .filter_map(|one| one.listener.upgrade())
            .collect()
    }
}
