//! The read path behind L1, from top to bottom: what one flight does.
//!
//! ```text
//! GET ── a fresh value or absence ───────────────────────► hit
//!  │     a load failed elsewhere ────────────────────────► LoadFailedElsewhere, or stale
//!  │     a record of a newer version ─► load, L1 only
//!  │     (no answer from L2) ─────────► load, L1 for degraded_l1_ttl
//!  │     an entry past its TTL, or soon ─► interim value; it stays in L2
//!  ▼
//! acquire ── granted ──► load ──► fill, compared with the lease or that entry ─► loaded
//!  │    ▲
//!  │    └── a record after all ─► read it
//!  ▼
//! held by another ──► wait for its wake-up or the end of the lease ──► GET, or acquire
//!                     lease_wait over ─► load, L1 for degraded_l1_ttl
//! ```

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tokio::runtime::Handle;
use tokio::sync::OwnedSemaphorePermit;
use tokio::time::Instant;

use super::batch::LoadRoute;
use super::completion::{Completion, Retention};
use super::core::Batches;
use super::flight::FoundEntry;
use super::flight_task::FlightTask;
use super::lease::{Lease, LeaseWaits, ObservedRecord};
use super::load::LoadPermit;
use super::refresh::Replaces;
use super::regenerate::UnleasedReason;
use super::remote::{RemoteKey, RemoteTier};
use super::transcode::Reading;
use crate::erased::AnyError;
use crate::error::{Error, RemoteError};
use crate::protocol::record::{HEAD_AND_STATE, Header};
use crate::protocol::request::{Acquired, RecordRead};
use crate::telemetry::Wait;
use crate::ttl;

/// The attempts of one flight to acquire the lease. Each follows a change in L2.
const MAX_ATTEMPTS: usize = 100;

/// What a flight has found in L2 so far.
struct Observation<'a> {
    remote: &'a RemoteTier,
    remote_key: RemoteKey,
    background_permit: Option<OwnedSemaphorePermit>,
    replaces: Replaces,
    waits: LeaseWaits,
    /// Loads that have failed in a row.
    failures: u32,
    /// What was read and is not considered yet, with what it says if that is known.
    record: Option<(Bytes, Option<Result<Reading, RemoteError>>)>,
}

/// What follows from what L2 holds.
enum Step {
    Acquire(Target),
    Complete(Completion),
}

/// What the lease is acquired over: the entry that it refreshes, or the beginning of a record that
/// is of no use.
#[derive(Default)]
struct Target {
    observed: Option<ObservedRecord>,
    useless: Option<Bytes>,
}

impl FlightTask {
    /// Lets the leader poll the flight, as far as that goes. A flight that is likely to load gets a
    /// task at once.
    pub(super) fn start(self, runtime: Handle) {
        let batches = self.engine.batches.as_ref();
        let has_window = batches.is_some_and(Batches::has_window);
        if self.engine.remote.is_none() || has_window {
            return self.spawn(&runtime);
        }
        let flight = Arc::clone(&self.flight);
        flight.driver.start_inline(runtime, Box::pin(self.run()));
    }

    /// Runs the flight in a task.
    pub(super) fn spawn(self, runtime: &Handle) {
        let batches = self.engine.batches.as_ref();
        if let Some(window) = batches.and_then(|batches| batches.window.as_ref()) {
            self.set_route(LoadRoute::Window(window.expect_arrival()));
        }
        self.flight.driver.mark_in_task();
        runtime.spawn(self.run());
    }

    /// Runs the flight to its completion.
    pub(super) async fn run(self) {
        let trace = self.flight.trace();
        let completion = trace.within(self.resolve_in_time()).await;
        self.complete(completion);
    }

    /// Lets callers have the interim value when the soft timeout is over, and goes on.
    async fn resolve_in_time(&self) -> Completion {
        let Some(after) = self.engine.config.load_soft_timeout else {
            return self.resolve().await;
        };
        let mut resolving = Box::pin(self.resolve());
        let late = tokio::time::sleep_until(ttl::deadline(self.flight.begun, after));
        tokio::select! {
            biased;
            completion = &mut resolving => return completion,
            () = late => self.flight.pass_soft_timeout(),
        }
        resolving.await
    }

    /// Reads L2. Most flights end here; what the others need is in a box, so that these stay small.
    async fn resolve(&self) -> Completion {
        let engine = &self.engine;
        let mut background_permit = None;
        if self.is_background() {
            background_permit = engine.background_permit();
            if background_permit.is_none() {
                return Completion::no_background_permit();
            }
        }
        let Some(remote) = &engine.remote else {
            self.flight.register(engine.fence.epoch());
            return Box::pin(self.load_unleased(None, UnleasedReason::NoTier)).await;
        };
        let remote_key = remote.key(&self.flight.key.id);
        let read = match &self.read {
            Some(read) => read.clone(),
            None => self.first_read(remote, &remote_key).await,
        };
        let mut replaces = Replaces::default();
        let record = match read {
            Ok(Some(record)) => {
                let reading = self.interpret(remote, &remote_key, &record).await;
                if let Ok(Reading::Entry(found, _)) = &reading {
                    if !self.replaces(found, &mut replaces, &LeaseWaits::default()) {
                        return self.found_in_l2(found.clone());
                    }
                }
                Some((record, Some(reading)))
            }
            Ok(None) => None,
            Err(()) => {
                self.flight.driver.move_to_task().await;
                return Box::pin(self.unreachable(None)).await;
            }
        };
        let observation = Box::new(Observation {
            remote,
            remote_key,
            background_permit,
            replaces,
            waits: LeaseWaits::default(),
            failures: self.flight.failures,
            record,
        });
        self.flight.driver.move_to_task().await;
        Box::pin(self.load_or_wait(*observation)).await
    }

    async fn first_read(&self, remote: &RemoteTier, remote_key: &RemoteKey) -> RecordRead {
        let engine = &self.engine;
        engine.attach(remote).await;
        let known = if self.flight.past_l1 {
            let asked = engine.ask_watermarks(remote, Vec::new());
            Box::pin(asked).await.map(drop)
        } else {
            engine.know_watermarks(remote).await
        };
        // Before the read is sent, so that whatever is missed from now on ends this flight.
        self.flight.register(engine.fence.epoch());
        if known.is_err() || engine.repairs.blocks(&self.flight.key.id.encoded) {
            return Err(());
        }
        let read = remote.tier.get(&remote_key.bytes).await;
        engine.tier(read).map_err(drop)
    }

    /// What a record says.
    async fn interpret(
        &self,
        remote: &RemoteTier,
        remote_key: &RemoteKey,
        record: &Bytes,
    ) -> Result<Reading, RemoteError> {
        // A caller past L1 must miss nothing that the messages have not told yet.
        let ask = self.flight.past_l1;
        let engine = &self.engine;
        engine.interpret(remote, remote_key, record, ask).await
    }

    /// L2 does not hold what the callers need: loads it under a lease, or waits for the process that
    /// holds the lease.
    async fn load_or_wait(&self, mut observation: Observation<'_>) -> Completion {
        for _ in 0..MAX_ATTEMPTS {
            let target = match self.on_record(&mut observation).await {
                Step::Acquire(target) => target,
                Step::Complete(completion) => return completion,
            };
            if let Some(error) = &self.flight.held_error {
                self.engine.stats.errors_held.add();
                return Completion::error(error.clone());
            }
            if let Some(completion) = self.acquire(&mut observation, target).await {
                return completion;
            }
        }
        // Other processes are quicker all the time, or L2 answers a read and an attempt differently.
        self.unreachable(None).await
    }

    /// Considers the record that was read, if there is one.
    async fn on_record(&self, observation: &mut Observation<'_>) -> Step {
        let Some((record, reading)) = observation.record.take() else {
            return Step::Acquire(Target::default());
        };
        let reading = match reading {
            Some(reading) => reading,
            None => {
                let Observation {
                    remote, remote_key, ..
                } = &*observation;
                self.interpret(remote, remote_key, &record).await
            }
        };
        match reading {
            Ok(Reading::Entry(found, header)) => self.on_entry(observation, found, header, record),
            Ok(Reading::Leased) => Step::Acquire(Target::default()),
            // The mark may be our own: the error of that load is at hand.
            Ok(Reading::Failed(_)) if self.flight.held_error.is_some() => {
                Step::Acquire(Target::default())
            }
            Ok(Reading::Failed(left)) => Step::Complete(self.failed_elsewhere(left)),
            Ok(Reading::Newer) => {
                Step::Complete(self.load_unleased(None, UnleasedReason::Newer).await)
            }
            Ok(Reading::HeldOff) => {
                Step::Complete(self.load_unleased(None, UnleasedReason::HeldOff).await)
            }
            Ok(Reading::Replace(failed)) => {
                observation.failures = observation.failures.max(failed);
                Step::Acquire(Target {
                    observed: None,
                    useless: Some(record.slice(..record.len().min(HEAD_AND_STATE))),
                })
            }
            Err(_) => Step::Complete(self.unreachable(None).await),
        }
    }

    /// An entry was read: it is the answer, or it is to be refreshed.
    fn on_entry(
        &self,
        observation: &mut Observation<'_>,
        found: FoundEntry,
        header: Header,
        record: Bytes,
    ) -> Step {
        let Observation {
            replaces, waits, ..
        } = &mut *observation;
        if !self.replaces(&found, replaces, waits) {
            return Step::Complete(self.found_in_l2(found));
        }
        if let Some(error) = &self.flight.held_error {
            return Step::Complete(self.answer_held_error(error, found));
        }
        self.engine.publish_interim(&self.flight, &found);
        if self.is_background() && observation.background_permit.is_none() {
            observation.background_permit = self.engine.background_permit();
            match observation.background_permit {
                Some(_) => self.engine.stats.refreshes.add(),
                None => return Step::Complete(self.found_in_l2(found)),
            }
        }
        Step::Acquire(Target {
            observed: Some(ObservedRecord {
                found,
                header,
                record,
            }),
            useless: None,
        })
    }

    /// One attempt to acquire the lease. `None`: L2 has changed, or is to be looked at again.
    async fn acquire(
        &self,
        observation: &mut Observation<'_>,
        target: Target,
    ) -> Option<Completion> {
        let (engine, flight) = (&self.engine, &self.flight);
        // A permit first, then the lease: a load that waits for its permit holds nobody up.
        let deadline = engine.load_deadline();
        let permit = match self.load_permit(deadline).await {
            Ok(permit) => permit,
            Err(error) => return Some(Completion::error(error)),
        };
        // Hear of wake-ups before the attempt that asks for them.
        engine.flights.lock(flight.key.id.hash).listen(flight);
        // And know what is invalidated as a whole before the load begins.
        let baseline = engine.watermarks.baseline();
        let (remote, remote_key) = (observation.remote, observation.remote_key.clone());
        let Target { observed, useless } = target;
        let failures = observation.failures;
        let mut lease = Lease::new(remote, &remote_key, baseline, observed, failures);
        let Ok(record) = lease.record() else {
            return Some(self.unreachable(Some(permit)).await);
        };
        let ttl_ms = ttl::millis(engine.config.lease_ttl);
        let known = engine.watermarks.known().unwrap_or_default();
        let over = lease.over(useless.as_deref());
        let acquired = remote
            .tier
            .acquire(lease.keys(), record, ttl_ms, over, known)
            .await;
        match engine.tier(acquired) {
            Ok(Acquired::Granted(failed)) => {
                lease.failures = observation.failures.max(failed);
                Some(self.regenerate(permit, deadline, &lease).await)
            }
            Ok(Acquired::Record(found)) => {
                observation.record = found.map(|record| (record, None));
                None
            }
            Ok(Acquired::Failed(left_ms)) => Some(self.on_failed_mark(permit, left_ms).await),
            Ok(Acquired::Held(remaining_ms)) => {
                drop(permit);
                let remaining = Duration::from_millis(remaining_ms);
                self.wait_for_holder(observation, remaining, lease.is_claim())
                    .await
            }
            Err(error) => {
                let completion = self.unreachable(Some(permit)).await;
                if error.is_timeout() {
                    // It may have been granted after all, too late to fill against.
                    engine.release_later(&lease, &flight.key.id);
                }
                Some(completion)
            }
        }
    }

    /// A refresh failed in another process a moment ago.
    async fn on_failed_mark(&self, permit: LoadPermit, left_ms: u64) -> Completion {
        let left = Duration::from_millis(left_ms);
        if left <= self.engine.longest_hold() {
            return self.failed_elsewhere(left);
        }
        // No process of the fleet has written that.
        self.engine.stats.decode_failures.add();
        let reason = UnleasedReason::WaitedEnough;
        self.load_unleased(Some(permit), reason).await
    }

    /// Another process holds the lease: waits for it. `None`: look at L2 again.
    async fn wait_for_holder(
        &self,
        observation: &mut Observation<'_>,
        remaining: Duration,
        is_claim: bool,
    ) -> Option<Completion> {
        let engine = &self.engine;
        if observation.waits.count() {
            engine.stats.lease_waits.add();
        }
        let lease_wait = engine.config.lease_wait;
        let wait = observation.waits.wait(&self.flight, remaining, lease_wait);
        let since = Instant::now();
        let goes_on = tokio::select! {
            biased;
            goes_on = wait => goes_on,
            () = self.cut_off() => return Some(Completion::closed()),
        };
        engine.telemetry.waited(Wait::Lease, since);
        if !goes_on && self.is_background() {
            return Some(Completion::lease_held());
        }
        if !goes_on {
            engine.stats.lease_wait_exceeded.add();
            let reason = UnleasedReason::WaitedEnough;
            return Some(self.load_unleased(None, reason).await);
        }
        if observation.waits.woken() || is_claim {
            // Most likely the value is there: a GET is the cheapest command.
            let read = observation.remote.tier.get(&observation.remote_key.bytes);
            match engine.tier(read.await) {
                Ok(found) => observation.record = found.map(|record| (record, None)),
                Err(_) => return Some(self.unreachable(None).await),
            }
        }
        None
    }

    /// The entry that L2 holds is the answer.
    fn found_in_l2(&self, found: FoundEntry) -> Completion {
        Completion::entry(found, Some(self.engine.config.l1_lifetime()))
    }

    /// The flight must not load, and has found this entry.
    fn answer_held_error(&self, error: &Error<AnyError>, found: FoundEntry) -> Completion {
        let retention = if self.engine.is_of_use(&found) {
            self.flight.set_interim(found.clone());
            Retention::Entry(found, self.engine.config.l1_lifetime())
        } else {
            self.engine.stats.errors_held.add();
            Retention::Nothing
        };
        Completion {
            outcome: Some(Err(error.clone())),
            retention,
        }
    }
}
