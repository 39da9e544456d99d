//! A model of the protocol, explored exhaustively: every interleaving of a few calls on one key.
//!
//! The model is written by hand after the design and the engine, and shares no code with the crate.
//! The full protocol must have no counterexample in any configuration. Each rule that is switched
//! off must have one, of the kind that the rule prevents. `--nocapture` prints the configurations
//! with their numbers of states, and a shortest counterexample for every rule.
//!
//! **Processes.** A get looks into L1, and joins the flight of its key or leads one. A flight reads
//! L2, acquires a lease, waits, loads, fills, completes and stores into L1. Each of these is a step
//! of its own, and any other step may come between two of them. A refresh fills against the value
//! that it read before its load. `invalidate`, `invalidate_everywhere`, `insert` and `expire`
//! commit, change L2 and return.
//!
//! **L2 and messages.** L2 holds one record: a value, a lease, a failure mark, or nothing. Messages
//! are published in the step that changes L2. They arrive later in the order of their connection,
//! may arrive twice, and are lost only with their connection. With a channel lease, time is counted
//! in ticks, and each process proves its channel with heartbeats through its own queue.
//!
//! **Faults.** Leases expire under their holders. Values age and are evicted. Processes crash and
//! are replaced. Connections die unnoticed and come back. Loads fail. L2 does not answer a flight,
//! or does not carry an invalidation out. The outcome of a fill stays unknown.
//!
//! **The oracle.** The source is a counter, and a commit takes the next version. In every state:
//!
//! - One load per process, apart from detached ones.
//! - One load per fleet under a lease that lasts, from the grant to the fill.
//! - No stale fill: L2 holds nothing older than a change that it has carried out, and L1 nothing
//!   older than a change that its process knows of. No get is answered with less than its process
//!   knew when it began, nor with less than an `invalidate_everywhere` that had returned in any
//!   process.
//! - Bounded staleness: no L1 hit misses a change that returned H ago, where H is the channel
//!   lease.
//! - A process that is connected and has processed all messages answers nothing old from L1.
//! - When no step is left to do, no flight and no lease is left.
//!
//! A process knows of a change when its own call has returned or when it has processed the message.
//! An L1 hit is no step: the answer that L1 would give is checked in every state. A lease that a
//! change removed, or that expired, does not count for the second point. After `expire` the old
//! value may stay in L2, but stale.
//!
//! **Why it stays small.** A request and its execution are one step, and so is a reply with its
//! effects, unless a step in between would matter. Two such cases are two steps: a get's answer
//! from L2 and its completion, and a change that L2 has carried out and its return. A timer ends
//! only when the lease that it waits for is gone, because earlier it changes nothing. A token is
//! only compared with the one in L2, so there are two tokens: that one, and any other. A process
//! without gets sends no heartbeats. A detached flight with an answer is gone at once.
//!
//! **The rules.** Each rule is a variant of `Rule` and is switched off in one case below.
//! Announcing every invalidation matters because a value that was loaded without a lease enters L1.
//! The rules about replicas (reading L2 and the source from the primary) and about fail-over
//! concern the surroundings of the protocol: with the rule there is no replica, without it there is
//! one that lags. The rule that inserts take turns, from the commit to L2, is the duty of the
//! callers.
//!
//! **What is left out.** Other keys, and with them batches and the budget of absences. Answers past
//! their TTL, though not the stale values themselves. The election of one refresher. Permits for
//! loads. What L1 answers while L2 cannot be reached, and an `insert` or `expire` that fails.
//! `hold_off`. Records of other versions. A script that runs long after its caller gave up.
//! Durations other than H, and endless loops. Memory orderings, which are below the protocol.

mod configs;
mod effects;
mod explore;
mod rules;
mod state;
mod step;
mod transitions;

use std::fmt::Write;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

use configs::{
    CONFIGS, CUT, EXPIRE, INSERT, LEASE, ONE_PROCESS, REPAIR, THREE_PROCESSES, TWO_PROCESSES,
    TWO_WRITERS, WAITERS,
};
use explore::{StepKinds, explore};
use rules::{Model, Rule, Violation};
use state::Config;
use step::Step;

/// A rule, its text, the configuration that needs it, and the violation without it.
struct Case(Rule, &'static str, &'static Config, Violation);

const CASES: &[Case] = &[
    Case(
        Rule::UniqueToken,
        "a token belongs to one load, not to a process",
        &ONE_PROCESS,
        Violation::OldInL2,
    ),
    Case(
        Rule::AcquireThenLoad,
        "acquire, then load",
        &ONE_PROCESS,
        Violation::OldInL2,
    ),
    Case(
        Rule::CompareAtFill,
        "the fill compares what it replaces",
        &ONE_PROCESS,
        Violation::OldInL2,
    ),
    Case(
        Rule::InvalidateLease,
        "an invalidation removes the lease too",
        &ONE_PROCESS,
        Violation::OldInL2,
    ),
    Case(
        Rule::AbsentIsRefused,
        "without a record, a fill is refused",
        &ONE_PROCESS,
        Violation::OldInL2,
    ),
    Case(
        Rule::RemoveThenPublish,
        "remove, then publish",
        &TWO_PROCESSES,
        Violation::OldInL1,
    ),
    Case(
        Rule::RegisterThenRead,
        "a flight registers before it reads",
        &TWO_PROCESSES,
        Violation::OldInL1,
    ),
    Case(
        Rule::CheckWithStore,
        "the check of the fence and the store into L1 are one",
        &TWO_PROCESSES,
        Violation::OldInL1,
    ),
    Case(
        Rule::JoinCurrent,
        "a detached flight is not joined",
        &ONE_PROCESS,
        Violation::OldAnswer,
    ),
    Case(
        Rule::L2ThenEvict,
        "change L2 first, then evict L1",
        &TWO_PROCESSES,
        Violation::OldInL1,
    ),
    Case(
        Rule::EvictWithoutCaller,
        "L1 is evicted also when the caller goes away",
        &TWO_PROCESSES,
        Violation::Missed,
    ),
    Case(
        Rule::SubscribeThenClear,
        "subscribe, then clear, then use L1",
        &CUT,
        Violation::Missed,
    ),
    Case(
        Rule::AlwaysPublish,
        "every invalidation is announced, as loads without a lease enter L1",
        &TWO_WRITERS,
        Violation::Missed,
    ),
    Case(
        Rule::ReadPrimary,
        "L2 is read from the primary",
        &TWO_PROCESSES,
        Violation::OldInL1,
    ),
    Case(
        Rule::CommitThenInvalidate,
        "commit, then invalidate",
        &ONE_PROCESS,
        Violation::OldInL2,
    ),
    Case(
        Rule::LoadPrimary,
        "a load sees all commits before it",
        &ONE_PROCESS,
        Violation::OldInL2,
    ),
    Case(
        Rule::InsertInTurn,
        "inserts of one key take turns",
        &INSERT,
        Violation::OldInL2,
    ),
    Case(
        Rule::KeepWrites,
        "L2 loses no write",
        &ONE_PROCESS,
        Violation::OldInL2,
    ),
    Case(
        Rule::ExpireNewToken,
        "expire gives the value a new token",
        &EXPIRE,
        Violation::OldInL2,
    ),
    Case(
        Rule::InsertUnlessOvertaken,
        "an insert enters L1 only if nothing changed its key meanwhile",
        &INSERT,
        Violation::OldInL1,
    ),
    Case(
        Rule::WaitWithTimer,
        "a waiter has a timer beside the wake-up",
        &WAITERS,
        Violation::Stuck,
    ),
    Case(
        Rule::RespectLease,
        "the lease of another process is left alone",
        &THREE_PROCESSES,
        Violation::TwoLoadsInFleet,
    ),
    Case(
        Rule::Coalesce,
        "a get joins the flight of its key",
        &ONE_PROCESS,
        Violation::TwoLoadsInProcess,
    ),
    Case(
        Rule::ChannelLease,
        "L1 answers within the channel lease only",
        &LEASE,
        Violation::OlderThanLease,
    ),
    Case(
        Rule::LeaseFromSending,
        "the channel lease counts from the sending of the heartbeat",
        &LEASE,
        Violation::OlderThanLease,
    ),
    Case(
        Rule::HeartbeatInQueue,
        "heartbeats and messages share one queue",
        &LEASE,
        Violation::OlderThanLease,
    ),
    Case(
        Rule::JoinWithinLease,
        "after the channel lease, a flight older than H is not joined",
        &LEASE,
        Violation::OldAnswer,
    ),
    Case(
        Rule::RepairThenRead,
        "a key whose change failed is not read from L2 before its repair",
        &REPAIR,
        Violation::OldInL1,
    ),
    Case(
        Rule::ClearEarlierRepairs,
        "a confirmed change clears only the repairs that were pending before it was sent",
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
                text += &step::describe(&model, found);
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
    let (mut kinds, mut states, mut broken) = (StepKinds::default(), 0, Vec::new());
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
    // A model in which a step never happens proves nothing about that step.
    let mut never = Step::OF_THE_PROTOCOL.to_vec();
    never.retain(|step| !kinds.has(*step));
    assert!(
        never.is_empty(),
        "no configuration takes these steps: {never:?}"
    );
}

#[test]
fn each_rule_that_is_switched_off_has_a_counterexample() {
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
                text += &step::describe(&model, found);
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
