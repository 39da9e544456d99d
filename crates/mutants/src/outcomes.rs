//! Runs of the test binaries, and what became of the tests that are expected to fail.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use crate::mutant::{Expectation, Target};
use crate::schema::VARIABLE;

/// A test binary with the names of its tests.
#[derive(Debug)]
pub(crate) struct Binary {
    path: PathBuf,
    /// The folder of the package, in which cargo runs tests.
    package: PathBuf,
    names: Vec<String>,
}

/// What became of the tests that a filter matches.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Outcome {
    /// There are none.
    None,
    Passed,
    Failed,
    Some {
        passed: usize,
        of: usize,
    },
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::None => f.write_str("none"),
            Self::Passed => f.write_str("ok"),
            Self::Failed => f.write_str("failed"),
            Self::Some { passed, of } => write!(f, "{passed} of {of} passed"),
        }
    }
}

impl Binary {
    pub(crate) fn new(path: &Path, package: &Path) -> io::Result<Self> {
        let listed = Command::new(path)
            .arg("--list")
            .current_dir(package)
            .output()?;
        let listed = String::from_utf8_lossy(&listed.stdout).into_owned();
        let names = listed
            .lines()
            .filter_map(|line| line.strip_suffix(": test"));
        Ok(Self {
            path: path.to_owned(),
            package: package.to_owned(),
            names: names.map(str::to_owned).collect(),
        })
    }

    /// What is printed by the tests that one of the filters matches. After the time they are ended.
    fn run(
        &self,
        mutant: Option<usize>,
        filters: &BTreeSet<&str>,
        time: Duration,
        logs: &Path,
    ) -> io::Result<String> {
        static RUNS: AtomicUsize = AtomicUsize::new(0);
        // A file, because a process that a test leaves behind would keep a pipe open.
        let log = logs.join(format!("log{}", RUNS.fetch_add(1, Ordering::Relaxed)));
        let file = File::create(&log)?;
        let mut command = Command::new("timeout");
        command
            .arg("--kill-after=5")
            .arg(time.as_secs().to_string())
            .arg(&self.path)
            .arg("--format=pretty")
            .args(filters)
            .current_dir(&self.package)
            .env("CARGO_MANIFEST_DIR", &self.package)
            .env_remove("RUST_TEST_THREADS")
            .env_remove(VARIABLE)
            .stdin(Stdio::null())
            .stderr(file.try_clone()?)
            .stdout(file);
        if let Some(mutant) = mutant {
            command.env(VARIABLE, mutant.to_string());
        }
        command.status()?;
        let said = fs::read(&log)?;
        fs::remove_file(&log)?;
        Ok(String::from_utf8_lossy(&said).into_owned())
    }
}

/// Runs what is expected, each target once, and says what became of it. Tests that did not come to
/// an end have failed.
pub(crate) fn of(
    binaries: &BTreeMap<Target, Binary>,
    mutant: Option<usize>,
    expectations: &[Expectation],
    time: Duration,
    logs: &Path,
) -> io::Result<Vec<(Expectation, Outcome)>> {
    let mut outcomes = Vec::new();
    for (target, binary) in binaries {
        let of_target = expectations.iter().filter(|one| one.target == *target);
        let filters: BTreeSet<&str> = of_target.map(|one| &one.filter[..]).collect();
        if filters.is_empty() {
            continue;
        }
        let said = binary.run(mutant, &filters, time, logs)?;
        let passed: BTreeSet<_> = said.lines().filter_map(passed).collect();
        for filter in filters {
            let all = binary.names.iter().filter(|name| name.contains(filter));
            let passed = passed.iter().filter(|name| name.contains(filter));
            let outcome = match (passed.count(), all.count()) {
                (_, 0) => Outcome::None,
                (0, _) => Outcome::Failed,
                (passed, of) if passed == of => Outcome::Passed,
                (passed, of) => Outcome::Some { passed, of },
            };
            let expectation = Expectation {
                target: *target,
                filter: filter.to_owned(),
            };
            outcomes.push((expectation, outcome));
        }
    }
    Ok(outcomes)
}

/// The name of the test that a line says has passed.
fn passed(line: &str) -> Option<&str> {
    let test = line.strip_prefix("test ")?.strip_suffix(" ... ok")?;
    test.split(' ').next()
}
