//! What happens behind a handle. The architecture page of the crate describes it.
//!
//! | file | what it is |
//! |---|---|
//! | `coalesce` | a look-up joins the flight of its key, or begins one |
//! | `get_many`, `warm` | look-ups of many keys |
//! | `fetch` | the read path behind L1, from top to bottom |
//! | `regenerate`, `lease` | a key is loaded, and one process of the fleet does it |
//! | `refresh` | an entry is replaced while it is still answered |
//! | `transcode` | records become entries, and values become records |
//! | `memory` | L1 as the engine uses it |
//! | `load`, `batch` | the loader runs, for one key or for many |
//! | `flight`, `flight_task`, `completion` | one read or load, its callers, and its end |
//! | `change` | invalidations, inserts, writes, and what other processes say |
//! | `heartbeat`, `remote` | the channel's proof, and the shared tier as the engine sees it |
//! | `core`, `report`, `close`, `tasks` | the state, what it says of itself, its end |

mod batch;
pub(crate) mod change;
mod close;
mod coalesce;
mod completion;
mod core;
mod fetch;
mod flight;
mod flight_task;
pub(crate) mod get_many;
mod heartbeat;
mod lease;
mod load;
mod memory;
mod negative_budget;
mod refresh;
mod regenerate;
mod remote;
mod report;
mod tasks;
mod transcode;
mod warm;

#[cfg(test)]
#[cfg(feature = "bincode")]
mod tests;

pub(crate) use self::coalesce::{Admission, FlightWait};
pub(crate) use self::core::{Batches, Engine, EngineParts};
