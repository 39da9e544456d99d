//! tidegate
pub use builder::CacheBuilder;
pub use cache::Cache;
#[cfg(feature = "bincode")]
pub use codec::Bincode;
#[cfg(feature = "json")]
pub use codec::Json;
pub use codec::{Codec, CodecError};
pub use entry::{Entry, Freshness, Source};
pub use error::{BoxError, BuildError, Error, RemoteError};
#[cfg(feature = "redis")]
pub use fred;
pub use key::{CacheKey, KeyBuf};
#[cfg(feature = "redis")]
pub use l2::redis::{Redis, RedisBuilder};
pub use l2::{InProcess, SharedTier};
pub use loader::{CacheFor, Loaded, Loader, loader_fn};
pub use stats::Stats;

mod builder;
mod cache;
mod codec;
mod config;
mod engine;
mod entry;
mod error;
mod key;
mod l1;
mod l2;
mod loader;
mod stats;
mod ttl;
