//! Prose: pages without code to call.

#[doc = include_str!("architecture.md")]
pub mod architecture {}

#[doc = include_str!("find_your_way.md")]
pub mod find_your_way {}

#[doc = include_str!("consistency.md")]
pub mod consistency {}

#[doc = include_str!("staleness.md")]
pub mod staleness {}

#[doc = include_str!("operations.md")]
pub mod operations {}

#[doc = include_str!("performance.md")]
pub mod performance {}

#[doc = include_str!("scale.md")]
pub mod scale {}

#[doc = include_str!("telemetry.md")]
pub mod telemetry {}

#[doc = include_str!("batches.md")]
pub mod batches {}

#[doc = include_str!("threat_model.md")]
pub mod threat_model {}

#[doc = include_str!("migration.md")]
pub mod migration {}

#[doc = include_str!("alternatives.md")]
pub mod alternatives {}
