//! The model: sums of measured costs, compared with real fleets and extrapolated.

use std::time::{Duration, Instant};

use tidegate::BoxError;

use super::measure::{Costs, Fleet, HOT, Idle, LEASE, drive, get, invalidate, median, nodes};
use super::server::Resources;
use crate::redis_proxy::server::Server;

/// The operations of a fleet in a second.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Load {
    pub(crate) processes: f64,
    pub(crate) hits: f64,
    pub(crate) misses: f64,
    pub(crate) invalidations: f64,
    /// Fills for which another process waits.
    pub(crate) wakes: f64,
}

/// The measured costs.
pub(crate) struct Model {
    pub(crate) costs: Costs,
    pub(crate) idle: Idle,
}

impl Model {
    /// The server's resources per second.
    fn of(&self, load: Load) -> Resources {
        let costs = &self.costs;
        let messages = (load.invalidations + load.wakes) * load.processes;
        let heartbeats = load.processes * 3.0 / LEASE.as_secs_f64();
        let invalidation = costs.invalidation_cpu(load.processes);
        let fan_out = Resources {
            cpu: load.invalidations * invalidation
                + load.wakes * (invalidation - costs.invalidation_cpu(1.0)).max(0.0),
            output: messages * costs.message,
            ..Resources::default()
        };
        Resources::default()
            .plus(load.hits, costs.hit)
            .plus(load.misses, costs.miss)
            .plus(load.invalidations, costs.invalidation)
            .plus(1.0, fan_out)
            .plus(heartbeats, self.idle.heartbeat)
    }

    /// The invalidations per second at which the server uses this share of a core, beside the other
    /// operations.
    fn most(&self, load: Load, busy: f64) -> f64 {
        let rest = self.of(Load {
            invalidations: 0.0,
            ..load
        });
        let each = self.costs.invalidation_cpu(load.processes);
        ((busy * 1e6 - rest.cpu) / each).max(0.0)
    }
}

/// Compares fleets of real handles with the model.
pub(crate) async fn validate(model: &Model, share: u64) -> Result<(), BoxError> {
    println!(
        "| handles, {} calls at once | invalidations/s | misses/s | L2 hits/s | messages/s \
         | model over measurement: messages | commands | bytes in | bytes out | CPU |",
        model.costs.at_once
    );
    println!("|---|---|---|---|---|---|---|---|---|---|");
    for many in [1, 4, 16, 64, 200] {
        let many = if share > 1 { many.min(4) } else { many };
        let mut three = Vec::new();
        for _ in 0..3 {
            three.push(model.compare_with(many, share).await?);
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
    /// Invalidations and messages per second, then the ratios of model to measurement: messages,
    /// commands, bytes in, bytes out and CPU.
    async fn compare_with(&self, many: u64, share: u64) -> Result<[f64; 7], BoxError> {
        let server = Server::start();
        let nodes = nodes(&server.url(), many, LEASE).await?;
        for key in 0..HOT {
            get(nodes[0].clone(), key).await?;
        }
        let received = || -> u64 {
            let received = nodes.iter().map(|node| node.stats().remote_invalidations);
            received.sum()
        };
        let at_once = self.costs.at_once;
        let turns = if at_once > 1 { 120_000 } else { 30_000 } / (many + 20) / share;
        let mut raw = server.raw();
        let (before, begun) = (Resources::of(&mut raw), Instant::now());
        let received_before = received();
        // The three kinds of operations alternate, because the costs were measured with concurrent
        // calls of one kind.
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
            if received() - received_before >= turns * (many - 1) {
                break;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        let seconds = begun.elapsed().as_secs_f64();
        let used_resources = Resources::of(&mut raw).since(before, seconds);
        let rate = turns as f64 / seconds;
        let load = Load {
            processes: many as f64,
            hits: 4.0 * rate,
            misses: rate,
            invalidations: rate,
            wakes: 0.0,
        };
        let received = (received() - received_before) as f64 / seconds;
        let says = self.of(load);
        let expected = rate * (many - 1) as f64;
        Ok([
            rate,
            received,
            if many > 1 { expected / received } else { 1.0 },
            says.commands / used_resources.commands,
            says.input / used_resources.input,
            says.output / used_resources.output,
            says.cpu / used_resources.cpu,
        ])
    }
}

pub(crate) fn tables(model: &Model) {
    let load = |processes, invalidations| Load {
        processes,
        invalidations,
        ..Load::default()
    };
    let fleets = [1.0, 10.0, 100.0, 1_000.0, 10_000.0];
    println!(
        "| processes, writes {} at once | writes/s | share of a core, % | bytes out, MB/s |",
        model.costs.at_once
    );
    println!("|---|---|---|---|");
    for processes in fleets {
        for writes in [10.0, 100.0, 1_000.0, 10_000.0] {
            let used = model.of(load(processes, writes));
            let (core, out) = (used.cpu / 1e4, used.output / 1e6);
            if core > 100.0 {
                println!("| {processes} | {writes} | more than 100 | – |");
            } else {
                println!("| {processes} | {writes} | {core:.1} | {out:.2} |");
            }
        }
    }
    println!();
    println!(
        "| processes | writes/s at 80 % of a core | the same beside 10,000 hits/s and 1,000 misses/s |"
    );
    println!("|---|---|---|");
    for processes in fleets {
        let beside = Load {
            hits: 10_000.0,
            misses: 1_000.0,
            ..load(processes, 0.0)
        };
        println!(
            "| {processes} | {:.0} | {:.0} |",
            model.most(load(processes, 0.0), 0.8),
            model.most(beside, 0.8)
        );
    }
    println!();
}

pub(crate) fn memory(model: &Model) {
    let costs = &model.costs;
    println!("| processes | server memory, MiB |");
    println!("|---|---|");
    for processes in [10.0, 100.0, 1_000.0, 10_000.0] {
        println!(
            "| {processes} | {:.1} |",
            processes * model.idle.process / 1_048_576.0
        );
    }
    println!();
    println!(
        "| keys | memory with payloads of 100 bytes, MiB | with payloads of 1,000 bytes, MiB |"
    );
    println!("|---|---|---|");
    for keys in [1e5, 1e6, 1e7] {
        let of = |payload: f64| keys * (costs.key() + payload) / 1_048_576.0;
        println!("| {keys} | {:.0} | {:.0} |", of(100.0), of(1_000.0));
    }
    println!();
}
