//! The key-value store of the textbook strategies: Redis, or a small store inside this process.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tidegate::BoxError;
use tidegate::fred::clients::Client;
use tidegate::fred::interfaces::ClientLike;
use tidegate::fred::types::{ClusterHash, CustomCommand, FromValue, Value};
use tokio::time::Instant;

/// The least time of a command to the embedded store, as to a server nearby. Timers count whole
/// milliseconds, so a command takes one or two.
const ROUND_TRIP: Duration = Duration::from_millis(1);

/// The client of one process.
pub(crate) enum Kv {
    Embedded(Arc<Embedded>),
    Redis(Client),
}

impl Kv {
    pub(crate) async fn get(&self, key: &str) -> Result<Option<Vec<u8>>, BoxError> {
        match self {
            Self::Embedded(store) => store.get(key).await,
            Self::Redis(client) => redis(client, "GET", [key.into()]).await,
        }
    }

    /// `SET key value EX seconds`.
    pub(crate) async fn set_ex(
        &self,
        key: &str,
        value: Vec<u8>,
        ttl: Duration,
    ) -> Result<(), BoxError> {
        match self {
            Self::Embedded(store) => store.set(key, value, ttl, false).await.map(drop),
            Self::Redis(client) => {
                let args = [
                    key.into(),
                    bytes(value),
                    "EX".into(),
                    ttl.as_secs().to_string().into(),
                ];
                redis(client, "SET", args).await
            }
        }
    }

    /// `SET key value NX PX milliseconds`. Returns whether the key was absent and the value was
    /// stored.
    pub(crate) async fn set_nx_px(
        &self,
        key: &str,
        value: Vec<u8>,
        ttl: Duration,
    ) -> Result<bool, BoxError> {
        match self {
            Self::Embedded(store) => store.set(key, value, ttl, true).await,
            Self::Redis(client) => {
                let ms = ttl.as_millis().to_string();
                let args = [
                    key.into(),
                    bytes(value),
                    "NX".into(),
                    "PX".into(),
                    ms.into(),
                ];
                let stored: Option<String> = redis(client, "SET", args).await?;
                Ok(stored.is_some())
            }
        }
    }

    pub(crate) async fn del(&self, key: &str) -> Result<(), BoxError> {
        match self {
            Self::Embedded(store) => store.del(key).await,
            Self::Redis(client) => redis(client, "DEL", [key.into()]).await,
        }
    }
}

async fn redis<T, const N: usize>(
    client: &Client,
    name: &'static str,
    args: [Value; N],
) -> Result<T, BoxError>
where
    T: FromValue,
{
    let command = CustomCommand::new_static(name, ClusterHash::FirstKey, false);
    client
        .custom(command, args.to_vec())
        .await
        .map_err(BoxError::new)
}

fn bytes(value: Vec<u8>) -> Value {
    Value::Bytes(value.into())
}

/// A key-value store for all simulated processes.
#[derive(Default)]
pub(crate) struct Embedded {
    entries: Mutex<HashMap<String, (Vec<u8>, Instant)>>,
    commands: AtomicU64,
}

impl Embedded {
    /// Commands so far.
    pub(crate) fn commands(&self) -> u64 {
        self.commands.load(Ordering::Relaxed)
    }

    async fn get(&self, key: &str) -> Result<Option<Vec<u8>>, BoxError> {
        self.command(|entries| entries.get(key).map(|(value, _)| value.clone()))
            .await
    }

    async fn set(
        &self,
        key: &str,
        value: Vec<u8>,
        ttl: Duration,
        if_absent: bool,
    ) -> Result<bool, BoxError> {
        self.command(|entries| {
            if if_absent && entries.contains_key(key) {
                return false;
            }
            entries.insert(key.to_owned(), (value, Instant::now() + ttl));
            true
        })
        .await
    }

    async fn del(&self, key: &str) -> Result<(), BoxError> {
        self.command(|entries| entries.remove(key)).await.map(drop)
    }

    /// Carries out one command in the middle of its round trip.
    async fn command<T>(
        &self,
        what: impl FnOnce(&mut HashMap<String, (Vec<u8>, Instant)>) -> T,
    ) -> Result<T, BoxError> {
        self.commands.fetch_add(1, Ordering::Relaxed);
        let sent = Instant::now();
        let result = {
            let mut entries = self.entries.lock().unwrap_or_else(PoisonError::into_inner);
            entries.retain(|_, (_, until)| *until > sent);
            what(&mut entries)
        };
        tokio::time::sleep_until(sent + ROUND_TRIP).await;
        Ok(result)
    }
}
