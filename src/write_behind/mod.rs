//! Write-behind: writes are accepted into Redis now, and applied to the source of truth later, in
//! batches, in the order in which they were accepted.
//!
//! **What can be lost.** Until an accepted write is applied, it is in Redis alone. Writes that
//! Redis loses are lost, and no error says so:
//!
//! - all writes, at a crash of a server without an append-only file;
//! - those of about the last second, at a crash with `appendfsync everysec`;
//! - those that a replica had not received, at an asynchronous fail-over;
//! - all writes, at a flush;
//! - all writes of a partition whose stream Redis evicts.
//!
//! Streams have no time to live, so the server must have `maxmemory-policy noeviction` or one of
//! `volatile-*`. With `allkeys-*` this module must not be used. There is no option that waits for
//! replicas, because `WAIT` would hold up the connection that all commands share. With
//! `min-replicas-to-write` the server refuses writes that no replica copies. Only with `appendfsync
//! always` does a crash of one server lose nothing.
//!
//! **Reads are old until a write is applied**: a reader of the source of truth, also a
//! [`Loader`](crate::Loader), reads the value before it. Writes that must not be lost, or must be
//! read back at once, belong into the database.
//!
//! ```no_run
//! use tidegate::write_behind::{Batch, Sink, WriteBehind};
//! use tidegate::{BoxError, Redis};
//!
//! struct Views; // would hold a pool of database connections
//!
//! impl Sink for Views {
//!     type Key = u64;
//!     type Value = u64;
//!     type Error = BoxError;
//!
//!     async fn apply(&self, batch: &Batch<u64, u64>) -> Result<(), BoxError> {
//!         for write in batch.writes() {
//!             // INSERT … ON CONFLICT (id) DO UPDATE SET … WHERE views.version < excluded.version
//!             println!("{} {:?} {}", write.key(), write.value(), write.id().version());
//!         }
//!         Ok(())
//!     }
//! }
//!
//! # async fn run() -> Result<(), Box<dyn std::error::Error>> {
//! let redis = Redis::connect("redis://127.0.0.1:6379").await?;
//! let views = WriteBehind::builder("views", redis, Views).open().await?;
//! views.write(&42, &1_000).await?; // accepted
//! views.close().await;
//! # Ok(())
//! # }
//! ```
//!
//! # What it promises
//!
//! While Redis loses nothing:
//!
//! - **Accepted is applied, or dead-lettered.** [`write`](WriteBehind::write) answers `Ok` once the
//!   write is in its stream. The write leaves the stream when a sink has applied it, or for the
//!   dead letters. The death of the writer or of a worker costs no write: another worker, or the
//!   same one after a restart, begins with the first unacknowledged write.
//! - **An error that says "not accepted" is certain.** The only other one is
//!   [`WriteError::Unknown`]: such a write takes its place in the order if and when it is accepted.
//! - **At least once.** If the acknowledgement of a batch is lost, with its worker or with Redis,
//!   the whole batch is applied again. [Sinks](Sink) must be idempotent, and are given an
//!   [id](Write::id) for it.
//! - **In order, per key.** The sink is given the writes of a key in the order in which they were
//!   accepted, over crashes, retries and changes of the worker: none is left out, none comes before
//!   an earlier one. A repetition begins at the oldest unacknowledged write and goes on from there
//!   in order. Acknowledged writes never come again. The exceptions are dead letters, whose key
//!   goes on without them.
//! - **Bounded.** At most [`max_unapplied`](WriteBehindBuilder::max_unapplied) writes wait in a
//!   partition. One more is answered [`WriteError::Full`].
//! - **One worker at a time** has a partition: it holds a lease, and all its effects on the stream
//!   are scripts that compare the lease. If a worker was stopped, and goes on when another one has
//!   the partition, it reads, acknowledges and dead-letters nothing.
//!
//! A lease cannot prevent this: a call of a sink that was under way when its worker was stopped
//! goes on with the worker, and its statements may reach the database after those of the next
//! worker. So may a statement that was cut off at
//! [`sink_timeout`](WriteBehindBuilder::sink_timeout). A sink that compares [ids](Write::id) with
//! the row, or [epochs](Batch::epoch), is not harmed by it. Nor is it harmed if Redis loses data: a
//! fail-over that loses acknowledgements brings back writes that were applied, in order.
//!
//! # When a sink fails
//!
//! A batch that failed is tried again after a [back-off](WriteBehindBuilder::backoff), its writes
//! one by one, so that a bad write does not fail the others. Later writes of the partition wait. A
//! write goes to the dead letters of its partition, with the error and the number of attempts, when
//! it has failed [`attempts`](WriteBehindBuilder::attempts) times or when the sink
//! [rejects](Sink::rejected) it. Then the partition goes on. An entry that cannot be read (foreign,
//! damaged, of another codec or schema version) goes there too. [Dead
//! letters](WriteBehind::dead_letters) can be [re-driven](WriteBehind::redrive) and
//! [discarded](WriteBehind::discard); [`max_dead_letters`](WriteBehindBuilder::max_dead_letters)
//! bounds them. A panic of the sink is a failure like any other. A write that ends the whole
//! process is not counted as failed: its partition goes from worker to worker.
//!
//! # With a cache
//!
//! A cache is not told of accepted writes. There are two ways to tell it. The sink invalidates the
//! keys after its commit: then a read is at most as old as the [lag](WriteBehind::lag) and what the
//! cache adds. Or the writer inserts the value with the write's [version](WriteId::version) when it
//! is accepted: then a load in between may bring the old value back.
//!
//! # In Redis
//!
//! Keys are divided by a hash into [`partitions`](WriteBehindBuilder::partitions). Each is a stream
//! `prefix:wb:{name:0}` with the consumer group `tidegate`. Its one consumer is the holder of
//! `…:lease`. Beside the stream are `…:state`, and `…:dead` if there are dead letters. Applied
//! entries are deleted, so the length of a stream is the number of unapplied writes. Partition 0
//! has the list of the living workers. In a cluster the keys of a partition are on one node, and
//! the partitions are spread over the nodes.
//!
//! A write is one command. A batch is one command: it acknowledges the batch before, renews the
//! lease, and reads. No command blocks. An idle worker waits for a message that the first write of
//! an empty partition publishes. `w` idle workers with `p` partitions send up to `4 · w + 3 · p`
//! commands per [`lease_ttl`](WriteBehindBuilder::lease_ttl), which for one worker with the
//! defaults is 2.8 a second. If the partitions cannot be shared out evenly, a worker with less than
//! its share sends one more for each partition of the others.
//!
//! A server needs `noeviction` or `volatile-*`; users with an ACL need the keys and the
//! channels `prefix:wb:*`, and the commands of scripts and streams.

pub use self::builder::WriteBehindBuilder;
pub use self::dead::DeadLetter;
pub use self::error::{OpenError, WriteError};
pub use self::event::{Event, Lag, Stats};
pub use self::handle::WriteBehind;
pub use self::sink::{Batch, Sink, Write, WriteId};

mod builder;
mod core;
mod dead;
mod error;
mod event;
mod handle;
mod lease;
mod partition_manager;
mod record;
mod sink;
mod stop_signal;
mod worker;
