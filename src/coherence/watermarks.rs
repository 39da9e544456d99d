//! The watermark table: what this process knows of invalidations of everything and of tags.
//!
//! L2 keeps three things in one key per cache: a counter, the *watermark*; the watermark at which
//! everything was last invalidated; and for each tag the watermark at which it was last
//! invalidated. Such an invalidation advances the counter, and its cost does not depend on the
//! number of entries. Every record carries its *baseline*: the watermark that was known **before
//! its load began**. The record is dead if a later watermark concerns it. So no host's clock is
//! compared, and a load that began before an invalidation is fenced without a search for it.
//!
//! The counter belongs to an *incarnation*, a random number. A flush or an eviction removes all
//! watermarks at once. The process that notices this begins a new incarnation, and records of
//! another incarnation are dead. So watermarks never disappear before the entries that they
//! concern. An incarnation is taken from L2's own answers only. If a message names another one, L2
//! is asked, because any client of the server may publish.
//!
//! A process learns watermarks from its heartbeats and from messages, at most a channel lease late.
//! Of tags it knows the recent watermarks only; for an older record it asks L2.

use std::collections::HashMap;
use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use parking_lot::Mutex;

use crate::protocol::record::{Baseline, Watermarks};

/// Tags that the table holds. Beyond that, tags that no entry carries are forgotten, and L2 is
/// asked about them.
const MAX_TAGS: usize = 1 << 16;

/// Incarnations that have ended and are remembered. An answer that names one of them is late, and
/// is ignored.
const RETIRED: usize = 8;

/// The watermark of one tag. The entries that carry the tag share it, so a hit needs no look-up.
#[derive(Debug, Default)]
pub(crate) struct TagWatermark {
    watermark: AtomicU64,
    /// Invalidations that L2 has not confirmed. While there is one, every entry with this tag is
    /// dead.
    unconfirmed: AtomicU32,
}

impl TagWatermark {
    /// Entries with a lower baseline are dead.
    fn last(&self) -> u64 {
        if self.unconfirmed.load(Ordering::Acquire) > 0 {
            return u64::MAX;
        }
        self.watermark.load(Ordering::Acquire)
    }

    #[cfg(test)]
    pub(crate) fn is_unconfirmed(&self) -> bool {
        self.unconfirmed.load(Ordering::Acquire) > 0
    }

    pub(crate) fn add_unconfirmed(&self) {
        self.unconfirmed.fetch_add(1, Ordering::AcqRel);
    }

    pub(crate) fn remove_unconfirmed(&self) {
        self.unconfirmed.fetch_sub(1, Ordering::AcqRel);
    }
}

/// The tags of an entry, with the watermark that was known before its load began.
#[derive(Clone, Debug)]
pub(crate) struct Tags {
    watermark: u64,
    tags: Arc<[Arc<TagWatermark>]>,
}

impl Tags {
    /// The same tags for an entry with another baseline.
    pub(crate) fn renewed(&self, baseline: Baseline) -> Self {
        Self {
            watermark: baseline.watermark,
            tags: Arc::clone(&self.tags),
        }
    }

    /// Whether none of the tags was invalidated since the load began.
    pub(crate) fn hold(&self) -> bool {
        self.tags.iter().all(|tag| tag.last() <= self.watermark)
    }
}

/// Whether a record is alive, as far as this process knows.
#[derive(Debug)]
pub(crate) enum Liveness {
    /// Neither everything nor one of its tags was invalidated. `None`: the record has no tags.
    Alive(Option<Tags>),
    Dead,
    /// The record is of another incarnation, which may be a newer one: L2 is to be asked.
    OtherIncarnation,
    /// The load began before the watermarks of tags are known from: L2 is to be asked about its
    /// tags.
    AskTags(Tags),
}

/// The watermarks that one cache knows.
#[derive(Debug, Default)]
pub(crate) struct WatermarkTable {
    state: Mutex<TableState>,
}

#[derive(Debug, Default)]
struct TableState {
    known: Option<Watermarks>,
    /// Incarnations that have ended, the oldest first.
    retired: VecDeque<u64>,
    tags: HashMap<u64, Arc<TagWatermark>>,
    /// Every tag's watermark that is later than this one is known. `None`: messages may have been
    /// missed, so none is.
    tags_known_since: Option<u64>,
    /// The latest watermark that a message brought.
    latest_message: u64,
    /// How many messages named another incarnation.
    contradictions: u64,
    /// For how many of them L2 has been asked.
    contradictions_checked: u64,
    /// How often the incarnation has changed.
    incarnation_changes: u64,
}

/// A query to L2, with the state of the table when it began.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Query {
    contradictions: u64,
    incarnation_changes: u64,
}

/// What is to be dropped when the table has learnt watermarks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Learned {
    Nothing,
    /// Everything that was read before is dead.
    Everything,
    /// The watermark has advanced, and the message that names the tag has not come.
    Missed,
}

impl WatermarkTable {
    /// The table of a cache without L2, which counts its own watermarks.
    pub(crate) fn alone() -> Self {
        let table = Self::default();
        {
            let mut state = table.state.lock();
            state.known = Some(Watermarks::default());
            state.tags_known_since = Some(0);
        }
        table
    }

    /// The watermarks that are known. `None`: this process has not learnt any yet.
    pub(crate) fn known(&self) -> Option<Watermarks> {
        self.state.lock().known
    }

    /// The baseline of a record whose load begins now.
    pub(crate) fn baseline(&self) -> Baseline {
        let known = self.state.lock().known.unwrap_or_default();
        Baseline {
            incarnation: known.incarnation,
            watermark: known.current,
        }
    }

    /// Takes in watermarks from L2. `ordered`: they came over the bus, so every message before them
    /// has been processed.
    pub(crate) fn learn(&self, watermarks: Watermarks, ordered: bool) -> Learned {
        let mut state = self.state.lock();
        let learned = match state.known {
            None => {
                state.known = Some(watermarks);
                // Nothing was known when the entries in L1 were read.
                Learned::Everything
            }
            Some(known) if known.incarnation == watermarks.incarnation => {
                state.known = Some(Watermarks {
                    incarnation: watermarks.incarnation,
                    current: known.current.max(watermarks.current),
                    all: known.all.max(watermarks.all),
                });
                if watermarks.all > known.all {
                    Learned::Everything
                } else {
                    Learned::Nothing
                }
            }
            Some(_) if state.retired.contains(&watermarks.incarnation) => return Learned::Nothing,
            Some(known) => {
                state.retired.push_back(known.incarnation);
                if state.retired.len() > RETIRED {
                    state.retired.pop_front();
                }
                state.known = Some(watermarks);
                state.incarnation_changes += 1;
                state.tags.retain(|_, tag| Arc::strong_count(tag) > 1);
                for tag in state.tags.values() {
                    tag.watermark.store(0, Ordering::Release);
                }
                state.tags_known_since = None;
                Learned::Everything
            }
        };
        if ordered && state.tags_known_since.is_none() {
            state.tags_known_since = Some(watermarks.current);
            state.latest_message = watermarks.current;
        } else if ordered && watermarks.current > state.latest_message {
            state.latest_message = watermarks.current;
            if learned == Learned::Nothing {
                return Learned::Missed;
            }
        }
        learned
    }

    /// Whether the watermarks came from L2 itself, and no message has named another incarnation
    /// since.
    pub(crate) fn is_certain(&self) -> bool {
        let state = self.state.lock();
        state.known.is_some() && state.contradictions_checked == state.contradictions
    }

    /// Whether a message names another incarnation than the known one. Such a message is not
    /// believed, because any client may publish it, and a process that believed it would ignore
    /// later invalidations of everything. L2 is asked instead.
    pub(crate) fn contradicts(&self, watermarks: Watermarks) -> bool {
        let mut state = self.state.lock();
        let another = state
            .known
            .is_some_and(|known| known.incarnation != watermarks.incarnation);
        if another {
            state.contradictions += 1;
            state.tags_known_since = None;
        }
        another
    }

    /// A query to L2 begins.
    pub(crate) fn begin_query(&self) -> Query {
        let state = self.state.lock();
        Query {
            contradictions: state.contradictions,
            incarnation_changes: state.incarnation_changes,
        }
    }

    /// L2 has answered a query. The caller passes the answer to [`learn`](Self::learn) next.
    pub(crate) fn end_query(&self, answer: Watermarks, query: Query) {
        let mut state = self.state.lock();
        state.contradictions_checked = state.contradictions_checked.max(query.contradictions);
        if query.incarnation_changes == state.incarnation_changes {
            // The query began after the last change of the incarnation, so its answer is not late:
            // L2 has returned to an older incarnation, for instance from a backup.
            state
                .retired
                .retain(|retired| *retired != answer.incarnation);
        }
    }

    /// A message brought watermarks.
    pub(crate) fn observe_message(&self, watermarks: Watermarks) {
        let mut state = self.state.lock();
        if state
            .known
            .is_some_and(|known| known.incarnation == watermarks.incarnation)
        {
            state.latest_message = state.latest_message.max(watermarks.current);
        }
    }

    /// A tag was invalidated at this watermark.
    pub(crate) fn learn_tag(&self, tag: u64, watermarks: Watermarks) {
        let mut state = self.state.lock();
        if state
            .known
            .is_none_or(|known| known.incarnation == watermarks.incarnation)
        {
            let tag = state.tag(tag);
            tag.watermark
                .fetch_max(watermarks.current, Ordering::AcqRel);
        }
    }

    /// Messages may have been missed.
    pub(crate) fn distrust(&self) {
        self.state.lock().tags_known_since = None;
    }

    /// Advances the watermark of a tag, or of everything, in a cache without L2.
    pub(crate) fn advance(&self, tag: Option<u64>) {
        let mut state = self.state.lock();
        let mut known = state.known.unwrap_or_default();
        known.current += 1;
        match tag {
            Some(tag) => state
                .tag(tag)
                .watermark
                .store(known.current, Ordering::Release),
            None => known.all = known.current,
        }
        state.known = Some(known);
    }

    pub(crate) fn tag(&self, tag: u64) -> Arc<TagWatermark> {
        self.state.lock().tag(tag)
    }

    /// The tags of an entry with this baseline. `None`: it has no tags.
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
            watermark: baseline.watermark,
            tags: tags.map(|tag| state.tag(tag)).collect(),
        })
    }

    /// Whether a record is alive, as far as this process knows. `proven`: the channel is proven, so
    /// what is known of tags is at most a channel lease old.
    pub(crate) fn check_liveness(
        &self,
        baseline: Baseline,
        tags: impl ExactSizeIterator<Item = u64>,
        proven: bool,
    ) -> Liveness {
        let (known, since) = {
            let state = self.state.lock();
            (state.known.unwrap_or_default(), state.tags_known_since)
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

impl TableState {
    fn tag(&mut self, tag: u64) -> Arc<TagWatermark> {
        if self.tags.len() >= MAX_TAGS && !self.tags.contains_key(&tag) {
            let mut forgotten = 0;
            self.tags.retain(|_, tag| {
                let kept = Arc::strong_count(tag) > 1;
                if !kept {
                    forgotten = forgotten.max(tag.watermark.load(Ordering::Acquire));
                }
                kept
            });
            self.tags_known_since = self.tags_known_since.map(|since| since.max(forgotten));
        }
        Arc::clone(self.tags.entry(tag).or_default())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn watermarks(incarnation: u64, current: u64, all: u64) -> Watermarks {
        Watermarks {
            incarnation,
            current,
            all,
        }
    }

    fn baseline(incarnation: u64, watermark: u64) -> Baseline {
        Baseline {
            incarnation,
            watermark,
        }
    }

    fn alive(table: &WatermarkTable, baseline: Baseline, tags: &[u64]) -> bool {
        matches!(
            table.check_liveness(baseline, tags.iter().copied(), true),
            Liveness::Alive(_)
        )
    }

    #[test]
    fn what_began_before_everything_was_invalidated_is_dead() {
        let table = WatermarkTable::default();
        assert_eq!(table.learn(watermarks(7, 3, 0), true), Learned::Everything);
        assert!(alive(&table, baseline(7, 3), &[]) && alive(&table, baseline(7, 0), &[]));
        assert_eq!(table.learn(watermarks(7, 4, 4), true), Learned::Everything);
        assert!(!alive(&table, baseline(7, 3), &[]) && alive(&table, baseline(7, 4), &[]));
        assert_eq!(
            table.learn(watermarks(7, 3, 0), false),
            Learned::Nothing,
            "older watermarks"
        );
        assert_eq!(table.known(), Some(watermarks(7, 4, 4)));
    }

    #[test]
    fn a_tag_kills_what_carries_it_and_was_loaded_before() {
        let table = WatermarkTable::default();
        table.learn(watermarks(7, 3, 0), true);
        let held = table.tags(baseline(7, 3), [1, 2].into_iter()).unwrap();
        let other = table.tags(baseline(7, 3), [3].into_iter()).unwrap();
        assert!(held.hold());
        table.learn_tag(2, watermarks(7, 4, 0));
        assert!(!held.hold() && other.hold());
        assert!(!alive(&table, baseline(7, 3), &[2]) && alive(&table, baseline(7, 4), &[2]));
        let tag = table.tag(3);
        tag.add_unconfirmed();
        assert!(!other.hold(), "L2 has not confirmed it");
        tag.remove_unconfirmed();
        assert!(other.hold());
    }

    #[test]
    fn what_is_older_than_what_is_known_of_tags_is_asked_for() {
        let table = WatermarkTable::default();
        table.learn(watermarks(7, 3, 0), true);
        let ask = |watermark, tags: &[u64]| {
            matches!(
                table.check_liveness(baseline(7, watermark), tags.iter().copied(), true),
                Liveness::AskTags(_)
            )
        };
        assert!(ask(2, &[1]) && !ask(3, &[1]) && !ask(2, &[]));
        let unproven = table.check_liveness(baseline(7, 3), [1].into_iter(), false);
        assert!(matches!(unproven, Liveness::AskTags(_)));
        table.distrust();
        assert!(ask(3, &[1]));
        table.learn(watermarks(7, 5, 0), false);
        assert!(
            ask(5, &[1]),
            "learnt out of order: a message may still be on its way"
        );
        table.learn(watermarks(7, 5, 0), true);
        assert!(ask(4, &[1]) && !ask(5, &[1]));
    }

    #[test]
    fn a_mark_that_no_message_told_of_was_missed() {
        let table = WatermarkTable::default();
        table.learn(watermarks(7, 3, 0), true);
        table.observe_message(watermarks(7, 4, 0));
        assert_eq!(table.learn(watermarks(7, 4, 0), true), Learned::Nothing);
        assert_eq!(
            table.learn(watermarks(7, 6, 0), false),
            Learned::Nothing,
            "not in order"
        );
        assert_eq!(table.learn(watermarks(7, 6, 0), true), Learned::Missed);
        assert_eq!(
            table.learn(watermarks(7, 6, 0), true),
            Learned::Nothing,
            "reported once"
        );
        assert_eq!(table.learn(watermarks(7, 7, 7), true), Learned::Everything);
    }

    #[test]
    fn another_era_kills_everything_and_is_not_gone_back_from() {
        let table = WatermarkTable::default();
        table.learn(watermarks(7, 3, 0), true);
        assert!(matches!(
            table.check_liveness(baseline(8, 9), [].into_iter(), true),
            Liveness::OtherIncarnation
        ));
        assert_eq!(table.learn(watermarks(8, 0, 0), true), Learned::Everything);
        assert!(alive(&table, baseline(8, 0), &[1]));
        assert!(matches!(
            table.check_liveness(baseline(7, 3), [].into_iter(), true),
            Liveness::OtherIncarnation
        ));
        assert_eq!(table.learn(watermarks(7, 3, 0), false), Learned::Nothing);
        assert_eq!(table.known(), Some(watermarks(8, 0, 0)));
    }

    #[test]
    fn a_message_of_another_era_is_asked_about_and_not_believed() {
        let table = WatermarkTable::default();
        assert!(!table.is_certain() && !table.contradicts(watermarks(8, 1, 1)));
        table.learn(watermarks(7, 3, 0), false);
        assert!(table.is_certain() && !table.contradicts(watermarks(7, 9, 9)));
        let query = table.begin_query();
        assert!(table.contradicts(watermarks(8, 1, 1)));
        assert!(!table.is_certain());
        assert_eq!(table.known(), Some(watermarks(7, 3, 0)));
        table.end_query(watermarks(7, 3, 0), query);
        assert!(
            !table.is_certain(),
            "the query began before the message came"
        );
        table.end_query(watermarks(7, 3, 0), table.begin_query());
        assert!(table.is_certain());
    }

    #[test]
    fn an_era_is_gone_back_to_when_l2_has_gone_back_to_it() {
        let table = WatermarkTable::default();
        table.learn(watermarks(7, 3, 0), false);
        let query = table.begin_query();
        table.learn(watermarks(8, 1, 1), false);
        table.end_query(watermarks(7, 3, 0), query);
        assert_eq!(table.learn(watermarks(7, 3, 0), false), Learned::Nothing);
        assert!(table.contradicts(watermarks(7, 3, 0)));
        table.end_query(watermarks(7, 3, 0), table.begin_query());
        assert_eq!(table.learn(watermarks(7, 3, 0), false), Learned::Everything);
        assert_eq!(table.known(), Some(watermarks(7, 3, 0)));
    }

    #[test]
    fn tags_that_nothing_carries_are_forgotten_and_then_asked_for() {
        let table = WatermarkTable::default();
        table.learn(watermarks(7, 0, 0), true);
        let held = table.tags(baseline(7, 0), [u64::MAX].into_iter()).unwrap();
        for tag in 0..MAX_TAGS as u64 {
            table.learn_tag(tag, watermarks(7, tag + 1, 0));
        }
        assert!(table.state.lock().tags.len() <= MAX_TAGS);
        let liveness = table.check_liveness(baseline(7, 5), [9].into_iter(), true);
        assert!(matches!(liveness, Liveness::AskTags(_)), "{liveness:?}");
        assert!(held.hold());
        table.learn_tag(u64::MAX, watermarks(7, 9, 0));
        assert!(!held.hold());
    }
}
