//! A mutant: the rule that it takes out, the tests that must fail, and the edits, as its file says
//! them.
//!
//! ```text
//! without: an entry that is removed leaves its hot slot.
//! expect: lib engine::tests::hot_slots::what_ends_an_entry_ends_it_in_its_hot_slot
//!
//!   pub(crate) fn remove(&self, key: &AnyKey) {
//! -     self.typed.demote(key);
//! ```
//!
//! Blank lines separate the head and the edits from each other. In an edit, lines with `-` are
//! taken out, lines with `+` are put in, and the others stay. The first line of an edit may say
//! where to look for it: `in: fn remove`, `in: impl L1`, or the end of a path,
//! `in: engine/fence.rs`.

use std::fmt;

#[derive(Debug)]
pub(crate) struct Mutant {
    pub(crate) name: String,
    pub(crate) expectations: Vec<Expectation>,
    pub(crate) edits: Vec<Edit>,
}

/// Tests of one target that must all fail: those whose names contain the filter.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Expectation {
    pub(crate) target: Target,
    pub(crate) filter: String,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Target {
    Lib,
    It,
    Memory,
}

#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Edit {
    pub(crate) within: Option<String>,
    pub(crate) original: String,
    pub(crate) replacement: String,
}

impl Target {
    pub(crate) const ALL: [Self; 3] = [Self::Lib, Self::It, Self::Memory];

    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Lib => "lib",
            Self::It => "it",
            Self::Memory => "memory",
        }
    }
}

impl fmt::Display for Expectation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.target.name(), self.filter)
    }
}

impl Mutant {
    /// Of a file's text. The error says what is wrong with it.
    pub(crate) fn parse(name: &str, text: &str) -> Result<Self, String> {
        let mut blocks = text.split("\n\n").filter(|block| !block.trim().is_empty());
        let (mut rule, mut expectations) = (false, Vec::new());
        for line in blocks.next().unwrap_or_default().lines() {
            match line.split_once(": ") {
                Some(("without", _)) => rule = true,
                Some(("expect", tests)) => expectations.push(expectation(tests)?),
                _ => return Err(format!("neither without: nor expect: {line:?}")),
            }
        }
        if !rule || expectations.is_empty() {
            return Err("it lacks without: or expect:".to_owned());
        }
        let edits = blocks.map(edit).collect::<Result<Vec<_>, _>>()?;
        if edits.is_empty() {
            return Err("it edits nothing".to_owned());
        }
        Ok(Self {
            name: name.to_owned(),
            expectations,
            edits,
        })
    }
}

fn expectation(tests: &str) -> Result<Expectation, String> {
    let (target, filter) = tests.split_once(' ').unwrap_or((tests, ""));
    let filter = filter.trim();
    let target = Target::ALL.into_iter().find(|one| one.name() == target);
    match target {
        Some(target) if !filter.is_empty() && !filter.contains(' ') => Ok(Expectation {
            target,
            filter: filter.to_owned(),
        }),
        _ => Err(format!("expect: {tests:?} is no target with one filter")),
    }
}

fn edit(block: &str) -> Result<Edit, String> {
    let mut edit = Edit::default();
    for line in block.lines().filter(|line| !line.trim().is_empty()) {
        if let Some(within) = line.strip_prefix("in: ") {
            edit.within = Some(within.trim().to_owned());
            continue;
        }
        let (mark, code) = line.split_at_checked(1).unwrap_or_default();
        let (removed, added) = match mark {
            "-" => (true, false),
            "+" => (false, true),
            " " => (true, true),
            _ => {
                return Err(format!(
                    "a line begins with none of '-', '+', ' ': {line:?}"
                ));
            }
        };
        for (text, takes) in [
            (&mut edit.original, removed),
            (&mut edit.replacement, added),
        ] {
            if takes {
                text.push_str(code);
                text.push('\n');
            }
        }
    }
    if edit.original.trim().is_empty() {
        return Err("an edit has no original text".to_owned());
    }
    Ok(edit)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_read() {
        let text = "without: a rule.\nexpect: lib a::b\nexpect: it c\n\nin: fn f\n  a;\n- b;\n+ c;\n\n- d\n";
        let mutant = Mutant::parse("name", text).expect("a mutant");
        let expected: Vec<_> = mutant
            .expectations
            .iter()
            .map(ToString::to_string)
            .collect();
        assert_eq!(expected, ["lib a::b", "it c"]);
        let edit = |within: Option<&str>, original: &str, replacement: &str| Edit {
            within: within.map(str::to_owned),
            original: original.to_owned(),
            replacement: replacement.to_owned(),
        };
        let expected = [
            edit(Some("fn f"), " a;\n b;\n", " a;\n c;\n"),
            edit(None, " d\n", ""),
        ];
        assert_eq!(mutant.edits, expected);
    }

    #[test]
    fn what_is_missing_is_said() {
        for text in [
            "",
            "without: a rule.\n\n- a\n",
            "without: a rule.\nexpect: lib a\n",
            "without: a rule.\nexpect: hit a\n\n- a\n",
            "without: a rule.\nexpect: lib a\n\n+ a\n",
            "without: a rule.\nexpect: lib a\n\n@ a\n",
        ] {
            Mutant::parse("name", text).expect_err(text);
        }
    }
}
