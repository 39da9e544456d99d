//! Many callers of one cold key.

use std::time::Duration;

use super::{Participant, Scale};
use crate::child::{AskResult, Child};
use crate::contenders::caches;
use crate::peer::BoxError;
use crate::source::Source;
use crate::table::{Table, Values, count, number};

/// Microseconds of a load.
const LOAD: u64 = 50_000;

/// Processes, and callers in each.
const FLEETS: [(usize, u64); 2] = [(1, 1_000), (4, 250)];

#[derive(Clone, Default)]
struct Measured {
    loads: Values,
    p50: Values,
    p99: Values,
    failed: u64,
}

pub(super) fn measure(scale: Scale) -> Result<Vec<Table>, BoxError> {
    let participants = Participant::all(caches(), Source::new)?;
    let most = FLEETS.iter().map(|fleet| fleet.0).max().unwrap_or(1);
    let mut fleets = Vec::new();
    for participant in &participants {
        let url = participant.server.url();
        let fleet = (0..most).map(|_| Child::start(participant.who.slug, &url));
        fleets.push(fleet.collect::<Result<Vec<_>, _>>()?);
    }
    let mut measured = vec![vec![Measured::default(); FLEETS.len()]; participants.len()];
    let mut id = 1 << 32;
    for _ in 0..scale.pick(9, 1) {
        for (at, (processes, callers)) in FLEETS.into_iter().enumerate() {
            id += 1;
            for (fleet, into) in fleets.iter_mut().zip(&mut measured) {
                round(&mut fleet[..processes], id, callers, &mut into[at])?;
            }
        }
    }
    let mut table = Table::new(
        "Many callers of one cold key",
        "The load takes 50 ms. All callers begin at once, 1,000 tasks in one process or 250 in each of four, on one Redis. \
        The loads, and the time until the callers have their answer. Medians and quartiles of 9 rounds.",
        &[
            "processes",
            "cache",
            "loads",
            "quartiles",
            "p50, ms",
            "quartiles, ms",
            "p99, ms",
            "quartiles, ms",
            "failed callers",
        ],
    );
    for (at, (processes, _)) in FLEETS.into_iter().enumerate() {
        for (participant, measured) in participants.iter().zip(&measured) {
            let of = &measured[at];
            let mut row = vec![processes.to_string(), participant.who.name.to_owned()];
            for values in [&of.loads, &of.p50, &of.p99] {
                row.extend(values.spread());
            }
            row.push(number(count(of.failed)));
            table.row(row);
        }
    }
    Ok(vec![table])
}

fn round(fleet: &mut [Child], id: u64, callers: u64, into: &mut Measured) -> Result<(), BoxError> {
    for child in &mut *fleet {
        child.send(&format!("ask {id} {callers} {LOAD}"))?;
    }
    let (mut loads, mut times) = (0, Vec::new());
    for child in &*fleet {
        let line = child.expect_line("done", Duration::from_secs(60))?;
        let asked = AskResult::parse(&line.ok_or("callers hang")?)?;
        loads += asked.loads;
        into.failed += asked.failed;
        times.extend(asked.micros.into_iter().map(|micros| micros / 1e3));
    }
    let times = Values::from_iter(times);
    into.loads.push(count(loads));
    into.p50.push(times.at(0.5));
    into.p99.push(times.at(0.99));
    Ok(())
}
