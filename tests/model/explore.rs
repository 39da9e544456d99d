//! Breadth-first search through all states, so that the first counterexample found is a shortest
//! one.

use std::hash::{Hash, Hasher};

use crate::rules::{Model, Violation};
use crate::state::State;
use crate::step::{Step, StepTaken};
use crate::transitions::Transitions;

/// The result of an exploration.
#[derive(Debug)]
pub(crate) struct Report {
    pub(crate) states: usize,
    /// The largest distance of a state from the first one.
    pub(crate) depth: usize,
    /// The kinds of steps that were taken.
    pub(crate) taken: StepKinds,
    pub(crate) found: Option<Counterexample>,
}

#[derive(Debug)]
pub(crate) struct Counterexample {
    pub(crate) violation: Violation,
    pub(crate) first: State,
    /// Each step with the state that it leads to.
    pub(crate) steps: Vec<(StepTaken, State)>,
}

/// A set of kinds of steps, one bit each.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct StepKinds(u64);

impl StepKinds {
    pub(crate) fn add(&mut self, step: Step) {
        self.0 |= 1 << step as u32;
    }

    pub(crate) fn join(&mut self, other: Self) {
        self.0 |= other.0;
    }

    pub(crate) fn has(self, step: Step) -> bool {
        self.0 & (1 << step as u32) != 0
    }
}

/// A state, the state before it, and the step between them.
#[derive(Clone, Copy)]
struct Node {
    state: State,
    parent: u32,
    step: Option<StepTaken>,
}

/// Explores all states, or stops at the first `wanted` violation. Without `wanted` it stops at any
/// violation.
pub(crate) fn explore(model: &Model<'_>, wanted: Option<Violation>) -> Report {
    let start = model.config.start();
    let mut report = Report {
        states: 0,
        depth: 0,
        taken: StepKinds::default(),
        found: None,
    };
    let mut nodes = vec![Node {
        state: start,
        parent: 0,
        step: None,
    }];
    let mut seen = Index::default();
    seen.find_or_add(&nodes, hash(&start), &start);
    let mut next = Vec::new();
    let (mut at, mut level_ends) = (0, 1);
    while at < nodes.len() {
        if at == level_ends {
            level_ends = nodes.len();
            report.depth += 1;
        }
        let state = nodes[at].state;
        Transitions::of(model, &state, &mut next);
        let idle = !next.iter().any(|((step, _), _)| step.is_due());
        if let Some(violation) = model.violation(&state, idle, wanted) {
            report.found = Some(Counterexample {
                violation,
                first: start,
                steps: way_to(&nodes, at),
            });
            break;
        }
        for (step, to) in next.drain(..) {
            report.taken.add(step.0);
            if seen.find_or_add(&nodes, hash(&to), &to) {
                nodes.push(Node {
                    state: to,
                    parent: u32::try_from(at).expect("the bounds keep it small"),
                    step: Some(step),
                });
            }
        }
        at += 1;
    }
    report.states = nodes.len();
    report
}

fn way_to(nodes: &[Node], mut at: usize) -> Vec<(StepTaken, State)> {
    let mut steps = Vec::new();
    while let Some(step) = nodes[at].step {
        steps.push((step, nodes[at].state));
        at = nodes[at].parent as usize;
    }
    steps.reverse();
    steps
}

/// The known states: an open-addressing table of their numbers, each with half of its hash.
#[derive(Default)]
struct Index {
    /// The upper half of the hash, and the number plus one. Zero is a free slot.
    slots: Vec<(u32, u32)>,
    used: usize,
}

impl Index {
    /// Whether the state is new. A new state becomes the next node.
    fn find_or_add(&mut self, nodes: &[Node], hash: u64, state: &State) -> bool {
        if self.used * 2 >= self.slots.len() {
            self.grow(nodes);
        }
        let (mask, tag) = (self.slots.len() - 1, upper(hash));
        let mut at = lower(hash) & mask;
        while self.slots[at].1 != 0 {
            let (other, number) = self.slots[at];
            if other == tag && nodes[number as usize - 1].state == *state {
                return false;
            }
            at = (at + 1) & mask;
        }
        self.used += 1;
        self.slots[at] = (
            tag,
            u32::try_from(self.used).expect("the bounds keep it small"),
        );
        true
    }

    fn grow(&mut self, nodes: &[Node]) {
        let size = (self.slots.len() * 4).max(1 << 12);
        self.slots = vec![(0, 0); size];
        for (number, node) in nodes.iter().enumerate().take(self.used) {
            let hash = hash(&node.state);
            let mut at = lower(hash) & (size - 1);
            while self.slots[at].1 != 0 {
                at = (at + 1) & (size - 1);
            }
            self.slots[at] = (upper(hash), u32::try_from(number + 1).unwrap_or(u32::MAX));
        }
    }
}

fn upper(hash: u64) -> u32 {
    u32::try_from(hash >> 32).unwrap_or(0)
}

fn lower(hash: u64) -> usize {
    usize::try_from(hash & u64::from(u32::MAX)).unwrap_or(0)
}

fn hash(state: &State) -> u64 {
    let mut hasher = Fold(0);
    state.hash(&mut hasher);
    hasher.finish()
}

/// A hasher that is fast also without optimisation. It needs no protection against chosen input.
struct Fold(u64);

const FACTOR: u64 = 0x9e37_79b9_7f4a_7c15;

impl Fold {
    fn mix(&mut self, word: u64) {
        self.0 = (self.0.rotate_left(5) ^ word).wrapping_mul(FACTOR);
    }
}

impl Hasher for Fold {
    fn finish(&self) -> u64 {
        (self.0 ^ (self.0 >> 29))
            .wrapping_mul(FACTOR)
            .rotate_left(32)
    }

    fn write(&mut self, bytes: &[u8]) {
        bytes.iter().for_each(|byte| self.mix(u64::from(*byte)));
    }

    fn write_u8(&mut self, word: u8) {
        self.mix(u64::from(word));
    }

    fn write_usize(&mut self, word: usize) {
        self.mix(word as u64);
    }

    fn write_isize(&mut self, word: isize) {
        self.mix(word.unsigned_abs() as u64);
    }
}
