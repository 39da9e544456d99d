//! Write-behind: writes are accepted into Redis now, and applied to the source of truth later, in
//! batches, in the order in which they were accepted.
//!
//! **What can be lost.** An accepted write is in Redis and nowhere else until it is applied, and what
//! Redis loses is lost, without anybody being told: everything after a crash of a server that has no
//! append-only file, the last second or so with `appendfsync everysec`, what a replica had not
//! received at an asynchronous fail-over, everything at a flush, and all writes of a partition where
//! Redis evicts its stream. Streams have no time to live, so the server must have `maxmemory-policy
//! noeviction` or one of `volatile-*`; with `allkeys-*` this module must not be used. There is no
//! option that waits for replicas (`WAIT` would hold up the connection that everything here shares);
//! `min-replicas-to-write` on the server refuses writes that nobody copies, and `appendfsync always`
//! is the only setting with which a crash of one server loses nothing. **And what is read meanwhile
//! is old**: until a write is applied, whoever reads the source of truth, a
//! [`Loader`](crate::Loader) among them, reads the value before it. Writes that must not be lost, or
//! must be read back at once, belong into the database.
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
//!   write is in its stream. It leaves it when a sink has applied it, or for the dead letters.
//!   Whoever dies in between, the writer or a worker, costs no write: another worker, or the same
//!   one when it is started again, begins with what was not acknowledged.
//! - **An error that says "not accepted" is certain.** The one that does not is
//!   [`WriteError::Unknown`]: such a write takes its place in the order when, and if, it is accepted.
//! - **At least once.** A batch whose acknowledgement was lost, with its worker or with Redis, is
//!   applied again as a whole. [Sinks](Sink) must be idempotent, and are given an [id](Write::id)
//!   for it.
//! - **In order, per key.** The sink is given the writes of a key in the order in which they were
//!   accepted, over crashes, retries and changes of the worker: none is left out, none comes before
//!   an earlier one. A repetition begins at the oldest write that was not acknowledged and goes on
//!   from there in order; what was acknowledged never comes again. The exceptions are dead letters,
//!   whose key goes on without them.
//! - **Bounded.** As many writes as [`max_unapplied`](WriteBehindBuilder::max_unapplied) says may
//!   wait in a partition; the next is answered [`WriteError::Full`].
//! - **One worker at a time** has a partition: it holds a lease, and everything that it does to the
//!   stream is a script that compares the lease. A worker that was stopped, and goes on when another
//!   one has the partition, reads, acknowledges and dead-letters nothing.
//!
//! What no lease can prevent: the call of a sink that was under way when its worker was stopped goes
//! on when it does, and its statements may reach the database after those of its successor. So may
//! a statement that was cut off at [`sink_timeout`](WriteBehindBuilder::sink_timeout). A sink that
//! compares [ids](Write::id) with what the row has, or [epochs](Batch::epoch), is not harmed by it.
//! The same holds where Redis does lose something: a fail-over that loses acknowledgements brings
//! back writes that were applied, in order.
//!
//! # When a sink fails
//!
//! A batch that failed is tried again after a [back-off](WriteBehindBuilder::backoff), its writes one
//! by one, so that one bad write does not take others with it. Nothing later of the partition is
//! tried meanwhile. A write that has failed [`attempts`](WriteBehindBuilder::attempts) times, or that
//! the sink [rejects](Sink::rejected), goes to the dead letters of its partition with the error and
//! the number of attempts, and the partition goes on. So does an entry that cannot be read: foreign,
//! damaged, of another codec or schema version. [Dead letters](WriteBehind::dead_letters) can be
//! [re-driven](WriteBehind::redrive) and [discarded](WriteBehind::discard);
//! [`max_dead_letters`](WriteBehindBuilder::max_dead_letters) bounds them. A panic of the sink is a
//! failure like any other. A write that ends the whole process is not counted: its partition goes
//! from worker to worker.
//!
//! # With a cache
//!
//! A cache is not told of accepted writes. Have the sink invalidate the keys after its commit, and
//! readers are at most as old as the [lag](WriteBehind::lag) and what the cache adds; or insert the
//! value with the write's [version](WriteId::version) when it is accepted, and accept that a load in
//! between brings the old one back.
//!
//! # In Redis
//!
//! Keys are divided by a hash into [`partitions`](WriteBehindBuilder::partitions). Each is a stream
//! `prefix:wb:{name:0}` with the consumer group `tidegate`, whose one consumer is whoever holds
//! `…:lease`; beside it are `…:state`, and `…:dead` once there are dead letters. What is applied is
//! deleted, so the length of a stream is what is unapplied. Partition 0 has the list of the living
//! workers. In a cluster the keys of a partition are on one node, and partitions are spread.
//!
//! A write is one command. A batch is one: it acknowledges the one before, renews the lease, and
//! reads. No command blocks. An idle worker waits for a message that the first write of an empty
//! partition publishes; `w` idle workers with `p` partitions cost up to `4 · w + 3 · p` commands per
//! [`lease_ttl`](WriteBehindBuilder::lease_ttl), with the defaults 2.8 a second for one worker. A
//! worker with less than its share, because the partitions cannot be shared out evenly, adds one for
//! each partition of the others.
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
