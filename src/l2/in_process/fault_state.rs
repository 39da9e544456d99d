//! The faults that a test has set on an embedded tier, and what each does to an operation.

use std::time::Duration;

use parking_lot::Mutex;

use crate::error::{RemoteError, RemoteKind};
use crate::l2::listener::Listener;

/// How long an operation waits for its answer: the default of a Redis handle.
pub(super) const TIMEOUT: Duration = Duration::from_millis(100);

/// What happens to an operation of the shared tier.
#[non_exhaustive]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// There is no server: an error at once, nothing is carried out.
    Unreachable,
    /// The server answers an error, as it does when it is out of memory or read-only. Nothing is
    /// carried out.
    Refused,
    /// The operation never arrives: nothing is carried out, and it times out after
    /// [`Faults::TIMEOUT`](super::faults::Faults::TIMEOUT).
    Hang,
    /// The operation is carried out and its answer is lost: it times out after
    /// [`Faults::TIMEOUT`](super::faults::Faults::TIMEOUT). The caller cannot tell this from
    /// [`Hang`](Self::Hang).
    LoseReply,
    /// The answer is late by this much: half of it on the way there, half on the way back. From
    /// [`Faults::TIMEOUT`](super::faults::Faults::TIMEOUT) on it is too late, as with
    /// [`LoseReply`](Self::LoseReply). From twice the timeout on nothing is carried out.
    Delay(Duration),
}

/// The operations of the shared tier that a [`Fault`] is for.
#[non_exhaustive]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Operations {
    /// All operations, also the heartbeats that prove the channel.
    All,
    /// Reads of entries, and of the marks of what was invalidated as a whole.
    Reads,
    /// Leases: acquired, renewed, released.
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

/// The state that the faults of one tier share.
#[derive(Debug, Default)]
pub(crate) struct FaultState(pub(super) Mutex<FaultPlan>);

/// The faults to come.
#[derive(Debug, Default)]
pub(super) struct FaultPlan {
    /// Faults for a number of operations each, in the order in which the test asked for them.
    pub(super) next: Vec<(usize, Operations, Fault)>,
    /// Faults that stay until they are switched off. The latest one counts.
    pub(super) set: Vec<(Operations, Fault)>,
    pub(super) channel: Channel,
    /// How far the server's clock is ahead, in milliseconds.
    pub(super) clock: i64,
}

/// The state of the invalidation bus.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Channel {
    #[default]
    Stands,
    Cut,
    Silent,
}

impl FaultPlan {
    fn next_fault(&mut self, operation: &str) -> Option<Fault> {
        // Heartbeats are sent by a timer: a test could not know which operation is the next one.
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

impl FaultState {
    fn channel(&self) -> Channel {
        self.0.lock().channel
    }

    pub(super) fn channel_stands(&self) -> bool {
        self.channel() == Channel::Stands
    }

    /// Answers a listener that subscribes while the channel does not stand.
    pub(super) fn refuse_listener(&self, listener: &dyn Listener) {
        if self.channel() == Channel::Cut {
            listener.on_down();
        }
    }

    pub(super) fn shifted_clock(&self, now_ms: u64) -> u64 {
        now_ms.saturating_add_signed(self.0.lock().clock)
    }

    /// What happens to an operation before it is carried out. Answers the fault, which
    /// [`after_operation`](Self::after_operation) needs.
    pub(super) async fn before_operation(
        &self,
        operation: &'static str,
    ) -> Result<Option<Fault>, RemoteError> {
        let fault = self.0.lock().next_fault(operation);
        match fault {
            Some(Fault::Unreachable) => Err(RemoteError::new(RemoteKind::Unreachable, operation)),
            Some(Fault::Refused) => Err(RemoteError::new(RemoteKind::Refused, operation)),
            Some(Fault::Hang) => wait(operation, TIMEOUT).await,
            Some(Fault::Delay(by)) => wait(operation, by / 2).await,
            Some(Fault::LoseReply) | None => Ok(()),
        }?;
        Ok(fault)
    }

    /// What happens to the answer of an operation.
    pub(super) async fn after_operation(
        operation: &'static str,
        fault: Option<Fault>,
    ) -> Result<(), RemoteError> {
        match fault {
            Some(Fault::LoseReply) => wait(operation, TIMEOUT).await,
            Some(Fault::Delay(by)) if by >= TIMEOUT => {
                tokio::time::sleep(TIMEOUT.saturating_sub(by / 2)).await;
                Err(RemoteError::new(RemoteKind::Timeout, operation))
            }
            Some(Fault::Delay(by)) => wait(operation, by - by / 2).await,
            _ => Ok(()),
        }
    }
}

/// Waits for this long, or until the operation times out.
async fn wait(operation: &'static str, duration: Duration) -> Result<(), RemoteError> {
    tokio::time::sleep(duration.min(TIMEOUT)).await;
    if duration < TIMEOUT {
        Ok(())
    } else {
        Err(RemoteError::new(RemoteKind::Timeout, operation))
    }
}
