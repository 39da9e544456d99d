//! Absence is a value: "there is no such row" is cached, and a flood of look-ups for absent rows
//! evicts no useful entry.
//!
//! ```text
//! cargo run --release --example negative
//! ```

use std::error::Error;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use rusqlite::{Connection, OptionalExtension};
use tidegate::{BoxError, Cache, CacheFor, InProcess, Loaded, Loader, Stats};
use tokio::task::JoinSet;

/// Users 1 to this number exist.
const USERS: u64 = 1_000;
/// Look-ups of the flood.
const FLOOD: u64 = 20_000;
/// Absences that the cache keeps, in a budget of their own.
const ABSENCES: u64 = 500;

struct Users {
    database: Arc<Mutex<Connection>>,
}

impl Loader for Users {
    type Key = u64;
    type Value = String;
    type Error = BoxError;

    async fn load(&self, id: &u64) -> Result<Loaded<String>, BoxError> {
        let (database, id) = (Arc::clone(&self.database), *id);
        let query = move || {
            let database = database.lock().unwrap_or_else(PoisonError::into_inner);
            database
                .prepare_cached("SELECT name FROM users WHERE id = ?1")?
                .query_row([id], |row| row.get(0))
                .optional()
        };
        let name: Option<String> = tokio::task::spawn_blocking(query)
            .await
            .map_err(BoxError::new)?
            .map_err(BoxError::new)?;
        Ok(name.into()) // `None` becomes a negative entry
    }
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let connection = Connection::open_in_memory()?;
    connection.execute_batch("CREATE TABLE users (id INTEGER PRIMARY KEY, name TEXT NOT NULL)")?;
    connection.execute(
        "WITH RECURSIVE ids(id) AS (SELECT 1 UNION ALL SELECT id + 1 FROM ids WHERE id < ?1)
         INSERT INTO users SELECT id, 'user ' || id FROM ids",
        [USERS],
    )?;

    let shared = InProcess::new();
    let database = Arc::new(Mutex::new(connection));
    let users = Cache::builder("users", Users { database })
        .l1_capacity(2 * USERS)
        .negative_capacity(ABSENCES)
        .l2(shared.clone())
        .build()?;

    heading();
    let mut phase = Phase::begin(&users);

    // One absent row, looked up again and again: one query.
    for _ in 0..1_000 {
        assert!(users.get(&(USERS + 1)).await?.is_none());
    }
    let one_absence = phase.end("one absent user, 1000 times");
    assert_eq!(one_absence.loads, 1);
    assert_eq!(one_absence.negative_hits, 999);

    // Every user once: these are the useful entries.
    for id in 1..=USERS {
        assert!(users.get(&id).await?.is_some());
    }
    phase.end("1000 users, once each");
    let records_before = shared.len() as u64;

    // Random absent numbers. Each of them is a query, because the answer is not known before. The
    // example is about the memory that they leave behind.
    let mut flood_tasks = JoinSet::new();
    for _ in 0..20 {
        let users = users.clone();
        flood_tasks.spawn(async move {
            for _ in 0..FLOOD / 20 {
                let id = rand::random_range(USERS + 2..1 << 50);
                assert!(users.get(&id).await?.is_none());
            }
            Ok::<_, tidegate::Error>(())
        });
    }
    while let Some(done) = flood_tasks.join_next().await {
        done??;
    }
    phase.end("20000 random absent users");
    let records_left = shared.len() as u64 - records_before;

    // The useful entries are still in L1.
    for id in 1..=USERS {
        assert!(users.get(&id).await?.is_some());
    }
    let again = phase.end("the 1000 users once more");
    assert_eq!(again.l1_hits, USERS, "the flood evicted users from L1");
    assert_eq!(again.loads, 0);

    println!("\nThe flood evicted none of the {USERS} users.");
    println!(
        "Of its {FLOOD} absences L2 holds {records_left}, and L1 no more than {ABSENCES} at any time."
    );
    assert!(records_left <= 2 * ABSENCES, "absences are not bounded");
    users.close().await;
    Ok(())
}

/// Prints how the statistics changed during a phase.
struct Phase<'a> {
    users: &'a CacheFor<Users>,
    before: Stats,
    begun: Instant,
}

fn heading() {
    println!(
        "{:<32} {:>8} {:>8} {:>14} {:>16} {:>8}",
        "", "queries", "L1 hits", "negative hits", "not kept in L2", "time"
    );
}

impl<'a> Phase<'a> {
    fn begin(users: &'a CacheFor<Users>) -> Self {
        Self {
            users,
            before: users.stats(),
            begun: Instant::now(),
        }
    }

    fn end(&mut self, what: &str) -> Stats {
        let stats = self.users.stats().since(&self.before);
        println!(
            "{what:<32} {:>8} {:>8} {:>14} {:>16} {:>5.1} ms",
            stats.loads,
            stats.l1_hits,
            stats.negative_hits,
            stats.negatives_not_stored,
            self.begun.elapsed().as_secs_f64() * 1e3,
        );
        *self = Self::begin(self.users);
        stats
    }
}
