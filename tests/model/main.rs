//! wip
mod explore;
mod rules;
mod state;
mod steps;
mod story;

use std::fmt::Write;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

use explore::{Kinds, explore};
use rules::{Model, Rule, Violation};
use state::{Config, Faults, How};
use steps::Step;

const NO_FAULTS: Faults = Faults {
    expiries: 0,
    agings: 0,
    evictions: 0,
    crashes: 0,
    cuts: 0,
    duplicates: 0,
    alone: 0,
    failures: 0,
    unknown_fills: 0,
    fail_overs: 0,
};

/// What the others begin with: two processes, nothing in L2.
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

const ONE_PROCESS: Config = Config {
    name: "one process",
    processes: 1,
    gets: [3, 0, 0],
    writes: &[(0, How::Invalidate), (0, How::Invalidate)],
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

const TWO_PROCESSES: Config = Config {
    name: "two processes",
    warm: true,
    gets: [2, 2, 0],
    writes: &[(0, How::Invalidate)],
    faults: Faults {
        evictions: 1,
        duplicates: 1,
        ..NO_FAULTS
    },
    ..PLAIN
};

const TWO_WRITERS: Config = Config {
    name: "two writers",
    gets: [1, 1, 0],
    writes: &[(0, How::Invalidate), (1, How::Invalidate)],
    faults: Faults {
        expiries: 1,
        alone: 1,
        evictions: 1,
        duplicates: 1,
        ..NO_FAULTS
    },
    ..PLAIN
};

const THREE_PROCESSES: Config = Config {
    name: "three processes",
    processes: 3,
    gets: [1, 1, 1],
    writes: &[(0, How::Invalidate)],
    faults: Faults {
        expiries: 1,
        ..NO_FAULTS
    },
    ..PLAIN
};

const CRASH: Config = Config {
    name: "a crash",
    gets: [2, 1, 0],
    writes: &[(0, How::Invalidate)],
    faults: Faults {
        crashes: 1,
        expiries: 1,
        ..NO_FAULTS
    },
    ..PLAIN
};

const CUT: Config = Config {
    name: "a lost connection",
    warm: true,
    gets: [1, 2, 0],
    writes: &[(0, How::Invalidate)],
    faults: Faults {
        cuts: 1,
        evictions: 1,
        ..NO_FAULTS
    },
    ..PLAIN
};

const WAITERS: Config = Config {
    name: "waiters that hear nothing",
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

const REFRESH: Config = Config {
    name: "a refresh",
    warm: true,
    gets: [1, 1, 0],
    refreshes: [1, 0, 0],
    writes: &[(0, How::Invalidate)],
    faults: Faults {
        agings: 1,
        evictions: 1,
        ..NO_FAULTS
    },
    ..PLAIN
};

const EXPIRE: Config = Config {
    name: "a refresh and expire",
    warm: true,
    gets: [0, 1, 0],
    refreshes: [1, 0, 0],
    writes: &[(0, How::Expire), (1, How::Invalidate)],
    faults: Faults {
        agings: 1,
        evictions: 1,
        ..NO_FAULTS
    },
    ..PLAIN
};

const INSERT: Config = Config {
    name: "insert",
    warm: true,
    gets: [0, 1, 0],
    writes: &[(0, How::Insert), (1, How::Invalidate), (1, How::Insert)],
    faults: Faults {
        evictions: 1,
        ..NO_FAULTS
    },
    ..PLAIN
};

const LEASE: Config = Config {
    name: "the channel lease",
    warm: true,
    gets: [0, 2, 0],
    writes: &[(0, How::InvalidateEverywhere)],
    lease: 2,
    ticks: 4,
    ..PLAIN
};

const LEASE_AND_CUT: Config = Config {
    name: "the lease and a lost connection",
    gets: [0, 2, 0],
    writes: &[(0, How::Invalidate)],
    faults: Faults {
        cuts: 1,
        ..NO_FAULTS
    },
    ..LEASE
};

const CONFIGS: &[Config] = &[
    ONE_PROCESS,
    TWO_PROCESSES,
    TWO_WRITERS,
    THREE_PROCESSES,
    CRASH,
    CUT,
    WAITERS,
    REFRESH,
    EXPIRE,
    INSERT,
    LEASE,
    LEASE_AND_CUT,
];

/// A rule, what it says, where it is missed, and what goes wrong then.
struct Case(Rule, &'static str, &'static Config, Violation);

const CASES: &[Case] = &[
    Case(
        Rule::UniqueToken,
        "R1: a token belongs to one load, not to a process",
        &ONE_PROCESS,
        Violation::OldInL2,
    ),
    Case(
        Rule::AcquireThenLoad,
        "R2: acquire, then load",
        &ONE_PROCESS,
        Violation::OldInL2,
    ),
    Case(
        Rule::CompareAtFill,
        "R3: the fill compares what it replaces",
        &ONE_PROCESS,
        Violation::OldInL2,
    ),
    Case(
        Rule::InvalidateLease,
        "R4: an invalidation removes the lease too",
        &ONE_PROCESS,
        Violation::OldInL2,
    ),
    Case(
        Rule::AbsentIsRefused,
        "R5: where nothing is, a fill is refused",
        &ONE_PROCESS,
        Violation::OldInL2,
    ),
    Case(
        Rule::RemoveThenPublish,
        "R6: remove, then publish",
        &TWO_PROCESSES,
        Violation::OldInL1,
    ),
    Case(
        Rule::RegisterThenRead,
        "R7: a flight registers before it reads",
        &TWO_PROCESSES,
        Violation::OldInL1,
    ),
    Case(
        Rule::CheckWithStore,
        "R8: the check of the fence and the store into L1 are one",
        &TWO_PROCESSES,
        Violation::OldInL1,
    ),
    Case(
        Rule::JoinCurrent,
        "R9: a detached flight is not joined",
        &ONE_PROCESS,
        Violation::OldAnswer,
    ),
    Case(
        Rule::L2ThenEvict,
        "R10: L2 first, then L1",
        &TWO_PROCESSES,
        Violation::OldInL1,
    ),
    Case(
        Rule::EvictWithoutCaller,
        "R10: also when the caller goes away",
        &TWO_PROCESSES,
        Violation::Missed,
    ),
    Case(
        Rule::SubscribeThenForget,
        "R11: subscribe, then forget, then use L1",
        &CUT,
        Violation::Missed,
    ),
    Case(
        Rule::AlwaysPublish,
        "R12: what is loaded alone enters L1 only because every invalidation is announced",
        &TWO_WRITERS,
        Violation::Missed,
    ),
    Case(
        Rule::ReadPrimary,
        "R13: L2 is read where it is written",
        &TWO_PROCESSES,
        Violation::OldInL1,
    ),
    Case(
        Rule::CommitThenInvalidate,
        "R14: commit, then invalidate",
        &ONE_PROCESS,
        Violation::OldInL2,
    ),
    Case(
        Rule::LoadPrimary,
        "R15: a load sees what was committed before it",
        &ONE_PROCESS,
        Violation::OldInL2,
    ),
    Case(
        Rule::InsertInTurn,
        "R16: inserts of one key take turns",
        &INSERT,
        Violation::OldInL2,
    ),
    Case(
        Rule::KeepWrites,
        "R17: L2 loses no write",
        &ONE_PROCESS,
        Violation::OldInL2,
    ),
    Case(
        Rule::ExpireNewToken,
        "D1: expire gives a new token",
        &EXPIRE,
        Violation::OldInL2,
    ),
    Case(
        Rule::InsertUndisturbed,
        "D2: an insert enters L1 only if nothing changed its key meanwhile",
        &INSERT,
        Violation::OldInL1,
    ),
    Case(
        Rule::WaitWithTimer,
        "D3: who waits has a timer too",
        &WAITERS,
        Violation::Stuck,
    ),
    Case(
        Rule::RespectLease,
        "D4: another's lease is left alone",
        &THREE_PROCESSES,
        Violation::TwoLoadsInFleet,
    ),
    Case(
        Rule::Coalesce,
        "D5: a get joins the flight of its key",
        &ONE_PROCESS,
        Violation::TwoLoadsInProcess,
    ),
    Case(
        Rule::ChannelLease,
        "D6: L1 answers within the channel lease only",
        &LEASE,
        Violation::OlderThanLease,
    ),
    Case(
        Rule::LeaseFromSending,
        "D7: the channel lease counts from the sending of the beat",
        &LEASE,
        Violation::OlderThanLease,
    ),
    Case(
        Rule::BeatInQueue,
        "D8: beats and messages share one queue",
        &LEASE,
        Violation::OlderThanLease,
    ),
    Case(
        Rule::JoinWithinLease,
        "D9: out of the channel lease, a flight older than H is not joined",
        &LEASE,
        Violation::OldAnswer,
    ),
];

#[test]
fn the_protocol_has_no_counterexample() {
    let next = AtomicUsize::new(0);
    let kinds = Mutex::new(Kinds::default());
    let work = || {
        while let Some(config) = CONFIGS.get(next.fetch_add(1, Ordering::Relaxed)) {
            let model = Model {
                config,
                without: None,
            };
            let begun = Instant::now();
            let report = explore(&model, None);
            println!(
                "{:<28}{:>9} states, depth {:>2}, {:>5} ms  {}",
                config.name,
                report.states,
                report.depth,
                begun.elapsed().as_millis(),
                config.bounds()
            );
            if let Some(found) = &report.found {
                panic!("{}:\n{}", config.name, story::tell(&model, found));
            }
            kinds
                .lock()
                .expect("nobody panics with it")
                .join(report.taken);
        }
    };
    std::thread::scope(|scope| {
        scope.spawn(work);
        scope.spawn(work);
    });
    let kinds = kinds.into_inner().expect("nobody panics with it");
    let never: Vec<Step> = Step::OF_THE_PROTOCOL
        .into_iter()
        .filter(|step| !kinds.has(*step))
        .collect();
    assert!(
        never.is_empty(),
        "steps that no configuration takes: {never:?}"
    );
}

#[test]
fn without_any_rule_there_is_one() {
    let mut held = Vec::new();
    for Case(rule, says, config, violation) in CASES {
        let model = Model {
            config,
            without: Some(*rule),
        };
        let report = explore(&model, Some(*violation));
        let mut text = format!("without {says} ({}", config.name);
        match &report.found {
            Some(found) => {
                let steps = found.steps.len();
                writeln!(text, ", {} states): {steps} steps", report.states).expect("a string");
                text += &story::tell(&model, found);
            }
            None => {
                text += ")";
                held.push(format!(
                    "{rule:?}: {violation:?} does not come in {} states",
                    report.states
                ));
            }
        }
        println!("{text}");
    }
    assert!(held.is_empty(), "{}", held.join("\n"));
}
