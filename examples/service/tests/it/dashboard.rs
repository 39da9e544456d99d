//! A test of the Grafana dashboard: `/metrics` has every metric that it queries.

use std::collections::BTreeSet;

use serde_json::Value;
use tidegate_service::RedisChoice;

use crate::support::{Scratch, demo, get, is_healthy, press, put, start, until};

const DASHBOARD: &str = include_str!("../../grafana.json");

#[tokio::test(flavor = "multi_thread")]
async fn every_metric_of_the_dashboard_is_in_metrics() {
    let scratch = Scratch::new();
    let mut settings = scratch.settings(RedisChoice::Own);
    settings.demo = demo(1);
    let service = start(settings).await;
    let at = service.address();
    until("the service is well", || is_healthy(at)).await;
    // Each metric has its cause once: a load, a write, and two concurrent requests for one user.
    get(at, "/reports/30").await;
    put(at, "/users/9", r#"{"name":"Barbara Liskov"}"#).await;
    press(at, "slow-database").await;
    tokio::join!(get(at, "/users/10"), get(at, "/users/10"));
    let printed = get(at, "/metrics").await.text;

    let dashboard: Value = serde_json::from_str(DASHBOARD).expect("JSON");
    let mut expressions = Vec::new();
    collect(&dashboard, &mut expressions);
    assert!(expressions.len() >= 12, "{expressions:?}");
    let names: BTreeSet<&str> = expressions.iter().flat_map(|one| metrics_of(one)).collect();
    assert!(names.len() >= 12, "{names:?}");
    for name in names {
        let is_there = printed.lines().any(|line| {
            let rest = line.strip_prefix(name);
            rest.is_some_and(|rest| rest.starts_with(['{', ' ']))
        });
        assert!(is_there, "{name} is not in\n{printed}");
    }
    service.stop().await;
}

/// Collects the values of all `expr` fields, at any depth.
fn collect<'v>(value: &'v Value, found: &mut Vec<&'v str>) {
    match value {
        Value::Object(fields) => {
            for (name, field) in fields {
                match field {
                    Value::String(text) if name == "expr" => found.push(text),
                    _ => collect(field, found),
                }
            }
        }
        Value::Array(list) => list.iter().for_each(|one| collect(one, found)),
        _ => {}
    }
}

/// The metrics that an expression names, by the prefixes of this service's metrics.
fn metrics_of(expression: &str) -> impl Iterator<Item = &str> {
    expression
        .split(|letter: char| !letter.is_ascii_alphanumeric() && letter != '_')
        .filter(|word| {
            ["tidegate_", "http_server_", "db_client_"]
                .iter()
                .any(|prefix| word.starts_with(prefix))
        })
        // These two are labels that begin like metrics.
        .filter(|word| !["db_client_operation_name", "db_operation_name"].contains(word))
}
