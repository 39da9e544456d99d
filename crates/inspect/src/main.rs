//! The command `tidegate-inspect`: shows what tidegate keeps in Redis, and invalidates it.
//!
//! `tidegate-inspect --help` describes its use.

use std::process::ExitCode;

use clap::Parser as _;
use tidegate::inspect::{EncodedKey, Names};

use crate::args::{Cli, Command, Target};
use crate::connection::Connection;
use crate::error::{Failure, redacted};

mod args;
mod connection;
mod error;
mod invalidate;
mod print;
mod queries;
mod view;
mod watch;

fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) if error.use_stderr() => {
            // The message repeats the arguments, and one of them may be a URL with a password.
            eprint!("{}", redacted(&error.to_string()));
            return ExitCode::from(2);
        }
        Err(help) => {
            print::write_stdout(&help.to_string());
            return ExitCode::SUCCESS;
        }
    };
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build();
    let done = match runtime {
        Ok(runtime) => runtime.block_on(run(&cli)),
        Err(error) => Err(Failure::Redis(error.to_string())),
    };
    done.unwrap_or_else(|failure| {
        eprintln!("tidegate-inspect: {}", redacted(failure.text()));
        failure.code()
    })
}

async fn run(cli: &Cli) -> Result<ExitCode, Failure> {
    let target = &cli.target;
    let selection = Selection::from_cli(cli)?;
    let watches = matches!(cli.command, Command::Watch { .. });
    if selection.names.is_none() && !watches {
        return Err(no_name());
    }
    let connection = Connection::open(target).await?;
    let report = match (&cli.command, &selection.names) {
        (Command::Watch { count, seconds }, names) => {
            watch::watch(&connection, target, names.as_ref(), *count, *seconds).await?;
            return Ok(ExitCode::SUCCESS);
        }
        (_, None) => return Err(no_name()),
        (Command::Key(_), Some(names)) => match selection.keys.first() {
            Some(key) => queries::key(&connection, names, key).await?,
            None => return Err(Failure::Usage("no key is given".to_owned())),
        },
        (Command::Leases(scan), Some(names)) => {
            queries::leases(&connection, names, scan.scan).await?
        }
        (Command::Marks { tag }, Some(names)) => queries::marks(&connection, names, tag).await?,
        (Command::Top { limit, scan }, Some(names)) => {
            queries::top(&connection, names, *limit, scan.scan).await?
        }
        (Command::Invalidate(what), Some(_)) => {
            let name = selection.name.as_deref().ok_or_else(no_name)?;
            invalidate::invalidate(&connection, target, name, selection.keys, what).await?
        }
    };
    report.print(target.json);
    Ok(ExitCode::from(report.code))
}

fn no_name() -> Failure {
    Failure::Usage("which cache? Say --name, or give a key as a whole: prefix:name:key".to_owned())
}

/// The cache and the keys that a command is about.
struct Selection {
    name: Option<String>,
    names: Option<Names>,
    keys: Vec<EncodedKey>,
}

impl Selection {
    fn from_cli(cli: &Cli) -> Result<Self, Failure> {
        let (keys, parts): (Vec<&str>, &[String]) = match &cli.command {
            Command::Key(key) => (key.key.iter().map(String::as_str).collect(), &key.part),
            Command::Invalidate(what) => {
                (what.keys.iter().map(String::as_str).collect(), &what.part)
            }
            _ => (Vec::new(), &[]),
        };
        let mut name = cli.target.name.clone();
        let mut encoded = Vec::with_capacity(keys.len() + 1);
        for key in keys {
            encoded.push(parse_key(key, &cli.target, &mut name)?);
        }
        if !parts.is_empty() {
            encoded.push(EncodedKey::from_parts(parts));
        }
        let names = name
            .as_ref()
            .map(|name| Names::new(&cli.target.prefix, name));
        Ok(Self {
            name,
            names,
            keys: encoded,
        })
    }
}

/// Parses a key argument. One with `prefix:name:` in front also determines the cache.
fn parse_key(
    text: &str,
    target: &Target,
    name: &mut Option<String>,
) -> Result<EncodedKey, Failure> {
    let Some((namespace, key)) = text.rsplit_once(':') else {
        return Ok(EncodedKey::parse(text)?);
    };
    let cache = namespace.strip_prefix(&target.prefix);
    let Some(cache) = cache.and_then(|cache| cache.strip_prefix(':')) else {
        let why = format!("the key {text:?} does not begin with the prefix, see --prefix");
        return Err(Failure::Usage(why));
    };
    let key = EncodedKey::parse(key)?;
    match name {
        Some(name) if Names::new(&target.prefix, name).namespace() == format!("{namespace}:") => {}
        Some(name) => {
            let why = format!("the key {text:?} is none of the cache {name:?}");
            return Err(Failure::Usage(why));
        }
        None => *name = Some(decode_name(cache)?),
    }
    Ok(key)
}

/// The name of a cache from its form in keys. A name that is escaped there is not decoded, but
/// refused.
fn decode_name(encoded: &str) -> Result<String, Failure> {
    let is_unescaped = Names::new("", encoded).namespace() == format!(":{encoded}:");
    if is_unescaped {
        Ok(encoded.to_owned())
    } else {
        let why = format!("the name in {encoded:?} is written otherwise than it is: say --name");
        Err(Failure::Usage(why))
    }
}
