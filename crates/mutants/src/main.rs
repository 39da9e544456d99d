//! `tidegate-mutants`: takes each rule out of the library in turn and requires the tests that guard
//! it to fail. `tests/mutants/run` calls it with the repository, a folder to work in, and names of
//! mutants.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use crate::anchor::{Change, Index, Source};
use crate::cargo::Cargo;
use crate::mutant::{Expectation, Mutant, Target};
use crate::outcomes::{Binary, Outcome};
use crate::schema::Schema;
use crate::tree::Tree;

mod anchor;
mod cargo;
mod json;
mod lexer;
mod mutant;
mod outcomes;
mod schema;
mod tree;

/// A test that hangs has failed, too.
const TIME: Duration = Duration::from_secs(60);

/// For all expected tests of a target, without a mutant.
const TIME_FOR_ALL: Duration = Duration::from_secs(600);

/// Mutants that are tested at a time.
const AT_ONCE: usize = 2;

/// The first argument where mutants are located and not built.
const CHECK: &str = "--check";

/// The variable that names a folder for what is built.
const KEPT: &str = "TIDEGATE_MUTANTS_TARGET";

fn main() -> ExitCode {
    match run() {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("mutants: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run() -> io::Result<bool> {
    let mut args = std::env::args().skip(1);
    let (Some(root), Some(work)) = (args.next(), args.next()) else {
        return Err(io::Error::other("call tests/mutants/run"));
    };
    let (root, work) = (PathBuf::from(root), PathBuf::from(work));
    let mut names: Vec<String> = args.collect();
    let only_check = names.first().is_some_and(|name| name == CHECK);
    if only_check {
        names.remove(0);
    }
    let kept = std::env::var_os(KEPT).filter(|kept| !kept.is_empty());
    let target = kept.map_or_else(|| Ok(work.join("target")), std::path::absolute)?;
    let tree = Tree::new(&root, &target.join("tree"))?;
    let sources = tree.sources();
    let mut session = Session {
        cargo: Cargo {
            tree: tree.copy.clone(),
            target,
        },
        tree,
        mutants: read(&root.join("tests/mutants"), &names)?,
        changes: Vec::new(),
        sources: &sources,
        logs: work,
        survivors: AtomicUsize::new(0),
    };
    if only_check {
        return Ok(session.check());
    }
    session.run()
}

/// The mutants of these names, or all.
fn read(folder: &Path, names: &[String]) -> io::Result<Vec<Mutant>> {
    let mut names: Vec<String> = names
        .iter()
        .map(|name| name.trim_end_matches(".mutant").to_owned())
        .collect();
    if names.is_empty() {
        for entry in std::fs::read_dir(folder)? {
            let file = entry?.file_name();
            let name = file.to_string_lossy();
            names.extend(name.strip_suffix(".mutant").map(str::to_owned));
        }
    }
    names.sort();
    names.dedup();
    let mutant = |name: &String| {
        let text = std::fs::read_to_string(folder.join(format!("{name}.mutant")))
            .map_err(|_| io::Error::other(format!("there is no {name}.mutant")))?;
        Mutant::parse(name, &text).map_err(|error| io::Error::other(format!("{name}: {error}")))
    };
    names.iter().map(mutant).collect()
}

#[derive(Debug)]
struct Session<'a> {
    tree: Tree,
    cargo: Cargo,
    sources: &'a [Source],
    mutants: Vec<Mutant>,
    /// Of each mutant, by its number; none where it is broken.
    changes: Vec<Vec<Change>>,
    logs: PathBuf,
    survivors: AtomicUsize,
}

impl Session<'_> {
    /// Whether the anchor of every mutant is found once. Nothing is built.
    fn check(&mut self) -> bool {
        let broken = self.locate();
        for (number, why) in &broken {
            println!("{:<50} | BROKEN: {why}", self.mutants[*number].name);
        }
        println!(
            "mutants: {} of {} can be applied",
            self.mutants.len() - broken.len(),
            self.mutants.len()
        );
        broken.is_empty()
    }

    /// Whether all mutants are killed.
    fn run(&mut self) -> io::Result<bool> {
        let broken = self.locate();
        let (together, binaries) = self.build_together()?;
        if !self.passes_without(&binaries)? {
            return Ok(false);
        }
        println!("{:<50} | killed by", "mutant");
        for (number, why) in &broken {
            self.report(*number, &format!("BROKEN: {why}"), false);
        }
        self.test_together(&together, &binaries)?;
        for number in 0..self.mutants.len() {
            if !together.contains(&number) && !broken.contains_key(&number) {
                self.test_alone(number)?;
            }
        }
        let all = self.mutants.len();
        match self.survivors.load(Ordering::Relaxed) {
            0 => {
                println!("mutants: all {all} killed");
                Ok(true)
            }
            survivors => {
                eprintln!("mutants: {survivors} of {all} not killed");
                Ok(false)
            }
        }
    }

    /// Finds what each mutant changes, and returns why it cannot be found.
    fn locate(&mut self) -> BTreeMap<usize, String> {
        let index = Index::new(self.sources);
        let mut broken = BTreeMap::new();
        for (number, mutant) in self.mutants.iter().enumerate() {
            let changes: Result<Vec<_>, _> =
                mutant.edits.iter().map(|edit| index.find(edit)).collect();
            self.changes.push(changes.unwrap_or_else(|why| {
                broken.insert(number, why);
                Vec::new()
            }));
        }
        broken
    }

    /// Builds as many mutants at once as possible, and returns their numbers with the test
    /// binaries.
    fn build_together(&self) -> io::Result<(BTreeSet<usize>, BTreeMap<Target, Binary>)> {
        let mut chosen = schema::fitting(self.sources, &self.changes);
        let targets = targets(self.mutants.iter().flat_map(|mutant| &mutant.expectations));
        loop {
            eprintln!("mutants: building {} at once", chosen.len());
            let schema = Schema::new(self.sources, &self.changes, &chosen);
            self.tree.write(&schema.files)?;
            let errors = match self.cargo.build(&targets)? {
                Ok(binaries) => return Ok((chosen, binaries)),
                Err(errors) => errors,
            };
            let mut guilty = BTreeSet::new();
            for error in &errors.located {
                for number in schema.mutants_of(&error.places) {
                    if guilty.insert(number) {
                        let name = &self.mutants[number].name;
                        eprintln!("mutants: {name} is built alone: {}", error.message);
                    }
                }
            }
            if guilty.is_empty() {
                guilty = self.bisect(&chosen)?;
                for number in &guilty {
                    let name = &self.mutants[*number].name;
                    eprintln!("mutants: {name} is built alone: others do not compile with it");
                }
            }
            if guilty.is_empty() {
                return Err(io::Error::other(format!(
                    "the tests do not compile\n{}",
                    errors.text
                )));
            }
            chosen.retain(|number| !guilty.contains(number));
        }
    }

    /// Those with which the library does not compile, by halves. None, if it does not compile
    /// without.
    fn bisect(&self, chosen: &BTreeSet<usize>) -> io::Result<BTreeSet<usize>> {
        let compiles = |some: &BTreeSet<usize>| {
            let schema = Schema::new(self.sources, &self.changes, some);
            self.tree.write(&schema.files)?;
            io::Result::Ok(self.cargo.build(&[Target::Lib])?.is_ok())
        };
        if !compiles(&BTreeSet::new())? {
            return Ok(BTreeSet::new());
        }
        let mut guilty = BTreeSet::new();
        let mut parts = vec![chosen.clone()];
        while let Some(mut part) = parts.pop() {
            if compiles(&part)? {
                continue;
            }
            let half = part.iter().nth(part.len() / 2).copied();
            match half {
                Some(half) if part.len() > 1 => {
                    let upper = part.split_off(&half);
                    parts.extend([part, upper]);
                }
                _ => guilty.extend(part),
            }
        }
        Ok(guilty)
    }

    /// Whether all expected tests pass while no mutant is chosen.
    fn passes_without(&self, binaries: &BTreeMap<Target, Binary>) -> io::Result<bool> {
        eprintln!("mutants: the tests without any");
        let expected = self
            .mutants
            .iter()
            .flat_map(|mutant| mutant.expectations.clone());
        let expected: Vec<_> = expected.collect();
        let outcomes = outcomes::of(binaries, None, &expected, TIME_FOR_ALL, &self.logs)?;
        let mut passes = true;
        for (expectation, outcome) in outcomes {
            if outcome != Outcome::Passed {
                println!("{expectation}: {outcome}");
                passes = false;
            }
        }
        if !passes {
            eprintln!("mutants: these must pass before anything is taken out");
        }
        Ok(passes)
    }

    fn test_together(
        &self,
        chosen: &BTreeSet<usize>,
        binaries: &BTreeMap<Target, Binary>,
    ) -> io::Result<()> {
        let left = Mutex::new(chosen.iter());
        let next = || left.lock().ok()?.next().copied();
        let work = || {
            while let Some(number) = next() {
                self.test(number, Some(number), binaries)?;
            }
            io::Result::Ok(())
        };
        std::thread::scope(|scope| {
            let workers: Vec<_> = (0..AT_ONCE).map(|_| scope.spawn(work)).collect();
            for worker in workers {
                worker
                    .join()
                    .map_err(|_| io::Error::other("a worker panicked"))??;
            }
            Ok(())
        })
    }

    /// Builds one mutant in place of the original, and tests it.
    fn test_alone(&self, number: usize) -> io::Result<()> {
        eprintln!("mutants: building {}", self.mutants[number].name);
        let changes = &self.changes[number];
        let file = |change: &Change| {
            let source = &self.sources[change.file];
            (
                source.path.clone(),
                schema::changed(source, changes, change.file),
            )
        };
        self.tree.write(&changes.iter().map(file).collect())?;
        match self
            .cargo
            .build(&targets(&self.mutants[number].expectations))?
        {
            Ok(binaries) => self.test(number, None, &binaries),
            Err(errors) => {
                eprint!("{}", errors.text);
                self.report(number, "SURVIVED: does not compile", false);
                Ok(())
            }
        }
    }

    /// A mutant is killed where every one of its expectations fails entirely.
    fn test(
        &self,
        number: usize,
        chosen: Option<usize>,
        binaries: &BTreeMap<Target, Binary>,
    ) -> io::Result<()> {
        let expected = &self.mutants[number].expectations;
        let outcomes = outcomes::of(binaries, chosen, expected, TIME, &self.logs)?;
        let join = |texts: Vec<String>| texts.join("; ");
        let others = outcomes
            .iter()
            .filter(|(_, outcome)| *outcome != Outcome::Failed);
        let others: Vec<_> = others
            .map(|(tests, outcome)| format!("{tests}: {outcome}"))
            .collect();
        if others.is_empty() {
            let killers = outcomes.iter().map(|(tests, _)| tests.to_string());
            self.report(number, &join(killers.collect()), true);
        } else {
            self.report(number, &format!("SURVIVED: {}", join(others)), false);
        }
        Ok(())
    }

    fn report(&self, number: usize, verdict: &str, killed: bool) {
        println!("{:<50} | {verdict}", self.mutants[number].name);
        if !killed {
            self.survivors.fetch_add(1, Ordering::Relaxed);
        }
    }
}

fn targets<'a>(expectations: impl IntoIterator<Item = &'a Expectation>) -> Vec<Target> {
    let targets: BTreeSet<_> = expectations.into_iter().map(|one| one.target).collect();
    targets.into_iter().collect()
}
