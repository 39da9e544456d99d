//! The process that loads for all others is killed.

use std::time::{Duration, Instant};

use super::Scale;
use crate::child::{AskResult, Child};
use crate::contenders::{Contender, Kind, contenders_where};
use crate::peer::BoxError;
use crate::server::Server;
use crate::table::{Table, Values, count};

const SURVIVORS: usize = 2;

pub(super) fn measure(scale: Scale) -> Result<Vec<Table>, BoxError> {
    let limit = scale.pick(Duration::from_secs(45), Duration::from_secs(6));
    let rounds = scale.pick(3, 1);
    let who = contenders_where(|one| one.lease && one.kind == Kind::Cache);
    // All contenders run at the same time, because they do nothing but wait.
    let measured: Vec<Result<Vec<Waited>, BoxError>> = std::thread::scope(|scope| {
        let all: Vec<_> = who
            .iter()
            .map(|who| {
                let rounds: Vec<_> = (0..rounds)
                    .map(|_| scope.spawn(move || round(who, limit)))
                    .collect();
                rounds
            })
            .collect();
        all.into_iter()
            .map(|rounds| {
                let joined = rounds.into_iter().map(|round| {
                    let ended = round.join();
                    ended.unwrap_or_else(|_| Err("a thread panicked".into()))
                });
                joined.collect()
            })
            .collect()
    });
    let mut table = Table::new(
        "The process that loads is killed",
        "One process holds the right to load a key and is killed with SIGKILL. Ten callers in each of two other processes wait \
        for it, and would load in 50 ms. The time from the kill until the last of them has its answer, and their loads: the \
        median of 3 rounds, the smallest and the largest. The caches that are not in the table take no lock: each process loads \
        for itself, and none waits for another one.",
        &[
            "",
            "wait, s",
            "smallest–largest, s",
            "loads of the survivors",
            "smallest–largest",
        ],
    );
    for (who, rounds) in who.iter().zip(measured) {
        let (mut waits, mut loads, mut hung) = (Values::default(), Values::default(), 0);
        for waited in rounds? {
            match waited {
                Waited::For(time, of) => {
                    waits.push(time.as_secs_f64());
                    loads.push(count(of));
                }
                Waited::TimedOut => hung += 1,
            }
        }
        let waits = match hung {
            0 => waits.spread(),
            _ => [format!("more than {}", limit.as_secs()), "–".to_owned()],
        };
        let mut row = vec![who.name.to_owned()];
        row.extend(waits);
        row.extend(loads.spread());
        table.row(row);
    }
    Ok(vec![table])
}

enum Waited {
    For(Duration, u64),
    TimedOut,
}

fn round(who: &Contender, limit: Duration) -> Result<Waited, BoxError> {
    let server = Server::start()?;
    let mut holder = Child::start(who.slug, &server.url())?;
    let survivors = (0..SURVIVORS).map(|_| Child::start(who.slug, &server.url()));
    let mut survivors = survivors.collect::<Result<Vec<_>, _>>()?;
    holder.send("ask 42 1 600000000")?;
    let loading = holder.expect_line("loading", Duration::from_secs(10))?;
    loading.ok_or("the holder does not load")?;
    for survivor in &mut survivors {
        survivor.send("ask 42 10 50000")?;
    }
    std::thread::sleep(Duration::from_millis(500));
    holder.kill()?;
    let killed = Instant::now();
    let mut loads = 0;
    for survivor in &survivors {
        let left = limit.saturating_sub(killed.elapsed());
        let Some(line) = survivor.expect_line("done", left)? else {
            return Ok(Waited::TimedOut);
        };
        loads += AskResult::parse(&line)?.loads;
    }
    Ok(Waited::For(killed.elapsed(), loads))
}
