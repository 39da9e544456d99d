//! The model: sums of what was measured, held against real fleets, and then drawn out further.

use std::time::{Duration, Instant};

use tidegate::BoxError;

use super::measure::{Costs, Fleet, HOT, Idle, LEASE, drive, get, invalidate, median, nodes};
use super::server::Spent;
use crate::redis_proxy::server::Server;

/// What a fleet does in a second.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Load {
    pub(crate) processes: f64,
    pub(crate) hits: f64,
    pub(crate) misses: f64,
    pub(crate) invalidations: f64,
    /// Fills that somebody in another process waits for.
    pub(crate) wakes: f64,
}

/// What was measured, to be added up.
pub(crate) struct Model {
    pub(crate) costs: Costs,
    pub(crate) idle: Idle,
}

impl Model {
    /// What the server spends in a second.
    fn of(&self, load: Load) -> Spent {
        let costs = &self.costs;
        let messages = (load.invalidations + load.wakes) * load.processes;
        let beats = load.processes * 3.0 / LEASE.as_secs_f64();
        let told = costs.invalidation_cpu(load.processes);
        let fan_out = Spent {
            cpu: load.invalidations * told
                + load.wakes * (told - costs.invalidation_cpu(1.0)).max(0.0),
            output: messages * costs.message,
            ..Spent::default()
        };
        Spent::default()
            .plus(load.hits, costs.hit)
            .plus(load.misses, costs.miss)
            .plus(load.invalidations, costs.invalidation)
            .plus(1.0, fan_out)
            .plus(beats, self.idle.beat)
    }

    /// Invalidations a second at which the server is busy for this share of the time, beside the rest.
    fn most(&self, load: Load, busy: f64) -> f64 {
        let rest = self.of(Load {
            invalidations: 0.0,
            ..load
        });
        let each = self.costs.invalidation_cpu(load.processes);
        ((busy * 1e6 - rest.cpu) / each).max(0.0)
    }
}

/// Fleets of real handles at work, and what the model says of the same.
pub(crate) async fn validate(model: &Model, share: u64) -> Result<(), BoxError> {
    println!(
        "| handles, {} calls at once | invalidations/s | misses/s | L2 hits/s | messages/s | model: messages | commands | bytes in | bytes out | CPU |",
        model.costs.at_once
    );
    println!("|---|---|---|---|---|---|---|---|---|---|");
    for many in [1, 4, 16, 64, 200] {
        let many = if share > 1 { many.min(4) } else { many };
        let mut three = Vec::new();
        for _ in 0..3 {
            three.push(model.hold_against(many, share).await?);
        }
        let of = |pick: usize| median(three.iter().map(|one| one[pick]).collect());
        println!(
            "| {many} | {:.0} | {:.0} | {:.0} | {:.0} | {:.2} × | {:.2} × | {:.2} × | {:.2} × | {:.2} × |",
            of(0),
            of(0),
            4.0 * of(0),
            of(1),
            of(2),
            of(3),
            of(4),
            of(5),
            of(6)
        );
    }
    println!();
    Ok(())
}

impl Model {
    /// Invalidations and messages in a second; then what the model says of messages, commands, bytes in and
    /// out, and CPU, over what they were.
    async fn hold_against(&self, many: u64, share: u64) -> Result<[f64; 7], BoxError> {
        let server = Server::start();
        let nodes = nodes(&server.url(), many, LEASE).await?;
        for key in 0..HOT {
            get(nodes[0].clone(), key).await?;
        }
        let told = || -> u64 {
            let told = nodes.iter().map(|node| node.stats().remote_invalidations);
            told.sum()
        };
        let at_once = self.costs.at_once;
        let turns = if at_once > 1 { 120_000 } else { 30_000 } / (many + 20) / share;
        let mut raw = server.raw();
        let (before, begun) = (Spent::of(&mut raw), Instant::now());
        let told_before = told();
        // A third of each kind, in turns: what is done together is of one kind, as it was measured.
        for part in 0..10 {
            let first = part * turns / 10;
            let some = turns / 10;
            let fleet = Fleet(nodes.clone());
            let invalidations = move |at| invalidate(fleet.one(at), 1_000_000 + first + at);
            drive(some, at_once, invalidations).await?;
            let fleet = Fleet(nodes.clone());
            let misses = move |at| get(fleet.one(at), 2_000_000 + first + at);
            drive(some, at_once, misses).await?;
            let fleet = Fleet(nodes.clone());
            let hits = move |at| get(fleet.one(at), at % HOT);
            drive(4 * some, at_once, hits).await?;
        }
        let turns = turns / 10 * 10;
        for _ in 0..200 {
            if told() - told_before >= turns * (many - 1) {
                break;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        let seconds = begun.elapsed().as_secs_f64();
        let spent = Spent::of(&mut raw).since(before, seconds);
        let rate = turns as f64 / seconds;
        let load = Load {
            processes: many as f64,
            hits: 4.0 * rate,
            misses: rate,
            invalidations: rate,
            wakes: 0.0,
        };
        let heard = (told() - told_before) as f64 / seconds;
        let says = self.of(load);
        let expected = rate * (many - 1) as f64;
        Ok([
            rate,
            heard,
            if many > 1 { expected / heard } else { 1.0 },
            says.commands / spent.commands,
            says.input / spent.input,
            says.output / spent.output,
            says.cpu / spent.cpu,
        ])
    }
}

pub(crate) fn tables(model: &Model) {
    println!(
        "| one server, writes {} at once: of a core, bytes out | 10 writes/s | 100 | 1,000 | 10,000 | writes/s at 80 % of a core | with 10,000 hits, 1,000 misses beside |",
        model.costs.at_once
    );
    println!("|---|---|---|---|---|---|---|");
    for processes in [1.0, 10.0, 100.0, 1_000.0, 10_000.0] {
        let load = |invalidations| Load {
            processes,
            invalidations,
            ..Load::default()
        };
        let cells = [10.0, 100.0, 1_000.0, 10_000.0].map(|writes| {
            let spent = model.of(load(writes));
            let (core, out) = (spent.cpu / 1e4, spent.output / 1e6);
            match core {
                core if core > 100.0 => "too much".to_owned(),
                core => format!("{core:.1} %, {out:.2} MB/s"),
            }
        });
        let beside = Load {
            hits: 10_000.0,
            misses: 1_000.0,
            wakes: 0.0,
            ..load(0.0)
        };
        println!(
            "| {processes} processes | {} | {:.0} | {:.0} |",
            cells.join(" | "),
            model.most(load(0.0), 0.8),
            model.most(beside, 0.8)
        );
    }
    println!();
}

pub(crate) fn memory(model: &Model) {
    let costs = &model.costs;
    println!("| memory of the server | MiB |");
    println!("|---|---|");
    for processes in [10.0, 100.0, 1_000.0, 10_000.0] {
        println!(
            "| {processes} processes | {:.1} |",
            processes * model.idle.process / 1_048_576.0
        );
    }
    for keys in [1e5, 1e6, 1e7] {
        let of = |payload: f64| keys * (costs.key() + payload) / 1_048_576.0;
        println!(
            "| {keys} keys, payloads of 100 bytes; of 1,000 bytes | {:.0}; {:.0} |",
            of(100.0),
            of(1_000.0)
        );
    }
    println!();
}
