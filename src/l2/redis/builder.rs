//! The settings of a handle, and how they are checked.

use std::time::Duration;

use fred::types::config::Config;

use super::breaker::Breaker;
use super::credentials;
#[cfg(feature = "tls")]
use super::tls::Tls;
use super::url::{Address, Topology};
use crate::error::{BuildError, RemoteError, RemoteKind};

/// Settings of a [`Redis`](crate::Redis) handle: see [`Redis::builder`](crate::Redis::builder).
///
/// ```no_run
/// use std::time::Duration;
/// use tidegate::{Breaker, Redis};
///
/// # async fn run() -> Result<(), Box<dyn std::error::Error>> {
/// let redis = Redis::builder("redis://cache.internal:6379")
///     .user("shop", &std::env::var("REDIS_PASSWORD")?)
///     .prefix("shop") // keys read shop:users:42
///     .timeout(Duration::from_millis(50))
///     .breaker(Breaker::new().longest_pause(Duration::from_secs(1)))
///     .connect()
///     .await?;
/// # Ok(())
/// # }
/// ```
#[derive(Clone)]
#[must_use = "a builder does nothing until `connect` or `open` is called"]
pub struct RedisBuilder {
    url: String,
    user: Option<(String, String)>,
    #[cfg(feature = "tls")]
    tls: Option<Tls>,
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
            user: None,
            #[cfg(feature = "tls")]
            tls: None,
            prefix: "tidegate".to_owned(),
            timeout: Duration::from_millis(100),
            connect_timeout: Duration::from_secs(5),
            connections: 1,
            breaker: Breaker::new(),
        }
    }

    /// The beginning of every key: `prefix:users:42`. Services that share a Redis take different
    /// prefixes. 1 to 100 bytes of printable ASCII.
    ///
    /// Default: `tidegate`.
    pub fn prefix(mut self, prefix: &str) -> Self {
        self.prefix = prefix.to_owned();
        self
    }

    /// The user in Redis and its password. The URL then names neither. Nothing is encoded. For a
    /// server that has a password and no users, the user is `default`. The permissions that the
    /// user needs are in [`guide::operations`](crate::guide::operations).
    ///
    /// Default: those of the URL, or none.
    pub fn user(mut self, name: &str, password: &str) -> Self {
        self.user = Some((name.to_owned(), password.to_owned()));
        self
    }

    /// Which certificates to trust and which one to show, for a URL that begins with `rediss`.
    ///
    /// Default: [`Tls::new`], which trusts the CAs of the system.
    #[cfg(feature = "tls")]
    #[cfg_attr(docsrs, doc(cfg(feature = "tls")))]
    pub fn tls(mut self, tls: Tls) -> Self {
        self.tls = Some(tls);
        self
    }

    /// How long to wait for the answer to a command. If Redis is silent, a `get` goes on without it
    /// after this time. From 1 ms to 60 s.
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

    /// When to stop sending commands to a server that does not answer, so that an outage costs no
    /// timeouts. While the breaker is open, commands fail at once, and the handle probes the
    /// server. Loads go on, coalesced and bounded, without the shared tier.
    ///
    /// Default: [`Breaker::new`], which opens if within 2 seconds at least 3 commands, and half of
    /// all, got no answer; or if 9 in a row got none.
    pub fn breaker(mut self, breaker: Breaker) -> Self {
        self.breaker = breaker;
        self
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
        let mut address = Address::parse(&self.url)?;
        self.add_user(&mut address.config)?;
        check_sentinels(&address)?;
        self.add_tls(&mut address)?;
        Ok(address.config)
    }

    /// Checks on a thread that may block, because certificates may be read.
    pub(super) async fn check_blocking(
        self,
    ) -> Result<(Self, Result<Config, BuildError>), RemoteError> {
        let check = move || {
            let config = self.check();
            (self, config)
        };
        let checked = tokio::task::spawn_blocking(check).await;
        checked.map_err(|error| RemoteError::because(RemoteKind::Unreachable, "connect", error))
    }

    fn add_user(&self, config: &mut Config) -> Result<(), BuildError> {
        let Some((name, password)) = &self.user else {
            return Ok(());
        };
        if config.username.is_some() || config.password.is_some() {
            return Err(BuildError::Clash {
                setter: "user",
                value: format!("{name:?}, …"),
                other: "builder",
                other_value: "a URL with credentials".to_owned(),
                why: "one of the two says who to be",
            });
        }
        if name.is_empty() || password.is_empty() {
            return Err(BuildError::OutOfRange {
                setter: "user",
                value: format!("{name:?}, …"),
                allowed: "a name (`default` where there are no users) and a password, neither empty",
            });
        }
        config.username = Some(name.clone());
        config.password = Some(password.clone());
        Ok(())
    }

    #[cfg(feature = "tls")]
    fn add_tls(&self, address: &mut Address) -> Result<(), BuildError> {
        if address.tls {
            let tls = self.tls.clone().unwrap_or_default();
            address.config.tls = Some(tls.connector()?.into());
        } else if let Some(tls) = &self.tls {
            return Err(BuildError::Clash {
                setter: "tls",
                value: format!("{tls:?}"),
                other: "builder",
                other_value: "a URL without TLS".to_owned(),
                why: match address.topology {
                    Topology::Socket => "there is no TLS on a socket of this machine",
                    _ => "nothing would be encrypted; the URL begins with rediss",
                },
            });
        }
        Ok(())
    }

    #[cfg(not(feature = "tls"))]
    fn add_tls(&self, address: &mut Address) -> Result<(), BuildError> {
        if address.tls {
            return Err(BuildError::NoTls);
        }
        Ok(())
    }
}

/// The sentinels need the credentials unquoted and the bus needs them quoted, but fred's
/// configuration has one form for both.
fn check_sentinels(address: &Address) -> Result<(), BuildError> {
    let config = &address.config;
    let mut credentials = [&config.username, &config.password].into_iter().flatten();
    if address.topology == Topology::Sentinel
        && !credentials.all(|words| credentials::is_plain(words))
    {
        return Err(BuildError::Url {
            reason: "with sentinels, name and password are of printable ASCII, without spaces, \
                     quotation marks and backslashes"
                .to_owned(),
        });
    }
    Ok(())
}

impl std::fmt::Debug for RedisBuilder {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        // The URL is left out: it may hold a password.
        f.debug_struct("RedisBuilder")
            .field("prefix", &self.prefix)
            .field("timeout", &self.timeout)
            .field("connect_timeout", &self.connect_timeout)
            .field("connections", &self.connections)
            .field("breaker", &self.breaker)
            .finish_non_exhaustive()
    }
}

#[cfg(all(test, not(feature = "tls")))]
mod tests {
    use super::*;

    #[test]
    fn tls_is_refused_by_a_build_without_it() {
        for url in [
            "rediss://host",
            "REDISS://host",
            "valkeys://host",
            "rediss-cluster://host",
            "rediss-sentinel://host?sentinelServiceName=main",
        ] {
            let error = crate::Redis::open(url).err();
            assert_eq!(error, Some(BuildError::NoTls), "{url}");
        }
        assert!(BuildError::NoTls.to_string().contains("feature `tls`"));
    }
}
