//! A cache-aside layer that a service wraps around its database calls: an in-process tier (L1,
//! moka) over a shared tier (L2, Redis or Valkey) over the source of truth, behind a [`Loader`].
//!
//! When many tasks in many processes want one key at once, the source sees one load. Once
//! [`invalidate`](Cache::invalidate) has returned, no value that was loaded before it is ever
//! stored again.
//!
//! ```
//! use std::time::Duration;
//! use serde::{Deserialize, Serialize};
//! use tidegate::{Cache, InProcess, Loaded, Loader};
//!
//! #[derive(Serialize, Deserialize)]
//! struct User { name: String }
//!
//! struct Users; // would hold a pool of database connections
//!
//! impl Loader for Users {
//!     type Key = u64;
//!     type Value = User;
//!     type Error = std::io::Error;
//!
//!     async fn load(&self, id: &u64) -> Result<Loaded<User>, std::io::Error> {
//!         // SELECT … WHERE id = …
//!         let row = (*id == 42).then(|| User { name: "Ada".into() });
//!         Ok(row.into()) // None becomes a negative entry
//!     }
//! }
//!
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let shared = InProcess::new(); // in production: Redis::connect("redis://…").await?
//! let users = Cache::builder("users", Users)
//!     .ttl(Duration::from_secs(300))
//!     .l2(shared)
//!     .build()?;
//!
//! let ada = users.get(&42).await?;
//! assert_eq!(ada.map(|user| user.name.clone()).as_deref(), Some("Ada"));
//! assert!(users.get(&43).await?.is_none());
//!
//! // UPDATE users SET … ; COMMIT; and only then:
//! users.invalidate(&42).await?;
//! # Ok(())
//! # }
//! ```
//!
//! # Contents
//!
//! - [`Loader`], [`Loaded`], [`loader_fn`]: your way to the source of truth.
//! - [`Cache`] and [`CacheBuilder`]: look-ups, changes, settings with their defaults. Changes are
//!   [`invalidate`](Cache::invalidate), [`expire`](Cache::expire), [`insert`](Cache::insert), and
//!   for many entries at once [`invalidate_tag`](Cache::invalidate_tag) and
//!   [`invalidate_all`](Cache::invalidate_all). With the write to the source in one:
//!   [`invalidate_after`](Cache::invalidate_after), [`write`](Cache::write),
//!   [`refresh_after`](Cache::refresh_after).
//! - [`get_many`](Cache::get_many), [`BatchLoader`], [`Batching`],
//!   [`get_stream`](Cache::get_stream) and [`warm`](Cache::warm): many keys at once;
//!   [`guide::batches`].
//! - [`Read`] and [`Freshness`]: what one look-up may be answered, and what it was.
//! - [`CacheKey`]: what names an entry, and how it reads in Redis.
//! - [`Redis`] and [`InProcess`]: the shared tiers. [`Codec`]: how values get there.
//! - [`Error`], [`RemoteError`], [`BuildError`]: who has to act on what.
//! - [`Stats`]: counters, with their counting rule. [`Health`] and [`Event`]: what operators want
//!   to know. [`Redis::server_stats`]: how the servers stand. [`Entry::cache_status`]: how a
//!   look-up was answered, for an HTTP response. Metrics and traces: [`guide::telemetry`].
//! - [`guide::consistency`]: who can see an old value, for how long, and what moves it.
//! - [`guide::staleness`]: what is answered past its TTL, who loads the next value, recipes.
//! - [`guide::operations`]: what happens in which trouble, what shows, rights, memory.
//! - [`guide::performance`]: what a look-up costs, and why.
//! - [`guide::scale`]: what a process, a fleet and its server need, up to where one server is not
//!   enough.
//! - [`guide::threat_model`]: who can do what to a service through its cache, and what helps.
//! - [`guide::architecture`]: how it works, with the read path as a picture.
//! - [`guide::glossary`]: the words, each in two sentences.
//! - [`guide::find_your_way`]: for contributors, twenty questions and where the code is.
//! - [`guide::migration`]: from `GET` and `SETEX` by hand, from `cached`, from moka; the day of the
//!   switch and the way back.
//! - [`guide::alternatives`]: what else there is, measured, and when to take it.
//!
//! # What it promises
//!
//! - **One load per process**: callers of one key join the running load and share its value or its
//!   error.
//! - **One load per fleet**: this holds while the shared tier answers and the loading process
//!   lives. A process that dies is replaced within one [`lease_ttl`](CacheBuilder::lease_ttl).
//! - **No stale fill**: after `invalidate` returned `Ok`, no value whose load began before is
//!   stored, in L2 or in this process's L1. In other processes' L1 it is gone as soon as one
//!   message is processed. A `get` that begins after never joins a load that began before. The same
//!   holds for `insert` and `expire`. It also holds for `invalidate_tag` and `invalidate_all`,
//!   whose cost does not depend on the number of entries.
//! - **Bounded staleness**: no answer from L1 misses an invalidation that is older than the
//!   [`channel_lease`](CacheBuilder::channel_lease), 2 seconds by default. This holds whatever
//!   happens to connections, clocks or this process, because L1 is used only while its channel has
//!   proven itself. [`invalidate_everywhere`](Cache::invalidate_everywhere) returns when no process
//!   can answer the old value any more. Where Redis itself cannot be reached,
//!   [`degraded_l1_ttl`](CacheBuilder::degraded_l1_ttl) is added. The TTL bounds what an
//!   asynchronous fail-over of Redis can lose. [`guide::consistency`] has every case, clusters
//!   among them.
//! - **An invalidation is not forgotten**: an invalidation that Redis did not confirm is an error,
//!   and is repeated until Redis confirms it. Meanwhile this process does not read the key from
//!   there.
//! - **Redis trouble is not request trouble**: no `get` fails because of Redis, or waits for it
//!   longer than its [`timeout`](crate::RedisBuilder::timeout). A server that stays silent receives
//!   no more commands ([`breaker`](crate::RedisBuilder::breaker)) until probes find it again.
//! - **Callers are independent**: a caller that is dropped at any await point neither ends nor
//!   repeats a load. A panic in a loader is an error for its callers. A load that hangs is cut off.
//! - **No caller waits for a hot key**: hits late in the TTL begin the next load
//!   ([`refresh_ahead`](CacheBuilder::refresh_ahead)), one in the fleet, and the stored value is
//!   answered until it ends. Past the TTL an entry is answered only within
//!   [`stale_while_revalidate`](CacheBuilder::stale_while_revalidate) and
//!   [`stale_if_error`](CacheBuilder::stale_if_error), both zero by default. It is never answered
//!   after an invalidation, and never to [`Read::fresh`].
//! - **The source is protected**: [`max_concurrent_loads`](CacheBuilder::max_concurrent_loads)
//!   bounds loads. A failed load is not repeated for
//!   [`error_backoff`](CacheBuilder::error_backoff), in the whole fleet, and for longer the more
//!   often it fails.
//! - **Bad bytes are a miss**: a record that is corrupt, foreign, too large or of another version
//!   is counted and replaced.
//! - **Absence is a value**: an absence is kept, with its own TTL and in its own budget.
//! - **Look-ups are cheap**: an L1 hit allocates nothing, takes no lock of this crate and does no
//!   I/O. The exceptions are one hit in many that begins a refresh, and one that moves its entry to
//!   a hot slot. An L2 hit is one command. A miss is three.
//!
//! # What it is not for
//!
//! - **A store**: every entry may be gone at any moment. Sessions that exist nowhere else belong in
//!   a database.
//! - **Strict consistency**: another process may answer the old value for the moment that a message
//!   takes. Balances that must be exact are read from the database.
//! - **Write order**: two `insert`s of one key race as two writers to any cache do. Invalidate
//!   after the commit instead, or give the rows [versions](Loaded::version).
//! - **Runtimes other than tokio.**
//!
//! # Features
//!
//! All features are additive.
//!
//! | feature | default | what it brings |
//! |---|---|---|
//! | `redis` | yes | [`Redis`], through the crate fred; without it the tree is less than half as large |
//! | `bincode` | yes | [`Bincode`], the default codec; the crate bincode is no longer maintained (RUSTSEC-2025-0141) |
//! | `json` | | [`Json`], through serde_json |
//! | `derive` | | `#[derive(CacheKey)]`; a procedural macro, with crates that serde's derive brings anyway |
//! | `inspect` | | `inspect`: the contents of Redis, parsed, for tools; the command `tidegate-inspect` is one; no crates beyond `redis` |
//! | `sealed` | | `Sealed`: values in Redis are encrypted, authenticated and bound to their key; pure Rust, through chacha20poly1305 |
//! | `metrics` | | counters, gauges and histograms through the facade crate metrics; nothing on an L1 hit |
//! | `tracing` | | spans of loads and of operations of the shared tier, events, through the crate tracing; nothing on an L1 hit |
//! | `uuid` | | [`CacheKey`] for `uuid::Uuid` |
//! | `tls` | | `rediss://` and `Tls`, through rustls with ring and the system's CAs; ring needs a C compiler |
//! | `write-behind` | | `write_behind`: writes that Redis accepts now and the source of truth gets later; its page says what can be lost; no crates beyond `redis` |
//! | `testing` | | `testing`: an embedded tier that fails as a Redis does, and a loader that fails on command, for the tests of your service; no crates |
//!
//! Their cost in crates of the tree on Linux (`cargo tree -e normal`, this crate included):
//!
//! | features | crates |
//! |---|---|
//! | none | 47 |
//! | `redis` | 66 more, most of them fred's, some 30 of those for its URLs |
//! | `bincode` | 2 more |
//! | `json` | 4 more, 3 beside `redis` |
//! | `tls` | 11 more than `redis` |
//! | `sealed` | 12 more |
//! | `metrics`, `tracing`, `derive` | 2, 3, 1 more |
//! | `uuid`, `inspect`, `write-behind`, `testing` | none |
//! | the default | 115 |

#![cfg_attr(docsrs, feature(doc_cfg))]

pub use batch::Batching;
pub use builder::CacheBuilder;
pub use cache::Cache;
#[cfg(feature = "bincode")]
#[cfg_attr(docsrs, doc(cfg(feature = "bincode")))]
pub use codec::Bincode;
#[cfg(feature = "json")]
#[cfg_attr(docsrs, doc(cfg(feature = "json")))]
pub use codec::Json;
pub use codec::{Codec, CodecError, RecordContext};
#[cfg(feature = "sealed")]
#[cfg_attr(docsrs, doc(cfg(feature = "sealed")))]
pub use codec::{Sealed, SealedBuilder};
pub use entry::{Entry, Freshness, Read, Source};
pub use error::{BoxError, BuildError, Error, RemoteError, WriteError};
#[cfg(feature = "redis")]
#[cfg_attr(docsrs, doc(cfg(feature = "redis")))]
#[doc(no_inline)]
pub use fred;
pub use health::{Channel, Event, Health};
pub use key::{CacheKey, KeyBuf};
#[cfg(feature = "tls")]
#[cfg_attr(docsrs, doc(cfg(feature = "tls")))]
pub use l2::redis::Tls;
#[cfg(feature = "redis")]
#[cfg_attr(docsrs, doc(cfg(feature = "redis")))]
pub use l2::redis::{Breaker, NodeStats, Redis, RedisBuilder, Role, ServerStats};
pub use l2::{InProcess, SharedTier};
pub use loader::{BatchLoader, CacheFor, Loaded, Loader, loader_fn};
pub use many::{GetStream, Warm, WarmProgress};
pub use stats::Stats;
#[cfg(feature = "derive")]
#[cfg_attr(docsrs, doc(cfg(feature = "derive")))]
#[doc(no_inline)]
pub use tidegate_derive::CacheKey;

mod answer;
mod batch;
mod builder;
mod cache;
mod cache_status;
mod codec;
mod coherence;
mod config;
mod engine;
mod entry;
mod erased;
mod error;
#[cfg(fuzzing)]
#[doc(hidden)]
pub mod fuzzing;
pub mod guide;
mod health;
#[cfg(feature = "inspect")]
#[cfg_attr(docsrs, doc(cfg(feature = "inspect")))]
pub mod inspect;
mod key;
mod l1;
mod l2;
mod lifetime;
mod loader;
mod many;
mod protocol;
mod random;
mod shell;
mod stats;
mod telemetry;
#[cfg(feature = "testing")]
#[cfg_attr(docsrs, doc(cfg(feature = "testing")))]
pub mod testing;
mod time_base;
mod ttl;
#[cfg(feature = "write-behind")]
#[cfg_attr(docsrs, doc(cfg(feature = "write-behind")))]
pub mod write_behind;

/// The README, compiled: its code must work.
#[cfg(all(doctest, feature = "redis", feature = "bincode", feature = "derive"))]
#[doc = include_str!("../README.md")]
struct Readme;

/// Properties that users rely on without naming them: handles cross threads, futures are `Send`.
#[cfg(test)]
mod assertions {
    use super::*;

    fn handle<T: Send + Sync + Clone + std::fmt::Debug + Unpin + 'static>() {}
    fn error<T: std::error::Error + Send + Sync + 'static>() {}
    fn future<T: Send>(_: &T) {}

    #[test]
    fn public_types_can_be_shared_and_public_futures_sent() {
        // A value that is neither `Clone` nor `Debug`.
        struct Opaque;
        struct Keys;
        impl futures_core::Stream for Keys {
            type Item = String;
            fn poll_next(
                self: std::pin::Pin<&mut Self>,
                _: &mut std::task::Context<'_>,
            ) -> std::task::Poll<Option<String>> {
                std::task::Poll::Ready(None)
            }
        }
        handle::<Cache<String, u8, BoxError>>();
        handle::<InProcess>();
        handle::<Stats>();
        handle::<Entry<u8>>();
        #[cfg(feature = "redis")]
        handle::<Redis>();
        error::<Error<BoxError>>();
        error::<Error>();
        error::<RemoteError>();
        error::<WriteError<BoxError>>();
        error::<BuildError>();
        error::<CodecError>();
        let load = loader_fn(|_: String| async { Ok::<_, BoxError>(Loaded::found(Opaque)) });
        let cache = Cache::builder("opaque", load)
            .build()
            .expect("sound settings");
        future(&cache.get("key"));
        future(&cache.get_entry("key"));
        future(&cache.insert("key".to_owned(), Opaque));
        future(&cache.invalidate("key"));
        future(&cache.invalidate_many(&[]));
        let write = async { Ok::<_, BoxError>(Loaded::found(Opaque)) };
        future(&cache.write("key".to_owned(), write));
        future(&cache.get_many(&[]));
        future(&cache.insert_many([("key".to_owned(), Opaque)]));
        future(&cache.warm([]).into_future());
        future(&cache.get_stream(Keys));
        future(&cache.refresh("key"));
        future(&cache.close());
        #[cfg(feature = "redis")]
        future(&Redis::connect("redis://127.0.0.1:1"));
    }
}
