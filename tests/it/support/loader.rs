//! A source of truth that counts its loads and lets a test stop them.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use tidegate::{BatchLoader, BoxError, Entry, Freshness, Loaded, Loader};
use tokio::sync::Semaphore;
use tokio::time::Instant;

use super::within;

/// Rows that a test may change, behind a loader that the test may stop, slow down or break. A load
/// reads its row when it begins and answers when it ends, as a query does.
#[derive(Clone, Default)]
pub(crate) struct Db(Arc<Mutex<State>>);

#[derive(Default)]
struct State {
    /// Rows that were written. Any other key reads `row <key>`.
    rows: HashMap<u64, Option<String>>,
    /// When each load began.
    begun: Vec<Instant>,
    /// The number of loads of each key.
    loads_by_key: HashMap<u64, u64>,
    reloads: Vec<Reload>,
    /// The keys of each `load_many`.
    batches: Vec<Vec<u64>>,
    gates: VecDeque<Gate>,
    gates_of: HashMap<u64, Gate>,
    behaviour: Behaviour,
    tags: HashMap<u64, Vec<String>>,
    versions: HashMap<u64, u64>,
}

/// What loads do from now on.
#[derive(Clone, Copy, Default)]
pub(crate) struct Behaviour {
    pub(crate) takes: Duration,
    pub(crate) fails: bool,
    pub(crate) panics: bool,
    pub(crate) hangs: bool,
    pub(crate) do_not_store: bool,
    /// Answers that nothing has changed.
    pub(crate) unchanged: bool,
    pub(crate) ttl: Option<Duration>,
}

impl Behaviour {
    pub(crate) fn fails() -> Self {
        Self {
            fails: true,
            ..Self::default()
        }
    }

    /// Loads values with this TTL.
    pub(crate) fn ttl(ttl: Duration) -> Self {
        Self {
            ttl: Some(ttl),
            ..Self::default()
        }
    }
}

/// The previous entry that a reload was given.
#[derive(Clone, Debug)]
pub(crate) struct Reload {
    pub(crate) previous: String,
    pub(crate) age: Duration,
    pub(crate) freshness: Freshness,
}

impl Db {
    pub(crate) fn write(&self, key: u64, row: &str) {
        self.state().rows.insert(key, Some(row.to_owned()));
    }

    /// Writes a version that is computed in the same step.
    pub(crate) fn update(&self, key: u64, version: impl FnOnce() -> u64) -> u64 {
        let mut state = self.state();
        let version = version();
        state.rows.insert(key, Some(version.to_string()));
        version
    }

    /// The row that a load of a key reads now. The row must have been written.
    pub(crate) fn row(&self, key: u64) -> String {
        let row = self.state().rows.get(&key).cloned().flatten();
        row.expect("it was written")
    }

    pub(crate) fn delete(&self, key: u64) {
        self.state().rows.insert(key, None);
    }

    /// Sets the tags of later loads of a key.
    pub(crate) fn tag(&self, key: u64, tags: &[&str]) {
        let tags = tags.iter().map(|tag| (*tag).to_owned()).collect();
        self.state().tags.insert(key, tags);
    }

    /// Sets the version of later loads of a key.
    pub(crate) fn version(&self, key: u64, version: u64) {
        self.state().versions.insert(key, version);
    }

    pub(crate) fn behave(&self, behaviour: Behaviour) {
        self.state().behaviour = behaviour;
    }

    /// The number of loads that have begun, reloads included.
    pub(crate) fn loads(&self) -> u64 {
        self.load_starts().len() as u64
    }

    /// The number of loads of one key.
    pub(crate) fn loads_of(&self, key: u64) -> u64 {
        self.state().loads_by_key.get(&key).copied().unwrap_or(0)
    }

    /// When each load began.
    pub(crate) fn load_starts(&self) -> Vec<Instant> {
        self.state().begun.clone()
    }

    /// The keys of each `load_many`. These loads count in [`Self::loads`] as well.
    pub(crate) fn batches(&self) -> Vec<Vec<u64>> {
        self.state().batches.clone()
    }

    pub(crate) fn reloads(&self) -> Vec<Reload> {
        self.state().reloads.clone()
    }

    /// Starts all counts from zero.
    pub(crate) fn reset_counts(&self) {
        let mut state = self.state();
        state.begun.clear();
        state.loads_by_key.clear();
        state.reloads.clear();
        state.batches.clear();
    }

    /// Stops the next load that begins, after those that have a gate already.
    pub(crate) fn gate(&self) -> Gate {
        let gate = Gate::default();
        self.state().gates.push_back(gate.clone());
        gate
    }

    /// Stops the next load of a key.
    pub(crate) fn gate_of(&self, key: u64) -> Gate {
        let gate = Gate::default();
        self.state().gates_of.insert(key, gate.clone());
        gate
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().expect("no test panics under this lock")
    }
}

/// What a load reads when it begins.
struct Row {
    row: Option<String>,
    tags: Vec<String>,
    version: u64,
}

impl State {
    fn gate_of(&mut self, key: u64) -> Option<Gate> {
        let gate = self.gates_of.remove(&key);
        gate.or_else(|| self.gates.pop_front())
    }

    fn read(&mut self, key: u64) -> Row {
        self.begun.push(Instant::now());
        *self.loads_by_key.entry(key).or_default() += 1;
        Row {
            row: self
                .rows
                .get(&key)
                .cloned()
                .unwrap_or_else(|| Some(format!("row {key}"))),
            tags: self.tags.get(&key).cloned().unwrap_or_default(),
            version: self.versions.get(&key).copied().unwrap_or(0),
        }
    }
}

impl Row {
    fn loaded(self, behaviour: Behaviour) -> Loaded<String> {
        if behaviour.unchanged {
            return Loaded::unchanged();
        }
        let mut loaded = Loaded::from(self.row).version(self.version);
        for tag in self.tags {
            loaded = loaded.tag(tag);
        }
        if let Some(ttl) = behaviour.ttl {
            loaded = loaded.ttl(ttl);
        }
        if behaviour.do_not_store {
            loaded.do_not_store()
        } else {
            loaded
        }
    }
}

impl Behaviour {
    /// The time between the beginning of a load and its end.
    async fn run(self, gate: Option<Gate>) -> Result<(), BoxError> {
        if let Some(gate) = gate {
            gate.pass().await;
        }
        if !self.takes.is_zero() {
            tokio::time::sleep(self.takes).await;
        }
        if self.hangs {
            std::future::pending::<()>().await;
        }
        assert!(!self.panics, "a panic that the test asked for");
        if self.fails {
            return Err(BoxError::new("the database is down"));
        }
        Ok(())
    }
}

impl Loader for Db {
    type Key = u64;
    type Value = String;
    type Error = BoxError;

    async fn load(&self, key: &u64) -> Result<Loaded<String>, BoxError> {
        let (row, gate, behaviour) = {
            let mut state = self.state();
            let gate = state.gate_of(*key);
            (state.read(*key), gate, state.behaviour)
        };
        behaviour.run(gate).await?;
        Ok(row.loaded(behaviour))
    }

    async fn reload(
        &self,
        key: &u64,
        previous: &Entry<String>,
    ) -> Result<Loaded<String>, BoxError> {
        self.state().reloads.push(Reload {
            previous: previous.value().as_str().to_owned(),
            age: previous.age(),
            freshness: previous.freshness(),
        });
        self.load(key).await
    }
}

impl BatchLoader for Db {
    /// Rows that do not exist are absent from the answer.
    async fn load_many(&self, keys: &[u64]) -> Result<HashMap<u64, Loaded<String>>, BoxError> {
        let (rows, gate, behaviour) = {
            let mut state = self.state();
            state.batches.push(keys.to_vec());
            let rows: Vec<Row> = keys.iter().map(|key| state.read(*key)).collect();
            (rows, state.gates.pop_front(), state.behaviour)
        };
        behaviour.run(gate).await?;
        let rows = keys.iter().copied().zip(rows);
        Ok(rows
            .filter(|(_, row)| row.row.is_some())
            .map(|(key, row)| (key, row.loaded(behaviour)))
            .collect())
    }
}

/// A gate at which one load stops until the test opens it.
#[derive(Clone)]
pub(crate) struct Gate {
    arrived: Arc<Semaphore>,
    open: Arc<Semaphore>,
}

impl Default for Gate {
    fn default() -> Self {
        Self {
            arrived: Arc::new(Semaphore::new(0)),
            open: Arc::new(Semaphore::new(0)),
        }
    }
}

impl Gate {
    /// Waits at the gate until it is opened.
    pub(crate) async fn pass(&self) {
        self.arrived.add_permits(1);
        self.open
            .acquire()
            .await
            .expect("gates are not closed")
            .forget();
    }

    /// Waits until a load stands at the gate.
    pub(crate) async fn reached(&self) {
        within("a load reaches its gate", self.arrived.acquire())
            .await
            .expect("gates are not closed")
            .forget();
    }

    pub(crate) fn open(&self) {
        self.open.add_permits(1);
    }
}
