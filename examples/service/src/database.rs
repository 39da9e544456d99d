//! The source of truth: SQLite or PostgreSQL, with statements that both understand.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use sqlx::any::AnyPoolOptions;
use sqlx::{AnyPool, AssertSqlSafe};

pub(crate) const USERS: i64 = 5_000;
pub(crate) const PRODUCTS: i64 = 2_000;
const ORDERS: i64 = 50_000;
/// The number of products on a page of the list.
pub(crate) const PAGE: i64 = 20;

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct User {
    pub(crate) id: i64,
    pub(crate) name: String,
    pub(crate) email: String,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Product {
    pub(crate) id: i64,
    pub(crate) name: String,
    pub(crate) category: String,
    pub(crate) price_cents: i64,
}

/// The sales of the last days, by category.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Report {
    pub(crate) days: i64,
    pub(crate) lines: Vec<Line>,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Line {
    pub(crate) category: String,
    pub(crate) orders: i64,
    pub(crate) customers: i64,
    pub(crate) revenue_cents: i64,
}

#[derive(Clone, Debug)]
pub(crate) struct Database {
    pool: AnyPool,
    kind: &'static str,
    delay_ms: Arc<AtomicU64>,
    queries: Arc<AtomicU64>,
}

impl Database {
    /// Connects, and creates and fills the tables if they do not exist.
    pub(crate) async fn open(url: &str, delay: Duration) -> Result<Self, sqlx::Error> {
        sqlx::any::install_default_drivers();
        let is_sqlite = url.starts_with("sqlite:");
        // Each connection to `:memory:` has a database of its own, so there must be only one.
        let connections = if url.contains(":memory:") { 1 } else { 8 };
        let pool = AnyPoolOptions::new()
            .max_connections(connections)
            .min_connections(1)
            .acquire_timeout(Duration::from_secs(10))
            .idle_timeout(None)
            .max_lifetime(None)
            .connect(url)
            .await?;
        if is_sqlite {
            // In WAL mode readers do not wait for a writer.
            sqlx::query("PRAGMA journal_mode = WAL")
                .execute(&pool)
                .await?;
        }
        let database = Self {
            pool,
            kind: if is_sqlite { "SQLite" } else { "PostgreSQL" },
            delay_ms: Arc::default(),
            queries: Arc::default(),
        };
        database.seed().await?;
        database.set_delay(delay);
        Ok(database)
    }

    pub(crate) async fn close(&self) {
        self.pool.close().await;
    }

    pub(crate) fn kind(&self) -> &'static str {
        self.kind
    }

    /// Sets the delay that is added to each query from now on.
    pub(crate) fn set_delay(&self, delay: Duration) {
        let ms = u64::try_from(delay.as_millis()).unwrap_or(u64::MAX);
        self.delay_ms.store(ms, Ordering::Relaxed);
    }

    pub(crate) fn delay(&self) -> Duration {
        Duration::from_millis(self.delay_ms.load(Ordering::Relaxed))
    }

    /// The number of queries so far, reads and writes.
    pub(crate) fn queries(&self) -> u64 {
        self.queries.load(Ordering::Relaxed)
    }

    pub(crate) async fn user(&self, id: i64) -> Result<Option<User>, sqlx::Error> {
        self.before_query().await;
        let row: Option<(String, String)> =
            sqlx::query_as("SELECT name, email FROM users WHERE id = $1")
                .bind(id)
                .fetch_optional(&self.pool)
                .await?;
        Ok(row.map(|(name, email)| User { id, name, email }))
    }

    /// Returns `false` if there is no such user.
    pub(crate) async fn rename_user(&self, id: i64, name: &str) -> Result<bool, sqlx::Error> {
        self.before_query().await;
        let updated = sqlx::query("UPDATE users SET name = $1 WHERE id = $2")
            .bind(name.to_owned())
            .bind(id)
            .execute(&self.pool)
            .await?;
        Ok(updated.rows_affected() > 0)
    }

    /// Reads many products with one query. Products that do not exist are absent from the result.
    pub(crate) async fn products(&self, ids: &[i64]) -> Result<HashMap<i64, Product>, sqlx::Error> {
        if ids.is_empty() {
            return Ok(HashMap::new());
        }
        self.before_query().await;
        // The SQL text holds only numbered parameters, no input.
        let parameters: Vec<String> = (1..=ids.len()).map(|n| format!("${n}")).collect();
        let sql = format!(
            "SELECT id, name, category, price_cents FROM products WHERE id IN ({})",
            parameters.join(", ")
        );
        let mut query = sqlx::query_as(AssertSqlSafe(sql));
        for id in ids {
            query = query.bind(*id);
        }
        let rows: Vec<(i64, String, String, i64)> = query.fetch_all(&self.pool).await?;
        let product = |(id, name, category, price_cents)| {
            let product = Product {
                id,
                name,
                category,
                price_cents,
            };
            (id, product)
        };
        Ok(rows.into_iter().map(product).collect())
    }

    /// Returns `false` if there is no such product.
    pub(crate) async fn price_product(&self, id: i64, cents: i64) -> Result<bool, sqlx::Error> {
        self.before_query().await;
        let updated = sqlx::query("UPDATE products SET price_cents = $1 WHERE id = $2")
            .bind(cents)
            .bind(id)
            .execute(&self.pool)
            .await?;
        Ok(updated.rows_affected() > 0)
    }

    /// The product ids on a page. The first page is 1.
    pub(crate) async fn page(&self, page: i64) -> Result<Vec<i64>, sqlx::Error> {
        self.before_query().await;
        let rows: Vec<(i64,)> =
            sqlx::query_as("SELECT id FROM products ORDER BY id LIMIT $1 OFFSET $2")
                .bind(PAGE)
                .bind(page.saturating_sub(1).saturating_mul(PAGE))
                .fetch_all(&self.pool)
                .await?;
        Ok(rows.into_iter().map(|(id,)| id).collect())
    }

    /// Sums up the orders of the last days. This is the slow query: it reads all orders.
    pub(crate) async fn report(&self, days: i64) -> Result<Report, sqlx::Error> {
        self.before_query().await;
        let rows: Vec<(String, i64, i64, i64)> = sqlx::query_as(
            "SELECT p.category, CAST(COUNT(*) AS BIGINT), CAST(COUNT(DISTINCT o.user_id) AS BIGINT), \
                    CAST(SUM(o.quantity * p.price_cents) AS BIGINT) \
             FROM orders o JOIN products p ON p.id = o.product_id \
             WHERE o.days_ago < $1 GROUP BY p.category ORDER BY 4 DESC",
        )
        .bind(days)
        .fetch_all(&self.pool)
        .await?;
        let line = |(category, orders, customers, revenue_cents)| Line {
            category,
            orders,
            customers,
            revenue_cents,
        };
        let lines = rows.into_iter().map(line).collect();
        Ok(Report { days, lines })
    }

    /// Counts a query and waits for the artificial delay.
    async fn before_query(&self) {
        self.queries.fetch_add(1, Ordering::Relaxed);
        let delay = self.delay();
        if !delay.is_zero() {
            tokio::time::sleep(delay).await;
        }
    }

    async fn seed(&self) -> Result<(), sqlx::Error> {
        for table in [
            "users (id BIGINT PRIMARY KEY, name TEXT NOT NULL, email TEXT NOT NULL)",
            "products (id BIGINT PRIMARY KEY, name TEXT NOT NULL, category TEXT NOT NULL, \
             price_cents BIGINT NOT NULL)",
            "orders (id BIGINT PRIMARY KEY, product_id BIGINT NOT NULL, user_id BIGINT NOT NULL, \
             quantity BIGINT NOT NULL, days_ago BIGINT NOT NULL)",
        ] {
            let sql = format!("CREATE TABLE IF NOT EXISTS {table}");
            sqlx::query(AssertSqlSafe(sql)).execute(&self.pool).await?;
        }
        let orders: (i64,) = sqlx::query_as("SELECT CAST(COUNT(*) AS BIGINT) FROM orders")
            .fetch_one(&self.pool)
            .await?;
        if orders.0 >= ORDERS {
            return Ok(());
        }
        let names = "CASE i % 8 WHEN 0 THEN 'Ada' WHEN 1 THEN 'Barbara' WHEN 2 THEN 'Edsger' \
                     WHEN 3 THEN 'Frances' WHEN 4 THEN 'Grace' WHEN 5 THEN 'Leslie' \
                     WHEN 6 THEN 'Niklaus' ELSE 'Tony' END || ' ' || i";
        let categories = "CASE i % 6 WHEN 0 THEN 'books' WHEN 1 THEN 'garden' WHEN 2 THEN 'kitchen' \
                          WHEN 3 THEN 'music' WHEN 4 THEN 'sports' ELSE 'toys' END";
        let mut transaction = self.pool.begin().await?;
        for (table, rows, columns) in [
            (
                "users",
                USERS,
                format!("i, {names}, 'user' || i || '@example.com'"),
            ),
            (
                "products",
                PRODUCTS,
                format!("i, 'Product ' || i, {categories}, 99 + (i * 7919) % 20000"),
            ),
            (
                "orders",
                ORDERS,
                format!("i, 1 + (i * 31) % {PRODUCTS}, 1 + (i * 17) % {USERS}, 1 + i % 4, i % 120"),
            ),
        ] {
            // Another instance may be filling the tables at the same time. Then the database makes
            // this statement wait, and `ON CONFLICT DO NOTHING` skips the rows that exist.
            let sql = format!(
                "INSERT INTO {table} WITH RECURSIVE n(i) AS \
                 (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < {rows}) \
                 SELECT {columns} FROM n WHERE true ON CONFLICT DO NOTHING"
            );
            sqlx::query(AssertSqlSafe(sql))
                .execute(&mut *transaction)
                .await?;
        }
        transaction.commit().await
    }
}
