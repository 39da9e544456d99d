//! The cost of Redis trouble, with the circuit breaker and without.
//!
//! ```text
//! cargo bench --bench trouble
//! ```
//!
//! 500 requests a second for 5 seconds against a loader of 2 ms. Every second request is for a key
//! that was never looked up. The server is in trouble meanwhile. All settings are the defaults.
//! Expected: no errors. With the breaker, a miss costs its load. Without it, a silent server costs
//! each miss a timeout (100 ms).

use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use tidegate::{BoxError, Breaker, Cache, Loaded, Redis, loader_fn};
use tokio::task::JoinSet;

const LOAD: Duration = Duration::from_millis(2);
const EVERY: Duration = Duration::from_millis(2);
const REQUESTS: u64 = 2_500;
const HOT: u64 = 200;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Trouble {
    None,
    Killed,
    Stopped,
    OutOfMemory,
}

struct Server {
    child: Child,
    port: u16,
}

impl Server {
    fn start(port: u16) -> Result<Self, BoxError> {
        let binary =
            std::env::var("TIDEGATE_REDIS_SERVER").unwrap_or_else(|_| "redis-server".to_owned());
        let child = Command::new(&binary)
            .args(["--port", &port.to_string(), "--bind", "127.0.0.1"])
            .args(["--save", "", "--appendonly", "no"])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .spawn()
            .map_err(|error| format!("{binary}: {error}; `apt-get install redis-server`"))?;
        while TcpStream::connect((Ipv4Addr::LOCALHOST, port)).is_err() {
            std::thread::sleep(Duration::from_millis(5));
        }
        Ok(Self { child, port })
    }

    fn signal(&self, signal: &str) {
        let id = self.child.id().to_string();
        let _ = Command::new("kill")
            .args([signal, &id])
            .stderr(Stdio::null())
            .status();
    }

    /// Sends a command without a client library.
    fn ask(&self, command: &str) {
        use std::io::{Read, Write};
        if let Ok(mut raw) = TcpStream::connect((Ipv4Addr::LOCALHOST, self.port)) {
            let _ = raw.write_all(format!("{command}\r\n").as_bytes());
            let _ = raw.read(&mut [0; 64]);
        }
    }

    fn begin(&mut self, trouble: Trouble) {
        match trouble {
            Trouble::None => {}
            Trouble::Killed => {
                let _ = self.child.kill();
                let _ = self.child.wait();
            }
            Trouble::Stopped => self.signal("-STOP"),
            Trouble::OutOfMemory => self.ask("CONFIG SET maxmemory 1"),
        }
    }

    fn end(&mut self, trouble: Trouble) -> Result<(), BoxError> {
        match trouble {
            Trouble::None => {}
            Trouble::Killed => *self = Self::start(self.port)?,
            Trouble::Stopped => self.signal("-CONT"),
            Trouble::OutOfMemory => self.ask("CONFIG SET maxmemory 0"),
        }
        Ok(())
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.signal("-CONT");
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Times of look-ups in milliseconds.
#[derive(Default)]
struct Times {
    /// Misses that began in the first second.
    misses: Vec<f64>,
    /// Later misses.
    late: Vec<f64>,
    hits: Vec<f64>,
    errors: u64,
}

async fn traffic(cache: &Cache<u64, u64, BoxError>, begun: Instant) -> Result<Times, BoxError> {
    let mut requests = JoinSet::new();
    let mut ticks = tokio::time::interval(EVERY);
    for request in 0..REQUESTS {
        ticks.tick().await;
        let cache = cache.clone();
        let cold = request % 2 == 0;
        let key = if cold { 1_000 + request } else { request % HOT };
        requests.spawn(async move {
            let asked = Instant::now();
            let got = cache.get(&key).await;
            (cold, got.is_err(), asked, asked.elapsed())
        });
    }
    let mut times = Times::default();
    while let Some(done) = requests.join_next().await {
        let (cold, failed, asked, took) = done.map_err(BoxError::new)?;
        times.errors += u64::from(failed);
        let took = took.as_secs_f64() * 1e3;
        if !cold {
            times.hits.push(took);
        } else if asked.duration_since(begun) < Duration::from_secs(1) {
            times.misses.push(took);
        } else {
            times.late.push(took);
        }
    }
    Ok(times)
}

async fn run(trouble: Trouble, breaker: Breaker, name: &str) -> Result<(), BoxError> {
    let free = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).map_err(BoxError::new)?;
    let port = free.local_addr().map_err(BoxError::new)?.port();
    drop(free);
    let mut server = Server::start(port)?;
    let redis = Redis::builder(&format!("redis://127.0.0.1:{port}")).breaker(breaker);
    let redis = redis.connect().await.map_err(BoxError::new)?;
    let loads = Arc::new(AtomicU64::new(0));
    let counted = Arc::clone(&loads);
    let load = loader_fn(move |key: u64| {
        counted.fetch_add(1, Ordering::Relaxed);
        async move {
            tokio::time::sleep(LOAD).await;
            Ok::<_, BoxError>(Loaded::found(key))
        }
    });
    let cache: Cache<u64, u64, BoxError> = Cache::builder("trouble", load)
        .l2(redis)
        .build()
        .map_err(BoxError::new)?;
    for key in 0..HOT {
        cache.get(&key).await.map_err(BoxError::new)?;
    }
    // The duration of a bare load as it is measured here.
    let mut bare = Vec::new();
    for _ in 0..50 {
        let asked = Instant::now();
        tokio::time::sleep(LOAD).await;
        bare.push(asked.elapsed().as_secs_f64() * 1e3);
    }
    server.begin(trouble);
    let (before, begun) = (loads.load(Ordering::Relaxed), Instant::now());
    let Times {
        mut misses,
        mut late,
        mut hits,
        errors,
    } = traffic(&cache, begun).await?;
    let loaded = loads.load(Ordering::Relaxed) - before;
    server.end(trouble)?;
    let (fills, ended) = (cache.stats().fills, Instant::now());
    let mut key = 1_000_000;
    while cache.stats().fills == fills {
        key += 1;
        let _ = cache.get(&key).await;
    }
    let recovered = ended.elapsed().as_secs_f64() * 1e3;
    let at = |of: &mut Vec<f64>, share: f64| {
        of.sort_by(f64::total_cmp);
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            clippy::cast_precision_loss,
            reason = "an index"
        )]
        let index = ((of.len() - 1) as f64 * share) as usize;
        of[index]
    };
    println!(
        "| {trouble:?} | {name} | {errors} | {:.2} | {:.2} | {:.1} | {:.2} | {:.1} | {:.2} | {:.1} | {loaded} | {recovered:.0} |",
        at(&mut bare, 0.5),
        at(&mut misses, 0.5),
        at(&mut misses, 0.99),
        at(&mut late, 0.5),
        at(&mut late, 0.99),
        at(&mut hits, 0.5),
        at(&mut hits, 0.99),
    );
    cache.close().await;
    Ok(())
}

#[tokio::main]
async fn main() -> Result<(), BoxError> {
    println!("{REQUESTS} requests in 5 s, half of them for {HOT} hot keys. A load takes 2 ms.\n");
    println!(
        "| server | breaker | errors | bare load, p50, ms | first misses, p50, ms | first misses, p99, ms \
         | later misses, p50, ms | later misses, p99, ms | hot keys, p50, ms | hot keys, p99, ms | loads \
         | recovered after, ms |"
    );
    println!("|---|---|---|---|---|---|---|---|---|---|---|---|");
    for trouble in [
        Trouble::None,
        Trouble::Killed,
        Trouble::Stopped,
        Trouble::OutOfMemory,
    ] {
        run(trouble, Breaker::new(), "on").await?;
        run(trouble, Breaker::off(), "off").await?;
    }
    Ok(())
}
