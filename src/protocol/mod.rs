//! The protocol between processes: records, messages and requests, as they go over the wire.

#[cfg(test)]
#[cfg(all(feature = "bincode", feature = "json"))]
mod golden;
pub(crate) mod message;
pub(crate) mod record;
pub(crate) mod request;
