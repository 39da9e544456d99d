//! Every kind of trouble of a Redis, and what callers see of it.
//!
//! ```text
//! cargo bench --bench chaos                     # 10 seconds of each, about four minutes
//! cargo bench --bench chaos -- --quick          # 1 second of each
//! cargo bench --bench chaos -- Killed Slow      # only these
//! ```
//!
//! 500 requests a second against a loader that sleeps 2 milliseconds. Every second request is for a
//! key that was never looked up, the others are for 200 hot keys. Servers and signals are real, and
//! a proxy disturbs the connections. All settings are the defaults: a timeout of 100 milliseconds.
//! The bench fails when a `get` fails, or when loads are not coalesced.

use std::collections::HashMap;
use std::process::ExitCode;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use tidegate::{BoxError, Cache, Channel, Loaded, Redis, Source, loader_fn};
use tokio::task::JoinSet;

use self::trouble::{Fixture, Trouble};

#[expect(dead_code, reason = "the tests use more of it")]
#[path = "../redis_proxy/mod.rs"]
mod redis_proxy;
mod trouble;

const LOAD: Duration = Duration::from_millis(2);
const EVERY: Duration = Duration::from_millis(2);
const HOT: u64 = 200;

type Loads = Arc<Mutex<HashMap<u64, u32>>>;

/// One answer.
struct Answer {
    cold: bool,
    failed: bool,
    /// The time from the beginning of the trouble to the request.
    asked: Duration,
    ms: f64,
}

async fn run(trouble: Trouble, lasts: Duration) -> Result<bool, BoxError> {
    let mut fixture = Fixture::new().await;
    let url = format!("redis://127.0.0.1:{}", fixture.proxy.port());
    let redis = Redis::connect(&url).await.map_err(BoxError::new)?;
    let loads = Loads::default();
    let counted = Arc::clone(&loads);
    let load = loader_fn(move |key: u64| {
        let mut loads = counted.lock().unwrap_or_else(PoisonError::into_inner);
        *loads.entry(key).or_default() += 1;
        async move {
            tokio::time::sleep(LOAD).await;
            Ok::<_, BoxError>(Loaded::found(key))
        }
    });
    let cache: Cache<u64, u64, BoxError> = Cache::builder("chaos", load)
        .l2(redis)
        .build()
        .map_err(BoxError::new)?;
    for key in 0..HOT {
        cache.get(&key).await.map_err(BoxError::new)?;
    }
    let bare = bare_load().await;
    fixture.begin(trouble, lasts).await?;
    loads.lock().unwrap_or_else(PoisonError::into_inner).clear();
    let answers = ask(&cache, &fixture, trouble, lasts).await?;
    let (cold, hot) = loads_per_key(&loads);
    let before = cache.stats();
    fixture.end(trouble).await;
    let recovered = recovers(&cache).await?;
    let failed = answers.iter().filter(|answer| answer.failed).count();
    let second = Duration::from_secs(1).min(lasts / 2);
    let of = |what: &dyn Fn(&&Answer) -> bool| {
        let mut of: Vec<f64> = answers
            .iter()
            .filter(what)
            .map(|answer| answer.ms)
            .collect();
        of.sort_by(f64::total_cmp);
        of
    };
    let first = of(&|answer| answer.cold && answer.asked < second);
    let later = of(&|answer| answer.cold && answer.asked >= second);
    let hits = of(&|answer| !answer.cold);
    println!(
        "| {} | {failed} | {bare:.1} | {:.1} | {:.1} | {:.1} | {:.1} | {:+.1} | {:.2} | {:.1} | {cold:.2} | {hot:.2} | {} | {recovered:.0} |",
        trouble.name(),
        at(&first, 0.5),
        at(&first, 0.99),
        at(&later, 0.5),
        at(&later, 0.99),
        at(&later, 0.99) - bare,
        at(&hits, 0.5),
        at(&hits, 0.99),
        before.l2_failures,
    );
    cache.close().await;
    Ok(failed == 0 && cold <= 1.0)
}

/// The duration of a bare load, which tokio's coarse timer makes longer.
async fn bare_load() -> f64 {
    let mut took = Vec::new();
    for _ in 0..50 {
        let asked = Instant::now();
        tokio::time::sleep(LOAD).await;
        took.push(asked.elapsed().as_secs_f64() * 1e3);
    }
    took.sort_by(f64::total_cmp);
    at(&took, 0.5)
}

async fn ask(
    cache: &Cache<u64, u64, BoxError>,
    fixture: &Fixture,
    trouble: Trouble,
    lasts: Duration,
) -> Result<Vec<Answer>, BoxError> {
    let (mut requests, begun) = (JoinSet::new(), Instant::now());
    let mut ticks = tokio::time::interval(EVERY);
    for request in 0.. {
        ticks.tick().await;
        let asked = begun.elapsed();
        if asked >= lasts {
            break;
        }
        if request % 25 == 0 {
            fixture.meanwhile(trouble);
        }
        let (cache, cold) = (cache.clone(), request % 2 == 0);
        let key = if cold { 1_000 + request } else { request % HOT };
        requests.spawn(async move {
            let from = Instant::now();
            let got = cache.get(&key).await;
            Answer {
                cold,
                failed: !matches!(got, Ok(Some(value)) if *value == key),
                asked,
                ms: from.elapsed().as_secs_f64() * 1e3,
            }
        });
    }
    let mut answers = Vec::new();
    while let Some(answer) = requests.join_next().await {
        answers.push(answer.map_err(BoxError::new)?);
    }
    Ok(answers)
}

/// The most loads of any key that was asked for once, and the mean over the hot keys.
fn loads_per_key(loads: &Loads) -> (f64, f64) {
    let loads = loads.lock().unwrap_or_else(PoisonError::into_inner);
    let cold = loads.iter().filter(|(key, _)| **key >= HOT);
    let most = cold.map(|(_, loads)| *loads).max().unwrap_or(0);
    let hot: u32 = (0..HOT).filter_map(|key| loads.get(&key)).sum();
    (f64::from(most), f64::from(hot) / 200.0)
}

/// The milliseconds until loads fill L2 again and the next look-up is answered by a proven L1.
async fn recovers(cache: &Cache<u64, u64, BoxError>) -> Result<f64, BoxError> {
    let (ended, before) = (Instant::now(), cache.stats());
    for key in 1_000_000_u64.. {
        cache.get(&key).await.map_err(BoxError::new)?;
        let entry = cache.get_entry(&key).await.map_err(BoxError::new)?;
        let from = entry.map(|entry| entry.source());
        let filled = cache.stats().since(&before).fills > 0;
        if filled && from == Some(Source::L1) && cache.health().channel == Channel::Proven {
            break;
        }
        if ended.elapsed() > Duration::from_secs(30) {
            return Err(format!("it does not recover: {:?}", cache.health()).into());
        }
    }
    Ok(ended.elapsed().as_secs_f64() * 1e3)
}

#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    clippy::cast_precision_loss,
    reason = "an index"
)]
fn at(sorted: &[f64], share: f64) -> f64 {
    let index = (sorted.len().saturating_sub(1) as f64 * share) as usize;
    sorted.get(index).copied().unwrap_or(f64::NAN)
}

async fn all(args: &[String]) -> Result<bool, BoxError> {
    let quick = args.iter().any(|arg| arg == "--quick" || arg == "--test");
    let lasts = Duration::from_secs(if quick { 1 } else { 10 });
    let chosen = |trouble: &Trouble| {
        let names = args.iter().filter(|arg| !arg.starts_with('-'));
        let mut names = names.peekable();
        names.peek().is_none() || names.any(|name| *name == format!("{trouble:?}"))
    };
    println!("{lasts:?} of each, 500 requests a second.\n");
    println!(
        "| trouble | errors | bare load, p50, ms | first misses, p50, ms | first misses, p99, ms \
         | later misses, p50, ms | later misses, p99, ms | later p99 minus bare load, ms \
         | hot keys, p50, ms | hot keys, p99, ms | most loads of a cold key \
         | loads per hot key | failed commands | recovered after, ms |"
    );
    println!("|---|---|---|---|---|---|---|---|---|---|---|---|---|---|");
    let mut good = true;
    for trouble in Trouble::ALL.iter().filter(|trouble| chosen(trouble)) {
        good &= run(*trouble, lasts).await?;
    }
    Ok(good)
}

#[tokio::main]
async fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    match all(&args).await {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => {
            eprintln!("chaos: a `get` failed, or was not coalesced");
            ExitCode::FAILURE
        }
        Err(error) => {
            eprintln!("chaos: {error}");
            ExitCode::FAILURE
        }
    }
}
