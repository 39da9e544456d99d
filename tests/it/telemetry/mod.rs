//! What operators see: metrics, traces, what servers say of themselves.

mod cache_status;
#[cfg(feature = "metrics")]
mod metrics;
mod server;
#[cfg(feature = "tracing")]
mod traces;
