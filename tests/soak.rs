//! A short soak. `cargo bench --bench soak` is the long one.

use std::time::Duration;

#[path = "../benches/soak/faults.rs"]
mod faults;
#[path = "../benches/soak/oracle.rs"]
mod oracle;
#[expect(dead_code, reason = "the tests use more of it")]
#[path = "../benches/redis_proxy/mod.rs"]
mod redis_proxy;
#[path = "../benches/soak/run.rs"]
mod run;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ten_seconds_of_faults_leave_nothing_wrong() {
    let wrong = run::run(20, Duration::from_secs(10), false).await;
    assert!(wrong.is_empty(), "{wrong:#?}");
}
