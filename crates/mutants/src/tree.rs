//! The copy of the working tree in which mutants are built.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::anchor::Source;
use crate::lexer::Language;

#[derive(Debug)]
pub(crate) struct Tree {
    root: PathBuf,
    pub(crate) copy: PathBuf,
    /// From the root, with slashes.
    paths: Vec<String>,
}

impl Tree {
    /// Of all files that git knows or would add.
    pub(crate) fn new(root: &Path, copy: &Path) -> io::Result<Self> {
        let listed = Command::new("git")
            .arg("-C")
            .arg(root)
            .args([
                "ls-files",
                "-z",
                "--cached",
                "--others",
                "--exclude-standard",
            ])
            .output()?;
        let listed = String::from_utf8_lossy(&listed.stdout).into_owned();
        let exists = |path: &&str| !path.is_empty() && root.join(path).is_file();
        let tree = Self {
            root: root.to_owned(),
            copy: copy.to_owned(),
            paths: listed
                .split('\0')
                .filter(exists)
                .map(str::to_owned)
                .collect(),
        };
        tree.remove_others(copy)?;
        Ok(tree)
    }

    /// The code that mutants may be about: Rust and Lua under a `src`, except tests and this program.
    pub(crate) fn sources(&self) -> io::Result<Vec<Source>> {
        let mut sources = Vec::new();
        for path in &self.paths {
            let parts: Vec<_> = path.split('/').collect();
            let is_ours = match parts[..] {
                ["src", ..] | ["derive", "src", ..] => true,
                ["crates", member, "src", ..] => member != "mutants",
                _ => false,
            };
            let is_test = parts
                .iter()
                .any(|part| matches!(*part, "tests" | "tests.rs"));
            if let (true, false, Some(language)) = (is_ours, is_test, Language::of(path)) {
                sources.push(Source {
                    path: path.clone(),
                    text: fs::read_to_string(self.root.join(path))?,
                    language,
                });
            }
        }
        Ok(sources)
    }

    /// Makes the copy what the root is, except for the given files. A file that is right already is not
    /// touched, so cargo does not build it again.
    pub(crate) fn write(&self, others: &BTreeMap<String, String>) -> io::Result<()> {
        for path in &self.paths {
            let to = self.copy.join(path);
            let content = match others.get(path) {
                Some(text) => text.clone().into_bytes(),
                None => fs::read(self.root.join(path))?,
            };
            if fs::read(&to).is_ok_and(|found| found == content) {
                continue;
            }
            if let Some(folder) = to.parent() {
                fs::create_dir_all(folder)?;
            }
            fs::write(to, content)?;
        }
        Ok(())
    }

    /// What an earlier run has left and the root has no more.
    fn remove_others(&self, folder: &Path) -> io::Result<()> {
        let Ok(entries) = fs::read_dir(folder) else {
            return Ok(());
        };
        for entry in entries {
            let path = entry?.path();
            let from_root = path.strip_prefix(&self.copy).unwrap_or(&path);
            if path.is_dir() {
                self.remove_others(&path)?;
            } else if !self.paths.iter().any(|known| Path::new(known) == from_root) {
                fs::remove_file(&path)?;
            }
        }
        Ok(())
    }
}
