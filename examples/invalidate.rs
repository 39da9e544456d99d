//! Two processes and one database: which process sees a write, and when.
//!
//! The processes are two caches on one embedded tier, which behave as two services on one Redis do.
//! There are four scenes, in which gates force the order of events:
//!
//! 1. One process changes a row and invalidates it, and the other one sees the change.
//! 2. A load that began before an invalidation is not stored, however late it ends.
//! 3. Why `invalidate` comes **after** the commit, never before.
//! 4. A write that changes many rows: a tag, and everything.
//!
//! ```text
//! cargo run --example invalidate
//! ```

use std::error::Error;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};

use rusqlite::Connection;
use tidegate::{BoxError, Cache, CacheFor, InProcess, Loaded, Loader};
use tokio::sync::oneshot;

const TEA: u64 = 1;

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let file = DatabaseFile::create()?;
    let shared = InProcess::new();
    let a = Node::start("A", &file, &shared)?;
    let b = Node::start("B", &file, &shared)?;

    println!("1. A write in one process is seen by the other one");
    a.expect(100).await?;
    b.expect(100).await?;
    a.database
        .execute("UPDATE prices SET cents = 120 WHERE id = 1")?;
    println!("   A  UPDATE to 120, committed");
    a.invalidate().await?;
    b.expect(120).await?;
    a.expect(120).await?;

    println!("\n2. A load that began before an invalidation is not stored");
    a.invalidate().await?;
    let gate = b.close_gate();
    let slow = tokio::spawn({
        let prices = b.prices.clone();
        async move { prices.get(&TEA).await }
    });
    gate.reached.await?;
    println!("   B  a load has read 120, and is slow to return");
    a.database
        .execute("UPDATE prices SET cents = 150 WHERE id = 1")?;
    println!("   A  UPDATE to 150, committed");
    a.invalidate().await?;
    let _ = gate.open.send(());
    let late = slow.await??.map(|cents| *cents);
    println!(
        "   B  the slow load ends; who asked before the UPDATE is answered {}",
        show(late)
    );
    assert_eq!(late, Some(120));
    assert!(
        b.prices.peek(&TEA).is_none(),
        "the late value was stored in L1"
    );
    a.expect(150).await?; // not the late value from the shared tier
    b.expect(150).await?;

    println!("\n3. The wrong order: invalidate, then commit");
    a.database
        .execute("BEGIN; UPDATE prices SET cents = 180 WHERE id = 1")?;
    println!("   A  UPDATE to 180, not committed yet");
    a.invalidate().await?;
    b.expect(150).await?; // what is committed at this moment, and so it is cached
    a.database.execute("COMMIT")?;
    println!("   A  COMMIT");
    b.expect(150).await?;
    println!("      The database says 180, the caches will say 150 until the TTL ends.");
    println!("   The right order:");
    a.invalidate().await?;
    b.expect(180).await?;
    a.expect(180).await?;

    println!("\n4. A write that changes many rows");
    a.database.execute("UPDATE prices SET cents = cents + 10")?;
    println!("   A  UPDATE of every drink, committed");
    let before = shared.commands();
    a.prices.invalidate_tag("drinks").await?;
    println!(
        "   A  invalidate_tag(\"drinks\"): {} command, whatever the number of drinks",
        shared.commands() - before
    );
    b.expect(190).await?;
    a.expect(190).await?;
    a.database.execute("UPDATE prices SET cents = 210")?;
    println!("   A  an import of all prices, committed");
    a.prices.invalidate_all().await?;
    println!("   A  invalidate_all");
    b.expect(210).await?;
    a.expect(210).await?;

    Ok(())
}

/// One process: its own connection, its own cache, and the tier that all share.
struct Node {
    name: &'static str,
    database: Database,
    prices: CacheFor<Prices>,
    gate: Arc<Mutex<Option<LoaderGate>>>,
}

impl Node {
    fn start(
        name: &'static str,
        file: &DatabaseFile,
        shared: &InProcess,
    ) -> Result<Self, Box<dyn Error>> {
        let database = Database::open(file)?;
        let gate = Arc::default();
        let loader = Prices {
            database: database.clone(),
            gate: Arc::clone(&gate),
        };
        let prices = Cache::builder("prices", loader)
            .l2(shared.clone())
            .build()?;
        Ok(Self {
            name,
            database,
            prices,
            gate,
        })
    }

    /// Looks the price up, prints it, and fails when it is not `cents`.
    async fn expect(&self, cents: u64) -> Result<(), Box<dyn Error>> {
        let entry = self
            .prices
            .get_entry(&TEA)
            .await?
            .ok_or("there is no tea")?;
        let found = **entry.value();
        println!("   {}  get: {found} (from {:?})", self.name, entry.source());
        if found != cents {
            return Err(format!("{} answered {found} instead of {cents}", self.name).into());
        }
        Ok(())
    }

    async fn invalidate(&self) -> Result<(), Box<dyn Error>> {
        self.prices.invalidate(&TEA).await?;
        println!("   {}  invalidate", self.name);
        Ok(())
    }

    /// Stops the next load of this node between its query and its return.
    fn close_gate(&self) -> Gate {
        let (has_read, reached) = oneshot::channel();
        let (open, may_return) = oneshot::channel();
        let gate = LoaderGate {
            has_read,
            may_return,
        };
        *self.gate.lock().unwrap_or_else(PoisonError::into_inner) = Some(gate);
        Gate { reached, open }
    }
}

fn show(price: Option<u64>) -> String {
    price.map_or_else(|| "nothing".to_owned(), |cents| cents.to_string())
}

/// Prices in cents, read from the database.
struct Prices {
    database: Database,
    gate: Arc<Mutex<Option<LoaderGate>>>,
}

impl Loader for Prices {
    type Key = u64;
    type Value = u64;
    type Error = BoxError;

    async fn load(&self, id: &u64) -> Result<Loaded<u64>, BoxError> {
        let cents = self.database.price(*id).map_err(BoxError::new)?;
        let gate = self
            .gate
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take();
        if let Some(gate) = gate {
            let _ = gate.has_read.send(());
            gate.may_return.await.map_err(BoxError::new)?;
        }
        Ok(Loaded::found(cents).tag("drinks"))
    }
}

/// One gate: the side of the scene, and the side of the loader.
struct Gate {
    reached: oneshot::Receiver<()>,
    open: oneshot::Sender<()>,
}

struct LoaderGate {
    has_read: oneshot::Sender<()>,
    may_return: oneshot::Receiver<()>,
}

/// A connection. Its queries take microseconds here, so they run on the async threads. The example
/// `quickstart` shows `spawn_blocking`.
#[derive(Clone)]
struct Database {
    connection: Arc<Mutex<Connection>>,
}

impl Database {
    fn open(file: &DatabaseFile) -> rusqlite::Result<Self> {
        let connection = Arc::new(Mutex::new(Connection::open(&file.path)?));
        Ok(Self { connection })
    }

    fn execute(&self, sql: &str) -> rusqlite::Result<()> {
        self.connection
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .execute_batch(sql)
    }

    fn price(&self, id: u64) -> rusqlite::Result<u64> {
        self.connection
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .query_row("SELECT cents FROM prices WHERE id = ?1", [id], |row| {
                row.get(0)
            })
    }
}

/// A database in the directory for temporary files, removed when this is dropped.
struct DatabaseFile {
    path: PathBuf,
}

impl DatabaseFile {
    fn create() -> rusqlite::Result<Self> {
        let name = format!("tidegate-invalidate-{}.sqlite", std::process::id());
        let file = Self {
            path: std::env::temp_dir().join(name),
        };
        // WAL: readers see what is committed while a writer works, as in other databases.
        Database::open(&file)?.execute(
            "PRAGMA journal_mode = WAL;
             CREATE TABLE prices (id INTEGER PRIMARY KEY, cents INTEGER NOT NULL);
             INSERT INTO prices VALUES (1, 100);",
        )?;
        Ok(file)
    }
}

impl Drop for DatabaseFile {
    fn drop(&mut self) {
        for suffix in ["", "-wal", "-shm"] {
            let mut path = self.path.clone().into_os_string();
            path.push(suffix);
            let _ = std::fs::remove_file(path);
        }
    }
}
