//! The oracle of the soak: the versions of rows, and which of them may still be answered.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tidegate::Freshness;

/// Rows with versions, and the oldest versions that may still be answered.
#[derive(Clone)]
pub(crate) struct Oracle {
    rows: Arc<Mutex<HashMap<u64, Row>>>,
    /// For this long, another node may answer a version that was announced as old.
    elsewhere: Duration,
}

#[derive(Default)]
struct Row {
    committed: u64,
    /// A write is under way. Other writers wait, because the order of two writers is not part of
    /// the contract.
    writing: bool,
    announced: Vec<Announced>,
}

/// A change that has returned.
#[derive(Clone, Copy)]
struct Announced {
    version: u64,
    node: usize,
    confirmed: bool,
    /// An expiry: the old value may still be answered when a load fails.
    soft: bool,
    at: Instant,
}

/// The oldest versions that a look-up may answer.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Floor {
    version: u64,
    /// The oldest version when its load failed.
    fallback: u64,
}

impl Oracle {
    pub(crate) fn new(elsewhere: Duration) -> Self {
        Self {
            rows: Arc::default(),
            elsewhere,
        }
    }

    fn rows(&self) -> MutexGuard<'_, HashMap<u64, Row>> {
        self.rows.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The version of a row, as a query reads it.
    pub(crate) fn read(&self, key: u64) -> u64 {
        self.rows().entry(key).or_default().committed
    }

    /// `false` when another task writes this row.
    pub(crate) fn begin_write(&self, key: u64) -> bool {
        let mut rows = self.rows();
        let row = rows.entry(key).or_default();
        !std::mem::replace(&mut row.writing, true)
    }

    pub(crate) fn commit(&self, key: u64) -> u64 {
        let mut rows = self.rows();
        let row = rows.entry(key).or_default();
        row.committed += 1;
        row.committed
    }

    /// Records a change that has returned.
    pub(crate) fn announced(
        &self,
        key: u64,
        version: u64,
        node: usize,
        confirmed: bool,
        soft: bool,
    ) {
        let (mut rows, at) = (self.rows(), Instant::now());
        let announced = &mut rows.entry(key).or_default().announced;
        // A later change of the same kind replaces the earlier ones once it counts on all nodes.
        let old = self.elsewhere * 2;
        let newest = |hard: bool| {
            let settled = announced.iter().filter(|call| {
                call.confirmed && at.duration_since(call.at) > old && !(hard && call.soft)
            });
            settled.map(|call| call.version).max().unwrap_or(0)
        };
        let (soft_floor, hard_floor) = (newest(false), newest(true));
        announced.retain(|call| call.version >= if call.soft { soft_floor } else { hard_floor });
        announced.push(Announced {
            version,
            node,
            confirmed,
            soft,
            at,
        });
    }

    pub(crate) fn end_write(&self, key: u64) {
        self.rows().entry(key).or_default().writing = false;
    }

    /// The floor of a look-up that begins now.
    pub(crate) fn floor(&self, key: u64, node: usize, past_l1: bool) -> Floor {
        let (mut rows, now) = (self.rows(), Instant::now());
        let announced = &rows.entry(key).or_default().announced;
        let counts = |call: &&Announced| {
            let after = if past_l1 {
                Duration::ZERO
            } else {
                self.elsewhere
            };
            call.node == node || (call.confirmed && now.duration_since(call.at) >= after)
        };
        let newest = |hard: bool| {
            let calls = announced.iter().filter(counts);
            let calls = calls.filter(|call| !(hard && call.soft));
            calls.map(|call| call.version).max().unwrap_or(0)
        };
        Floor {
            version: newest(false),
            fallback: newest(true),
        }
    }

    /// Whether the look-up, which has ended now, may answer this version.
    pub(crate) fn judge(
        &self,
        key: u64,
        floor: Floor,
        version: u64,
        freshness: Freshness,
    ) -> Result<(), String> {
        let least = match freshness {
            Freshness::Fresh | Freshness::Stale => floor.version,
            _ => floor.fallback,
        };
        let newest = self.read(key);
        if (least..=newest).contains(&version) {
            return Ok(());
        }
        Err(format!(
            "key {key}: version {version}, {freshness:?}, of {least} to {newest}"
        ))
    }
}
