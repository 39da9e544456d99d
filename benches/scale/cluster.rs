//! The traffic on the bus of a cluster of three nodes.

use std::time::{Duration, Instant};

use tidegate::BoxError;

use super::measure::{LEASE, drive, invalidate, nodes};
use super::server::{Resources, process};
use crate::redis_proxy::eventually;
use crate::redis_proxy::server::{Raw, Reply, Server};

const NODES: usize = 3;
const SLOTS: usize = 16_384;

async fn cluster() -> Vec<Server> {
    let nodes: Vec<Server> = (0..NODES)
        .map(|_| Server::start_in_cluster(Duration::from_secs(60)))
        .collect();
    for (at, node) in nodes.iter().enumerate() {
        let mut raw = node.raw();
        let slots: Vec<String> = (at * SLOTS / NODES..(at + 1) * SLOTS / NODES)
            .map(|slot| slot.to_string())
            .collect();
        for some in slots.chunks(1_000) {
            raw.ask(&format!("CLUSTER ADDSLOTS {}", some.join(" ")));
        }
        raw.ask(&format!("CLUSTER SET-CONFIG-EPOCH {}", at + 1));
        raw.ask(&format!("CLUSTER MEET 127.0.0.1 {}", nodes[0].port()));
    }
    eventually("every node knows every slot", async || {
        nodes.iter().all(|node| {
            let Reply::Bytes(info) = node.raw().ask("CLUSTER INFO") else {
                return false;
            };
            let info = String::from_utf8_lossy(&info).into_owned();
            info.contains("cluster_state:ok") && info.contains("cluster_known_nodes:3")
        })
    })
    .await;
    nodes
}

/// The resources that all nodes used, and the bytes that they wrote to one another.
struct ClusterBus {
    raws: Vec<Raw>,
    pids: Vec<String>,
}

impl ClusterBus {
    fn new(nodes: &[Server]) -> Self {
        let mut raws: Vec<Raw> = nodes.iter().map(Server::raw).collect();
        let pids = raws.iter_mut().map(|raw| raw.info("process_id"));
        let pids = pids.map(Option::unwrap_or_default).collect();
        Self { raws, pids }
    }

    fn used_resources(&mut self) -> (Resources, f64) {
        let (mut all, mut written) = (Resources::default(), 0.0);
        for (raw, pid) in self.raws.iter_mut().zip(&self.pids) {
            let used_resources = Resources::of(raw);
            written += process(pid).1 - used_resources.output;
            all = all.plus(1.0, used_resources);
            all.publishes += used_resources.publishes;
        }
        (all, written)
    }
}

pub(crate) async fn measure(share: u64) -> Result<(), BoxError> {
    let servers = cluster().await;
    let mut bus = ClusterBus::new(&servers);
    println!(
        "| a cluster of 3 | bytes between nodes | bytes to clients | CPU of all nodes, µs | PUBLISH calls |"
    );
    println!("|---|---|---|---|---|");
    let line = |what: &str, from: &(Resources, f64), to: &(Resources, f64), of: f64| {
        let each = to.0.since(from.0, of);
        println!(
            "| {what} | {:.0} | {:.0} | {:.1} | {:.1} |",
            (to.1 - from.1) / of,
            each.output,
            each.cpu,
            each.publishes
        );
    };
    let times = 2_000 / share;
    // SPUBLISH needs a channel whose slot is on the first node.
    let mut own = (0..1_000).map(|number| format!("channel:{number}"));
    let own = own.find(|channel| {
        let slot = bus.raws[0].ask(&format!("CLUSTER KEYSLOT {channel}"));
        matches!(slot, Reply::Number(slot) if usize::try_from(slot).is_ok_and(|slot| slot < SLOTS / NODES))
    });
    let (own, message) = (own.unwrap_or_default(), "x".repeat(40));
    for command in ["PUBLISH", "SPUBLISH"] {
        let before = bus.used_resources();
        for _ in 0..times {
            // Servers before 7.0 do not know SPUBLISH.
            bus.raws[0].try_ask(&format!("{command} {own} {message}"));
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
        let after = bus.used_resources();
        line(
            &format!("a bare {command} of 40 bytes, one at a time"),
            &before,
            &after,
            times as f64,
        );
    }
    let many = if share > 1 { 2 } else { 8 };
    let url = format!("redis-cluster://127.0.0.1:{}", servers[0].port());
    let nodes = nodes(&url, many, LEASE).await?;
    tokio::time::sleep(Duration::from_secs(1)).await;
    let (before, begun) = (bus.used_resources(), Instant::now());
    tokio::time::sleep(Duration::from_millis(6_000 / share.min(6))).await;
    let (after, seconds) = (bus.used_resources(), begun.elapsed().as_secs_f64());
    let process_seconds = many as f64 * seconds;
    line(
        "a second of an idle process (with gossip)",
        &before,
        &after,
        process_seconds,
    );
    let before = bus.used_resources();
    let one = nodes[0].clone();
    drive(times, 32, move |at| invalidate(one.clone(), at)).await?;
    tokio::time::sleep(Duration::from_millis(200)).await;
    let after = bus.used_resources();
    line(
        &format!("an invalidation that {many} processes receive"),
        &before,
        &after,
        times as f64,
    );
    println!();
    Ok(())
}
