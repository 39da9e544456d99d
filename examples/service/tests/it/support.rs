//! Helpers of the tests: a service, a client, and a scratch directory.

use std::future::Future;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use http_body_util::{BodyExt, Full};
use hyper::body::Bytes;
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use serde_json::Value;
use tidegate_service::{Demo, RedisChoice, Service, Settings, sqlite};
use tokio::net::TcpStream;

/// A temporary directory that is removed when it is dropped.
#[derive(Debug)]
pub(crate) struct Scratch(PathBuf);

impl Scratch {
    pub(crate) fn new() -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let name = format!("tidegate-service-{}-{number}", std::process::id());
        let path = std::env::temp_dir().join(name);
        std::fs::create_dir_all(&path).expect("a directory");
        Self(path)
    }

    pub(crate) fn path(&self) -> &PathBuf {
        &self.0
    }

    /// Settings with a database in this directory.
    pub(crate) fn settings(&self, redis: RedisChoice) -> Settings {
        Settings {
            listen: ([127, 0, 0, 1], 0).into(),
            database_url: sqlite(&self.0.join("shop.db")),
            redis,
            query_delay: Duration::ZERO,
            demo: None,
        }
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

pub(crate) async fn start(settings: Settings) -> Service {
    Service::start(settings).await.expect("the service starts")
}

/// The demo mode at this rate.
pub(crate) fn demo(rate: u32) -> Option<Demo> {
    Some(Demo {
        rate,
        length: Duration::from_secs(600),
        quiet: true,
    })
}

#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    pub(crate) cache_status: String,
    pub(crate) text: String,
}

impl Answer {
    pub(crate) fn json(&self) -> Value {
        serde_json::from_str(&self.text).unwrap_or_else(|_| panic!("JSON: {self:?}"))
    }
}

pub(crate) async fn get(at: SocketAddr, path: &str) -> Answer {
    ask(at, "GET", path, "").await
}

pub(crate) async fn put(at: SocketAddr, path: &str, body: &str) -> Answer {
    ask(at, "PUT", path, body).await
}

pub(crate) async fn press(at: SocketAddr, button: &str) -> Answer {
    ask(at, "POST", &format!("/demo/{button}"), "").await
}

async fn ask(at: SocketAddr, method: &str, path: &str, body: &str) -> Answer {
    let stream = TcpStream::connect(at).await.expect("the service listens");
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream))
        .await
        .expect("it speaks HTTP");
    tokio::spawn(connection);
    let request = hyper::Request::builder()
        .method(method)
        .uri(path)
        .header("host", "localhost")
        .header("content-type", "application/json")
        .header("x-tidegate-demo", "1")
        .body(Full::new(Bytes::from(body.to_owned())))
        .expect("a request");
    let answer = sender.send_request(request).await.expect("an answer");
    let status = answer.status().as_u16();
    let cache_status = answer.headers().get("cache-status");
    let cache_status = cache_status.map_or("", |value| value.to_str().expect("ASCII"));
    let cache_status = cache_status.to_owned();
    let body = answer.into_body().collect().await.expect("all of it");
    Answer {
        status,
        cache_status,
        text: String::from_utf8(body.to_bytes().to_vec()).expect("a text"),
    }
}

/// Waits until a condition holds. `what` describes it in the message of a timeout.
pub(crate) async fn until<F: Future<Output = bool>>(what: &str, mut condition: impl FnMut() -> F) {
    let deadline = Instant::now() + Duration::from_secs(60);
    while !condition().await {
        assert!(Instant::now() < deadline, "never: {what}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

/// Whether every cache has its channel and reaches L2.
pub(crate) async fn is_healthy(at: SocketAddr) -> bool {
    let health = get(at, "/health").await.json();
    let caches = health["caches"].as_object().expect("caches").clone();
    caches
        .values()
        .all(|one| one["channel"] == "proven" && one["l2_reachable"] == true)
}

/// Whether a binary can be run.
pub(crate) fn is_installed(binary: &str) -> bool {
    let status = Command::new(binary).arg("--version").output();
    status.is_ok_and(|output| output.status.success())
}
