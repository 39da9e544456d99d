//! Trouble that is drawn, one after the other, for one node or for all.

use std::time::Duration;

use tokio::time::sleep;

use crate::redis_proxy::proxy::{Proxy, ProxyMode};
use crate::redis_proxy::server::Server;

/// Random enough, and the same for a seed.
pub(crate) struct Dice(u64);

impl Dice {
    pub(crate) fn new(seed: u64) -> Self {
        // Seeds that are near to each other begin far from each other.
        let mixed = seed.wrapping_add(1).wrapping_mul(0x9E37_79B9_7F4A_7C15);
        let mut dice = Self(mixed | 1);
        for _ in 0..8 {
            dice.roll(2);
        }
        dice
    }

    pub(crate) fn roll(&mut self, sides: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 11) % sides
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fault {
    ProxyMode(ProxyMode),
    /// The bus is lost and cannot be had again; commands pass.
    Bus,
    Cuts,
    Pause,
    Stop,
    Kill,
    ReadOnly,
    OutOfMemory,
    ScriptFlush,
    FlushAll,
    Password,
}

const SLOW: ProxyMode = ProxyMode::Slow(Duration::from_millis(120));

const FAULTS: [Fault; 16] = [
    Fault::ProxyMode(ProxyMode::Refuse),
    Fault::ProxyMode(ProxyMode::BlackHole),
    Fault::ProxyMode(ProxyMode::DeadConnections),
    Fault::Bus,
    Fault::Bus,
    Fault::ProxyMode(SLOW),
    Fault::ProxyMode(ProxyMode::Slow(Duration::from_millis(500))),
    Fault::Cuts,
    Fault::Pause,
    Fault::Stop,
    Fault::Kill,
    Fault::ReadOnly,
    Fault::OutOfMemory,
    Fault::ScriptFlush,
    Fault::FlushAll,
    Fault::Password,
];

/// One fault from its beginning to its end. Answers what it was.
pub(crate) async fn strike(server: &mut Server, wires: &[Proxy], dice: &mut Dice) -> String {
    let fault = FAULTS[usize::try_from(dice.roll(16)).unwrap_or(0)];
    let ms = [50, 500, 2_000, 4_000][usize::try_from(dice.roll(4)).unwrap_or(0)];
    let lasts = Duration::from_millis(ms + dice.roll(ms));
    // On one node's wire, or on everybody's.
    let hit = usize::try_from(dice.roll(wires.len() as u64 + 1)).unwrap_or(0);
    let wires: Vec<&Proxy> = match wires.get(hit) {
        Some(mode) => vec![mode],
        None => wires.iter().collect(),
    };
    let ask = |words: &str| server.raw().ask(words);
    match fault {
        Fault::ProxyMode(mode) => {
            for hit in &wires {
                hit.set(mode).await;
            }
            sleep(lasts).await;
            for hit in &wires {
                hit.set(ProxyMode::Pass).await;
                // What was said meanwhile is lost: no stream goes on without it.
                hit.cut();
            }
        }
        Fault::Bus => {
            for hit in &wires {
                hit.set(ProxyMode::Hold("SUBSCRIBE")).await;
                hit.cut();
            }
            sleep(lasts).await;
            for hit in &wires {
                hit.set(ProxyMode::Pass).await;
            }
        }
        Fault::Cuts => {
            for _ in 0..lasts.as_millis() / 50 {
                wires.iter().for_each(|hit| hit.cut());
                sleep(Duration::from_millis(50)).await;
            }
        }
        Fault::Pause => {
            ask(&format!("CLIENT PAUSE {}", lasts.as_millis()));
            sleep(lasts).await;
        }
        Fault::Stop => {
            server.stop();
            sleep(lasts).await;
            server.resume();
        }
        Fault::Kill => {
            server.kill();
            sleep(lasts).await;
            server.restart();
        }
        Fault::ReadOnly => {
            ask("REPLICAOF 127.0.0.1 1");
            sleep(lasts).await;
            ask("REPLICAOF NO ONE");
        }
        Fault::OutOfMemory => {
            ask("CONFIG SET maxmemory 1");
            sleep(lasts).await;
            ask("CONFIG SET maxmemory 0");
        }
        Fault::ScriptFlush => drop(ask("SCRIPT FLUSH")),
        Fault::FlushAll => drop(ask("FLUSHALL")),
        Fault::Password => {
            ask("CONFIG SET requirepass another");
            wires.iter().for_each(|hit| hit.cut());
            sleep(lasts).await;
            let mut raw = server.raw();
            raw.ask("AUTH another");
            raw.send(&[b"CONFIG", b"SET", b"requirepass", b""]);
        }
    }
    format!("{fault:?} for {lasts:?}, wire {hit}")
}
