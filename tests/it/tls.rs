//! TLS: which certificates are trusted, and that no look-up fails when one is not.

use std::time::Duration;

use tidegate::{BuildError, Cache, Channel, Redis, RedisBuilder, RemoteError, Source, Tls};
use tokio::time::Instant;

use crate::support::backend::{check_records, users};
use crate::support::loader::Db;
use crate::support::node::{Node, value};
use crate::support::server::{Reply, Server};
use crate::support::tls::{Authority, CertFiles, ClientCerts, TlsServer, start};
use crate::support::{eventually, within};

const TIMEOUT: Duration = Duration::from_millis(300);
/// What a busy machine may add to any bound.
const SLACK: Duration = Duration::from_secs(2);

fn builder(url: &str, tls: Tls) -> RedisBuilder {
    Redis::builder(url).tls(tls).timeout(Duration::from_secs(2))
}

fn node(db: &Db, redis: &Redis) -> Node {
    let builder = Cache::builder("users", db.clone()).ttl_jitter(0.0);
    Node::new(builder.l2(redis.clone()).build().expect("a cache"))
}

async fn proven(node: &Node) {
    eventually("the channel is proven", async || {
        node.health().channel == Channel::Proven
    })
    .await;
}

/// Two processes use commands, scripts and the invalidation bus.
async fn works(redis: [&Redis; 2], server: &Server) {
    server.raw().ask("FLUSHALL");
    let db = Db::default();
    let (a, b) = (node(&db, redis[0]), node(&db, redis[1]));
    for node in [&a, &b] {
        assert_eq!(value(node.get(1).await), "row 1");
        proven(node).await;
        node.get(1).await.expect("a look-up");
    }
    assert_eq!(db.loads(), 1, "one load for both");
    eventually("it is in L1", async || {
        let entry = a.get_entry(1).await.expect("a look-up");
        entry.expect("an entry").source() == Source::L1
    })
    .await;
    db.write(1, "new");
    b.invalidate(&1).await.expect("an invalidation");
    eventually("the change has arrived", async || a.peek(&1).is_none()).await;
    assert_eq!(value(a.get(1).await), "new");
    for node in [&a, &b] {
        assert_eq!(node.stats().l2_failures, 0);
        node.check().await;
    }
    check_records(server);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_processes_share_a_server_over_tls() {
    let authority = Authority::new();
    let server = TlsServer::start(&authority, &authority.server(), ClientCerts::NotAsked);
    let connect = || builder(&server.url(), authority.trusted()).connect();
    let (a, b) = (
        connect().await.expect("connect"),
        connect().await.expect("connect"),
    );
    works([&a, &b], &server.plain).await;
    let opened = builder(&server.url(), authority.trusted()).open();
    works([&a, &opened.expect("a handle")], &server.plain).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_certificate_is_shown_where_it_is_asked_for() {
    let (authority, other) = (Authority::new(), Authority::new());
    let server = TlsServer::start(&authority, &authority.server(), ClientCerts::Required);
    let with = |authority_of_client: &Authority| {
        let client = authority_of_client.named("app");
        authority
            .trusted()
            .client_certificate(client.chain, client.key)
    };
    let redis = builder(&server.url(), with(&authority)).connect().await;
    let redis = redis.expect("connect");
    works([&redis, &redis.clone()], &server.plain).await;
    refused(&server.url(), Some(authority.trusted()), &server.plain).await;
    refused(&server.url(), Some(with(&other)), &server.plain).await;
}

/// `connect` fails, and with `open` the loader answers every look-up in time.
async fn refused(url: &str, tls: Option<Tls>, server: &Server) -> RemoteError {
    server.raw().ask("FLUSHALL");
    let builder = || {
        let builder = Redis::builder(url).timeout(TIMEOUT);
        match tls.clone() {
            Some(tls) => builder.tls(tls),
            None => builder,
        }
    };
    let error = within("an answer", builder().connect()).await;
    let error = error.expect_err("nothing to trust");
    assert!(error.is_unreachable() || error.is_timeout(), "{error:?}");
    let db = Db::default();
    let a = node(&db, &builder().open().expect("a handle"));
    for key in 0..5 {
        let begun = Instant::now();
        assert_eq!(value(a.get(key).await), format!("row {key}"));
        let took = begun.elapsed();
        assert!(took < TIMEOUT * 2 + SLACK, "{took:?}");
    }
    assert!(!a.health().l2_reachable);
    assert!(server.raw().keys("*").is_empty(), "nothing has got through");
    a.check().await;
    error
}

fn source(error: &RemoteError) -> String {
    std::error::Error::source(error)
        .map(ToString::to_string)
        .unwrap_or_default()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_unknown_issuer_is_not_trusted_and_fails_no_look_up() {
    let (authority, other) = (Authority::new(), Authority::new());
    let server = TlsServer::start(&authority, &authority.server(), ClientCerts::NotAsked);
    let error = refused(&server.url(), Some(other.trusted()), &server.plain).await;
    assert!(
        error.is_tls() && source(&error).contains("UnknownIssuer"),
        "{error:?}"
    );
    let anyone = other.trusted().any_server_name();
    let error = refused(&server.url(), Some(anyone), &server.plain).await;
    assert!(
        error.is_tls() && source(&error).contains("UnknownIssuer"),
        "{error:?}"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_certificate_that_has_expired_is_not_trusted() {
    let authority = Authority::new();
    let server = TlsServer::start(&authority, &authority.expired(), ClientCerts::NotAsked);
    for tls in [authority.trusted(), authority.trusted().any_server_name()] {
        let error = refused(&server.url(), Some(tls), &server.plain).await;
        assert!(
            error.is_tls() && source(&error).contains("Expired"),
            "{error:?}"
        );
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_certificate_of_another_name_is_not_trusted_unless_that_name_is_asked_for() {
    let authority = Authority::new();
    let certificate = authority.named("redis.internal");
    let server = TlsServer::start(&authority, &certificate, ClientCerts::NotAsked);
    let other = authority.trusted().server_name("other.internal");
    for tls in [authority.trusted(), other] {
        let error = refused(&server.url(), Some(tls), &server.plain).await;
        assert!(
            error.is_tls() && source(&error).contains("NotValidForName"),
            "{error:?}"
        );
    }
    let named = authority.trusted().server_name("redis.internal");
    for tls in [named, authority.trusted().any_server_name()] {
        let redis = builder(&server.url(), tls)
            .connect()
            .await
            .expect("connect");
        works([&redis, &redis.clone()], &server.plain).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_end_without_tls_is_an_error_and_not_a_wait() {
    let authority = Authority::new();
    let server = TlsServer::start(&authority, &authority.server(), ClientCerts::NotAsked);
    let plain = server.plain.url().replace("redis://", "rediss://");
    let error = refused(&plain, Some(authority.trusted()), &server.plain).await;
    // Redis takes the TLS handshake for an incomplete command and waits for the rest.
    assert!(
        error.is_timeout() && source(&error).contains("TLS"),
        "{error:?}"
    );
    let url = server.url().replace("rediss://", "redis://");
    let error = refused(&url, None, &server.plain).await;
    assert!(
        error.is_unreachable() && source(&error).contains("rediss://"),
        "{error:?}"
    );
}

/// The processes reach the nodes at the addresses that the cluster announces.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cluster_is_reached_over_tls_alone() {
    let authority = Authority::new();
    let cert_files = CertFiles::new(&authority, &authority.server(), ClientCerts::NotAsked);
    let server = start(
        &cert_files,
        &["--tls-cluster", "yes", "--cluster-announce-ip", "127.0.0.1"],
        Server::start_in_cluster_with,
    );
    let mut raw = server.raw();
    for first in (0..16_384).step_by(1024) {
        let slots: Vec<String> = (first..first + 1024).map(|slot| slot.to_string()).collect();
        raw.ask(&format!("CLUSTER ADDSLOTS {}", slots.join(" ")));
    }
    eventually("the cluster is complete", async || {
        let Reply::Bytes(info) = raw.ask("CLUSTER INFO") else {
            panic!("CLUSTER INFO answers text")
        };
        String::from_utf8_lossy(&info).contains("cluster_state:ok")
    })
    .await;
    let url = format!("rediss-cluster://127.0.0.1:{}", cert_files.port);
    let redis = builder(&url, authority.trusted())
        .connect()
        .await
        .expect("connect");
    works([&redis, &redis.clone()], &server).await;
    let other = builder(&url, Authority::new().trusted()).connect().await;
    assert!(other.is_err_and(|error| error.is_unreachable()));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_primary_is_found_by_its_sentinels_over_tls() {
    let authority = Authority::new();
    let server = TlsServer::start(&authority, &authority.server(), ClientCerts::NotAsked);
    let cert_files = CertFiles::new(&authority, &authority.server(), ClientCerts::NotAsked);
    // The sentinel uses TLS to the servers that it watches.
    let watched = server.cert_files.port;
    let sentinel = start(&cert_files, &["--tls-replication", "yes"], |more| {
        Server::sentinel_with(watched, more)
    });
    eventually("the sentinel sees the primary", async || {
        let Reply::List(known) = sentinel.raw().ask("SENTINEL MASTER main") else {
            panic!("a primary")
        };
        let flags = known
            .iter()
            .position(|word| *word == Reply::Bytes(b"flags".to_vec()));
        flags.is_some_and(|at| known[at + 1] == Reply::Bytes(b"master".to_vec()))
    })
    .await;
    let url = format!(
        "rediss-sentinel://127.0.0.1:{}?sentinelServiceName=main",
        cert_files.port
    );
    let redis = builder(&url, authority.trusted())
        .connect()
        .await
        .expect("connect");
    works([&redis, &redis.clone()], &server.plain).await;
}

#[test]
fn tls_settings_that_cannot_work_are_refused_by_name() {
    let authority = Authority::new();
    let refused = |url: &str, tls: Tls| {
        let refused = Redis::builder(url).tls(tls).open();
        refused.expect_err("a setting that makes no sense")
    };
    let rediss = |tls| refused("rediss://host", tls);
    let certificate = authority.named("app");
    let another = authority.named("app");
    for (tls, words) in [
        (
            Tls::new().ca("no certificate"),
            "ca: there is no certificate",
        ),
        (
            Tls::new().ca(&certificate.key),
            "ca: there is no certificate",
        ),
        (
            authority
                .trusted()
                .client_certificate(&certificate.key, &certificate.key),
            "client_certificate: there is no certificate",
        ),
        (
            authority
                .trusted()
                .client_certificate(&certificate.chain, &certificate.chain),
            "client_certificate: there is no private key",
        ),
        (
            authority
                .trusted()
                .client_certificate(&certificate.chain, &another.key),
            "client_certificate: ",
        ),
    ] {
        let error = rediss(tls);
        assert!(matches!(error, BuildError::Tls { .. }), "{error:?}");
        assert!(error.to_string().contains(words), "{error}");
    }
    for (url, tls, words) in [
        ("redis://host", authority.trusted(), "tls(Tls"),
        ("redis+unix:///socket", authority.trusted(), "tls(Tls"),
        (
            "rediss://host",
            Tls::new().any_server_name(),
            "any_server_name()",
        ),
        (
            "rediss://host",
            authority.trusted().server_name("no name"),
            "server_name(\"no name\")",
        ),
    ] {
        let error = refused(url, tls);
        assert!(error.to_string().starts_with(words), "{error}");
    }
}

/// The variable in which a worker finds its URL.
const URL: &str = "TIDEGATE_TLS_URL";

/// Not a test but the main function of a worker that trusts the system's CAs. In a test run it
/// returns at once.
#[tokio::test]
async fn system_worker() {
    if let Ok(url) = std::env::var(URL) {
        let connected = Redis::builder(&url)
            .timeout(Duration::from_secs(5))
            .connect()
            .await;
        println!(
            "@@ {:?}",
            connected.map_err(|error| (error.is_tls(), source(&error)))
        );
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_cas_of_the_system_are_trusted_when_no_others_are_named() {
    let (authority, other) = (Authority::new(), Authority::new());
    let server = TlsServer::start(&authority, &authority.server(), ClientCerts::NotAsked);
    let elsewhere = CertFiles::new(&other, &other.server(), ClientCerts::NotAsked);
    let try_with = |file: String| async {
        let mut command = tokio::process::Command::new(std::env::current_exe().expect("a binary"));
        command.args(["--exact", "tls::system_worker", "--nocapture"]);
        command
            .env(URL, server.url())
            .env("SSL_CERT_FILE", file)
            .env_remove("SSL_CERT_DIR");
        let output = within("the worker ends", command.output())
            .await
            .expect("a worker");
        String::from_utf8_lossy(&output.stdout).into_owned()
    };
    let output = try_with(server.cert_files.path("ca.pem")).await;
    assert!(output.contains("@@ Ok(Redis"), "{output}");
    let output = try_with(elsewhere.path("ca.pem")).await;
    assert!(
        output.contains("@@ Err((true") && output.contains("UnknownIssuer"),
        "{output}"
    );
    let output = try_with(elsewhere.path("none.pem")).await;
    assert!(
        output.contains("@@ Err(") && output.contains("no CA certificates"),
        "{output}"
    );
    assert!(server.plain.raw().get(&users(1)).is_none());
}
