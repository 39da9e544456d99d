//! What the tests stand on.

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

/// Longer than anything takes that works, on a machine with other things to do.
const TEST_TIMEOUT: Duration = Duration::from_secs(20);

/// Waits for something that must happen; panics with its name when it does not.
pub(crate) async fn within<T>(what: &str, happening: impl Future<Output = T>) -> T {
    match tokio::time::timeout(TEST_TIMEOUT, happening).await {
        Ok(happened) => happened,
        Err(_) => panic!("this did not happen: {what}"),
    }
}

/// Asks again and again until it holds; panics with its name when it does not.
pub(crate) async fn eventually(what: &str, mut holds: impl AsyncFnMut() -> bool) {
    let deadline = Instant::now() + TEST_TIMEOUT;
    while !holds().await {
        assert!(Instant::now() < deadline, "this never held: {what}");
        tokio::time::sleep(Duration::from_millis(3)).await;
    }
}
