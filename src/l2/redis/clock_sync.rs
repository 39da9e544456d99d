//! How the server's clock is learnt: `TIME`, at every connection and once a minute.

use std::sync::Weak;
use std::time::Duration;

use fred::error::Error as FredError;
use fred::interfaces::ClientLike;
use fred::types::config::Server;
use fred::types::{ClusterHash, CustomCommand, Value};
use tokio::sync::broadcast::Receiver;
use tokio::sync::broadcast::error::RecvError;
use tokio::time::Instant;

use super::errors::unexpected_reply;
use super::shared::Shared;
use crate::error::RemoteError;

/// How often the server's clock is asked for.
const CLOCK_SYNC_INTERVAL: Duration = Duration::from_secs(60);

/// How often it is asked for while it is not known.
const CLOCK_RETRY_DELAY: Duration = Duration::from_millis(200);

impl Shared {
    pub(super) async fn sync_clock(&self) -> Result<(), RemoteError> {
        const OPERATION: &str = "read the clock";
        let command = CustomCommand::new_static("TIME", ClusterHash::Random, false);
        let asked = Instant::now();
        let reply: Vec<u64> = self
            .client()
            .custom(command, Vec::<Value>::new())
            .await
            .map_err(|error| self.explain(OPERATION, "TIME", error))?;
        let [seconds, micros] = reply[..] else {
            return Err(unexpected_reply(OPERATION));
        };
        self.clock.set(
            asked,
            Duration::from_secs(seconds) + Duration::from_micros(micros),
        );
        self.end_first_attempt();
        Ok(())
    }
}

/// Reads the server's clock at every connection and once a minute.
pub(super) async fn keep_clock_in_sync(
    shared: Weak<Shared>,
    mut connected: Receiver<Server>,
    mut failed: Receiver<(FredError, Option<Server>)>,
) {
    loop {
        let interval = {
            let Some(shared) = shared.upgrade() else {
                return;
            };
            let _ = shared.sync_clock().await;
            if shared.clock.is_known() {
                CLOCK_SYNC_INTERVAL
            } else {
                CLOCK_RETRY_DELAY
            }
        };
        tokio::select! {
            event = connected.recv() => {
                if matches!(event, Err(RecvError::Closed)) {
                    return;
                }
            }
            event = failed.recv() => {
                let Some(shared) = shared.upgrade() else { return };
                shared.end_first_attempt();
                if event.is_err() {
                    tokio::time::sleep(CLOCK_RETRY_DELAY).await;
                }
            }
            () = tokio::time::sleep(interval) => {}
        }
    }
}
