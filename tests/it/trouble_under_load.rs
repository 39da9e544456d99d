//! Every kind of server trouble under a steady load: one harness, one test per kind.
//!
//! | required | how it is checked |
//! |---|---|
//! | no look-up fails, and none misses an invalidation made here | every answer |
//! | a look-up waits for a few timeouts at most | the longest look-up |
//! | loads stay coalesced | cold keys with 20 callers whose load waits at a gate |
//! | the trouble was present | an insert failed with the expected error, or what the test names |
//! | L2 is used again, and no repair is pending | fills, an L2 hit in another cache, an L1 hit |

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use tidegate::{Cache, Redis, Source};

use crate::support::cluster::{Cluster, cluster_info};
use crate::support::eventually;
use crate::support::loader::{Behaviour, Db};
use crate::support::node::{Node, answer, value};
use crate::support::proxy::{Proxy, ProxyMode};
use crate::support::server::{Reply, Server, url};
use crate::support::traffic::{HOT, Traffic, why};

const TIMEOUT: Duration = Duration::from_millis(300);
const LEASE: Duration = Duration::from_millis(500);
/// A look-up may wait for its first unanswered command, for a lease whose grant was not received,
/// and for a fill. A busy machine may add to that.
const LONGEST: Duration = Duration::from_secs(3);
/// Look-ups that must be answered while the trouble lasts.
const GETS: u64 = 150;

/// A process that reaches L2 by this URL, under a steady load.
struct CacheUnderLoad {
    db: Db,
    a: Node,
    /// Another cache on the same handle. It sends nothing while the trouble lasts.
    b: Node,
    traffic: Traffic,
}

impl CacheUnderLoad {
    async fn new(url: &str) -> Self {
        let redis = Redis::builder(url).timeout(TIMEOUT);
        let redis = redis.connect().await.expect("connect");
        let db = Db::default();
        db.behave(Behaviour {
            takes: Duration::from_millis(1),
            ..Behaviour::default()
        });
        let node = || {
            let builder = Cache::builder("users", db.clone())
                .ttl_jitter(0.0)
                .lease_ttl(LEASE);
            Node::new(builder.l2(redis.clone()).build().expect("a cache"))
        };
        let (a, b) = (node(), node());
        let traffic = Traffic::begin(&a, &db, |_| true);
        eventually("L2 is in use", async || a.stats().fills > 20).await;
        Self { db, a, b, traffic }
    }

    /// Waits until an insert fails with this word. The insert becomes an invalidation.
    async fn wait_for_error(&self, word: &str) {
        eventually(word, async || {
            let result = self.a.insert(500, "row 500".to_owned()).await;
            result.is_err_and(|error| why(&error).contains(word))
        })
        .await;
    }

    /// Waits until an insert is not answered at all.
    async fn wait_for_no_answer(&self) {
        eventually("the server is silent", async || {
            let result = self.a.insert(500, "row 500".to_owned()).await;
            result.is_err_and(|error| error.is_timeout() || error.is_unreachable())
        })
        .await;
    }

    /// Cold keys are loaded once for all callers, and look-ups continue.
    async fn assert_works_meanwhile(&self) {
        for key in 600..603 {
            let gaps = self.a.stats().gaps;
            let gate = self.db.gate_of(key);
            let callers = self.a.callers(20, key).await;
            gate.reached().await;
            gate.open();
            for caller in callers {
                assert_eq!(value(answer(caller).await), format!("row {key}"));
            }
            // Callers that come after a gap do not join a load that began before it.
            let loads = self.db.loads_of(key);
            let gaps = self.a.stats().gaps - gaps;
            assert!(loads <= 1 + gaps, "{loads} loads of key {key}, {gaps} gaps");
        }
        self.traffic.wait_for_look_ups(GETS).await;
    }

    /// The cache recovers by itself.
    async fn assert_recovers(self, what: &str) {
        let mut key = 10_000;
        eventually(
            "loads fill L2, and another cache reads them there",
            async || {
                key += 1;
                assert_eq!(value(self.a.get(key).await), format!("row {key}"));
                assert_eq!(value(self.b.get(key).await), format!("row {key}"));
                self.db.loads_of(key) == 1
            },
        )
        .await;
        eventually("L1 is used again", async || {
            let entry = self.a.get_entry(key).await.expect("a look-up");
            entry.expect("an entry").source() == Source::L1
        })
        .await;
        eventually("nothing is left to be repaired", async || {
            self.a.health().pending_repairs == 0
        })
        .await;
        self.traffic.end(what, LONGEST).await;
        self.a.check().await;
        for key in 0..HOT {
            let row = self.db.row(key);
            assert_eq!(value(self.a.get(key).await), row);
            eventually("the change has arrived", async || {
                value(self.b.get(key).await) == row
            })
            .await;
        }
        self.b.check().await;
    }
}

/// One server behind a proxy.
struct Fixture {
    server: Server,
    proxy: Proxy,
    cache: CacheUnderLoad,
}

impl Fixture {
    async fn new() -> Self {
        Self::on(Server::start()).await
    }

    async fn on(server: Server) -> Self {
        let proxy = Proxy::to(server.port()).await;
        let cache = CacheUnderLoad::new(&url(proxy.port())).await;
        Self {
            server,
            proxy,
            cache,
        }
    }
}

/// Tests one mode of the proxy.
async fn test_proxy_mode(what: &str, mode: ProxyMode) {
    let fixture = Fixture::new().await;
    fixture.proxy.set(mode).await;
    fixture.cache.wait_for_no_answer().await;
    fixture.cache.assert_works_meanwhile().await;
    fixture.proxy.set(ProxyMode::Pass).await;
    fixture.cache.assert_recovers(what).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn connections_that_are_refused() {
    test_proxy_mode("refused", ProxyMode::Refuse).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn connections_that_end_in_the_middle_of_a_reply() {
    test_proxy_mode("torn", ProxyMode::CutMidReply(25)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_black_hole() {
    test_proxy_mode("a black hole", ProxyMode::BlackHole).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_is_half_a_second_slow() {
    test_proxy_mode("slow", ProxyMode::Slow(Duration::from_millis(500))).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_whose_clients_are_paused() {
    let fixture = Fixture::new().await;
    // The pause ends by itself.
    fixture.server.raw().ask("CLIENT PAUSE 1500");
    fixture.cache.wait_for_no_answer().await;
    fixture.cache.assert_works_meanwhile().await;
    fixture.cache.assert_recovers("CLIENT PAUSE").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_is_stopped() {
    let fixture = Fixture::new().await;
    fixture.server.stop();
    fixture.cache.wait_for_no_answer().await;
    fixture.cache.assert_works_meanwhile().await;
    fixture.server.resume();
    fixture.cache.assert_recovers("SIGSTOP").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_is_killed_and_comes_back_empty() {
    let mut fixture = Fixture::new().await;
    fixture.server.kill();
    fixture.cache.wait_for_no_answer().await;
    fixture.cache.assert_works_meanwhile().await;
    fixture.server.restart();
    fixture.cache.assert_recovers("SIGKILL").await;
}

/// `-LOADING`: the server is back and reads its file.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_loads_its_file() {
    let server = Server::start();
    let mut raw = server.raw();
    // The server answers commands once per 2 MB of the file.
    let many = "for i = 1, 60 do redis.call('SET', 'other:' .. i, string.rep('x', 2100000)) end";
    raw.ask("CONFIG SET rdbcompression no");
    raw.send(&[b"EVAL", many.as_bytes(), b"0"]);
    raw.ask("SAVE");
    let mut fixture = Fixture::on(server).await;
    fixture.server.kill();
    // The delay for each key, in microseconds.
    fixture.server.restart_with(&["--key-load-delay", "80000"]);
    let mut raw = fixture.server.raw();
    // The client counts a connection that gets this answer to its handshake as not connected.
    fixture.cache.wait_for_no_answer().await;
    fixture.cache.assert_works_meanwhile().await;
    let reply = raw.try_ask("GET x");
    assert!(
        matches!(&reply, Reply::Error(error) if error.starts_with("LOADING")),
        "{reply:?}"
    );
    raw.ask("CONFIG SET key-load-delay 0");
    eventually("it has read its file", async || {
        raw.info("loading").as_deref() == Some("0")
    })
    .await;
    fixture.cache.assert_recovers("LOADING").await;
}

/// `-READONLY`
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_has_become_a_replica() {
    let fixture = Fixture::new().await;
    let (primary, mut raw) = (Server::start(), fixture.server.raw());
    raw.ask(&format!("REPLICAOF 127.0.0.1 {}", primary.port()));
    eventually("it has what its primary has", async || {
        raw.info("master_link_status").as_deref() == Some("up")
    })
    .await;
    fixture.cache.wait_for_error("READONLY").await;
    fixture.cache.assert_works_meanwhile().await;
    raw.ask("REPLICAOF NO ONE");
    fixture.cache.assert_recovers("READONLY").await;
}

/// `-OOM`
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_without_memory() {
    let fixture = Fixture::new().await;
    let mut raw = fixture.server.raw();
    raw.ask("CONFIG SET maxmemory-policy noeviction");
    raw.ask("CONFIG SET maxmemory 1");
    fixture.cache.wait_for_error("OOM").await;
    fixture.cache.assert_works_meanwhile().await;
    raw.ask("CONFIG SET maxmemory 0");
    fixture.cache.assert_recovers("OOM").await;
}

/// `-MISCONF`
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_cannot_write_its_file() {
    let fixture = Fixture::new().await;
    let mut raw = fixture.server.raw();
    // A directory stands where the file should be written.
    let file = fixture.server.dir().join("dump.rdb");
    std::fs::create_dir(&file).expect("a directory");
    raw.send(&[b"CONFIG", b"SET", b"save", b"3600 1"]);
    raw.ask("BGSAVE");
    eventually("it has failed", async || {
        raw.info("rdb_last_bgsave_status").as_deref() == Some("err")
    })
    .await;
    fixture.cache.wait_for_error("MISCONF").await;
    fixture.cache.assert_works_meanwhile().await;
    std::fs::remove_dir(&file).expect("remove it");
    raw.ask("BGSAVE");
    fixture.cache.assert_recovers("MISCONF").await;
}

/// `-NOSCRIPT`: the script is sent again, and nothing fails.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_forgets_its_scripts_all_the_time() {
    let fixture = Fixture::new().await;
    let mut raw = fixture.server.raw();
    let (before, failures) = (raw.calls("eval"), fixture.cache.a.stats().l2_failures);
    eventually("scripts are sent again", async || {
        raw.ask("SCRIPT FLUSH");
        raw.calls("eval") > before + 50
    })
    .await;
    fixture.cache.assert_works_meanwhile().await;
    assert_eq!(fixture.cache.a.stats().l2_failures, failures);
    assert_eq!(fixture.cache.a.health().pending_repairs, 0);
    fixture.cache.assert_recovers("NOSCRIPT").await;
}

/// `-BUSY`
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_is_busy_with_a_script() {
    let fixture = Fixture::new().await;
    let (mut busy, mut raw) = (fixture.server.raw(), fixture.server.raw());
    raw.ask("CONFIG SET lua-time-limit 20");
    busy.tell(&[b"EVAL", b"while true do end", b"0"]);
    fixture.cache.wait_for_error("BUSY").await;
    fixture.cache.assert_works_meanwhile().await;
    raw.ask("SCRIPT KILL");
    fixture.cache.assert_recovers("BUSY").await;
}

/// `-CLUSTERDOWN`
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cluster_that_is_down() {
    let cluster = Cluster::start(1).await;
    let cache = CacheUnderLoad::new(&cluster.url()).await;
    let mut raw = cluster.nodes[0].raw();
    raw.ask("CONFIG SET cluster-require-full-coverage yes");
    raw.ask("CLUSTER DELSLOTS 0");
    eventually("it is down", async || {
        cluster_info(&cluster.nodes[0]).contains("cluster_state:fail")
    })
    .await;
    let reply = raw.try_ask("GET x");
    assert!(matches!(&reply, Reply::Error(error) if error.starts_with("CLUSTERDOWN")));
    // The client treats a connection with this answer as broken.
    cache.wait_for_no_answer().await;
    cache.assert_works_meanwhile().await;
    raw.ask("CLUSTER ADDSLOTS 0");
    cache.assert_recovers("CLUSTERDOWN").await;
}

/// `-TRYAGAIN`: the record and its claim are on different nodes.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn slots_that_are_on_their_way_for_long() {
    let cluster = Cluster::start(2).await;
    let cache = CacheUnderLoad::new(&cluster.url()).await;
    let mut slots: Vec<(usize, usize)> = (0..HOT)
        .chain([500])
        .map(|key| (cluster.slot(key), cluster.primary_of(key)))
        .collect();
    slots.sort_unstable();
    slots.dedup();
    for (slot, home) in &slots {
        cluster.begin_slot_migration(*slot, *home, 1 - home);
    }
    // An absent key is answered with "on its way", and a key whose record and claim are apart with
    // TRYAGAIN. Neither answer may count as carried out.
    cache.wait_for_error("on its way").await;
    eventually("a hot key is to be tried again", async || {
        cache.traffic.observed().was_refused("TRYAGAIN")
    })
    .await;
    cache.assert_works_meanwhile().await;
    for (slot, home) in &slots {
        cluster.move_keys_of_slot(*slot, *home, 1 - home);
        cluster.assign_slot(*slot, 1 - home);
    }
    cache.assert_recovers("TRYAGAIN").await;
}

/// `-MOVED` and `-ASK`
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn slots_that_move_all_the_time() {
    let cluster = Arc::new(Cluster::start(2).await);
    let cache = CacheUnderLoad::new(&cluster.url()).await;
    let (ends, rounds) = (
        Arc::new(AtomicBool::new(false)),
        Arc::new(AtomicU64::new(0)),
    );
    let mut slots: Vec<(usize, usize)> = (0..HOT)
        .map(|key| (cluster.slot(key), cluster.primary_of(key)))
        .collect();
    slots.sort_unstable();
    slots.dedup();
    let moving = {
        let (cluster, ends, rounds) =
            (Arc::clone(&cluster), Arc::clone(&ends), Arc::clone(&rounds));
        tokio::task::spawn_blocking(move || {
            while !ends.load(Ordering::SeqCst) {
                for (slot, home) in &mut slots {
                    cluster.begin_slot_migration(*slot, *home, 1 - *home);
                    cluster.move_keys_of_slot(*slot, *home, 1 - *home);
                    cluster.assign_slot(*slot, 1 - *home);
                    *home = 1 - *home;
                }
                rounds.fetch_add(1, Ordering::SeqCst);
            }
        })
    };
    eventually("slots have moved and come back", async || {
        rounds.load(Ordering::SeqCst) >= 2
    })
    .await;
    cache.assert_works_meanwhile().await;
    eventually("and again", async || rounds.load(Ordering::SeqCst) >= 6).await;
    ends.store(true, Ordering::SeqCst);
    answer(moving).await;
    let redirected = |node: &Server| node.raw().info("errorstat_MOVED").is_some();
    assert!(
        cluster.nodes.iter().any(redirected),
        "no client was redirected"
    );
    cache.assert_recovers("MOVED").await;
}
