//! A hot key in four processes: what its expiry costs the callers and the source.

use std::io::{BufRead, BufReader, Write};
use std::process::{Child, ChildStdout, Command, Stdio};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use tidegate::{BoxError, Cache, Channel, Redis, Source, loader_fn};
use tokio::task::JoinSet;

use crate::server::Server;

/// The argument that makes this program one of the processes.
pub(crate) const WORKER: &str = "--worker";

const PROCESSES: u64 = 4;
const TTL: Duration = Duration::from_secs(1);
const LOAD: Duration = Duration::from_millis(50);
/// Requests a second of all processes together.
const RATE: f64 = 2_000.0;
/// The number of TTLs that the run lasts.
const TTLS: u32 = 20;

struct Setting {
    name: &'static str,
    beta: f64,
    while_revalidate: Duration,
}

const SETTINGS: [Setting; 5] = [
    Setting {
        name: "refresh-ahead off",
        beta: 0.0,
        while_revalidate: Duration::ZERO,
    },
    Setting {
        name: "off, stale-while-revalidate 1 s",
        beta: 0.0,
        while_revalidate: TTL,
    },
    Setting {
        name: "refresh-ahead, β = 1",
        beta: 1.0,
        while_revalidate: Duration::ZERO,
    },
    Setting {
        name: "refresh-ahead, β = 2",
        beta: 2.0,
        while_revalidate: Duration::ZERO,
    },
    Setting {
        name: "β = 1, stale-while-revalidate 1 s",
        beta: 1.0,
        while_revalidate: TTL,
    },
];

impl Setting {
    /// The expected loads per TTL, and the expected share of requests that wait.
    fn expected(&self) -> (f64, f64) {
        let (ttl, load) = (TTL.as_secs_f64(), LOAD.as_secs_f64());
        let off = self.beta == 0.0;
        let waits = if off && self.while_revalidate.is_zero() {
            load / (ttl + load)
        } else {
            0.0
        };
        if off {
            return (ttl / (ttl + load), waits);
        }
        // The expected time of the first trigger, which never comes in the first half of the TTL.
        let scale = self.beta * load;
        let mass = |gap: f64| RATE * scale * (-gap / scale).exp();
        let within = |gap: f64| (mass(ttl / 2.0) - mass(gap)).exp();
        let steps = 1_000_u32;
        let step = ttl / 2.0 / f64::from(steps);
        let gap: f64 = (0..steps)
            .map(|at| (1.0 - within(f64::from(at) * step)) * step)
            .sum();
        (ttl / (ttl - gap + load), waits)
    }
}

/// One answered request, in microseconds: when it was made, how long it took, and when the load of
/// its value had ended.
struct Request {
    source: char,
    made: u64,
    took: u64,
    loaded: u64,
}

pub(crate) fn run(seed: u64, quick: bool) -> Result<(), BoxError> {
    let server = Server::start()?;
    let ttls = if quick { 1 } else { TTLS };
    println!("## A hot key (seed {seed})\n");
    println!(
        "{PROCESSES} processes and one redis-server, {RATE} requests a second in all for {ttls} TTLs of {TTL:?}, \
         a load of {LOAD:?}.\n\nExpected: with refresh-ahead or stale-while-revalidate no request waits for a load. \
         The fleet never runs\nmore than one load at a time. An entry that is replaced early lasts less than its TTL, \
         so there is more than\none load per TTL.\n"
    );
    println!(
        "| setting | loads per TTL: expected | measured | most at once | waiting requests: expected | measured \
         | stale hits | from L1 | from L2 | from the loader | p50, ms | p99, ms | p99.9, ms | max, ms |"
    );
    println!("|---|---|---|---|---|---|---|---|---|---|---|---|---|---|");
    let mut off = Vec::new();
    for (index, setting) in SETTINGS.iter().enumerate() {
        off.extend(measure(setting, index, seed, ttls, &server.url())?);
    }
    println!();
    if off.is_empty() {
        println!("As expected.\n");
        return Ok(());
    }
    Err(off.join("; ").into())
}

fn measure(
    setting: &Setting,
    index: usize,
    seed: u64,
    ttls: u32,
    url: &str,
) -> Result<Option<String>, BoxError> {
    let mut workers = (0..PROCESSES)
        .map(|process| Worker::start(index, process, seed, ttls, url))
        .collect::<Result<Vec<_>, _>>()?;
    for worker in &mut workers {
        worker.expect("ready")?;
    }
    for worker in &mut workers {
        worker.go()?;
    }
    let (mut loads, mut requests, mut stale) = (Vec::new(), Vec::new(), 0);
    for worker in &mut workers {
        worker.read_results(&mut loads, &mut requests, &mut stale)?;
    }
    loads.sort_unstable();
    let at_once = loads.iter().map(|(begun, _)| {
        let under_way = loads
            .iter()
            .filter(|(from, to)| from <= begun && begun < to);
        under_way.count()
    });
    let at_once = at_once.max().unwrap_or(0);
    let all = requests.len() as f64;
    let waited = requests
        .iter()
        .filter(|request| request.made < request.loaded)
        .count();
    let of = |source| {
        requests
            .iter()
            .filter(|request| request.source == source)
            .count()
    };
    let mut took: Vec<u64> = requests.iter().map(|request| request.took).collect();
    took.sort_unstable();
    let at = |share: f64| {
        let index = (all * share) as usize;
        took.get(index.min(took.len().saturating_sub(1)))
            .map_or(0.0, |took| *took as f64 / 1e3)
    };
    let (expected_loads, expected_waits) = setting.expected();
    println!(
        "| {} | {expected_loads:.2} | {:.2} | {at_once} | {:.0} | {waited} | {stale} | {} | {} | {} | {:.3} | {:.2} \
         | {:.2} | {:.2} |",
        setting.name,
        loads.len() as f64 / f64::from(ttls),
        expected_waits * all,
        of('1'),
        of('2'),
        of('L'),
        at(0.5),
        at(0.99),
        at(0.999),
        at(1.0),
    );
    let off = at_once > 1 || (waited > 0 && expected_waits == 0.0);
    Ok(off.then(|| {
        format!(
            "{}: {at_once} loads at once, {waited} requests waited",
            setting.name
        )
    }))
}

/// A process, which is killed when this is dropped.
struct Worker {
    process: Child,
    lines: std::io::Lines<BufReader<ChildStdout>>,
}

impl Worker {
    fn start(
        setting: usize,
        process: u64,
        seed: u64,
        ttls: u32,
        url: &str,
    ) -> Result<Self, BoxError> {
        let seed = seed.wrapping_add(process);
        let name = format!("hot-{setting}");
        let mut process = Command::new(std::env::current_exe().map_err(BoxError::new)?)
            .args([
                WORKER,
                &setting.to_string(),
                &seed.to_string(),
                &ttls.to_string(),
                &name,
                url,
            ])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .map_err(BoxError::new)?;
        let lines = process.stdout.take().ok_or("a process without stdout")?;
        let lines = BufReader::new(lines).lines();
        Ok(Self { process, lines })
    }

    fn line(&mut self) -> Result<String, BoxError> {
        let line = self.lines.next().ok_or("a process ended too early")?;
        line.map_err(BoxError::new)
    }

    fn expect(&mut self, word: &str) -> Result<(), BoxError> {
        let line = self.line()?;
        if line == word {
            Ok(())
        } else {
            Err(format!("a process said {line:?} instead of {word:?}").into())
        }
    }

    fn go(&mut self) -> Result<(), BoxError> {
        let stdin = self
            .process
            .stdin
            .as_mut()
            .ok_or("a process without stdin")?;
        writeln!(stdin, "go").map_err(BoxError::new)
    }

    /// Reads lines `load BEGUN ENDED`, `L1 MADE TOOK LOADED` and so on, up to `stale COUNT`.
    fn read_results(
        &mut self,
        loads: &mut Vec<(u64, u64)>,
        requests: &mut Vec<Request>,
        stale: &mut u64,
    ) -> Result<(), BoxError> {
        loop {
            let line = self.line()?;
            let (word, rest) = line.split_once(' ').unwrap_or((&line, ""));
            let numbers: Result<Vec<u64>, _> = rest.split(' ').map(str::parse).collect();
            match (word, numbers.map_err(BoxError::new)?.as_slice()) {
                ("load", [begun, ended]) => loads.push((*begun, *ended)),
                ("stale", [count]) => {
                    *stale += count;
                    return Ok(());
                }
                (source, [made, took, loaded]) => requests.push(Request {
                    source: source.chars().next().unwrap_or('?'),
                    made: *made,
                    took: *took,
                    loaded: *loaded,
                }),
                _ => return Err(format!("a process said {line:?}").into()),
            }
        }
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// Microseconds on a clock that all processes of this machine share.
fn micros() -> u64 {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
    since.map_or(0, |since| {
        u64::try_from(since.as_micros()).unwrap_or(u64::MAX)
    })
}

/// The main function of a process.
pub(crate) fn work(args: &[String]) -> Result<(), BoxError> {
    let [setting, seed, ttls, name, url] = args else {
        return Err("a process needs five arguments".into());
    };
    let setting: usize = setting.parse().map_err(BoxError::new)?;
    let seed: u64 = seed.parse().map_err(BoxError::new)?;
    let ttls: u32 = ttls.parse().map_err(BoxError::new)?;
    let setting = SETTINGS.get(setting).ok_or("no such setting")?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(BoxError::new)?;
    runtime.block_on(ask(setting, seed, ttls, name, url))
}

async fn ask(
    setting: &Setting,
    seed: u64,
    ttls: u32,
    name: &str,
    url: &str,
) -> Result<(), BoxError> {
    let loads = Arc::<Mutex<Vec<(u64, u64)>>>::default();
    let load = {
        let loads = Arc::clone(&loads);
        loader_fn(move |_: u64| {
            let loads = Arc::clone(&loads);
            async move {
                let begun = micros();
                tokio::time::sleep(LOAD).await;
                let ended = micros();
                loads
                    .lock()
                    .unwrap_or_else(PoisonError::into_inner)
                    .push((begun, ended));
                Ok::<_, BoxError>(Some(ended))
            }
        })
    };
    let redis = Redis::connect(url).await.map_err(BoxError::new)?;
    let cache: Cache<u64, u64, BoxError> = Cache::builder(name, load)
        .ttl(TTL)
        .ttl_jitter(0.0)
        .refresh_ahead(setting.beta)
        .stale_while_revalidate(setting.while_revalidate)
        .l2(redis)
        .build()
        .map_err(BoxError::new)?;
    while cache.health().channel != Channel::Proven {
        cache.get(&0).await.map_err(BoxError::new)?;
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    println!("ready");
    let mut order = String::new();
    std::io::stdin()
        .read_line(&mut order)
        .map_err(BoxError::new)?;
    loads.lock().unwrap_or_else(PoisonError::into_inner).clear();

    let rng = &mut StdRng::seed_from_u64(seed);
    let (mut asked, ends) = (JoinSet::new(), Instant::now() + TTL * ttls);
    let mut at = Instant::now();
    while at < ends {
        at += Duration::from_secs_f64(-(1.0 - rng.random::<f64>()).ln() * PROCESSES as f64 / RATE);
        tokio::time::sleep_until(at.into()).await;
        let cache = cache.clone();
        asked.spawn(async move {
            let (made, begun) = (micros(), Instant::now());
            let answer = cache.get_entry(&0).await;
            (made, begun.elapsed(), answer)
        });
    }
    let mut report = String::new();
    while let Some(done) = asked.join_next().await {
        let (made, took, answer) = done.map_err(BoxError::new)?;
        let entry = answer.map_err(BoxError::new)?.ok_or("the key is missing")?;
        let source = match entry.source() {
            Source::L1 => "1",
            Source::L2 => "2",
            _ => "L",
        };
        report += &format!("{source} {made} {} {}\n", took.as_micros(), entry.value());
    }
    for (begun, ended) in loads.lock().unwrap_or_else(PoisonError::into_inner).iter() {
        report += &format!("load {begun} {ended}\n");
    }
    println!("{report}stale {}", cache.stats().stale_hits);
    cache.close().await;
    Ok(())
}
