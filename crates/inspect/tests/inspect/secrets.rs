//! Tests of the command line: its errors, and that no output holds a secret.

use std::process::Command;

use crate::support::{CommandOutput, Fixture};

fn run(url: &str, args: &[&str]) -> CommandOutput {
    let mut command = Command::new(env!("CARGO_BIN_EXE_tidegate-inspect"));
    command.env("TIDEGATE_URL", url).args(args);
    CommandOutput::of(command.output().expect("the inspector runs"))
}

#[test]
fn no_output_repeats_the_secrets_of_a_url() {
    let fixture = Fixture::start();
    let port = fixture.server.url();
    let port = port.rsplit_once(':').expect("a port").1;
    let denied = format!("redis://worker:hunter2@127.0.0.1:{port}");
    let key = ["--name", "users", "key", "42"];
    let invalidate = ["--name", "users", "invalidate", "42"];
    for (url, args, code) in [
        // No server; a wrong password; no URL; a port out of range.
        ("redis://worker:hunter2@127.0.0.1:1", &key[..], 3),
        ("redis://worker:hunter2@127.0.0.1:1", &invalidate[..], 3),
        (&denied, &key[..], 3),
        (&denied, &["watch"][..], 3),
        ("worker:hunter2@127.0.0.1", &key[..], 2),
        ("redis://worker:hunter2@host:99999", &key[..], 2),
        // The URL in the wrong place.
        ("", &["redis://worker:hunter2@127.0.0.1:1"][..], 2),
        ("redis://worker:hunter2@127.0.0.1:1", &["--help"][..], 0),
        (
            "redis://worker:hunter2@127.0.0.1:1",
            &["key", "--help"][..],
            0,
        ),
    ] {
        let output = run(url, args);
        let all = format!("{}{}", output.out, output.err);
        assert_eq!(output.code, code, "{args:?} {all}");
        assert!(!all.is_empty());
        assert!(!all.contains("hunter2"), "{all}");
    }
}

#[test]
fn what_makes_no_sense_is_refused_with_what_would() {
    for (args, says) in [
        (&["key", "42"][..], "--name"),
        (&["--name", "users", "key", "a b"][..], "--part"),
        (
            &["--name", "users", "key", "tidegate:orders:42"][..],
            "users",
        ),
        (&["key", "other:users:42"][..], "--prefix"),
        (&["key", "tidegate:us%3Aers:42"][..], "--name"),
        (&["--name", "users", "key"][..], "KEY"),
        (&["--name", "users", "invalidate"][..], "KEYS"),
    ] {
        let output = run("redis://127.0.0.1:1", args);
        assert_eq!(output.code, 2, "{args:?} {}", output.err);
        assert!(output.err.contains(says), "{}", output.err);
    }
}

#[test]
fn help_teaches() {
    let output = run("redis://127.0.0.1:1", &["--help"]);
    for word in [
        "Examples:",
        "Exit codes:",
        "leases",
        "watch",
        "TIDEGATE_URL",
        "berlin,7",
    ] {
        assert!(output.out.contains(word), "{word}: {}", output.out);
    }
}
