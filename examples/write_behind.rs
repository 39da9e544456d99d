//! Writes that Redis accepts now and the database gets later.
//!
//! A shop counts its stock in a SQLite table, and every sale is a write. The database is slow,
//! fails for a while, and refuses one of the writes for good. The example prints how long a write
//! takes for its caller, how far the database is behind, and what becomes of the refused write.
//!
//! ```text
//! cargo run --example write_behind                              # starts a redis-server of its own
//! cargo run --example write_behind -- redis://127.0.0.1:6379    # leaves keys `example-…` there
//! ```

use std::error::Error;
use std::net::{Ipv4Addr, TcpListener};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use rusqlite::Connection;
use tidegate::write_behind::{Batch, Sink, WriteBehind, WriteId};
use tidegate::{BoxError, Redis};

/// The sink that writes to the database. This is all that a service has to write.
#[derive(Clone)]
struct Stock {
    database: Arc<Mutex<Connection>>,
    away: Arc<AtomicBool>,
}

#[derive(Debug, thiserror::Error)]
enum StockError {
    #[error("the database is away")]
    Away,
    #[error("the database failed")]
    Database(#[from] rusqlite::Error),
    /// An error that more attempts would not change.
    #[error("stock is never negative")]
    Negative(WriteId),
}

impl Sink for Stock {
    type Key = u64;
    type Value = i64;
    type Error = StockError;

    async fn apply(&self, batch: &Batch<u64, i64>) -> Result<(), StockError> {
        // A slow database, for which one transaction per batch makes up.
        tokio::time::sleep(Duration::from_millis(20)).await;
        if self.away.load(Ordering::SeqCst) {
            return Err(StockError::Away);
        }
        let mut database = self.database.lock().unwrap_or_else(PoisonError::into_inner);
        let transaction = database.transaction()?;
        for write in batch.writes() {
            if write.value().is_some_and(|amount| *amount < 0) {
                return Err(StockError::Negative(write.id()));
            }
            // A batch can come again, so a write that is stored already, or an older one, changes
            // nothing. A deletion keeps its version as well.
            transaction.execute(
                "INSERT INTO stock (id, amount, version) VALUES (?1, ?2, ?3) ON CONFLICT (id) DO UPDATE
                 SET amount = excluded.amount, version = excluded.version WHERE version < excluded.version",
                (*write.key() as i64, write.value(), write.id().version() as i64),
            )?;
        }
        Ok(transaction.commit()?)
    }

    fn rejected(&self, error: &StockError) -> Option<WriteId> {
        match error {
            StockError::Negative(id) => Some(*id),
            _ => None,
        }
    }
}

impl Stock {
    fn amount(&self, id: i64) -> Result<Option<i64>, rusqlite::Error> {
        let database = self.database.lock().unwrap_or_else(PoisonError::into_inner);
        database.query_row("SELECT sum(amount) FROM stock WHERE id = ?1", [id], |row| {
            row.get(0)
        })
    }
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let (url, _server) = match std::env::args().nth(1) {
        Some(url) => (url, None),
        None => {
            let server = OwnServer::start()?;
            (server.url(), Some(server))
        }
    };
    let redis = connect(&url).await?;
    let database = Connection::open_in_memory()?;
    database.execute_batch("CREATE TABLE stock (id INTEGER PRIMARY KEY, amount, version)")?;
    let stock = Stock {
        database: Arc::new(Mutex::new(database)),
        away: Arc::default(),
    };
    // A name of its own, so that a run finds nothing of an earlier one.
    let name = format!("example-{}", std::process::id());
    let writes = WriteBehind::builder(&name, redis, stock.clone())
        .backoff(Duration::from_millis(50), Duration::from_millis(400))
        .max_unapplied(1_000)
        .open()
        .await?;

    println!("1. 2,000 sales of 100 things");
    let begun = Instant::now();
    for sale in 0..2_000 {
        writes
            .write(&(sale % 100), &(1_000 - sale as i64 / 100))
            .await?;
    }
    let lag = writes.lag().await?;
    println!("   accepted in {:?} each", begun.elapsed() / 2_000);
    println!("   the database is {} writes behind", lag.unapplied);
    println!("   and has {:?} of thing 7", stock.amount(7)?);
    drained(&writes).await?;
    println!(
        "   applied after {:?}, in {} transactions",
        begun.elapsed(),
        writes.stats().batches
    );
    println!("   now it has {:?}", stock.amount(7)?);

    println!("\n2. The database is away for a second");
    stock.away.store(true, Ordering::SeqCst);
    let mut accepted = 0_u64;
    let error = loop {
        match writes.write(&7, &500).await {
            Ok(_) => accepted += 1,
            Err(error) => break error,
        }
    };
    println!("   {accepted} writes of thing 7 are accepted, then: {error}");
    tokio::time::sleep(Duration::from_secs(1)).await;
    stock.away.store(false, Ordering::SeqCst);
    drained(&writes).await?;
    println!("   it is back, and has {:?}", stock.amount(7)?);

    println!("\n3. A write that the database refuses");
    writes.write(&7, &-1).await?;
    writes.write(&7, &3).await?;
    drained(&writes).await?;
    println!("   the later one is applied: {:?}", stock.amount(7)?);
    for letter in writes.dead_letters(10).await? {
        println!("   a dead letter: {:?}, {}", letter.write(), letter.error());
        writes.discard(&letter).await?;
    }

    println!("\n{:#?}", writes.stats());
    writes.close().await;
    Ok(())
}

/// Waits until the database has all writes.
async fn drained(writes: &WriteBehind<u64, i64>) -> Result<(), BoxError> {
    while writes.lag().await.map_err(BoxError::new)?.unapplied > 0 {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    Ok(())
}

async fn connect(url: &str) -> Result<Redis, BoxError> {
    let begun = Instant::now();
    loop {
        match Redis::builder(url)
            .timeout(Duration::from_secs(1))
            .connect()
            .await
        {
            Ok(redis) => return Ok(redis),
            // The server has only just been started.
            Err(error) if begun.elapsed() > Duration::from_secs(5) => {
                return Err(BoxError::new(error));
            }
            Err(_) => tokio::time::sleep(Duration::from_millis(20)).await,
        }
    }
}

/// A server on a free loopback port, with the append-only file without which a crash loses accepted
/// writes.
struct OwnServer {
    process: Child,
    port: u16,
    dir: PathBuf,
}

impl OwnServer {
    fn start() -> Result<Self, BoxError> {
        let free = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).map_err(BoxError::new)?;
        let port = free.local_addr().map_err(BoxError::new)?.port();
        drop(free);
        let dir = std::env::temp_dir().join(format!("tidegate-example-{port}"));
        std::fs::create_dir_all(&dir).map_err(BoxError::new)?;
        let process = Command::new("redis-server")
            .args(["--port", &port.to_string(), "--bind", "127.0.0.1"])
            .args(["--save", "", "--appendonly", "yes", "--dir"])
            .arg(&dir)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .spawn()
            .map_err(|error| format!("redis-server cannot be started, give a URL: {error}"))?;
        Ok(Self { process, port, dir })
    }

    fn url(&self) -> String {
        format!("redis://127.0.0.1:{}", self.port)
    }
}

impl Drop for OwnServer {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
        let _ = std::fs::remove_dir_all(&self.dir);
    }
}
