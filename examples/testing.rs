//! A service and its tests: what its handler answers while the cache, the database or both fail.
//! The example needs no server, and its waits take no time, because tokio's clock is paused.
//!
//! ```text
//! cargo run --example testing --features testing
//! ```

use std::error::Error;
use std::sync::Arc;
use std::time::Duration;

use tidegate::testing::{Fault, Faults, Operations, Scripted};
use tidegate::{BoxError, Cache, CacheFor, InProcess, Loaded, Loader, SharedTier};
use tokio::time::Instant;

// The service. In production its tier is a `Redis`, and its loader holds a pool of connections.

struct Prices;

impl Loader for Prices {
    type Key = u64;
    type Value = u64;
    type Error = BoxError;

    async fn load(&self, item: &u64) -> Result<Loaded<u64>, BoxError> {
        tokio::time::sleep(Duration::from_millis(2)).await; // SELECT cents FROM prices WHERE item = …
        Ok((*item < 1_000).then_some(*item * 100).into())
    }
}

struct Shop<L: Loader> {
    prices: CacheFor<L>,
}

impl<L: Loader<Key = u64, Value = u64>> Shop<L> {
    fn new(tier: impl SharedTier, source: L) -> Result<Self, Box<dyn Error>> {
        let prices = Cache::builder("prices", source)
            .ttl(Duration::from_secs(60))
            .stale_if_error(Duration::from_secs(3600))
            .degraded_l1_ttl(Duration::from_secs(600))
            .max_concurrent_loads(10)
            .l2(tier)
            .build()?;
        Ok(Self { prices })
    }

    /// GET /prices/:item
    async fn price(&self, item: u64) -> (u16, String) {
        match self.prices.get(&item).await {
            Ok(Some(cents)) => (200, cents.to_string()),
            Ok(None) => (404, "no such item".to_owned()),
            Err(error) => (503, error.to_string()),
        }
    }

    /// PUT /prices/:item. The write is in the database. The status tells whether the old price may
    /// still be answered.
    async fn changed(&self, item: u64) -> u16 {
        match self.prices.invalidate(&item).await {
            Ok(()) => 204,
            Err(_) => 202, // repeated until it is confirmed
        }
    }
}

// Its tests.

struct Fixture {
    shop: Arc<Shop<Scripted<Prices>>>,
    source: Scripted<Prices>,
    faults: Faults,
}

fn fixture() -> Result<Fixture, Box<dyn Error>> {
    let (tier, faults) = InProcess::with_faults();
    let source = Scripted::new(Prices);
    let shop = Arc::new(Shop::new(tier, source.clone())?);
    Ok(Fixture {
        shop,
        source,
        faults,
    })
}

async fn the_handler_answers_although_the_cache_hangs() -> Result<(), Box<dyn Error>> {
    let Fixture { shop, faults, .. } = fixture()?;
    faults.go_silent();
    let asked = Instant::now();
    assert_eq!(shop.price(7).await, (200, "700".to_owned()));
    assert!(asked.elapsed() < Duration::from_millis(300));
    Ok(())
}

async fn a_hundred_requests_for_one_item_are_one_query() -> Result<(), Box<dyn Error>> {
    let Fixture {
        shop,
        source,
        faults,
    } = fixture()?;
    faults.set(Operations::Reads, Fault::Delay(Duration::from_millis(30)));
    let held = source.hold();
    let requests: Vec<_> = (0..100)
        .map(|_| {
            let shop = Arc::clone(&shop);
            tokio::spawn(async move { shop.price(7).await })
        })
        .collect();
    held.reached().await;
    drop(held);
    for request in requests {
        assert_eq!(request.await?.0, 200);
    }
    assert_eq!(source.loads(), 1);
    Ok(())
}

async fn the_old_price_stands_in_when_both_are_down() -> Result<(), Box<dyn Error>> {
    let Fixture {
        shop,
        source,
        faults,
    } = fixture()?;
    assert_eq!(shop.price(7).await.0, 200);
    faults.go_down();
    source.fail(|| BoxError::new("connection refused"));
    tokio::time::advance(Duration::from_secs(120)).await;
    assert_eq!(shop.price(7).await, (200, "700".to_owned()));
    assert_eq!(shop.price(8).await.0, 503);
    Ok(())
}

async fn a_change_whose_answer_is_lost_is_made_up_for() -> Result<(), Box<dyn Error>> {
    let Fixture {
        shop,
        source,
        faults,
    } = fixture()?;
    shop.price(7).await;
    faults.next(1, Operations::Changes, Fault::LoseReply);
    assert_eq!(shop.changed(7).await, 202);
    shop.price(7).await;
    assert_eq!(source.loads(), 2, "the old price is not answered");
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert_eq!(shop.prices.health().pending_repairs, 0);
    assert_eq!(shop.changed(7).await, 204);
    Ok(())
}

#[tokio::main(flavor = "current_thread", start_paused = true)]
async fn main() -> Result<(), Box<dyn Error>> {
    let begun = std::time::Instant::now();
    the_handler_answers_although_the_cache_hangs().await?;
    a_hundred_requests_for_one_item_are_one_query().await?;
    the_old_price_stands_in_when_both_are_down().await?;
    a_change_whose_answer_is_lost_is_made_up_for().await?;
    println!("four tests in {:?}", begun.elapsed());
    Ok(())
}
