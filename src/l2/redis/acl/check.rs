//! The checks of what the user of Redis may do, before it is needed.
//!
//! `connect` tries everything, and fails with what is missing. A handle that was opened tries when
//! its connection stands, and goes on. `Health::denied` shows what is missing, until a later check
//! or a new subscription finds it granted.

use std::sync::{Arc, Weak};
use std::time::Duration;

use bytes::Bytes;
use fred::clients::{Client, WithOptions};
use fred::error::{Error as FredError, ErrorKind};
use fred::interfaces::{ClientLike, EventInterface, PubsubInterface};
use fred::types::config::Server;
use fred::types::{ClusterHash, CustomCommand, Value};
use fred::util::redis_keyslot;
use tokio::sync::Notify;
use tokio::sync::broadcast::Receiver;
use tokio::sync::broadcast::error::RecvError;

use super::denials::Scope;
use super::missing::MissingPermissions;
use crate::error::{RemoteError, RemoteKind};
use crate::l2::redis::errors::{
    is_database_error, is_denial, is_no_answer, remote_error, unexpected_reply, with_hint,
};
use crate::l2::redis::scripts;
use crate::l2::redis::shared::Shared;
use crate::l2::redis::subscription::{SubscribeError, probe_channel, publish_and_count, receives};

/// How often to check again while something is denied.
pub(in crate::l2::redis) const RECHECK_INTERVAL: Duration = Duration::from_secs(5);

impl Shared {
    /// Tries all that the handle will need.
    pub(in crate::l2::redis) async fn check_acl(&self) -> Result<(), RemoteError> {
        let mut missing = MissingPermissions::default();
        self.probe_commands(&mut missing).await?;
        if missing == MissingPermissions::default() {
            self.probe_bus(&mut missing).await?;
        }
        self.denied_error("connect", &missing).map_or(Ok(()), Err)
    }

    /// Makes an error of the client ours. If it is a denial, it names the rules that would grant
    /// the command.
    pub(in crate::l2::redis) fn explain(
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
    pub(in crate::l2::redis) fn explain_failure(&self, error: FredError) -> RemoteError {
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
        let kind = RemoteKind::Denied;
        Some(RemoteError::because(kind, operation, described))
    }

    async fn probe_commands(&self, missing: &mut MissingPermissions) -> Result<(), RemoteError> {
        let client = self.client();
        let probe = &*scripts::PROBE;
        // This is no key of a record, which has a name after the prefix, nor of a claim, which has
        // more after the colons.
        let key = Bytes::from(format!("{}::probe", self.prefix));
        let script = |script: Value| vec![script, 1.into(), key.clone().into(), key.clone().into()];
        for (command, args) in [
            ("TIME", Vec::new()),
            ("EVAL", script(Value::from_static_str(probe.body))),
            // The server knows the script now. Without that, EVALSHA would be answered NOSCRIPT.
            ("EVALSHA", script(probe.sha.as_str().into())),
        ] {
            let hash = match command {
                "TIME" => ClusterHash::Random,
                // fred routes a custom command by this slot alone.
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

    /// Tries to subscribe: what counts is whether a message has a receiver.
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
        let channel = probe_channel(&self.prefix);
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

    /// Notes a denial. The absence of an answer is an error. Any other answer says nothing about
    /// permissions.
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

    /// A connection for the bus. In a cluster it is made for the probe, because those of the bus
    /// are made later.
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

    /// Checks again, and tells the listeners of a change. `false`: the server does not answer.
    async fn recheck_acl(&self) -> bool {
        let denied_since_check = self.acl.begin_check();
        let mut missing = MissingPermissions::default();
        if self.probe_commands(&mut missing).await.is_err() {
            self.acl.undo_check(denied_since_check);
            return false;
        }
        match self.denied_error("look at the rights", &missing) {
            Some(error) => self.set_denied(&Scope::Commands, Some(reason(&error))),
            // The denial is narrower than what the check tries: for the keys of one cache, perhaps.
            None if denied_since_check => {}
            None => self.set_denied(&Scope::Commands, None),
        }
        true
    }

    /// Looks for a denial in the result of a command.
    pub(in crate::l2::redis) fn note_denial<T>(&self, result: &Result<T, RemoteError>) {
        let Some(error) = result.as_ref().err().filter(|error| error.is_denied()) else {
            return;
        };
        let known = self.acl.note_denied_command();
        if !known {
            self.set_denied(&Scope::Commands, Some(reason(error)));
            self.acl.recheck.notify_one();
        }
    }

    /// Looks for a denial in the result of an attempt to connect.
    fn note_connect_failure(&self, error: &FredError) {
        if *error.kind() == ErrorKind::Auth
            || is_denial(error.details())
            || is_database_error(error)
        {
            let error = self.explain("connect", "", error.clone());
            self.set_denied(&Scope::Commands, Some(reason(&error)));
        }
    }

    /// Looks for a denial in the result of a subscription.
    pub(in crate::l2::redis) fn note_subscription(
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

    /// Subscribes, and waits until the server has carried it out; fred returns before that.
    ///
    /// The server's answer to a refused command goes to the next command that waits for a reply, or
    /// to none, so no reply proves anything. But a `SUBSCRIBE` is carried out or refused as a
    /// whole. With a new channel in it, it was carried out if a message comes on that channel.
    pub(in crate::l2::redis) async fn subscribe_confirmed(
        &self,
        client: &WithOptions<Client>,
        mut channels: Vec<String>,
    ) -> Result<(), RemoteError> {
        const OPERATION: &str = "subscribe";
        let proof = probe_channel(&self.prefix);
        channels.push(proof.clone());
        let mut messages = client.message_rx();
        let subscribed = client.subscribe(channels).await;
        subscribed.map_err(|error| remote_error(OPERATION, error))?;
        let mut missing = MissingPermissions::default();
        match publish_and_count(client, proof.as_bytes()).await {
            Ok(1..) => {
                let received = receives(&mut messages, &proof);
                let received = tokio::time::timeout(self.timeout, received).await;
                if received == Ok(true) {
                    // A failure does not matter: no client publishes on this channel any more.
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
        let denied = self.denied_error(OPERATION, &missing);
        Err(denied.unwrap_or_else(|| unexpected_reply(OPERATION)))
    }

    fn set_denied(&self, scope: &Scope, denied: Option<Arc<str>>) {
        let (before, now) = self.acl.set(scope, denied);
        if before != now {
            self.notify_denied(now);
        }
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

/// The cause in an error, without the words before it.
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

/// Checks when a connection stands and when a command was denied. Checks again while something is
/// denied, and while the server does not answer.
pub(in crate::l2::redis) async fn watch(
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
            (answered, shared.acl.is_denied())
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
