//! tidegate beside its peers and its limits, in alternation within one run.
//!
//! ```text
//! cargo run --release -p tidegate-peers                                # all tables, 15 minutes
//! cargo run --release -p tidegate-peers -- --write benches/RESULTS.md  # and write the file
//! cargo run --release -p tidegate-peers -- --quick                     # a check that all runs
//! cargo run --release -p tidegate-peers -- hits outage                 # some of the tables
//! cargo run --release -p tidegate-peers -- l2 --only tidegate,by-hand  # some of the rows
//! ```
//!
//! The program starts its own servers and processes, and leaves nothing behind. Needs a
//! `redis-server` on the PATH, or named in `TIDEGATE_REDIS_SERVER`.

use std::process::ExitCode;
use std::time::Instant;

use self::measurements::{MEASUREMENTS, Scale};
use self::peer::BoxError;

mod child;
mod contenders;
mod measurements;
mod peer;
mod report;
mod server;
mod source;
mod table;
mod traffic;

fn main() -> ExitCode {
    quiet_panics();
    let args: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = args.iter().map(String::as_str).collect();
    let ended = match words[..] {
        ["child", slug, url] => child::run(slug, url),
        _ => run(&words),
    };
    match ended {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("peers: {error}");
            ExitCode::FAILURE
        }
    }
}

/// What the command line asks for.
#[derive(Default)]
struct Wanted<'a> {
    quick: bool,
    only: Option<&'a str>,
    file: Option<&'a str>,
    tables: Vec<&'a str>,
}

impl<'a> Wanted<'a> {
    fn parse(words: &[&'a str]) -> Result<Self, BoxError> {
        let mut wanted = Self::default();
        let mut rest = words.iter().copied();
        while let Some(word) = rest.next() {
            match word {
                "--quick" | "--test" => wanted.quick = true,
                "--only" => {
                    wanted.only = Some(
                        rest.next()
                            .ok_or("--only needs names, with commas between them")?,
                    )
                }
                "--write" => {
                    wanted.file = Some(rest.next().ok_or("--write needs the name of a file")?)
                }
                name if MEASUREMENTS.iter().any(|cell| cell.0 == name) => wanted.tables.push(name),
                name => {
                    let all = MEASUREMENTS.map(|(name, _)| name).join(", ");
                    return Err(format!("there is no table '{name}'; there are: {all}").into());
                }
            }
        }
        let whole = !wanted.quick && wanted.only.is_none() && wanted.tables.is_empty();
        if wanted.file.is_some() && !whole {
            return Err(
                "--write is for the whole: no --quick, no --only, no names of tables".into(),
            );
        }
        Ok(wanted)
    }
}

fn run(words: &[&str]) -> Result<(), BoxError> {
    let wanted = Wanted::parse(words)?;
    if let Some(slugs) = wanted.only {
        contenders::only(slugs)?;
    }
    let quick = wanted.quick;
    if quick {
        eprintln!("quick: one small round of each, whose figures mean nothing");
    }
    let load = report::load_average();
    let (mut text, mut failed) = (String::new(), Vec::new());
    for (name, measure) in MEASUREMENTS {
        if !wanted.tables.is_empty() && !wanted.tables.contains(&name) {
            continue;
        }
        let begun = Instant::now();
        match measure(Scale { quick }) {
            Ok(tables) => {
                for table in tables {
                    let markdown = table.markdown();
                    println!("{markdown}");
                    text = format!("{text}\n{markdown}");
                }
            }
            Err(error) => failed.push(format!("{name}: {error}")),
        }
        eprintln!("{name}: {:.0} s", begun.elapsed().as_secs_f64());
    }
    if !failed.is_empty() {
        return Err(failed.join("; ").into());
    }
    if let Some(file) = wanted.file {
        std::fs::write(file, report::report(&text, &load)?)?;
    }
    Ok(())
}

/// Hides the panics that loaders make on purpose.
fn quiet_panics() {
    let tell = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        if panic.payload().downcast_ref::<&str>() != Some(&source::PANIC) {
            tell(panic);
        }
    }));
}
