//! Singleflight: one read or load of a key at a time in this process.
//!
//! | state | how it is entered | what a caller does |
//! |---|---|---|
//! | no flight | | leads: puts a flight into the table and flies it, or spawns its task |
//! | flying | by the leader, under the shard's lock | joins |
//! | flying, with an offer | an entry was found that may be answered meanwhile, or if the load fails | takes the offer, or joins |
//! | detached | an invalidation, an insert or a gap takes it out of the table | begins a new one |
//! | landed | once: with an answer or an error | has its outcome |
//! | abandoned | it was dropped with its runtime | tries again |
//!
//! Only a flight that is still in the table when it lands may store into L1; the check and the
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

#[derive(Debug)]
pub(crate) enum Outcome {
    Completed(Result<Answer, Error<AnyError>>),
    Abandoned,
}

/// What a flight is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Purpose {
    /// Callers that take what there is.
    Any,
    /// Callers that take nothing stale.
    Fresh,
    /// A load, whatever there is.
    Load,
    /// To replace this version of the value behind its callers' backs.
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
    /// Of an entry from L1: when it began to be read there, and what must not have happened since. The
    /// flight may have begun later, and may not even have registered.
    pub(crate) of_l1: Option<(Instant, Stamp)>,
    /// Which version of the value it is.
    pub(crate) version_id: u64,
}

impl FoundEntry {
    /// As an answer at this moment.
    pub(crate) fn answer_at(&self, now: Instant) -> Answer {
        Answer {
            freshness: self.lifetime.freshness(now),
            ..self.answer.clone()
        }
    }
}

/// One read or load, and all who wait for it.
#[derive(Debug)]
pub(crate) struct Flight {
    pub(crate) key: AnyKey,
    /// Unique in this process: what a loader's own look-ups are compared against.
    pub(crate) serial: u64,
    pub(crate) begun: Instant,
    /// The epoch that it began to read in; `NOT_REGISTERED` before.
    epoch: AtomicU64,
    /// Its key was invalidated since it began, and L2 was not told: its lease may still be there, and
    /// is not to be filled against.
    revoked: AtomicBool,
    pub(crate) purpose: Purpose,
    /// Its callers want to miss nothing that messages have not told yet: L2 is asked for everything.
    pub(crate) past_l1: bool,
    /// A load failed a moment ago: this flight may read and not load, and has this error to answer.
    pub(crate) held_error: Option<Error<AnyError>>,
    /// Failures in a row before it, as far as this process knows.
    pub(crate) failures: u32,
    /// Its load has begun.
    has_load: AtomicBool,
    /// The highest [`Need`] of its callers so far.
    need: AtomicU8,
    /// The soft timeout is over: who waits may have what is there.
    late: AtomicBool,
    /// L1 was told to let it work.
    suspends_refresh: AtomicBool,
    interim_value: Mutex<Option<FoundEntry>>,
    /// Who flies it.
    pub(crate) driver: Driver,
    /// The lease that it waits for is gone, or the flight was detached: look again.
    pub(crate) wake: Notify,
    outcome: OnceLock<Outcome>,
    /// It has landed, or there is something else for those who wait.
    changed: Notify,
    trace: OnceLock<Trace>,
}

const NOT_REGISTERED: u64 = u64::MAX;

/// The number of the last flight of this process.
static LAST_SERIAL: AtomicU64 = AtomicU64::new(0);

/// A moment, in numbers of flights: those that begin from now on have later ones.
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

    /// What it does shows there, from now on.
    pub(crate) fn traced(&self, trace: Trace) {
        if Trace::ARE_KEPT {
            let _ = self.trace.set(trace);
        }
    }

    /// Where it shows what it does, or nowhere before it is flown.
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

    /// Puts up what callers may have, in the place of an earlier offer.
    pub(crate) fn set_interim(&self, found: FoundEntry) {
        *self.interim_value.lock() = Some(found);
        self.changed.notify_waiters();
    }

    /// Whether callers may have something.
    pub(crate) fn has_interim(&self) -> bool {
        self.interim_value.lock().is_some()
    }

    pub(crate) fn interim(&self) -> Option<FoundEntry> {
        self.interim_value.lock().clone()
    }

    /// L1 leaves the entry to this flight, which has to say so when it ends.
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

    /// What a caller may have at this moment, though the flight has not landed, or has failed. What
    /// comes from L1 only if `usable` says so.
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

    /// Begins to read in `epoch`: what is read from now on misses nothing since.
    pub(crate) fn register(&self, epoch: u32) {
        self.epoch.store(u64::from(epoch), Ordering::SeqCst);
    }

    /// The epoch that it reads in, once it reads.
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

    /// How it ended, once it has.
    pub(crate) fn outcome(&self) -> Option<&Outcome> {
        self.outcome.get()
    }

    /// Waits for the landing, or for something else that callers may have.
    pub(crate) fn state_changed(&self) -> Notified<'_> {
        self.changed.notified()
    }

    /// The first outcome counts.
    pub(crate) fn complete(&self, outcome: Outcome) {
        let _ = self.outcome.set(outcome);
        self.changed.notify_waiters();
    }
}

/// A failed load, as it is held.
#[derive(Clone, Debug)]
pub(crate) struct Failure {
    pub(crate) error: Error<AnyError>,
    /// For how long there is no other attempt.
    pub(crate) hold: Duration,
    /// It is the last of so many in a row.
    pub(crate) failures: u32,
}
