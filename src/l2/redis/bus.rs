//! The invalidation bus: one line to a server, one channel per cache.
//!
//! The order that keeps L1 honest: the connection is lost, L1 is not used; the channels are
//! subscribed to again; the server has confirmed it (fred returns before it has, so a `PING` on the
//! same connection is waited for); what was read before is forgotten; L1 is used.
//!
//! In a cluster there is a line to each primary. A script publishes on the node of its key, and only
//! what comes from that node itself comes in the order of execution; what the cluster's own bus
//! passes on comes again, which changes nothing, and may get lost, which changes nothing either. L1
//! is used while **every** line has proven itself, so that each entry is tied to the proof of its own
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
use super::rights::{self, Heard};
use crate::l2::Listener;

/// How long to wait before a subscription that failed is tried again.
const RETRY: Duration = Duration::from_millis(500);
const RENEWED_AT_MOST_EVERY: Duration = Duration::from_secs(1);

/// How often to look whether commands are answered, before the bus is used.
const COMMANDS_EVERY: Duration = Duration::from_millis(20);

/// A listener, and whether it has been told that its channel stands.
#[derive(Debug)]
pub(super) struct Subscriber {
    pub(super) listener: Weak<dyn Listener>,
    pub(super) up: bool,
}

/// How often the nodes of a cluster are asked for.
const CLUSTER_EVERY: Duration = Duration::from_secs(1);

/// Rounds of beats that are remembered.
const ROUNDS: usize = 64;

/// The lines of a handle: to a server one, to a cluster one for each primary.
#[derive(Debug, Default)]
pub(super) struct Lines {
    all: Vec<Line>,
    next: u64,
    /// Beats of a cluster: they are over when they have come back on every line.
    rounds: HashMap<u64, Round>,
}

#[derive(Debug)]
pub(super) struct Line {
    number: u64,
    pub(super) client: Client,
    /// A channel that this handle alone publishes to, and hears on this line.
    pub(super) private: Bytes,
    orders: mpsc::UnboundedSender<Order>,
    /// Channels that the server has confirmed.
    confirmed: HashSet<Bytes>,
    pub(super) task: Option<AbortHandle>,
}

#[derive(Debug)]
struct Round {
    message: Bytes,
    missing: HashSet<u64>,
}

/// What handles ask of the bus.
#[derive(Clone, Debug)]
pub(super) enum Order {
    Subscribe(Bytes),
    Unsubscribe(Bytes),
    /// The connection is silent: make another.
    Renew,
}

/// A channel of which nobody knows yet.
pub(super) fn private(prefix: &str) -> String {
    format!("{prefix}::beat:{:016x}", crate::random::number())
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

impl Lines {
    /// A new line, and what it hears. It is not run yet.
    pub(super) fn add(&mut self, client: Client, prefix: &str) -> (u64, Ears) {
        let (orders, orders_in) = mpsc::unbounded_channel();
        let ears = Ears::new(&client, orders_in);
        let private = private(prefix);
        let number = self.next;
        self.next += 1;
        self.all.push(Line {
            number,
            client,
            private: private.into(),
            orders,
            confirmed: HashSet::new(),
            task: None,
        });
        (number, ears)
    }

    pub(super) fn runs(&mut self, number: u64, task: AbortHandle) {
        if let Some(line) = self.line(number) {
            line.task = Some(task);
        }
    }

    /// Asks something of every line.
    pub(super) fn order(&self, order: &Order) {
        for line in &self.all {
            let _ = line.orders.send(order.clone());
        }
    }

    /// The only line, where there is one server.
    pub(super) fn single(&self) -> Option<(Client, Bytes)> {
        let line = self.all.first()?;
        Some((line.client.clone(), line.private.clone()))
    }

    /// Ends every line. The caller has their clients quit.
    pub(super) fn take(&mut self) -> Vec<Client> {
        self.rounds.clear();
        let ended = self.all.drain(..).map(|line| {
            if let Some(task) = line.task {
                task.abort();
            }
            line.client
        });
        ended.collect()
    }

    fn line(&mut self, number: u64) -> Option<&mut Line> {
        self.all.iter_mut().find(|line| line.number == number)
    }

    /// Whether every line hears a channel.
    fn hear(&self, channel: &[u8]) -> bool {
        !self.all.is_empty() && self.all.iter().all(|line| line.confirmed.contains(channel))
    }

    /// Begins a round: a message that is to be heard when it has come back on every line.
    fn begin_round(&mut self, message: Bytes) -> (u64, Vec<(Client, Bytes)>) {
        if self.rounds.len() >= ROUNDS {
            self.rounds.clear();
        }
        self.next += 1;
        let missing = self.all.iter().map(|line| line.number).collect();
        self.rounds.insert(self.next, Round { message, missing });
        let lines = self.all.iter();
        let lines = lines.map(|line| (line.client.clone(), line.private.clone()));
        (self.next, lines.collect())
    }

    /// A beat came back on a line. The message, if that was the last one.
    fn end_round(&mut self, line: u64, round: u64) -> Option<Bytes> {
        let open = self.rounds.get_mut(&round)?;
        open.missing.remove(&line);
        if !open.missing.is_empty() {
            return None;
        }
        self.rounds.remove(&round).map(|round| round.message)
    }
}

/// Runs one line. `connects`: whether the connection is still to be made.
pub(super) async fn run(
    shared: Weak<Shared>,
    number: u64,
    client: Client,
    ears: Ears,
    connects: bool,
) {
    let Ears {
        mut messages,
        mut connected,
        mut failed,
        mut orders,
    } = ears;
    let connection = connects.then(|| client.connect());
    let mut up = false;
    // When to try again, whatever is heard until then; and on another connection if the server has
    // answered on this one.
    let mut retry: Option<Instant> = None;
    let mut misheard = false;
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
            () = at(retry) => match misheard {
                true => Event::Misheard,
                false => Event::Connected,
            },
        };
        let Some(shared) = shared.upgrade() else {
            break;
        };
        match event {
            Event::Message(message) => shared.heard(number, &message),
            Event::Gap => shared.gap(),
            Event::Failed => {
                // Try again even if no news of a connection follows: it may have come before.
                (up, retry, misheard) = (false, Some(soon(retry, RETRY)), false);
                shared.lower(number);
            }
            Event::Connected => {
                if up {
                    shared.lower(number);
                }
                let channels: Vec<Bytes> = shared.channels();
                let ready = shared.takes_commands().await;
                let heard = if ready {
                    shared.subscribe(number, &client, &channels).await
                } else {
                    Some(Heard::Nothing)
                };
                up = heard.is_none();
                let wait = |heard| if ready { pause(heard) } else { COMMANDS_EVERY };
                retry = heard.map(|heard| Instant::now() + wait(heard));
                misheard = heard.is_some_and(|heard| heard != Heard::Nothing);
                if up {
                    shared.confirm(number, channels);
                }
            }
            Event::Misheard => {
                (up, retry, misheard) = (false, Some(Instant::now() + RETRY), false);
                renew(&client).await;
            }
            // Not connected: it is subscribed to with the others when the connection stands.
            Event::Order(Order::Subscribe(channel)) if up => {
                let channels = vec![channel];
                let heard = match shared.has_confirmed(number, &channels[0]) {
                    true => None,
                    false => shared.subscribe(number, &client, &channels).await,
                };
                if let Some(heard) = heard {
                    (up, retry) = (false, Some(soon(retry, pause(heard))));
                    misheard = heard != Heard::Nothing;
                    shared.lower(number);
                } else {
                    shared.confirm(number, channels);
                }
            }
            Event::Order(Order::Subscribe(_)) => {}
            // All caches of the process see the same silence.
            Event::Order(Order::Renew) if renewed.elapsed() < RENEWED_AT_MOST_EVERY => {}
            Event::Order(Order::Renew) => {
                renewed = Instant::now();
                (up, retry, misheard) = (false, Some(soon(retry, RETRY)), false);
                shared.lower(number);
                renew(&client).await;
            }
            // Somebody may have begun to listen to it again.
            Event::Order(Order::Unsubscribe(channel)) if shared.is_listened_to(&channel) => {}
            Event::Order(Order::Unsubscribe(channel)) => {
                shared.unconfirm(number, &channel);
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

fn soon(planned: Option<Instant>, pause: Duration) -> Instant {
    planned.unwrap_or_else(|| Instant::now() + pause)
}

async fn at(moment: Option<Instant>) {
    match moment {
        Some(moment) => tokio::time::sleep_until(moment).await,
        None => std::future::pending().await,
    }
}

/// Makes the connection of a line anew.
async fn renew(client: &Client) {
    // It waits for the old connection's writer, which may be what is stuck.
    let _ = tokio::time::timeout(RETRY, client.force_reconnection()).await;
}

/// How long to wait before a subscription that failed is tried again.
fn pause(heard: Heard) -> Duration {
    match heard {
        Heard::Nothing | Heard::Nonsense => RETRY,
        Heard::Denied => rights::AGAIN,
    }
}

/// Keeps a line to each primary of a cluster.
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
                    shared.gap();
                } else {
                    shared.rewire(now);
                }
                known = slots;
            }
        }
        tokio::time::sleep(CLUSTER_EVERY).await;
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
    Misheard,
    Order(Order),
}

impl Shared {
    /// Something came over a line.
    fn heard(&self, line: u64, message: &Message) {
        let bytes = message.value.as_bytes().unwrap_or_default();
        let channel = message.channel.as_bytes();
        let is_private = self
            .lines
            .lock()
            .line(line)
            .is_some_and(|line| *line.private == *channel);
        if !is_private {
            for listener in self.on(channel) {
                listener.on_message(bytes);
            }
        } else if self.clustered {
            let round = bytes.try_into().map(u64::from_le_bytes);
            let ended = round
                .ok()
                .and_then(|round| self.lines.lock().end_round(line, round));
            if let Some(message) = ended {
                self.tell_all(&message);
            }
        } else {
            self.tell_all(bytes);
        }
    }

    fn tell_all(&self, message: &[u8]) {
        for listener in self.all() {
            listener.on_message(message);
        }
    }

    pub(super) fn gap(&self) {
        self.all().iter().for_each(|listener| listener.on_gap());
    }

    /// Sends a message to this handle through every primary of a cluster.
    pub(super) async fn send_round(&self, message: Bytes) {
        let (round, lines) = self.lines.lock().begin_round(message);
        for (client, private) in lines {
            let command = CustomCommand::new_static("PUBLISH", ClusterHash::FirstKey, false);
            let beat = Bytes::copy_from_slice(&round.to_le_bytes());
            // What comes of it is heard on the line, or not.
            let _ = client
                .with_options(&self.options)
                .custom::<Value, _>(command, vec![private, beat])
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

    /// Gives up all lines, and makes one to each of these.
    fn rewire(self: &Arc<Self>, primaries: Vec<Server>) {
        let old = self.lines.lock().take();
        self.lower_all();
        tokio::spawn(async move {
            for client in old {
                let _ = client.quit().await;
            }
        });
        let mut lines = self.lines.lock();
        for server in primaries {
            let client = self.client_to(server, false);
            let (number, ears) = lines.add(client.clone(), &self.prefix);
            let line = run(Arc::downgrade(self), number, client, ears, true);
            lines.runs(number, tokio::spawn(line).abort_handle());
        }
    }

    /// A client for the bus of one node.
    pub(super) fn client_to(&self, server: Server, fail_fast: bool) -> Client {
        let mut config = self.config();
        config.server = ServerConfig::Centralized { server };
        let mut builder = Builder::from_config(config);
        builder.set_connection_config(self.bus.connection_config().clone());
        super::bus_client(builder, fail_fast)
    }

    pub(super) async fn a_primary(&self) -> Option<Server> {
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
    async fn takes_commands(&self) -> bool {
        if self.breaker.is_open() || !self.pool.next_connected().is_connected() {
            return false;
        }
        let answered = self.learn_time().await;
        answered
            .err()
            .is_none_or(|error| !super::is_silence(&error))
    }

    /// Subscribes and waits for the server's confirmation. `None`: it is there.
    async fn subscribe(&self, line: u64, client: &Client, channels: &[Bytes]) -> Option<Heard> {
        let private = self
            .lines
            .lock()
            .line(line)
            .map(|line| line.private.clone());
        let channels: Vec<String> = channels
            .iter()
            .chain(&private)
            .filter_map(|channel| String::from_utf8(channel.to_vec()).ok())
            .collect();
        let client = client.with_options(&self.options);
        let subscribed = self.subscribe_surely(&client, channels).await;
        self.saw_bus(subscribed)
    }

    fn has_confirmed(&self, line: u64, channel: &Bytes) -> bool {
        let mut lines = self.lines.lock();
        lines
            .line(line)
            .is_some_and(|line| line.confirmed.contains(channel))
    }

    fn unconfirm(&self, line: u64, channel: &Bytes) {
        if let Some(line) = self.lines.lock().line(line) {
            line.confirmed.remove(channel);
        }
    }

    /// A line hears channels. Tells those who have not heard that theirs is heard on every line.
    fn confirm(&self, line: u64, channels: Vec<Bytes>) {
        let heard: Vec<Bytes> = {
            let mut lines = self.lines.lock();
            if let Some(line) = lines.line(line) {
                line.confirmed.extend(channels.iter().cloned());
            }
            let heard = channels.into_iter().filter(|channel| lines.hear(channel));
            heard.collect()
        };
        let mut raised = Vec::new();
        let mut listeners = self.listeners.lock();
        for channel in &heard {
            for subscriber in listeners.get_mut(channel).into_iter().flatten() {
                if !std::mem::replace(&mut subscriber.up, true) {
                    raised.extend(subscriber.listener.upgrade());
                }
            }
        }
        drop(listeners);
        raised.iter().for_each(|listener| listener.on_up());
    }

    /// A line is down.
    fn lower(&self, line: u64) {
        {
            let mut lines = self.lines.lock();
            lines.rounds.clear();
            if let Some(line) = lines.line(line) {
                line.confirmed.clear();
            }
        }
        self.lower_all();
    }

    /// Tells everyone that nothing stands.
    fn lower_all(&self) {
        let mut lowered = Vec::new();
        for subscriber in self.listeners.lock().values_mut().flatten() {
            subscriber.up = false;
            lowered.extend(subscriber.listener.upgrade());
        }
        lowered.iter().for_each(|listener| listener.on_down());
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

    pub(super) fn all(&self) -> Vec<Arc<dyn Listener>> {
        self.listeners
            .lock()
            .values()
            .flatten()
            .filter_map(|one| one.listener.upgrade())
            .collect()
    }
}
