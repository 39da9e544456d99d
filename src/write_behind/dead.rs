//! Dead letters: writes that were given up.

use super::error::WriteError;
use super::handle::{WriteBehind, write_result};
use super::sink::WriteId;
use crate::error::RemoteError;
use crate::l2::redis::queue::{RawEntry, StreamId, parse_id};

/// A write that was given up: see [`WriteBehind::dead_letters`].
#[derive(Debug)]
pub struct DeadLetter<K, V> {
    partition: u16,
    entry_id: StreamId,
    id: Option<WriteId>,
    error: String,
    attempts: u32,
    write: Option<(K, Option<V>)>,
}

impl<K, V> DeadLetter<K, V> {
    /// The partition that it was in.
    pub fn partition(&self) -> u16 {
        self.partition
    }

    /// The id of the write. `None`: the entry was not written by this crate.
    pub fn id(&self) -> Option<WriteId> {
        self.id
    }

    /// The last error of the sink, with its causes, or why the entry could not be read.
    pub fn error(&self) -> &str {
        &self.error
    }

    /// How often the sink was given the write.
    pub fn attempts(&self) -> u32 {
        self.attempts
    }

    /// The key and the value; for a deletion the value is `None`. `None` for both: the entry could
    /// not be read.
    pub fn write(&self) -> Option<(&K, Option<&V>)> {
        let (key, value) = self.write.as_ref()?;
        Some((key, value.as_ref()))
    }
}

impl<K, V> WriteBehind<K, V> {
    /// The dead letters, up to `limit`, the oldest of each partition first.
    ///
    /// ```
    /// # async fn look(views: tidegate::write_behind::WriteBehind<u64, u64>) -> Result<(), Box<dyn std::error::Error>> {
    /// for letter in views.dead_letters(100).await? {
    ///     println!("{:?} after {} attempts: {}", letter.write(), letter.attempts(), letter.error());
    ///     if letter.write().is_some() {
    ///         views.redrive(&letter).await?; // the sink has been repaired
    ///     } else {
    ///         views.discard(&letter).await?; // it cannot be read
    ///     }
    /// }
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    ///
    /// [`RemoteError`] if Redis does not answer.
    pub async fn dead_letters(&self, limit: usize) -> Result<Vec<DeadLetter<K, V>>, RemoteError> {
        const OPERATION: &str = "read the dead letters";
        let core = &self.inner.core;
        let mut letters = Vec::new();
        for (partition_number, partition) in (0..).zip(&core.partitions) {
            let left = limit - letters.len();
            if left == 0 {
                break;
            }
            let dead = &partition.keys.dead;
            let entries = core.redis.queue_range(OPERATION, dead, left as u64).await?;
            letters.extend(
                entries
                    .into_iter()
                    .map(|entry| self.to_dead_letter(partition_number, &entry)),
            );
        }
        Ok(letters)
    }

    /// Accepts a dead letter again, as the last write of its partition. It keeps its [id](WriteId).
    /// So a sink that compares ids changes nothing if a later write of the key was applied
    /// meanwhile. **A sink that does not compare them would replace the later value by this one.**
    ///
    /// # Errors
    ///
    /// [`WriteError`]: `Full`, `NoSuchLetter`, `Unknown`, `Refused`. The dead letter stays until it
    /// is accepted.
    ///
    /// # Cancel safety
    ///
    /// The same as of [`write`](Self::write).
    pub async fn redrive(&self, letter: &DeadLetter<K, V>) -> Result<WriteId, WriteError> {
        let core = &self.inner.core;
        let Some(partition) = core.partitions.get(usize::from(letter.partition)) else {
            return Err(WriteError::NoSuchLetter);
        };
        let redriven = core.redis.queue_redrive(
            &partition.keys,
            letter.entry_id,
            core.config.max_unapplied,
            core.written(letter.partition),
        );
        let accepted = self.count(write_result(redriven.await))?;
        Ok(letter.id.unwrap_or(accepted))
    }

    /// Deletes a dead letter for good. `false`: it was gone already.
    ///
    /// # Errors
    ///
    /// [`RemoteError`] if Redis does not answer. The dead letter may be gone.
    pub async fn discard(&self, letter: &DeadLetter<K, V>) -> Result<bool, RemoteError> {
        const OPERATION: &str = "discard a dead letter";
        let core = &self.inner.core;
        let Some(partition) = core.partitions.get(usize::from(letter.partition)) else {
            return Ok(false);
        };
        let dead = &partition.keys.dead;
        core.redis
            .queue_delete(OPERATION, dead, letter.entry_id)
            .await
    }

    fn to_dead_letter(&self, partition: u16, entry: &RawEntry) -> DeadLetter<K, V> {
        // The dead letter's own fields come first, then those of the entry.
        let text = |name| {
            let field = entry.field(name);
            field.map(|text| String::from_utf8_lossy(text).into_owned())
        };
        let id = text("was").or_else(|| text("id"));
        let record = entry.field("w");
        DeadLetter {
            partition,
            entry_id: entry.id,
            id: id.and_then(|id| parse_id(&id)).map(WriteId::from),
            error: text("error").unwrap_or_default(),
            attempts: text("attempts")
                .and_then(|attempts| attempts.parse().ok())
                .unwrap_or_default(),
            write: record.and_then(|record| self.inner.core.records.decode(record).ok()),
        }
    }
}
