//! What the server denies to the user, as far as is known.

use std::sync::Arc;

use parking_lot::Mutex;
use tokio::sync::Notify;

/// The state of the ACL checks of one handle.
#[derive(Debug, Default)]
pub(in crate::l2::redis) struct Acl {
    state: Mutex<Denials>,
    /// A command was denied: check all of them.
    pub(in crate::l2::redis) recheck: Arc<Notify>,
}

#[derive(Debug, Default)]
struct Denials {
    commands: Option<Arc<str>>,
    bus: Option<Arc<str>>,
    /// A command was denied since the last check.
    denied_since_check: bool,
}

impl Denials {
    fn is_denied(&self) -> bool {
        self.commands.is_some() || self.bus.is_some()
    }
}

/// What a denial is about.
pub(super) enum Scope {
    Commands,
    Bus,
}

impl Acl {
    /// What is denied, in words.
    pub(in crate::l2::redis) fn denied(&self) -> Option<Arc<str>> {
        let state = self.state.lock();
        match (&state.commands, &state.bus) {
            (Some(commands), Some(bus)) => Some(format!("{commands}; {bus}").into()),
            (commands, bus) => commands.clone().or_else(|| bus.clone()),
        }
    }

    pub(super) fn is_denied(&self) -> bool {
        self.state.lock().is_denied()
    }

    /// Sets what is denied. Answers whether something was denied before, and whether it is now.
    pub(super) fn set(&self, scope: &Scope, denied: Option<Arc<str>>) -> (bool, bool) {
        let mut state = self.state.lock();
        let before = state.is_denied();
        match scope {
            Scope::Commands => state.commands = denied,
            Scope::Bus => state.bus = denied,
        }
        (before, state.is_denied())
    }

    /// Notes that a command was denied. Answers whether that is known already.
    pub(super) fn note_denied_command(&self) -> bool {
        let mut state = self.state.lock();
        state.denied_since_check = true;
        state.commands.is_some()
    }

    /// Begins a check. Answers whether a command was denied since the last one.
    pub(super) fn begin_check(&self) -> bool {
        std::mem::take(&mut self.state.lock().denied_since_check)
    }

    /// The check did not end: what it was told at its beginning is for the next one.
    pub(super) fn undo_check(&self, denied_since_check: bool) {
        self.state.lock().denied_since_check |= denied_since_check;
    }
}
