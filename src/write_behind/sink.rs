//! The sink: the user's code that applies writes to the source of truth, and what it is given.

use std::error::Error as StdError;
use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;

use crate::key::CacheKey;
use crate::l2::redis::queue::{StreamId, parse_id};

/// Applies accepted writes to the source of truth.
///
/// The calls for one partition come one after the other, in the order in which the writes were
/// accepted, each in a task of its own. Calls for different partitions come at the same time. A
/// batch comes again if it failed, or if its worker died before it acknowledged it. Therefore **a
/// sink must be idempotent**; the [id](Write::id) of a write is there for that. A sink is exact in
/// all these cases if it keeps the [version](WriteId::version) with the row, and changes nothing if
/// the row has the same or a later one:
///
/// ```
/// use tidegate::BoxError;
/// use tidegate::write_behind::{Batch, Sink};
///
/// struct Stock; // would hold a pool of database connections
///
/// impl Sink for Stock {
///     type Key = u64;
///     type Value = u32;
///     type Error = BoxError;
///
///     async fn apply(&self, batch: &Batch<u64, u32>) -> Result<(), BoxError> {
///         // BEGIN;
///         for write in batch.writes() {
///             match write.value() {
///                 // INSERT INTO stock (id, amount, version) VALUES (…)
///                 //   ON CONFLICT (id) DO UPDATE SET … WHERE stock.version < excluded.version
///                 Some(amount) => drop((write.key(), amount, write.id().version())),
///                 // UPDATE stock SET amount = NULL, version = … WHERE id = … AND version < …
///                 None => drop((write.key(), write.id().version())),
///             }
///         }
///         // COMMIT;
///         Ok(())
///     }
/// }
/// ```
///
/// A call is cut off at any await point after
/// [`sink_timeout`](super::WriteBehindBuilder::sink_timeout), and as soon as the worker learns that
/// its lease is lost. Statements that it has sent to the database by then may still be carried out
/// there.
pub trait Sink: Send + Sync + 'static {
    /// The key of a write.
    type Key: CacheKey;
    /// The value of a write.
    type Value: Send + Sync + 'static;
    /// Why a batch could not be applied.
    type Error: StdError + Send + Sync + 'static;

    /// Applies the writes in their order. With an error, any of them may be applied: all come
    /// again.
    fn apply(
        &self,
        batch: &Batch<Self::Key, Self::Value>,
    ) -> impl Future<Output = Result<(), Self::Error>> + Send;

    /// The write that can never be applied, if an error of [`apply`](Self::apply) says so. It is
    /// dead-lettered at once, and the others are tried again without it.
    ///
    /// The default rejects no write: each is dead-lettered after
    /// [`attempts`](super::WriteBehindBuilder::attempts).
    fn rejected(&self, error: &Self::Error) -> Option<WriteId> {
        let _ = error;
        None
    }
}

/// Writes of one partition, in the order in which they were accepted.
#[derive(Debug)]
pub struct Batch<K, V> {
    pub(super) partition: u16,
    pub(super) epoch: u64,
    pub(super) writes: Vec<Write<K, V>>,
}

impl<K, V> Batch<K, V> {
    /// The writes. There is at least one.
    pub fn writes(&self) -> &[Write<K, V>] {
        &self.writes
    }

    /// The partition, from zero. Writes of one key are always in the same.
    pub fn partition(&self) -> u16 {
        self.partition
    }

    /// A fencing token: a number that grows each time that a worker claims the partition. A source
    /// of truth can keep the highest one that it has seen of a partition, and refuse lower ones.
    /// Then it refuses the call of a worker that was stopped and does not know yet that it was
    /// replaced. Sinks that compare [ids](Write::id) do not need it.
    pub fn epoch(&self) -> u64 {
        self.epoch
    }
}

/// One accepted write.
#[derive(Debug)]
pub struct Write<K, V> {
    pub(super) id: WriteId,
    pub(super) key: K,
    pub(super) value: Option<V>,
    pub(super) attempt: u32,
}

impl<K, V> Write<K, V> {
    /// Names this write. It grows with every write of a key. A write that comes again has the same
    /// id.
    pub fn id(&self) -> WriteId {
        self.id
    }

    /// The key.
    pub fn key(&self) -> &K {
        &self.key
    }

    /// The value. `None`: the key is to be deleted.
    pub fn value(&self) -> Option<&V> {
        self.value.as_ref()
    }

    /// The number of this attempt: 1 at first, and one more after every failure of this write.
    /// Attempts that ended because their worker died are not counted.
    pub fn attempt(&self) -> u32 {
        self.attempt
    }
}

/// Names a write within its partition. It is the id that Redis gave it: milliseconds of the
/// server's clock, and a number within them. Of two writes of one key, the later one has the
/// greater id. Writes of different partitions may have the same id.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct WriteId {
    ms: u64,
    seq: u64,
}

impl WriteId {
    /// The id as one number for a `BIGINT` column or for
    /// [`Loaded::version`](crate::Loaded::version): the milliseconds, and 20 bits of the number
    /// within them. Until the year 2248 it grows as ids do, if fewer than a million writes of a
    /// partition are accepted in a millisecond.
    pub fn version(&self) -> u64 {
        (self.ms << 20).saturating_add(self.seq)
    }

    /// When the write was accepted, in milliseconds by the server's clock.
    pub fn ms(&self) -> u64 {
        self.ms
    }

    /// The number within the milliseconds.
    pub fn seq(&self) -> u64 {
        self.seq
    }

    /// Parses the text that [`Display`](fmt::Display) makes: `1760000000000-0`.
    pub fn parse(text: &str) -> Option<Self> {
        parse_id(text).map(Self::from)
    }
}

impl From<StreamId> for WriteId {
    fn from((ms, seq): StreamId) -> Self {
        Self { ms, seq }
    }
}

impl fmt::Display for WriteId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}", self.ms, self.seq)
    }
}

/// An error of a sink, as text.
#[derive(Debug)]
pub(super) struct SinkFailure {
    pub(super) text: String,
    pub(super) rejected: Option<WriteId>,
}

impl SinkFailure {
    pub(super) fn new(text: impl Into<String>) -> Self {
        Self {
            text: text.into(),
            rejected: None,
        }
    }
}

/// The number of bytes of an error's text that are kept.
const MAX_ERROR_TEXT: usize = 1_000;

/// An error with its causes, of bounded length.
fn error_text(error: &dyn StdError) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause.filter(|_| text.len() <= MAX_ERROR_TEXT) {
        text.push_str(": ");
        text.push_str(&error.to_string());
        cause = error.source();
    }
    let end = (0..=MAX_ERROR_TEXT.min(text.len()))
        .rev()
        .find(|&at| text.is_char_boundary(at));
    text.truncate(end.unwrap_or_default());
    text
}

pub(super) type ApplyFuture = Pin<Box<dyn Future<Output = Result<(), SinkFailure>> + Send>>;

/// A sink without its type parameters.
pub(super) trait ErasedSink<K, V>: Send + Sync {
    fn apply(self: Arc<Self>, batch: Batch<K, V>) -> ApplyFuture;
}

impl<S: Sink> ErasedSink<S::Key, S::Value> for S {
    fn apply(self: Arc<Self>, batch: Batch<S::Key, S::Value>) -> ApplyFuture {
        // The call is inside the future. So a panic before the first await is caught, too.
        Box::pin(async move {
            let applied = Sink::apply(&*self, &batch).await;
            applied.map_err(|error| SinkFailure {
                text: error_text(&error),
                rejected: self.rejected(&error),
            })
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::BoxError;

    #[test]
    fn versions_grow_as_ids_do() {
        let ids = [(1, 0), (1, 1), (1, (1 << 20) - 1), (2, 0), (1 << 42, 7)];
        let ids = ids.map(WriteId::from);
        assert!(ids.is_sorted());
        assert!(
            ids.windows(2)
                .all(|two| two[0].version() < two[1].version())
        );
        for id in ids {
            assert_eq!(WriteId::parse(&id.to_string()), Some(id));
        }
        assert_eq!(WriteId::parse("1"), None);
    }

    #[test]
    fn an_error_is_kept_with_its_causes_and_not_for_ever() {
        let error = crate::Error::Load(Arc::new(BoxError::new("no such table")));
        assert_eq!(error_text(&error), "the loader failed: no such table");
        let long = error_text(&BoxError::new("ß".repeat(2_000)));
        assert!((MAX_ERROR_TEXT - 1..=MAX_ERROR_TEXT).contains(&long.len()));
    }
}
