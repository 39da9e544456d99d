//! The promises of the crate, on the embedded tier and on real servers.

#[cfg(test)]
mod bytes;
#[cfg(test)]
mod coherence;
#[cfg(test)]
mod commands;
#[cfg(test)]
mod contract;
#[cfg(test)]
mod fence;
#[cfg(test)]
mod handles;
#[cfg(test)]
mod marks;
#[cfg(test)]
mod processes;
#[cfg(test)]
mod repairs;
#[cfg(test)]
mod support;
#[cfg(test)]
mod trouble;
