//! The load generator: an HTTP client that sends at a fixed rate.
//!
//! A request is due at a fixed time, whether or not earlier ones are answered (an open workload),
//! and its latency counts from that time.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use hdrhistogram::Histogram;
use http_body_util::{BodyExt, Full};
use hyper::body::Bytes;
use hyper::client::conn::http1::{self, SendRequest};
use hyper::{Method, Request, StatusCode};
use hyper_util::rt::TokioIo;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use rand::RngExt;
use tokio::net::TcpStream;
use tokio::sync::Semaphore;
use tokio::time::{Instant, sleep_until, timeout};

use crate::database::{PAGE, PRODUCTS, USERS};
use crate::settings::Demo;

/// The hot key: 30 % of all requests read this user, beside those that choose a user at random.
pub(crate) const HOT: i64 = 1;
/// The most requests in flight. A request that is due beyond them is counted, and not sent.
const MAX_IN_FLIGHT: usize = 256;
/// The longest that a request may take.
const TIMEOUT: Duration = Duration::from_secs(10);

type Failure = Box<dyn std::error::Error + Send + Sync>;
type Connection = SendRequest<Full<Bytes>>;

#[derive(Debug)]
pub(crate) struct Traffic {
    address: SocketAddr,
    demo: Demo,
    begun: Instant,
    /// Open connections without a request.
    idle: Mutex<Vec<Connection>>,
    /// The latencies in microseconds since the last `take_latencies`.
    latencies: Mutex<Histogram<u64>>,
    answered: AtomicU64,
    /// The requests without an answer, or with a status of 500 and above.
    errors: AtomicU64,
    not_sent: AtomicU64,
    in_flight: AtomicU64,
}

#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Counts {
    pub(crate) answered: u64,
    pub(crate) errors: u64,
    pub(crate) not_sent: u64,
    pub(crate) in_flight: u64,
}

impl Traffic {
    pub(crate) fn new(address: SocketAddr, demo: Demo) -> Self {
        Self {
            address,
            demo,
            begun: Instant::now(),
            idle: Mutex::default(),
            latencies: Mutex::new(latencies()),
            answered: AtomicU64::default(),
            errors: AtomicU64::default(),
            not_sent: AtomicU64::default(),
            in_flight: AtomicU64::default(),
        }
    }

    pub(crate) fn rate(&self) -> u32 {
        self.demo.rate
    }

    pub(crate) fn left(&self) -> Duration {
        self.demo.length.saturating_sub(self.begun.elapsed())
    }

    pub(crate) fn counts(&self) -> Counts {
        Counts {
            answered: self.answered.load(Ordering::Relaxed),
            errors: self.errors.load(Ordering::Relaxed),
            not_sent: self.not_sent.load(Ordering::Relaxed),
            in_flight: self.in_flight.load(Ordering::Relaxed),
        }
    }

    /// Returns the latencies since the last call.
    pub(crate) fn take_latencies(&self) -> Histogram<u64> {
        let mut latencies = self
            .latencies
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        std::mem::replace(&mut *latencies, self::latencies())
    }

    /// Sends requests until the time is over.
    pub(crate) async fn run(self: Arc<Self>) {
        let permits = Arc::new(Semaphore::new(MAX_IN_FLIGHT));
        let period = Duration::from_secs(1) / self.demo.rate;
        let mut due = self.begun;
        let bar = self.bar();
        while !self.left().is_zero() {
            due += period;
            sleep_until(due).await;
            match Arc::clone(&permits).try_acquire_owned() {
                Ok(permit) => {
                    let traffic = Arc::clone(&self);
                    tokio::spawn(async move {
                        traffic.send_one(due).await;
                        drop(permit);
                    });
                }
                Err(_) => {
                    self.not_sent.fetch_add(1, Ordering::Relaxed);
                }
            }
            let seconds = self.begun.elapsed().as_secs();
            if seconds > bar.position() {
                let counts = self.counts();
                bar.set_position(seconds);
                bar.set_message(format!(
                    "{} answered, {} errors",
                    counts.answered, counts.errors
                ));
            }
        }
        bar.finish();
    }

    /// The progress bar. It is hidden where there is no terminal.
    fn bar(&self) -> ProgressBar {
        let target = match self.demo.quiet {
            true => ProgressDrawTarget::hidden(),
            false => ProgressDrawTarget::stderr(),
        };
        let bar = ProgressBar::with_draw_target(Some(self.demo.length.as_secs()), target);
        let style = ProgressStyle::with_template("load {bar:30} {pos}/{len} s, {msg}");
        bar.with_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()))
    }

    /// Sends one request and counts its result.
    async fn send_one(&self, due: Instant) {
        self.in_flight.fetch_add(1, Ordering::Relaxed);
        let status = timeout(TIMEOUT, self.send(random_request())).await;
        self.in_flight.fetch_sub(1, Ordering::Relaxed);
        let us = u64::try_from(due.elapsed().as_micros()).unwrap_or(u64::MAX);
        {
            let mut latencies = self
                .latencies
                .lock()
                .unwrap_or_else(PoisonError::into_inner);
            latencies.saturating_record(us);
        }
        match status {
            Ok(Ok(status)) if !status.is_server_error() => {
                self.answered.fetch_add(1, Ordering::Relaxed);
            }
            _ => {
                self.errors.fetch_add(1, Ordering::Relaxed);
            }
        }
    }

    async fn send(&self, request: Request<Full<Bytes>>) -> Result<StatusCode, Failure> {
        let mut connection = self.connection().await?;
        let answer = connection.send_request(request).await?;
        let status = answer.status();
        answer.into_body().collect().await?;
        let mut idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner);
        idle.push(connection);
        Ok(status)
    }

    async fn connection(&self) -> Result<Connection, Failure> {
        loop {
            let idle = {
                let mut idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner);
                idle.pop()
            };
            match idle {
                Some(mut connection) => {
                    if connection.ready().await.is_ok() {
                        return Ok(connection);
                    }
                }
                None => break,
            }
        }
        let stream = TcpStream::connect(self.address).await?;
        stream.set_nodelay(true)?;
        let (sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
        tokio::spawn(connection);
        Ok(sender)
    }
}

/// A histogram from 1 µs to 1 minute, with two significant digits.
fn latencies() -> Histogram<u64> {
    Histogram::new_with_bounds(1, 60_000_000, 2).expect("these bounds are sound")
}

/// A random request. The mix is that of a shop: most requests read popular things, one in a hundred
/// writes.
fn random_request() -> Request<Full<Bytes>> {
    let mut random = rand::rng();
    let what: f64 = random.random();
    let by_rank: f64 = random.random();
    // A Zipf distribution: the n-th is read about 1/n as often as the first.
    let rank = |count: i64| {
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_precision_loss,
            reason = "small"
        )]
        let rank = (count as f64).powf(by_rank) as i64;
        rank.clamp(1, count)
    };
    let (method, path, body) = match what {
        w if w < 0.30 => (Method::GET, format!("/users/{HOT}"), ""),
        w if w < 0.70 => (Method::GET, format!("/users/{}", rank(USERS)), ""),
        w if w < 0.85 => (Method::GET, format!("/products/{}", rank(PRODUCTS)), ""),
        w if w < 0.94 => {
            let page = rank(PRODUCTS / PAGE);
            (Method::GET, format!("/products?page={page}"), "")
        }
        w if w < 0.98 => {
            let days = [7, 30, 90][random.random_range(0..3)];
            (Method::GET, format!("/reports/{days}"), "")
        }
        // A user who does not exist.
        w if w < 0.99 => (Method::GET, format!("/users/{}", USERS + rank(1_000)), ""),
        _ => {
            let name = r#"{"name":"Renamed"}"#;
            (Method::PUT, format!("/users/{}", rank(USERS)), name)
        }
    };
    let request = Request::builder()
        .method(method)
        .uri(path)
        .header("host", "localhost")
        .header("content-type", "application/json");
    let body = Full::new(Bytes::from_static(body.as_bytes()));
    request.body(body).expect("these parts make a request")
}
