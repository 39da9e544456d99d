//! The permissions of the user of Redis: how they are checked, and how denials are described.

mod check;
pub(super) mod denials;
mod missing;

pub(super) use self::check::{RECHECK_INTERVAL, watch};
