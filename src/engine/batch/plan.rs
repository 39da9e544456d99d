//! The plan of one call of many keys: the flights that need a load are divided into batches.
//!
//! Every flight of the call has a ticket. A flight decides when it knows whether it needs a load; a
//! dropped ticket means that it does not. When the last flight has decided, those that need a load
//! are divided, in the order of the call.

use std::fmt;
use std::sync::Arc;

use parking_lot::Mutex;
use tokio::runtime::Handle;
use tokio::sync::{Semaphore, oneshot};

use super::members::{Batch, BatchRunner, BatchTicket, Candidate};
use crate::engine::load::permits::Priority;
use crate::erased::AnyKey;

/// The flights of one call, until all have decided.
pub(crate) struct BatchPlan {
    runner: Arc<dyn BatchRunner>,
    runtime: Handle,
    /// By the index of their tickets.
    keys: Vec<AnyKey>,
    max_size: usize,
    /// Limits how many batches of this call load at once.
    concurrency: Arc<Semaphore>,
    pending: Mutex<Pending>,
}

#[derive(Debug)]
struct Pending {
    undecided: usize,
    arrived: Vec<PlannedLoad>,
}

/// A flight that needs a load.
#[derive(Debug)]
struct PlannedLoad {
    index: usize,
    priority: Priority,
    sender: oneshot::Sender<BatchTicket>,
}

/// One flight's part in a plan.
#[derive(Debug)]
pub(crate) struct PlanTicket {
    index: usize,
    /// `None` once the flight has decided.
    plan: Option<Arc<BatchPlan>>,
}

impl BatchPlan {
    /// One ticket for each key, in their order.
    pub(crate) fn tickets(
        runner: Arc<dyn BatchRunner>,
        runtime: &Handle,
        keys: Vec<AnyKey>,
        max_size: usize,
        max_concurrent: usize,
    ) -> Vec<PlanTicket> {
        let count = keys.len();
        let plan = Arc::new(Self {
            runner,
            runtime: runtime.clone(),
            keys,
            max_size,
            concurrency: Arc::new(Semaphore::new(max_concurrent)),
            pending: Mutex::new(Pending {
                undecided: count,
                arrived: Vec::new(),
            }),
        });
        let ticket = |index| PlanTicket {
            index,
            plan: Some(Arc::clone(&plan)),
        };
        (0..count).map(ticket).collect()
    }

    fn decide(&self, arrived: Option<PlannedLoad>) {
        let mut all = {
            let mut pending = self.pending.lock();
            pending.undecided -= 1;
            pending.arrived.extend(arrived);
            if pending.undecided > 0 {
                return;
            }
            std::mem::take(&mut pending.arrived)
        };
        all.sort_unstable_by_key(|arrived| arrived.index);
        while !all.is_empty() {
            let rest = all.split_off(self.max_size.min(all.len()));
            self.form_batch(std::mem::replace(&mut all, rest));
        }
    }

    fn form_batch(&self, loads: Vec<PlannedLoad>) {
        let candidate = |load: PlannedLoad| Candidate {
            key: self.keys[load.index].clone(),
            priority: load.priority,
            sender: load.sender,
        };
        let candidates = loads.into_iter().map(candidate).collect();
        let (runner, runtime) = (Arc::clone(&self.runner), self.runtime.clone());
        let concurrency = Arc::clone(&self.concurrency);
        Batch::form(runner, runtime, candidates, Some(concurrency), None);
    }
}

impl PlanTicket {
    /// The flight needs a load: waits for its ticket of a batch.
    pub(crate) async fn batch(mut self, priority: Priority) -> Option<BatchTicket> {
        let (sender, ticket) = oneshot::channel();
        let arrived = PlannedLoad {
            index: self.index,
            priority,
            sender,
        };
        if let Some(plan) = self.plan.take() {
            plan.decide(Some(arrived));
        }
        ticket.await.ok()
    }
}

impl Drop for PlanTicket {
    fn drop(&mut self) {
        if let Some(plan) = self.plan.take() {
            plan.decide(None);
        }
    }
}

impl fmt::Debug for BatchPlan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("BatchPlan").finish_non_exhaustive()
    }
}
