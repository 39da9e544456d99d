//! The connection to Redis. Every command here only reads.

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

/// The keys of one step of a scan, whose records are read concurrently.
const BATCH: u64 = 500;

pub(crate) struct Connection {
    pub(crate) client: Client,
    options: Options,
}

/// The stored content of a key.
#[derive(Debug)]
pub(crate) struct StoredRecord {
    pub(crate) record: Result<Record, Unreadable>,
    /// The size of the whole record.
    pub(crate) bytes: usize,
    /// `None`: the key has no expiry, so tidegate did not write it.
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

    async fn send(&self, name: &'static str, args: &[&str]) -> FredResult<Value> {
        let command = CustomCommand::new_static(name, ClusterHash::FirstKey, false);
        let args: Vec<Value> = args.iter().map(|arg| Value::from(*arg)).collect();
        let client = self.client.with_options(&self.options);
        // Boxed, because the future is large and many of them are awaited at once.
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

    /// Reads a whole record.
    pub(crate) async fn read(&self, key: &str) -> Result<Option<StoredRecord>, Failure> {
        let bytes = match self.send("GET", &[key]).await {
            Ok(Value::Null) => return Ok(None),
            Ok(reply) => reply.into_owned_bytes().unwrap_or_default(),
            Err(error) if is_wrong_type(&error) => Vec::new(),
            Err(error) => return Err(error.into()),
        };
        let ttl = self.send("PTTL", &[key]).await?;
        Ok(Some(StoredRecord {
            record: Record::parse(key.as_bytes(), &bytes),
            bytes: bytes.len(),
            ttl_ms: ttl.as_u64(),
        }))
    }

    /// Reads only the beginning of a record, which costs the server little.
    async fn peek(&self, key: &str) -> Result<Option<StoredRecord>, Failure> {
        let end = (Record::START - 1).to_string();
        let (range, key) = ([key, "0", &end], [key]);
        let (start, len, ttl) = futures_util::future::join3(
            self.send("GETRANGE", &range),
            self.send("STRLEN", &key),
            self.send("PTTL", &key),
        )
        .await;
        let [key] = key;
        let start = match start {
            Ok(reply) => reply.into_owned_bytes().unwrap_or_default(),
            Err(error) if is_wrong_type(&error) => return Ok(None),
            Err(error) => return Err(error.into()),
        };
        let len = len?.as_usize().unwrap_or_default();
        // The key may have expired since the scan found it.
        Ok((len > 0).then_some(StoredRecord {
            record: Record::peek(key.as_bytes(), &start, len),
            bytes: len,
            ttl_ms: ttl?.as_u64(),
        }))
    }

    pub(crate) async fn marks(&self, names: &Names) -> Result<Option<Marks>, Failure> {
        let reply = match self.send("GET", &[&names.marks()]).await {
            Ok(reply) => reply,
            Err(error) if is_wrong_type(&error) => return Ok(None),
            Err(error) => return Err(error.into()),
        };
        Ok(reply
            .into_owned_bytes()
            .and_then(|bytes| Marks::parse(&bytes)))
    }

    /// The watermarks at which tags were last invalidated, by the hash of the tag.
    pub(crate) async fn tag_marks(
        &self,
        names: &Names,
        tags: impl IntoIterator<Item = u64>,
    ) -> Result<HashMap<u64, u64>, Failure> {
        let key = names.tags();
        let look_up = |tag: u64| {
            let (member, key) = (inspect::tag_member(tag), key.as_str());
            async move {
                let reply = self.send("ZSCORE", &[key, &member]).await?;
                Ok::<_, Failure>((tag, parse_score(&reply)))
            }
        };
        let answers = join_all(tags.into_iter().map(look_up)).await;
        answers
            .into_iter()
            .filter_map(|answer| match answer {
                Ok((tag, mark)) => mark.map(|mark| Ok((tag, mark))),
                Err(error) => Some(Err(error)),
            })
            .collect()
    }

    pub(crate) async fn tags_known(&self, names: &Names) -> Result<u64, Failure> {
        // One member of the sorted set is not a tag: it holds the incarnation.
        let known = self.send("ZCARD", &[&names.tags()]).await?;
        Ok(known.as_u64().unwrap_or_default().saturating_sub(1))
    }

    pub(crate) async fn ttl_ms(&self, key: &str) -> Result<Option<u64>, Failure> {
        Ok(self.send("PTTL", &[key]).await?.as_u64())
    }

    /// The number of processes that listen to a cache's channel. `None` in a cluster, where no node
    /// knows them all.
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

    /// Scans the keys that begin with `prefix`, up to about `limit` of them (0: all). Reads the
    /// beginning of the records that `select` accepts, and passes them to `visit`. Returns how many
    /// keys were scanned, and whether there may be more.
    pub(crate) async fn scan<T>(
        &self,
        prefix: &str,
        limit: u64,
        select: impl Fn(&str) -> Option<T>,
        mut visit: impl FnMut(T, StoredRecord),
    ) -> Result<(u64, bool), Failure> {
        let pattern = escape_glob(prefix) + "*";
        let mut scanned = 0;
        for node in self.nodes() {
            let mut cursor = "0".to_owned();
            loop {
                let (next, keys) = self.scan_once(node.as_ref(), &cursor, &pattern).await?;
                scanned += keys.len() as u64;
                let selected = keys.iter().filter_map(|key| Some((select(key)?, key)));
                let (selected, keys): (Vec<T>, Vec<_>) = selected.unzip();
                let records = join_all(keys.into_iter().map(|key| self.peek(key))).await;
                for (selected, stored) in selected.into_iter().zip(records) {
                    if let Some(stored) = stored? {
                        visit(selected, stored);
                    }
                }
                cursor = next;
                if cursor == "0" {
                    break;
                }
                if limit > 0 && scanned >= limit {
                    return Ok((scanned, true));
                }
            }
        }
        Ok((scanned, false))
    }

    /// The nodes to scan one after the other. `None` stands for the only one.
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
        // The keys of tidegate are ASCII.
        let keys = keys.into_iter().filter_map(Value::into_string);
        Ok((cursor, keys.collect()))
    }
}

fn is_wrong_type(error: &FredError) -> bool {
    error.details().starts_with("WRONGTYPE")
}

/// The score of a sorted set, in the form of RESP2 or RESP3. Here scores are whole numbers.
fn parse_score(reply: &Value) -> Option<u64> {
    let score = reply.as_f64()?;
    (score >= 0.0).then_some(score as u64)
}

/// Escapes a text for a glob pattern, so that it matches only itself.
pub(crate) fn escape_glob(text: &str) -> String {
    let mut pattern = String::with_capacity(text.len());
    for c in text.chars() {
        if matches!(c, '*' | '?' | '[' | ']' | '\\' | '^' | '-') {
            pattern.push('\\');
        }
        pattern.push(c);
    }
    pattern
}

/// The rest of a time span that began at `began_ms` and lasts `lasts_ms`.
pub(crate) fn left_ms(began_ms: u64, lasts_ms: u64, now_ms: u64) -> u64 {
    began_ms.saturating_add(lasts_ms).saturating_sub(now_ms)
}
