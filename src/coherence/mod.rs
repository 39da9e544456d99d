//! Why no stale value is answered: the fence, watermarks, the sequence of messages, the channel
//! lease, and repairs.

pub(crate) mod channel;
pub(crate) mod fence;
pub(crate) mod repairs;
pub(crate) mod sequence;
pub(crate) mod watermarks;
