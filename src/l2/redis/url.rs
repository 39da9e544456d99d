//! URLs, and the checks that fred does not make.
//!
//! fred takes any scheme, goes on without TLS if it has none, ignores a user without a password and
//! the database of a cluster, and repeats parts of a URL in its errors. Here each of these is
//! refused, and no error repeats a part of the URL, which may hold a password.

use fred::types::config::Config;

use crate::error::BuildError;

const SCHEMES: &str =
    "it begins with redis:// or rediss:// (the same with -cluster or -sentinel), or redis+unix://";
const DATABASE: &str = "its path is the number of a database, from 0 to 255";

/// What a URL leads to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Topology {
    Server,
    Sentinel,
    Cluster,
    Socket,
}

/// A parsed URL.
#[derive(Debug)]
pub(super) struct Address {
    pub(super) topology: Topology,
    pub(super) tls: bool,
    /// fred's configuration, without TLS, which we add.
    pub(super) config: Config,
}

impl Address {
    pub(super) fn parse(url: &str) -> Result<Self, BuildError> {
        // The scheme is compared byte by byte, and no other passes: a parser that normalises
        // letters cannot make another scheme of it.
        let (scheme, rest) = url.split_once("://").ok_or_else(|| refuse(SCHEMES))?;
        let scheme = scheme.to_ascii_lowercase();
        let (topology, tls) = kind(&scheme).ok_or_else(|| refuse(SCHEMES))?;
        check_database(topology, rest)?;
        let plain = match topology {
            Topology::Server => "redis",
            Topology::Sentinel => "redis-sentinel",
            Topology::Cluster => "redis-cluster",
            Topology::Socket => "redis+unix",
        };
        let config = Config::from_url(&format!("{plain}://{rest}")).map_err(|error| {
            let reason = error.details().split(": ").next().unwrap_or_default();
            refuse(reason)
        })?;
        if config.username.is_some() && config.password.is_none() {
            return Err(refuse(
                "it names a user and no password, and Redis would be asked as `default`; \
                 for a user with `nopass` any password will do",
            ));
        }
        Ok(Self {
            topology,
            tls,
            config,
        })
    }
}

fn refuse(reason: &str) -> BuildError {
    BuildError::Url {
        reason: reason.to_owned(),
    }
}

fn kind(scheme: &str) -> Option<(Topology, bool)> {
    let rest = scheme
        .strip_prefix("redis")
        .or_else(|| scheme.strip_prefix("valkey"))?;
    let (tls, rest) = match rest.strip_prefix('s') {
        Some(rest) => (true, rest),
        None => (false, rest),
    };
    let topology = match rest {
        "" => Topology::Server,
        "-sentinel" => Topology::Sentinel,
        "-cluster" => Topology::Cluster,
        "+unix" if !tls => Topology::Socket,
        _ => return None,
    };
    Some((topology, tls))
}

fn check_database(topology: Topology, rest: &str) -> Result<(), BuildError> {
    let end = rest.find(['?', '#']).unwrap_or(rest.len());
    let path = rest[..end].split_once('/').map_or("", |(_, path)| path);
    if topology == Topology::Socket || path.is_empty() {
        return Ok(());
    }
    let database = path.parse::<u8>().map_err(|_| refuse(DATABASE))?;
    if topology == Topology::Cluster && database != 0 {
        return Err(refuse(
            "it names a database, and a cluster has no other than 0",
        ));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn topology(url: &str) -> Option<(Topology, bool)> {
        let address = Address::parse(url).ok()?;
        Some((address.topology, address.tls))
    }

    #[test]
    fn schemes_say_what_there_is_and_others_are_refused() {
        assert_eq!(topology("redis://host"), Some((Topology::Server, false)));
        assert_eq!(
            topology("REDISS://host:6380/1"),
            Some((Topology::Server, true))
        );
        assert_eq!(topology("valkeys://host"), Some((Topology::Server, true)));
        assert_eq!(
            topology("rediss-cluster://host"),
            Some((Topology::Cluster, true))
        );
        let sentinel = "rediss-sentinel://host?sentinelServiceName=main";
        assert_eq!(topology(sentinel), Some((Topology::Sentinel, true)));
        assert_eq!(
            topology("redis+unix:///run/redis"),
            Some((Topology::Socket, false))
        );
        for url in [
            "",
            "host",
            "http://host",
            "redisss://host",
            " rediss://host",
            "redis\t://host",
            "rediss+unix:///run/redis",
            "redis-clusters://host",
        ] {
            assert_eq!(topology(url), None, "{url}");
        }
    }

    #[test]
    fn credentials_are_decoded_and_never_lost_on_the_way() {
        let credentials = |url| {
            let config = Address::parse(url).expect("a URL").config;
            (config.username, config.password)
        };
        let some = |text: &str| Some(text.to_owned());
        assert_eq!(
            credentials("rediss://app:p%40ss%2Fw%23%3A+%C3%A4@host/3"),
            (some("app"), some("p@ss/w#:+ä"))
        );
        assert_eq!(credentials("redis://:word@host"), (None, some("word")));
        assert_eq!(credentials("redis://host"), (None, None));
        for url in ["redis://app@host", "redis://app:@host"] {
            let error = Address::parse(url).expect_err("nobody's password");
            assert!(error.to_string().contains("no password"), "{error}");
        }
    }

    #[test]
    fn the_path_is_a_database() {
        let database = |url| Address::parse(url).map(|address| address.config.database);
        assert_eq!(database("redis://host/3"), Ok(Some(3)));
        assert_eq!(database("redis://host/"), Ok(None));
        assert_eq!(database("redis-cluster://host/0"), Ok(None));
        for url in [
            "redis://host/300",
            "redis://host/x",
            "redis://host/1/2",
            "redis://host/-1",
        ] {
            assert_eq!(database(url), Err(refuse(DATABASE)), "{url}");
        }
        let error = database("redis-cluster://host:1/3?node=other:2").expect_err("no database 3");
        assert!(error.to_string().contains("cluster"), "{error}");
    }

    #[test]
    fn an_error_repeats_nothing_of_the_url() {
        for url in [
            "redis://app:5ecret:x/@host",
            "redis://app:1/5ecret@host",
            "redis://app:5ecret@",
            "redis://app:5ecret@host:99999",
            "http://app:5ecret@host",
            "5ecret",
            "redis-cluster://app:x@host?node=app:5ecret@host:1",
            "redis://app:%FF5ecret@host",
            "redis://app:5ecret@ho st",
            "redis-sentinel://app:5ecret@host",
            "redis://5ecret@host",
        ] {
            let error = Address::parse(url).expect_err(url);
            let text = format!("{error} {error:?}");
            assert!(!text.contains("5ecret"), "{text}");
        }
    }
}
