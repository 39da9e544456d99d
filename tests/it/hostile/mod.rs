//! Another client writes to the same Redis: which harm its bytes can do, and which they cannot.

use std::time::Duration;

use tidegate::{Cache, CacheBuilder, Source};

use crate::support::backend::users;
use crate::support::eventually;
use crate::support::loader::Db;
use crate::support::node::{Node, value};
use crate::support::server::{Raw, Server};

mod channel;
mod records;

struct Fixture {
    server: Server,
    raw: Raw,
    db: Db,
}

impl Fixture {
    fn new() -> Self {
        let server = Server::start();
        let raw = server.raw();
        Self {
            server,
            raw,
            db: Db::default(),
        }
    }

    async fn node(&self) -> Node {
        self.node_with(|builder| builder).await
    }

    /// A short `lease_wait`: a look-up that finds a lease loads after a tenth of a second.
    async fn node_with(&self, settings: impl FnOnce(CacheBuilder<Db>) -> CacheBuilder<Db>) -> Node {
        let redis = self
            .server
            .long_timeout_builder()
            .connect()
            .await
            .expect("connect");
        let builder = Cache::builder("users", self.db.clone())
            .ttl_jitter(0.0)
            .refresh_ahead(0.0)
            .channel_lease(Duration::from_millis(600))
            .lease_wait(Duration::from_millis(100))
            .l2(redis);
        Node::new(settings(builder).build().expect("a cache"))
    }

    /// The record that a node writes.
    async fn record(&mut self, node: &Node) -> Vec<u8> {
        node.get(1).await.expect("a look-up");
        self.raw.get(&users(1)).expect("a record")
    }

    /// Writes a key without an expiry.
    fn set_without_expiry(&mut self, key: &str, bytes: &[u8]) {
        self.raw.send(&[b"SET", key.as_bytes(), bytes]);
    }
}

async fn source(node: &Node, key: u64) -> Source {
    let entry = node.get_entry(key).await.expect("a look-up");
    entry.expect("an entry").source()
}

/// Changes by key, by tag and of everything reach both nodes, and at once the node that made them.
async fn changes_reach_both(db: &Db, a: &Node, b: &Node, what: &str) {
    for round in ["key", "tag", "all"] {
        let text = format!("{round} after {what}");
        // Both hold the key in L1 if they may.
        for node in [a, b] {
            node.get(1).await.expect("a look-up");
        }
        db.write(1, &text);
        match round {
            "key" => a.invalidate(&1).await,
            "tag" => a.invalidate_tag("team").await,
            _ => a.invalidate_all().await,
        }
        .expect("an invalidation");
        assert_eq!(value(a.get(1).await), text);
        eventually(&text, async || value(b.get(1).await) == text).await;
    }
    eventually("L1 is used", async || source(b, 1).await == Source::L1).await;
}
