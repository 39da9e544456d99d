//! What tests do to the embedded tier: gates at its operations, failures, wires to its listeners,
//! handles that die, and a look at what it holds.

use std::collections::VecDeque;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Weak};
use std::time::Duration;

use bytes::Bytes;
use tokio::time::Instant;

use super::InProcess;
use crate::codec::envelope;
use crate::error::{RemoteError, RemoteKind};
use crate::l2::{Listener, Notice};

/// Where an operation stops: before it is carried out, or between that and its reply.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum When {
    Before,
    After,
}

/// What lies between the tier and one listener, when a test has put something there.
pub(super) struct Wire {
    pub(super) channel: Bytes,
    pub(super) listener: Weak<dyn Listener>,
    pub(super) up: bool,
    pub(super) queue: VecDeque<Bytes>,
}

/// Wires are numbered in the order in which caches began to listen. Nothing comes through one until
/// the test says so.
impl InProcess {
    /// A tier whose listeners are reached over wires, and whose operations take up to so long.
    pub(crate) fn wired(latency_ms: u64) -> Self {
        let tier = Self::new();
        tier.shared.latency_ms.store(latency_ms, Ordering::Relaxed);
        *tier.shared.wires.lock() = Some(Vec::new());
        tier
    }

    pub(super) fn send_over_wires(&self, notice: &Notice) {
        for wire in self.shared.wires.lock().iter_mut().flatten() {
            if wire.up && (notice.channel.is_empty() || notice.channel == wire.channel) {
                wire.queue.push_back(notice.message.clone());
            }
        }
    }

    fn wire<T>(&self, wire: usize, what: impl FnOnce(&mut Wire) -> T) -> T {
        what(&mut self.shared.wires.lock().as_mut().expect("wired")[wire])
    }

    pub(crate) fn wires(&self) -> usize {
        self.shared.wires.lock().as_ref().map_or(0, Vec::len)
    }

    pub(crate) fn is_up(&self, wire: usize) -> bool {
        self.wire(wire, |wire| wire.up)
    }

    /// Messages that are on their way.
    pub(crate) fn queued(&self, wire: usize) -> Vec<Bytes> {
        self.wire(wire, |wire| wire.queue.iter().cloned().collect())
    }

    /// The subscription stands from now on.
    pub(crate) fn connect(&self, wire: usize) {
        let listener = self.wire(wire, |wire| {
            wire.up = true;
            wire.listener.upgrade()
        });
        if let Some(listener) = listener {
            listener.on_up();
        }
    }

    /// The subscription is lost, with all that was on its way.
    pub(crate) fn cut(&self, wire: usize) {
        let listener = self.wire(wire, |wire| {
            wire.up = false;
            wire.queue.clear();
            wire.listener.upgrade()
        });
        if let Some(listener) = listener {
            listener.on_down();
        }
    }

    /// Delivers the message at `at` in the queue, and leaves it there to come again if asked to.
    pub(crate) fn hand_over(&self, wire: usize, at: usize, again: bool) -> bool {
        let (message, listener) = self.wire(wire, |wire| {
            let message = if again {
                wire.queue.get(at).cloned()
            } else {
                wire.queue.remove(at)
            };
            (message, wire.listener.upgrade())
        });
        match (message, listener) {
            (Some(message), Some(listener)) => listener.on_message(&message),
            _ => return false,
        }
        true
    }

    /// Loses the message at `at`, and nobody says so.
    pub(crate) fn lose(&self, wire: usize, at: usize) {
        self.wire(wire, |wire| wire.queue.remove(at))
            .expect("a message");
    }

    /// Delivers everything, on every wire.
    pub(crate) fn hand_over_all(&self) {
        for wire in 0..self.wires() {
            while self.hand_over(wire, 0, false) {}
        }
    }
}

/// Stops the next operation of a kind until the test lets it go on, or makes it fail.
#[derive(Clone, Debug)]
pub(crate) struct Gate {
    operation: &'static str,
    when: When,
    arrived: Arc<tokio::sync::Semaphore>,
    open: Arc<tokio::sync::Semaphore>,
    error: Option<RemoteKind>,
}

impl Gate {
    /// Waits until an operation stands at the gate.
    pub(crate) async fn reached(&self) {
        self.arrived.acquire().await.expect("never closed").forget();
    }

    pub(crate) fn open(&self) {
        self.open.add_permits(1);
    }

    /// Raising a mark is one way to look at the marks.
    fn is_for(&self, operation: &str) -> bool {
        self.operation == operation || (self.operation, operation) == ("marks", "raise")
    }
}

impl InProcess {
    /// Stops the next such operation.
    pub(crate) fn gate(&self, operation: &'static str, when: When) -> Gate {
        self.put(operation, when, None)
    }

    /// Lets the next such operation fail.
    pub(crate) fn fail(&self, operation: &'static str, when: When, error: RemoteKind) {
        self.put(operation, when, Some(error)).open();
    }

    fn put(&self, operation: &'static str, when: When, error: Option<RemoteKind>) -> Gate {
        let semaphore = || Arc::new(tokio::sync::Semaphore::new(0));
        let gate = Gate {
            operation,
            when,
            arrived: semaphore(),
            open: semaphore(),
            error,
        };
        self.shared.gates.lock().push(gate.clone());
        gate
    }

    /// A handle of its own, which can be killed.
    pub(crate) fn mortal(&self) -> Self {
        Self {
            shared: Arc::clone(&self.shared),
            killed: Arc::default(),
        }
    }

    pub(crate) fn kill(&self) {
        self.killed.store(true, Ordering::SeqCst);
    }

    pub(crate) fn is_dead(&self) -> bool {
        self.killed.load(Ordering::SeqCst)
    }

    pub(crate) fn no_more_failures(&self) {
        self.shared.gates.lock().clear();
    }

    /// Whether an operation is to fail that has not come yet.
    pub(crate) fn will_fail(&self) -> bool {
        !self.shared.gates.lock().is_empty()
    }

    pub(super) async fn pass(
        &self,
        operation: &'static str,
        when: When,
    ) -> Result<(), RemoteError> {
        if !self.is_direct() {
            // The way there, and the way back.
            let longest = Duration::from_millis(self.shared.latency_ms.load(Ordering::Relaxed));
            tokio::time::sleep(crate::random::duration(Duration::ZERO, longest)).await;
        }
        if self.is_dead() {
            return std::future::pending().await;
        }
        let gate = {
            let mut gates = self.shared.gates.lock();
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

    /// The raw record under a key, as somebody with other tools would see it.
    pub(crate) fn raw(&self, key: &[u8]) -> Option<Bytes> {
        self.shared
            .store
            .lock()
            .get(key, Instant::now())
            .map(|stored| stored.bytes.clone())
    }

    /// Nobody hears anything any more.
    pub(crate) fn mute(&self) {
        self.shared.listeners.lock().clear();
    }

    /// Every key with the kind of its record.
    pub(crate) fn kinds(&self) -> Vec<(Bytes, Option<envelope::Kind>)> {
        let now = Instant::now();
        let store = self.shared.store.lock();
        let live = store
            .records
            .iter()
            .filter(|(_, stored)| stored.expires_at > now);
        live.map(|(key, stored)| {
            let parsed = envelope::Header::parse(&stored.bytes, envelope::key_hash(key));
            (key.clone(), parsed.ok().map(|(header, _)| header.kind))
        })
        .collect()
    }

    pub(crate) fn set_raw(&self, key: &[u8], bytes: &[u8], ttl_ms: u64) {
        let key = Bytes::copy_from_slice(key);
        self.shared
            .store
            .lock()
            .set(&key, bytes.to_vec(), ttl_ms, Instant::now());
    }

    pub(crate) fn delete_raw(&self, key: &[u8]) {
        self.shared.store.lock().records.remove(key);
    }
}
