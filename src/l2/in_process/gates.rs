//! Test hooks of the embedded tier: gates at its operations, and wires to its listeners.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Weak};
use std::time::Duration;

use bytes::Bytes;
use parking_lot::Mutex;

use crate::error::{RemoteError, RemoteKind};
use crate::l2::listener::Listener;
use crate::protocol::request::Publication;

/// Where an operation stops: before it is carried out, or between that and its reply.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum When {
    Before,
    After,
}

/// Stops the next operation of a kind until the test opens the gate, or makes it fail.
#[derive(Clone, Debug)]
pub(crate) struct Gate {
    pub(super) operation: &'static str,
    pub(super) when: When,
    pub(super) arrived: Arc<tokio::sync::Semaphore>,
    pub(super) open: Arc<tokio::sync::Semaphore>,
    pub(super) error: Option<RemoteKind>,
}

impl Gate {
    /// Waits until an operation stands at the gate.
    pub(crate) async fn reached(&self) {
        self.arrived.acquire().await.expect("never closed").forget();
    }

    pub(crate) fn open(&self) {
        self.open.add_permits(1);
    }

    /// To raise a mark is one way to look at the marks.
    fn is_for(&self, operation: &str) -> bool {
        self.operation == operation || (self.operation, operation) == ("marks", "raise")
    }
}

/// A simulated link between the tier and one listener. It holds messages back until the test
/// delivers them.
pub(super) struct Wire {
    pub(super) channel: Bytes,
    pub(super) listener: Weak<dyn Listener>,
    pub(super) up: bool,
    pub(super) queue: VecDeque<Bytes>,
}

/// The hooks of one tier.
#[derive(Default)]
pub(super) struct TestHooks {
    pub(super) gates: Mutex<Vec<Gate>>,
    /// `None`: listeners are called directly.
    pub(super) wires: Mutex<Option<Vec<Wire>>>,
    /// The longest time that an operation, and then its answer, is under way.
    pub(super) latency_ms: AtomicU64,
}

impl TestHooks {
    pub(super) fn is_wired(&self) -> bool {
        self.wires.lock().is_some()
    }

    /// Adds a wire to this listener, if listeners are reached over wires. `false`: they are not.
    pub(super) fn add_wire(&self, channel: &Bytes, listener: &Weak<dyn Listener>) -> bool {
        let mut wires = self.wires.lock();
        let Some(wires) = &mut *wires else {
            return false;
        };
        wires.push(Wire {
            channel: channel.clone(),
            listener: Weak::clone(listener),
            up: false,
            queue: VecDeque::new(),
        });
        true
    }

    pub(super) fn send_over_wires(&self, publication: &Publication) {
        for wire in self.wires.lock().iter_mut().flatten() {
            if wire.up && (publication.channel.is_empty() || publication.channel == wire.channel) {
                wire.queue.push_back(publication.message.clone());
            }
        }
    }

    /// Lets an operation pass: after the simulated latency and the gate, and never from a handle
    /// that was killed.
    pub(super) async fn pass(
        &self,
        operation: &'static str,
        when: When,
        is_direct: bool,
        killed: &AtomicBool,
    ) -> Result<(), RemoteError> {
        if !is_direct {
            let longest = Duration::from_millis(self.latency_ms.load(Ordering::Relaxed));
            tokio::time::sleep(crate::random::duration(Duration::ZERO, longest)).await;
        }
        if killed.load(Ordering::SeqCst) {
            return std::future::pending().await;
        }
        let gate = {
            let mut gates = self.gates.lock();
            let at = gates
                .iter()
                .position(|gate| gate.is_for(operation) && gate.when == when);
            at.map(|at| gates.remove(at))
        };
        let Some(gate) = gate else { return Ok(()) };
        gate.arrived.add_permits(1);
        gate.open.acquire().await.expect("never closed").forget();
        match gate.error {
            Some(kind) => Err(RemoteError::new(kind, operation)),
            None => Ok(()),
        }
    }
}
