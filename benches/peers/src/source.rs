//! The cached values, and the source of truth that they come from.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use serde::{Deserialize, Serialize};

/// About 100 bytes, plus the length of its notes.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct User {
    pub(crate) id: u64,
    /// The revision of the source at the time of the load.
    pub(crate) revision: u64,
    name: String,
    mail: String,
    roles: Vec<String>,
    notes: String,
}

/// The answer of a look-up: a user, or an absence.
pub(crate) type CachedUser = Option<Arc<User>>;

/// Keys from here on are absent.
pub(crate) const ABSENT: u64 = 1 << 40;

/// The loader's own error.
#[derive(Clone, Debug)]
pub(crate) struct Failed;

impl fmt::Display for Failed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the source failed on purpose")
    }
}

impl std::error::Error for Failed {}

/// The payload of the loader's panic, by which it is recognised and not printed.
pub(crate) const PANIC: &str = "the loader panics on purpose";

const ANSWERS: u8 = 0;
const FAILS: u8 = 1;
const PANICS_ONCE: u8 = 2;

/// A source of truth that counts its loads.
#[derive(Debug, Default)]
pub(crate) struct Source {
    loads: AtomicU64,
    delay: AtomicU64,
    revision: AtomicU64,
    mode: AtomicU8,
    notes: usize,
}

impl Source {
    /// A source of small values. It is leaked, because the clone of an `Arc` per call would be
    /// measured.
    pub(crate) fn new() -> &'static Self {
        Box::leak(Box::default())
    }

    /// A source of values of about 1 KB.
    pub(crate) fn of_kilobytes() -> &'static Self {
        Box::leak(Box::new(Self {
            notes: 900,
            ..Self::default()
        }))
    }

    /// Sets the duration of a load.
    pub(crate) fn takes(&self, delay: Duration) {
        let micros = u64::try_from(delay.as_micros()).unwrap_or(u64::MAX);
        self.delay.store(micros, Relaxed);
    }

    pub(crate) fn fails(&self) {
        self.mode.store(FAILS, Relaxed);
    }

    pub(crate) fn panics_once(&self) {
        self.mode.store(PANICS_ONCE, Relaxed);
    }

    /// Begins a new revision and returns it.
    pub(crate) fn changes(&self) -> u64 {
        self.revision.fetch_add(1, Relaxed) + 1
    }

    pub(crate) fn loads(&self) -> u64 {
        self.loads.load(Relaxed)
    }

    pub(crate) async fn load(&self, id: u64) -> Result<Option<User>, Failed> {
        self.loads.fetch_add(1, Relaxed);
        // A database reads first and then takes its time to answer.
        let found = (id < ABSENT).then(|| self.user(id));
        let delay = self.delay.load(Relaxed);
        if delay > 0 {
            tokio::time::sleep(Duration::from_micros(delay)).await;
        }
        match self.mode.load(Relaxed) {
            FAILS => Err(Failed),
            PANICS_ONCE => {
                self.mode.store(ANSWERS, Relaxed);
                std::panic::panic_any(PANIC)
            }
            _ => Ok(found),
        }
    }

    pub(crate) async fn load_shared(&self, id: u64) -> Result<CachedUser, Failed> {
        Ok(self.load(id).await?.map(Arc::new))
    }

    fn user(&self, id: u64) -> User {
        User {
            id,
            revision: self.revision.load(Relaxed),
            name: format!("User number {id}"),
            mail: format!("user-{id}@example.com"),
            roles: vec!["reader".to_owned(), "writer".to_owned()],
            notes: "note ".repeat(self.notes / 5),
        }
    }
}

/// The key of a user as a string.
pub(crate) fn name_of(id: u64) -> String {
    format!("user:{id}")
}

/// The number of a key that is a string.
pub(crate) fn id_of(name: &str) -> u64 {
    name.rsplit(':')
        .next()
        .and_then(|digits| digits.parse().ok())
        .unwrap_or_default()
}

/// The encoding of bare fred and of the tiers of ours.
pub(crate) fn encode(cached: &CachedUser) -> Result<Vec<u8>, bincode::error::EncodeError> {
    bincode::serde::encode_to_vec(cached, bincode::config::standard())
}

/// Bytes that cannot be decoded count as absent.
pub(crate) fn decode(bytes: &[u8]) -> Option<CachedUser> {
    const LIMIT: usize = 1 << 20;
    let config = bincode::config::standard().with_limit::<LIMIT>();
    let decoded = bincode::serde::decode_from_slice(bytes, config);
    decoded.ok().map(|(cached, _)| cached)
}
