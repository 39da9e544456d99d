//! Integration tests of the promises, on the embedded tier and on real servers.

#[cfg(test)]
mod access;
#[cfg(test)]
mod acl;
#[cfg(test)]
mod breaker;
mod bytes;
#[cfg(test)]
mod cluster;
#[cfg(test)]
mod coherence;
#[cfg(test)]
mod commands;
#[cfg(test)]
mod contract;
#[cfg(test)]
mod failover;
#[cfg(test)]
mod fence;
#[cfg(test)]
mod handles;
#[cfg(test)]
mod hostile;
#[cfg(test)]
mod many;
#[cfg(test)]
mod processes;
#[cfg(test)]
mod reconnect;
mod repairs;
#[cfg(test)]
#[cfg(feature = "sealed")]
mod sealed;
#[cfg(test)]
mod secrets;
#[cfg(test)]
mod sentinel;
#[cfg(test)]
mod staleness;
#[cfg(test)]
mod support;
mod telemetry;
#[cfg(test)]
#[cfg(feature = "tls")]
mod tls;
#[cfg(test)]
mod trouble;
#[cfg(test)]
mod trouble_under_load;
#[cfg(test)]
mod watermarks;
#[cfg(test)]
#[cfg(feature = "write-behind")]
mod write_behind;
