//! The page of a list, with one query for its lines and one more for each line. The example shows
//! what that costs, and what the page costs with `get_many` or with micro-batches.
//!
//! ```text
//! cargo run --example batches --features testing
//! ```
//!
//! The rows are in a real SQLite database. tokio's clock is paused, so the time of a page is the
//! sum of the round trips that follow each other, with L2 and the database at the distances below.
//! `cargo bench --bench batches` measures real times.

use std::collections::HashMap;
use std::error::Error;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use rusqlite::{Connection, params_from_iter};
use tidegate::testing::{Fault, Faults, Operations};
use tidegate::{
    BatchLoader, Batching, BoxError, Cache, CacheBuilder, CacheFor, InProcess, Loaded, Loader,
};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep};

/// Lines of the page, and the users that they name.
const LINES: u64 = 200;
const USERS: u64 = 100;
/// The time of a round trip to L2, and of a query.
const TO_L2: Duration = Duration::from_millis(2);
const TO_DATABASE: Duration = Duration::from_millis(4);

/// The table of users, at a distance.
#[derive(Clone)]
struct Users {
    rows: Arc<Mutex<Connection>>,
    queries: Arc<AtomicU64>,
    distance: Duration,
}

impl Users {
    fn new(distance: Duration) -> Result<Self, BoxError> {
        let rows = Connection::open_in_memory().map_err(BoxError::new)?;
        rows.execute_batch("CREATE TABLE users (id INTEGER PRIMARY KEY, name TEXT NOT NULL)")
            .map_err(BoxError::new)?;
        for id in 0..USERS {
            let name = format!("user {id}");
            rows.execute("INSERT INTO users VALUES (?1, ?2)", (id, name))
                .map_err(BoxError::new)?;
        }
        Ok(Self {
            rows: Arc::new(Mutex::new(rows)),
            queries: Arc::default(),
            distance,
        })
    }

    /// `SELECT … WHERE id IN (…)`
    async fn select(&self, ids: &[u64]) -> Result<HashMap<u64, String>, BoxError> {
        sleep(self.distance).await;
        self.queries.fetch_add(1, Ordering::Relaxed);
        let rows = self.rows.lock().unwrap_or_else(PoisonError::into_inner);
        let marks = vec!["?"; ids.len()].join(", ");
        let mut query = rows
            .prepare_cached(&format!("SELECT id, name FROM users WHERE id IN ({marks})"))
            .map_err(BoxError::new)?;
        let found = query
            .query_map(params_from_iter(ids), |row| Ok((row.get(0)?, row.get(1)?)))
            .map_err(BoxError::new)?;
        found.collect::<Result<_, _>>().map_err(BoxError::new)
    }
}

impl Loader for Users {
    type Key = u64;
    type Value = String;
    type Error = BoxError;

    async fn load(&self, id: &u64) -> Result<Loaded<String>, BoxError> {
        Ok(self.select(&[*id]).await?.remove(id).into())
    }
}

impl BatchLoader for Users {
    async fn load_many(&self, ids: &[u64]) -> Result<HashMap<u64, Loaded<String>>, BoxError> {
        let found = self.select(ids).await?;
        Ok(found
            .into_iter()
            .map(|(id, name)| (id, name.into()))
            .collect())
    }
}

/// The user of each line.
fn lines() -> Vec<u64> {
    (0..LINES).map(|line| line * 7 % USERS).collect()
}

/// A process, with L2 and the database at the given distances.
struct Process {
    users: CacheFor<Users>,
    database: Users,
    tier: InProcess,
}

struct Cost {
    queries: u64,
    commands: u64,
    took: Duration,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Strategy {
    OneByOne,
    AtOnce,
    Many,
}

impl Process {
    async fn new(
        settings: fn(CacheBuilder<Users>) -> CacheBuilder<Users>,
        to_database: Duration,
        warm: bool,
    ) -> Result<Self, Box<dyn Error>> {
        let (tier, faults): (InProcess, Faults) = InProcess::with_faults();
        let database = Users::new(to_database)?;
        let process = || {
            settings(Cache::builder("users", database.clone()))
                .l2(tier.clone())
                .build()
        };
        if warm {
            // Another process has filled L2.
            process()?.get_many(&lines()).await;
        }
        let users = process()?;
        // The channel is connected and proven.
        users.get(&USERS).await?;
        sleep(Duration::from_millis(10)).await;
        faults.set(Operations::All, Fault::Delay(TO_L2));
        database.queries.store(0, Ordering::Relaxed);
        Ok(Self {
            users,
            database,
            tier,
        })
    }

    async fn page(&self, strategy: Strategy) -> Result<Cost, Box<dyn Error>> {
        let (before, begun) = (self.tier.commands(), Instant::now());
        let names = match strategy {
            Strategy::OneByOne => {
                let mut names = Vec::new();
                for id in lines() {
                    names.push(self.users.get(&id).await);
                }
                names
            }
            Strategy::AtOnce => {
                let mut asked = JoinSet::new();
                for id in lines() {
                    let users = self.users.clone();
                    asked.spawn(async move { users.get(&id).await });
                }
                asked.join_all().await
            }
            Strategy::Many => self.users.get_many(&lines()).await,
        };
        for name in names {
            name?.ok_or("a user")?;
        }
        Ok(Cost {
            queries: self.database.queries.load(Ordering::Relaxed),
            commands: self.tier.commands() - before,
            took: begun.elapsed(),
        })
    }
}

#[tokio::main(flavor = "current_thread", start_paused = true)]
async fn main() -> Result<(), Box<dyn Error>> {
    let alone: fn(CacheBuilder<Users>) -> CacheBuilder<Users> = |builder| builder;
    let batched: fn(CacheBuilder<Users>) -> CacheBuilder<Users> =
        |builder| builder.batched(Batching::new());
    println!(
        "{LINES} lines with {USERS} users; L2 is {TO_L2:?} away, the database {TO_DATABASE:?}\n"
    );
    println!(
        "| the page | queries | commands to L2 | round trips to L2, one after the other | time |"
    );
    println!("|---|---|---|---|---|");
    let rows = [
        (
            "N+1: one `get` after the other, cold",
            alone,
            Strategy::OneByOne,
            false,
        ),
        (
            "as many concurrent `get`s, cold",
            alone,
            Strategy::AtOnce,
            false,
        ),
        ("the same, micro-batched", batched, Strategy::AtOnce, false),
        ("`get_many`, cold", batched, Strategy::Many, false),
        ("N+1, all in L2", alone, Strategy::OneByOne, true),
        ("`get_many`, all in L2", batched, Strategy::Many, true),
    ];
    for (what, settings, strategy, warm) in rows {
        // With a database that takes no time, only round trips to L2 remain.
        let near = Process::new(settings, Duration::ZERO, warm)
            .await?
            .page(strategy)
            .await?;
        let trips = near.took.as_millis() / TO_L2.as_millis();
        let cost = Process::new(settings, TO_DATABASE, warm)
            .await?
            .page(strategy)
            .await?;
        println!(
            "| {what} | {} | {} | {trips} | {} ms |",
            cost.queries,
            cost.commands,
            cost.took.as_millis()
        );
    }
    Ok(())
}
