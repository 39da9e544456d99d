//! Telemetry: metrics, traces, `Cache-Status`, and statistics of servers.

mod cache_status;
#[cfg(feature = "metrics")]
mod metrics;
mod server;
#[cfg(feature = "tracing")]
mod traces;
