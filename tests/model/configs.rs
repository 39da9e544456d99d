//! The configurations that are explored. Several small ones reach more than one large one.

use crate::state::{Config, Faults, WriteKind};

const NO_FAULTS: Faults = Faults {
    expiries: 0,
    agings: 0,
    evictions: 0,
    crashes: 0,
    cuts: 0,
    duplicates: 0,
    without_lease: 0,
    change_fails: 0,
    failures: 0,
    unknown_fills: 0,
    fail_overs: 0,
};

/// The base of the others: two processes, nothing in L2, no faults.
const PLAIN: Config = Config {
    name: "",
    warm: false,
    processes: 2,
    gets: [0; 3],
    refreshes: [0; 3],
    writes: &[],
    faults: NO_FAULTS,
    lease: 0,
    ticks: 0,
};

pub(crate) const ONE_PROCESS: Config = Config {
    name: "one process",
    processes: 1,
    gets: [3, 0, 0],
    writes: &[(0, WriteKind::Invalidate), (0, WriteKind::Invalidate)],
    faults: Faults {
        expiries: 1,
        evictions: 1,
        failures: 1,
        unknown_fills: 1,
        fail_overs: 1,
        ..NO_FAULTS
    },
    ..PLAIN
};

pub(crate) const TWO_PROCESSES: Config = Config {
    name: "two processes",
    warm: true,
    gets: [2, 2, 0],
    writes: &[(0, WriteKind::Invalidate)],
    faults: Faults {
        evictions: 1,
        duplicates: 1,
        ..NO_FAULTS
    },
    ..PLAIN
};

pub(crate) const TWO_WRITERS: Config = Config {
    name: "two writers",
    gets: [1, 1, 0],
    writes: &[(0, WriteKind::Invalidate), (1, WriteKind::Invalidate)],
    faults: Faults {
        expiries: 1,
        without_lease: 1,
        evictions: 1,
        duplicates: 1,
        ..NO_FAULTS
    },
    ..PLAIN
};

pub(crate) const THREE_PROCESSES: Config = Config {
    name: "three processes",
    processes: 3,
    gets: [1, 1, 1],
    writes: &[(0, WriteKind::Invalidate)],
    faults: Faults {
        expiries: 1,
        ..NO_FAULTS
    },
    ..PLAIN
};

pub(crate) const CRASH: Config = Config {
    name: "a crash",
    gets: [2, 1, 0],
    writes: &[(0, WriteKind::Invalidate)],
    faults: Faults {
        crashes: 1,
        expiries: 1,
        ..NO_FAULTS
    },
    ..PLAIN
};

pub(crate) const CUT: Config = Config {
    name: "a lost connection",
    warm: true,
    gets: [1, 2, 0],
    writes: &[(0, WriteKind::Invalidate)],
    faults: Faults {
        cuts: 1,
        evictions: 1,
        ..NO_FAULTS
    },
    ..PLAIN
};

pub(crate) const WAITERS: Config = Config {
    name: "waiters without messages",
    gets: [2, 1, 0],
    faults: Faults {
        crashes: 1,
        cuts: 1,
        expiries: 1,
        failures: 1,
        ..NO_FAULTS
    },
    ..PLAIN
};

pub(crate) const REPAIR: Config = Config {
    name: "an invalidation that fails",
    warm: true,
    gets: [1, 1, 0],
    writes: &[(0, WriteKind::Invalidate), (0, WriteKind::Invalidate)],
    faults: Faults {
        change_fails: 1,
        ..NO_FAULTS
    },
    ..PLAIN
};

pub(crate) const REFRESH: Config = Config {
    name: "a refresh",
    warm: true,
    gets: [1, 1, 0],
    refreshes: [1, 0, 0],
    writes: &[(0, WriteKind::Invalidate)],
    faults: Faults {
        agings: 1,
        evictions: 1,
        ..NO_FAULTS
    },
    ..PLAIN
};

pub(crate) const EXPIRE: Config = Config {
    name: "a refresh and expire",
    warm: true,
    gets: [0, 1, 0],
    refreshes: [1, 0, 0],
    writes: &[(0, WriteKind::Expire), (1, WriteKind::Invalidate)],
    faults: Faults {
        agings: 1,
        evictions: 1,
        ..NO_FAULTS
    },
    ..PLAIN
};

pub(crate) const INSERT: Config = Config {
    name: "insert",
    warm: true,
    gets: [0, 1, 0],
    writes: &[
        (0, WriteKind::Insert),
        (1, WriteKind::Invalidate),
        (1, WriteKind::Insert),
    ],
    faults: Faults {
        evictions: 1,
        ..NO_FAULTS
    },
    ..PLAIN
};

pub(crate) const LEASE: Config = Config {
    name: "the channel lease",
    warm: true,
    gets: [0, 2, 0],
    writes: &[(0, WriteKind::InvalidateEverywhere)],
    lease: 2,
    ticks: 4,
    ..PLAIN
};

pub(crate) const LEASE_AND_CUT: Config = Config {
    name: "the lease and a lost connection",
    gets: [0, 1, 0],
    writes: &[(0, WriteKind::Invalidate)],
    faults: Faults {
        cuts: 1,
        ..NO_FAULTS
    },
    ..LEASE
};

pub(crate) const CONFIGS: &[Config] = &[
    ONE_PROCESS,
    TWO_PROCESSES,
    TWO_WRITERS,
    THREE_PROCESSES,
    CRASH,
    CUT,
    WAITERS,
    REPAIR,
    REFRESH,
    EXPIRE,
    INSERT,
    LEASE,
    LEASE_AND_CUT,
];
