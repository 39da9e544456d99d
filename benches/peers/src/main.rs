//! tidegate beside its peers and its limits, in one run, taking turns.
//!
//! ```text
//! cargo run --release -p tidegate-peers                                   # all tables, about a quarter of an hour
//! cargo run --release -p tidegate-peers -- --write benches/RESULTS.md     # the file that is kept
//! cargo run --release -p tidegate-peers -- --quick                        # only whether everything runs
//! cargo run --release -p tidegate-peers -- hits outage                    # some of the tables
//! cargo run --release -p tidegate-peers -- l2 --only tidegate,by-hand     # some of the rows, beside the limits
//! ```
//!
//! It starts its own servers and processes, and leaves nothing behind. Needs a `redis-server` on the PATH, or named in
//! `TIDEGATE_REDIS_SERVER`.

use std::process::ExitCode;
use std::time::Instant;

use self::cells::{CELLS, Scale};
use self::peer::Fault;

mod cells;
mod child;
mod contenders;
mod drive;
mod peer;
mod report;
mod server;
mod source;
mod table;

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

fn run(words: &[&str]) -> Result<(), Fault> {
    let (mut quick, mut only, mut file, mut chosen) = (false, None, None, Vec::new());
    let mut rest = words.iter();
    while let Some(&word) = rest.next() {
        match word {
            "--quick" | "--test" => quick = true,
            "--only" => {
                only = Some(
                    *rest
                        .next()
                        .ok_or("--only needs names, with commas between them")?,
                )
            }
            "--write" => file = Some(*rest.next().ok_or("--write needs the name of a file")?),
            name => chosen.push(name),
        }
    }
    let names = || CELLS.map(|(name, _)| name).join(", ");
    if let Some(name) = chosen
        .iter()
        .find(|name| CELLS.iter().all(|cell| cell.0 != **name))
    {
        return Err(format!("there is no table '{name}'; there are: {}", names()).into());
    }
    if file.is_some() && (quick || only.is_some() || !chosen.is_empty()) {
        return Err("--write is for the whole: no --quick, no --only, no names of tables".into());
    }
    if let Some(slugs) = only {
        contenders::only(slugs)?;
    }
    let load = report::load_average();
    if quick {
        eprintln!("quick: one small round of each, whose figures mean nothing");
    }
    let mut text = String::new();
    for (name, measure) in CELLS {
        if chosen.is_empty() || chosen.contains(&name) {
            let begun = Instant::now();
            for table in measure(Scale { quick })? {
                let markdown = table.markdown();
                println!("{markdown}");
                text = format!("{text}\n{markdown}");
            }
            eprintln!("{name}: {:.0} s", begun.elapsed().as_secs_f64());
        }
    }
    if let Some(file) = file {
        std::fs::write(file, report::report(&text, &load)?)?;
    }
    Ok(())
}

/// Loaders panic on purpose here, in dozens.
fn quiet_panics() {
    let tell = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        if panic.payload().downcast_ref::<&str>() != Some(&source::PANIC) {
            tell(panic);
        }
    }));
}
