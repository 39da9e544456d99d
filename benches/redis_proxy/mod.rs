//! A real server and a wire to it that can be broken: those of the tests.

use std::time::{Duration, Instant};

#[path = "../../tests/it/support/proxy.rs"]
pub(crate) mod proxy;
#[path = "../../tests/it/support/server.rs"]
pub(crate) mod server;

/// Asks again and again until it holds; panics with its name when it does not.
pub(crate) async fn eventually(what: &str, mut holds: impl AsyncFnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(20);
    while !holds().await {
        assert!(Instant::now() < deadline, "this never held: {what}");
        tokio::time::sleep(Duration::from_millis(3)).await;
    }
}
