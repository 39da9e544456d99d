//! Watermarks on a real server: what the server keeps of invalidations of everything or of a tag,
//! and what happens when it loses them.

use std::time::Duration;

use tidegate::{Cache, Channel, Source};
use tokio::time::Instant;

use crate::support::backend::{WATERMARKS_KEY, users};
use crate::support::eventually;
use crate::support::loader::Db;
use crate::support::node::{Node, answer, value};
use crate::support::server::{Raw, Server};

const LEASE: Duration = Duration::from_millis(600);

struct Fixture {
    server: Server,
    raw: Raw,
    db: Db,
    a: Node,
    b: Node,
}

impl Fixture {
    /// Two processes that both have the keys 1 to 3 in L1.
    async fn new(tags: &[(u64, &[&str])]) -> Self {
        let server = Server::start();
        let (raw, db) = (server.raw(), Db::default());
        for (key, tags) in tags {
            db.tag(*key, tags);
        }
        let (a, b) = (node(&db, &server).await, node(&db, &server).await);
        let fixture = Self {
            server,
            raw,
            db,
            a,
            b,
        };
        fixture.fill_l1().await;
        fixture
    }

    async fn fill_l1(&self) {
        for node in [&self.a, &self.b] {
            for key in 1..=3 {
                fill_l1(node, key).await;
            }
        }
    }

    /// `how` changes the keys of the server. A look-up that begins a channel lease later finds none
    /// of the old entries in L1. Then all keys are loaded once, and both tiers are used again.
    async fn assert_invalidates_everything(&mut self, how: impl FnOnce(&mut Raw)) {
        let loads = self.db.loads();
        how(&mut self.raw);
        let changed = Instant::now();
        let mut last = None;
        eventually("nothing of it is in L1", async || {
            let asked = Instant::now();
            let left = [&self.a, &self.b]
                .iter()
                .any(|node| (1..=3).any(|key| node.peek(&key).is_some()));
            if left {
                last = Some(asked);
            }
            !left
        })
        .await;
        assert!(
            last.is_none_or(|asked| asked < changed + LEASE),
            "answered {:?} later",
            last.map(|asked| asked - changed)
        );
        for key in 1..=3 {
            self.db.write(key, "new");
            for node in [&self.a, &self.b] {
                assert_eq!(value(node.get(key).await), "new", "key {key}");
            }
        }
        assert_eq!(self.db.loads(), loads + 3, "once each");
        self.fill_l1().await;
        let cold = node(&self.db, &self.server).await;
        for key in 1..=3 {
            assert_eq!(source(&cold, key).await, Source::L2);
        }
        assert_eq!(self.db.loads(), loads + 3);
        cold.check().await;
        assert!(self.raw.pttl(WATERMARKS_KEY) > 0);
    }

    async fn end(self) {
        for node in [&self.a, &self.b] {
            node.check().await;
        }
        crate::support::backend::check_records(&self.server);
    }
}

async fn node(db: &Db, server: &Server) -> Node {
    let redis = server
        .long_timeout_builder()
        .connect()
        .await
        .expect("connect");
    let builder = Cache::builder("users", db.clone())
        .ttl_jitter(0.0)
        .channel_lease(LEASE)
        .l2(redis);
    Node::new(builder.build().expect("a cache"))
}

async fn source(node: &Node, key: u64) -> Source {
    let entry = node.get_entry(key).await.expect("a look-up");
    entry.expect("an entry").source()
}

async fn fill_l1(node: &Node, key: u64) {
    eventually("L1 is used", async || {
        node.get(key).await.expect("a look-up");
        node.peek(&key).is_some() && node.health().channel == Channel::Proven
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_flush_by_another_client_is_noticed_within_the_lease() {
    let mut fixture = Fixture::new(&[]).await;
    fixture
        .assert_invalidates_everything(|raw| {
            raw.ask("FLUSHALL");
        })
        .await;
    fixture.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn watermarks_that_were_lost_count_as_an_invalidation_of_everything() {
    let mut fixture = Fixture::new(&[(1, &["t"])]).await;
    // Watermarks that were never raised, and watermarks that were.
    fixture
        .assert_invalidates_everything(|raw| {
            raw.ask(&format!("DEL {WATERMARKS_KEY}"));
        })
        .await;
    fixture
        .a
        .invalidate_tag("t")
        .await
        .expect("an invalidation");
    fixture.a.invalidate_all().await.expect("an invalidation");
    fixture.fill_l1().await;
    fixture
        .assert_invalidates_everything(|raw| {
            raw.ask(&format!("DEL {WATERMARKS_KEY}"));
        })
        .await;
    fixture.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn watermarks_that_cannot_be_parsed_count_as_lost() {
    let mut fixture = Fixture::new(&[]).await;
    fixture
        .assert_invalidates_everything(|raw| {
            raw.ask(&format!("SET {WATERMARKS_KEY} what"));
        })
        .await;
    fixture.end().await;
}

/// A fail-over to a replica that lags has this effect.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn watermarks_that_go_back_count_as_lost() {
    let mut fixture = Fixture::new(&[]).await;
    let before = fixture.raw.get(WATERMARKS_KEY).expect("the watermarks");
    fixture.a.invalidate_all().await.expect("an invalidation");
    fixture.fill_l1().await;
    fixture
        .assert_invalidates_everything(|raw| raw.set(WATERMARKS_KEY, &before))
        .await;
    fixture.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_load_that_began_before_the_watermarks_were_lost_is_not_kept() {
    let mut fixture = Fixture::new(&[]).await;
    for noticed in [true, false] {
        fixture.a.invalidate(&1).await.expect("an invalidation");
        fixture.db.write(1, "old");
        fill_l1(&fixture.a, 2).await;
        let gate = fixture.db.gate();
        let caller = fixture.a.caller(1).await;
        gate.reached().await;
        fixture.db.write(1, "new");
        fixture.raw.ask(&format!("DEL {WATERMARKS_KEY}"));
        if noticed {
            eventually("it is noticed", async || fixture.a.peek(&2).is_none()).await;
        }
        gate.open();
        assert_eq!(value(answer(caller).await), "old", "it asked before");
        eventually("it is noticed", async || fixture.a.peek(&2).is_none()).await;
        assert!(fixture.a.peek(&1).is_none());
        let cold = node(&fixture.db, &fixture.server).await;
        assert_eq!(value(cold.get(1).await), "new");
        cold.check().await;
        for node in [&fixture.a, &fixture.b] {
            eventually("the change has arrived", async || {
                value(node.get(1).await) == "new"
            })
            .await;
        }
    }
    fixture.end().await;
}

/// Only a tag that was invalidated is kept on the server and can be lost.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tags_that_were_lost_count_as_an_invalidation_of_everything() {
    let mut fixture = Fixture::new(&[(1, &["t"]), (2, &["u"]), (3, &["v"])]).await;
    fixture
        .a
        .invalidate_tag("t")
        .await
        .expect("an invalidation");
    fixture.fill_l1().await;
    fixture
        .assert_invalidates_everything(|raw| {
            raw.ask(&format!("DEL {WATERMARKS_KEY}:tags"));
        })
        .await;
    fixture
        .a
        .invalidate_tag("u")
        .await
        .expect("an invalidation");
    eventually("it works as before", async || fixture.b.peek(&2).is_none()).await;
    assert!(fixture.b.peek(&1).is_some());
    fixture.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_entry_that_a_lost_tag_had_invalidated_is_not_answered_again() {
    let (server, db) = (Server::start(), Db::default());
    let mut raw = server.raw();
    db.tag(1, &["t"]);
    let a = node(&db, &server).await;
    a.get(1).await.expect("a load");
    a.invalidate_tag("t").await.expect("an invalidation");
    a.check().await;
    a.close().await;
    drop(a);
    assert!(
        raw.get(&users(1)).is_some(),
        "the record stays, and is dead"
    );
    raw.ask(&format!("DEL {WATERMARKS_KEY}:tags"));
    db.write(1, "new");
    let cold = node(&db, &server).await;
    assert_eq!(value(cold.get(1).await), "new");
    cold.check().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn watermarks_and_tags_always_have_an_expiry() {
    let mut fixture = Fixture::new(&[(1, &["t"])]).await;
    let (tags, day) = (format!("{WATERMARKS_KEY}:tags"), 24 * 60 * 60 * 1000);
    assert!(fixture.raw.pttl(WATERMARKS_KEY) > day, "long enough");
    assert_eq!(fixture.raw.pttl(&tags), -2, "no tag, no key");
    for _ in 0..2 {
        fixture
            .a
            .invalidate_tag("t")
            .await
            .expect("an invalidation");
        assert!(fixture.raw.pttl(WATERMARKS_KEY) > day && fixture.raw.pttl(&tags) > day);
        fixture.a.invalidate_all().await.expect("an invalidation");
        assert!(fixture.raw.pttl(WATERMARKS_KEY) > day);
        assert_eq!(fixture.raw.pttl(&tags), -2, "all is more than one tag");
    }
    // Heartbeats renew the expiry of both keys while a process is subscribed, and set one where it
    // is missing.
    fixture
        .a
        .invalidate_tag("t")
        .await
        .expect("an invalidation");
    for key in [WATERMARKS_KEY, &tags] {
        fixture.raw.ask(&format!("PEXPIRE {key} 60000"));
        eventually("the life is renewed", async || fixture.raw.pttl(key) > day).await;
        fixture.raw.ask(&format!("PERSIST {key}"));
        eventually("it has one again", async || fixture.raw.pttl(key) > day).await;
    }
    assert_eq!((fixture.a.stats().gaps, fixture.b.stats().gaps), (0, 0));
    fixture.end().await;
}
