//! A flight: one read or load of a key in this process, and the callers that wait for it
//! (singleflight).
//!
//! | state | how it is entered | what a caller does |
//! |---|---|---|
//! | no flight | | leads: puts a flight into the table, and polls it or spawns its task |
//! | under way | by the leader, under the shard's lock | joins |
//! | under way, with an interim value | it has found an entry that may be answered meanwhile, or if the load fails | takes the interim value, or joins |
//! | detached | an invalidation, an insert or a gap takes it out of the table | begins a new one |
//! | completed | once: with an answer or an error | has its outcome |
//! | abandoned | it was dropped with its runtime, or came to nothing | looks again |
//!
//! Only a flight that is still in the table when it completes may store into L1. The check and the
//! store are one critical section. A lock is never held across an await.

pub(crate) mod inline;
pub(crate) mod table;

use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::Notify;
use tokio::sync::futures::Notified;
use tokio::time::Instant;

use self::inline::Driver;
use crate::answer::Answer;
use crate::coherence::fence::Stamp;
use crate::entry::Freshness;
use crate::erased::{AnyError, AnyKey};
use crate::error::Error;
use crate::lifetime::{Lifetime, Usability, Windows};
use crate::telemetry::Trace;

/// The end of a flight.
#[derive(Debug)]
pub(crate) enum Outcome {
    Completed(Result<Answer, Error<AnyError>>),
    /// Its callers look again.
    Abandoned,
}

/// Why a flight was begun.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Purpose {
    /// For callers that take an answer of any freshness.
    Any,
    /// For callers that take nothing stale.
    Fresh,
    /// For a load, whatever the tiers hold.
    Load,
    /// To replace this version of the value in the background.
    Replace(u64),
}

/// What the callers of a flight need, in rising order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Need {
    /// No caller waits: the flight refreshes an entry that is answered meanwhile.
    Background,
    /// Callers take an interim value where there is one.
    Answer,
    /// A caller waits that takes nothing stale.
    FreshAnswer,
    /// A load was asked for.
    Load,
}

impl Purpose {
    fn need(self) -> Need {
        match self {
            Self::Replace(_) => Need::Background,
            Self::Any => Need::Answer,
            Self::Fresh => Need::FreshAnswer,
            Self::Load => Need::Load,
        }
    }
}

/// An entry that callers may have while the flight is under way, or if it comes to nothing.
#[derive(Clone, Debug)]
pub(crate) struct FoundEntry {
    pub(crate) answer: Answer,
    pub(crate) lifetime: Lifetime,
    /// Of an entry from L1: when it began to be read, and the stamp that must still hold. The flight
    /// may have begun later, and may not have registered yet.
    pub(crate) of_l1: Option<(Instant, Stamp)>,
    /// Which version of the value it is.
    pub(crate) version_id: u64,
}

impl FoundEntry {
    /// The answer that it makes at this moment.
    pub(crate) fn answer_at(&self, now: Instant) -> Answer {
        Answer {
            freshness: self.lifetime.freshness(now),
            ..self.answer.clone()
        }
    }
}

/// One read or load, with what its callers see of it.
#[derive(Debug)]
pub(crate) struct Flight {
    pub(crate) key: AnyKey,
    /// Unique in this process. A loader's own look-ups are compared with it.
    pub(crate) serial: u64,
    pub(crate) begun: Instant,
    /// The epoch in which it began to read. Before that, `NOT_REGISTERED`.
    epoch: AtomicU64,
    /// Its key was invalidated since it began, and L2 was not told: its lease may still stand, and
    /// must not be filled against.
    revoked: AtomicBool,
    pub(crate) purpose: Purpose,
    /// Its callers must miss nothing that the messages have not told yet: L2 is asked for everything.
    pub(crate) past_l1: bool,
    /// A load failed a moment ago: this flight may read but not load, and answers this error.
    pub(crate) held_error: Option<Error<AnyError>>,
    /// Failures in a row before it, as far as this process knows.
    pub(crate) failures: u32,
    /// Its load has begun.
    has_load: AtomicBool,
    /// The highest [`Need`] of its callers so far.
    need: AtomicU8,
    /// The soft timeout is over: callers may have a stale interim value.
    late: AtomicBool,
    /// Hits of L1 begin no refresh while it is under way.
    suspends_refresh: AtomicBool,
    interim_value: Mutex<Option<FoundEntry>>,
    /// What polls it: its leader or a task.
    pub(crate) driver: Driver,
    /// The lease that it waits for is gone, or the flight was detached: look again.
    pub(crate) wake: Notify,
    outcome: OnceLock<Outcome>,
    /// It is completed, or has a new interim value.
    changed: Notify,
    trace: OnceLock<Trace>,
}

const NOT_REGISTERED: u64 = u64::MAX;

/// The serial number of the last flight of this process.
static LAST_SERIAL: AtomicU64 = AtomicU64::new(0);

/// This moment, in serial numbers: flights that begin from now on have later ones.
pub(crate) fn now_in_serials() -> u64 {
    LAST_SERIAL.load(Ordering::SeqCst)
}

impl Flight {
    pub(crate) fn new(key: AnyKey, purpose: Purpose, begun: Instant) -> Self {
        Self {
            key,
            serial: LAST_SERIAL.fetch_add(1, Ordering::SeqCst) + 1,
            begun,
            epoch: AtomicU64::new(NOT_REGISTERED),
            revoked: AtomicBool::new(false),
            purpose,
            past_l1: false,
            held_error: None,
            failures: 0,
            has_load: AtomicBool::new(false),
            need: AtomicU8::new(purpose.need() as u8),
            late: AtomicBool::new(false),
            suspends_refresh: AtomicBool::new(false),
            interim_value: Mutex::new(None),
            driver: Driver::default(),
            wake: Notify::new(),
            outcome: OnceLock::new(),
            changed: Notify::new(),
            trace: OnceLock::new(),
        }
    }

    /// Sets the span in which it shows what it does.
    pub(crate) fn traced(&self, trace: Trace) {
        if Trace::ARE_KEPT {
            let _ = self.trace.set(trace);
        }
    }

    /// The span in which it shows what it does.
    pub(crate) fn trace(&self) -> Trace {
        self.trace.get().cloned().unwrap_or_else(Trace::none)
    }

    /// Its load begins.
    pub(crate) fn begin_load(&self) {
        self.has_load.store(true, Ordering::SeqCst);
    }

    pub(crate) fn has_load(&self) -> bool {
        self.has_load.load(Ordering::SeqCst)
    }

    /// Sets the entry that callers may have meanwhile, in the place of an earlier one.
    pub(crate) fn set_interim(&self, found: FoundEntry) {
        *self.interim_value.lock() = Some(found);
        self.changed.notify_waiters();
    }

    /// Whether there is an entry that callers may have.
    pub(crate) fn has_interim(&self) -> bool {
        self.interim_value.lock().is_some()
    }

    pub(crate) fn interim(&self) -> Option<FoundEntry> {
        self.interim_value.lock().clone()
    }

    /// Hits of L1 leave the refresh to this flight. When it ends it has to rearm them.
    pub(crate) fn suspend_refresh(&self) {
        self.suspends_refresh.store(true, Ordering::SeqCst);
    }

    pub(crate) fn suspends_refresh(&self) -> bool {
        self.suspends_refresh.load(Ordering::SeqCst)
    }

    /// The soft timeout is over.
    pub(crate) fn pass_soft_timeout(&self) {
        self.late.store(true, Ordering::SeqCst);
        self.changed.notify_waiters();
    }

    /// What a caller may have at this moment of a flight that is not completed, or has failed. An entry
    /// of L1 only if `usable` says so.
    pub(crate) fn interim_answer(
        &self,
        now: Instant,
        windows: &Windows,
        failed: bool,
        usable: impl FnOnce(Instant, Stamp) -> bool,
    ) -> Option<Answer> {
        let found = self.interim_value.lock();
        let found = found.as_ref()?;
        if !found
            .of_l1
            .is_none_or(|(begun, stamp)| usable(begun, stamp))
        {
            return None;
        }
        let answer = || found.answer_at(now);
        match found.lifetime.usability(now, windows) {
            Usability::Fresh | Usability::Revalidate => Some(answer()),
            Usability::Fallback if failed => Some(Answer {
                freshness: Freshness::StaleOnError,
                ..answer()
            }),
            Usability::Fallback if self.late.load(Ordering::SeqCst) => Some(answer()),
            Usability::Fallback | Usability::Gone => None,
        }
    }

    /// A caller that has joined needs this.
    pub(crate) fn raise_need(&self, need: Need) {
        self.need.fetch_max(need as u8, Ordering::SeqCst);
    }

    /// Whether no caller waits for it: every caller has an interim value to take.
    pub(crate) fn is_background(&self, windows: &Windows) -> bool {
        let need = self.need.load(Ordering::SeqCst);
        if need == Need::Answer as u8 {
            let now = Instant::now();
            let interim = || self.interim_answer(now, windows, false, |_, _| true);
            return self.has_interim() && interim().is_some();
        }
        need == Need::Background as u8
    }

    /// Begins to read in `epoch`: a gap from now on detaches it.
    pub(crate) fn register(&self, epoch: u32) {
        self.epoch.store(u64::from(epoch), Ordering::SeqCst);
    }

    /// The epoch in which it reads, once it does.
    pub(crate) fn epoch(&self) -> Option<u32> {
        u32::try_from(self.epoch.load(Ordering::SeqCst)).ok()
    }

    /// Keeps it from filling L2.
    pub(crate) fn revoke(&self) {
        self.revoked.store(true, Ordering::SeqCst);
    }

    pub(crate) fn is_revoked(&self) -> bool {
        self.revoked.load(Ordering::SeqCst)
    }

    /// Its outcome, once it has one.
    pub(crate) fn outcome(&self) -> Option<&Outcome> {
        self.outcome.get()
    }

    /// Resolves at the completion, or when there is a new interim value.
    pub(crate) fn state_changed(&self) -> Notified<'_> {
        self.changed.notified()
    }

    /// The first outcome counts.
    pub(crate) fn complete(&self, outcome: Outcome) {
        let _ = self.outcome.set(outcome);
        self.changed.notify_waiters();
    }
}

/// A failed load, whose error is held.
#[derive(Clone, Debug)]
pub(crate) struct Failure {
    pub(crate) error: Error<AnyError>,
    /// How long no other load is attempted.
    pub(crate) hold: Duration,
    /// The number of failed loads in a row, with this one.
    pub(crate) failures: u32,
}
