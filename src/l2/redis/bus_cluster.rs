//! The connections of the bus in a cluster: one to each primary, made anew when the primaries
//! change.

use std::sync::{Arc, Weak};
use std::time::Duration;

use fred::interfaces::ClientLike;
use fred::types::config::Server;

use super::bus::run;
use super::shared::Shared;

/// How often the nodes of a cluster are asked for.
const TOPOLOGY_INTERVAL: Duration = Duration::from_secs(1);

/// Keeps a connection to each primary of a cluster.
pub(super) async fn watch_cluster(shared: Weak<Shared>) {
    let mut known: Vec<(u16, Server)> = Vec::new();
    loop {
        {
            let Some(shared) = shared.upgrade() else {
                return;
            };
            let slots = shared.slots().await;
            if let Some(slots) = slots.filter(|slots| *slots != known) {
                let (before, now) = (primaries(&known), primaries(&slots));
                if before == now {
                    // A slot has moved. Messages of both its nodes are received; to be safe, this
                    // counts as a gap.
                    shared.notify_gap();
                } else {
                    shared.replace_connections(now);
                }
                known = slots;
            }
        }
        tokio::time::sleep(TOPOLOGY_INTERVAL).await;
    }
}

fn primaries(slots: &[(u16, Server)]) -> Vec<Server> {
    let mut primaries: Vec<Server> = slots.iter().map(|(_, server)| server.clone()).collect();
    primaries.sort();
    primaries.dedup();
    primaries
}

impl Shared {
    /// Ends all connections, and makes one to each of these primaries.
    fn replace_connections(self: &Arc<Self>, primaries: Vec<Server>) {
        let old = self.bus_connections.lock().take();
        self.mark_all_down();
        tokio::spawn(async move {
            for client in old {
                let _ = client.quit().await;
            }
        });
        let mut connections = self.bus_connections.lock();
        for server in primaries {
            let client = self.bus_client_for(server, false);
            let (id, inbox) = connections.add(client.clone(), &self.prefix);
            let task = run(Arc::downgrade(self), id, client, inbox, true);
            connections.set_task(id, tokio::spawn(task).abort_handle());
        }
    }
}
