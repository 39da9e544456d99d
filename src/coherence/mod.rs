//! Coherence: the parts that keep stale values from being answered.
//!
//! | file | what it holds |
//! |---|---|
//! | `fence` | makes an entry unusable that was stored before an invalidation of its key |
//! | `watermarks` | makes entries unusable that were loaded before an invalidation of everything or of a tag |
//! | `channel` | says whether this process receives every invalidation |
//! | `sequence` | finds lost messages by their numbers |
//! | `repairs` | lists the invalidations that L2 has not confirmed |

pub(crate) mod channel;
pub(crate) mod fence;
pub(crate) mod repairs;
pub(crate) mod sequence;
pub(crate) mod watermarks;
