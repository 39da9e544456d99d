//! The shared tier (L2): its interface to the engine, and the choice between its implementations.
//!
//! The engine knows [`Tier`] alone. Anything that replaces or removes a record makes a later
//! [`Tier::replace`] against the head of that record fail. That is the whole fence in L2.

use std::fmt;
use std::sync::{Arc, Weak};
use std::time::Duration;

use bytes::Bytes;

use crate::error::RemoteError;
use crate::protocol::record::Watermarks;
use crate::protocol::record::{Expiry, Head};
use crate::telemetry::Telemetry;

mod in_process;
#[cfg(feature = "testing")]
pub(crate) use in_process::faults;
mod listener;
mod operations;
#[cfg(feature = "redis")]
pub(crate) mod redis;

pub use self::in_process::InProcess;
#[cfg(all(test, feature = "bincode"))]
pub(crate) use self::in_process::{Gate, When};
pub(crate) use self::listener::Listener;
pub(crate) use self::operations::TierOperations;
pub(crate) use crate::protocol::request::{
    Acquired, Advance, Keys, Publication, RecordRead, RefreshWrite, Replacing, WatermarkRequest,
};

/// The shared tier of one cache. Its operations are measured.
#[derive(Clone)]
pub(crate) struct Tier {
    at: Backend,
    telemetry: Arc<Telemetry>,
}

/// The implementations of a shared tier.
#[derive(Clone, Debug)]
pub(crate) enum Backend {
    #[cfg(feature = "redis")]
    Redis(redis::Redis),
    InProcess(InProcess),
}

impl Tier {
    pub(crate) fn new(at: Backend, telemetry: Arc<Telemetry>) -> Self {
        Self { at, telemetry }
    }

    /// The name of the system, as OpenTelemetry has it.
    fn system(&self) -> &'static str {
        match &self.at {
            #[cfg(feature = "redis")]
            Backend::Redis(_) => "redis",
            Backend::InProcess(_) => "in_process",
        }
    }
}

/// Makes the methods of [`Tier`]: each calls the method of the same name of the tier in use. The
/// future is awaited in the method itself: a helper function would hold it twice.
macro_rules! dispatch {
    (
        local {$(
            $(#[$local_doc:meta])*
            fn $local:ident(&$this:ident $(, $local_arg:ident: $local_type:ty)*) -> $local_out:ty;
        )*}
        remote {$(
            $(#[$doc:meta])*
            fn $name:ident(&$self:ident $(, $arg:ident: $type:ty)*) -> $out:ty
            $({ $($before:tt)* })?;
        )*}
    ) => {
        impl Tier {
            $(
                $(#[$local_doc])*
                pub(crate) fn $local(&$this $(, $local_arg: $local_type)*) -> $local_out {
                    match &$this.at {
                        #[cfg(feature = "redis")]
                        Backend::Redis(tier) => tier.$local($($local_arg),*),
                        Backend::InProcess(tier) => tier.$local($($local_arg),*),
                    }
                }
            )*
            $(
                $(#[$doc])*
                pub(crate) async fn $name(&$self $(, $arg: $type)*) -> $out {
                    $($($before)*)?
                    let timer = $self.telemetry.measure($self.system(), stringify!($name));
                    let outcome = match &$self.at {
                        #[cfg(feature = "redis")]
                        Backend::Redis(tier) => timer.trace.within(tier.$name($($arg),*)).await,
                        Backend::InProcess(tier) => timer.trace.within(tier.$name($($arg),*)).await,
                    };
                    timer.end(&outcome);
                    outcome
                }
            )*
        }
    };
}

operations::tier_operations!(dispatch);

impl fmt::Debug for Tier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.at.fmt(f)
    }
}

/// A shared tier to give to [`CacheBuilder::l2`](crate::CacheBuilder::l2): [`Redis`](crate::Redis)
/// or [`InProcess`]. Sealed: the protocol between the engine and a tier is not public.
pub trait SharedTier: sealed::Sealed {}

pub(crate) mod sealed {
    pub trait Sealed {
        #[doc(hidden)]
        fn into_tier(self) -> AnyTier;
    }

    /// A tier whose content is private to the crate.
    #[derive(Debug)]
    pub struct AnyTier(pub(crate) super::Backend);
}

impl SharedTier for InProcess {}

impl sealed::Sealed for InProcess {
    fn into_tier(self) -> sealed::AnyTier {
        sealed::AnyTier(Backend::InProcess(self))
    }
}

#[cfg(feature = "redis")]
impl SharedTier for redis::Redis {}

#[cfg(feature = "redis")]
impl sealed::Sealed for redis::Redis {
    fn into_tier(self) -> sealed::AnyTier {
        sealed::AnyTier(Backend::Redis(self))
    }
}
