//! The load of a batch: one call of the loader for the flights that have come together.

use std::collections::HashSet;
use std::sync::Arc;

use tokio::runtime::Handle;
use tokio::task::AbortHandle;

use super::nesting::{Nesting, within};
use crate::engine::batch::{BatchRunner, HeldWhileLoading, Member};
use crate::engine::core::Engine;
use crate::entry::AnyEntry;
use crate::erased::{AnyError, AnyKey, AnyValue};
use crate::error::Error;
use crate::loader::Loaded;

impl BatchRunner for Engine {
    fn start(
        self: Arc<Self>,
        runtime: &Handle,
        members: Vec<(AnyKey, Member)>,
        single_alone: bool,
        held: HeldWhileLoading,
    ) -> AbortHandle {
        let running = self.tasks.enter_late();
        let loading = async move {
            let _held = (running, held);
            self.load_members(members, single_alone).await;
        };
        runtime.spawn(loading).abort_handle()
    }
}

impl Engine {
    /// The engine, as batches know it.
    pub(crate) fn batch_runner(self: &Arc<Self>) -> Arc<dyn BatchRunner> {
        let runner: Arc<Self> = Arc::clone(self);
        runner
    }

    /// Loads the members. No call of the loader is given a key twice.
    async fn load_members(&self, mut members: Vec<(AnyKey, Member)>, single_alone: bool) {
        while !members.is_empty() {
            // A flight that was detached may be here beside its successor. Each must get a value of
            // its own.
            let mut keys = HashSet::with_capacity(members.len());
            let (once, again) = members
                .into_iter()
                .partition(|(key, _)| keys.insert(Arc::clone(&key.id.encoded)));
            self.load_once(once, single_alone).await;
            members = again;
        }
    }

    /// One call of the loader for members of different keys.
    async fn load_once(&self, members: Vec<(AnyKey, Member)>, single_alone: bool) {
        // The load must wait for none of its members, nor for a load that one of them runs in.
        let serials = members.iter().flat_map(|(_, member)| &member.serials);
        let nesting: Nesting = serials.copied().collect();
        let trace = self.telemetry.load_trace(None, members.len());
        let mut previous = None;
        let mut replies = Vec::with_capacity(members.len());
        let mut keys = Vec::with_capacity(members.len());
        for (key, member) in members {
            trace.follows(&member.trace);
            previous = previous.or(member.previous);
            replies.push(member.reply);
            keys.push(key);
        }
        let loading = self.call_loader(&keys, previous, single_alone);
        let loaded = trace.within(within(nesting, loading)).await;
        trace.ended(if loaded.is_ok() { "found" } else { "error" });
        match loaded {
            Ok(loaded) => {
                for (reply, loaded) in replies.into_iter().zip(loaded) {
                    reply.send(Ok(loaded));
                }
            }
            Err(error) => {
                let error = Arc::new(error);
                for reply in replies {
                    reply.send(Err(Error::Load(Arc::clone(&error))));
                }
            }
        }
    }

    /// `previous`: the value to compare with, used only where one key is loaded alone.
    async fn call_loader(
        &self,
        keys: &[AnyKey],
        previous: Option<AnyEntry>,
        single_alone: bool,
    ) -> Result<Vec<Loaded<AnyValue>>, AnyError> {
        let loader = &self.loader;
        match (&self.batches, keys) {
            (None, [key, ..]) => loader.load(key, previous).await.map(single),
            (Some(_), [key]) if single_alone => loader.load(key, previous).await.map(single),
            (Some(batches), keys) => {
                self.stats.batch_loads.add();
                batches.loader.load_many(keys).await
            }
            (None, []) => Ok(Vec::new()),
        }
    }
}

fn single(loaded: Loaded<AnyValue>) -> Vec<Loaded<AnyValue>> {
    vec![loaded]
}
