//! A cluster of real servers on this machine.

use std::ops::Range;
use std::time::{Duration, Instant};

use super::backend::users;
use super::server::{Reply, Server};
use super::{TEST_TIMEOUT, eventually};

const SLOTS: usize = 16_384;

/// The primaries, each with an equal share of the slots at first, and their replicas in the same
/// order, if there are any.
pub(crate) struct Cluster {
    pub(crate) nodes: Vec<Server>,
    pub(crate) replicas: Vec<Server>,
}

impl Cluster {
    /// A cluster without replicas.
    pub(crate) async fn start(primaries: usize) -> Self {
        Self::begin(primaries, 0, Duration::from_secs(60)).await
    }

    /// A cluster with a replica for each primary. The replica takes over when its primary has been
    /// silent for `dead_after`.
    pub(crate) async fn replicated(primaries: usize, dead_after: Duration) -> Self {
        Self::begin(primaries, primaries, dead_after).await
    }

    async fn begin(primaries: usize, replicas: usize, dead_after: Duration) -> Self {
        let start = |_| Server::start_in_cluster(dead_after);
        let cluster = Self {
            nodes: (0..primaries).map(start).collect(),
            replicas: (0..replicas).map(start).collect(),
        };
        for (at, node) in cluster.all().enumerate() {
            let mut raw = node.raw();
            if at < primaries {
                let slots: Vec<String> =
                    cluster.slots_of(at).map(|slot| slot.to_string()).collect();
                for some in slots.chunks(1000) {
                    raw.ask(&format!("CLUSTER ADDSLOTS {}", some.join(" ")));
                }
            }
            raw.ask(&format!("CLUSTER SET-CONFIG-EPOCH {}", at + 1));
        }
        for node in cluster.all().skip(1) {
            cluster.nodes[0]
                .raw()
                .ask(&format!("CLUSTER MEET 127.0.0.1 {}", node.port()));
        }
        let known = format!("cluster_known_nodes:{}\r\n", primaries + replicas);
        eventually("every node knows every slot", async || {
            cluster.all().all(|node| {
                let info = cluster_info(node);
                info.contains("cluster_state:ok")
                    && info.contains("cluster_slots_assigned:16384")
                    && info.contains(&known)
            })
        })
        .await;
        for (at, replica) in cluster.replicas.iter().enumerate() {
            let primary = cluster.id(at);
            replica.raw().ask(&format!("CLUSTER REPLICATE {primary}"));
        }
        for replica in &cluster.replicas {
            eventually("the replica is in step", async || {
                replica.raw().info("master_link_status").as_deref() == Some("up")
            })
            .await;
        }
        cluster
    }

    /// Primaries, then replicas.
    fn all(&self) -> impl Iterator<Item = &Server> {
        self.nodes.iter().chain(&self.replicas)
    }

    pub(crate) fn url(&self) -> String {
        format!("redis-cluster://127.0.0.1:{}", self.nodes[0].port())
    }

    fn slots_of(&self, node: usize) -> Range<usize> {
        let nodes = self.nodes.len();
        node * SLOTS / nodes..(node + 1) * SLOTS / nodes
    }

    pub(crate) fn slot(&self, key: u64) -> usize {
        let slot = self.nodes[0]
            .raw()
            .ask(&format!("CLUSTER KEYSLOT {}", users(key)));
        let Reply::Number(slot) = slot else {
            panic!("a slot: {slot:?}")
        };
        usize::try_from(slot).expect("a slot")
    }

    /// The primary that got the slot of a key at the start.
    pub(crate) fn primary_of(&self, key: u64) -> usize {
        let slot = self.slot(key);
        (0..self.nodes.len())
            .find(|node| self.slots_of(*node).contains(&slot))
            .expect("every slot has one")
    }

    /// A key on each primary, in their order.
    pub(crate) fn keys(&self) -> Vec<u64> {
        (0..self.nodes.len())
            .map(|node| {
                (0..)
                    .find(|key| self.primary_of(*key) == node)
                    .expect("a key")
            })
            .collect()
    }

    pub(crate) fn id(&self, node: usize) -> String {
        let Reply::Bytes(id) = self.nodes[node].raw().ask("CLUSTER MYID") else {
            panic!("a node has an id")
        };
        String::from_utf8(id).expect("an id is ASCII")
    }

    /// Tells both nodes that a slot migrates from one to the other. No key is moved yet.
    ///
    /// A slot that has just changed hands may go back in the view of a node: its new owner was set
    /// without a vote, and gossip on its way carried a later epoch. Then the owner is announced
    /// again.
    pub(crate) fn begin_slot_migration(&self, slot: usize, from: usize, to: usize) {
        let (source, target) = (self.id(from), self.id(to));
        let ask = |node: usize, words: String| {
            let reply = self.nodes[node].raw().try_ask(&words);
            !matches!(reply, Reply::Error(_))
        };
        let asked = Instant::now();
        while !ask(to, format!("CLUSTER SETSLOT {slot} IMPORTING {source}"))
            || !ask(from, format!("CLUSTER SETSLOT {slot} MIGRATING {target}"))
        {
            assert!(
                asked.elapsed() < TEST_TIMEOUT,
                "slot {slot} is not of node {from}"
            );
            self.assign_slot(slot, from);
        }
    }

    /// Moves the keys of a migrating slot to its new node.
    pub(crate) fn move_keys_of_slot(&self, slot: usize, from: usize, to: usize) {
        let mut raw = self.nodes[from].raw();
        let Reply::List(moved) = raw.ask(&format!("CLUSTER GETKEYSINSLOT {slot} 1000")) else {
            panic!("the keys of a slot")
        };
        let port = self.nodes[to].port();
        for key in moved {
            let Reply::Bytes(key) = key else {
                panic!("a key")
            };
            let key = String::from_utf8(key).expect("keys are ASCII");
            raw.ask(&format!("MIGRATE 127.0.0.1 {port} {key} 0 5000"));
        }
    }

    /// Tells every primary which node owns a slot.
    pub(crate) fn assign_slot(&self, slot: usize, node: usize) {
        let id = self.id(node);
        let others = (0..self.nodes.len()).filter(|other| *other != node);
        for other in std::iter::once(node).chain(others) {
            let mut raw = self.nodes[other].raw();
            raw.ask(&format!("CLUSTER SETSLOT {slot} NODE {id}"));
        }
    }
}

pub(crate) fn cluster_info(node: &Server) -> String {
    let Reply::Bytes(info) = node.raw().ask("CLUSTER INFO") else {
        panic!("CLUSTER INFO answers text")
    };
    String::from_utf8_lossy(&info).into_owned()
}
