//! No secret appears in errors, events or debug output.

use std::error::Error as _;
use std::time::Duration;

use tidegate::{BuildError, Cache, Redis, RemoteError};

use crate::support::events::Events;
use crate::support::eventually;
use crate::support::loader::Db;
use crate::support::node::{Node, value};
use crate::support::server::{Server, free_port, url};

const SECRET: &str = "5ecret-w0rd";
const TIMEOUT: Duration = Duration::from_millis(300);

#[track_caller]
fn assert_no_secret(text: &str) {
    assert!(!text.contains(SECRET), "{text}");
}

/// Checks the text of an error and of all its causes.
#[track_caller]
fn assert_error_has_no_secret(error: impl std::error::Error) {
    assert_no_secret(&format!("{error} {error:?} {error:#?}"));
    let mut source = error.source();
    while let Some(error) = source {
        assert_no_secret(&format!("{error} {error:?} {error:#?}"));
        source = error.source();
    }
}

#[test]
fn no_url_that_is_refused_appears_in_its_error() {
    for url in [
        format!("http://app:{SECRET}@host"),
        format!("redis//app:{SECRET}@host"),
        format!("redis://app:{SECRET}@host:port"),
        format!("redis://app:{SECRET}@host:99999"),
        format!("redis://app:{SECRET}@"),
        format!("redis://app:1/{SECRET}@host"),
        format!("redis://{SECRET}@host"),
        format!("redis://app:%ff{SECRET}@host"),
        format!("redis://app:{SECRET}@host/x{SECRET}"),
        format!("redis-cluster://app:{SECRET}@host?node=app:{SECRET}@other:6379"),
        format!("redis-cluster://app:{SECRET}@host/3"),
        format!("redis-sentinel://app:{SECRET}@host"),
        SECRET.to_owned(),
    ] {
        assert_error_has_no_secret(Redis::open(&url).expect_err("it makes no sense"));
        let builder = Redis::builder(&url);
        assert_no_secret(&format!("{builder:?} {builder:#?}"));
    }
    let builder = Redis::builder(&format!("redis://app:{SECRET}@host")).user("app", SECRET);
    assert_no_secret(&format!("{builder:?} {builder:#?}"));
    assert_error_has_no_secret(builder.open().expect_err("twice"));
    let empty = Redis::builder("redis://host").user("", SECRET);
    assert_error_has_no_secret(empty.open().expect_err("no user"));
    let sentinels = Redis::builder("redis-sentinel://host?sentinelServiceName=a");
    let spaced = format!("{SECRET} {SECRET}");
    assert_error_has_no_secret(sentinels.user("app", &spaced).open().expect_err("a space"));
}

/// Includes servers that repeat an unknown command in their answer.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_error_of_a_connection_and_no_event_has_the_password() {
    let right = Server::start();
    right.raw().ask("CONFIG SET requirepass other");
    let without = Server::start_with(&["--rename-command", "AUTH", ""]);
    let old = Server::start_with(&["--rename-command", "HELLO", ""]);
    old.raw().ask(&format!("CONFIG SET requirepass {SECRET}"));
    let open = Server::start();
    let denied = Server::start();
    let rule = format!("ACL SETUSER app on >{SECRET} ~* +@all -set -time -evalsha");
    denied.raw().ask(&rule);
    let no_server = url(free_port());
    for (what, url, name) in [
        ("a wrong password", right.url(), "app"),
        ("AUTH is not known", without.url(), "app"),
        ("HELLO is not known", old.url(), "default"),
        ("a password where there is none", open.url(), "default"),
        ("rights are missing", denied.url(), "app"),
        ("no server", no_server.clone(), "app"),
        ("a wrong database", format!("{}/99", denied.url()), "app"),
        ("TLS", right.url().replace("redis://", "rediss://"), "app"),
        (
            "not a cluster",
            right.url().replace("redis://", "redis-cluster://"),
            "app",
        ),
        (
            "not a sentinel",
            format!("{}?sentinelServiceName=a", right.url())
                .replace("redis://", "redis-sentinel://"),
            "app",
        ),
    ] {
        let by_url = url.replacen("://", &format!("://{name}:{SECRET}@"), 1);
        for builder in [
            Redis::builder(&by_url),
            Redis::builder(&url).user(name, SECRET),
        ] {
            let builder = builder.timeout(TIMEOUT).connect_timeout(TIMEOUT);
            let builder = with_own_ca(builder, &url);
            assert_no_secret(&format!("{builder:?} {builder:#?}"));
            match builder.clone().connect().await {
                Ok(redis) => assert_no_secret(&format!("{redis:?} {redis:#?}")),
                Err(error) => print_and_check(what, &error),
            }
            check_opened_handle(builder.open().expect(what)).await;
        }
    }
}

/// Names a CA, because the machine may have none.
#[cfg(feature = "tls")]
fn with_own_ca(builder: tidegate::RedisBuilder, url: &str) -> tidegate::RedisBuilder {
    match url.starts_with("rediss") {
        true => builder.tls(crate::support::tls::Authority::new().trusted()),
        false => builder,
    }
}

#[cfg(not(feature = "tls"))]
fn with_own_ca(builder: tidegate::RedisBuilder, _: &str) -> tidegate::RedisBuilder {
    builder
}

#[track_caller]
fn print_and_check(what: &str, error: &RemoteError) {
    println!(
        "{what}: {error}: {}",
        error.source().map(ToString::to_string).unwrap_or_default()
    );
    assert_error_has_no_secret(error);
}

/// Checks everything that an opened handle and its cache print.
async fn check_opened_handle(redis: Redis) {
    let (db, events) = (Db::default(), Events::default());
    let builder = Cache::builder("users", db.clone()).on_event(events.callback());
    let builder = builder.l2(redis.clone());
    assert_no_secret(&format!("{builder:?}"));
    let a = Node::new(builder.build().expect("a cache"));
    for key in 0..3 {
        assert_eq!(value(a.get(key).await), format!("row {key}"));
    }
    if let Err(error) = a.invalidate(&1).await {
        assert_error_has_no_secret(&error);
    }
    if let Err(error) = a.insert(1, "row 1".to_owned()).await {
        assert_error_has_no_secret(&error);
    }
    assert_no_secret(&format!(
        "{redis:?} {:?} {:?} {:?}",
        *a,
        a.health(),
        events.all()
    ));
    eventually("no flight is left", async || {
        format!("{:?}", *a).contains("flights: 0,")
    })
    .await;
}

/// The same for the private keys of certificates.
#[cfg(feature = "tls")]
#[test]
fn no_private_key_appears_in_settings_and_their_errors() {
    use crate::support::tls::Authority;
    let authority = Authority::new();
    let certificate = authority.named("app");
    let line = certificate
        .key
        .lines()
        .nth(1)
        .expect("a line of the key")
        .to_owned();
    let other = authority.named("other");
    let broken = certificate.key.replace("-----BEGIN", "-----");
    for (chain, key) in [
        (&other.chain, &certificate.key),
        (&certificate.key, &certificate.key),
        (&certificate.chain, &broken),
    ] {
        let tls = authority.trusted().client_certificate(chain, key);
        let builder = Redis::builder("rediss://host").tls(tls.clone());
        let plain = Redis::builder("redis://host").tls(tls.clone());
        let errors: Vec<BuildError> = [&builder, &plain]
            .map(|builder| builder.clone().open().expect_err("a wrong key"))
            .into();
        let text = format!("{tls:?} {builder:?} {errors:?}");
        assert!(!text.contains(&line), "{text}");
    }
}
