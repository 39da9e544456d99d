//! A cache in front of a SQLite table, on one screen: a miss, a hit, an update with its
//! invalidation, and a row that does not exist.
//!
//! ```text
//! cargo run --example quickstart
//! ```

use std::error::Error;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use rusqlite::{Connection, OptionalExtension};
use tidegate::{BoxError, Cache, CacheFor, Loaded, Loader};

type Database = Arc<Mutex<Connection>>;

/// Reads a user from the source of truth. This is all that a service has to write.
struct Users {
    database: Database,
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
                .query_row("SELECT name FROM users WHERE id = ?1", [id], |row| {
                    row.get(0)
                })
                .optional()
        };
        // SQLite blocks, so the query runs outside the async threads.
        let name: Option<String> = tokio::task::spawn_blocking(query)
            .await
            .map_err(BoxError::new)?
            .map_err(BoxError::new)?;
        Ok(name.into()) // `None` is cached too: "there is no such user"
    }
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let connection = Connection::open_in_memory()?;
    connection.execute_batch(
        "CREATE TABLE users (id INTEGER PRIMARY KEY, name TEXT NOT NULL);
         INSERT INTO users VALUES (42, 'Ada'), (43, 'Grace');",
    )?;
    let database: Database = Arc::new(Mutex::new(connection));

    let users = Cache::builder(
        "users",
        Users {
            database: Arc::clone(&database),
        },
    )
    .ttl(Duration::from_secs(300))
    .build()?;

    let first = show(&users, 42, "the first look-up asks the database").await?;
    let second = show(&users, 42, "the second one is answered by L1").await?;
    assert_eq!(first, second);

    // A write goes to the database first. After the commit the key is invalidated.
    database
        .lock()
        .unwrap_or_else(PoisonError::into_inner)
        .execute("UPDATE users SET name = 'Ada Lovelace' WHERE id = 42", [])?;
    users.invalidate(&42).await?;
    let third = show(&users, 42, "after UPDATE and invalidate: the new row").await?;
    assert_eq!(third.as_deref(), Some("Ada Lovelace"));

    show(&users, 7, "no such row").await?;
    show(&users, 7, "and that is remembered as well").await?;

    let stats = users.stats();
    println!("\n{} look-ups, {} queries", stats.lookups(), stats.loads);
    assert_eq!((stats.lookups(), stats.loads), (5, 3));
    Ok(())
}

/// Looks a user up and prints the answer.
async fn show(
    users: &CacheFor<Users>,
    id: u64,
    what: &str,
) -> Result<Option<String>, Box<dyn Error>> {
    let begun = Instant::now();
    let user = users.get(&id).await?.map(|name| name.to_string());
    let took = begun.elapsed().as_micros();
    println!(
        "{what:<42} {id:>2} = {:<16} {took:>5} µs",
        user.as_deref().unwrap_or("-")
    );
    Ok(user)
}
