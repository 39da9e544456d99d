//! The live page, as a person sees it.

use std::path::PathBuf;
use std::time::Duration;

use tidegate_service::RedisChoice;

use crate::browser::Browser;
use crate::support::{Scratch, demo, is_well, start, until};

/// Where pictures are to go, if anywhere: `SCREENSHOTS=examples/service/screenshots`.
fn pictures() -> Option<PathBuf> {
    let folder = PathBuf::from(std::env::var_os("SCREENSHOTS")?);
    // Tests run in the folder of the package.
    let root = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../..");
    Some(root.join(folder))
}

/// How long a picture's past is.
async fn let_it_run(seconds: u64) {
    if pictures().is_some() {
        tokio::time::sleep(Duration::from_secs(seconds)).await;
    }
}

async fn picture(browser: &mut Browser, name: &str) {
    if let Some(folder) = pictures() {
        std::fs::create_dir_all(&folder).expect("a folder");
        browser.picture(&folder.join(name)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn numbers_move_and_buttons_work() {
    let scratch = Scratch::new();
    let mut settings = scratch.settings(RedisChoice::Own);
    settings.query_delay = Duration::from_millis(5);
    // A picture shows what the demo does; a test need not keep two cores busy.
    settings.demo = demo(if pictures().is_some() { 400 } else { 60 });
    let service = start(settings).await;
    let at = service.address();
    until("the service is well", || is_well(at)).await;

    let mut browser = Browser::open(1220, 1010).await;
    browser.prefer("light").await;
    browser.go(&format!("http://{at}/")).await;
    browser
        .until("document.getElementById('ratio').textContent !== '–'")
        .await;
    browser
        .until("document.getElementById('p99').textContent !== '–'")
        .await;
    browser
        .until("document.getElementById('l2-channel').textContent === 'proven'")
        .await;

    // Numbers move, and by themselves.
    let lookups = "Number(document.getElementById('ratio-total').dataset.lookups)";
    for _ in 0..2 {
        let before = browser.value(lookups).await;
        browser.until(&format!("{lookups} > {before}")).await;
    }
    browser
        .until("document.querySelectorAll('#tiers path').length === 5")
        .await;
    browser
        .until("document.querySelectorAll('#caches tr').length === 4")
        .await;
    browser
        .until("document.querySelector('#spark-rate path.line').getAttribute('d').includes('L')")
        .await;

    browser.click("expire-hot-key").await;
    browser
        .until("document.getElementById('log').textContent.includes('users/1 expired')")
        .await;
    browser.click("invalidate-hot-key").await;
    browser
        .until("document.getElementById('log').textContent.includes('users/1 invalidated')")
        .await;
    let_it_run(75).await;
    picture(&mut browser, "load.png").await;

    browser.click("slow").await;
    browser
        .until("document.getElementById('honest').textContent.includes('400 ms')")
        .await;
    assert_eq!(browser.text("slow").await, "Database as before");
    browser.click("slow").await;
    browser
        .until("document.getElementById('honest').textContent.includes(' 5 ms')")
        .await;

    // An outage: the page shows it, and nobody has an error.
    browser.prefer("dark").await;
    browser.click("redis").await;
    browser
        .until("document.getElementById('l2-server').textContent === 'killed'")
        .await;
    browser
        .until("document.getElementById('l2-channel').textContent !== 'proven'")
        .await;
    browser
        .until("document.getElementById('redis').textContent === 'Start Redis'")
        .await;
    browser
        .until("document.getElementById('pill-l2').textContent === 'Redis is down'")
        .await;
    let before = browser.value(lookups).await;
    browser.until(&format!("{lookups} > {before} + 60")).await;
    let_it_run(25).await;
    picture(&mut browser, "outage.png").await;
    let errors = "Number(document.getElementById('errors').dataset.errors)";
    assert_eq!(browser.value(errors).await, 0);

    browser.click("redis").await;
    browser
        .until("document.getElementById('l2-server').textContent === 'running'")
        .await;
    browser
        .until("document.getElementById('l2-channel').textContent === 'proven'")
        .await;
    browser
        .until("document.getElementById('pill-l2').textContent === 'L2 is well'")
        .await;
    assert_eq!(browser.value(errors).await, 0);

    // A page that is open does not hold the end up; and it says that it is over.
    service.stop().await;
    browser
        .until("document.getElementById('pill-stream').textContent === 'the service is gone'")
        .await;
}
