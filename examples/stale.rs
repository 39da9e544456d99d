//! Answers past the TTL, from a source that is slow and then fails.
//!
//! ```text
//! cargo run --release --example stale
//! ```
//!
//! Two caches on one embedded tier stand for two processes. The source is a table with a version.
//! Its TTL is half a second here, so that the example ends soon. `guide::staleness` has the rules.

use std::error::Error;
use std::fmt;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::SeqCst};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};
use tidegate::{Cache, CacheFor, Entry, Freshness, InProcess, Loaded, Loader, Read};
use tokio::time::sleep;

const TTL: Duration = Duration::from_millis(500);

#[derive(Clone, Serialize, Deserialize)]
struct Page {
    version: u64,
    text: String,
}

#[derive(Debug)]
struct Down;

impl fmt::Display for Down {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the source is down")
    }
}

impl Error for Down {}

/// A source that can be slow or down.
#[derive(Default)]
struct Source {
    page: Mutex<Option<Page>>,
    down: AtomicBool,
    takes_ms: AtomicU64,
    /// Reads of the whole page, and of its version alone.
    pages: AtomicU64,
    versions: AtomicU64,
}

impl Source {
    /// Writes the page, as a transaction that increases its version would.
    fn write(&self, text: &str) -> Page {
        let mut page = self.page.lock().unwrap_or_else(PoisonError::into_inner);
        let version = page.as_ref().map_or(1, |page| page.version + 1);
        let text = text.to_owned();
        page.insert(Page { version, text }).clone()
    }

    async fn read(&self) -> Result<Option<Page>, Down> {
        sleep(Duration::from_millis(self.takes_ms.load(SeqCst))).await;
        if self.down.load(SeqCst) {
            return Err(Down);
        }
        let page = self.page.lock().unwrap_or_else(PoisonError::into_inner);
        Ok(page.clone())
    }
}

struct Pages(Arc<Source>);

impl Loader for Pages {
    type Key = String;
    type Value = Page;
    type Error = Down;

    async fn load(&self, _: &String) -> Result<Loaded<Page>, Down> {
        self.0.pages.fetch_add(1, SeqCst);
        let page = self.0.read().await?;
        let version = page.as_ref().map_or(0, |page| page.version);
        Ok(Loaded::from(page).version(version))
    }

    /// The refresh of an entry: first asks whether the page has changed.
    async fn reload(&self, name: &String, previous: &Entry<Page>) -> Result<Loaded<Page>, Down> {
        self.0.versions.fetch_add(1, SeqCst);
        let version = self.0.read().await?.map(|page| page.version);
        if version == Some(previous.value().version) {
            return Ok(Loaded::unchanged());
        }
        self.load(name).await
    }
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let (source, tier) = (Arc::new(Source::default()), InProcess::new());
    source.takes_ms.store(20, SeqCst);
    source.write("first edition");
    let node = |beta| {
        Cache::builder("pages", Pages(Arc::clone(&source)))
            .ttl(TTL)
            .ttl_jitter(0.0)
            .refresh_ahead(beta)
            .stale_while_revalidate(TTL)
            .stale_if_error(Duration::from_secs(60))
            .load_soft_timeout(Duration::from_millis(100))
            .l2(tier.clone())
            .build()
    };
    // Refresh-ahead is off at first, because it would hide the next steps.
    let (a, b) = (node(0.0)?, node(0.0)?);

    println!("The source takes 20 ms. Two processes, a TTL of {TTL:?}.\n");
    show("a cold key", &a).await;
    show("another process", &b).await;

    println!("\nPast the TTL, within stale_while_revalidate; the text has changed meanwhile:");
    source.write("second edition");
    sleep(TTL + Duration::from_millis(20)).await;
    let stale = show("the first caller", &a).await;
    assert_eq!(stale, Some(Freshness::Stale));
    show("the other process", &b).await;
    sleep(Duration::from_millis(100)).await;
    let fresh = show("a moment later", &b).await;
    assert_eq!(fresh, Some(Freshness::Fresh));

    println!("\nPast the TTL again, nothing has changed:");
    let (pages, versions) = (source.pages.load(SeqCst), source.versions.load(SeqCst));
    sleep(TTL).await;
    show("a caller", &a).await;
    sleep(Duration::from_millis(100)).await;
    show("a moment later", &a).await;
    let pages = source.pages.load(SeqCst) - pages;
    let versions = source.versions.load(SeqCst) - versions;
    println!("  reload: {versions} look at the version, {pages} reads of the page");
    assert_eq!((pages, versions), (0, 1));

    println!("\nBoth windows but the one for errors are over, and the source is slow (400 ms):");
    source.takes_ms.store(400, SeqCst);
    sleep(TTL * 2 + Duration::from_millis(50)).await;
    show("after load_soft_timeout", &a).await;
    sleep(Duration::from_millis(500)).await;
    show("when the load is there", &a).await;

    println!("\nThe source is down:");
    source.takes_ms.store(20, SeqCst);
    source.down.store(true, SeqCst);
    sleep(TTL * 2 + Duration::from_millis(50)).await;
    let stale = show("the load fails", &a).await;
    assert_eq!(stale, Some(Freshness::StaleOnError));
    show("during error_backoff", &a).await;
    show("in the other process", &b).await;
    let strict = a.get_with("home", Read::fresh()).await;
    println!("  {:<26} {}", "with Read::fresh", outcome(strict.map(drop)));

    writes(&source, &a, &b).await?;
    let hot = node(2.0)?;
    refresh_ahead(&source, &hot).await?;
    for cache in [a, b, hot] {
        cache.close().await;
    }
    Ok(())
}

/// The source is back, and two writes go through the cache.
async fn writes(
    source: &Arc<Source>,
    a: &CacheFor<Pages>,
    b: &CacheFor<Pages>,
) -> Result<(), Box<dyn Error>> {
    println!("\nIt is back, and is written to:");
    source.down.store(false, SeqCst);
    let writer = Arc::clone(source);
    a.write("home".to_owned(), async move {
        let page = writer.write("third edition"); // UPDATE … RETURNING …; COMMIT
        let version = page.version;
        Ok::<_, Down>(Loaded::found(page).version(version))
    })
    .await?;
    show("after write", a).await;
    show("in the other process", b).await;
    let writer = Arc::clone(source);
    a.invalidate_after("home".to_owned(), async move {
        Ok::<_, Down>(writer.write("fourth edition").version)
    })
    .await?;
    show("after invalidate_after", b).await;
    Ok(())
}

/// A hot key that is refreshed before its TTL ends.
async fn refresh_ahead(source: &Source, hot: &CacheFor<Pages>) -> Result<(), Box<dyn Error>> {
    println!("\nRefresh-ahead, β = 2: a caller every 5 ms for 3 s, the source takes 20 ms.");
    let begun = Instant::now();
    let (mut asked, mut slow) = (0, 0);
    let loads = source.versions.load(SeqCst);
    while begun.elapsed() < Duration::from_secs(3) {
        let call = Instant::now();
        hot.get("home").await?;
        asked += 1;
        slow += u32::from(call.elapsed() > Duration::from_millis(15));
        sleep(Duration::from_millis(5)).await;
    }
    let loads = source.versions.load(SeqCst) - loads;
    let stats = hot.stats();
    println!(
        "  {asked} look-ups, {loads} loads, {} of them begun before the TTL ended or behind it",
        stats.refreshes
    );
    println!(
        "  {slow} look-ups took as long as a load, {} were answered past the TTL",
        stats.stale_hits
    );
    Ok(())
}

/// One look-up: prints its answer and its time.
async fn show(what: &str, cache: &CacheFor<Pages>) -> Option<Freshness> {
    let begun = Instant::now();
    let got = cache.get_entry("home").await;
    let took = begun.elapsed().as_secs_f64() * 1e3;
    match got {
        Ok(Some(entry)) => {
            let (text, freshness) = (&entry.value().text, entry.freshness());
            let (freshness_text, source) =
                (format!("{freshness:?}"), format!("{:?}", entry.source()));
            println!("  {what:<26} {text:<16} {freshness_text:<14} {source:<9} {took:>6.1} ms");
            Some(freshness)
        }
        other => {
            println!("  {what:<26} {}", outcome(other.map(drop)));
            None
        }
    }
}

fn outcome(result: Result<(), tidegate::Error<Down>>) -> String {
    match result {
        Ok(()) => "an answer".to_owned(),
        Err(error) => match error.source() {
            Some(cause) => format!("{error}: {cause}"),
            None => error.to_string(),
        },
    }
}
