//! XFetch (Vattani, Chierichetti, Lowenstein, PVLDB 8(8), 2015), with the caches of this crate.
//!
//! One key, and P caches on one tier. Requests arrive as a Poisson process of rate r, each at a
//! random cache. A load takes δ, and all times are in units of δ.
//!
//! | | the paper | here |
//! |---|---|---|
//! | a load is begun by | each triggered request, until one ends | one of the triggered processes |
//! | *attempts* per expiry | e^(1/β) loads | processes that tried, of which one loads |
//! | *gap* from the first one to the expiry | βδ(ln(rβδ) + 0.5772) | the same |
//! | *waited*: share of expiries with a late request | exp(−rβδ·e^(−1/β)) | the same |
//!
//! The formulas are asymptotic. In a process only one request at a time tries, which lowers the
//! attempts of small fleets. With a small rδ many expiries are noticed late. So the bench also
//! *samples* the same process without any cache, from the formula of the trigger alone, and
//! compares the measurement with that sample.

use std::f64::consts::E;
use std::future::poll_fn;
use std::pin::Pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::Poll;
use std::time::Duration;

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use tidegate::{BoxError, Cache, InProcess, loader_fn};
use tokio::time::Instant;

/// The duration of a load.
const DELTA: Duration = Duration::from_secs(100);
/// Long enough that no draw falls into the first half of the TTL, where no refresh begins.
const TTL: Duration = Duration::from_secs(100 * 1_000);
/// Requests begin at the time before which so many triggers (e⁻⁶) are expected to be missed.
const BEFORE: f64 = 6.0;
const EULER: f64 = 0.577_215_664_901_532_9;
const SAMPLES: u32 = 20_000;

#[derive(Clone, Copy)]
struct Setting {
    beta: f64,
    /// Requests of the fleet during one load.
    rate: f64,
    processes: usize,
    expiries: u32,
}

impl Setting {
    /// Triggers that are expected earlier than `gap` before the expiry.
    fn mass(&self, gap: f64) -> f64 {
        self.rate * self.beta * (-gap / self.beta).exp()
    }

    /// e^(1/β), where all attempts in one process count as one.
    fn attempts(&self) -> f64 {
        let others = (1.0 / self.beta).exp() - 1.0;
        let processes = self.processes as f64;
        1.0 + (processes - 1.0) * others / (processes + others)
    }

    fn gap(&self) -> f64 {
        self.beta * ((self.rate * self.beta).ln() + EULER)
    }

    fn waited(&self) -> f64 {
        (-self.rate * self.beta * (-1.0 / self.beta).exp()).exp()
    }
}

/// The result of one expiry.
struct Expiry {
    attempts: u32,
    /// From the beginning of the load to the expiry, or `None` when the load began later.
    gap: Option<f64>,
    waited: bool,
}

#[derive(Default)]
struct Mean {
    count: f64,
    sum: f64,
    squares: f64,
}

impl Mean {
    fn add(&mut self, value: f64) {
        self.count += 1.0;
        self.sum += value;
        self.squares += value * value;
    }

    fn mean(&self) -> f64 {
        self.sum / self.count.max(1.0)
    }

    fn variance(&self) -> f64 {
        (self.squares / self.count.max(1.0) - self.mean().powi(2)).max(0.0)
    }
}

#[derive(Default)]
struct Summary {
    attempts: Mean,
    gap: Mean,
    waited: Mean,
    loads: u64,
    requests: u64,
}

impl Summary {
    fn add(&mut self, expiry: &Expiry) {
        self.attempts.add(f64::from(expiry.attempts));
        if let Some(gap) = expiry.gap {
            self.gap.add(gap);
        }
        self.waited.add(if expiry.waited { 1.0 } else { 0.0 });
    }
}

pub(crate) fn run(seed: u64, quick: bool, full: bool) -> Result<(), BoxError> {
    println!("## XFetch against the paper (seed {seed})\n");
    println!(
        "Expected: e^(1/β) attempts, and slightly fewer with 200 processes. The first attempt comes \
         βδ(ln(rβδ) + 0.58)\nbefore the expiry. Requests wait at exp(−rβδ·e^(−1/β)) of the \
         expiries. Each expiry costs exactly one load.\nWith a small rδβ the formulas are too coarse, \
         and the sample is the expectation.\n"
    );
    let share = if quick { 50 } else { 1 };
    let mut settings = Vec::new();
    let mut add = |rate: f64, expiries: u32| {
        for beta in [0.5, 1.0, 2.0, 4.0] {
            settings.push(Setting {
                beta,
                rate,
                processes: 200,
                expiries: (expiries / share).max(4),
            });
        }
    };
    add(1.0, 2_000);
    add(10.0, 2_000);
    add(100.0, 500);
    add(1_000.0, 80);
    if full {
        add(10_000.0, 100);
    }
    println!(
        "| β | rδ | expiries | attempts: formula | sampled | measured | gap/δ: formula | sampled | measured \
         | waited: formula | sampled | measured | loads per expiry |"
    );
    println!("|---|---|---|---|---|---|---|---|---|---|---|---|---|");
    let mut off = Vec::new();
    for setting in &settings {
        let (sampled, measured) = (sample(setting, seed), measure(setting, seed)?);
        println!(
            "| {} | {} | {} | {:.2} | {:.2} | {:.2} | {:.2} | {:.2} | {:.2} | {} | {} | {} | {:.3} |",
            setting.beta,
            setting.rate,
            setting.expiries,
            setting.attempts(),
            sampled.attempts.mean(),
            measured.attempts.mean(),
            setting.gap(),
            sampled.gap.mean(),
            measured.gap.mean(),
            chance(setting.waited()),
            chance(sampled.waited.mean()),
            chance(measured.waited.mean()),
            measured.loads as f64 / f64::from(setting.expiries),
        );
        off.extend(compare(setting, &sampled, &measured));
    }
    off.extend(election(seed, share)?);
    println!();
    if off.is_empty() {
        println!("As expected.\n");
        return Ok(());
    }
    Err(off.join("; ").into())
}

/// The table of the election: one load per expiry, whatever the number of processes.
fn election(seed: u64, share: u32) -> Result<Vec<String>, BoxError> {
    let mut off = Vec::new();
    println!("\n## Processes, with the election (β = 1, rδ = 100)\n");
    println!(
        "Expected: without an election every attempt would be a load. With it, one attempt is.\n"
    );
    println!(
        "| processes | expiries | requests | loads without coalescing, e^(1/β) | attempts: formula | sampled \
         | measured | loads | loads per expiry |"
    );
    println!("|---|---|---|---|---|---|---|---|---|");
    for processes in [1, 10, 100] {
        let setting = Setting {
            beta: 1.0,
            rate: 100.0,
            processes,
            expiries: (500 / share).max(4),
        };
        let (sampled, measured) = (sample(&setting, seed), measure(&setting, seed)?);
        println!(
            "| {processes} | {} | {} | {E:.2} | {:.2} | {:.2} | {:.2} | {} | {:.3} |",
            setting.expiries,
            measured.requests,
            setting.attempts(),
            sampled.attempts.mean(),
            measured.attempts.mean(),
            measured.loads,
            measured.loads as f64 / f64::from(setting.expiries),
        );
        off.extend(compare(&setting, &sampled, &measured));
    }
    Ok(off)
}

fn chance(share: f64) -> String {
    if share == 0.0 {
        "0".to_owned()
    } else if share < 1e-4 {
        format!("{share:.0e}")
    } else {
        format!("{share:.4}")
    }
}

/// Differences of more than five standard deviations plus a twentieth.
fn compare(setting: &Setting, sampled: &Summary, measured: &Summary) -> Vec<String> {
    let Setting {
        beta,
        rate,
        processes,
        expiries,
    } = *setting;
    let name = format!("β = {beta}, rδ = {rate}, {processes} processes");
    let mut off = Vec::new();
    if measured.loads != u64::from(expiries) {
        off.push(format!(
            "{name}: {} loads for {expiries} expiries",
            measured.loads
        ));
    }
    for (what, sampled, measured) in [
        ("attempts", &sampled.attempts, &measured.attempts),
        ("gap", &sampled.gap, &measured.gap),
        ("waited", &sampled.waited, &measured.waited),
    ] {
        let error = (sampled.variance() / measured.count.max(1.0)).sqrt();
        // Five over the number of observations, because a share of zero in the sample still allows
        // a few.
        let room = 5.0 * error + 0.05 * sampled.mean() + 5.0 / measured.count.max(1.0);
        if (sampled.mean() - measured.mean()).abs() > room {
            let (sampled, measured) = (sampled.mean(), measured.mean());
            off.push(format!("{name}: {what} {measured:.3}, not {sampled:.3}"));
        }
    }
    off
}

/// The time to the next event of a Poisson process, in δ.
fn next(rng: &mut StdRng, rate: f64) -> f64 {
    -(1.0 - rng.random::<f64>()).ln() / rate
}

/// Expiries without a cache: the formula of the trigger alone.
fn sample(setting: &Setting, seed: u64) -> Summary {
    let rng = &mut StdRng::seed_from_u64(seed);
    let mut summary = Summary::default();
    for _ in 0..SAMPLES {
        // The mass of triggers beyond the first one is Exp(1).
        let mass = next(rng, 1.0);
        let early = mass < setting.mass(0.0);
        let begin = if early {
            -setting.beta * (setting.rate * setting.beta / mass).ln()
        } else {
            next(rng, setting.rate)
        };
        let end = begin + 1.0;
        // Other triggers while the first one loads: early ones, and every request after the expiry.
        let mut processes = vec![false; setting.processes];
        let mut try_one = |rng: &mut StdRng| {
            let process = rng.random_range(0..setting.processes);
            u32::from(!std::mem::replace(&mut processes[process], true))
        };
        let mut attempts = try_one(rng);
        let early_mass = setting.mass((-end).max(0.0)) - setting.mass((-begin).max(0.0));
        let mut left = early_mass - next(rng, 1.0);
        while left > 0.0 {
            attempts += try_one(rng);
            left -= next(rng, 1.0);
        }
        let mut at = begin.max(0.0) + next(rng, setting.rate);
        let mut waited = !early;
        while at < end {
            attempts += try_one(rng);
            waited = true;
            at += next(rng, setting.rate);
        }
        summary.add(&Expiry {
            attempts,
            gap: early.then_some(-begin),
            waited,
        });
    }
    summary
}

/// Expiries with the caches of this crate.
fn measure(setting: &Setting, seed: u64) -> Result<Summary, BoxError> {
    // Without an I/O driver, paused time advances without a call to the kernel.
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .start_paused(true)
        .build()
        .map_err(BoxError::new)?;
    runtime.block_on(Fleet::new(setting)?.expire(seed))
}

type Numbers = Cache<u64, u64, BoxError>;

/// When loads began.
#[derive(Default)]
struct Log(Mutex<Vec<Instant>>);

impl Log {
    fn note(&self) {
        self.lock().push(Instant::now());
    }

    fn loads(&self) -> usize {
        self.lock().len()
    }

    fn begun(&self, load: usize) -> Instant {
        self.lock()[load]
    }

    fn lock(&self) -> MutexGuard<'_, Vec<Instant>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

struct Fleet {
    setting: Setting,
    caches: Vec<Numbers>,
    begun: Arc<Log>,
    /// Requests that were not answered at once.
    waited: Arc<AtomicU64>,
}

impl Fleet {
    fn new(setting: &Setting) -> Result<Self, BoxError> {
        let (begun, tier) = (Arc::<Log>::default(), InProcess::new());
        let cache = |_| {
            let begun = Arc::clone(&begun);
            let load = loader_fn(move |id: u64| {
                let begun = Arc::clone(&begun);
                async move {
                    begun.note();
                    tokio::time::sleep(DELTA).await;
                    Ok::<_, BoxError>(Some(id))
                }
            });
            Cache::builder("numbers", load)
                .ttl(TTL)
                .ttl_jitter(0.0)
                .refresh_ahead(setting.beta)
                .load_timeout(DELTA * 10)
                .lease_ttl(DELTA * 5)
                .lease_wait(DELTA * 10)
                .l1_capacity(16)
                .l2(tier.clone())
                .build()
                .map_err(BoxError::new)
        };
        Ok(Self {
            setting: *setting,
            caches: (0..setting.processes)
                .map(cache)
                .collect::<Result<_, _>>()?,
            begun,
            waited: Arc::default(),
        })
    }

    async fn expire(self, seed: u64) -> Result<Summary, BoxError> {
        let rng = &mut StdRng::seed_from_u64(seed);
        let mut summary = Summary::default();
        self.caches[0].get(&0).await.map_err(BoxError::new)?;
        for _ in 0..self.setting.expiries {
            let expiry = self.one(rng, &mut summary.requests).await?;
            summary.add(&expiry);
        }
        let counts = || self.caches.iter().map(Cache::stats);
        summary.loads = counts().map(|stats| stats.loads).sum::<u64>() - 1;
        Ok(summary)
    }

    async fn one(&self, rng: &mut StdRng, requests: &mut u64) -> Result<Expiry, BoxError> {
        let Setting { beta, rate, .. } = self.setting;
        let before = self.begun.loads();
        let attempts_before = self.attempts();
        let waited_before = self.waited.load(Ordering::Relaxed);
        let expires = self.begun.begun(before - 1) + DELTA + TTL;

        // Earlier requests would trigger nothing.
        let window = beta * ((rate * beta).ln() + BEFORE);
        let mut at = expires - DELTA.mul_f64(window.max(0.0));
        loop {
            at += DELTA.mul_f64(next(rng, rate));
            tokio::time::sleep_until(at).await;
            if self.begun.loads() > before
                && at >= (self.begun.begun(before) + DELTA).max(expires) + DELTA
            {
                break;
            }
            *requests += 1;
            self.request(rng.random_range(0..self.caches.len())).await;
        }
        let begin = self.begun.begun(before);
        let early = expires.checked_duration_since(begin);
        Ok(Expiry {
            attempts: u32::try_from(self.attempts() - attempts_before).map_err(BoxError::new)?,
            gap: early.map(|early| early.div_duration_f64(DELTA)),
            waited: self.waited.load(Ordering::Relaxed) > waited_before,
        })
    }

    /// Processes that loaded, and processes that found the claim of another one.
    fn attempts(&self) -> u64 {
        let stats = self.caches.iter().map(Cache::stats);
        stats.map(|stats| stats.loads + stats.lease_waits).sum()
    }

    /// One request. If it is not answered at once, it continues as a task.
    async fn request(&self, process: usize) {
        let (cache, waited) = (self.caches[process].clone(), Arc::clone(&self.waited));
        let mut request: Pin<Box<dyn Future<Output = ()> + Send>> = Box::pin(async move {
            let begun = Instant::now();
            let answered = cache.get(&0).await.is_ok();
            if !answered || begun.elapsed() > Duration::ZERO {
                waited.fetch_add(1, Ordering::Relaxed);
            }
        });
        let answered = poll_fn(|context| Poll::Ready(request.as_mut().poll(context))).await;
        if answered.is_pending() {
            tokio::spawn(request);
        }
    }
}
