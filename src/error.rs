//! The errors of the crate, with one type for each party that has to act.

use std::error::Error as StdError;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

/// An error of any type behind one name: the default `E` of [`Cache`](crate::Cache) and [`Error`].
///
/// It implements [`std::error::Error`], so a loader may use it as its
/// [`Loader::Error`](crate::Loader::Error) when it meets errors of several types.
///
/// ```
/// use tidegate::BoxError;
///
/// fn parse(text: &str) -> Result<u32, BoxError> {
///     text.parse().map_err(BoxError::new)
/// }
/// assert!(parse("x").is_err());
/// ```
pub struct BoxError(Box<dyn StdError + Send + Sync>);

impl BoxError {
    /// Wraps an error, or a message (`&str`, `String`).
    pub fn new(error: impl Into<Box<dyn StdError + Send + Sync>>) -> Self {
        Self(error.into())
    }

    /// The wrapped error.
    pub fn get_ref(&self) -> &(dyn StdError + Send + Sync + 'static) {
        &*self.0
    }
}

impl From<Box<dyn StdError + Send + Sync>> for BoxError {
    fn from(error: Box<dyn StdError + Send + Sync>) -> Self {
        Self(error)
    }
}

impl From<String> for BoxError {
    fn from(message: String) -> Self {
        Self(message.into())
    }
}

impl From<&str> for BoxError {
    fn from(message: &str) -> Self {
        Self(message.into())
    }
}

impl fmt::Debug for BoxError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&self.0, f)
    }
}

impl fmt::Display for BoxError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.0, f)
    }
}

impl StdError for BoxError {
    fn source(&self) -> Option<&(dyn StdError + 'static)> {
        self.0.source()
    }
}

/// Why a look-up has no answer.
///
/// Trouble with Redis is never a reason, because without Redis the loader is asked. The error is
/// `Clone`, because all callers of one load share its error.
///
/// ```
/// use std::io;
/// use tidegate::Error;
///
/// /// Who has to act: the caller, later; or the operator of the service.
/// fn status(error: &Error<io::Error>) -> u16 {
///     match error {
///         Error::Load(error) if error.kind() == io::ErrorKind::PermissionDenied => 403,
///         Error::Load(_) | Error::LoadFailedElsewhere | Error::LoadTimedOut(_) => 502,
///         Error::Overloaded | Error::Closed => 503,
///         _ => 500, // the loader panicked, or asked its own cache
///     }
/// }
/// assert_eq!(status(&Error::Overloaded), 503);
/// ```
#[non_exhaustive]
#[derive(Debug, thiserror::Error)]
pub enum Error<E = BoxError> {
    /// The loader answered this error. Every caller that joined the load gets the same one, and for
    /// [`error_backoff`](crate::CacheBuilder::error_backoff) it is answered again without a load.
    #[error("the loader failed")]
    Load(#[source] Arc<E>),

    /// A loader failed in another process a moment ago (within its `error_backoff`), so this
    /// process did not try. The error itself is known to that process alone. Try again later.
    #[error("a load of this key failed in another process a moment ago")]
    LoadFailedElsewhere,

    /// The loader panicked. The panic's message went to the panic hook.
    #[error("the loader panicked")]
    LoadPanicked,

    /// The load took longer than [`load_timeout`](crate::CacheBuilder::load_timeout) and was cut
    /// off.
    #[error("the load did not end within {0:?}")]
    LoadTimedOut(Duration),

    /// The load got no permit of
    /// [`max_concurrent_loads`](crate::CacheBuilder::max_concurrent_loads) within
    /// [`load_timeout`](crate::CacheBuilder::load_timeout), or would have got none early enough to
    /// end. The source was not asked. Shed load, or raise the limit if the source can serve more.
    #[error("no load could start in time: as many are running as max_concurrent_loads allows")]
    Overloaded,

    /// The loader answered [`Loaded::unchanged`](crate::Loaded::unchanged) to a
    /// [`load`](crate::Loader::load), which has no earlier value. Only
    /// [`reload`](crate::Loader::reload) may answer that. Counts as a failed load.
    #[error("the loader answered `unchanged` to a load that had no previous entry")]
    UnchangedWithoutPrevious,

    /// A loader asked its own cache for the key that it is loading. It would wait for itself for
    /// ever. Read the source of truth in the loader, not the cache.
    #[error("the loader asked the cache for the very key that it is loading")]
    LoadCycle,

    /// [`close`](crate::Cache::close) was called.
    #[error("the cache is closed")]
    Closed,

    /// The future was polled outside a tokio runtime, where no load can be started.
    #[error("a cache needs a tokio runtime: poll this future inside one")]
    NoRuntime,
}

impl<E> Clone for Error<E> {
    fn clone(&self) -> Self {
        match self {
            Self::Load(error) => Self::Load(Arc::clone(error)),
            Self::LoadFailedElsewhere => Self::LoadFailedElsewhere,
            Self::LoadPanicked => Self::LoadPanicked,
            Self::LoadTimedOut(after) => Self::LoadTimedOut(*after),
            Self::Overloaded => Self::Overloaded,
            Self::UnchangedWithoutPrevious => Self::UnchangedWithoutPrevious,
            Self::LoadCycle => Self::LoadCycle,
            Self::Closed => Self::Closed,
            Self::NoRuntime => Self::NoRuntime,
        }
    }
}

/// Why the shared tier did not do a requested change.
///
/// Only calls that change something return it (`insert`, `invalidate` and the calls like them,
/// `connect`); a `get` goes on without the tier. The type is opaque: use its predicates, and
/// [`source`](StdError::source) for the cause.
///
/// ```
/// use std::error::Error as _;
/// use tidegate::{CacheFor, Loader, RemoteError};
///
/// /// After a commit: nothing here makes the request fail.
/// async fn drop_from<L: Loader>(cache: &CacheFor<L>, key: &L::Key) {
///     match cache.invalidate(key).await {
///         Ok(()) => {}
///         Err(error) if error.is_closed() => {} // the service ends
///         Err(error) if error.is_denied() => {
///             eprintln!("{error}: {:?}", error.source()); // the ACL rules to add
///         }
///         Err(error) => println!("{error}; it is repeated"),
///     }
/// }
/// ```
pub struct RemoteError(Box<Remote>);

struct Remote {
    kind: RemoteKind,
    doing: &'static str,
    source: Option<Box<dyn StdError + Send + Sync>>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum RemoteKind {
    Unreachable,
    #[cfg(feature = "redis")]
    Tls,
    Timeout,
    Refused,
    #[cfg(feature = "redis")]
    Denied,
    Unencodable,
    Superseded,
    Closed,
}

impl RemoteError {
    pub(crate) fn new(kind: RemoteKind, doing: &'static str) -> Self {
        Self(Box::new(Remote {
            kind,
            doing,
            source: None,
        }))
    }

    pub(crate) fn because(
        kind: RemoteKind,
        doing: &'static str,
        source: impl Into<Box<dyn StdError + Send + Sync>>,
    ) -> Self {
        Self(Box::new(Remote {
            kind,
            doing,
            source: Some(source.into()),
        }))
    }

    /// No connection: refused, lost, or never made. Nothing was changed in Redis.
    pub fn is_unreachable(&self) -> bool {
        self.0.kind == RemoteKind::Unreachable || self.is_tls()
    }

    /// No connection, because of TLS: a certificate that is not trusted, has expired or bears
    /// another name, a client certificate that is missing or not wanted, or no TLS at the other
    /// end. The source says which. [`is_unreachable`](Self::is_unreachable) is true as well.
    pub fn is_tls(&self) -> bool {
        #[cfg(feature = "redis")]
        return self.0.kind == RemoteKind::Tls;
        #[cfg(not(feature = "redis"))]
        false
    }

    /// No answer in time. The server may have executed the command, or may execute it later. Repeat
    /// the call, which is safe for every call that returns this error.
    pub fn is_timeout(&self) -> bool {
        self.0.kind == RemoteKind::Timeout
    }

    /// The server answered an error (`-READONLY`, `-OOM`, `-NOPERM`, …): see the source.
    pub fn is_refused(&self) -> bool {
        self.0.kind == RemoteKind::Refused || self.is_denied()
    }

    /// The server does not let this user in, or denies a command: a wrong password, or a missing
    /// right. The source names it; from [`connect`](crate::RedisBuilder::connect) it has the ACL
    /// rules to add. [`is_refused`](Self::is_refused) is true as well.
    pub fn is_denied(&self) -> bool {
        #[cfg(feature = "redis")]
        return self.0.kind == RemoteKind::Denied;
        #[cfg(not(feature = "redis"))]
        false
    }

    /// The codec could not encode the value, or the record would be larger than
    /// [`max_record_bytes`](crate::CacheBuilder::max_record_bytes).
    pub fn is_unencodable(&self) -> bool {
        self.0.kind == RemoteKind::Unencodable
    }

    /// The entry in the shared tier has a later [version](crate::Loaded::version) than the inserted
    /// one. It stays, and nothing is wrong.
    pub fn is_superseded(&self) -> bool {
        self.0.kind == RemoteKind::Superseded
    }

    /// [`close`](crate::Cache::close) was called before.
    pub fn is_closed(&self) -> bool {
        self.0.kind == RemoteKind::Closed
    }
}

impl fmt::Display for RemoteError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let what = match self.0.kind {
            RemoteKind::Unreachable => "the shared tier cannot be reached",
            #[cfg(feature = "redis")]
            RemoteKind::Tls => "there is no TLS connection to the shared tier",
            RemoteKind::Timeout => "the shared tier did not answer in time",
            RemoteKind::Refused => "the shared tier refused",
            #[cfg(feature = "redis")]
            RemoteKind::Denied => "the shared tier denies it to this user",
            RemoteKind::Unencodable => "the value cannot be stored in the shared tier",
            RemoteKind::Superseded => "the entry there has a later version",
            RemoteKind::Closed => "the cache is closed",
        };
        write!(f, "{}: {what}", self.0.doing)
    }
}

impl fmt::Debug for RemoteError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RemoteError")
            .field("kind", &self.0.kind)
            .field("doing", &self.0.doing)
            .field("source", &self.0.source)
            .finish()
    }
}

impl StdError for RemoteError {
    fn source(&self) -> Option<&(dyn StdError + 'static)> {
        self.0
            .source
            .as_deref()
            .map(|source| source as &(dyn StdError + 'static))
    }
}

/// Why a [`write`](crate::Cache::write), an [`invalidate_after`](crate::Cache::invalidate_after) or
/// a [`refresh_after`](crate::Cache::refresh_after) is not done.
///
/// ```
/// use tidegate::WriteError;
///
/// fn outcome(error: WriteError<std::io::Error>) -> Result<(), std::io::Error> {
///     match error {
///         WriteError::Source(error) => Err(error),
///         // The write was executed; the invalidation is repeated.
///         WriteError::Remote(late) if !late.is_closed() => Ok(()),
///         other => Err(std::io::Error::other(other)),
///     }
/// }
/// # let _ = outcome;
/// ```
#[non_exhaustive]
#[derive(Debug, thiserror::Error)]
pub enum WriteError<X> {
    /// The write itself answered this error. The source may have executed it all the same (a
    /// connection that broke after the commit), so the key is invalidated.
    #[error("the write failed")]
    Source(#[source] X),

    /// The write panicked; the key is invalidated. The panic's message went to the panic hook.
    #[error("the write panicked")]
    Panicked,

    /// The write was executed, but the shared tier did not confirm the change of the cache. Other
    /// processes may answer the old value until the change has been repeated, which happens in the
    /// background. Where the cache [is closed](RemoteError::is_closed), nothing was done at all,
    /// not even the write.
    #[error("the source has the write, the shared tier was not told")]
    Remote(#[source] RemoteError),
}

/// Settings that make no sense, refused by [`CacheBuilder::build`](crate::CacheBuilder::build) and
/// [`Redis::open`](crate::Redis::open) before anything runs.
#[non_exhaustive]
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum BuildError {
    /// A value outside the range of its setter.
    #[error("{setter}({value}) is not possible: {allowed}")]
    OutOfRange {
        /// The setter that was called.
        setter: &'static str,
        /// The value that it got.
        value: String,
        /// The range of the setter, in words.
        allowed: &'static str,
    },

    /// Two settings that contradict each other.
    #[error("{setter}({value}) and {other}({other_value}) contradict each other: {why}")]
    Clash {
        /// One of the two setters.
        setter: &'static str,
        /// The value that it got.
        value: String,
        /// The other one.
        other: &'static str,
        /// The value of the other one.
        other_value: String,
        /// Why both cannot hold.
        why: &'static str,
    },

    /// A cache has a shared tier but no codec: the default one, `Bincode`, needs the feature
    /// `bincode`.
    #[error(
        "a shared tier needs a codec: call codec(..), or enable the feature `bincode` for the default"
    )]
    NoCodec,

    /// The URL is not one that a Redis client understands. The error does not repeat the URL, which
    /// may hold a password.
    #[error("the Redis URL cannot be understood: {reason}")]
    Url {
        /// What is wrong with it.
        reason: String,
    },

    /// The URL asks for TLS (`rediss://`), which this build cannot do.
    #[error("the Redis URL asks for TLS: enable the feature `tls` of tidegate")]
    NoTls,

    /// A setting of `Tls` that cannot be used: an invalid certificate or key, a key of another
    /// certificate, a system without certificates of CAs.
    #[error("TLS cannot be set up: {reason}")]
    Tls {
        /// What is wrong with it.
        reason: String,
    },
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_source_is_printed_once() {
        let error: Error<BoxError> = Error::Load(Arc::new(BoxError::new("no such table")));
        assert_eq!(error.to_string(), "the loader failed");
        assert_eq!(
            error.source().map(ToString::to_string).as_deref(),
            Some("no such table")
        );

        let error = RemoteError::because(RemoteKind::Refused, "invalidate", "READONLY");
        assert_eq!(error.to_string(), "invalidate: the shared tier refused");
        assert_eq!(
            error.source().map(ToString::to_string).as_deref(),
            Some("READONLY")
        );
        assert!(error.is_refused() && !error.is_timeout());
    }
}
