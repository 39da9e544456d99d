//! The contenders, each in the configuration of its documentation.

use std::sync::OnceLock;

use crate::peer::{BoxError, Opening, Setup};

mod amalgam;
mod by_hand;
mod cached;
mod cachekit;
mod cachet;
mod client;
mod hitbox;
mod limits;
mod multi_tier;
mod tidegate;

pub(crate) use self::client::connect;

/// One row of the tables.
#[derive(Clone, Copy)]
pub(crate) struct Contender {
    /// Its name on the command line of a child.
    pub(crate) slug: &'static str,
    pub(crate) name: &'static str,
    pub(crate) open: fn(Setup) -> Opening,
    /// It answers from the memory of the process.
    pub(crate) l1: bool,
    /// It answers from Redis.
    pub(crate) l2: bool,
    /// One process loads for all others.
    pub(crate) lease: bool,
    /// Invalidations reach other processes.
    pub(crate) bus: bool,
    /// Whether it is a limit, a cache, or a variant for one table.
    pub(crate) kind: Kind,
}

#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    Limit,
    Cache,
    /// A variant for the table of the outage only.
    Outage,
}

const CACHE: Contender = Contender {
    slug: "",
    name: "",
    open: limits::moka,
    l1: true,
    l2: true,
    lease: false,
    bus: false,
    kind: Kind::Cache,
};

const ALL: [Contender; 13] = [
    Contender {
        slug: "moka",
        name: "*`moka::sync::Cache::get`*",
        open: limits::moka,
        l2: false,
        kind: Kind::Limit,
        ..CACHE
    },
    Contender {
        slug: "quick-cache",
        name: "*`quick_cache::sync::Cache::get`*",
        open: limits::quick_cache,
        l2: false,
        kind: Kind::Limit,
        ..CACHE
    },
    Contender {
        slug: "fred",
        name: "*fred alone*",
        open: limits::fred,
        l1: false,
        kind: Kind::Limit,
        ..CACHE
    },
    Contender {
        slug: "tidegate",
        name: "**tidegate**",
        open: tidegate::open,
        lease: true,
        bus: true,
        ..CACHE
    },
    Contender {
        slug: "amalgam",
        name: "amalgam-cache",
        open: amalgam::open,
        bus: true,
        ..CACHE
    },
    Contender {
        slug: "amalgam-lock",
        name: "amalgam-cache, lock on",
        open: amalgam::open_with_lock,
        l1: false,
        lease: true,
        bus: true,
        ..CACHE
    },
    Contender {
        slug: "amalgam-default",
        name: "amalgam-cache, breaker off (its default)",
        open: amalgam::open_without_breaker,
        l1: false,
        kind: Kind::Outage,
        ..CACHE
    },
    Contender {
        slug: "cachekit",
        name: "cachekit-rs",
        open: cachekit::open,
        lease: true,
        ..CACHE
    },
    Contender {
        slug: "cachet",
        name: "cachet + a tier of ours",
        open: cachet::open,
        ..CACHE
    },
    Contender {
        slug: "multi-tier",
        name: "multi-tier-cache",
        open: multi_tier::open,
        bus: true,
        ..CACHE
    },
    Contender {
        slug: "cached",
        name: "cached",
        open: cached::open,
        ..CACHE
    },
    Contender {
        slug: "hitbox",
        name: "hitbox",
        open: hitbox::open,
        ..CACHE
    },
    Contender {
        slug: "by-hand",
        name: "by hand",
        open: by_hand::open,
        ..CACHE
    },
];

static ONLY: OnceLock<Vec<String>> = OnceLock::new();

/// Restricts the run to the limits and to these contenders.
pub(crate) fn only(slugs: &str) -> Result<(), BoxError> {
    let slugs: Vec<String> = slugs.split(',').map(str::to_owned).collect();
    if let Some(slug) = slugs.iter().find(|slug| named(slug).is_none()) {
        let all = ALL.map(|one| one.slug).join(", ");
        return Err(format!("there is no '{slug}'; there are: {all}").into());
    }
    ONLY.set(slugs).map_err(|_| "--only is there twice".into())
}

/// The contenders for which `which` holds, in the order of the tables.
pub(crate) fn contenders_where(which: impl Fn(&Contender) -> bool) -> Vec<Contender> {
    let wanted = |one: &Contender| {
        let only = ONLY.get();
        one.kind == Kind::Limit
            || only.is_none_or(|slugs| slugs.iter().any(|slug| slug == one.slug))
    };
    let all = ALL.into_iter().filter(wanted);
    all.filter(|one| which(one)).collect()
}

/// The caches, without the limits.
pub(crate) fn caches() -> Vec<Contender> {
    contenders_where(|one| one.kind == Kind::Cache)
}

pub(crate) fn named(slug: &str) -> Option<Contender> {
    ALL.into_iter().find(|one| one.slug == slug)
}
