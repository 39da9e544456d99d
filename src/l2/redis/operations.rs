//! The operations of the protocol on Redis, as commands and scripts.

use std::collections::HashMap;
use std::sync::{Arc, Weak};
use std::time::Duration;

use bytes::Bytes;
use fred::clients::{Client, WithOptions};
use fred::interfaces::ClientLike;
use fred::types::{ClusterHash, CustomCommand, Value};
use fred::util::redis_keyslot;
use futures_util::future::join_all;

use super::bus_connections::{BusCommand, Subscriber};
use super::commands::{BreakerUse, bytes, copy_bytes, number};
use super::errors::{remote_error, unexpected_reply};
use super::handle::Redis;
use super::scripts;
use crate::error::RemoteError;
use crate::l2::listener::Listener;
use crate::l2::operations::TierOperations;
use crate::protocol::record::Watermarks;
use crate::protocol::record::{Expiry, Head};
use crate::protocol::request::{
    Acquired, Advance, Keys, Publication, RecordRead, RefreshWrite, Replacing, WATERMARKS_TTL,
    WatermarkRequest, new_incarnation, with_watermarks,
};

/// The largest number of keys of one `MGET`: a longer reply keeps the server from other clients for
/// too long.
const MAX_MGET_KEYS: usize = 1_000;

impl TierOperations for Redis {
    fn prefix(&self) -> &str {
        &self.shared.prefix
    }

    fn is_direct(&self) -> bool {
        false
    }

    fn timeout(&self) -> Duration {
        self.shared.timeout
    }

    fn denied(&self) -> Option<Arc<str>> {
        self.shared.acl.denied()
    }

    fn now_ms(&self) -> Option<u64> {
        self.shared.clock.now_ms()
    }

    fn listen(&self, channel: &Bytes, listener: Weak<dyn Listener>) {
        self.start();
        let subscriber = Subscriber {
            listener,
            up: false,
        };
        self.shared
            .listeners
            .lock()
            .entry(channel.clone())
            .or_default()
            .push(subscriber);
        let command = BusCommand::Subscribe(channel.clone());
        self.shared.bus_connections.lock().send_all(&command);
    }

    fn unlisten(&self, channel: &Bytes) {
        let mut listeners = self.shared.listeners.lock();
        if let Some(here) = listeners.get_mut(channel) {
            here.retain(|subscriber| subscriber.listener.strong_count() > 0);
            if here.is_empty() {
                listeners.remove(channel);
                let command = BusCommand::Unsubscribe(channel.clone());
                self.shared.bus_connections.lock().send_all(&command);
            }
        }
    }

    fn get(&self, key: &Bytes) -> impl Future<Output = Result<Option<Bytes>, RemoteError>> + Send {
        self.get_one(key)
    }

    async fn get_many(&self, keys: &[Bytes]) -> (Vec<RecordRead>, Result<(), RemoteError>) {
        self.ensure_started().await;
        let groups = self.group_by_command(keys);
        let replies = groups.iter().map(|group| {
            let names = group.iter().map(|index| keys[*index].clone()).collect();
            self.mget(names)
        });
        // All commands are sent before the first is answered.
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

    async fn acquire(
        &self,
        keys: &Keys,
        lease: Vec<u8>,
        ttl_ms: u64,
        over: Replacing<'_>,
        known: Watermarks,
    ) -> Result<Acquired, RemoteError> {
        let (over, seen) = match over {
            Replacing::Nothing => ("0", &[][..]),
            Replacing::Useless(seen) => ("1", seen),
            Replacing::Entry(seen) => ("2", seen),
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
        answer.ok_or_else(|| unexpected_reply("acquire a lease"))
    }

    async fn replace(
        &self,
        key: &Bytes,
        head: Head,
        record: Vec<u8>,
        ttl_ms: u64,
        wake: Publication,
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

    async fn refill(
        &self,
        keys: &Keys,
        seen: &[u8],
        head: Head,
        refill: RefreshWrite,
        ttl_ms: u64,
        wake: Publication,
    ) -> Result<bool, RemoteError> {
        let (new, header) = match refill {
            RefreshWrite::Record(record) => (record, "0"),
            RefreshWrite::Header(header) => (header, "1"),
            RefreshWrite::Nothing => (Vec::new(), "0"),
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

    async fn renew(
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
        self.run_checked("renew a lease", &scripts::RENEW, &keys, args)
            .await
            .map(|reply| reply.as_u64() == Some(1))
    }

    async fn release(
        &self,
        key: &Bytes,
        head: Head,
        wake: Publication,
    ) -> Result<bool, RemoteError> {
        let args = [copy_bytes(&head), wake.channel.into(), wake.message.into()];
        self.run("release a lease", &scripts::RELEASE, key, args)
            .await
            .map(|reply| reply.as_u64() == Some(1))
    }

    async fn invalidate(
        &self,
        keys: &Keys,
        hold_off: Option<(Vec<u8>, u64)>,
        publication: Publication,
    ) -> Result<(), RemoteError> {
        self.ensure_started().await;
        let mut args = vec![publication.channel.into(), publication.message.into()];
        if let Some((record, ms)) = hold_off {
            args.extend([bytes(record), number(ms)]);
        }
        self.run_on_record_and_claim("invalidate", &scripts::INVALIDATE, keys, args)
            .await
            .map(drop)
    }

    async fn expire(
        &self,
        keys: &Keys,
        state: Expiry,
        publication: Publication,
    ) -> Result<(), RemoteError> {
        self.ensure_started().await;
        let args = [
            copy_bytes(&state),
            publication.channel.into(),
            publication.message.into(),
        ];
        self.run_on_record_and_claim("expire", &scripts::EXPIRE, keys, args)
            .await
            .map(drop)
    }

    async fn insert(
        &self,
        keys: &Keys,
        record: Vec<u8>,
        versioned: bool,
        ttl_ms: u64,
        publication: Publication,
    ) -> Result<bool, RemoteError> {
        let args = [
            bytes(record),
            number(ttl_ms),
            publication.channel.into(),
            publication.message.into(),
            number(u64::from(versioned)),
        ];
        self.run_on_record_and_claim("insert", &scripts::INSERT, keys, args)
            .await
            .map(|reply| reply.as_u64() == Some(1))
    }

    async fn marks(
        &self,
        key: &Bytes,
        look: WatermarkRequest,
    ) -> Result<(Watermarks, u64), RemoteError> {
        self.ensure_started().await;
        self.query_marks(&self.shared.client(), BreakerUse::Checked, key, look)
            .await
    }

    async fn beat(
        &self,
        key: &Bytes,
        known: Watermarks,
        message: Vec<u8>,
    ) -> Result<(), RemoteError> {
        let mut look = WatermarkRequest {
            advance: Advance::Nothing,
            known,
            tags: Vec::new(),
            publication: None,
        };
        if self.shared.clustered {
            // The marks are read before the heartbeat is sent on all connections. When it has come
            // back on each, every message that is older than these marks was received.
            let (watermarks, _) = self
                .query_marks(&self.shared.client(), BreakerUse::Bypassed, key, look)
                .await?;
            let message = with_watermarks(message, watermarks);
            self.shared.send_heartbeat(message.into()).await;
            return Ok(());
        }
        let connection = self.shared.bus_connections.lock().only();
        let Some((client, channel)) = connection else {
            return Ok(());
        };
        look.publication = Some(Publication {
            channel,
            message: message.into(),
        });
        let client = client.with_options(&self.shared.options);
        self.query_marks(&client, BreakerUse::Bypassed, key, look)
            .await
            .map(drop)
    }

    fn renew_bus(&self) {
        self.shared
            .bus_connections
            .lock()
            .send_all(&BusCommand::Renew);
    }
}

impl Redis {
    /// Groups the indexes of keys that one command can ask for.
    fn group_by_command(&self, keys: &[Bytes]) -> Vec<Vec<usize>> {
        let all: Vec<usize> = (0..keys.len()).collect();
        if self.shared.mget.is_mget_denied() {
            return all.into_iter().map(|index| vec![index]).collect();
        }
        if !self.shared.clustered {
            return all.chunks(MAX_MGET_KEYS).map(<[usize]>::to_vec).collect();
        }
        // One group for each slot. A key that is alone in its slot is read by a GET.
        let mut slots: HashMap<u16, Vec<usize>> = HashMap::new();
        for index in all {
            let slot = redis_keyslot(&keys[index]);
            slots.entry(slot).or_default().push(index);
        }
        slots.into_values().collect()
    }

    async fn mget(&self, keys: Vec<Bytes>) -> Result<Vec<Option<Bytes>>, RemoteError> {
        if let [key] = keys.as_slice() {
            return self.get_one(key).await.map(|record| vec![record]);
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
            return Err(unexpected_reply("read"));
        }
        Ok(read)
    }

    async fn query_marks(
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
            .publication
            .map_or_else(Default::default, |publication| {
                (publication.channel, publication.message)
            });
        let mut args = vec![
            advance.into(),
            number(new_incarnation()),
            number(look.known.incarnation),
            number(look.known.current),
            number(crate::ttl::millis(WATERMARKS_TTL)),
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
            _ => Err(unexpected_reply(OPERATION)),
        }
    }
}

/// The key of the marks of tags, beside the key of the marks.
pub(crate) fn tags_key(marks: &[u8]) -> Vec<u8> {
    [marks, b":tags"].concat()
}

/// A tag as a member of the set under that key.
pub(crate) fn tag_member(tag: u64) -> String {
    format!("t{tag:016x}")
}
