//! The command line.

use crate::traffic::Job;

pub(crate) const HELP: &str = "\
How many queries reach the database when everybody wants one key at once?

Usage: cargo run --release --example stampede -- [OPTIONS]

Options:
  --requests N     requests per strategy and phase, 1 to 100000 [default: 1000]
  --processes N    processes that send them, 1 to 16 [default: 4]
  --redis WHERE    the shared tier, and with it what a process is:
                     redis://host:port  real processes and this Redis or Valkey server
                     auto               real processes and a server that is started and
                                        stopped here; needs `redis-server` on the PATH
                     none               processes are simulated, the shared tier is embedded
                   [default: none; auto if --processes is given and there is a redis-server]
  --help           this text

1,000 requests take about a minute on two cores: two of the four strategies send nearly all of
them to the database.";

/// The parsed command line.
pub(crate) enum Command {
    Help,
    Run(Options),
    /// One process of the fleet: this program, started by itself.
    Work(Work),
}

pub(crate) struct Options {
    pub(crate) requests: usize,
    pub(crate) processes: usize,
    pub(crate) redis: Redis,
}

/// The shared tier to use.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Redis {
    None,
    Auto,
    Url(String),
}

/// The settings of one process of the fleet.
#[derive(Clone)]
pub(crate) struct Work {
    pub(crate) index: usize,
    pub(crate) job: Job,
    pub(crate) database: String,
    pub(crate) url: String,
}

const WORKER: &str = "--worker";

pub(crate) fn parse(mut args: impl Iterator<Item = String>) -> Result<Command, String> {
    let (mut requests, mut processes, mut redis) = (1000, None, None);
    while let Some(arg) = args.next() {
        // Accepts `--requests 10` and `--requests=10`.
        let (name, mut inline) = match arg.split_once('=') {
            Some((name, value)) => (name.to_owned(), Some(value.to_owned())),
            None => (arg, None),
        };
        let mut value = |what: &str| {
            inline
                .take()
                .or_else(|| args.next())
                .ok_or_else(|| format!("{name} needs {what}"))
        };
        match name.as_str() {
            "--help" | "-h" => return Ok(Command::Help),
            "--requests" => requests = number(&name, &value("a number")?, 100_000)?,
            "--processes" => processes = Some(number(&name, &value("a number")?, 16)?),
            "--redis" => redis = Some(parse_redis(&value("a URL, `auto` or `none`")?)?),
            WORKER => return Work::from_args(args).map(Command::Work),
            other => return Err(format!("there is no option {other:?}")),
        }
        if let Some(unused) = inline {
            return Err(format!("{name} takes no value, but there is {unused:?}"));
        }
    }
    let redis = redis.unwrap_or_else(|| {
        if processes.is_some() && crate::redis::server_on_path() {
            Redis::Auto
        } else {
            Redis::None
        }
    });
    Ok(Command::Run(Options {
        requests,
        processes: processes.unwrap_or(4),
        redis,
    }))
}

fn number(name: &str, text: &str, most: usize) -> Result<usize, String> {
    let number: usize = text
        .replace([',', '_'], "")
        .parse()
        .map_err(|_| format!("{name} needs a number, not {text:?}"))?;
    if !(1..=most).contains(&number) {
        return Err(format!("{name} takes 1 to {most}, not {number}"));
    }
    Ok(number)
}

fn parse_redis(text: &str) -> Result<Redis, String> {
    match text {
        "none" => Ok(Redis::None),
        "auto" => Ok(Redis::Auto),
        url if url.starts_with("redis://") => Ok(Redis::Url(url.to_owned())),
        // The message does not repeat the URL, which may hold a password.
        _ => Err("--redis takes redis://host:port (a single server), `auto` or `none`".to_owned()),
    }
}

impl Work {
    /// The arguments that start such a process. The URL is not among them, because arguments are
    /// visible to every user of the machine and the URL may hold a password.
    pub(crate) fn to_args(&self) -> Vec<String> {
        let job = &self.job;
        vec![
            WORKER.to_owned(),
            self.index.to_string(),
            job.processes.to_string(),
            job.requests.to_string(),
            job.strategy.word().to_owned(),
            job.phase.word().to_owned(),
            job.name.clone(),
            self.database.clone(),
        ]
    }

    fn from_args(mut args: impl Iterator<Item = String>) -> Result<Self, String> {
        let mut next = |what: &str| {
            args.next()
                .ok_or_else(|| format!("{WORKER} misses its {what}"))
        };
        let mut count = |what: &str| -> Result<usize, String> {
            next(what)?
                .parse()
                .map_err(|_| format!("{WORKER}: the {what} is not a number"))
        };
        let (index, processes, requests) =
            (count("index")?, count("processes")?, count("requests")?);
        let strategy = next("strategy")?.parse()?;
        let phase = next("phase")?.parse()?;
        let name = next("name")?;
        let job = Job {
            strategy,
            phase,
            requests,
            processes,
            name,
        };
        let database = next("database")?;
        let url = std::env::var(WORKER_URL).map_err(|_| format!("{WORKER} misses {WORKER_URL}"))?;
        Ok(Self {
            index,
            job,
            database,
            url,
        })
    }
}

/// The variable that carries the URL.
pub(crate) const WORKER_URL: &str = "STAMPEDE_REDIS_URL";
