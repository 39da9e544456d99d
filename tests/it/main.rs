//! The promises of the crate, on the embedded tier and on real servers.

#[cfg(test)]
mod contract;
#[cfg(test)]
mod support;
