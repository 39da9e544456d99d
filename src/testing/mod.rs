//! Tests of a service whose cache, or whose source, is in trouble: in milliseconds, without a
//! server.
//!
//! [`InProcess::with_faults`] makes an embedded tier and a handle, [`Faults`]. The handle makes
//! operations of the tier fail, hang, come late or lose their answers, and cuts its invalidation
//! bus. [`Scripted`] wraps your loader: it counts loads, holds them up, and makes them fail. Both
//! follow tokio's clock, so a test that pauses it (`start_paused`, with tokio's feature
//! `test-util`) waits for no timeout.
//!
//! The feature `testing` belongs among the dev-dependencies:
//!
//! ```toml
//! [dev-dependencies]
//! tidegate = { version = "0.1", features = ["testing"] }
//! tokio = { version = "1", features = ["macros", "rt", "test-util"] }
//! ```
//!
//! A handler answers although the cache hangs, and waits no longer than a few timeouts:
//!
//! ```
//! use std::time::Duration;
//! use tidegate::testing::Scripted;
//! use tidegate::{BoxError, Cache, InProcess, loader_fn};
//! use tokio::time::Instant;
//!
//! async fn handler(users: &Cache<u64, String>, id: u64) -> String {
//!     match users.get(&id).await {
//!         Ok(Some(user)) => format!("200 {user}"),
//!         Ok(None) => "404".to_owned(),
//!         Err(_) => "503".to_owned(),
//!     }
//! }
//!
//! # #[tokio::main(flavor = "current_thread", start_paused = true)]
//! # async fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let (tier, faults) = InProcess::with_faults();
//! let load = loader_fn(|id: u64| async move { Ok::<_, BoxError>(format!("user {id}")) });
//! let source = Scripted::new(load);
//! let users = Cache::builder("users", source.clone()).l2(tier).build()?;
//!
//! faults.go_silent();
//! let asked = Instant::now();
//! assert_eq!(handler(&users, 7).await, "200 user 7");
//! assert!(asked.elapsed() <= Duration::from_millis(300));
//! assert_eq!(source.loads(), 1);
//! # Ok(())
//! # }
//! ```
//!
//! A stale value is served while the cache and the source are both down:
//!
//! ```
//! use std::time::Duration;
//! use tidegate::testing::Scripted;
//! use tidegate::{BoxError, Cache, Freshness, InProcess, loader_fn};
//!
//! # #[tokio::main(flavor = "current_thread", start_paused = true)]
//! # async fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let (tier, faults) = InProcess::with_faults();
//! let load = loader_fn(|id: u64| async move { Ok::<_, BoxError>(format!("user {id}")) });
//! let source = Scripted::new(load);
//! let users: Cache<u64, String> = Cache::builder("users", source.clone())
//!     .ttl(Duration::from_secs(60))
//!     .stale_if_error(Duration::from_secs(3600))
//!     .degraded_l1_ttl(Duration::from_secs(3600)) // how long L1 may answer while L2 cannot be reached
//!     .l2(tier)
//!     .build()?;
//! users.get(&7).await?;
//!
//! faults.go_down();
//! source.fail(|| BoxError::new("connection refused"));
//! tokio::time::advance(Duration::from_secs(600)).await;
//! let entry = users.get_entry(&7).await?.ok_or("an entry")?;
//! assert_eq!(**entry.value(), "user 7");
//! assert_eq!(entry.freshness(), Freshness::StaleOnError);
//!
//! faults.recover();
//! source.work();
//! tokio::time::advance(Duration::from_secs(10)).await;
//! let entry = users.get_entry(&7).await?.ok_or("an entry")?;
//! assert_eq!(entry.freshness(), Freshness::Fresh);
//! # Ok(())
//! # }
//! ```
//!
//! An invalidation whose answer is lost is an error, although it was carried out. The cache repeats
//! it:
//!
//! ```
//! use std::time::Duration;
//! use tidegate::testing::{Fault, Operations, Scripted};
//! use tidegate::{BoxError, Cache, InProcess, loader_fn};
//!
//! # #[tokio::main(flavor = "current_thread", start_paused = true)]
//! # async fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let (tier, faults) = InProcess::with_faults();
//! let load = loader_fn(|id: u64| async move { Ok::<_, BoxError>(format!("user {id}")) });
//! let source = Scripted::new(load);
//! let users: Cache<u64, String> = Cache::builder("users", source.clone()).l2(tier).build()?;
//! users.get(&7).await?;
//!
//! faults.next(1, Operations::Changes, Fault::LoseReply);
//! let result = users.invalidate(&7).await;
//! assert!(result.is_err_and(|error| error.is_timeout()));
//! users.get(&7).await?;
//! assert_eq!(source.loads(), 2, "nothing old is answered here");
//!
//! tokio::time::sleep(Duration::from_secs(1)).await;
//! assert_eq!(users.health().pending_repairs, 0);
//! # Ok(())
//! # }
//! ```
//!
//! `examples/testing.rs` is a service with its tests.
//!
//! The tier imitates the protocol of a [`Redis`](crate::Redis) handle. It does not imitate the
//! limits of a server, a cluster, a connection pool, or the breaker.

pub use self::scripted::{Held, Scripted};
pub use crate::l2::faults::{Fault, Faults, Operations};

mod scripted;

#[cfg(all(test, feature = "bincode"))]
mod tests;

#[cfg(doc)]
use crate::InProcess;
