//! The settings, from environment variables and arguments.

use std::net::SocketAddr;
use std::path::Path;
use std::time::Duration;

pub const HELP: &str = "\
tidegate-service [--demo] [--rate N] [--seconds N] [--quiet]

  --demo         the live page at /, a load generator, and buttons that break things
  --rate N       requests a second of the load generator; 400
  --seconds N    how long it runs; 600
  --quiet        no progress bar

  LISTEN            address; 127.0.0.1:8080
  DATABASE_URL      sqlite:FILE?mode=rwc, postgres://USER@HOST/DATABASE; a file in the temporary directory
  REDIS_URL         redis://HOST:PORT; else a redis-server of its own, where one is on the PATH; else none
  QUERY_DELAY_MS    added to each query, as a network would; 0, with --demo 5
";

#[derive(Clone, Debug)]
pub struct Settings {
    pub listen: SocketAddr,
    pub database_url: String,
    pub redis: RedisChoice,
    /// The delay that is added to each query.
    pub query_delay: Duration,
    pub demo: Option<Demo>,
}

/// Which shared tier the service uses.
#[derive(Clone, Debug)]
pub enum RedisChoice {
    /// The Redis at this URL.
    At(String),
    /// A server that the service starts, if `redis-server` is on the PATH. Else the in-process
    /// tier.
    Own,
    /// The in-process tier, which no other process shares.
    InProcess,
}

/// The settings of the load generator.
#[derive(Clone, Copy, Debug)]
pub struct Demo {
    /// Requests per second.
    pub rate: u32,
    pub length: Duration,
    pub quiet: bool,
}

#[derive(Debug, thiserror::Error)]
pub enum SettingsError {
    #[error("{name}: {value:?} is not {expected}")]
    Value {
        name: String,
        value: String,
        expected: &'static str,
    },
    #[error("{0}: no such argument\n\n{HELP}")]
    Unknown(String),
    #[error("{HELP}")]
    Help,
}

impl Settings {
    /// Reads the environment and the arguments of the process.
    pub fn from_process() -> Result<Self, SettingsError> {
        Self::from(std::env::args().skip(1), |name| std::env::var(name).ok())
    }

    pub fn from(
        args: impl IntoIterator<Item = String>,
        variable: impl Fn(&str) -> Option<String>,
    ) -> Result<Self, SettingsError> {
        let demo = demo(args)?;
        let listen = variable("LISTEN").unwrap_or_else(|| "127.0.0.1:8080".to_owned());
        let delay = match variable("QUERY_DELAY_MS") {
            Some(ms) => number("QUERY_DELAY_MS", Some(ms))?,
            None => u32::from(demo.is_some()) * 5,
        };
        Ok(Self {
            listen: parsed("LISTEN", listen, "an address such as 127.0.0.1:8080")?,
            database_url: variable("DATABASE_URL")
                .unwrap_or_else(|| sqlite(&std::env::temp_dir().join("tidegate-service.db"))),
            redis: variable("REDIS_URL").map_or(RedisChoice::Own, RedisChoice::At),
            query_delay: Duration::from_millis(delay.into()),
            demo,
        })
    }
}

/// The URL of a SQLite file, which is created if it does not exist.
pub fn sqlite(file: &Path) -> String {
    format!("sqlite:{}?mode=rwc", file.display())
}

fn demo(args: impl IntoIterator<Item = String>) -> Result<Option<Demo>, SettingsError> {
    let mut args = args.into_iter();
    let (mut on, mut rate, mut seconds, mut quiet) = (false, 400, 600, false);
    while let Some(arg) = args.next() {
        match arg.as_str() {
            "--demo" => on = true,
            "--quiet" => quiet = true,
            "--rate" => rate = number("--rate", args.next())?,
            "--seconds" => seconds = number("--seconds", args.next())?,
            "--help" | "-h" => return Err(SettingsError::Help),
            _ => return Err(SettingsError::Unknown(arg)),
        }
    }
    Ok(on.then(|| Demo {
        rate: rate.clamp(1, 20_000),
        length: Duration::from_secs(seconds.into()),
        quiet,
    }))
}

fn number(name: &str, value: Option<String>) -> Result<u32, SettingsError> {
    parsed(name, value.unwrap_or_default(), "a whole number")
}

fn parsed<T: std::str::FromStr>(
    name: &str,
    value: String,
    expected: &'static str,
) -> Result<T, SettingsError> {
    value.parse().map_err(|_| SettingsError::Value {
        name: name.to_owned(),
        value,
        expected,
    })
}
