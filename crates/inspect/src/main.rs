//! `tidegate-inspect`: looks into what tidegate keeps in Redis, and invalidates it. `--help` says how.

use std::process::ExitCode;

use clap::Parser as _;
use tidegate::inspect::{EncodedKey, Names};

use crate::args::{Cli, Command, Target};
use crate::connection::Connection;
use crate::error::{Failure, redacted};

mod args;
mod change;
mod connection;
mod error;
mod look;
mod print;
mod view;
mod watch;

fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(refused) if refused.use_stderr() => {
            // It repeats what was said, and that may be a URL in the wrong place.
            eprint!("{}", redacted(&refused.to_string()));
            return ExitCode::from(2);
        }
        Err(help) => {
            print::say(&help.to_string());
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
    let chosen = Chosen::of(cli)?;
    let watches = matches!(cli.command, Command::Watch { .. });
    if chosen.names.is_none() && !watches {
        return Err(no_name());
    }
    let connection = Connection::open(target).await?;
    let report = match (&cli.command, &chosen.names) {
        (Command::Watch { count, seconds }, names) => {
            watch::watch(&connection, target, names.as_ref(), *count, *seconds).await?;
            return Ok(ExitCode::SUCCESS);
        }
        (_, None) => return Err(no_name()),
        (Command::Key(_), Some(names)) => match chosen.keys.first() {
            Some(key) => look::key(&connection, names, key).await?,
            None => return Err(Failure::Usage("no key is given".to_owned())),
        },
        (Command::Leases(scan), Some(names)) => look::leases(&connection, names, scan.scan).await?,
        (Command::Marks { tag }, Some(names)) => look::marks(&connection, names, tag).await?,
        (Command::Top { limit, scan }, Some(names)) => {
            look::top(&connection, names, *limit, scan.scan).await?
        }
        (Command::Invalidate(what), Some(_)) => {
            let name = chosen.name.as_deref().ok_or_else(no_name)?;
            change::invalidate(&connection, target, name, chosen.keys, what).await?
        }
    };
    report.print(target.json);
    Ok(ExitCode::from(report.code))
}

fn no_name() -> Failure {
    Failure::Usage("which cache? Say --name, or give a key as a whole: prefix:name:key".to_owned())
}

/// The cache and the keys that a command is about.
struct Chosen {
    name: Option<String>,
    names: Option<Names>,
    keys: Vec<EncodedKey>,
}

impl Chosen {
    fn of(cli: &Cli) -> Result<Self, Failure> {
        let (keys, parts): (Vec<&str>, &[String]) = match &cli.command {
            Command::Key(key) => (key.key.iter().map(String::as_str).collect(), &key.part),
            Command::Invalidate(what) => {
                (what.keys.iter().map(String::as_str).collect(), &what.part)
            }
            _ => (Vec::new(), &[]),
        };
        let mut name = cli.target.name.clone();
        let mut chosen = Vec::with_capacity(keys.len() + 1);
        for key in keys {
            chosen.push(key_of(key, &cli.target, &mut name)?);
        }
        if !parts.is_empty() {
            chosen.push(EncodedKey::from_parts(parts));
        }
        let names = name
            .as_ref()
            .map(|name| Names::new(&cli.target.prefix, name));
        Ok(Self {
            name,
            names,
            keys: chosen,
        })
    }
}

/// A key as it is given, whole or not. A whole one says which cache is meant.
fn key_of(text: &str, target: &Target, name: &mut Option<String>) -> Result<EncodedKey, Failure> {
    let Some((namespace, key)) = text.rsplit_once(':') else {
        return Ok(EncodedKey::parse(text)?);
    };
    let theirs = namespace.strip_prefix(&target.prefix);
    let Some(theirs) = theirs.and_then(|theirs| theirs.strip_prefix(':')) else {
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
        None => *name = Some(plain_name(theirs)?),
    }
    Ok(key)
}

/// The name of a cache whose keys have it like this.
fn plain_name(encoded: &str) -> Result<String, Failure> {
    let named = Names::new("", encoded).namespace() == format!(":{encoded}:");
    if named {
        Ok(encoded.to_owned())
    } else {
        let why = format!("the name in {encoded:?} is written otherwise than it is: say --name");
        Err(Failure::Usage(why))
    }
}
