//! The signal that tells a task to stop.

use tokio::sync::watch;

/// A signal that is set once. It counts as set, too, when its sender was dropped.
#[derive(Clone)]
pub(super) struct StopSignal(watch::Receiver<bool>);

impl StopSignal {
    pub(super) fn channel() -> (watch::Sender<bool>, Self) {
        let (sender, receiver) = watch::channel(false);
        (sender, Self(receiver))
    }

    pub(super) fn is_set(&self) -> bool {
        *self.0.borrow() || self.0.has_changed().is_err()
    }

    /// Waits until the signal is set.
    pub(super) async fn set(&mut self) {
        // An error says that the sender was dropped.
        let _ = self.0.wait_for(|set| *set).await;
    }
}
