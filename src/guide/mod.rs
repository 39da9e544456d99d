//! Prose: pages without code to call.

#[doc = include_str!("architecture.md")]
pub mod architecture {}
