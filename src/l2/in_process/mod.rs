//! The embedded tier: the protocol over a map in this process.

#[cfg(feature = "testing")]
mod fault_state;
#[cfg(feature = "testing")]
pub(crate) mod faults;
#[cfg(all(test, feature = "bincode"))]
mod gates;
mod operations;
mod store;
#[cfg(all(test, feature = "bincode"))]
mod testing;
mod tier;

#[cfg(all(test, feature = "bincode"))]
pub(crate) use self::gates::{Gate, When};
pub use self::tier::InProcess;
