//! An embedded tier that fails on command: see [`crate::testing`].

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;

use super::{InProcess, Shared};
use crate::error::{RemoteError, RemoteKind};
use crate::l2::Listener;

/// What happens to an operation of the shared tier.
#[non_exhaustive]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// There is no server: an error at once, nothing is carried out.
    Unreachable,
    /// The server answers an error, as it does when it is out of memory or read-only. Nothing is carried
    /// out.
    Refused,
    /// The operation never arrives: nothing is carried out, and its time is up after
    /// [`Faults::TIMEOUT`].
    Hang,
    /// The operation is carried out and its answer is lost: its time is up after [`Faults::TIMEOUT`],
    /// and nobody can tell this from [`Hang`](Self::Hang).
    LoseReply,
    /// The answer comes so much later: half the time there, half the time back. From
    /// [`Faults::TIMEOUT`] on it comes too late, as with [`LoseReply`](Self::LoseReply); from twice that
    /// on nothing is carried out.
    Delay(Duration),
}

/// Which operations of the shared tier a [`Fault`] is for.
#[non_exhaustive]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Operations {
    /// All of them, the beats that prove the channel among them.
    All,
    /// Reads of entries, and of what was invalidated as a whole.
    Reads,
    /// Leases: acquired, renewed, given up.
    Leases,
    /// What loads write: fills, refreshed entries.
    Fills,
    /// What callers change: `invalidate`, `invalidate_tag`, `invalidate_all`, `expire`, `insert`.
    Changes,
}

impl Operations {
    fn include(self, operation: &str) -> bool {
        match self {
            Self::All => true,
            Self::Reads => matches!(operation, "get" | "marks"),
            Self::Leases => matches!(operation, "acquire" | "renew" | "release"),
            Self::Fills => matches!(operation, "replace" | "refill"),
            Self::Changes => matches!(operation, "invalidate" | "raise" | "expire" | "insert"),
        }
    }
}

/// Trouble for every cache on one [`InProcess`], on command: see [`InProcess::with_faults`].
///
/// Every method takes effect with the next operation; one that is under way ends as it began. Each is
/// synchronous and cheap. `Clone` gives another handle to the same tier.
#[derive(Clone)]
pub struct Faults {
    tier: InProcess,
}

/// The state of the tier's trouble.
#[derive(Debug, Default)]
pub(crate) struct FaultState(Mutex<FaultPlan>);

#[derive(Debug, Default)]
struct FaultPlan {
    /// For so many operations each, in the order in which they were asked for.
    next: Vec<(usize, Operations, Fault)>,
    /// Until they are switched off; the latest one counts.
    set: Vec<(Operations, Fault)>,
    channel: Channel,
    /// Milliseconds that the server's clock is off by.
    clock: i64,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Channel {
    #[default]
    Stands,
    Cut,
    Silent,
}

impl FaultPlan {
    fn next_fault(&mut self, operation: &str) -> Option<Fault> {
        // A beat comes by itself: nobody could say which operation is the next one.
        let mut next = self.next.iter().filter(|_| operation != "beat");
        if let Some(at) = next.position(|(_, which, _)| which.include(operation)) {
            let (left, _, fault) = &mut self.next[at];
            let fault = *fault;
            *left -= 1;
            if *left == 0 {
                self.next.remove(at);
            }
            return Some(fault);
        }
        let mut set = self.set.iter().rev();
        set.find(|(which, _)| which.include(operation))
            .map(|(_, fault)| *fault)
    }
}

impl Faults {
    /// How long an operation waits for its answer: 100 milliseconds, the default of a
    /// [`Redis`](crate::RedisBuilder::timeout) handle.
    pub const TIMEOUT: Duration = Duration::from_millis(100);

    /// The next `count` such operations have this fault, before any that was [`set`](Self::set). Asked for
    /// again, it comes after what was asked for before. Beats have none and do not count.
    pub fn next(&self, count: usize, operations: Operations, fault: Fault) {
        if count > 0 {
            self.change(|plan| plan.next.push((count, operations, fault)));
        }
    }

    /// Such operations have this fault until [`clear`](Self::clear) or [`recover`](Self::recover). Of several
    /// that are for one operation the latest counts.
    pub fn set(&self, operations: Operations, fault: Fault) {
        self.change(|plan| {
            plan.set.retain(|(which, _)| *which != operations);
            plan.set.push((operations, fault));
        });
    }

    /// No operation has a fault any more, those among the next ones included. The channel and the clock
    /// stay as they are.
    pub fn clear(&self) {
        self.change(|plan| {
            plan.next.clear();
            plan.set.clear();
        });
    }

    /// The server is gone: every operation is [`Unreachable`](Fault::Unreachable), and the channel is cut.
    pub fn go_down(&self) {
        self.set(Operations::All, Fault::Unreachable);
        self.cut_channel();
    }

    /// The server, or the network, stays silent: every operation [hangs](Fault::Hang), and the channel says
    /// nothing. Nothing opens like the breaker of a [`Redis`](crate::Redis) handle: every operation
    /// waits for its timeout.
    pub fn go_silent(&self) {
        self.set(Operations::All, Fault::Hang);
        self.silence_channel();
    }

    /// All trouble is over: operations have no faults, the channel stands again. What is stored is what
    /// was stored before (but for what expired): a server that comes back empty is
    /// [`flush`](Self::flush) and then this. The clock stays as it is.
    pub fn recover(&self) {
        self.clear();
        self.heal_channel();
    }

    /// The connection of the invalidation bus is lost, and caches are told so: messages reach nobody, L1
    /// is not used while L2 answers.
    pub fn cut_channel(&self) {
        if self.change(|plan| std::mem::replace(&mut plan.channel, Channel::Cut)) != Channel::Cut {
            self.for_each_listener(|listener| listener.on_down());
        }
    }

    /// The connection of the invalidation bus stands, and nothing comes out of it any more: caches notice
    /// within their [`channel_lease`](crate::CacheBuilder::channel_lease).
    pub fn silence_channel(&self) {
        self.change(|plan| plan.channel = Channel::Silent);
    }

    /// A new connection of the bus: what was said meanwhile is lost, and caches are told so. Nothing where
    /// the channel stands.
    pub fn heal_channel(&self) {
        let before = self.change(|plan| std::mem::take(&mut plan.channel));
        if before != Channel::Stands {
            self.for_each_listener(|listener| listener.on_up());
        }
    }

    /// Everything that is stored is gone, as after `FLUSHALL` or the start of an empty server: entries,
    /// leases, and what was invalidated as a whole. Nobody is told.
    pub fn flush(&self) {
        let mut store = self.tier.shared.store.lock();
        store.records.clear();
        store.marks.clear();
    }

    /// The server's clock is so far ahead of what it would be; zero is right again. Entries in L2 are older
    /// by as much; in L1, and for expiries, nothing changes.
    pub fn clock_ahead(&self, by: Duration) {
        let by = i64::try_from(by.as_millis()).unwrap_or(i64::MAX);
        self.change(|plan| plan.clock = by);
    }

    /// The server's clock is so far behind: see [`clock_ahead`](Self::clock_ahead).
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
    /// An empty tier whose operations and messages a test can disturb: see [`testing`](crate::testing).
    ///
    /// Unlike [`new`](Self::new) it has a connection that can be lost, so caches prove their channel with
    /// beats, as they do with a [`Redis`](crate::Redis).
    #[cfg_attr(docsrs, doc(cfg(feature = "testing")))]
    pub fn with_faults() -> (Self, Faults) {
        let shared = Shared {
            faults: Some(FaultState::default()),
            ..Shared::new()
        };
        let tier = Self {
            shared: Arc::new(shared),
            #[cfg(all(test, feature = "bincode"))]
            killed: Arc::default(),
        };
        (tier.clone(), Faults { tier })
    }

    fn all_listeners(&self) -> Vec<Arc<dyn Listener>> {
        let listeners = self.shared.listeners.lock();
        let all = listeners.values().flatten();
        all.filter_map(std::sync::Weak::upgrade).collect()
    }

    fn channel(&self) -> Channel {
        let faults = self.shared.faults.as_ref();
        faults.map_or(Channel::Stands, |faults| faults.0.lock().channel)
    }

    pub(super) fn channel_stands(&self) -> bool {
        self.channel() == Channel::Stands
    }

    /// Somebody began to listen to a channel that does not stand.
    pub(super) fn refuse_listener(&self, listener: &dyn Listener) {
        if self.channel() == Channel::Cut {
            listener.on_down();
        }
    }

    pub(super) fn shifted_clock(&self, now_ms: u64) -> u64 {
        let faults = self.shared.faults.as_ref();
        let by = faults.map_or(0, |faults| faults.0.lock().clock);
        now_ms.saturating_add_signed(by)
    }

    /// What happens to an operation on its way there. Answers what is to happen on its way back.
    pub(super) async fn before_operation(
        &self,
        operation: &'static str,
    ) -> Result<Option<Fault>, RemoteError> {
        let Some(faults) = &self.shared.faults else {
            return Ok(None);
        };
        let fault = faults.0.lock().next_fault(operation);
        match fault {
            Some(Fault::Unreachable) => Err(RemoteError::new(RemoteKind::Unreachable, operation)),
            Some(Fault::Refused) => Err(RemoteError::new(RemoteKind::Refused, operation)),
            Some(Fault::Hang) => wait(operation, Faults::TIMEOUT).await,
            Some(Fault::Delay(by)) => wait(operation, by / 2).await,
            Some(Fault::LoseReply) | None => Ok(()),
        }?;
        Ok(fault)
    }

    /// What happens to its answer.
    pub(super) async fn after_operation(
        &self,
        operation: &'static str,
        fault: Option<Fault>,
    ) -> Result<(), RemoteError> {
        match fault {
            Some(Fault::LoseReply) => wait(operation, Faults::TIMEOUT).await,
            Some(Fault::Delay(by)) if by >= Faults::TIMEOUT => {
                tokio::time::sleep(Faults::TIMEOUT.saturating_sub(by / 2)).await;
                Err(RemoteError::new(RemoteKind::Timeout, operation))
            }
            Some(Fault::Delay(by)) => wait(operation, by - by / 2).await,
            _ => Ok(()),
        }
    }
}

/// Waits so long, or until the operation's time is up.
async fn wait(operation: &'static str, duration: Duration) -> Result<(), RemoteError> {
    tokio::time::sleep(duration.min(Faults::TIMEOUT)).await;
    if duration < Faults::TIMEOUT {
        Ok(())
    } else {
        Err(RemoteError::new(RemoteKind::Timeout, operation))
    }
}
