//! Redis is killed under traffic and comes back.

use std::time::Duration;

use super::Scale;
use crate::child::Child;
use crate::contenders::{Contender, Kind, contenders_where};
use crate::peer::BoxError;
use crate::server::Server;
use crate::table::{Table, count, number};
use crate::traffic::PHASES;

pub(super) fn measure(scale: Scale) -> Result<Vec<Table>, BoxError> {
    let times = scale.pick([1_500, 5_000, 5_000], [300, 1_000, 500]);
    let mut table = Table::new(
        "Redis is killed, and comes back",
        "16 tasks of one process alternate between a key that neither tier has, with a load of 2 ms, and one of 100 keys that \
        L1 holds. After 1.5 s Redis is killed with SIGKILL, after 5 s it is started again, empty, and the traffic continues for \
        5 s. A look-up that takes 10 s has failed. Times are those of answered look-ups. A look-up counts for the phase in which \
        it began, and for the outage if that found it under way. One run of each cache, one after the other. cached has no L1 \
        over its Redis: its hits are reads of Redis.",
        &[
            "",
            "before: misses/s",
            "down: failed misses",
            "down: misses p50, ms",
            "down: misses p99, ms",
            "down: misses/s",
            "down: failed hits",
            "down: hits p99, ms",
            "after: failed misses",
            "after: misses p99, ms",
        ],
    );
    for who in contenders_where(|one| one.l2 && one.kind != Kind::Limit) {
        let phases = one(&who, times)?;
        let [before, down, after] = &phases;
        let per_second =
            |phase: &Phase, millis: u64| number(phase.misses.answered * 1e3 / count(millis));
        table.row(vec![
            who.name.to_owned(),
            per_second(before, times[0]),
            down.misses.share_failed(),
            number(down.misses.p50),
            number(down.misses.p99),
            per_second(down, times[1]),
            down.hits.share_failed(),
            number(down.hits.p99),
            after.misses.share_failed(),
            number(after.misses.p99),
        ]);
    }
    Ok(vec![table])
}

struct Phase {
    misses: Outcome,
    hits: Outcome,
}

struct Outcome {
    answered: f64,
    failed: f64,
    p50: f64,
    p99: f64,
}

impl Outcome {
    fn share_failed(&self) -> String {
        let all = self.answered + self.failed;
        if all == 0.0 {
            return "no look-up".to_owned();
        }
        format!("{} %", number(self.failed * 100.0 / all))
    }
}

fn one(who: &Contender, times: [u64; PHASES]) -> Result<[Phase; PHASES], BoxError> {
    let mut server = Server::start()?;
    let mut child = Child::start(who.slug, &server.url())?;
    child.send("traffic 16 2000")?;
    let [before, down, after] = times.map(Duration::from_millis);
    std::thread::sleep(before);
    child.send("phase 1")?;
    server.kill()?;
    std::thread::sleep(down);
    server.restart()?;
    child.send("phase 2")?;
    std::thread::sleep(after);
    child.send("stop")?;
    let phase = || {
        let line = child.expect_line("phase", Duration::from_secs(30))?;
        parse(&line.ok_or("the traffic does not end")?)
    };
    Ok([phase()?, phase()?, phase()?])
}

fn parse(line: &str) -> Result<Phase, BoxError> {
    let numbers = line.split_whitespace().map(str::parse);
    let numbers: Vec<f64> = numbers.collect::<Result<_, _>>()?;
    let outcome = |of: &[f64]| match *of {
        [answered, failed, p50, p99] => Ok(Outcome {
            answered,
            failed,
            p50,
            p99,
        }),
        _ => Err(format!("what is '{line}'?")),
    };
    let (misses, hits) = numbers.split_at(numbers.len() / 2);
    Ok(Phase {
        misses: outcome(misses)?,
        hits: outcome(hits)?,
    })
}
