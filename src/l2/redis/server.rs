//! Statistics of the server: `INFO`, of every node.

use std::time::Duration;

use fred::clients::Client;
use fred::interfaces::{ClientLike, ClusterInterface};
use fred::types::config::{Options, Server};
use fred::types::{ClusterHash, CustomCommand};
use futures_util::future::join_all;

use super::handle::Redis;

/// The state of a server, or of the primaries of a cluster: see [`Redis::server_stats`].
#[non_exhaustive]
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ServerStats {
    /// The nodes that answered: the server, or in a cluster each primary.
    pub nodes: Vec<NodeStats>,
    /// The number of nodes that did not answer in time, or that deny `INFO` (it needs the rule
    /// `+info`).
    pub unanswered: usize,
}

/// The state of one node of Redis, from its `INFO`. Counters begin at its start. A field that
/// `INFO` does not have is zero, or `None`.
#[non_exhaustive]
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NodeStats {
    /// Host and port. Empty in the [total](ServerStats::total).
    pub address: String,
    /// Memory in use, in bytes.
    pub used_memory: u64,
    /// `maxmemory`, in bytes. `None`: there is no limit. In the total: one node has no limit.
    pub max_memory: Option<u64>,
    /// Keys that were evicted because memory was full.
    pub evicted_keys: u64,
    /// Keys that expired.
    pub expired_keys: u64,
    /// Reads by all clients that found their key.
    pub keyspace_hits: u64,
    /// Reads by all clients that did not find their key.
    pub keyspace_misses: u64,
    /// Connections of clients.
    pub connected_clients: u64,
    /// Commands a second, recently.
    pub ops_per_second: u64,
    /// Its role. [`Role::Unknown`] in the total of nodes that differ.
    pub role: Role,
    /// Replicas that are connected to it.
    pub connected_replicas: u64,
    /// How far replication is behind, in bytes. Of a primary: the lag of the slowest replica. Of a
    /// replica: what it has not applied. `None`: nothing is replicated. In the total: the largest.
    pub replication_lag: Option<u64>,
    /// Of a replica: whether it is connected to its primary.
    pub primary_link_up: Option<bool>,
}

/// The role of a node in replication.
#[non_exhaustive]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Role {
    /// It takes writes.
    Primary,
    /// It follows a primary: it refuses fills and invalidations.
    Replica,
    /// `INFO` does not say.
    #[default]
    Unknown,
}

impl ServerStats {
    /// The sums over all nodes that answered.
    pub fn total(&self) -> NodeStats {
        let mut nodes = self.nodes.iter();
        let first = nodes.next().cloned().unwrap_or_default();
        let first = NodeStats {
            address: String::new(),
            ..first
        };
        nodes.fold(first, |total, node| total.merge(node))
    }
}

impl NodeStats {
    /// The share of reads that found their key, from 0 to 1; 0 if there were no reads. It is about
    /// the reads of all clients. For those of a cache see
    /// [`Stats::hit_ratio`](crate::Stats::hit_ratio).
    pub fn keyspace_hit_ratio(&self) -> f64 {
        ratio(
            self.keyspace_hits,
            self.keyspace_hits.saturating_add(self.keyspace_misses),
        )
    }

    /// The share of `maxmemory` that is in use. `None`: there is no limit.
    pub fn memory_ratio(&self) -> Option<f64> {
        self.max_memory.map(|most| ratio(self.used_memory, most))
    }

    fn merge(self, other: &Self) -> Self {
        Self {
            address: self.address,
            used_memory: self.used_memory.saturating_add(other.used_memory),
            max_memory: self
                .max_memory
                .zip(other.max_memory)
                .map(|(one, two)| one.saturating_add(two)),
            evicted_keys: self.evicted_keys.saturating_add(other.evicted_keys),
            expired_keys: self.expired_keys.saturating_add(other.expired_keys),
            keyspace_hits: self.keyspace_hits.saturating_add(other.keyspace_hits),
            keyspace_misses: self.keyspace_misses.saturating_add(other.keyspace_misses),
            connected_clients: self
                .connected_clients
                .saturating_add(other.connected_clients),
            ops_per_second: self.ops_per_second.saturating_add(other.ops_per_second),
            role: if self.role == other.role {
                self.role
            } else {
                Role::Unknown
            },
            connected_replicas: self
                .connected_replicas
                .saturating_add(other.connected_replicas),
            replication_lag: self.replication_lag.max(other.replication_lag),
            primary_link_up: match (self.primary_link_up, other.primary_link_up) {
                (Some(one), Some(two)) => Some(one && two),
                (one, two) => one.or(two),
            },
        }
    }

    /// Parses the lines `name:value` of an `INFO`. Fields that are missing or malformed are left
    /// out.
    fn parse(address: String, info: &str) -> Self {
        let of = |name: &str| {
            let mut lines = info.lines();
            lines.find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))
        };
        let number = |name: &str| of(name).and_then(|value| value.trim().parse::<u64>().ok());
        let count = |name: &str| number(name).unwrap_or(0);
        let role = match of("role").map(str::trim) {
            Some("master") => Role::Primary,
            Some("slave") => Role::Replica,
            _ => Role::Unknown,
        };
        let link = of("master_link_status").map(|status| status.trim() == "up");
        Self {
            address,
            used_memory: count("used_memory"),
            max_memory: number("maxmemory").filter(|most| *most > 0),
            evicted_keys: count("evicted_keys"),
            expired_keys: count("expired_keys"),
            keyspace_hits: count("keyspace_hits"),
            keyspace_misses: count("keyspace_misses"),
            connected_clients: count("connected_clients"),
            ops_per_second: count("instantaneous_ops_per_sec"),
            role,
            connected_replicas: count("connected_slaves"),
            replication_lag: match role {
                Role::Replica => {
                    let heard = number("slave_read_repl_offset").zip(number("slave_repl_offset"));
                    heard.map(|(read, applied)| read.saturating_sub(applied))
                }
                _ => max_replica_lag(info, count("master_repl_offset")),
            },
            primary_link_up: link,
        }
    }
}

/// The lag of the slowest replica, from the lines `slave0:ip=…,state=…,offset=…,lag=…`.
fn max_replica_lag(info: &str, offset: u64) -> Option<u64> {
    let replicas = info.lines().filter_map(|line| {
        let (name, fields) = line.split_once(':')?;
        let number = name.strip_prefix("slave")?;
        let is_one = !number.is_empty() && number.bytes().all(|byte| byte.is_ascii_digit());
        let mut fields = is_one.then(|| fields.split(','))?;
        let at: u64 = fields
            .find_map(|field| field.strip_prefix("offset="))?
            .trim()
            .parse()
            .ok()?;
        Some(offset.saturating_sub(at))
    });
    replicas.max()
}

#[expect(clippy::cast_precision_loss, reason = "a ratio for people")]
fn ratio(part: u64, whole: u64) -> f64 {
    if whole > 0 {
        part as f64 / whole as f64
    } else {
        0.0
    }
}

impl Redis {
    /// Statistics of the server: memory against `maxmemory`, evictions, the hit ratio of all its
    /// clients, connections, commands a second, replication. In a cluster, of each primary.
    ///
    /// This is for operators. It sends an `INFO` to every node, so call it every few seconds, not
    /// per request. It takes no longer than twice the [timeout](crate::RedisBuilder::timeout). A
    /// node that does not answer is [counted](ServerStats::unanswered). That is no error of a
    /// cache, and the breaker does not count it.
    ///
    /// ```no_run
    /// # async fn run() -> Result<(), Box<dyn std::error::Error>> {
    /// let redis = tidegate::Redis::connect("redis://127.0.0.1:6379").await?;
    /// let total = redis.server_stats().await.total();
    /// if total.memory_ratio().is_some_and(|share| share > 0.75) {
    ///     eprintln!("{} bytes in use, {} keys evicted", total.used_memory, total.evicted_keys);
    /// }
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Cancel safety
    ///
    /// Dropping the future loses the statistics and nothing else.
    pub async fn server_stats(&self) -> ServerStats {
        self.ensure_started().await;
        let mut stats = ServerStats::default();
        let servers: Vec<Option<Server>> = if self.shared.clustered {
            // The primaries that the client knows: asking for them could take as long as the
            // answers.
            let routing = self.shared.pool.next().cached_cluster_state();
            let primaries = routing.map(|routing| routing.unique_primary_nodes());
            let primaries = primaries.unwrap_or_default();
            if primaries.is_empty() {
                stats.unanswered = 1;
            }
            primaries.into_iter().map(Some).collect()
        } else {
            vec![None]
        };
        let answers = join_all(servers.into_iter().map(|server| self.node_stats(server))).await;
        let asked = answers.len();
        stats.nodes.extend(answers.into_iter().flatten());
        stats
            .nodes
            .sort_by(|one, two| one.address.cmp(&two.address));
        stats.unanswered += asked - stats.nodes.len();
        stats
    }

    async fn node_stats(&self, server: Option<Server>) -> Option<NodeStats> {
        let client: &Client = self.shared.pool.next_connected();
        let address = match &server {
            Some(server) => server.to_string(),
            None => client
                .active_connections()
                .first()
                .map(Server::to_string)
                .unwrap_or_default(),
        };
        let options = Options {
            cluster_node: server,
            ..self.shared.options.clone()
        };
        let command = CustomCommand::new_static("INFO", ClusterHash::Random, false);
        let asking = async {
            let client = client.with_options(&options);
            client
                .custom::<String, _>(command, Vec::<String>::new())
                .await
                .ok()
        };
        // fred's own timeout should end the command. This one does so in any case.
        let bound = self.shared.timeout + Duration::from_millis(10);
        let info = tokio::time::timeout(bound, asking).await.ok().flatten()?;
        Some(NodeStats::parse(address, &info))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PRIMARY: &str = "# Memory\r\nused_memory:1048576\r\nused_memory_human:1.00M\r\nmaxmemory:4194304\r\n\
        maxmemory_human:4.00M\r\n# Clients\r\nconnected_clients:7\r\n# Stats\r\n\
        instantaneous_ops_per_sec:120\r\nexpired_keys:5\r\nevicted_keys:3\r\nkeyspace_hits:90\r\n\
        keyspace_misses:10\r\n# Replication\r\nrole:master\r\nconnected_slaves:2\r\n\
        slave0:ip=10.0.0.1,port=6379,state=online,offset=900,lag=0\r\n\
        slave1:ip=10.0.0.2,port=6379,state=online,offset=700,lag=1\r\nmaster_repl_offset:1000\r\n";

    #[test]
    fn a_primary_is_read_and_its_slowest_replica_counts() {
        let node = NodeStats::parse("a:1".to_owned(), PRIMARY);
        let expected = NodeStats {
            address: "a:1".to_owned(),
            used_memory: 1_048_576,
            max_memory: Some(4_194_304),
            evicted_keys: 3,
            expired_keys: 5,
            keyspace_hits: 90,
            keyspace_misses: 10,
            connected_clients: 7,
            ops_per_second: 120,
            role: Role::Primary,
            connected_replicas: 2,
            replication_lag: Some(300),
            primary_link_up: None,
        };
        assert_eq!(node, expected);
        assert!((node.keyspace_hit_ratio() - 0.9).abs() < 1e-9);
        assert_eq!(node.memory_ratio(), Some(0.25));
    }

    #[test]
    fn a_replica_is_read() {
        let node = NodeStats::parse(
            String::new(),
            "role:slave\r\nmaster_link_status:down\r\nslave_read_repl_offset:50\r\n\
             slave_repl_offset:40\r\nmaxmemory:0\r\n",
        );
        assert_eq!(
            (node.role, node.primary_link_up),
            (Role::Replica, Some(false))
        );
        assert_eq!((node.replication_lag, node.max_memory), (Some(10), None));
        assert_eq!(node.memory_ratio(), None);
    }

    #[test]
    fn what_makes_no_sense_is_left_out() {
        for info in [
            "",
            "used_memory",
            "used_memory:",
            "used_memory:-1\nmaxmemory:x",
            "slave0:\nslave:offset=1",
        ] {
            assert_eq!(
                NodeStats::parse(String::new(), info),
                NodeStats::default(),
                "{info}"
            );
        }
        assert!(NodeStats::default().keyspace_hit_ratio().abs() < f64::EPSILON);
    }

    #[test]
    fn nodes_add_up() {
        let node = NodeStats::parse("a:1".to_owned(), PRIMARY);
        let unlimited = NodeStats {
            max_memory: None,
            replication_lag: None,
            ..node.clone()
        };
        let of = |nodes: &[&NodeStats]| ServerStats {
            nodes: nodes.iter().copied().cloned().collect(),
            unanswered: 0,
        };
        let total = of(&[&node, &node]).total();
        assert_eq!(
            (total.used_memory, total.max_memory),
            (2_097_152, Some(8_388_608))
        );
        assert_eq!((total.evicted_keys, total.connected_replicas), (6, 4));
        assert_eq!(
            (total.role, total.replication_lag),
            (Role::Primary, Some(300))
        );
        assert_eq!(total.address, "");
        assert_eq!(of(&[&node, &unlimited]).total().max_memory, None);
        assert_eq!(of(&[]).total(), NodeStats::default());
    }
}
