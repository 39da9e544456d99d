//! The event log of the live page: the events of the caches, and the actions of the buttons.

use std::collections::{BTreeSet, VecDeque};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{SystemTime, UNIX_EPOCH};

use serde::Serialize;
use tidegate::Event;

/// The source of entries that come from a button.
const YOU: &str = "you";
/// The number of entries that are kept.
const CAPACITY: usize = 40;
/// An event that is among the latest entries already raises their counter; it adds no entry.
const MERGE_WINDOW: usize = 6;

/// An entry of the log, as the page receives it.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Entry {
    pub(crate) at_ms: u64,
    pub(crate) who: BTreeSet<&'static str>,
    pub(crate) what: String,
    pub(crate) times: u64,
    /// `good`, `bad`, or empty for neither.
    pub(crate) mood: &'static str,
}

#[derive(Debug, Default)]
pub(crate) struct Events {
    entries: Mutex<VecDeque<Entry>>,
    breaker_open: AtomicBool,
}

impl Events {
    /// Records the event of a cache. Caches call it within their own work, so it must be quick.
    pub(crate) fn record(&self, cache: &'static str, event: Event) {
        let (what, mood) = match event {
            Event::ChannelUp => ("the channel stands", "good"),
            Event::ChannelDown => ("the channel is lost", "bad"),
            Event::ChannelSilent => ("the channel is silent", "bad"),
            Event::Gap => ("a gap: L2 is asked again", "bad"),
            Event::BreakerOpened => ("the breaker opened: L2 is not asked", "bad"),
            Event::BreakerClosed => ("the breaker closed", "good"),
            Event::Denied => ("Redis denies a right", "bad"),
            Event::Granted => ("Redis denies nothing more", "good"),
            Event::RepairPending => ("an invalidation is to be repeated", "bad"),
            Event::RepairsOverflowed => ("too much to repeat: all is invalidated", "bad"),
            _ => ("something new", ""),
        };
        match event {
            // All caches share one connection and one breaker.
            Event::BreakerOpened => self.breaker_open.store(true, Ordering::Relaxed),
            Event::BreakerClosed => self.breaker_open.store(false, Ordering::Relaxed),
            _ => {}
        }
        self.push(cache, what.to_owned(), mood);
    }

    /// Records the action of a button.
    pub(crate) fn record_action(&self, what: impl Into<String>) {
        self.push(YOU, what.into(), "");
    }

    pub(crate) fn is_breaker_open(&self) -> bool {
        self.breaker_open.load(Ordering::Relaxed)
    }

    /// The latest entries, the newest first.
    pub(crate) fn latest(&self, limit: usize) -> Vec<Entry> {
        let entries = self.entries.lock().unwrap_or_else(PoisonError::into_inner);
        entries.iter().rev().take(limit).cloned().collect()
    }

    fn push(&self, who: &'static str, what: String, mood: &'static str) {
        let mut entries = self.entries.lock().unwrap_or_else(PoisonError::into_inner);
        let is_same = |entry: &Entry| who != YOU && entry.what == what;
        let found = entries.iter().rev().take(MERGE_WINDOW).position(is_same);
        let at = found.map(|back| entries.len() - 1 - back);
        let previous = at.and_then(|at| entries.remove(at));
        let mut entry = previous.unwrap_or_else(|| Entry {
            at_ms: 0,
            who: BTreeSet::new(),
            what,
            times: 0,
            mood,
        });
        entry.at_ms = now_ms();
        entry.who.insert(who);
        entry.times += 1;
        entries.push_back(entry);
        if entries.len() > CAPACITY {
            entries.pop_front();
        }
    }
}

pub(crate) fn now_ms() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    since.map_or(0, |since| {
        u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
    })
}
