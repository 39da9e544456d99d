//! What the user of Redis may do: tried before it is needed, and told in words when it may not.
//!
//! `connect` tries everything and fails with what is missing. A handle that was opened tries when its
//! connection stands, and goes on: what is missing shows in `Health::denied`, until a later look, or a
//! subscription that is made again, finds it granted.

use std::sync::{Arc, Weak};
use std::time::Duration;

use bytes::Bytes;
use fred::clients::{Client, WithOptions};
use fred::error::{Error as FredError, ErrorKind};
use fred::interfaces::{ClientLike, EventInterface, PubsubInterface};
use fred::types::config::Server;
use fred::types::{ClusterHash, CustomCommand, Message, Value};
use fred::util::redis_keyslot;
use parking_lot::Mutex;
use tokio::sync::Notify;
use tokio::sync::broadcast::Receiver;
use tokio::sync::broadcast::error::RecvError;

use self::missing::MissingPermissions;
use super::errors::{is_database_error, is_denial, is_no_answer, remote_error, with_hint};
use super::{Shared, bus, scripts};

use crate::error::{RemoteError, RemoteKind};

mod missing;

/// How often to look again while something is denied.
pub(super) const RECHECK_INTERVAL: Duration = Duration::from_secs(5);

/// What is denied, as far as is known.
#[derive(Debug, Default)]
pub(super) struct Acl {
    state: Mutex<Denials>,
    /// A command was denied: look.
    pub(super) recheck: Arc<Notify>,
}

#[derive(Debug, Default)]
struct Denials {
    commands: Option<Arc<str>>,
    bus: Option<Arc<str>>,
    /// A command was denied since the last look.
    denied_since_check: bool,
}

impl Denials {
    fn is_denied(&self) -> bool {
        self.commands.is_some() || self.bus.is_some()
    }
}

impl Acl {
    /// In words.
    pub(super) fn denied(&self) -> Option<Arc<str>> {
        let state = self.state.lock();
        match (&state.commands, &state.bus) {
            (Some(commands), Some(bus)) => Some(format!("{commands}; {bus}").into()),
            (commands, bus) => commands.clone().or_else(|| bus.clone()),
        }
    }
}

enum Scope {
    Commands,
    Bus,
}

impl Shared {
    /// Tries all that the handle will need.
    pub(super) async fn check_acl(&self) -> Result<(), RemoteError> {
        let mut missing = MissingPermissions::default();
        self.probe_commands(&mut missing).await?;
        if missing == MissingPermissions::default() {
            self.probe_bus(&mut missing).await?;
        }
        self.denied_error("connect", &missing).map_or(Ok(()), Err)
    }

    /// An error of the client; what it says of rights with the rules that grant them.
    pub(super) fn explain(
        &self,
        operation: &'static str,
        command: &str,
        error: FredError,
    ) -> RemoteError {
        let mut missing = MissingPermissions::default();
        if error.details().contains("NOPERM") {
            missing.note(command, error.details());
        }
        self.denied_error(operation, &missing)
            .unwrap_or_else(|| remote_error(operation, error))
    }

    /// Why there is no connection.
    pub(super) fn explain_failure(&self, error: FredError) -> RemoteError {
        if is_database_error(&error) {
            return remote_error("select the database", error);
        }
        let error = with_hint(error, &self.config());
        self.explain("connect", "", error)
    }

    fn denied_error(
        &self,
        operation: &'static str,
        missing: &MissingPermissions,
    ) -> Option<RemoteError> {
        let config = self.config();
        let user = config.username.as_deref().unwrap_or("default");
        let described = missing.describe(user, &self.prefix)?;
        Some(RemoteError::because(
            RemoteKind::Denied,
            operation,
            described,
        ))
    }

    async fn probe_commands(&self, missing: &mut MissingPermissions) -> Result<(), RemoteError> {
        let client = self.client();
        let probe = &*scripts::PROBE;
        // A record's key has a name after the prefix, and a claim's has more after the colons.
        let key = Bytes::from(format!("{}::probe", self.prefix));
        let script = |script: Value| vec![script, 1.into(), key.clone().into(), key.clone().into()];
        for (command, args) in [
            ("TIME", Vec::new()),
            ("EVAL", script(Value::from_static_str(probe.body))),
            // It is known now, which EVALSHA alone does not tell.
            ("EVALSHA", script(probe.sha.as_str().into())),
        ] {
            let hash = match command {
                "TIME" => ClusterHash::Random,
                // Of a custom command fred looks at no place but this.
                _ => ClusterHash::Custom(redis_keyslot(&key)),
            };
            let sent = CustomCommand::new_static(command, hash, false);
            match client.custom::<Value, _>(sent, args).await {
                Ok(refused) if command != "TIME" => note_refused(missing, refused),
                Ok(_) => {}
                Err(error) => self.note_error(missing, command, error)?,
            }
        }
        Ok(())
    }

    /// The server answers a refused SUBSCRIBE where nobody waits for an answer. So what counts is who
    /// hears a message.
    async fn probe_bus(&self, missing: &mut MissingPermissions) -> Result<(), RemoteError> {
        let Some(client) = self.bus_client_to_probe().await? else {
            return Ok(());
        };
        let tried = self.probe_bus_on(&client, missing).await;
        if self.clustered {
            let _ = client.quit().await;
        }
        tried
    }

    async fn probe_bus_on(
        &self,
        client: &Client,
        missing: &mut MissingPermissions,
    ) -> Result<(), RemoteError> {
        let failed = |error| remote_error("connect", error);
        let channel = bus::probe_channel(&self.prefix);
        let client = client.with_options(&self.options);
        client.subscribe(&channel).await.map_err(failed)?;
        match publish_and_count(&client, channel.as_bytes()).await {
            Ok(1..) => {}
            Ok(0) => {
                missing.note_command("subscribe");
                missing.channels = true;
                return Ok(());
            }
            Err(error) => return self.note_error(missing, "SUBSCRIBE", error),
        }
        client.unsubscribe(&channel).await.map_err(failed)?;
        match publish_and_count(&client, channel.as_bytes()).await {
            Ok(0) => {}
            Ok(1..) => missing.note_command("unsubscribe"),
            Err(error) => return self.note_error(missing, "UNSUBSCRIBE", error),
        }
        Ok(())
    }

    /// Notes a denial. No answer is an error; any other answer says nothing of rights.
    fn note_error(
        &self,
        missing: &mut MissingPermissions,
        command: &str,
        error: FredError,
    ) -> Result<(), RemoteError> {
        if is_denial(error.details()) {
            missing.note(command, error.details());
            return Ok(());
        }
        let error = remote_error("connect", with_hint(error, &self.config()));
        match is_no_answer(&error) {
            true => Err(error),
            false => Ok(()),
        }
    }

    /// A connection of the bus: in a cluster one of its own, for its connections are made later.
    async fn bus_client_to_probe(&self) -> Result<Option<Client>, RemoteError> {
        if !self.clustered {
            return Ok(Some(self.bus.clone()));
        }
        let Some(primary) = self.any_primary().await else {
            return Ok(None);
        };
        let client = self.bus_client_for(primary, true);
        let connected = client.init().await;
        connected.map_err(|error| self.explain("connect", "", error))?;
        Ok(Some(client))
    }

    /// Looks again, and tells who listens of what has changed. `false`: nobody answers.
    async fn recheck_acl(&self) -> bool {
        let denied_since_check = std::mem::take(&mut self.acl.state.lock().denied_since_check);
        let mut missing = MissingPermissions::default();
        if self.probe_commands(&mut missing).await.is_err() {
            self.acl.state.lock().denied_since_check |= denied_since_check;
            return false;
        }
        match self.denied_error("look at the rights", &missing) {
            Some(error) => self.set_denied(&Scope::Commands, Some(reason(&error))),
            // It is finer than what can be tried: for one cache, perhaps.
            None if denied_since_check => {}
            None => self.set_denied(&Scope::Commands, None),
        }
        true
    }

    /// What came of a command.
    pub(super) fn note_denial<T>(&self, result: &Result<T, RemoteError>) {
        let Some(error) = result.as_ref().err().filter(|error| error.is_denied()) else {
            return;
        };
        let known = {
            let mut state = self.acl.state.lock();
            state.denied_since_check = true;
            state.commands.is_some()
        };
        if !known {
            self.set_denied(&Scope::Commands, Some(reason(error)));
            self.acl.recheck.notify_one();
        }
    }

    /// What came of an attempt to connect.
    fn note_connect_failure(&self, error: &FredError) {
        if *error.kind() == ErrorKind::Auth
            || is_denial(error.details())
            || is_database_error(error)
        {
            let error = self.explain("connect", "", error.clone());
            self.set_denied(&Scope::Commands, Some(reason(&error)));
        }
    }

    /// What came of a subscription.
    pub(super) fn note_subscription(
        &self,
        subscribed: Result<(), RemoteError>,
    ) -> Option<SubscribeError> {
        match subscribed {
            Ok(()) => {
                self.set_denied(&Scope::Bus, None);
                None
            }
            Err(error) if error.is_denied() => {
                self.set_denied(&Scope::Bus, Some(reason(&error)));
                Some(SubscribeError::Denied)
            }
            Err(error) if is_no_answer(&error) => Some(SubscribeError::NoAnswer),
            Err(_) => Some(SubscribeError::UnexpectedReply),
        }
    }

    /// Subscribes and waits until the server has; fred is through before that. What the server says of a
    /// refusal goes to whichever command waits for a reply next, or to nobody, so that no reply proves
    /// anything. But the command is carried out or refused as a whole: with a new channel in it, it was
    /// carried out if a message is heard there.
    pub(super) async fn subscribe_confirmed(
        &self,
        client: &WithOptions<Client>,
        mut channels: Vec<String>,
    ) -> Result<(), RemoteError> {
        const OPERATION: &str = "subscribe";
        let proof = bus::probe_channel(&self.prefix);
        channels.push(proof.clone());
        let mut messages = client.message_rx();
        let subscribed = client.subscribe(channels).await;
        subscribed.map_err(|error| remote_error(OPERATION, error))?;
        let mut missing = MissingPermissions::default();
        match publish_and_count(client, proof.as_bytes()).await {
            Ok(1..) => {
                let heard = receives(&mut messages, &proof);
                let heard = tokio::time::timeout(self.timeout, heard).await;
                if heard == Ok(true) {
                    // Should it fail, nobody says anything there.
                    let _ = client.unsubscribe(proof).await;
                    return Ok(());
                }
            }
            Ok(0) => {
                missing.note_command("subscribe");
                missing.channels = true;
            }
            Err(error) => self.note_error(&mut missing, "SUBSCRIBE", error)?,
        }
        let unexpected =
            || RemoteError::because(RemoteKind::Refused, OPERATION, "unexpected reply");
        Err(self
            .denied_error(OPERATION, &missing)
            .unwrap_or_else(unexpected))
    }

    fn set_denied(&self, scope: &Scope, what: Option<Arc<str>>) {
        let (before, now) = {
            let mut state = self.acl.state.lock();
            let before = state.is_denied();
            match scope {
                Scope::Commands => state.commands = what,
                Scope::Bus => state.bus = what,
            }
            (before, state.is_denied())
        };
        if before != now {
            self.notify_denied(now);
        }
    }
}

/// Why a connection does not hear its channels.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum SubscribeError {
    /// No answer, or no connection.
    NoAnswer,
    /// An answer to something else.
    UnexpectedReply,
    Denied,
}

/// Waits for a message on a channel.
async fn receives(messages: &mut Receiver<Message>, channel: &str) -> bool {
    loop {
        match messages.recv().await {
            Ok(message) if *message.channel == *channel => return true,
            Ok(_) | Err(RecvError::Lagged(_)) => {}
            Err(RecvError::Closed) => return false,
        }
    }
}

/// How many hear a message on a channel that nobody else knows. It is empty, and means nothing.
async fn publish_and_count(client: &WithOptions<Client>, channel: &[u8]) -> Result<u64, FredError> {
    let command = CustomCommand::new_static("PUBLISH", ClusterHash::FirstKey, false);
    let args = vec![Bytes::copy_from_slice(channel), Bytes::new()];
    let reply: Value = client.custom(command, args).await?;
    match reply.as_u64() {
        Some(receivers) => Ok(receivers),
        None => Err(FredError::new(ErrorKind::Protocol, "unexpected reply")),
    }
}

fn note_refused(missing: &mut MissingPermissions, refused: Value) {
    let mut refused = refused.into_array().into_iter();
    while let (Some(command), Some(error)) = (refused.next(), refused.next()) {
        let (command, error) = (command.into_string(), error.into_string());
        let (command, error) = (command.unwrap_or_default(), error.unwrap_or_default());
        if is_denial(&error) {
            missing.note(&command, &error);
        }
    }
}

/// What an error says, without the words that go before.
fn reason(error: &RemoteError) -> Arc<str> {
    let source = std::error::Error::source(error);
    match source {
        Some(source) => match source.downcast_ref::<FredError>() {
            Some(error) => error.details().into(),
            None => source.to_string().into(),
        },
        None => error.to_string().into(),
    }
}

/// Looks when a connection stands and when a command was denied; and again while anything is, or while
/// nobody answers.
pub(super) async fn watch(
    shared: Weak<Shared>,
    mut connected: Receiver<Server>,
    mut failed: Receiver<(FredError, Option<Server>)>,
    recheck: Arc<Notify>,
    mut due: bool,
) {
    loop {
        let (answered, denied) = {
            let Some(shared) = shared.upgrade() else {
                return;
            };
            let answered = !due || shared.recheck_acl().await;
            (answered, shared.acl.state.lock().is_denied())
        };
        due = tokio::select! {
            event = connected.recv() => match event {
                Err(RecvError::Closed) => return,
                _ => true,
            },
            event = failed.recv() => match event {
                Ok((error, _)) => {
                    let Some(shared) = shared.upgrade() else { return };
                    shared.note_connect_failure(&error);
                    false
                }
                Err(RecvError::Lagged(_)) => false,
                Err(RecvError::Closed) => return,
            },
            () = recheck.notified() => !denied,
            () = tokio::time::sleep(RECHECK_INTERVAL), if denied || !answered => true,
        };
    }
}
