//! The operations of the protocol, as commands and scripts.

use std::collections::HashMap;
use std::pin::Pin;

use bytes::Bytes;
use fred::clients::{Client, WithOptions};
use fred::error::{Error as FredError, ErrorKind};
use fred::interfaces::ClientLike;
use fred::types::{ClusterHash, CustomCommand, Value};
use fred::util::redis_keyslot;
use futures_util::future::join_all;

use super::scripts::{self, Script};
use super::{Redis, remote_error};
use crate::codec::envelope::{Expiry, Head};
use crate::engine::watermarks::Watermarks;
use crate::error::{RemoteError, RemoteKind};
use crate::l2::{
    Acquired, Advance, Keys, MARKS_TTL, Notice, Over, Read, Refill, WatermarkRequest,
    new_incarnation, with_watermarks,
};

/// Keys of one MGET: a longer reply keeps the server from others for too long.
const MAX_MGET_KEYS: usize = 1_000;

impl Redis {
    pub(crate) async fn get_many(&self, keys: &[Bytes]) -> (Vec<Read>, Result<(), RemoteError>) {
        self.ensure_started().await;
        let groups = self.group_by_command(keys);
        let replies = groups.iter().map(|group| {
            let names = group.iter().map(|index| keys[*index].clone()).collect();
            self.mget(names)
        });
        // All are sent before the first is answered.
        let replies = join_all(replies).await;
        let (mut records, mut outcome) = (vec![Err(()); keys.len()], Ok(()));
        for (group, reply) in groups.into_iter().zip(replies) {
            match reply {
                Ok(found) => {
                    for (index, record) in group.into_iter().zip(found) {
                        records[index] = Ok(record);
                    }
                }
                Err(error) => outcome = outcome.and(Err(error)),
            }
        }
        (records, outcome)
    }

    /// Which keys one command can ask for.
    fn group_by_command(&self, keys: &[Bytes]) -> Vec<Vec<usize>> {
        let all: Vec<usize> = (0..keys.len()).collect();
        if self.shared.mget.is_mget_denied() {
            return all.into_iter().map(|index| vec![index]).collect();
        }
        if !self.shared.clustered {
            return all.chunks(MAX_MGET_KEYS).map(<[usize]>::to_vec).collect();
        }
        // Those of one slot. What is alone there is a GET, and all of them are sent at once.
        let mut slots: HashMap<u16, Vec<usize>> = HashMap::new();
        for index in all {
            let slot = redis_keyslot(&keys[index]);
            slots.entry(slot).or_default().push(index);
        }
        slots.into_values().collect()
    }

    async fn mget(&self, keys: Vec<Bytes>) -> Result<Vec<Option<Bytes>>, RemoteError> {
        if let [key] = keys.as_slice() {
            return self.get(key).await.map(|record| vec![record]);
        }
        let command = CustomCommand::new_static("MGET", ClusterHash::FirstKey, false);
        self.shared.admit("read")?;
        let asked = keys.len();
        let client = self.shared.client();
        let keys = keys.into_iter().map(Value::from).collect();
        let read = self.send(&client, command, keys).await;
        let read = read.and_then(Value::convert::<Vec<Option<Bytes>>>);
        let read = read.map_err(|error| remote_error("read", error));
        self.shared.mget.note_denial(&read);
        self.shared.report_to_breaker(&read);
        self.shared.note_denial(&read);
        let read = read?;
        if read.len() != asked {
            return Err(RemoteError::because(
                RemoteKind::Refused,
                "read",
                "unexpected reply",
            ));
        }
        Ok(read)
    }

    pub(crate) async fn acquire(
        &self,
        keys: &Keys,
        lease: Vec<u8>,
        ttl_ms: u64,
        over: Over<'_>,
        known: Watermarks,
    ) -> Result<Acquired, RemoteError> {
        let (over, seen) = match over {
            Over::Nothing => ("0", &[][..]),
            Over::Useless(seen) => ("1", seen),
            Over::Entry(seen) => ("2", seen),
        };
        let args = [
            bytes(lease),
            number(ttl_ms),
            Value::from_static_str(over),
            copy_bytes(seen),
            number(known.incarnation),
            number(known.all),
        ];
        let reply = self
            .run_on_record_and_claim("acquire a lease", &scripts::ACQUIRE, keys, args)
            .await?;
        let mut reply = reply.into_array().into_iter();
        let answer = match (reply.next().and_then(|code| code.as_u64()), reply.next()) {
            (Some(0), Some(failures)) => failures
                .as_u64()
                .and_then(|failures| u32::try_from(failures).ok())
                .map(Acquired::Granted),
            (Some(1), Some(left)) => left.as_u64().map(Acquired::Held),
            (Some(2), record) => record
                .unwrap_or(Value::Null)
                .convert()
                .ok()
                .map(Acquired::Record),
            (Some(3), Some(left)) => left.as_u64().map(Acquired::Failed),
            _ => None,
        };
        answer.ok_or_else(|| {
            RemoteError::because(RemoteKind::Refused, "acquire a lease", "unexpected reply")
        })
    }

    pub(crate) async fn replace(
        &self,
        key: &Bytes,
        head: Head,
        record: Vec<u8>,
        ttl_ms: u64,
        wake: Notice,
    ) -> Result<bool, RemoteError> {
        let args = [
            copy_bytes(&head),
            bytes(record),
            number(ttl_ms),
            wake.channel.into(),
            wake.message.into(),
        ];
        self.run("fill", &scripts::REPLACE, key, args)
            .await
            .map(|reply| reply.as_u64() == Some(1))
    }

    pub(crate) async fn refill(
        &self,
        keys: &Keys,
        seen: &[u8],
        head: Head,
        refill: Refill,
        ttl_ms: u64,
        wake: Notice,
    ) -> Result<bool, RemoteError> {
        let (new, header) = match refill {
            Refill::Record(record) => (record, "0"),
            Refill::Header(header) => (header, "1"),
            Refill::Nothing => (Vec::new(), "0"),
        };
        let args = [
            copy_bytes(seen),
            copy_bytes(&head),
            bytes(new),
            number(ttl_ms),
            Value::from_static_str(header),
            wake.channel.into(),
            wake.message.into(),
        ];
        self.run_on_record_and_claim("refresh", &scripts::REFILL, keys, args)
            .await
            .map(|reply| reply.as_u64() == Some(1))
    }

    pub(crate) async fn renew(
        &self,
        key: &Bytes,
        refreshed: Option<&Bytes>,
        head: Head,
        ttl_ms: u64,
    ) -> Result<bool, RemoteError> {
        let args = [copy_bytes(&head), number(ttl_ms)];
        let keys: Vec<Bytes> = [Some(key), refreshed]
            .into_iter()
            .flatten()
            .cloned()
            .collect();
        self.run_on(
            (&self.shared.client(), BreakerUse::Checked),
            "renew a lease",
            &scripts::RENEW,
            &keys,
            args,
        )
        .await
        .map(|reply| reply.as_u64() == Some(1))
    }

    pub(crate) async fn release(
        &self,
        key: &Bytes,
        head: Head,
        wake: Notice,
    ) -> Result<bool, RemoteError> {
        let args = [copy_bytes(&head), wake.channel.into(), wake.message.into()];
        self.run("release a lease", &scripts::RELEASE, key, args)
            .await
            .map(|reply| reply.as_u64() == Some(1))
    }

    pub(crate) async fn invalidate(
        &self,
        keys: &Keys,
        hold_off: Option<(Vec<u8>, u64)>,
        notice: Notice,
    ) -> Result<(), RemoteError> {
        self.ensure_started().await;
        let mut args = vec![notice.channel.into(), notice.message.into()];
        if let Some((record, ms)) = hold_off {
            args.extend([bytes(record), number(ms)]);
        }
        self.run_on_record_and_claim("invalidate", &scripts::INVALIDATE, keys, args)
            .await
            .map(drop)
    }

    pub(crate) async fn expire(
        &self,
        keys: &Keys,
        state: Expiry,
        notice: Notice,
    ) -> Result<(), RemoteError> {
        self.ensure_started().await;
        let args = [
            copy_bytes(&state),
            notice.channel.into(),
            notice.message.into(),
        ];
        self.run_on_record_and_claim("expire", &scripts::EXPIRE, keys, args)
            .await
            .map(drop)
    }

    pub(crate) async fn insert(
        &self,
        keys: &Keys,
        record: Vec<u8>,
        versioned: bool,
        ttl_ms: u64,
        notice: Notice,
    ) -> Result<bool, RemoteError> {
        let args = [
            bytes(record),
            number(ttl_ms),
            notice.channel.into(),
            notice.message.into(),
            number(u64::from(versioned)),
        ];
        self.run_on_record_and_claim("insert", &scripts::INSERT, keys, args)
            .await
            .map(|reply| reply.as_u64() == Some(1))
    }

    pub(crate) async fn marks(
        &self,
        key: &Bytes,
        look: WatermarkRequest,
    ) -> Result<(Watermarks, u64), RemoteError> {
        self.ensure_started().await;
        self.look(&self.shared.client(), BreakerUse::Checked, key, look)
            .await
    }

    pub(crate) async fn beat(
        &self,
        key: &Bytes,
        known: Watermarks,
        message: Vec<u8>,
    ) -> Result<(), RemoteError> {
        let mut look = WatermarkRequest {
            advance: Advance::Nothing,
            known,
            tags: Vec::new(),
            notice: None,
        };
        if self.shared.clustered {
            // The marks first, then a round over all connections: when it is over, every message that is
            // older than these marks has been heard.
            let (watermarks, _) = self
                .look(&self.shared.client(), BreakerUse::Bypassed, key, look)
                .await?;
            let message = with_watermarks(message, watermarks);
            self.shared.send_heartbeat(message.into()).await;
            return Ok(());
        }
        let connection = self.shared.bus_connections.lock().only();
        let Some((client, channel)) = connection else {
            return Ok(());
        };
        look.notice = Some(Notice {
            channel,
            message: message.into(),
        });
        let client = client.with_options(&self.shared.options);
        self.look(&client, BreakerUse::Bypassed, key, look)
            .await
            .map(drop)
    }

    pub(crate) fn renew_bus(&self) {
        self.shared
            .bus_connections
            .lock()
            .send_all(&super::bus::BusCommand::Renew);
    }

    async fn look(
        &self,
        client: &WithOptions<Client>,
        breaker_use: BreakerUse,
        key: &Bytes,
        look: WatermarkRequest,
    ) -> Result<(Watermarks, u64), RemoteError> {
        const OPERATION: &str = "look at the marks";
        let advance = match look.advance {
            Advance::Nothing => String::new(),
            Advance::All => "all".to_owned(),
            Advance::Tag(tag) => tag_member(tag),
        };
        let (channel, message) = look
            .notice
            .map_or_else(Default::default, |notice| (notice.channel, notice.message));
        let mut args = vec![
            advance.into(),
            number(new_incarnation()),
            number(look.known.incarnation),
            number(look.known.current),
            number(crate::ttl::millis(MARKS_TTL)),
            channel.into(),
            message.into(),
        ];
        args.extend(look.tags.into_iter().map(|tag| tag_member(tag).into()));
        let keys = [key.clone(), tags_key(key).into()];
        let reply = self
            .run_on(
                (client, breaker_use),
                OPERATION,
                &scripts::MARKS,
                &keys,
                args,
            )
            .await?;
        match reply.convert::<Vec<u64>>().as_deref() {
            Ok(&[incarnation, current, all, latest]) => Ok((
                Watermarks {
                    incarnation,
                    current,
                    all,
                },
                latest,
            )),
            _ => {
                let cause = "unexpected reply";
                Err(RemoteError::because(RemoteKind::Refused, OPERATION, cause))
            }
        }
    }

    /// Runs a script on the node of its key. A node that does not know it (a new one, or after
    /// `SCRIPT FLUSH`) is sent the body, which also loads it there.
    async fn run(
        &self,
        operation: &'static str,
        script: &Script,
        key: &Bytes,
        args: impl AsRef<[Value]>,
    ) -> Result<Value, RemoteError> {
        let keys = std::slice::from_ref(key);
        self.run_on(
            (&self.shared.client(), BreakerUse::Checked),
            operation,
            script,
            keys,
            args,
        )
        .await
    }

    /// Runs a script on a record and its claim.
    async fn run_on_record_and_claim(
        &self,
        operation: &'static str,
        script: &Script,
        keys: &Keys,
        args: impl AsRef<[Value]>,
    ) -> Result<Value, RemoteError> {
        let keys = [keys.record.clone(), keys.claim.clone()];
        self.run_on(
            (&self.shared.client(), BreakerUse::Checked),
            operation,
            script,
            &keys,
            args,
        )
        .await
    }

    pub(super) async fn run_on(
        &self,
        (client, breaker_use): (&WithOptions<Client>, BreakerUse),
        operation: &'static str,
        script: &Script,
        keys: &[Bytes],
        args: impl AsRef<[Value]>,
    ) -> Result<Value, RemoteError> {
        let args = args.as_ref();
        // Of a custom command fred looks at no place but this: else it takes the first argument for the
        // key, and the server sends it on.
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

/// What fred answers for a command that would have to be sent on.
const REDIRECTED: &str = "Too many redirections";

/// How often a command is sent in a cluster whose layout has changed.
const MAX_ATTEMPTS: usize = 3;

impl Redis {
    /// Sends one command, and again where it belongs to another node and was therefore not carried
    /// out.
    ///
    /// Nothing is sent on by fred itself. It asks for the new layout, which is all that a slot that
    /// *has* moved needs (`-MOVED`). To a slot that is on its way (`-ASK`) it would send `ASKING` on a
    /// connection with other commands under way, take the first reply that comes for that of
    /// `ASKING`, and give all the others to the wrong callers, `OK` to the last: an invalidation that
    /// was refused would count as carried out.
    ///
    /// In a box: fred's future takes 5 KB, of every future that it is in.
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
            // An answer, as opposed to silence.
            let why = "the slot is on its way to another node";
            Err(FredError::new(ErrorKind::Cluster, why))
        })
    }
}

/// Whether the breaker has a say. Not in beats: the connection to the bus looks after itself, and what it
/// proves is true whatever becomes of commands. Nor in write-behind, which has nowhere else to go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum BreakerUse {
    Checked,
    Bypassed,
}

fn copy_bytes(bytes: &[u8]) -> Value {
    Value::Bytes(Bytes::copy_from_slice(bytes))
}

fn bytes(bytes: Vec<u8>) -> Value {
    Value::Bytes(bytes.into())
}

/// Where the marks of tags are, beside the marks.
pub(crate) fn tags_key(marks: &[u8]) -> Vec<u8> {
    [marks, b":tags"].concat()
}

/// A tag among the marks.
pub(crate) fn tag_member(tag: u64) -> String {
    format!("t{tag:016x}")
}

fn number(number: u64) -> Value {
    Value::from(number.to_string())
}
