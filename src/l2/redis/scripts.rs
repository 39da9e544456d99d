//! The scripts of the protocol. Each touches one key, or two of one slot, so they work in a
//! cluster.

use std::sync::LazyLock;

/// A script, and the hash by which `EVALSHA` names it.
#[derive(Debug)]
pub(super) struct Script {
    pub(super) body: &'static str,
    pub(super) sha: String,
}

macro_rules! scripts {
    ($($name:ident $file:literal)*) => {$(
        pub(super) static $name: LazyLock<Script> = LazyLock::new(|| {
            let body = include_str!(concat!("lua/", $file));
            Script { body, sha: fred::util::sha1_hash(body) }
        });
    )*};
}
scripts! {
    ACQUIRE "acquire.lua"
    REPLACE "replace.lua"
    REFILL "refill.lua"
    RENEW "renew.lua"
    RELEASE "release.lua"
    INVALIDATE "invalidate.lua"
    INSERT "insert.lua"
    EXPIRE "expire.lua"
    MARKS "marks.lua"
    PROBE "probe.lua"
}
