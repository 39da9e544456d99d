//! The protocol, explored exhaustively: every interleaving of a few calls on one key, within bounds.
//!
//! The model is written by hand after the design and the engine; it shares no code with the crate.
//! The full protocol must have no counterexample in any configuration, and each rule that is
//! switched off must have one, of the kind that the rule is there to prevent. `--nocapture` shows the
//! configurations with their states, and a shortest counterexample of every rule.
//!
//! **What is in it.** A get looks into L1, joins the flight of its key or leads one. A flight reads
//! L2, acquires, waits, loads, fills, lands and stores into L1; each of these is a step of its own,
//! and anything may come between two of them. A refresh fills against the value that it read before
//! its load. `invalidate`, `invalidate_everywhere`, `insert` and `expire`: commit, L2, reply. L2 holds
//! one record: a value, a lease, the mark of a failed load, or nothing. Messages are published in the
//! step that changes L2, arrive later in the order of their connection, may come twice, and are lost
//! only with their connection. What can fail: leases expire under their holders, values age and are
//! evicted, processes crash and are replaced, connections die unnoticed and come back, loads fail, L2
//! does not answer a flight or cannot be told of an invalidation, nobody hears what became of a fill.
//! With a channel lease time is counted in ticks, and each process proves its channel with beats
//! through its own queue.
//!
//! **The oracle.** The source is a counter; a commit takes the next version. In every state:
//!
//! - P1: one load per process, apart from detached ones;
//! - P2: one load under a living lease in the fleet, from the grant to the fill;
//! - P3: L2 holds nothing older than a change that it has carried out, L1 nothing older than a change
//!   that its process knows of, and no get is answered with less than its process knew when it began,
//!   nor with less than an `invalidate_everywhere` that had returned anywhere;
//! - P4: no L1 hit misses a change that returned H ago;
//! - a process that is connected and has heard everything answers nothing old from L1;
//! - where nothing is left to do, no flight and no lease is left.
//!
//! A process knows of a change when its own call returns or when it has heard the message. An L1 hit
//! is no step: what L1 would answer is looked at in every state. A lease removed by a change or by
//! its expiry does not count for P2 any more. After `expire` the old value may stay in L2, but stale.
//!
//! **How it is kept small.** A request and its execution are one step, and so is a reply with what it
//! leads to, unless something that comes between would matter: a get's answer from L2 and its landing,
//! or what L2 has carried out for a write and its return, are two steps. A timer ends only when the lease that
//! it waits for is gone: earlier it changes nothing. A token is only ever compared with the one in L2,
//! so there are two: that one, and any other. A process that never gets sends no beats. A detached
//! flight that has its answer is gone at once.
//!
//! **The rules.** R1 to R17 are all here, D1 to D11 are what the design adds. R12 comes in the form
//! that this protocol relies on: what was loaded without a lease enters L1, so every invalidation is
//! announced. R13, R15 and R17 are about things around the protocol: a replica of L2, a replica of the
//! source, a fail-over. With the rule there is none of it, without it there is one that lags. R16 asks
//! writers that insert to take turns, from the commit to L2; that is the callers' part.
//!
//! **What is left out.** Other keys: stripes, batches, the budget of absences. Answers past their TTL
//! (stale-while-revalidate, stale-if-error), though not the stale values themselves. The election of
//! one refresher. Places for loads. What L1 answers while L2 cannot be reached, and an `insert` or
//! `expire` that L2 cannot be told of. `hold_off`. Records of other versions. A script that is carried
//! out long after its caller gave it up. How long anything takes, apart from H; that nobody goes round
//! in circles for ever. Memory orderings, which are not the protocol's.

mod configs;
mod effects;
mod explore;
mod next;
mod rules;
mod state;
mod step;

use std::fmt::Write;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

use configs::{
    CONFIGS, CUT, EXPIRE, INSERT, LEASE, ONE_PROCESS, REPAIR, THREE_PROCESSES, TWO_PROCESSES,
    TWO_WRITERS, WAITERS,
};
use explore::{Kinds, explore};
use rules::{Model, Rule, Violation};
use state::Config;
use step::Step;

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
    Case(
        Rule::RepairThenRead,
        "D10: a key that L2 could not be told of is not read from L2 before L2 has been told",
        &REPAIR,
        Violation::OldInL1,
    ),
    Case(
        Rule::SettleEarlier,
        "D11: a confirmed change settles only the repairs that were pending before it was sent",
        &REPAIR,
        Violation::OldInL1,
    ),
];

#[test]
fn the_protocol_has_no_counterexample() {
    let next = AtomicUsize::new(0);
    let results = Mutex::new(Vec::new());
    let work = || {
        loop {
            let number = next.fetch_add(1, Ordering::Relaxed);
            let Some(config) = CONFIGS.get(number) else {
                break;
            };
            let begun = Instant::now();
            let model = Model {
                config,
                without: None,
            };
            let report = explore(&model, None);
            let mut text = format!(
                "{}: {} states, depth {}, {} ms\n    {}",
                config.name,
                report.states,
                report.depth,
                begun.elapsed().as_millis(),
                config.bounds()
            );
            if let Some(found) = &report.found {
                text += "\n";
                text += &step::tell(&model, found);
            }
            let mut results = results.lock().expect("nothing panics with it");
            results.push((number, text, report));
        }
    };
    std::thread::scope(|scope| {
        scope.spawn(work);
        scope.spawn(work);
    });
    let mut results = results.into_inner().expect("nothing panics with it");
    results.sort_by_key(|(number, ..)| *number);
    let (mut kinds, mut states, mut broken) = (Kinds::default(), 0, Vec::new());
    for (_, text, report) in &results {
        println!("{text}");
        kinds.join(report.taken);
        states += report.states;
        if report.found.is_some() {
            broken.push(text.as_str());
        }
    }
    println!("{states} states in all");
    assert!(broken.is_empty(), "{}", broken.join("\n"));
    // A model in which something never happens proves nothing about it.
    let mut never = Step::OF_THE_PROTOCOL.to_vec();
    never.retain(|step| !kinds.has(*step));
    assert!(
        never.is_empty(),
        "no configuration takes these steps: {never:?}"
    );
}

#[test]
fn each_rule_that_is_switched_off_has_one() {
    let mut held = Vec::new();
    for Case(rule, says, config, violation) in CASES {
        let explored = CONFIGS.iter().any(|other| other.name == config.name);
        assert!(
            explored,
            "{rule:?}: {} is not explored with it",
            config.name
        );
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
                text += &step::tell(&model, found);
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
