//! Tests of `watch`.

use std::io::{BufRead as _, BufReader};
use std::process::Stdio;

use serde_json::{Value, json};
use tidegate::inspect::tag_hash;

use crate::support::{CommandOutput, Fixture};

/// The output of `watch` while a cache makes five changes.
async fn watch_five_changes(fixture: &Fixture, args: &[&str]) -> CommandOutput {
    let cache = fixture.cache(|cache| cache).await;
    let mut command = fixture.command(&[&["watch", "--count", "5"], args].concat());
    command.stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().expect("the inspector runs");
    let mut line = String::new();
    let mut err = BufReader::new(child.stderr.take().expect("a pipe"));
    err.read_line(&mut line).expect("a line");
    assert!(line.starts_with("watching tidegate:"), "{line}");

    let value = "x".to_owned();
    cache.insert("a,b".to_owned(), value).await.expect("told");
    cache.expire("42").await.expect("told");
    cache.invalidate("42").await.expect("told");
    cache.invalidate_tag("team:7").await.expect("told");
    cache.invalidate_all().await.expect("told");
    let ended = tokio::task::spawn_blocking(move || child.wait_with_output());
    CommandOutput::of(ended.await.expect("no panic").expect("an output"))
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_said_on_the_bus_is_shown_line_by_line() {
    let fixture = Fixture::start();
    let output = watch_five_changes(&fixture, &[]).await;
    let lines: Vec<&str> = output.out.lines().collect();
    let hash = format!("tag {:016x}, mark 1", tag_hash("team:7"));
    let about = ["a%2Cb", "42", "42", &hash, "mark 2"];
    let operations = [
        "insert",
        "expire",
        "invalidate",
        "invalidate_tag",
        "invalidate_all",
    ];
    assert_eq!((output.code, lines.len()), (0, 5), "{}", output.out);
    for ((line, operation), about) in lines.iter().zip(operations).zip(about) {
        assert!(line.contains(&format!("  users  {operation} ")), "{line}");
        assert!(line.ends_with(about), "{line}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn messages_are_told_in_json_one_a_line() {
    let fixture = Fixture::start();
    let output = watch_five_changes(&fixture, &["--json"]).await;
    let lines = output.out.lines();
    let lines: Vec<Value> = lines
        .map(|line| serde_json::from_str(line).expect("JSON"))
        .collect();
    assert_eq!(lines.len(), 5);
    assert_eq!(lines[0]["operation"], "insert");
    assert_eq!(lines[0]["keys"], json!(["a%2Cb"]));
    assert_eq!(lines[2]["number"], 2);
    assert_eq!(lines[2]["cache"], "users");
    assert_eq!(lines[2]["origin"], lines[0]["origin"]);
    assert_eq!(
        lines[3]["tag"],
        format!("{:016x}", tag_hash("team:7")).as_str()
    );
    assert_eq!(lines[4]["marks"]["all"], 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn every_cache_is_heard_and_what_is_not_understood_is_said() {
    let fixture = Fixture::start();
    let mut command = fixture.command(&[]);
    let url = fixture.server.url();
    command = {
        let mut unnamed = std::process::Command::new(command.get_program());
        unnamed.args(["--url", &url, "watch", "--count", "1"]);
        unnamed
    };
    command.stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().expect("the inspector runs");
    let mut line = String::new();
    let mut err = BufReader::new(child.stderr.take().expect("a pipe"));
    err.read_line(&mut line).expect("a line");
    fixture.redis("PUBLISH", &["other:x::bus", "no"]).await;
    fixture
        .redis("PUBLISH", &["tidegate:orders::bus", "nonsense"])
        .await;
    let ended = tokio::task::spawn_blocking(move || child.wait_with_output());
    let output = CommandOutput::of(ended.await.expect("no panic").expect("an output"));
    assert!(
        output.out.ends_with("  orders  not understood, 8 bytes\n"),
        "{}",
        output.out
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lost_connection_ends_it_with_an_error() {
    let Fixture { server, source } = Fixture::start();
    let fixture = Fixture { server, source };
    let mut command = fixture.command(&["watch"]);
    command.stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().expect("the inspector runs");
    let mut line = String::new();
    let mut err = BufReader::new(child.stderr.take().expect("a pipe"));
    err.read_line(&mut line).expect("a line");
    drop(fixture);
    line.clear();
    err.read_line(&mut line).expect("a line");
    assert!(line.contains("the connection is lost"), "{line}");
    assert_eq!(child.wait().expect("it ends").code(), Some(3));
}
