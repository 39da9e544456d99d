//! What was invalidated as a whole: everything, or everything with a tag.
//!
//! L2 keeps, in one key per cache, a counter (the *mark*), the mark at which everything was last
//! invalidated, and for each tag the mark at which it last was. Such an invalidation raises the
//! counter, whatever the number of entries. Every record carries the mark that was known **before its
//! load began**; it is dead where a later mark concerns it. So nothing is compared that a host's
//! clock says, and a load that began before is fenced without being found.
//!
//! The counter belongs to an *era*, a random number. A flush or an eviction takes the marks away as a
//! whole; whoever notices begins a new era, and records of another era are dead. So marks never
//! disappear before the entries that they concern. An era is taken from L2's own answers alone: of one
//! that a message speaks of, L2 is asked, for anybody may publish.
//!
//! A process knows the marks from its beats and from messages, at most a channel lease late, and for
//! tags only those of late: for an older record it asks L2.

use std::collections::HashMap;
use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use parking_lot::Mutex;

use crate::protocol::record::{Baseline, Watermarks};

/// Tags whose marks are kept here for no entry; beyond that the oldest are asked for.
const MOST_TAGS: usize = 1 << 16;

/// Eras that are over and are not gone back to, when answers come in another order than they were
/// given.
const RETIRED: usize = 8;

/// The mark of one tag, shared by the entries that carry it: a hit looks here, without a hash.
#[derive(Debug, Default)]
pub(crate) struct TagWatermark {
    mark: AtomicU64,
    /// Invalidations that L2 has not confirmed: until then nothing with this tag is alive.
    unconfirmed: AtomicU32,
}

impl TagWatermark {
    fn last(&self) -> u64 {
        if self.unconfirmed.load(Ordering::Acquire) > 0 {
            return u64::MAX;
        }
        self.mark.load(Ordering::Acquire)
    }

    #[cfg(test)]
    pub(crate) fn is_unconfirmed(&self) -> bool {
        self.unconfirmed.load(Ordering::Acquire) > 0
    }

    pub(crate) fn begin(&self) {
        self.unconfirmed.fetch_add(1, Ordering::AcqRel);
    }

    pub(crate) fn end(&self) {
        self.unconfirmed.fetch_sub(1, Ordering::AcqRel);
    }
}

/// The tags of an entry, with the mark that was known before its load began.
#[derive(Clone, Debug)]
pub(crate) struct Tags {
    mark: u64,
    of: Arc<[Arc<TagWatermark>]>,
}

impl Tags {
    /// The same tags on an entry whose load began when this much was known.
    pub(crate) fn renewed(&self, baseline: Baseline) -> Self {
        Self {
            mark: baseline.watermark,
            of: Arc::clone(&self.of),
        }
    }

    /// Whether none of the tags was invalidated since the load began.
    pub(crate) fn hold(&self) -> bool {
        self.of.iter().all(|tag| tag.last() <= self.mark)
    }
}

/// What is known of a record.
#[derive(Debug)]
pub(crate) enum Liveness {
    /// Not invalidated as a whole. `None`: it has no tags.
    Alive(Option<Tags>),
    Dead,
    /// Another era, which may be a newer one: ask for the marks.
    OtherIncarnation,
    /// Its load began before anything is known here of its tags: ask for their marks.
    AskTags(Tags),
}

#[derive(Debug, Default)]
pub(crate) struct WatermarkTable {
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    known: Option<Watermarks>,
    retired: VecDeque<u64>,
    tags: HashMap<u64, Arc<TagWatermark>>,
    /// Every later mark of a tag is known here. `None` after a gap: none is.
    since: Option<u64>,
    /// The latest mark that a message told of.
    heard: u64,
    /// How often a message spoke of another era.
    contradicts: u64,
    /// As many of them as were asked about.
    settled: u64,
    /// How often an era was taken for the current one.
    taken: u64,
}

/// When L2 was asked: after so many doubts, and when so many eras had been taken.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Asked {
    contradicts: u64,
    taken: u64,
}

/// What news about the marks mean for L1.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum News {
    Nothing,
    /// Everything that was read before is dead.
    Everything,
    /// A mark was raised, and the message that says for what has not come.
    Missed,
}

impl WatermarkTable {
    /// Marks of a cache without a shared tier: they are counted here.
    pub(crate) fn alone() -> Self {
        let marks = Self::default();
        {
            let mut state = marks.state.lock();
            state.known = Some(Watermarks::default());
            state.since = Some(0);
        }
        marks
    }

    /// What a load that begins now must know.
    pub(crate) fn known(&self) -> Option<Watermarks> {
        self.state.lock().known
    }

    /// What a record carries whose load begins now.
    pub(crate) fn baseline(&self) -> Baseline {
        let known = self.state.lock().known.unwrap_or_default();
        Baseline {
            incarnation: known.incarnation,
            watermark: known.current,
        }
    }

    /// Takes in what L2 said. `ordered`: it came over the bus, so every message before it has been
    /// processed.
    pub(crate) fn learn(&self, said: Watermarks, ordered: bool) -> News {
        let mut state = self.state.lock();
        let news = match state.known {
            None => {
                state.known = Some(said);
                // What was read before is from before anything was known.
                News::Everything
            }
            Some(known) if known.incarnation == said.incarnation => {
                state.known = Some(Watermarks {
                    incarnation: said.incarnation,
                    current: known.current.max(said.current),
                    all: known.all.max(said.all),
                });
                if said.all > known.all {
                    News::Everything
                } else {
                    News::Nothing
                }
            }
            Some(_) if state.retired.contains(&said.incarnation) => return News::Nothing,
            Some(known) => {
                state.retired.push_back(known.incarnation);
                if state.retired.len() > RETIRED {
                    state.retired.pop_front();
                }
                state.known = Some(said);
                state.taken += 1;
                state.tags.retain(|_, tag| Arc::strong_count(tag) > 1);
                for tag in state.tags.values() {
                    tag.mark.store(0, Ordering::Release);
                }
                state.since = None;
                News::Everything
            }
        };
        if ordered && state.since.is_none() {
            state.since = Some(said.current);
            state.heard = said.current;
        } else if ordered && said.current > state.heard {
            state.heard = said.current;
            if news == News::Nothing {
                return News::Missed;
            }
        }
        news
    }

    /// Whether what is known came from L2 itself, and no message has spoken of another era since.
    pub(crate) fn is_certain(&self) -> bool {
        let state = self.state.lock();
        state.known.is_some() && state.settled == state.contradicts
    }

    /// Whether a message speaks of another era than the one that is known. Anybody who may publish
    /// can say so, and whoever believed it would take no later invalidation of everything for one: it
    /// is asked about.
    pub(crate) fn contradicts(&self, said: Watermarks) -> bool {
        let mut state = self.state.lock();
        let another = state
            .known
            .is_some_and(|known| known.incarnation != said.incarnation);
        if another {
            state.contradicts += 1;
            state.since = None;
        }
        another
    }

    /// L2 is about to be asked.
    pub(crate) fn asks(&self) -> Asked {
        let state = self.state.lock();
        Asked {
            contradicts: state.contradicts,
            taken: state.taken,
        }
    }

    /// L2 has answered, and what it said is to be [learnt](Self::learn) next.
    pub(crate) fn answered(&self, said: Watermarks, asked: Asked) {
        let mut state = self.state.lock();
        state.settled = state.settled.max(asked.contradicts);
        if asked.taken == state.taken {
            // No answer from before that era was left: L2 has gone back to it, restored for instance.
            state
                .retired
                .retain(|baseline| *baseline != said.incarnation);
        }
    }

    /// A message told of a mark.
    pub(crate) fn heard(&self, watermarks: Watermarks) {
        let mut state = self.state.lock();
        if state
            .known
            .is_some_and(|known| known.incarnation == watermarks.incarnation)
        {
            state.heard = state.heard.max(watermarks.current);
        }
    }

    /// A tag was invalidated at this mark.
    pub(crate) fn learn_tag(&self, tag: u64, watermarks: Watermarks) {
        let mut state = self.state.lock();
        if state
            .known
            .is_none_or(|known| known.incarnation == watermarks.incarnation)
        {
            let tag = state.tag(tag);
            tag.mark.fetch_max(watermarks.current, Ordering::AcqRel);
        }
    }

    /// Messages may have been missed.
    pub(crate) fn distrust(&self) {
        self.state.lock().since = None;
    }

    /// Raises a mark that is counted here.
    pub(crate) fn advance(&self, tag: Option<u64>) {
        let mut state = self.state.lock();
        let mut known = state.known.unwrap_or_default();
        known.current += 1;
        match tag {
            Some(tag) => state.tag(tag).mark.store(known.current, Ordering::Release),
            None => known.all = known.current,
        }
        state.known = Some(known);
    }

    pub(crate) fn tag(&self, tag: u64) -> Arc<TagWatermark> {
        self.state.lock().tag(tag)
    }

    /// The tags of an entry whose load began in `era`.
    pub(crate) fn tags(
        &self,
        baseline: Baseline,
        tags: impl ExactSizeIterator<Item = u64>,
    ) -> Option<Tags> {
        if tags.len() == 0 {
            return None;
        }
        let mut state = self.state.lock();
        Some(Tags {
            mark: baseline.watermark,
            of: tags.map(|tag| state.tag(tag)).collect(),
        })
    }

    /// Whether a record is dead, as far as is known here. `proven`: the channel is, so that what is
    /// known of tags is not older than its lease.
    pub(crate) fn judge(
        &self,
        baseline: Baseline,
        tags: impl ExactSizeIterator<Item = u64>,
        proven: bool,
    ) -> Liveness {
        let (known, since) = {
            let state = self.state.lock();
            (state.known.unwrap_or_default(), state.since)
        };
        if known.incarnation != baseline.incarnation {
            return Liveness::OtherIncarnation;
        }
        if baseline.watermark < known.all {
            return Liveness::Dead;
        }
        match self.tags(baseline, tags) {
            None => Liveness::Alive(None),
            Some(tags) if !tags.hold() => Liveness::Dead,
            Some(tags) if !proven || since.is_none_or(|since| baseline.watermark < since) => {
                Liveness::AskTags(tags)
            }
            Some(tags) => Liveness::Alive(Some(tags)),
        }
    }
}

impl State {
    fn tag(&mut self, tag: u64) -> Arc<TagWatermark> {
        if self.tags.len() >= MOST_TAGS && !self.tags.contains_key(&tag) {
            let mut forgotten = 0;
            self.tags.retain(|_, tag| {
                let kept = Arc::strong_count(tag) > 1;
                if !kept {
                    forgotten = forgotten.max(tag.mark.load(Ordering::Acquire));
                }
                kept
            });
            self.since = self.since.map(|since| since.max(forgotten));
        }
        Arc::clone(self.tags.entry(tag).or_default())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn watermarks(baseline: u64, mark: u64, all: u64) -> Watermarks {
        Watermarks {
            incarnation: baseline,
            current: mark,
            all,
        }
    }

    fn baseline(id: u64, mark: u64) -> Baseline {
        Baseline {
            incarnation: id,
            watermark: mark,
        }
    }

    fn alive(marks: &WatermarkTable, baseline: Baseline, tags: &[u64]) -> bool {
        matches!(
            marks.judge(baseline, tags.iter().copied(), true),
            Liveness::Alive(_)
        )
    }

    #[test]
    fn what_began_before_everything_was_invalidated_is_dead() {
        let marks = WatermarkTable::default();
        assert_eq!(marks.learn(watermarks(7, 3, 0), true), News::Everything);
        assert!(alive(&marks, baseline(7, 3), &[]) && alive(&marks, baseline(7, 0), &[]));
        assert_eq!(marks.learn(watermarks(7, 4, 4), true), News::Everything);
        assert!(!alive(&marks, baseline(7, 3), &[]) && alive(&marks, baseline(7, 4), &[]));
        assert_eq!(
            marks.learn(watermarks(7, 3, 0), false),
            News::Nothing,
            "old news"
        );
        assert_eq!(marks.known(), Some(watermarks(7, 4, 4)));
    }

    #[test]
    fn a_tag_kills_what_carries_it_and_was_loaded_before() {
        let marks = WatermarkTable::default();
        marks.learn(watermarks(7, 3, 0), true);
        let held = marks.tags(baseline(7, 3), [1, 2].into_iter()).unwrap();
        let other = marks.tags(baseline(7, 3), [3].into_iter()).unwrap();
        assert!(held.hold());
        marks.learn_tag(2, watermarks(7, 4, 0));
        assert!(!held.hold() && other.hold());
        assert!(!alive(&marks, baseline(7, 3), &[2]) && alive(&marks, baseline(7, 4), &[2]));
        let tag = marks.tag(3);
        tag.begin();
        assert!(!other.hold(), "L2 has not confirmed it");
        tag.end();
        assert!(other.hold());
    }

    #[test]
    fn what_is_older_than_what_is_known_of_tags_is_asked_for() {
        let marks = WatermarkTable::default();
        marks.learn(watermarks(7, 3, 0), true);
        let ask = |mark, tags: &[u64]| {
            matches!(
                marks.judge(baseline(7, mark), tags.iter().copied(), true),
                Liveness::AskTags(_)
            )
        };
        assert!(ask(2, &[1]) && !ask(3, &[1]) && !ask(2, &[]));
        let unproven = marks.judge(baseline(7, 3), [1].into_iter(), false);
        assert!(matches!(unproven, Liveness::AskTags(_)));
        marks.distrust();
        assert!(ask(3, &[1]));
        marks.learn(watermarks(7, 5, 0), false);
        assert!(
            ask(5, &[1]),
            "said out of order: a message may still be on its way"
        );
        marks.learn(watermarks(7, 5, 0), true);
        assert!(ask(4, &[1]) && !ask(5, &[1]));
    }

    #[test]
    fn a_mark_that_no_message_told_of_was_missed() {
        let marks = WatermarkTable::default();
        marks.learn(watermarks(7, 3, 0), true);
        marks.heard(watermarks(7, 4, 0));
        assert_eq!(marks.learn(watermarks(7, 4, 0), true), News::Nothing);
        assert_eq!(
            marks.learn(watermarks(7, 6, 0), false),
            News::Nothing,
            "not in order"
        );
        assert_eq!(marks.learn(watermarks(7, 6, 0), true), News::Missed);
        assert_eq!(
            marks.learn(watermarks(7, 6, 0), true),
            News::Nothing,
            "told once"
        );
        assert_eq!(marks.learn(watermarks(7, 7, 7), true), News::Everything);
    }

    #[test]
    fn another_era_kills_everything_and_is_not_gone_back_from() {
        let marks = WatermarkTable::default();
        marks.learn(watermarks(7, 3, 0), true);
        assert!(matches!(
            marks.judge(baseline(8, 9), [].into_iter(), true),
            Liveness::OtherIncarnation
        ));
        assert_eq!(marks.learn(watermarks(8, 0, 0), true), News::Everything);
        assert!(alive(&marks, baseline(8, 0), &[1]));
        assert!(matches!(
            marks.judge(baseline(7, 3), [].into_iter(), true),
            Liveness::OtherIncarnation
        ));
        assert_eq!(marks.learn(watermarks(7, 3, 0), false), News::Nothing);
        assert_eq!(marks.known(), Some(watermarks(8, 0, 0)));
    }

    #[test]
    fn a_message_of_another_era_is_asked_about_and_not_believed() {
        let marks = WatermarkTable::default();
        assert!(!marks.is_certain() && !marks.contradicts(watermarks(8, 1, 1)));
        marks.learn(watermarks(7, 3, 0), false);
        assert!(marks.is_certain() && !marks.contradicts(watermarks(7, 9, 9)));
        let asked_before = marks.asks();
        assert!(marks.contradicts(watermarks(8, 1, 1)));
        assert!(!marks.is_certain());
        assert_eq!(marks.known(), Some(watermarks(7, 3, 0)));
        marks.answered(watermarks(7, 3, 0), asked_before);
        assert!(!marks.is_certain(), "that was asked before it came");
        marks.answered(watermarks(7, 3, 0), marks.asks());
        assert!(marks.is_certain());
    }

    #[test]
    fn an_era_is_gone_back_to_when_l2_has_gone_back_to_it() {
        let marks = WatermarkTable::default();
        marks.learn(watermarks(7, 3, 0), false);
        let asked_before = marks.asks();
        marks.learn(watermarks(8, 1, 1), false);
        marks.answered(watermarks(7, 3, 0), asked_before);
        assert_eq!(marks.learn(watermarks(7, 3, 0), false), News::Nothing);
        assert!(marks.contradicts(watermarks(7, 3, 0)));
        marks.answered(watermarks(7, 3, 0), marks.asks());
        assert_eq!(marks.learn(watermarks(7, 3, 0), false), News::Everything);
        assert_eq!(marks.known(), Some(watermarks(7, 3, 0)));
    }

    #[test]
    fn tags_that_nothing_carries_are_forgotten_and_then_asked_for() {
        let marks = WatermarkTable::default();
        marks.learn(watermarks(7, 0, 0), true);
        let held = marks.tags(baseline(7, 0), [u64::MAX].into_iter()).unwrap();
        for tag in 0..MOST_TAGS as u64 {
            marks.learn_tag(tag, watermarks(7, tag + 1, 0));
        }
        assert!(marks.state.lock().tags.len() <= MOST_TAGS);
        let verdict = marks.judge(baseline(7, 5), [9].into_iter(), true);
        assert!(matches!(verdict, Liveness::AskTags(_)), "{verdict:?}");
        assert!(held.hold());
        marks.learn_tag(u64::MAX, watermarks(7, 9, 0));
        assert!(!held.hold());
    }
}
