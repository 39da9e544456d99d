//! Random faults, one after the other, of one node or of all.

use std::time::Duration;

use tokio::time::sleep;

use crate::redis_proxy::proxy::{Proxy, ProxyMode};
use crate::redis_proxy::server::Server;

/// A xorshift generator: the same numbers for the same seed.
pub(crate) struct Rng(u64);

impl Rng {
    pub(crate) fn new(seed: u64) -> Self {
        // Neighbouring seeds begin with different numbers.
        let mixed = seed.wrapping_add(1).wrapping_mul(0x9E37_79B9_7F4A_7C15);
        let mut rng = Self(mixed | 1);
        for _ in 0..8 {
            rng.below(2);
        }
        rng
    }

    pub(crate) fn below(&mut self, sides: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 11) % sides
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fault {
    ProxyMode(ProxyMode),
    /// Subscriptions end and cannot be made again, while commands pass.
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

/// Makes one fault and ends it. Returns its description.
pub(crate) async fn make_fault(server: &mut Server, proxies: &[Proxy], rng: &mut Rng) -> String {
    let fault = FAULTS[usize::try_from(rng.below(16)).unwrap_or(0)];
    let ms = [50, 500, 2_000, 4_000][usize::try_from(rng.below(4)).unwrap_or(0)];
    let lasts = Duration::from_millis(ms + rng.below(ms));
    // On the proxy of one node, or on all.
    let target = usize::try_from(rng.below(proxies.len() as u64 + 1)).unwrap_or(0);
    let proxies: Vec<&Proxy> = match proxies.get(target) {
        Some(proxy) => vec![proxy],
        None => proxies.iter().collect(),
    };
    let ask = |words: &str| server.raw().ask(words);
    match fault {
        Fault::ProxyMode(proxy) => {
            for target in &proxies {
                target.set(proxy).await;
            }
            sleep(lasts).await;
            for target in &proxies {
                target.set(ProxyMode::Pass).await;
                // Bytes that were swallowed are lost, so the connections must end.
                target.cut();
            }
        }
        Fault::Bus => {
            for target in &proxies {
                target.set(ProxyMode::Hold("SUBSCRIBE")).await;
                target.cut();
            }
            sleep(lasts).await;
            for target in &proxies {
                target.set(ProxyMode::Pass).await;
            }
        }
        Fault::Cuts => {
            for _ in 0..lasts.as_millis() / 50 {
                proxies.iter().for_each(|target| target.cut());
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
            proxies.iter().for_each(|target| target.cut());
            sleep(lasts).await;
            let mut raw = server.raw();
            raw.ask("AUTH another");
            raw.send(&[b"CONFIG", b"SET", b"requirepass", b""]);
        }
    }
    format!("{fault:?} for {lasts:?}, proxy {target}")
}
