//! Events of a cache, recorded.

use std::sync::{Arc, Mutex};

use tidegate::Event;

/// All events so far. Clones share them.
#[derive(Clone, Default)]
pub(crate) struct Events(Arc<Mutex<Vec<Event>>>);

impl Events {
    pub(crate) fn callback(&self) -> impl Fn(&Event) + Send + Sync + 'static {
        let events = Arc::clone(&self.0);
        move |event| {
            events
                .lock()
                .expect("no panic under this lock")
                .push(*event)
        }
    }

    pub(crate) fn all(&self) -> Vec<Event> {
        self.0.lock().expect("no panic under this lock").clone()
    }

    pub(crate) fn count(&self, event: Event) -> usize {
        self.all().iter().filter(|events| **events == event).count()
    }
}
