//! Every trouble that a server can be in, each under a steady load: one harness, a row for each.
//!
//! | what is required | how |
//! |---|---|
//! | no look-up fails, none is older than an invalidation that came to an end here | every answer is looked at |
//! | a look-up waits for the timeout a few times at most | the longest of all |
//! | loads stay coalesced | cold keys with 20 callers whose load stands at a gate |
//! | the trouble was there | an insert failed as it should, or what the row names |
//! | L2 is used again, and nothing is left to be repaired | fills, a hit of L2 in another cache, a hit of L1 |

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
/// A look-up may wait for its first command that is not answered, for a lease whose grant nobody
/// heard of, and for a fill; and a busy machine may stop it.
const LONGEST: Duration = Duration::from_secs(3);
/// Look-ups while the trouble lasts.
const GETS: u64 = 150;

/// A process that reaches its L2 by that URL, and has been in use.
struct Ward {
    db: Db,
    a: Node,
    /// Another cache on the same handle, which asks for nothing while there is trouble.
    b: Node,
    traffic: Traffic,
}

impl Ward {
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

    /// The trouble is there: an insert fails with that word. It becomes an invalidation.
    async fn feels(&self, word: &str) {
        eventually(word, async || {
            let told = self.a.insert(500, "row 500".to_owned()).await;
            told.is_err_and(|error| why(&error).contains(word))
        })
        .await;
    }

    /// The same where there is no answer at all.
    async fn feels_silence(&self) {
        eventually("the server is silent", async || {
            let told = self.a.insert(500, "row 500".to_owned()).await;
            told.is_err_and(|error| error.is_timeout() || error.is_unreachable())
        })
        .await;
    }

    /// Cold keys are loaded once, whoever asks; and it goes on.
    async fn bears_it(&self) {
        for key in 600..603 {
            let gaps = self.a.stats().gaps;
            let gate = self.db.gate_of(key);
            let callers = self.a.callers(20, key).await;
            gate.reached().await;
            gate.open();
            for caller in callers {
                assert_eq!(value(answer(caller).await), format!("row {key}"));
            }
            // Whoever comes after a gap does not join what began before it.
            let loads = self.db.loads_of(key);
            let gaps = self.a.stats().gaps - gaps;
            assert!(loads <= 1 + gaps, "{loads} loads of key {key}, {gaps} gaps");
        }
        self.traffic.goes_on(GETS).await;
    }

    /// Nobody has done anything for it.
    async fn heals(self, what: &str) {
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
            eventually("the other cache has heard of it", async || {
                value(self.b.get(key).await) == row
            })
            .await;
        }
        self.b.check().await;
    }
}

/// One server behind a wire.
struct Fixture {
    server: Server,
    proxy: Proxy,
    ward: Ward,
}

impl Fixture {
    async fn new() -> Self {
        Self::on(Server::start()).await
    }

    async fn on(server: Server) -> Self {
        let proxy = Proxy::to(server.port()).await;
        let ward = Ward::new(&url(proxy.port())).await;
        Self {
            server,
            proxy,
            ward,
        }
    }
}

/// What a wire does to it.
async fn endures(what: &str, mode: ProxyMode) {
    let fixture = Fixture::new().await;
    fixture.proxy.set(mode).await;
    fixture.ward.feels_silence().await;
    fixture.ward.bears_it().await;
    fixture.proxy.set(ProxyMode::Pass).await;
    fixture.ward.heals(what).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn connections_that_are_refused() {
    endures("refused", ProxyMode::Refuse).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn connections_that_end_in_the_middle_of_a_reply() {
    endures("torn", ProxyMode::CutMidReply(25)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_black_hole() {
    endures("a black hole", ProxyMode::BlackHole).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_is_half_a_second_slow() {
    endures("slow", ProxyMode::Slow(Duration::from_millis(500))).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_whose_clients_are_paused() {
    let fixture = Fixture::new().await;
    // It ends by itself.
    fixture.server.raw().ask("CLIENT PAUSE 1500");
    fixture.ward.feels_silence().await;
    fixture.ward.bears_it().await;
    fixture.ward.heals("CLIENT PAUSE").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_is_stopped() {
    let fixture = Fixture::new().await;
    fixture.server.stop();
    fixture.ward.feels_silence().await;
    fixture.ward.bears_it().await;
    fixture.server.resume();
    fixture.ward.heals("SIGSTOP").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_is_killed_and_comes_back_empty() {
    let mut fixture = Fixture::new().await;
    fixture.server.kill();
    fixture.ward.feels_silence().await;
    fixture.ward.bears_it().await;
    fixture.server.restart();
    fixture.ward.heals("SIGKILL").await;
}

/// `-LOADING`: it is back and reads its file.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_loads_its_file() {
    let server = Server::start();
    let mut raw = server.raw();
    // It answers once for every 2 MB that it has read.
    let many = "for i = 1, 60 do redis.call('SET', 'other:' .. i, string.rep('x', 2100000)) end";
    raw.ask("CONFIG SET rdbcompression no");
    raw.send(&[b"EVAL", many.as_bytes(), b"0"]);
    raw.ask("SAVE");
    let mut fixture = Fixture::on(server).await;
    fixture.server.kill();
    // In microseconds, for each key.
    fixture.server.restart_with(&["--key-load-delay", "80000"]);
    let mut raw = fixture.server.raw();
    // A connection that is answered so when it introduces itself is none.
    fixture.ward.feels_silence().await;
    fixture.ward.bears_it().await;
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
    fixture.ward.heals("LOADING").await;
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
    fixture.ward.feels("READONLY").await;
    fixture.ward.bears_it().await;
    raw.ask("REPLICAOF NO ONE");
    fixture.ward.heals("READONLY").await;
}

/// `-OOM`
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_without_memory() {
    let fixture = Fixture::new().await;
    let mut raw = fixture.server.raw();
    raw.ask("CONFIG SET maxmemory-policy noeviction");
    raw.ask("CONFIG SET maxmemory 1");
    fixture.ward.feels("OOM").await;
    fixture.ward.bears_it().await;
    raw.ask("CONFIG SET maxmemory 0");
    fixture.ward.heals("OOM").await;
}

/// `-MISCONF`
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_cannot_write_its_file() {
    let fixture = Fixture::new().await;
    let mut raw = fixture.server.raw();
    // The file's name is taken.
    let file = fixture.server.dir().join("dump.rdb");
    std::fs::create_dir(&file).expect("a directory");
    raw.send(&[b"CONFIG", b"SET", b"save", b"3600 1"]);
    raw.ask("BGSAVE");
    eventually("it has failed", async || {
        raw.info("rdb_last_bgsave_status").as_deref() == Some("err")
    })
    .await;
    fixture.ward.feels("MISCONF").await;
    fixture.ward.bears_it().await;
    std::fs::remove_dir(&file).expect("remove it");
    raw.ask("BGSAVE");
    fixture.ward.heals("MISCONF").await;
}

/// `-NOSCRIPT`: nothing but a script that is sent again.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_forgets_its_scripts_all_the_time() {
    let fixture = Fixture::new().await;
    let mut raw = fixture.server.raw();
    let (before, failures) = (raw.calls("eval"), fixture.ward.a.stats().l2_failures);
    eventually("scripts are sent again", async || {
        raw.ask("SCRIPT FLUSH");
        raw.calls("eval") > before + 50
    })
    .await;
    fixture.ward.bears_it().await;
    assert_eq!(fixture.ward.a.stats().l2_failures, failures);
    assert_eq!(fixture.ward.a.health().pending_repairs, 0);
    fixture.ward.heals("NOSCRIPT").await;
}

/// `-BUSY`
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_is_busy_with_a_script() {
    let fixture = Fixture::new().await;
    let (mut busy, mut raw) = (fixture.server.raw(), fixture.server.raw());
    raw.ask("CONFIG SET lua-time-limit 20");
    busy.tell(&[b"EVAL", b"while true do end", b"0"]);
    fixture.ward.feels("BUSY").await;
    fixture.ward.bears_it().await;
    raw.ask("SCRIPT KILL");
    fixture.ward.heals("BUSY").await;
}

/// `-CLUSTERDOWN`
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cluster_that_is_down() {
    let cluster = Cluster::start(1).await;
    let ward = Ward::new(&cluster.url()).await;
    let mut raw = cluster.nodes[0].raw();
    raw.ask("CONFIG SET cluster-require-full-coverage yes");
    raw.ask("CLUSTER DELSLOTS 0");
    eventually("it is down", async || {
        cluster_info(&cluster.nodes[0]).contains("cluster_state:fail")
    })
    .await;
    let reply = raw.try_ask("GET x");
    assert!(matches!(&reply, Reply::Error(error) if error.starts_with("CLUSTERDOWN")));
    // The client takes a connection that says so for a broken one.
    ward.feels_silence().await;
    ward.bears_it().await;
    raw.ask("CLUSTER ADDSLOTS 0");
    ward.heals("CLUSTERDOWN").await;
}

/// `-TRYAGAIN`: a record is there and its claim is not, or neither is on one node.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn slots_that_are_on_their_way_for_long() {
    let cluster = Cluster::start(2).await;
    let ward = Ward::new(&cluster.url()).await;
    let mut slots: Vec<(usize, usize)> = (0..HOT)
        .chain([500])
        .map(|key| (cluster.slot(key), cluster.home(key)))
        .collect();
    slots.sort_unstable();
    slots.dedup();
    for (slot, home) in &slots {
        cluster.opens(*slot, *home, 1 - home);
    }
    // What is nowhere is on its way, and what is half there is to be tried again. Whatever came of
    // other commands at the time, none of this may count as carried out.
    ward.feels("on its way").await;
    eventually("a hot key is to be tried again", async || {
        ward.traffic.seen().was_refused("TRYAGAIN")
    })
    .await;
    ward.bears_it().await;
    for (slot, home) in &slots {
        cluster.carries(*slot, *home, 1 - home);
        cluster.settles(*slot, 1 - home);
    }
    ward.heals("TRYAGAIN").await;
}

/// `-MOVED` and `-ASK`
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn slots_that_move_all_the_time() {
    let cluster = Arc::new(Cluster::start(2).await);
    let ward = Ward::new(&cluster.url()).await;
    let (ends, rounds) = (
        Arc::new(AtomicBool::new(false)),
        Arc::new(AtomicU64::new(0)),
    );
    let mut slots: Vec<(usize, usize)> = (0..HOT)
        .map(|key| (cluster.slot(key), cluster.home(key)))
        .collect();
    slots.sort_unstable();
    slots.dedup();
    let moving = {
        let (cluster, ends, rounds) =
            (Arc::clone(&cluster), Arc::clone(&ends), Arc::clone(&rounds));
        tokio::task::spawn_blocking(move || {
            while !ends.load(Ordering::SeqCst) {
                for (slot, home) in &mut slots {
                    cluster.opens(*slot, *home, 1 - *home);
                    cluster.carries(*slot, *home, 1 - *home);
                    cluster.settles(*slot, 1 - *home);
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
    ward.bears_it().await;
    eventually("and again", async || rounds.load(Ordering::SeqCst) >= 6).await;
    ends.store(true, Ordering::SeqCst);
    answer(moving).await;
    let redirected = |node: &Server| node.raw().info("errorstat_MOVED").is_some();
    assert!(cluster.nodes.iter().any(redirected), "nobody was sent on");
    ward.heals("MOVED").await;
}
