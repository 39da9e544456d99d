//! The protocol: the records, messages and requests that go over the wire between processes.

#[cfg(test)]
#[cfg(all(feature = "bincode", feature = "json"))]
mod golden;
pub(crate) mod message;
pub(crate) mod record;
pub(crate) mod request;
