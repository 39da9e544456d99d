//! Tests of `key`, `leases`, `marks` and `top`.

use std::time::Duration;

use serde_json::{Value, json};
use tidegate::inspect::tag_hash;

use crate::support::Fixture;

#[tokio::test(flavor = "multi_thread")]
async fn a_value_is_shown_with_its_header() {
    let fixture = Fixture::start();
    let cache = fixture.cache(|cache| cache.schema_version(3)).await;
    cache.get("a b").await.expect("loaded");

    let output = fixture.inspect(&["key", "a%20b"]);
    assert_eq!(output.code, 0, "{}", output.err);
    assert_eq!(output.field("key"), "tidegate:users:a%20b");
    assert_eq!(output.field("kind"), "value");
    assert!(output.field("freshness").starts_with("fresh for "));
    assert!(output.field("freshness").contains("min"));
    assert_eq!(output.field("codec"), "bincode (1)");
    assert_eq!(output.field("payload"), "13 B");
    assert_eq!(output.field("version"), "9");
    assert_eq!(output.field("schema version"), "3");
    let hash = format!("{:016x}", tag_hash("team:7"));
    assert_eq!(output.field("tags"), hash);
    assert_eq!(output.field("listeners"), "1");

    let json = fixture.json(&["key", "--part", "a b"]);
    let record = &json["record"];
    assert_eq!(json["key"], "tidegate:users:a%20b");
    assert_eq!(json["claim"], Value::Null);
    for (field, value) in [
        ("kind", json!("value")),
        ("freshness", json!("fresh")),
        ("version", json!(9)),
        ("schema_version", json!(3)),
        ("codec", json!("bincode")),
        ("codec_id", json!(1)),
        ("payload_bytes", json!(13)),
        ("record_bytes", json!(104 + 8 + 13)),
        ("tags", json!([hash])),
        ("waited_for", Value::Null),
    ] {
        assert_eq!(record[field], value, "{field}");
    }
    let ms = |field: &str| record[field].as_u64().expect("a number");
    assert!(ms("fresh_ms") <= 300_000 && ms("left_ms") <= ms("fresh_ms"));
    assert!(ms("ttl_ms") > 200_000 && ms("age_ms") < 60_000);

    // The same key, with its prefix and the name of the cache.
    let whole = fixture.json(&["key", "tidegate:users:a%20b"]);
    assert_eq!(whole["record"]["token"], record["token"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_no_value_is_shown_as_what_it_is() {
    let fixture = Fixture::start();
    let cache = fixture
        .cache(|cache| cache.error_backoff(Duration::from_secs(60)))
        .await;

    let nothing = fixture.inspect(&["key", "42"]);
    assert_eq!((nothing.code, nothing.field("kind")), (1, "nothing"));
    assert_eq!(fixture.json(&["key", "42"])["record"], Value::Null);

    assert!(cache.get("absent").await.expect("an answer").is_none());
    let absent = fixture.inspect(&["key", "absent"]);
    assert_eq!((absent.code, absent.field("kind")), (0, "negative"));
    assert!(absent.field("freshness").starts_with("fresh"));

    cache.get("failing").await.expect_err("it fails");
    let failed = fixture.inspect(&["key", "failing"]);
    assert_eq!((failed.code, failed.field("kind")), (0, "failed load"));
    assert_eq!(failed.field("failures"), "1 in a row");
    assert!(failed.field("no attempt for").contains('s'));

    fixture.redis("SET", &["tidegate:users:bad", "bytes"]).await;
    let damaged = fixture.inspect(&["key", "bad"]);
    assert_eq!(damaged.code, 4);
    assert!(damaged.field("kind").starts_with("unreadable: "));
    assert_eq!(damaged.field("ends in"), "never");
    let json = fixture.json(&["key", "bad"]);
    assert_eq!(json["record"]["record_bytes"], 5);

    fixture.redis("RPUSH", &["tidegate:users:list", "x"]).await;
    assert_eq!(fixture.inspect(&["key", "list"]).code, 4);
}

#[tokio::test(flavor = "multi_thread")]
async fn freshness_is_judged_by_the_clock_by_hand_and_by_the_marks() {
    let fixture = Fixture::start();
    let window = Duration::from_secs(60);
    let cache = fixture.cache(|cache| cache.stale_if_error(window)).await;
    let short = Duration::from_millis(20);
    let value = tidegate::Loaded::found("x".to_owned()).ttl(short);
    cache.insert("short".to_owned(), value).await.expect("told");
    for key in ["hand", "tagged"] {
        cache.get(key).await.expect("loaded");
    }
    let freshness = |key: &str| fixture.json(&["key", key])["record"]["freshness"].clone();
    fixture
        .json_when(&["key", "short"], |json| {
            json["record"]["freshness"] == "stale"
        })
        .await;
    let output = fixture.inspect(&["key", "short"]);
    assert!(output.field("freshness").starts_with("stale for "));

    cache.expire("hand").await.expect("told");
    assert_eq!(freshness("hand"), "expired");
    assert_eq!(freshness("tagged"), "fresh");
    cache.invalidate_tag("team:7").await.expect("told");
    assert_eq!(freshness("tagged"), "dead");
    assert_eq!(freshness("short"), "stale");
    cache.invalidate_all().await.expect("told");
    assert_eq!(freshness("short"), "dead");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lease_is_shown_with_its_holder_and_whether_somebody_waits() {
    let fixture = Fixture::start();
    let (holder, waiter) = (
        fixture.cache(|cache| cache).await,
        fixture.cache(|cache| cache).await,
    );
    let get = |cache: &tidegate::CacheFor<crate::support::Source>| {
        let cache = cache.clone();
        tokio::spawn(async move { cache.get("gated").await.map(drop) })
    };
    let loads = get(&holder);
    let has_one = |json: &Value| json["leases"].as_array().is_some_and(|all| all.len() == 1);
    let json = fixture.json_when(&["leases"], has_one).await;
    let lease = &json["leases"][0];
    assert_eq!(lease["key"], "gated");
    assert_eq!(lease["waited_for"], false);
    assert_eq!(lease["refreshes"], false);
    assert_eq!(json["complete"], true);

    let waits = get(&waiter);
    let is_waited_for = |json: &Value| json["record"]["waited_for"] == true;
    fixture.json_when(&["key", "gated"], is_waited_for).await;
    let output = fixture.inspect(&["key", "gated"]);
    assert_eq!(output.field("kind"), "lease");
    assert_eq!(output.field("waited for"), "yes");
    assert_eq!(
        output.field("held by"),
        &lease["token"].as_str().expect("a text")[..16]
    );
    let output = fixture.inspect(&["leases"]);
    assert!(output.out.contains("WAITED FOR"), "{}", output.out);
    assert!(output.out.contains("gated"), "{}", output.out);

    fixture.source.gate.add_permits(1);
    for done in [loads, waits] {
        done.await.expect("no panic").expect("an answer");
    }
    assert_eq!(fixture.loads(), 1);
    assert!(!has_one(&fixture.json(&["leases"])));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_claim_is_shown_beside_what_it_refreshes() {
    let fixture = Fixture::start();
    let cache = fixture.cache(|cache| cache).await;
    fixture.source.gate.add_permits(1);
    cache.get("gated").await.expect("loaded");
    let refresh = tokio::spawn({
        let cache = cache.clone();
        async move { cache.refresh("gated").await.map(drop) }
    });
    let json = fixture
        .json_when(&["key", "gated"], |json| json["claim"]["kind"] == "lease")
        .await;
    assert_eq!(json["record"]["kind"], "value");
    let output = fixture.inspect(&["key", "gated"]);
    assert_eq!(
        output.field("claim"),
        "tidegate:users::{tidegate:users:gated}"
    );
    let leases = fixture.json(&["leases"]);
    assert_eq!(leases["leases"][0]["key"], "gated");
    assert_eq!(leases["leases"][0]["refreshes"], true);
    fixture.source.gate.add_permits(1);
    refresh.await.expect("no panic").expect("refreshed");
}

#[tokio::test(flavor = "multi_thread")]
async fn marks_are_shown_with_those_of_tags() {
    let fixture = Fixture::start();
    assert_eq!(fixture.inspect(&["marks"]).code, 1);
    let cache = fixture.cache(|cache| cache).await;
    cache.invalidate_all().await.expect("told");
    cache.invalidate_tag("team:7").await.expect("told");

    let json = fixture.json(&["marks", "--tag", "team:7", "--tag", "team:8"]);
    let marks = &json["marks"];
    assert!(marks["era"].as_u64().is_some_and(|era| era > 0));
    assert_eq!((&marks["mark"], &marks["all"]), (&json!(2), &json!(1)));
    assert_eq!(json["tags_known"], 1);
    assert_eq!(json["tags"][0]["mark"], 2);
    assert_eq!(json["tags"][1]["mark"], Value::Null);

    let output = fixture.inspect(&["marks", "--tag", "team:8"]);
    assert_eq!(output.field("everything"), "invalidated at mark 1");
    assert_eq!(output.field("latest tag"), "invalidated at mark 2");
    assert!(output.field("team:8").ends_with("never invalidated"));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_it_would_cost_most_to_lose_is_on_top() {
    let fixture = Fixture::start();
    let cache = fixture.cache(|cache| cache).await;
    for key in ["size 10", "size 1000000", "size 3000"] {
        cache.get(key).await.expect("loaded");
    }
    let json = fixture.json(&["top", "--limit", "2"]);
    let keys = |json: &Value| -> Vec<String> {
        let entries = json["entries"].as_array().expect("entries").iter();
        let key = |entry: &Value| entry["key"].as_str().expect("a text").to_owned();
        entries.map(key).collect()
    };
    assert_eq!(keys(&json), ["size%201000000", "size%203000"]);
    let first = &json["entries"][0];
    let number = |field: &str| first[field].as_u64().expect("a number");
    assert_eq!(
        number("score"),
        number("load_cost_ms") * number("record_bytes")
    );
    assert!(number("load_cost_ms") >= 20);
    assert!(number("payload_bytes") >= 1_000_000);
    assert_eq!(json["complete"], true);

    let output = fixture.inspect(&["top"]);
    let rows: Vec<&str> = output.out.lines().collect();
    assert!(rows[0].starts_with("KEY "), "{}", output.out);
    assert!(
        rows[1].contains("976.") && rows[1].contains("KiB"),
        "{}",
        rows[1]
    );
    assert!(rows[1].contains("fresh for"), "{}", rows[1]);
    assert_eq!(rows.len(), 5);

    let many = (0..1_500).map(|at| (format!("n{at}"), "x".to_owned()));
    let stored = cache.insert_many(many).await;
    stored.expect("stored");
    let json = fixture.json(&["top", "--scan", "100"]);
    assert_eq!(json["complete"], false);
    assert_eq!(keys(&json).len(), 20);
    let json = fixture.json(&["top", "--scan", "0", "--limit", "2"]);
    assert_eq!(json["complete"], true);
    assert_eq!(keys(&json)[0], "size%201000000");
    assert!(json["scanned"].as_u64().is_some_and(|seen| seen >= 1_503));
}

/// The ACL rules in the guide are enough for every command that only reads, and for no other one.
#[tokio::test(flavor = "multi_thread")]
async fn a_user_with_read_rights_can_inspect() {
    let guide = include_str!("../../../../src/guide/operations.md");
    let rights = guide.split("ACL SETUSER looker on >password ").nth(1);
    let rights = rights.and_then(|rest| rest.split("```").next());
    let rights: Vec<&str> = rights.expect("the rights").split_whitespace().collect();
    let fixture = Fixture::start();
    let cache = fixture.cache(|cache| cache).await;
    cache.get("42").await.expect("loaded");
    cache.invalidate_tag("team:9").await.expect("told");
    let user = ["SETUSER", "looker", "on", ">password"];
    fixture.redis("ACL", &[&user[..], &rights].concat()).await;

    let url = fixture.server.url();
    let url = url.replace("redis://", "redis://looker:password@");
    for args in [
        &["key", "42"][..],
        &["leases"],
        &["top"],
        &["marks", "--tag", "team:9"],
        &["watch", "--seconds", "0"],
    ] {
        let output = fixture.inspect(&[args, &["--url", &url]].concat());
        assert_eq!(output.code, 0, "{args:?} {}", output.err);
    }
    let denied = fixture.inspect(&["invalidate", "42", "--url", &url]);
    assert_eq!(denied.code, 3);
    assert!(denied.err.contains("may not"), "{}", denied.err);
}
