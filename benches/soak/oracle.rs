//! What may be answered: versions of rows, and who has announced which.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tidegate::Freshness;

/// Rows with versions, and the oldest ones that may still be answered.
#[derive(Clone)]
pub(crate) struct Oracle {
    rows: Arc<Mutex<HashMap<u64, Row>>>,
    /// For so long another node may answer what was announced as old.
    elsewhere: Duration,
}

#[derive(Default)]
struct Row {
    committed: u64,
    /// Somebody writes: another one waits, for the order of two writers is nobody's promise.
    writing: bool,
    announced: Vec<Announced>,
}

/// A call that has returned.
#[derive(Clone, Copy)]
struct Announced {
    version: u64,
    node: usize,
    confirmed: bool,
    /// The old value may still stand in where a load fails.
    soft: bool,
    at: Instant,
}

/// The oldest versions that may be answered to a look-up.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Floor {
    version: u64,
    /// Where a load failed.
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

    /// `false`: somebody else writes this row.
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

    /// The call that announces a version has returned.
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
        // A later one of the same kind says more, once it counts everywhere.
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

    /// For a look-up that begins now.
    pub(crate) fn floor(&self, key: u64, node: usize, past_l1: bool) -> Floor {
        let (mut rows, now) = (self.rows(), Instant::now());
        let announced = &rows.entry(key).or_default().announced;
        let heard = |call: &&Announced| {
            let after = if past_l1 {
                Duration::ZERO
            } else {
                self.elsewhere
            };
            call.node == node || (call.confirmed && now.duration_since(call.at) >= after)
        };
        let newest = |hard: bool| {
            let calls = announced.iter().filter(heard);
            let calls = calls.filter(|call| !(hard && call.soft));
            calls.map(|call| call.version).max().unwrap_or(0)
        };
        Floor {
            version: newest(false),
            fallback: newest(true),
        }
    }

    /// Whether a version may be answered to that look-up, which has ended now.
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
