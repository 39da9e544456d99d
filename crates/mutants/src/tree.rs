//! The copy of the working tree in which mutants are built.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::anchor::Source;
use crate::lexer::Language;

/// What the working tree holds is read once, so nothing that is edited during a run is half in it.
#[derive(Debug)]
pub(crate) struct Tree {
    pub(crate) copy: PathBuf,
    /// By their paths from the root, with slashes.
    files: BTreeMap<String, Vec<u8>>,
}

impl Tree {
    /// Of all files that git knows or would add.
    pub(crate) fn new(root: &Path, copy: &Path) -> io::Result<Self> {
        let listed = Command::new("git")
            .arg("-C")
            .arg(root)
            .args(["ls-files", "-z", "--cached", "--others"])
            .arg("--exclude-standard")
            .output()?;
        let listed = String::from_utf8_lossy(&listed.stdout).into_owned();
        let mut files = BTreeMap::new();
        for path in listed.split('\0') {
            let file = root.join(path);
            if file.is_file() {
                files.insert(path.to_owned(), fs::read(file)?);
            }
        }
        let tree = Self {
            copy: copy.to_owned(),
            files,
        };
        tree.remove_others(copy)?;
        Ok(tree)
    }

    /// The code that mutants may be about: Rust and Lua under a `src`, except tests and this
    /// program.
    pub(crate) fn sources(&self) -> Vec<Source> {
        let mut sources = Vec::new();
        for (path, content) in &self.files {
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
                    text: String::from_utf8_lossy(content).into_owned(),
                    language,
                });
            }
        }
        sources
    }

    /// Makes the copy what the working tree is, except for the given files. A file that is right
    /// already is not touched, so cargo does not build it again.
    pub(crate) fn write(&self, others: &BTreeMap<String, String>) -> io::Result<()> {
        for (path, content) in &self.files {
            let to = self.copy.join(path);
            let content = others
                .get(path)
                .map_or(&content[..], |text| text.as_bytes());
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
            } else if !self.files.keys().any(|known| Path::new(known) == from_root) {
                fs::remove_file(&path)?;
            }
        }
        Ok(())
    }
}
