//! Builds of the test binaries.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::json::Json;
use crate::mutant::Target;
use crate::outcomes::Binary;

/// Where cargo is run, and where it puts what it builds.
#[derive(Debug)]
pub(crate) struct Cargo {
    pub(crate) tree: PathBuf,
    pub(crate) target: PathBuf,
}

/// Why a build failed.
#[derive(Debug, Default)]
pub(crate) struct Errors {
    pub(crate) located: Vec<Located>,
    /// All of them, as the compiler prints them.
    pub(crate) text: String,
}

/// An error with the files and bytes that it names.
#[derive(Debug)]
pub(crate) struct Located {
    pub(crate) message: String,
    pub(crate) places: Vec<(String, usize)>,
}

impl Cargo {
    /// The test binaries of these targets, or why there are none.
    pub(crate) fn build(
        &self,
        targets: &[Target],
    ) -> io::Result<Result<BTreeMap<Target, Binary>, Errors>> {
        let mut command = Command::new("cargo");
        command
            .args([
                "test",
                "--no-run",
                "--all-features",
                "--message-format=json",
            ])
            .current_dir(&self.tree)
            .env("CARGO_TARGET_DIR", &self.target)
            .env("CARGO_TERM_COLOR", "never");
        // What is never looked at with a debugger needs no symbols.
        for profile in ["CARGO_PROFILE_DEV_DEBUG", "CARGO_PROFILE_TEST_DEBUG"] {
            command.env(profile, "0");
        }
        for target in targets {
            match target {
                Target::Lib => command.arg("--lib"),
                Target::It | Target::Memory => command.args(["--test", target.name()]),
            };
        }
        let output = command.output()?;
        let said = String::from_utf8_lossy(&output.stdout);
        let messages: Vec<_> = said.lines().map(Json::parse).collect();
        if !output.status.success() {
            let mut errors = errors(&messages);
            if errors.text.is_empty() {
                errors.text = String::from_utf8_lossy(&output.stderr).into_owned();
            }
            return Ok(Err(errors));
        }
        let mut binaries = BTreeMap::new();
        for target in targets {
            let built = messages
                .iter()
                .find_map(|message| executable(message, *target));
            let path = built.ok_or_else(|| io::Error::other("cargo names no test binary"))?;
            binaries.insert(*target, Binary::new(path, &self.tree)?);
        }
        Ok(Ok(binaries))
    }
}

fn executable(message: &Json, target: Target) -> Option<&Path> {
    let built = message.get("target");
    let kind = built.get("kind").list().first().map_or("", Json::text);
    let is_it = match target {
        Target::Lib => kind == "lib",
        Target::It | Target::Memory => kind == "test" && built.get("name").text() == target.name(),
    };
    let path = message.get("executable").text();
    (is_it && !path.is_empty()).then(|| Path::new(path))
}

fn errors(messages: &[Json]) -> Errors {
    let mut errors = Errors::default();
    for message in messages {
        let message = message.get("message");
        if message.get("level").text() == "error" {
            errors.text.push_str(message.get("rendered").text());
            let mut places = Vec::new();
            add_places(message, &mut places);
            // The summary at the end has none.
            if !places.is_empty() {
                let message = message.get("message").text().to_owned();
                errors.located.push(Located { message, places });
            }
        }
    }
    errors
}

fn add_places(message: &Json, places: &mut Vec<(String, usize)>) {
    let spans = message.get("spans").list().iter();
    places.extend(spans.map(|span| {
        let file = span.get("file_name").text().to_owned();
        (file, span.get("byte_start").number())
    }));
    for child in message.get("children").list() {
        add_places(child, places);
    }
}
