//! The completion of a flight: what its callers get, and what this process keeps.

use std::time::Duration;

use super::flight::{Failure, FoundEntry};
use crate::answer::Answer;
use crate::erased::AnyError;
use crate::error::Error;

pub(crate) struct Completion {
    /// `None`: the callers look again. See the constructors for the reasons.
    pub(crate) outcome: Option<Result<Answer, Error<AnyError>>>,
    pub(crate) retention: Retention,
}

/// What this process keeps of a flight.
pub(crate) enum Retention {
    Nothing,
    /// An entry, and how long L1 may answer it at most.
    Entry(FoundEntry, Duration),
    /// An error, which is answered again for a while.
    Failure(Failure),
}

impl Completion {
    /// An answer. L1 keeps it, if it may be kept there.
    pub(crate) fn entry(found: FoundEntry, l1_lifetime: Option<Duration>) -> Self {
        let outcome = Some(Ok(found.answer.clone()));
        let retention = match l1_lifetime {
            Some(l1_lifetime) if !l1_lifetime.is_zero() => Retention::Entry(found, l1_lifetime),
            _ => Retention::Nothing,
        };
        Self { outcome, retention }
    }

    /// An error that is not held.
    pub(crate) fn error(error: Error<AnyError>) -> Self {
        Self {
            outcome: Some(Err(error)),
            retention: Retention::Nothing,
        }
    }

    /// An error that is held: for its back-off it is answered again without a load.
    pub(crate) fn failure(failure: Failure) -> Self {
        Self {
            outcome: Some(Err(failure.error.clone())),
            retention: Retention::Failure(failure),
        }
    }

    /// The cache was closed. A refresh that no caller waits for ends there.
    pub(crate) fn closed() -> Self {
        Self::look_again()
    }

    /// As many refreshes as may run in the background are running.
    pub(crate) fn no_background_permit() -> Self {
        Self::look_again()
    }

    /// L1 may answer again since it is known that L2 cannot be reached: the callers find it there.
    pub(crate) fn l1_usable_again() -> Self {
        Self::look_again()
    }

    /// Another process has held the lease for longer than `lease_wait`, and no caller waits: the
    /// next hit tries again.
    pub(crate) fn lease_held() -> Self {
        Self::look_again()
    }

    fn look_again() -> Self {
        Self {
            outcome: None,
            retention: Retention::Nothing,
        }
    }
}
