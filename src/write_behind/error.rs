//! The errors of write-behind.

use crate::codec::CodecError;
use crate::error::{BuildError, RemoteError};

/// Why a write-behind could not be [opened](super::WriteBehindBuilder::open).
#[non_exhaustive]
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// A setting makes no sense.
    #[error("a setting of the write-behind makes no sense")]
    Settings(#[from] BuildError),

    /// Other processes divide the keys of this write-behind into another number of partitions. With
    /// two numbers, writes of one key would be in two partitions, and lose their order.
    #[error("partitions({here}) is not what other processes of this write-behind have: {there}")]
    Partitions {
        /// The number of this process.
        here: u16,
        /// The number that is stored in Redis.
        there: String,
    },

    /// Redis did not answer.
    #[error("Redis did not say into how many partitions the keys are divided")]
    Remote(#[from] RemoteError),
}

/// Why a write was not accepted, or may not have been.
#[non_exhaustive]
#[derive(Debug, thiserror::Error)]
pub enum WriteError {
    /// The key's partition has as many unapplied writes as
    /// [`max_unapplied`](super::WriteBehindBuilder::max_unapplied) allows. Not accepted: shed load,
    /// or try again later.
    #[error("{unapplied} writes of this partition are unapplied, which is as many as may be")]
    Full {
        /// The number of unapplied writes.
        unapplied: u64,
    },

    /// Redis did not say whether the write was accepted: it did not answer in time, or the
    /// connection was lost. **The write may have been accepted, or may yet be**. If the connection
    /// was lost, that may be even after a later write of the same key over the next connection.
    /// Write it again to make it the last one, unless another writer has written the key meanwhile.
    #[error("it is unknown whether the write was accepted")]
    Unknown(#[source] RemoteError),

    /// Redis is not connected, or refused. Not accepted.
    #[error("the write was not accepted")]
    Refused(#[source] RemoteError),

    /// The codec could not encode the key or the value. Not accepted.
    #[error("the write cannot be encoded")]
    Unencodable(#[source] CodecError),

    /// The encoded write is larger than
    /// [`max_write_bytes`](super::WriteBehindBuilder::max_write_bytes). Not accepted.
    #[error("the encoded write has {bytes} bytes, more than max_write_bytes allows")]
    TooLarge {
        /// Its size.
        bytes: usize,
    },

    /// Other processes divide the keys into another number of partitions. It was noticed only now:
    /// the stored number was lost, and they were the first to store it again. Not accepted.
    #[error("other processes divide the keys into {there} partitions")]
    Partitions {
        /// The number that is stored in Redis.
        there: String,
    },

    /// There is no such dead letter any more: it was re-driven, discarded or dropped.
    #[error("there is no such dead letter any more")]
    NoSuchLetter,

    /// [`close`](super::WriteBehind::close) was called before. Not accepted.
    #[error("the write-behind is closed")]
    Closed,
}

impl WriteError {
    /// Whether the write was certainly not accepted. `false` only for
    /// [`Unknown`](Self::Unknown).
    pub fn is_not_accepted(&self) -> bool {
        !matches!(self, Self::Unknown(_))
    }
}
