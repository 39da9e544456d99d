//! A real server and a proxy that can disturb its connections, shared with the tests.

use std::time::{Duration, Instant};

#[path = "../../tests/it/support/proxy.rs"]
pub(crate) mod proxy;
#[path = "../../tests/it/support/server.rs"]
pub(crate) mod server;

/// Polls a condition until it holds. Panics with `what` when it does not hold in time.
pub(crate) async fn eventually(what: &str, mut holds: impl AsyncFnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(20);
    while !holds().await {
        assert!(Instant::now() < deadline, "this never held: {what}");
        tokio::time::sleep(Duration::from_millis(3)).await;
    }
}
