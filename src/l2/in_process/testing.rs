//! What tests do to the embedded tier: gates at its operations, failures, wires to its listeners,
//! handles that are killed, and access to the raw records.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use bytes::Bytes;
use tokio::time::Instant;

use super::gates::{Gate, When, Wire};
use super::tier::InProcess;
use crate::error::RemoteKind;
use crate::protocol::record;

/// Wires are numbered in the order in which caches began to listen. A wire delivers nothing until
/// the test says so.
impl InProcess {
    /// A tier whose listeners are reached over wires. Each way of an operation takes up to
    /// `latency_ms`.
    pub(crate) fn wired(latency_ms: u64) -> Self {
        let tier = Self::new();
        tier.shared
            .hooks
            .latency_ms
            .store(latency_ms, Ordering::Relaxed);
        *tier.shared.hooks.wires.lock() = Some(Vec::new());
        tier
    }

    fn wire<T>(&self, wire: usize, what: impl FnOnce(&mut Wire) -> T) -> T {
        what(&mut self.shared.hooks.wires.lock().as_mut().expect("wired")[wire])
    }

    pub(crate) fn wires(&self) -> usize {
        self.shared.hooks.wires.lock().as_ref().map_or(0, Vec::len)
    }

    pub(crate) fn is_up(&self, wire: usize) -> bool {
        self.wire(wire, |wire| wire.up)
    }

    /// The messages that are under way.
    pub(crate) fn queued(&self, wire: usize) -> Vec<Bytes> {
        self.wire(wire, |wire| wire.queue.iter().cloned().collect())
    }

    /// The subscription of this wire stands from now on.
    pub(crate) fn connect(&self, wire: usize) {
        let listener = self.wire(wire, |wire| {
            wire.up = true;
            wire.listener.upgrade()
        });
        if let Some(listener) = listener {
            listener.on_up();
        }
    }

    /// The subscription is lost, with all messages that were under way.
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

    /// Delivers the message at `at` in the queue. With `again` it stays in the queue.
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

    /// Loses the message at `at`; no listener is told.
    pub(crate) fn lose(&self, wire: usize, at: usize) {
        self.wire(wire, |wire| wire.queue.remove(at))
            .expect("a message");
    }

    /// Delivers all messages of all wires.
    pub(crate) fn hand_over_all(&self) {
        for wire in 0..self.wires() {
            while self.hand_over(wire, 0, false) {}
        }
    }
}

impl InProcess {
    /// Stops the next operation of this kind.
    pub(crate) fn gate(&self, operation: &'static str, when: When) -> Gate {
        self.put(operation, when, None)
    }

    /// Lets the next operation of this kind fail.
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
        self.shared.hooks.gates.lock().push(gate.clone());
        gate
    }

    /// Another handle to the same tier, which can be killed apart from this one.
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
        self.shared.hooks.gates.lock().clear();
    }

    /// Whether a gate or a failure is still set.
    pub(crate) fn will_fail(&self) -> bool {
        !self.shared.hooks.gates.lock().is_empty()
    }

    /// The raw record under a key.
    pub(crate) fn raw(&self, key: &[u8]) -> Option<Bytes> {
        self.shared
            .store
            .lock()
            .get(key, Instant::now())
            .map(|stored| stored.bytes.clone())
    }

    /// Removes all listeners.
    pub(crate) fn mute(&self) {
        self.shared.listeners.lock().clear();
    }

    /// All keys with the kinds of their records.
    pub(crate) fn kinds(&self) -> Vec<(Bytes, Option<record::Kind>)> {
        let now = Instant::now();
        let store = self.shared.store.lock();
        let live = store
            .records
            .iter()
            .filter(|(_, stored)| stored.expires_at > now);
        live.map(|(key, stored)| {
            let parsed = record::Header::parse(&stored.bytes, record::key_hash(key));
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
