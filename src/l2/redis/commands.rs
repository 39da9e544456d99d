//! Sending: single commands and scripts, to the node of their key, with one attempt each.

use std::pin::Pin;

use bytes::Bytes;
use fred::clients::{Client, WithOptions};
use fred::error::{Error as FredError, ErrorKind};
use fred::interfaces::ClientLike;
use fred::types::{ClusterHash, CustomCommand, Value};
use fred::util::redis_keyslot;

use super::errors::remote_error;
use super::handle::Redis;
use super::scripts::Script;
use crate::error::RemoteError;
use crate::protocol::request::Keys;

/// fred's error for a command that another node would have to carry out.
const REDIRECTED: &str = "Too many redirections";

/// How often a command is sent in a cluster whose layout has changed.
const MAX_ATTEMPTS: usize = 3;

/// Whether the breaker decides on a command and counts its result.
///
/// It is bypassed for heartbeats: the connection of the bus has its own checks, and what a
/// heartbeat proves holds whatever happens to commands. It is bypassed for write-behind, which has
/// no source to fall back to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum BreakerUse {
    Checked,
    Bypassed,
}

impl Redis {
    /// Sends one command. Sends it again if another node owns the slot, because then it was not
    /// carried out.
    ///
    /// fred itself follows no redirection. It asks for the new layout, which is enough for a slot
    /// that *has* moved (`-MOVED`). For a slot that is being moved (`-ASK`) fred would send
    /// `ASKING` on a connection with other commands under way. It would take the first reply that
    /// comes for that of `ASKING`, and give all the others to the wrong callers, the last one `OK`:
    /// a refused invalidation would count as carried out.
    ///
    /// The future is boxed: fred's takes 5 KB in every future that contains it.
    pub(super) fn send(
        &self,
        client: &WithOptions<Client>,
        command: CustomCommand,
        args: Vec<Value>,
    ) -> Pin<Box<impl Future<Output = Result<Value, FredError>> + Send + use<>>> {
        let (client, clustered) = (client.clone(), self.shared.clustered);
        Box::pin(async move {
            if !clustered {
                return client.custom(command, args).await;
            }
            for _ in 0..MAX_ATTEMPTS {
                match client.custom(command.clone(), args.clone()).await {
                    Err(error) if error.details().starts_with(REDIRECTED) => {}
                    result => return result,
                }
            }
            // The cluster answered: this must not count as silence.
            let why = "the slot is on its way to another node";
            Err(FredError::new(ErrorKind::Cluster, why))
        })
    }

    /// Runs a script on one key.
    pub(super) async fn run(
        &self,
        operation: &'static str,
        script: &Script,
        key: &Bytes,
        args: impl AsRef<[Value]>,
    ) -> Result<Value, RemoteError> {
        let keys = std::slice::from_ref(key);
        self.run_checked(operation, script, keys, args).await
    }

    /// Runs a script on a record and its claim.
    pub(super) async fn run_on_record_and_claim(
        &self,
        operation: &'static str,
        script: &Script,
        keys: &Keys,
        args: impl AsRef<[Value]>,
    ) -> Result<Value, RemoteError> {
        let keys = [keys.record.clone(), keys.claim.clone()];
        self.run_checked(operation, script, &keys, args).await
    }

    /// Runs a script on keys of one slot. The breaker decides.
    pub(super) async fn run_checked(
        &self,
        operation: &'static str,
        script: &Script,
        keys: &[Bytes],
        args: impl AsRef<[Value]>,
    ) -> Result<Value, RemoteError> {
        let client = (&self.shared.client(), BreakerUse::Checked);
        self.run_on(client, operation, script, keys, args).await
    }

    /// Runs a script on the node of its first key. A node that does not have the script (a new one,
    /// or after `SCRIPT FLUSH`) is sent the body, which also loads it there.
    pub(super) async fn run_on(
        &self,
        (client, breaker_use): (&WithOptions<Client>, BreakerUse),
        operation: &'static str,
        script: &Script,
        keys: &[Bytes],
        args: impl AsRef<[Value]>,
    ) -> Result<Value, RemoteError> {
        let args = args.as_ref();
        // fred routes a custom command by this slot alone. Without it, fred would take the first
        // argument for the key, and the node would redirect the command.
        let slot = keys.first().map_or(0, |key| redis_keyslot(key));
        let command = |by| CustomCommand::new_static(by, ClusterHash::Custom(slot), false);
        let with = |script: Value| {
            let mut all = Vec::with_capacity(2 + keys.len() + args.len());
            all.extend([script, Value::from(keys.len().to_string())]);
            all.extend(keys.iter().cloned().map(Value::from));
            all.extend(args.iter().cloned());
            all
        };
        if breaker_use == BreakerUse::Checked {
            self.shared.admit(operation)?;
        }
        let evalsha = with(script.sha.as_str().into());
        let result = match self.send(client, command("EVALSHA"), evalsha).await {
            Err(error) if error.details().starts_with("NOSCRIPT") => {
                let eval = with(Value::from_static_str(script.body));
                self.send(client, command("EVAL"), eval).await
            }
            result => result,
        };
        let result = result.map_err(|error| remote_error(operation, error));
        if breaker_use == BreakerUse::Checked {
            self.shared.report_to_breaker(&result);
        }
        self.shared.note_denial(&result);
        result
    }
}

pub(super) fn copy_bytes(bytes: &[u8]) -> Value {
    Value::Bytes(Bytes::copy_from_slice(bytes))
}

pub(super) fn bytes(bytes: Vec<u8>) -> Value {
    Value::Bytes(bytes.into())
}

pub(super) fn number(number: u64) -> Value {
    Value::from(number.to_string())
}
