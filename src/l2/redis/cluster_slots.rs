//! The primaries of a cluster, by slot, and clients to one of them.

use fred::clients::Client;
use fred::interfaces::ClientLike;
use fred::types::cluster::ClusterRouting;
use fred::types::config::{Server, ServerConfig};
use fred::types::{Builder, ClusterHash, CustomCommand, Value};

use super::client_config::bus_client;
use super::shared::Shared;

impl Shared {
    /// The first slot of each range, and its primary.
    pub(super) async fn slots(&self) -> Option<Vec<(u16, Server)>> {
        let command = CustomCommand::new_static("CLUSTER", ClusterHash::Random, false);
        let client = self.client();
        let reply: Value = client.custom(command, vec!["SLOTS"]).await.ok()?;
        let config = self.bus.client_config();
        let asked = config.server.hosts().first().map(|host| host.host.clone());
        let routing = ClusterRouting::from_cluster_slots(reply, asked?).ok()?;
        let mut slots: Vec<(u16, Server)> = Vec::new();
        for slot in 0..16_384 {
            let server = routing.get_server(slot)?;
            if slots.last().is_none_or(|(_, last)| last != server) {
                slots.push((slot, server.clone()));
            }
        }
        Some(slots)
    }

    pub(super) async fn any_primary(&self) -> Option<Server> {
        let slots = self.slots().await?;
        slots.into_iter().next().map(|(_, server)| server)
    }

    /// A client for the bus of one node. It is not connected yet.
    pub(super) fn bus_client_for(&self, server: Server, fail_fast: bool) -> Client {
        let mut config = self.config();
        config.server = ServerConfig::Centralized { server };
        let mut builder = Builder::from_config(config);
        builder.set_connection_config(self.bus.connection_config().clone());
        bus_client(builder, fail_fast)
    }
}
