//! The handle by which a test makes an embedded tier fail: see [`crate::testing`].

use std::fmt;
use std::sync::{Arc, Weak};
use std::time::Duration;

use super::fault_state::{Channel, FaultPlan, FaultState, TIMEOUT};
pub use super::fault_state::{Fault, Operations};
use super::tier::{InProcess, Shared};
use crate::l2::listener::Listener;

/// Makes every cache on one [`InProcess`] see trouble, on command: see [`InProcess::with_faults`].
///
/// Every method takes effect with the next operation. An operation that is under way ends as it
/// began. Each method is synchronous and cheap. `Clone` gives another handle to the same tier.
#[derive(Clone)]
pub struct Faults {
    tier: InProcess,
}

impl Faults {
    /// How long an operation waits for its answer: 100 milliseconds, the default of a
    /// [`Redis`](crate::RedisBuilder::timeout) handle.
    pub const TIMEOUT: Duration = TIMEOUT;

    /// The next `count` operations of this kind have this fault. It comes before any fault that was
    /// [`set`](Self::set), and after those that earlier calls asked for. Heartbeats do not have it
    /// and do not count.
    pub fn next(&self, count: usize, operations: Operations, fault: Fault) {
        if count > 0 {
            self.change(|plan| plan.next.push((count, operations, fault)));
        }
    }

    /// The operations of this kind have this fault until [`clear`](Self::clear) or
    /// [`recover`](Self::recover). If several faults are for one operation, the latest counts.
    pub fn set(&self, operations: Operations, fault: Fault) {
        self.change(|plan| {
            plan.set.retain(|(which, _)| *which != operations);
            plan.set.push((operations, fault));
        });
    }

    /// Operations have no faults any more, neither set ones nor next ones. The channel and the
    /// clock stay as they are.
    pub fn clear(&self) {
        self.change(|plan| {
            plan.next.clear();
            plan.set.clear();
        });
    }

    /// The server is gone: every operation is [`Unreachable`](Fault::Unreachable), and the channel
    /// is cut.
    pub fn go_down(&self) {
        self.set(Operations::All, Fault::Unreachable);
        self.cut_channel();
    }

    /// The server, or the network, is silent: every operation [hangs](Fault::Hang), and the channel
    /// delivers nothing. There is no breaker as in a [`Redis`](crate::Redis) handle: every
    /// operation waits for its timeout.
    pub fn go_silent(&self) {
        self.set(Operations::All, Fault::Hang);
        self.silence_channel();
    }

    /// All trouble is over: operations have no faults, and the channel stands again. The tier holds
    /// the records that it held before, except those that expired. For a server that comes back
    /// empty, call [`flush`](Self::flush) first. The clock stays as it is.
    pub fn recover(&self) {
        self.clear();
        self.heal_channel();
    }

    /// The connection of the invalidation bus is lost, and caches are told of it: messages reach no
    /// cache, and L1 is not used while L2 answers.
    pub fn cut_channel(&self) {
        if self.change(|plan| std::mem::replace(&mut plan.channel, Channel::Cut)) != Channel::Cut {
            self.for_each_listener(|listener| listener.on_down());
        }
    }

    /// The connection of the invalidation bus stands, but delivers nothing any more: caches notice
    /// within their [`channel_lease`](crate::CacheBuilder::channel_lease).
    pub fn silence_channel(&self) {
        self.change(|plan| plan.channel = Channel::Silent);
    }

    /// The bus has a new connection: the messages of the time between are lost, and caches are told
    /// of it. Nothing happens if the channel stands.
    pub fn heal_channel(&self) {
        let before = self.change(|plan| std::mem::take(&mut plan.channel));
        if before != Channel::Stands {
            self.for_each_listener(|listener| listener.on_up());
        }
    }

    /// All records are gone, as after `FLUSHALL` or the start of an empty server: entries, leases,
    /// and the marks of what was invalidated as a whole. Caches are not told of it.
    pub fn flush(&self) {
        let mut store = self.tier.shared.store.lock();
        store.records.clear();
        store.marks.clear();
    }

    /// The server's clock is ahead by this much; zero sets it right. Entries in L2 are older by as
    /// much. For L1, and for expiry, nothing changes.
    pub fn clock_ahead(&self, by: Duration) {
        let by = i64::try_from(by.as_millis()).unwrap_or(i64::MAX);
        self.change(|plan| plan.clock = by);
    }

    /// The server's clock is behind by this much: see [`clock_ahead`](Self::clock_ahead).
    pub fn clock_behind(&self, by: Duration) {
        let by = i64::try_from(by.as_millis()).unwrap_or(i64::MAX);
        self.change(|plan| plan.clock = -by);
    }

    fn change<T: Default>(&self, what: impl FnOnce(&mut FaultPlan) -> T) -> T {
        let faults = self.tier.shared.faults.as_ref();
        faults.map_or_else(T::default, |faults| what(&mut faults.0.lock()))
    }

    fn for_each_listener(&self, what: impl Fn(&dyn Listener)) {
        for listener in self.tier.all_listeners() {
            what(&*listener);
        }
    }
}

impl fmt::Debug for Faults {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Faults")
            .field("tier", &self.tier)
            .field("trouble", &self.tier.shared.faults)
            .finish()
    }
}

impl InProcess {
    /// An empty tier whose operations and messages a test can disturb: see
    /// [`testing`](crate::testing).
    ///
    /// Unlike the tier of [`new`](Self::new), it has a connection that can be lost. Caches
    /// therefore prove their channel with heartbeats, as they do with a [`Redis`](crate::Redis).
    #[cfg_attr(docsrs, doc(cfg(feature = "testing")))]
    pub fn with_faults() -> (Self, Faults) {
        let mut shared = Shared::new();
        shared.faults = Some(FaultState::default());
        let tier = Self::with_shared(shared);
        (tier.clone(), Faults { tier })
    }

    fn all_listeners(&self) -> Vec<Arc<dyn Listener>> {
        let listeners = self.shared.listeners.lock();
        let all = listeners.values().flatten();
        all.filter_map(Weak::upgrade).collect()
    }
}
