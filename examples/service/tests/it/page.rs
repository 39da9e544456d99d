//! A test of the live page in a browser.

use std::path::PathBuf;
use std::time::Duration;

use tidegate_service::RedisChoice;

use crate::browser::Browser;
use crate::support::{Scratch, demo, is_healthy, start, until};

/// The folder for screenshots, from `SCREENSHOTS`, relative to the root of the repository. `None`:
/// no screenshots are taken.
fn screenshot_folder() -> Option<PathBuf> {
    let folder = PathBuf::from(std::env::var_os("SCREENSHOTS")?);
    // The working directory of a test is the folder of its package.
    let root = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../..");
    Some(root.join(folder))
}

/// Waits so that a screenshot shows some history. Without screenshots it does not wait.
async fn wait_for_history(seconds: u64) {
    if screenshot_folder().is_some() {
        tokio::time::sleep(Duration::from_secs(seconds)).await;
    }
}

async fn screenshot(browser: &mut Browser, name: &str) {
    if let Some(folder) = screenshot_folder() {
        std::fs::create_dir_all(&folder).expect("a folder");
        browser.screenshot(&folder.join(name)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn numbers_move_and_buttons_work() {
    let scratch = Scratch::new();
    let mut settings = scratch.settings(RedisChoice::Own);
    settings.query_delay = Duration::from_millis(5);
    // Screenshots show the demo's usual load. The test alone needs less.
    settings.demo = demo(if screenshot_folder().is_some() {
        400
    } else {
        60
    });
    let service = start(settings).await;
    let at = service.address();
    until("the service is well", || is_healthy(at)).await;

    let mut browser = Browser::open(1220, 1010).await;
    browser.prefer_color_scheme("light").await;
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

    // The numbers change without a reload.
    let lookups = "Number(document.getElementById('ratio-total').dataset.lookups)";
    for _ in 0..2 {
        let before = browser.evaluate(lookups).await;
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
    wait_for_history(75).await;
    screenshot(&mut browser, "load.png").await;

    browser.click("slow").await;
    browser
        .until("document.getElementById('honest').textContent.includes('400 ms')")
        .await;
    assert_eq!(browser.text("slow").await, "Database as before");
    browser.click("slow").await;
    browser
        .until("document.getElementById('honest').textContent.includes(' 5 ms')")
        .await;

    // During an outage the page shows the state of Redis, and no request fails.
    browser.prefer_color_scheme("dark").await;
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
    let before = browser.evaluate(lookups).await;
    browser.until(&format!("{lookups} > {before} + 60")).await;
    wait_for_history(25).await;
    screenshot(&mut browser, "outage.png").await;
    let errors = "Number(document.getElementById('errors').dataset.errors)";
    assert_eq!(browser.evaluate(errors).await, 0);

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
    assert_eq!(browser.evaluate(errors).await, 0);

    // An open page does not delay the shutdown, and it shows that the service is gone.
    service.stop().await;
    browser
        .until("document.getElementById('pill-stream').textContent === 'the service is gone'")
        .await;
}
