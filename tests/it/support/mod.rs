//! Test support: servers, processes, proxies and a source of truth.

use std::time::Duration;

use tokio::time::Instant;

pub(crate) mod aging;
pub(crate) mod backend;
#[cfg(target_os = "linux")]
pub(crate) mod clock;
pub(crate) mod cluster;
pub(crate) mod events;
pub(crate) mod fleet;
pub(crate) mod forge;
pub(crate) mod loader;
pub(crate) mod node;
pub(crate) mod proxy;
pub(crate) mod server;
#[cfg(feature = "tls")]
pub(crate) mod tls;
pub(crate) mod traffic;

/// Longer than any successful step takes on a busy machine.
const TEST_TIMEOUT: Duration = Duration::from_secs(20);

/// Waits for a future. Panics with `what` when it does not end in time.
pub(crate) async fn within<T>(what: &str, happening: impl Future<Output = T>) -> T {
    match tokio::time::timeout(TEST_TIMEOUT, happening).await {
        Ok(happened) => happened,
        Err(_) => panic!("this did not happen: {what}"),
    }
}

/// Polls a condition until it holds. Panics with `what` when it does not hold in time.
pub(crate) async fn eventually(what: &str, mut holds: impl AsyncFnMut() -> bool) {
    let deadline = Instant::now() + TEST_TIMEOUT;
    while !holds().await {
        assert!(Instant::now() < deadline, "this never held: {what}");
        tokio::time::sleep(Duration::from_millis(3)).await;
    }
}
