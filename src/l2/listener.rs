//! The listener: what a shared tier tells a cache about its invalidation bus.

/// Is called from the tier's own task: it must be quick and must not block.
pub(crate) trait Listener: Send + Sync {
    /// A message came on the channel.
    fn on_message(&self, message: &[u8]);
    /// The subscription is confirmed: from now on no message is missed. Earlier ones may have been.
    fn on_up(&self);
    /// The subscription is lost, or could not be made.
    #[cfg(any(feature = "redis", feature = "testing", all(test, feature = "bincode")))]
    fn on_down(&self);
    /// The subscription stands, but a message may have been missed.
    fn on_gap(&self);
    /// The breaker opened, or closed.
    #[cfg(feature = "redis")]
    fn on_breaker(&self, _open: bool) {}
    /// The server began to deny something to the user, or denies nothing any more.
    #[cfg(feature = "redis")]
    fn on_denied(&self, _denied: bool) {}
}
