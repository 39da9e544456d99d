use std::time::Duration;

use fred::types::config::Config;

use super::Redis;
use super::breaker::Breaker;
use crate::error::{BuildError, RemoteError};

/// Settings of a [`Redis`] handle: see [`Redis::builder`].
#[derive(Clone)]
#[must_use = "a builder does nothing until `connect` or `open` is called"]
pub struct RedisBuilder {
    url: String,
    pub(super) prefix: String,
    pub(super) timeout: Duration,
    pub(super) connect_timeout: Duration,
    pub(super) connections: usize,
    pub(super) breaker: Breaker,
}

impl RedisBuilder {
    pub(super) fn new(url: &str) -> Self {
        Self {
            url: url.to_owned(),
            prefix: "tidegate".to_owned(),
            timeout: Duration::from_millis(100),
            connect_timeout: Duration::from_secs(5),
            connections: 1,
            breaker: Breaker::new(),
        }
    }

    /// What every key begins with: `prefix:users:42`. Services that share a Redis take different
    /// ones. 1 to 100 bytes of printable ASCII.
    ///
    /// Default: `tidegate`.
    pub fn prefix(mut self, prefix: &str) -> Self {
        self.prefix = prefix.to_owned();
        self
    }

    /// How long to wait for the answer to a command. A `get` that finds Redis silent goes on
    /// without it after this long. From 1 ms to 60 s.
    ///
    /// Default: 100 milliseconds.
    pub fn timeout(mut self, timeout: Duration) -> Self {
        self.timeout = timeout;
        self
    }

    /// How long one attempt to connect may take. From 1 ms to 60 s.
    ///
    /// Default: 5 seconds.
    pub fn connect_timeout(mut self, timeout: Duration) -> Self {
        self.connect_timeout = timeout;
        self
    }

    /// Connections for commands, beside the one for the invalidation bus. Commands are pipelined,
    /// so one is enough until a core is busy with it. From 1 to 64.
    ///
    /// Default: 1.
    pub fn connections(mut self, connections: usize) -> Self {
        self.connections = connections;
        self
    }

    /// When to stop asking a server that does not answer, so that an outage costs nothing: while the
    /// breaker is open commands fail at once, loads go on (coalesced, bounded, without the shared tier),
    /// and the handle probes for itself.
    ///
    /// Default: [`Breaker::new`], which opens when at least 3 commands and half of all got no answer
    /// within 2 seconds, or 9 in a row.
    pub fn breaker(mut self, breaker: Breaker) -> Self {
        self.breaker = breaker;
        self
    }

    /// Connects now.
    ///
    /// # Errors
    ///
    /// [`RemoteError`] when the server cannot be reached or refuses the credentials, or when a
    /// setting is out of range (its source is the [`BuildError`]).
    pub async fn connect(self) -> Result<Redis, RemoteError> {
        Redis::connect_with(self).await
    }

    /// Makes the handle without I/O; it connects in the background from its first use on, and for
    /// ever again when the connection is lost.
    ///
    /// # Errors
    ///
    /// [`BuildError`] when the URL or a setting makes no sense.
    pub fn open(self) -> Result<Redis, BuildError> {
        let config = self.check()?;
        Redis::from_config(&self, config, false)
    }

    pub(super) fn check(&self) -> Result<Config, BuildError> {
        let out_of_range = |setter, value: String, allowed| {
            Err(BuildError::OutOfRange {
                setter,
                value,
                allowed,
            })
        };
        let fits = (1..=100).contains(&self.prefix.len());
        if !fits || !self.prefix.bytes().all(|byte| byte.is_ascii_graphic()) {
            let allowed = "1 to 100 bytes of printable ASCII";
            return out_of_range("prefix", format!("{:?}", self.prefix), allowed);
        }
        let braces: String = self.prefix.matches(['{', '}']).collect();
        if !(braces.is_empty() || (braces == "{}" && !self.prefix.contains("{}"))) {
            let allowed = "braces only around one hash tag: they choose the node of a cluster";
            return out_of_range("prefix", format!("{:?}", self.prefix), allowed);
        }
        let sensible = Duration::from_millis(1)..=Duration::from_secs(60);
        for (setter, timeout) in [
            ("timeout", self.timeout),
            ("connect_timeout", self.connect_timeout),
        ] {
            if !sensible.contains(&timeout) {
                return out_of_range(setter, format!("{timeout:?}"), "1 ms to 60 s");
            }
        }
        if !(1..=64).contains(&self.connections) {
            return out_of_range("connections", self.connections.to_string(), "1 to 64");
        }
        self.breaker.check()?;
        Config::from_url(&self.url).map_err(|error| BuildError::Url {
            reason: error.details().to_owned(),
        })
    }
}

impl std::fmt::Debug for RedisBuilder {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        // Not the URL: it may hold a password.
        f.debug_struct("RedisBuilder")
            .field("prefix", &self.prefix)
            .field("timeout", &self.timeout)
            .field("connect_timeout", &self.connect_timeout)
            .field("connections", &self.connections)
            .field("breaker", &self.breaker)
            .finish_non_exhaustive()
    }
}
