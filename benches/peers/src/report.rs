//! The text of `RESULTS.md` around the tables.

use std::process::Command;

use crate::peer::BoxError;
use crate::server::Server;
use crate::table::wrapped;

const LOCK: &str = include_str!("../../../Cargo.lock");

const COMMAND: &str = "cargo run --release -p tidegate-peers -- --write benches/RESULTS.md";

/// The crates whose versions are named.
const VERSIONS: [&str; 13] = [
    "amalgam-cache",
    "cachekit-rs",
    "cachet",
    "multi-tier-cache",
    "cached",
    "hitbox",
    "hitbox-backend",
    "moka",
    "quick_cache",
    "fred",
    "redis",
    "tokio",
    "bincode",
];

pub(crate) fn report(tables: &str, load_before: &str) -> Result<String, BoxError> {
    let redis = Server::start()?.version()?;
    let versions: Vec<String> = VERSIONS
        .iter()
        .map(|name| format!("{name} {}", versions_of(name).join(" and ")))
        .collect();
    let or_unknown = |program: &str, args: &[&str]| {
        first_line(program, args).unwrap_or_else(|| "unknown".to_owned())
    };
    let setting = format!(
        "Measured on {}, with tidegate at {}, on {} with {} cores, {}, Redis {redis}, {}. Load average before {load_before}, after {}. {}.",
        or_unknown("date", &["+%-d %B %Y"]),
        or_unknown("git", &["describe", "--always", "--dirty"]),
        cpu().unwrap_or_else(|| "an unknown CPU".to_owned()),
        std::thread::available_parallelism()?,
        or_unknown("uname", &["-sr"]),
        or_unknown("rustc", &["--version"]),
        load_average(),
        versions.join(", "),
    );
    Ok(format!(
        "# tidegate beside its peers and its limits\n\n{}\n\n```sh\n{COMMAND}\n```\n\n{}\n\n{}\n{tables}\n{}\n",
        wrapped(WHAT),
        wrapped(&setting),
        METHOD.trim(),
        NOT_MEASURED.trim(),
    ))
}

const WHAT: &str = "A program writes this file from one run in which all contenders alternate. No figure is taken from elsewhere.";

const METHOD: &str = "
- Absolute times are those of this machine. Compare rows within a table, and multiples, which are
  medians over the same rounds.
- Contenders alternate within every round, so that other work of the machine affects all of them.
  Tables with fewer than five rounds show the smallest and the largest value instead of the
  quartiles.
- Each contender has a `redis-server` of its own on loopback, without persistence, and a tokio
  runtime with two workers.
- *Limits* are in italics: moka, quick_cache and fred alone. \"By hand\" is the cache that a team
  writes in thirty lines: moka's `try_get_with` around fred's GET and SET, with 500 ms for a
  command.
- tidegate has its defaults.
- amalgam-cache has postcard, its backplane and its breaker at 2 s (off by default), with and
  without its lock.
- cachekit-rs has its preset `production` and the loop that its documentation shows around a
  closure. Like its macro, the loop continues when Redis fails.
- cachet has a tier of ours over fred, which returns errors, and its stampede protection.
- multi-tier-cache has its invalidations by pub/sub.
- cached composes no tiers: its hits in memory are those of its sharded LRU, everything else is its
  store in Redis.
- hitbox has moka over Redis with refills and one load at a time. Its connection is made before its
  tiers are composed, because the composition makes one for each command otherwise. Its
  hitbox-backend is an older one, because the newest would hold back the workspace's thiserror.
- The TTL is an hour everywhere, also of absences, and the capacity exceeds the number of entries.
  fred is 10.1, except in cachekit-rs, which brings 9.4.
- The source counts its loads. A hit is a look-up without a load, a miss is a look-up with one.
";

const NOT_MEASURED: &str = "
## What is not measured

- Real networks, TLS, clusters, Redis under memory pressure, values above 1 KB, and machines with
  more cores than this one.
- Memory and the quality of eviction: capacities exceed the number of entries.
- Stale answers, refresh-ahead and tags: see `cargo bench --bench staleness` and
  `--bench invalidation` for tidegate's.
";

/// The first line that a program prints.
fn first_line(program: &str, args: &[&str]) -> Option<String> {
    let output = Command::new(program).args(args).output().ok()?;
    let text = String::from_utf8(output.stdout).ok()?;
    let line = text.lines().next()?.trim();
    (output.status.success() && !line.is_empty()).then(|| line.to_owned())
}

fn cpu() -> Option<String> {
    let info = std::fs::read_to_string("/proc/cpuinfo").ok()?;
    let line = info.lines().find(|line| line.starts_with("model name"))?;
    Some(line.split_once(':')?.1.trim().to_owned())
}

/// The load averages over one, five and fifteen minutes.
pub(crate) fn load_average() -> String {
    let all = std::fs::read_to_string("/proc/loadavg").unwrap_or_default();
    let three: Vec<&str> = all.split_whitespace().take(3).collect();
    if three.is_empty() {
        "unknown".to_owned()
    } else {
        three.join(" ")
    }
}

fn versions_of(name: &str) -> Vec<&'static str> {
    let wanted = format!("name = \"{name}\"");
    let mut lines = LOCK.lines();
    let mut versions = Vec::new();
    while lines.by_ref().any(|line| line == wanted) {
        let version = lines.next().and_then(|line| line.split('"').nth(1));
        versions.extend(version);
    }
    versions
}
