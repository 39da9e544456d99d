//! The source of truth: a SQLite file with sales, and an expensive query.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use rusqlite::{Connection, OpenFlags};
use serde::{Deserialize, Serialize};
use tidegate::BoxError;
use tokio::sync::Semaphore;

/// Connections of the whole fleet: this many queries run at once, and others wait.
pub(crate) const CONNECTIONS: usize = 16;

/// The time of the query when it runs alone, and its share of the time when all connections are
/// busy. A strategy that sends all 1,000 queries ends within 15 s, on any machine.
const ALONE: Duration = Duration::from_millis(50);
const SHARE: Duration = Duration::from_millis(15);

const CITIES: u32 = 4;
pub(crate) const TOP: usize = 10;

/// The best-selling products of one city. There is no index for this.
const QUERY: &str = "
    SELECT products.name, count(*), sum(sales.cents) AS revenue
    FROM sales JOIN products ON products.id = sales.product
    WHERE sales.city = ?1
    GROUP BY products.id ORDER BY revenue DESC LIMIT ?2";

/// The result of the query, which is the cached value.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct BestSellers(pub(crate) Vec<Product>);

#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Product {
    name: String,
    sold: u64,
    cents: u64,
}

/// The database connections of one process.
pub(crate) struct Database {
    idle: Mutex<Vec<Connection>>,
    places: Arc<Semaphore>,
    queries: AtomicU64,
}

impl Database {
    pub(crate) fn open(path: &Path, connections: usize) -> rusqlite::Result<Self> {
        let idle = (0..connections)
            .map(|_| connect(path))
            .collect::<Result<_, _>>()?;
        let places = Arc::new(Semaphore::new(connections));
        Ok(Self {
            idle: Mutex::new(idle),
            places,
            queries: AtomicU64::new(0),
        })
    }

    /// Runs the query outside the async threads, as soon as a connection is free.
    pub(crate) async fn best_sellers(self: &Arc<Self>, city: u32) -> Result<BestSellers, BoxError> {
        let place = Arc::clone(&self.places)
            .acquire_owned()
            .await
            .map_err(BoxError::new)?;
        let database = Arc::clone(self);
        let query = move || {
            let connection = database.idle().pop().ok_or("no connection is free")?;
            database.queries.fetch_add(1, Ordering::Relaxed);
            let found = best_sellers(&connection, city).map_err(BoxError::new);
            database.idle().push(connection);
            drop(place);
            found
        };
        tokio::task::spawn_blocking(query)
            .await
            .map_err(BoxError::new)?
    }

    /// Queries so far.
    pub(crate) fn queries(&self) -> u64 {
        self.queries.load(Ordering::Relaxed)
    }

    fn idle(&self) -> std::sync::MutexGuard<'_, Vec<Connection>> {
        self.idle.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn connect(path: &Path) -> rusqlite::Result<Connection> {
    let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let connection = Connection::open_with_flags(path, flags)?;
    // Without this, all connections of a process share one lock for their pages, and two concurrent
    // queries take as long as two in a row.
    connection.pragma_update(None, "mmap_size", 1 << 28)?;
    Ok(connection)
}

fn best_sellers(connection: &Connection, city: u32) -> rusqlite::Result<BestSellers> {
    let mut query = connection.prepare_cached(QUERY)?;
    let products = query.query_map((city, TOP), |row| {
        Ok(Product {
            name: row.get(0)?,
            sold: row.get(1)?,
            cents: row.get(2)?,
        })
    })?;
    products.collect::<Result<_, _>>().map(BestSellers)
}

/// The file, in the directory for temporary files. Removed when this is dropped.
pub(crate) struct SalesFile {
    path: PathBuf,
    pub(crate) sales: u64,
    /// The time of the query when it runs alone.
    pub(crate) alone: Duration,
    /// Its time when it runs on all connections at once.
    pub(crate) together: Duration,
}

impl SalesFile {
    /// Makes a database of the size at which the query takes the intended time on this machine.
    pub(crate) fn create() -> Result<Self, BoxError> {
        let name = format!("tidegate-stampede-{:016x}.sqlite", rand::random::<u64>());
        let path = std::env::temp_dir().join(name);
        let mut file = Self {
            path,
            sales: 0,
            alone: Duration::ZERO,
            together: Duration::ZERO,
        };
        file.calibrate().map_err(BoxError::new)?;
        Ok(file)
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    fn calibrate(&mut self) -> rusqlite::Result<()> {
        let connection = Connection::open(&self.path)?;
        connection.execute_batch(
            "PRAGMA journal_mode = OFF;
             PRAGMA synchronous = OFF;
             CREATE TABLE products (id INTEGER PRIMARY KEY, name TEXT NOT NULL);
             CREATE TABLE sales (city INTEGER, product INTEGER, cents INTEGER);
             WITH RECURSIVE ids(id) AS (SELECT 0 UNION ALL SELECT id + 1 FROM ids WHERE id < 499)
             INSERT INTO products SELECT id, 'product ' || id FROM ids;",
        )?;
        // A small table first, then the size that its times suggest, and once more.
        let mut wanted = 20_000;
        for _ in 0..3 {
            self.grow(&connection, wanted)?;
            let alone = ALONE.as_secs_f64() / self.alone.as_secs_f64();
            let at_once = CONNECTIONS as f64;
            let together = SHARE.as_secs_f64() * at_once / self.together.as_secs_f64();
            wanted = (self.sales as f64 * alone.min(together)).min(4e6) as u64;
            if wanted < self.sales + self.sales / 10 {
                break;
            }
        }
        Ok(())
    }

    /// Adds rows up to `sales`, and measures.
    fn grow(&mut self, connection: &Connection, sales: u64) -> rusqlite::Result<()> {
        connection.execute(
            "WITH RECURSIVE n(i) AS (SELECT ?1 UNION ALL SELECT i + 1 FROM n WHERE i < ?2)
             INSERT INTO sales
             SELECT (i * 2654435761 >> 16) % ?3, (i * 40503 >> 4) % 500, 100 + i * 7919 % 9900 FROM n",
            (self.sales + 1, sales, CITIES),
        )?;
        self.sales = sales;
        let connections = (0..CONNECTIONS)
            .map(|_| connect(&self.path))
            .collect::<rusqlite::Result<Vec<_>>>()?;
        self.alone = Duration::MAX;
        for _ in 0..3 {
            let begun = Instant::now();
            best_sellers(&connections[0], 1)?;
            self.alone = self.alone.min(begun.elapsed());
        }
        let begun = Instant::now();
        std::thread::scope(|scope| {
            for connection in connections {
                scope.spawn(move || best_sellers(&connection, 1));
            }
        });
        self.together = begun.elapsed();
        Ok(())
    }
}

impl Drop for SalesFile {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.path);
    }
}
