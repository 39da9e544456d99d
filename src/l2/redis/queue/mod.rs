//! The commands and scripts of write-behind: streams, and leases on them.
//!
//! The keys of one partition share a hash tag, so every script runs on one node of a cluster.

use std::sync::LazyLock;

use bytes::Bytes;
use fred::error::Error as FredError;
use fred::interfaces::ClientLike;
use fred::types::{ClusterHash, CustomCommand, Value};

pub(crate) use self::reply::{
    Accepted, Claimed, FailureState, Granted, RawEntry, StreamId, parse_id,
};
use super::commands::{BreakerUse, number};
use super::errors::{remote_error, unexpected_reply};
use super::handle::Redis;
use super::scripts::Script;
use crate::error::RemoteError;
use crate::protocol::request::Publication;

mod reply;

macro_rules! scripts {
    ($($name:ident $file:literal)*) => {$(
        static $name: LazyLock<Script> = LazyLock::new(|| {
            let body = include_str!(concat!("../../../write_behind/lua/", $file));
            Script { body, sha: fred::util::sha1_hash(body) }
        });
    )*};
}
scripts! {
    ATTACH "attach.lua"
    ACCEPT "accept.lua"
    CLAIM "claim.lua"
    ADVANCE "advance.lua"
    NOTE "note.lua"
    DEAD_LETTER "dead_letter.lua"
    REDRIVE "redrive.lua"
    FREE "free.lua"
    REGISTER "register.lua"
}

/// The keys of one partition.
#[derive(Clone, Debug)]
pub(crate) struct QueueKeys {
    pub(crate) stream: Bytes,
    pub(crate) lease: Bytes,
    pub(crate) state: Bytes,
    pub(crate) dead: Bytes,
}

/// The lease on a partition, as scripts compare it.
#[derive(Clone, Debug)]
pub(crate) struct PartitionLease {
    pub(crate) token: Bytes,
    pub(crate) ttl_ms: u64,
}

/// Whether the server itself answered this error. Its errors begin with a word in capitals; those
/// of the client do not.
pub(crate) fn is_server_error(error: &RemoteError) -> bool {
    let source = std::error::Error::source(error);
    let Some(error) = source.and_then(|source| source.downcast_ref::<FredError>()) else {
        return false;
    };
    let word = error.details().split(' ').next().unwrap_or_default();
    !word.is_empty() && word.bytes().all(|byte| byte.is_ascii_uppercase())
}

impl Redis {
    /// Stores the number of partitions, if none is stored. Answers the stored number.
    pub(crate) async fn queue_attach(
        &self,
        state: &Bytes,
        partitions: u16,
    ) -> Result<String, RemoteError> {
        const OPERATION: &str = "open a write-behind";
        self.ensure_started().await;
        let args = vec![number(partitions.into())];
        let keys = std::slice::from_ref(state);
        let reply = self.queue(OPERATION, &ATTACH, keys, args).await?;
        reply
            .into_string()
            .ok_or_else(|| unexpected_reply(OPERATION))
    }

    /// Appends a write to the stream of its partition, if the stream is not full.
    pub(crate) async fn queue_accept(
        &self,
        keys: &QueueKeys,
        partitions: u16,
        max: u64,
        record: Vec<u8>,
        wake: Publication,
    ) -> Result<Accepted, RemoteError> {
        self.ensure_started().await;
        let client = self.shared.client();
        if !client.is_connected() {
            return Ok(Accepted::NotConnected);
        }
        let args = vec![
            number(partitions.into()),
            number(max),
            Value::Bytes(record.into()),
            wake.channel.into(),
            wake.message.into(),
        ];
        let keys = [keys.stream.clone(), keys.state.clone()];
        let reply = self
            .run_on(
                (&client, BreakerUse::Bypassed),
                "write",
                &ACCEPT,
                &keys,
                args,
            )
            .await?;
        reply::accepted(reply).ok_or_else(|| unexpected_reply("write"))
    }

    /// Appends a dead letter to its stream again, if the stream is not full.
    pub(crate) async fn queue_redrive(
        &self,
        keys: &QueueKeys,
        letter: StreamId,
        max: u64,
        wake: Publication,
    ) -> Result<Accepted, RemoteError> {
        const OPERATION: &str = "re-drive a dead letter";
        self.ensure_started().await;
        let client = self.shared.client();
        if !client.is_connected() {
            return Ok(Accepted::NotConnected);
        }
        let args = vec![
            id(letter),
            number(max),
            wake.channel.into(),
            wake.message.into(),
        ];
        let keys = [keys.stream.clone(), keys.dead.clone()];
        let reply = self
            .run_on(
                (&client, BreakerUse::Bypassed),
                OPERATION,
                &REDRIVE,
                &keys,
                args,
            )
            .await?;
        reply::accepted(reply).ok_or_else(|| unexpected_reply(OPERATION))
    }

    /// Acquires the lease on a partition, if no other worker has it.
    pub(crate) async fn queue_claim(
        &self,
        keys: &QueueKeys,
        lease: &PartitionLease,
        partitions: u16,
    ) -> Result<Claimed, RemoteError> {
        const OPERATION: &str = "claim a partition";
        self.ensure_started().await;
        let args = vec![
            lease.token.clone().into(),
            number(lease.ttl_ms),
            number(partitions.into()),
        ];
        let keys = [keys.lease.clone(), keys.state.clone()];
        let reply = self.queue(OPERATION, &CLAIM, &keys, args).await?;
        reply::claimed(reply).ok_or_else(|| unexpected_reply(OPERATION))
    }

    /// Acknowledges entries, renews the lease, and reads up to `count` unacknowledged entries, the
    /// oldest first. `None`: the lease is lost, nothing was done.
    pub(crate) async fn queue_advance(
        &self,
        keys: &QueueKeys,
        lease: &PartitionLease,
        applied: &[StreamId],
        count: usize,
    ) -> Result<Option<Vec<RawEntry>>, RemoteError> {
        const OPERATION: &str = "read a partition";
        let mut args = vec![
            lease.token.clone().into(),
            number(lease.ttl_ms),
            number(count as u64),
        ];
        args.extend(applied.iter().copied().map(id));
        let keys = [keys.stream.clone(), keys.lease.clone()];
        let reply = self.queue(OPERATION, &ADVANCE, &keys, args).await?;
        let mut reply = reply.into_array().into_iter();
        match reply.next().and_then(|code| code.as_u64()) {
            Some(0) => Ok(None),
            Some(1) => {
                let entries = reply.next().and_then(reply::entries);
                entries.map(Some).ok_or_else(|| unexpected_reply(OPERATION))
            }
            _ => Err(unexpected_reply(OPERATION)),
        }
    }

    /// Stores the failures of a partition. `false`: the lease is lost, nothing was done.
    pub(crate) async fn queue_store_failures(
        &self,
        keys: &QueueKeys,
        lease: &PartitionLease,
        failure_state: FailureState,
    ) -> Result<bool, RemoteError> {
        let none = || Value::from_static_str("");
        let args = vec![
            lease.token.clone().into(),
            number(lease.ttl_ms),
            failure_state.failed.map_or_else(none, id),
            number(failure_state.failures.into()),
            failure_state.isolate.map_or_else(none, id),
        ];
        let keys = [keys.lease.clone(), keys.state.clone()];
        let reply = self.queue("note a failure", &NOTE, &keys, args).await?;
        Ok(reply.as_u64() == Some(1))
    }

    /// Moves an entry to the dead letters. Answers how many older ones were dropped for it. `None`:
    /// the lease is lost, nothing was done.
    pub(crate) async fn queue_dead_letter(
        &self,
        keys: &QueueKeys,
        lease: &PartitionLease,
        entry: StreamId,
        error: &str,
        attempts: u32,
        max: u64,
    ) -> Result<Option<u64>, RemoteError> {
        const OPERATION: &str = "dead-letter a write";
        let args = vec![
            lease.token.clone().into(),
            number(lease.ttl_ms),
            id(entry),
            Value::from(error),
            number(attempts.into()),
            number(max),
        ];
        let keys = [keys.stream.clone(), keys.lease.clone(), keys.dead.clone()];
        let reply = self.queue(OPERATION, &DEAD_LETTER, &keys, args).await?;
        let mut reply = reply.into_array().into_iter();
        match reply.next().and_then(|code| code.as_u64()) {
            Some(0) => Ok(None),
            Some(1) => Ok(reply.next().and_then(|dropped| dropped.as_u64())),
            _ => Err(unexpected_reply(OPERATION)),
        }
    }

    /// Releases the lease on a partition, and publishes the notice.
    pub(crate) async fn queue_release(
        &self,
        keys: &QueueKeys,
        lease: &PartitionLease,
        publication: Publication,
    ) -> Result<(), RemoteError> {
        let args = vec![
            lease.token.clone().into(),
            publication.channel.into(),
            publication.message.into(),
        ];
        let keys = std::slice::from_ref(&keys.lease);
        let freed = self.queue("give up a partition", &FREE, keys, args).await;
        freed.map(drop)
    }

    /// Registers a worker for this long; zero removes it. Answers the number of living workers.
    pub(crate) async fn queue_register(
        &self,
        workers: &Bytes,
        worker: &Bytes,
        ttl_ms: u64,
    ) -> Result<u64, RemoteError> {
        const OPERATION: &str = "count the workers";
        self.ensure_started().await;
        let args = vec![worker.clone().into(), number(ttl_ms)];
        let keys = std::slice::from_ref(workers);
        let reply = self.queue(OPERATION, &REGISTER, keys, args).await?;
        reply.as_u64().ok_or_else(|| unexpected_reply(OPERATION))
    }

    /// The number of entries of a stream, and the id of the oldest.
    pub(crate) async fn queue_backlog(
        &self,
        stream: &Bytes,
    ) -> Result<(u64, Option<StreamId>), RemoteError> {
        const OPERATION: &str = "look at a partition";
        self.ensure_started().await;
        let client = self.shared.client();
        let command = |name| CustomCommand::new_static(name, ClusterHash::FirstKey, false);
        let length = self.send(&client, command("XLEN"), vec![stream.clone().into()]);
        let length = length
            .await
            .map_err(|error| remote_error(OPERATION, error))?;
        let length = length.as_u64().ok_or_else(|| unexpected_reply(OPERATION))?;
        if length == 0 {
            return Ok((0, None));
        }
        let oldest = self.queue_range(OPERATION, stream, 1).await?;
        Ok((length, oldest.first().map(|entry| entry.id)))
    }

    /// The oldest entries of a stream.
    pub(crate) async fn queue_range(
        &self,
        operation: &'static str,
        stream: &Bytes,
        count: u64,
    ) -> Result<Vec<RawEntry>, RemoteError> {
        self.ensure_started().await;
        let command = CustomCommand::new_static("XRANGE", ClusterHash::FirstKey, false);
        let word = Value::from_static_str;
        let args = vec![
            stream.clone().into(),
            word("-"),
            word("+"),
            word("COUNT"),
            number(count),
        ];
        let client = self.shared.client();
        let reply = self.send(&client, command, args).await;
        let reply = reply.map_err(|error| remote_error(operation, error))?;
        reply::entries(reply).ok_or_else(|| unexpected_reply(operation))
    }

    /// Deletes an entry. `false`: there was no such entry.
    pub(crate) async fn queue_delete(
        &self,
        operation: &'static str,
        stream: &Bytes,
        entry: StreamId,
    ) -> Result<bool, RemoteError> {
        self.ensure_started().await;
        let command = CustomCommand::new_static("XDEL", ClusterHash::FirstKey, false);
        let args = vec![stream.clone().into(), id(entry)];
        let client = self.shared.client();
        let reply = self.send(&client, command, args).await;
        let reply = reply.map_err(|error| remote_error(operation, error))?;
        Ok(reply.as_u64() == Some(1))
    }

    async fn queue(
        &self,
        operation: &'static str,
        script: &Script,
        keys: &[Bytes],
        args: Vec<Value>,
    ) -> Result<Value, RemoteError> {
        self.run_on(
            (&self.shared.client(), BreakerUse::Bypassed),
            operation,
            script,
            keys,
            args,
        )
        .await
    }
}

fn id((ms, seq): StreamId) -> Value {
    Value::from(format!("{ms}-{seq}"))
}
