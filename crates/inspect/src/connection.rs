//! Reading from Redis. Nothing here writes.

use std::collections::HashMap;

use futures_util::future::join_all;
use tidegate::Redis;
use tidegate::fred::clients::Client;
use tidegate::fred::error::Error as FredError;
use tidegate::fred::interfaces::{ClientLike as _, ClusterInterface as _, FredResult};
use tidegate::fred::types::config::{Options, Server};
use tidegate::fred::types::{ClusterHash, CustomCommand, Value};
use tidegate::inspect::{self, Marks, Names, Record, Unreadable};

use crate::args::Target;
use crate::error::Failure;

/// Keys that are asked about at once.
const BATCH: u64 = 500;

pub(crate) struct Connection {
    pub(crate) client: Client,
    options: Options,
}

/// What lies under a key.
#[derive(Debug)]
pub(crate) struct Held {
    pub(crate) record: Result<Record, Unreadable>,
    /// Bytes of all of it.
    pub(crate) bytes: usize,
    /// `None`: it has no expiry, so nobody of us has written it.
    pub(crate) ttl_ms: Option<u64>,
}

impl Connection {
    pub(crate) async fn open(target: &Target) -> Result<Self, Failure> {
        let handle = Redis::builder(&target.url)
            .prefix(&target.prefix)
            .connect_timeout(target.timeout())
            .open()?;
        let client = inspect::client(&handle);
        let connecting = tokio::time::timeout(target.timeout() * 2, client.init());
        let Ok(connected) = connecting.await else {
            return Err(Failure::Redis("Redis does not answer".to_owned()));
        };
        let options = Options {
            timeout: Some(target.timeout()),
            fail_fast: true,
            ..Options::default()
        };
        connected?;
        Ok(Self { client, options })
    }

    pub(crate) fn is_clustered(&self) -> bool {
        self.client.client_config().server.is_clustered()
    }

    async fn ask(&self, name: &'static str, args: &[&str]) -> FredResult<Value> {
        let command = CustomCommand::new_static(name, ClusterHash::FirstKey, false);
        let args: Vec<Value> = args.iter().map(|arg| Value::from(*arg)).collect();
        let client = self.client.with_options(&self.options);
        // It is large, and many are awaited at once.
        Box::pin(client.custom(command, args)).await
    }

    /// The server's clock, in milliseconds since the epoch.
    pub(crate) async fn now_ms(&self) -> Result<u64, Failure> {
        let command = CustomCommand::new_static("TIME", ClusterHash::Random, false);
        let client = self.client.with_options(&self.options);
        let time: Vec<u64> = client.custom(command, Vec::<Value>::new()).await?;
        match time[..] {
            [seconds, micros] => Ok(seconds * 1_000 + micros / 1_000),
            _ => Err(Failure::Redis("Redis: no time".to_owned())),
        }
    }

    /// Reads a record as a whole.
    pub(crate) async fn read(&self, key: &str) -> Result<Option<Held>, Failure> {
        let bytes = match self.ask("GET", &[key]).await {
            Ok(Value::Null) => return Ok(None),
            Ok(reply) => reply.into_owned_bytes().unwrap_or_default(),
            Err(error) if is_of_another_type(&error) => Vec::new(),
            Err(error) => return Err(error.into()),
        };
        let ttl = self.ask("PTTL", &[key]).await?;
        Ok(Some(Held {
            record: Record::parse(key.as_bytes(), &bytes),
            bytes: bytes.len(),
            ttl_ms: ttl.as_u64(),
        }))
    }

    /// Reads the beginning of a record, at little cost to the server.
    async fn peek(&self, key: &str) -> Result<Option<Held>, Failure> {
        let end = (Record::START - 1).to_string();
        let (range, key) = ([key, "0", &end], [key]);
        let (start, len, ttl) = futures_util::future::join3(
            self.ask("GETRANGE", &range),
            self.ask("STRLEN", &key),
            self.ask("PTTL", &key),
        )
        .await;
        let [key] = key;
        let start = match start {
            Ok(reply) => reply.into_owned_bytes().unwrap_or_default(),
            Err(error) if is_of_another_type(&error) => return Ok(None),
            Err(error) => return Err(error.into()),
        };
        let len = len?.as_usize().unwrap_or_default();
        // It may have ended since it was found.
        Ok((len > 0).then_some(Held {
            record: Record::peek(key.as_bytes(), &start, len),
            bytes: len,
            ttl_ms: ttl?.as_u64(),
        }))
    }

    pub(crate) async fn marks(&self, names: &Names) -> Result<Option<Marks>, Failure> {
        let reply = match self.ask("GET", &[&names.marks()]).await {
            Ok(reply) => reply,
            Err(error) if is_of_another_type(&error) => return Ok(None),
            Err(error) => return Err(error.into()),
        };
        Ok(reply
            .into_owned_bytes()
            .and_then(|bytes| Marks::parse(&bytes)))
    }

    /// The marks at which tags were last invalidated, by their hashes.
    pub(crate) async fn tag_marks(
        &self,
        names: &Names,
        tags: impl IntoIterator<Item = u64>,
    ) -> Result<HashMap<u64, u64>, Failure> {
        let key = names.tags();
        let ask = |tag: u64| {
            let (member, key) = (inspect::tag_member(tag), key.as_str());
            async move {
                let reply = self.ask("ZSCORE", &[key, &member]).await?;
                Ok::<_, Failure>((tag, mark(&reply)))
            }
        };
        let answers = join_all(tags.into_iter().map(ask)).await;
        answers
            .into_iter()
            .filter_map(|answer| match answer {
                Ok((tag, mark)) => mark.map(|mark| Ok((tag, mark))),
                Err(error) => Some(Err(error)),
            })
            .collect()
    }

    pub(crate) async fn tags_known(&self, names: &Names) -> Result<u64, Failure> {
        // Beside the tags there is the era.
        let known = self.ask("ZCARD", &[&names.tags()]).await?;
        Ok(known.as_u64().unwrap_or_default().saturating_sub(1))
    }

    pub(crate) async fn ttl_ms(&self, key: &str) -> Result<Option<u64>, Failure> {
        Ok(self.ask("PTTL", &[key]).await?.as_u64())
    }

    /// How many processes listen to a channel; `None` in a cluster, where no node knows.
    pub(crate) async fn listeners(&self, names: &Names) -> Result<Option<u64>, Failure> {
        if self.is_clustered() {
            return Ok(None);
        }
        let command = CustomCommand::new_static("PUBSUB", ClusterHash::Random, false);
        let args = vec![Value::from("NUMSUB"), Value::from(names.bus())];
        let client = self.client.with_options(&self.options);
        let reply: Value = client.custom(command, args).await?;
        let count = reply.into_array().into_iter().nth(1);
        Ok(count.and_then(|count| count.as_u64()))
    }

    /// Looks at the keys whose names begin like this, at `most` of them; `keep` says which of them are
    /// read. Answers how many were looked at, and whether there are more.
    pub(crate) async fn scan<T>(
        &self,
        begin: &str,
        most: u64,
        keep: impl Fn(&str) -> Option<T>,
        mut take: impl FnMut(T, Held),
    ) -> Result<(u64, bool), Failure> {
        let pattern = globbed(begin) + "*";
        let mut seen = 0;
        for node in self.nodes() {
            let mut cursor = "0".to_owned();
            loop {
                let (next, keys) = self.scan_once(node.as_ref(), &cursor, &pattern).await?;
                seen += keys.len() as u64;
                let kept = keys.iter().filter_map(|key| Some((keep(key)?, key)));
                let (kept, keys): (Vec<T>, Vec<_>) = kept.unzip();
                let held = join_all(keys.into_iter().map(|key| self.peek(key))).await;
                for (kept, held) in kept.into_iter().zip(held) {
                    if let Some(held) = held? {
                        take(kept, held);
                    }
                }
                cursor = next;
                if cursor == "0" {
                    break;
                }
                if most > 0 && seen >= most {
                    return Ok((seen, true));
                }
            }
        }
        Ok((seen, false))
    }

    /// The nodes to ask one after the other: `None` for the only one.
    fn nodes(&self) -> Vec<Option<Server>> {
        match self.client.cached_cluster_state() {
            Some(state) if self.is_clustered() => {
                let nodes = state.unique_primary_nodes();
                nodes.into_iter().map(Some).collect()
            }
            _ => vec![None],
        }
    }

    async fn scan_once(
        &self,
        node: Option<&Server>,
        cursor: &str,
        pattern: &str,
    ) -> Result<(String, Vec<String>), Failure> {
        let command = CustomCommand::new_static("SCAN", ClusterHash::Random, false);
        let args = [cursor, "MATCH", pattern, "COUNT", &BATCH.to_string()];
        let args: Vec<Value> = args.iter().map(|arg| Value::from(*arg)).collect();
        let mut options = self.options.clone();
        options.cluster_node = node.cloned();
        let client = self.client.with_options(&options);
        let (cursor, keys): (String, Vec<Value>) = client.custom(command, args).await?;
        // Ours are ASCII.
        let keys = keys.into_iter().filter_map(Value::into_string);
        Ok((cursor, keys.collect()))
    }
}

fn is_of_another_type(error: &FredError) -> bool {
    error.details().starts_with("WRONGTYPE")
}

/// A score, which is a whole number here, as whichever protocol has it.
fn mark(reply: &Value) -> Option<u64> {
    let score = reply.as_f64()?;
    (score >= 0.0).then_some(score as u64)
}

/// A text as a pattern that it alone matches.
pub(crate) fn globbed(text: &str) -> String {
    let mut pattern = String::with_capacity(text.len());
    for c in text.chars() {
        if matches!(c, '*' | '?' | '[' | ']' | '\\' | '^' | '-') {
            pattern.push('\\');
        }
        pattern.push(c);
    }
    pattern
}

/// The time that is left of what began then and lasts so long.
pub(crate) fn left_ms(began_ms: u64, lasts_ms: u64, now_ms: u64) -> u64 {
    began_ms.saturating_add(lasts_ms).saturating_sub(now_ms)
}
