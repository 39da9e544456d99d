//! What the user of Redis may do (its access control list), and what it is told when it may not.

mod check;
pub(super) mod denials;
mod missing;

pub(super) use self::check::{RECHECK_INTERVAL, watch};
