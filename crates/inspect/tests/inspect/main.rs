//! `tidegate-inspect` as a process, beside caches at work on a real `redis-server`.

mod changes;
mod looks;
mod secrets;
#[path = "../../../../benches/support/server.rs"]
mod server;
mod support;
mod watch;
