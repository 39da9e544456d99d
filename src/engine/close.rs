//! Closing a cache: nothing new is let in, and what runs comes to its end.

use tokio::time::Instant;

use super::core::Engine;

impl Engine {
    pub(crate) async fn close(&self) {
        self.tasks.shut();
        self.flights.spawn_if_inline();
        self.tasks.close().await;
        Box::pin(self.last_repairs()).await;
        if let Some(remote) = &self.remote {
            remote.channel.set_down(Instant::now());
            remote.channel.wake.notify_one();
        }
        #[cfg(feature = "metrics")]
        self.publish();
    }
}
