//! What happened of late, for people: what caches announce, and what somebody did by a button.

use std::collections::{BTreeSet, VecDeque};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{SystemTime, UNIX_EPOCH};

use serde::Serialize;
use tidegate::Event;

const YOU: &str = "you";
const KEPT: usize = 40;
/// What is said again within so many lines is counted, and not said again.
const NEAR: usize = 6;

#[derive(Clone, Debug, Serialize)]
pub(crate) struct Line {
    pub(crate) at_ms: u64,
    pub(crate) who: BTreeSet<&'static str>,
    pub(crate) what: String,
    pub(crate) times: u64,
    /// `good`, `bad` or nothing.
    pub(crate) mood: &'static str,
}

#[derive(Debug, Default)]
pub(crate) struct Events {
    lines: Mutex<VecDeque<Line>>,
    breaker_open: AtomicBool,
}

impl Events {
    /// Called by caches, wherever they are: it is short.
    pub(crate) fn heard(&self, cache: &'static str, event: Event) {
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
            // One connection: every cache says the same.
            Event::BreakerOpened => self.breaker_open.store(true, Ordering::Relaxed),
            Event::BreakerClosed => self.breaker_open.store(false, Ordering::Relaxed),
            _ => {}
        }
        self.push(cache, what.to_owned(), mood);
    }

    pub(crate) fn done(&self, what: impl Into<String>) {
        self.push(YOU, what.into(), "");
    }

    pub(crate) fn is_breaker_open(&self) -> bool {
        self.breaker_open.load(Ordering::Relaxed)
    }

    /// The latest first.
    pub(crate) fn latest(&self, most: usize) -> Vec<Line> {
        let lines = self.lines.lock().unwrap_or_else(PoisonError::into_inner);
        lines.iter().rev().take(most).cloned().collect()
    }

    fn push(&self, who: &'static str, what: String, mood: &'static str) {
        let mut lines = self.lines.lock().unwrap_or_else(PoisonError::into_inner);
        let said = |line: &Line| who != YOU && line.what == what;
        let again = lines.iter().rev().take(NEAR).position(said);
        let at = again.map(|back| lines.len() - 1 - back);
        let before = at.and_then(|at| lines.remove(at));
        let mut line = before.unwrap_or_else(|| Line {
            at_ms: 0,
            who: BTreeSet::new(),
            what,
            times: 0,
            mood,
        });
        line.at_ms = now_ms();
        line.who.insert(who);
        line.times += 1;
        lines.push_back(line);
        if lines.len() > KEPT {
            lines.pop_front();
        }
    }
}

pub(crate) fn now_ms() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    since.map_or(0, |since| {
        u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
    })
}
