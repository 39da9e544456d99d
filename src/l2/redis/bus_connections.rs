//! The connections of the invalidation bus, as data: channels, heartbeat rounds, and what each
//! connection receives.

use std::collections::{HashMap, HashSet};
use std::sync::Weak;

use bytes::Bytes;
use fred::clients::Client;
use fred::error::Error as FredError;
use fred::interfaces::EventInterface;
use fred::types::Message;
use fred::types::config::Server;
use tokio::sync::broadcast::Receiver;
use tokio::sync::mpsc;
use tokio::task::AbortHandle;

use super::subscription::probe_channel;
use crate::l2::listener::Listener;

/// The number of heartbeat rounds that are remembered.
const MAX_ROUNDS: usize = 64;

/// A listener, and whether it was told that its channel is subscribed to.
#[derive(Debug)]
pub(super) struct Subscriber {
    pub(super) listener: Weak<dyn Listener>,
    pub(super) up: bool,
}

/// The connections of a handle: one to a server, one to each primary of a cluster.
#[derive(Debug, Default)]
pub(super) struct BusConnections {
    all: Vec<BusConnection>,
    next: u64,
    /// Heartbeats of a cluster. One is complete when it has come back on every connection.
    rounds: HashMap<u64, HeartbeatRound>,
}

/// One connection of the bus.
#[derive(Debug)]
struct BusConnection {
    id: u64,
    client: Client,
    /// A channel that this handle alone publishes to, and receives on this connection.
    probe_channel: Bytes,
    commands: mpsc::UnboundedSender<BusCommand>,
    /// Channels whose subscription the server has confirmed.
    confirmed: HashSet<Bytes>,
    task: Option<AbortHandle>,
}

/// A heartbeat, and the connections on which it has not come back.
#[derive(Debug)]
struct HeartbeatRound {
    message: Bytes,
    missing: HashSet<u64>,
}

/// A command of the handle to the task of a connection.
#[derive(Clone, Debug)]
pub(super) enum BusCommand {
    Subscribe(Bytes),
    Unsubscribe(Bytes),
    /// The connection is silent: make another.
    Renew,
}

/// What the task of a connection receives, from the connection and from the handle. Made before the
/// connection is, so that nothing is missed.
pub(super) struct Inbox {
    pub(super) messages: Receiver<Message>,
    pub(super) connected: Receiver<Server>,
    pub(super) failed: Receiver<(FredError, Option<Server>)>,
    pub(super) commands: mpsc::UnboundedReceiver<BusCommand>,
}

impl BusConnections {
    /// Adds a connection. Its task does not run yet.
    pub(super) fn add(&mut self, client: Client, prefix: &str) -> (u64, Inbox) {
        let (commands, command_rx) = mpsc::unbounded_channel();
        let inbox = Inbox {
            messages: client.message_rx(),
            connected: client.reconnect_rx(),
            failed: client.error_rx(),
            commands: command_rx,
        };
        let id = self.next;
        self.next += 1;
        self.all.push(BusConnection {
            id,
            client,
            probe_channel: probe_channel(prefix).into(),
            commands,
            confirmed: HashSet::new(),
            task: None,
        });
        (id, inbox)
    }

    pub(super) fn set_task(&mut self, id: u64, task: AbortHandle) {
        if let Some(connection) = self.connection(id) {
            connection.task = Some(task);
        }
    }

    /// Sends a command to every connection.
    pub(super) fn send_all(&self, command: &BusCommand) {
        for connection in &self.all {
            let _ = connection.commands.send(command.clone());
        }
    }

    /// The connection to a server that is no cluster, and its probe channel.
    pub(super) fn only(&self) -> Option<(Client, Bytes)> {
        let connection = self.all.first()?;
        Some((connection.client.clone(), connection.probe_channel.clone()))
    }

    /// Ends every connection. The caller makes their clients quit.
    pub(super) fn take(&mut self) -> Vec<Client> {
        self.rounds.clear();
        let clients = self.all.drain(..).map(|connection| {
            if let Some(task) = connection.task {
                task.abort();
            }
            connection.client
        });
        clients.collect()
    }

    pub(super) fn probe_channel(&mut self, id: u64) -> Option<Bytes> {
        let connection = self.connection(id)?;
        Some(connection.probe_channel.clone())
    }

    pub(super) fn is_probe_channel(&mut self, id: u64, channel: &[u8]) -> bool {
        self.connection(id)
            .is_some_and(|connection| *connection.probe_channel == *channel)
    }

    pub(super) fn is_confirmed(&mut self, id: u64, channel: &Bytes) -> bool {
        self.connection(id)
            .is_some_and(|connection| connection.confirmed.contains(channel))
    }

    pub(super) fn remove_confirmed(&mut self, id: u64, channel: &Bytes) {
        if let Some(connection) = self.connection(id) {
            connection.confirmed.remove(channel);
        }
    }

    /// Adds channels to those that a connection has subscribed to. Answers those that every
    /// connection has.
    pub(super) fn add_confirmed(&mut self, id: u64, channels: Vec<Bytes>) -> Vec<Bytes> {
        if let Some(connection) = self.connection(id) {
            connection.confirmed.extend(channels.iter().cloned());
        }
        let everywhere = channels
            .into_iter()
            .filter(|channel| self.all_confirmed(channel));
        everywhere.collect()
    }

    /// A connection is down: it has no subscriptions, and no heartbeat can be completed.
    pub(super) fn mark_down(&mut self, id: u64) {
        self.rounds.clear();
        if let Some(connection) = self.connection(id) {
            connection.confirmed.clear();
        }
    }

    fn connection(&mut self, id: u64) -> Option<&mut BusConnection> {
        self.all.iter_mut().find(|connection| connection.id == id)
    }

    fn all_confirmed(&self, channel: &[u8]) -> bool {
        !self.all.is_empty()
            && self
                .all
                .iter()
                .all(|connection| connection.confirmed.contains(channel))
    }

    /// Begins a heartbeat round. The message is delivered when the heartbeat has come back on every
    /// connection.
    pub(super) fn begin_round(&mut self, message: Bytes) -> (u64, Vec<(Client, Bytes)>) {
        if self.rounds.len() >= MAX_ROUNDS {
            self.rounds.clear();
        }
        self.next += 1;
        let missing = self.all.iter().map(|connection| connection.id).collect();
        self.rounds
            .insert(self.next, HeartbeatRound { message, missing });
        let connections = self
            .all
            .iter()
            .map(|connection| (connection.client.clone(), connection.probe_channel.clone()));
        (self.next, connections.collect())
    }

    /// A heartbeat came back on a connection. Answers the message if that was the last one.
    pub(super) fn end_round(&mut self, id: u64, round: u64) -> Option<Bytes> {
        let open = self.rounds.get_mut(&round)?;
        open.missing.remove(&id);
        if !open.missing.is_empty() {
            return None;
        }
        self.rounds.remove(&round).map(|round| round.message)
    }
}
