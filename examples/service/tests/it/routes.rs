//! Tests of the routes, with one instance and with two.

use std::net::SocketAddr;

use tidegate_service::{RedisChoice, Service};

use crate::support::{Scratch, demo, get, is_healthy, is_installed, press, put, start, until};

/// Starts a service with its own redis-server, and waits until its L1 may answer.
async fn with_redis(scratch: &Scratch) -> (Service, SocketAddr) {
    let redis = std::env::var("TIDEGATE_REDIS_SERVER").unwrap_or_else(|_| "redis-server".into());
    assert!(is_installed(&redis), "these tests need a redis-server");
    let mut settings = scratch.settings(RedisChoice::Own);
    settings.demo = demo(1);
    let service = start(settings).await;
    let at = service.address();
    until("the service is well", || is_healthy(at)).await;
    (service, at)
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_read_twice_comes_from_the_cache() {
    let scratch = Scratch::new();
    let service = start(scratch.settings(RedisChoice::InProcess)).await;
    let at = service.address();

    let first = get(at, "/users/7").await;
    assert_eq!(first.status, 200);
    assert_eq!(first.json()["name"], "Tony 7");
    assert!(
        first.cache_status.starts_with("users; fwd=miss; ttl="),
        "{first:?}"
    );
    assert!(first.cache_status.ends_with("; stored"), "{first:?}");
    until("a hit", || async {
        get(at, "/users/7")
            .await
            .cache_status
            .starts_with("users; hit; ttl=")
    })
    .await;

    for (path, status) in [
        ("/users/99999", 404),
        ("/users/seven", 400),
        ("/products/99999", 404),
        ("/products?page=0", 400),
        ("/products?page=999", 404),
        ("/reports/8", 400),
        ("/nothing", 404),
        // The live page exists only with --demo.
        ("/", 404),
    ] {
        assert_eq!(get(at, path).await.status, status, "{path}");
    }
    service.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_page_is_one_look_up_of_many_keys() {
    let scratch = Scratch::new();
    let service = start(scratch.settings(RedisChoice::InProcess)).await;
    let at = service.address();

    get(at, "/products/21").await;
    let page = get(at, "/products?page=2").await;
    let products = page.json();
    let ids: Vec<_> = products.as_array().expect("a list").iter().collect();
    assert_eq!(ids.len(), 20);
    assert_eq!((&ids[0]["id"], &ids[19]["id"]), (&21.into(), &40.into()));
    assert!(
        page.cache_status.starts_with("pages; fwd=miss; ttl="),
        "{page:?}"
    );
    let partly = "products; fwd=partial; detail=\"1 of 20\"";
    assert!(page.cache_status.ends_with(partly), "{page:?}");
    // The other 19 products of the page are one batch.
    let loads = metric(at, "tidegate_batch_loads_total{cache=\"products\"}").await;
    assert!(loads >= 1.0, "{loads}");
    let again = get(at, "/products?page=2").await;
    assert!(
        again
            .cache_status
            .ends_with("products; hit; detail=\"20 of 20\""),
        "{again:?}"
    );
    service.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_report_adds_up() {
    let scratch = Scratch::new();
    let service = start(scratch.settings(RedisChoice::InProcess)).await;
    let at = service.address();
    let report = get(at, "/reports/90").await;
    assert!(
        report.cache_status.starts_with("reports; fwd=miss"),
        "{report:?}"
    );
    let report = report.json();
    let lines = report["lines"].as_array().expect("lines");
    let orders: i64 = lines
        .iter()
        .filter_map(|line| line["orders"].as_i64())
        .sum();
    // 50,000 orders over 120 days: days 1 to 80 have 417 of them, the others 416.
    assert_eq!((lines.len(), orders), (6, 90 * 416 + 80));
    service.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_write_is_seen_at_once_here_and_by_a_second_instance() {
    let scratch = Scratch::new();
    let (first, here) = with_redis(&scratch).await;
    let redis = first.redis_url().expect("a server of its own");
    let second = start(scratch.settings(RedisChoice::At(redis))).await;
    let there = second.address();
    until("the second one is well", || is_healthy(there)).await;

    assert_eq!(get(here, "/users/3").await.json()["name"], "Frances 3");
    // The second instance reads from L2, and then from its own L1.
    let shared = get(there, "/users/3").await;
    assert!(shared.cache_status.starts_with("users; hit"), "{shared:?}");
    assert_eq!(get(there, "/users/3").await.json()["name"], "Frances 3");

    let written = put(here, "/users/3", r#"{"name":"Frances Allen"}"#).await;
    assert_eq!(written.json()["announced"], true, "{written:?}");
    assert_eq!(get(here, "/users/3").await.json()["name"], "Frances Allen");
    until("the second instance answers the new name", || async {
        get(there, "/users/3").await.json()["name"] == "Frances Allen"
    })
    .await;

    let unknown = put(here, "/users/99999", r#"{"name":"Nobody"}"#).await;
    assert_eq!(unknown.status, 404);
    assert_eq!(put(here, "/users/3", r#"{"name":""}"#).await.status, 400);
    assert_eq!(
        put(here, "/products/3/price", r#"{"cents":-1}"#)
            .await
            .status,
        400
    );
    assert_eq!(
        put(here, "/products/3/price", r#"{"cents":5}"#)
            .await
            .status,
        200
    );
    assert_eq!(get(here, "/products/3").await.json()["price_cents"], 5);
    second.stop().await;
    first.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_outage_of_redis_is_no_error() {
    let scratch = Scratch::new();
    let (service, at) = with_redis(&scratch).await;
    assert_eq!(get(at, "/users/1").await.status, 200);

    assert_eq!(press(at, "kill-redis").await.status, 200);
    for id in 1..40 {
        let user = get(at, &format!("/users/{id}")).await;
        assert_eq!(user.status, 200, "{user:?}");
    }
    assert_eq!(get(at, "/products?page=3").await.status, 200);
    assert_eq!(get(at, "/reports/7").await.status, 200);
    // The write is committed. A missing announcement is reported, and is no error.
    let written = put(at, "/users/5", r#"{"name":"Leslie Lamport"}"#).await;
    assert_eq!(written.status, 200, "{written:?}");
    assert_eq!(written.json()["announced"], false);
    assert_eq!(get(at, "/users/5").await.json()["name"], "Leslie Lamport");
    let health = get(at, "/health").await;
    assert_eq!(health.status, 200);
    assert_eq!(health.json()["caches"]["users"]["pending_repairs"], 1);

    assert_eq!(press(at, "start-redis").await.status, 200);
    until("the service is well again", || is_healthy(at)).await;
    until("the invalidation is repeated", || async {
        get(at, "/health").await.json()["caches"]["users"]["pending_repairs"] == 0
    })
    .await;
    assert_eq!(get(at, "/users/5").await.json()["name"], "Leslie Lamport");
    service.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn buttons_are_for_this_page_alone() {
    let scratch = Scratch::new();
    let mut settings = scratch.settings(RedisChoice::InProcess);
    settings.demo = demo(1);
    let service = start(settings).await;
    let at = service.address();
    assert_eq!(press(at, "expire-hot-key").await.status, 200);
    assert_eq!(press(at, "no-such-button").await.status, 404);
    // The service did not start a server.
    assert_eq!(press(at, "kill-redis").await.status, 409);
    assert_eq!(get(at, "/").await.status, 200);
    service.stop().await;
}

async fn metric(at: SocketAddr, name: &str) -> f64 {
    let text = get(at, "/metrics").await.text;
    let line = text.lines().find_map(|line| line.strip_prefix(name));
    let value = line.unwrap_or_else(|| panic!("{name} is not in {text}"));
    value.trim().parse().expect("a number")
}
