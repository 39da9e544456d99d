//! The probes that close an open breaker.

use std::sync::{Arc, Weak};
use std::time::Duration;

use tokio::sync::Notify;
use tokio::time::Instant;

use super::errors::is_no_answer;
use super::shared::Shared;
use crate::random;

/// The time from the opening of the breaker to its first probe.
const FIRST_PROBE_DELAY: Duration = Duration::from_millis(50);

/// The number of probes in a row that must be answered.
const PROBES_TO_CLOSE: u32 = 2;

/// A connection without an answer for this long counts as dead.
const DEAD_AFTER: Duration = Duration::from_secs(1);

/// Probes while the breaker is open, and closes it.
pub(super) async fn run_probes(shared: Weak<Shared>, opened: Arc<Notify>) {
    loop {
        opened.notified().await;
        if probe_until_answered(&shared).await.is_none() {
            return;
        }
        let Some(shared) = shared.upgrade() else {
            return;
        };
        shared.breaker.close();
        shared.notify_breaker(false);
    }
}

/// `None`: the handle is gone.
async fn probe_until_answered(shared: &Weak<Shared>) -> Option<()> {
    let (mut pause, mut answered, mut silent_since) = (FIRST_PROBE_DELAY, 0, Instant::now());
    while answered < PROBES_TO_CLOSE {
        tokio::time::sleep(random::duration(pause.mul_f64(0.75), pause.mul_f64(1.25))).await;
        let shared = shared.upgrade()?;
        match shared.sync_clock().await {
            Err(error) if is_no_answer(&error) => {
                answered = 0;
                pause = (pause * 2).min(shared.breaker.settings().max_probe_interval());
                if silent_since.elapsed() >= DEAD_AFTER {
                    silent_since = Instant::now();
                    shared.reconnect().await;
                }
            }
            _ => {
                answered += 1;
                pause = Duration::ZERO;
            }
        }
    }
    Some(())
}
