//! The health of a cache: the state of its bus and its events.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

/// The health of a cache and its shared tier: see [`Cache::health`](crate::Cache::health).
///
/// ```
/// use tidegate::{Channel, Health};
///
/// /// A remark of a readiness probe: without Redis the service works, more slowly.
/// fn remark(health: &Health) -> Option<String> {
///     match health.channel {
///         Channel::None | Channel::Proven if health.pending_repairs == 0 => None,
///         _ if health.denied.is_some() => health.denied.as_deref().map(str::to_owned),
///         channel => {
///             let repairs = health.pending_repairs;
///             Some(format!("the bus is {channel:?}, {repairs} to repeat"))
///         }
///     }
/// }
/// # let _ = remark;
/// ```
#[non_exhaustive]
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Health {
    /// Whether L1 can be trusted.
    pub channel: Channel,
    /// How long ago the last message came over the invalidation bus, this process's own heartbeats
    /// among them. `None`: none has come.
    pub last_message: Option<Duration>,
    /// How often a message may have been missed, as in [`Stats::gaps`](crate::Stats::gaps).
    pub gaps: u64,
    /// Invalidations that the shared tier has not confirmed and that are being repeated.
    pub pending_repairs: usize,
    /// Whether the last operation of the shared tier was answered.
    pub l2_reachable: bool,
    /// The rights that Redis denies to the user of this process, in words and with the ACL rules to
    /// add; or that it does not let the user in. `None`: no denial is known.
    pub denied: Option<Arc<str>>,
}

/// The state of the invalidation bus, as one process sees it.
#[non_exhaustive]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Channel {
    /// There is no shared tier, and so no other process to hear from: L1 answers.
    None,
    /// The bus has proven itself within the [channel lease](crate::CacheBuilder::channel_lease): L1
    /// answers.
    Proven,
    /// The subscription seems to work, but no heartbeat has come back within the channel lease:
    /// reads go to L2.
    Unproven,
    /// There is no subscription, or none yet: reads go to L2.
    Down,
}

/// An event for operators: see [`CacheBuilder::on_event`](crate::CacheBuilder::on_event).
#[non_exhaustive]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event {
    /// The subscription to the invalidation bus works, for the first time or again.
    ChannelUp,
    /// The subscription is lost: L1 is not used until it works again and has proven itself.
    ChannelDown,
    /// The subscription seems to work, but no heartbeat has come back for longer than the channel
    /// lease. A new connection is made.
    ChannelSilent,
    /// A message may have been missed: no entry that was read before is answered before L2 has been
    /// asked about it.
    Gap,
    /// The server does not answer, and receives no more commands until probes are answered: see
    /// [`RedisBuilder::breaker`](crate::RedisBuilder::breaker).
    BreakerOpened,
    /// The server answers again.
    BreakerClosed,
    /// The server does not let the user in, or denies a right that the shared tier needs:
    /// [`Health::denied`] says which. Look-ups go on, with less of the shared tier
    /// or without it.
    Denied,
    /// Nothing is denied any more.
    Granted,
    /// The shared tier did not confirm an invalidation; it is repeated until it does.
    RepairPending,
    /// Too many invalidations are unconfirmed: everything is invalidated instead.
    RepairsOverflowed,
}

/// The user's function.
#[derive(Clone)]
pub(crate) struct OnEvent(pub(crate) Arc<dyn Fn(&Event) + Send + Sync>);

impl fmt::Debug for OnEvent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("OnEvent")
    }
}
