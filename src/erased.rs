//! Keys, values and errors without their types: what the engine works on.
//!
//! The engine is compiled once for all caches. It passes keys, values and errors on and never looks
//! into them. The code that knows their types is compiled once for each cache, so it is kept small:
//! the handle (`cache.rs`, `shell.rs`), the calls of the loader (`loader.rs`) and of the codec
//! (`codec`), and the entries of L1 (`l1/typed.rs`).

use std::any::Any;
use std::fmt;
use std::ops::Deref;
use std::sync::Arc;

use crate::error::Error;
use crate::key::HashedKey;

/// The type behind [`AnyValue`].
pub(crate) type Erased = dyn Any + Send + Sync;

/// A value without its type.
pub(crate) type AnyValue = Arc<Erased>;

/// A key without its type.
#[derive(Clone)]
pub(crate) struct AnyKey(Arc<KeyParts<Erased>>);

/// The parts of an [`AnyKey`]: its encoding for the flight table and for L2, its hash in L1, and
/// the key itself for the code that knows the type.
pub(crate) struct KeyParts<K: ?Sized> {
    pub(crate) id: HashedKey,
    pub(crate) l1_hash: u64,
    typed: K,
}

impl AnyKey {
    pub(crate) fn new<K: Send + Sync + 'static>(id: HashedKey, l1_hash: u64, typed: K) -> Self {
        Self(Arc::new(KeyParts { id, l1_hash, typed }))
    }

    /// The key itself, for the code that knows its type. `None`: it has another type.
    pub(crate) fn typed<K: 'static>(&self) -> Option<&K> {
        self.0.typed.downcast_ref()
    }
}

impl Deref for AnyKey {
    type Target = KeyParts<Erased>;

    fn deref(&self) -> &Self::Target {
        &self.0
    }
}

impl fmt::Debug for AnyKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.id.fmt(f)
    }
}

/// A loader's error without its type.
pub(crate) struct AnyError(Arc<Erased>);

impl AnyError {
    pub(crate) fn new<E: Send + Sync + 'static>(error: E) -> Self {
        Self(Arc::new(error))
    }
}

impl fmt::Debug for AnyError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("AnyError")
    }
}

impl Error<AnyError> {
    /// The same error with the loader's own type.
    pub(crate) fn typed<E: Send + Sync + 'static>(self) -> Error<E> {
        match self {
            Self::Load(error) => match Arc::clone(&error.0).downcast() {
                Ok(error) => Error::Load(error),
                Err(_) => other_type(Error::LoadPanicked),
            },
            Self::LoadFailedElsewhere => Error::LoadFailedElsewhere,
            Self::LoadPanicked => Error::LoadPanicked,
            Self::LoadTimedOut(after) => Error::LoadTimedOut(after),
            Self::Overloaded => Error::Overloaded,
            Self::UnchangedWithoutPrevious => Error::UnchangedWithoutPrevious,
            Self::LoadCycle => Error::LoadCycle,
            Self::Closed => Error::Closed,
            Self::NoRuntime => Error::NoRuntime,
        }
    }
}

/// The value itself, for the code that knows its type. `None`: it has another type.
pub(crate) fn typed<V: Send + Sync + 'static>(value: AnyValue) -> Option<Arc<V>> {
    value.downcast().map_or_else(|_| other_type(None), Some)
}

/// Stands in for a value, a key or an error that has another type than its cache. A cache makes all
/// of its own, so this does not happen. If it did, a release build would answer `fallback` and not
/// panic.
pub(crate) fn other_type<T>(fallback: T) -> T {
    debug_assert!(false, "of another cache");
    fallback
}
