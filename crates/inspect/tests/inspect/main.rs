//! Tests of the command `tidegate-inspect`: it runs as a process, beside caches that use the same
//! `redis-server`.

mod invalidate;
mod queries;
mod secrets;
#[path = "../../../../benches/support/server.rs"]
mod server;
mod support;
mod watch;
