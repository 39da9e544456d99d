//! The shared tier on Redis or Valkey. This folder is the only place that talks to fred.
//!
//! From the bottom up: settings (`builder`, `url`, `tls`); state (`shared`, `breaker`, `clock`,
//! `bus_connections`); permissions (`acl`); background tasks (`bus`, `bus_cluster`, `clock_sync`,
//! `breaker_probe`); the handle, which starts them (`handle`); commands and the protocol
//! (`commands`, `mget`, `operations`, `queue`).

mod acl;
mod breaker;
mod breaker_probe;
mod builder;
mod bus;
mod bus_cluster;
mod bus_connections;
mod client_config;
mod clock;
mod clock_sync;
mod cluster_slots;
mod commands;
mod credentials;
mod errors;
mod handle;
mod mget;
mod mget_batcher;
mod operations;
#[cfg(feature = "write-behind")]
pub(crate) mod queue;
mod reconnect_policy;
mod scripts;
mod server;
mod shared;
mod subscription;
#[cfg(feature = "tls")]
mod tls;
mod url;

pub use self::breaker::Breaker;
pub use self::builder::RedisBuilder;
pub use self::handle::Redis;
#[cfg(feature = "inspect")]
pub(crate) use self::operations::{tag_member, tags_key};
pub use self::server::{NodeStats, Role, ServerStats};
#[cfg(feature = "tls")]
pub use self::tls::Tls;
