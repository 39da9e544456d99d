//! The schema: one source tree that holds many mutants, of which an environment variable chooses one.
//!
//! A function whose body has mutants becomes this, with the original body last:
//!
//! ```text
//! { if crate::mutant_switch::is(3) { … } else if crate::mutant_switch::is(7) { … } else { … } }
//! ```
//!
//! A Lua script with mutants stays, and the place that includes it asks for the script that is chosen.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::ops::Range;

use crate::anchor::{self, Change, Source};
use crate::lexer::{self, Language};

/// The environment variable that names the mutant's number.
pub(crate) const VARIABLE: &str = "TIDEGATE_MUTANT";

/// The file that the switch is added to.
const ROOT: &str = "src/lib.rs";

const SWITCH: &str = r#"
mod mutant_switch {
    static CHOSEN: std::sync::OnceLock<usize> = std::sync::OnceLock::new();

    fn chosen() -> usize {
        *CHOSEN.get_or_init(|| {
            let number = std::env::var("TIDEGATE_MUTANT");
            number.map_or(usize::MAX, |number| number.parse().expect("a number"))
        })
    }

    pub(crate) fn is(number: usize) -> bool {
        chosen() == number
    }

    pub(crate) fn script(original: &'static str) -> &'static str {
        match (chosen(), original) {
"#;

/// The files of a schema, and where in them the mutants stand.
#[derive(Debug, Default)]
pub(crate) struct Schema {
    pub(crate) files: BTreeMap<String, String>,
    branches: Vec<Branch>,
}

#[derive(Debug)]
struct Branch {
    path: String,
    range: Range<usize>,
    mutants: Vec<usize>,
}

/// A function's body or an `async` block, between its braces.
#[derive(Debug)]
struct Region {
    range: Range<usize>,
    /// Each mutant's changes within.
    changes: BTreeMap<usize, Vec<Change>>,
}

/// Which of the mutants fit into a schema: those that only change Lua scripts and what functions
/// do.
pub(crate) fn fitting(sources: &[Source], mutants: &[Vec<Change>]) -> BTreeSet<usize> {
    let regions: Vec<_> = sources.iter().map(regions).collect();
    let fits = |change: &Change| {
        let source = &sources[change.file];
        let is_inside = |region: &Range<usize>| contains(region, &change.range);
        match source.language {
            _ if !source.path.starts_with("src/") => false,
            Language::Lua => true,
            Language::Rust => regions[change.file].iter().any(is_inside),
        }
    };
    (0..mutants.len())
        .filter(|number| !mutants[*number].is_empty() && mutants[*number].iter().all(fits))
        .collect()
}

impl Schema {
    /// With those of the mutants whose numbers are chosen; each of them fits.
    pub(crate) fn new(
        sources: &[Source],
        mutants: &[Vec<Change>],
        chosen: &BTreeSet<usize>,
    ) -> Self {
        let mut schema = Self::default();
        let mut scripts = String::new();
        for (file, source) in sources.iter().enumerate() {
            let here = |number: &usize| -> Option<(usize, Vec<Change>)> {
                let changes = mutants[*number].iter().filter(|change| change.file == file);
                let changes: Vec<_> = changes.cloned().collect();
                (!changes.is_empty()).then_some((*number, changes))
            };
            let here: BTreeMap<_, _> = chosen.iter().filter_map(here).collect();
            match source.language {
                Language::Lua => write_scripts(&mut scripts, source, &here),
                Language::Rust if !here.is_empty() => {
                    let text = schema.write_file(source, here);
                    schema.files.insert(source.path.clone(), text);
                }
                Language::Rust => {}
            }
        }
        if !scripts.is_empty() {
            schema.ask_for_scripts(sources);
        }
        let root = sources.iter().find(|source| source.path == ROOT);
        if let Some(root) = root {
            let text = schema.files.entry(root.path.clone());
            let text = text.or_insert_with(|| root.text.clone());
            text.push_str(SWITCH);
            text.push_str(&scripts);
            text.push_str("            _ => original,\n        }\n    }\n}\n");
        }
        schema
    }

    /// The mutants that an error is about which names these files and bytes: the fewest that stand
    /// at one of them. At a function's original body these are all of the function's.
    pub(crate) fn mutants_of(&self, places: &[(String, usize)]) -> BTreeSet<usize> {
        let at = |(path, byte): &(String, usize)| {
            let around = self
                .branches
                .iter()
                .filter(|branch| branch.path == *path && branch.range.contains(byte));
            around.min_by_key(|branch| branch.range.len())
        };
        let fewest = places
            .iter()
            .filter_map(at)
            .min_by_key(|branch| branch.mutants.len());
        fewest
            .map(|branch| branch.mutants.iter().copied().collect())
            .unwrap_or_default()
    }

    fn write_file(&mut self, source: &Source, mutants: BTreeMap<usize, Vec<Change>>) -> String {
        let mut with: Vec<Region> = Vec::new();
        let all = regions(source);
        for (number, changes) in mutants {
            let innermost = |change: &Change| {
                let around = all.iter().filter(|region| contains(region, &change.range));
                around.min_by_key(|region| region.len()).cloned()
            };
            let mut own: Vec<Range<usize>> = changes.iter().filter_map(innermost).collect();
            // Of two bodies of which one holds the other, the outer one.
            own.sort_by_key(|region| (region.start, usize::MAX - region.end));
            own.dedup_by(|inner, outer| contains(outer, inner));
            for range in own {
                let inside = changes
                    .iter()
                    .filter(|change| contains(&range, &change.range));
                let inside: Vec<_> = inside.cloned().collect();
                match with.iter_mut().find(|region| region.range == range) {
                    Some(region) => {
                        region.changes.insert(number, inside);
                    }
                    None => with.push(Region {
                        range,
                        changes: BTreeMap::from([(number, inside)]),
                    }),
                }
            }
        }
        with.sort_by_key(|region| (region.range.start, usize::MAX - region.range.end));
        let mut text = String::new();
        self.write_part(source, 0..source.text.len(), &with, &mut text);
        text
    }

    /// Writes a part of a file with the regions in it, of which outer ones come first.
    fn write_part(
        &mut self,
        source: &Source,
        part: Range<usize>,
        regions: &[Region],
        text: &mut String,
    ) {
        let mut at = part.start;
        let mut rest = regions;
        while let Some((region, others)) = rest.split_first() {
            let is_inside = |other: &Region| contains(&region.range, &other.range);
            let inner = others.iter().take_while(|other| is_inside(other)).count();
            let (inner, next) = others.split_at(inner);
            text.push_str(&source.text[at..region.range.start]);
            self.write_region(source, region, inner, text);
            at = region.range.end;
            rest = next;
        }
        text.push_str(&source.text[at..part.end]);
    }

    fn write_region(
        &mut self,
        source: &Source,
        region: &Region,
        inner: &[Region],
        text: &mut String,
    ) {
        let outer_start = text.len();
        for (number, changes) in &region.changes {
            let changes: Vec<_> = changes.iter().collect();
            let body = anchor::apply(&source.text, region.range.clone(), &changes);
            let start = text.len();
            // Writing to a string cannot fail.
            let _ = write!(
                text,
                " if crate::mutant_switch::is({number}) {{{body}\n}} else "
            );
            self.branches.push(Branch {
                path: source.path.clone(),
                range: start..text.len(),
                mutants: vec![*number],
            });
        }
        text.push('{');
        self.write_part(source, region.range.clone(), inner, text);
        text.push_str("\n} ");
        self.branches.push(Branch {
            path: source.path.clone(),
            range: outer_start..text.len(),
            mutants: region.changes.keys().copied().collect(),
        });
    }

    /// Wraps each `include_str!`, except in attributes.
    fn ask_for_scripts(&mut self, sources: &[Source]) {
        let ours =
            |source: &&Source| source.language == Language::Rust && source.path.starts_with("src/");
        for source in sources.iter().filter(ours) {
            let text = self.files.get(&source.path).unwrap_or(&source.text);
            let tokens = lexer::lex(text, Language::Rust);
            let closes = lexer::brackets(&tokens);
            let mut insertions = Vec::new();
            for (at, token) in tokens.iter().enumerate() {
                let of_attribute = at >= 2 && tokens[at - 2].text == "doc";
                let close = closes.get(at + 2).copied().flatten();
                if let (false, "include_str", Some(close)) = (of_attribute, token.text, close) {
                    insertions.push((token.start, "crate::mutant_switch::script("));
                    insertions.push((tokens[close].end(), ")"));
                }
            }
            if insertions.is_empty() {
                continue;
            }
            let mut wrapped = text.clone();
            for (at, inserted) in insertions.into_iter().rev() {
                wrapped.insert_str(at, inserted);
            }
            self.files.insert(source.path.clone(), wrapped);
        }
    }
}

/// The file with the changes of one mutant that belong to it.
pub(crate) fn changed(source: &Source, changes: &[Change], file: usize) -> String {
    let here: Vec<_> = changes
        .iter()
        .filter(|change| change.file == file)
        .collect();
    anchor::apply(&source.text, 0..source.text.len(), &here)
}

fn write_scripts(scripts: &mut String, source: &Source, mutants: &BTreeMap<usize, Vec<Change>>) {
    for (number, changes) in mutants {
        let changes: Vec<_> = changes.iter().collect();
        let mutant = anchor::apply(&source.text, 0..source.text.len(), &changes);
        // A literal as Rust writes it.
        let _ = writeln!(
            scripts,
            "            ({number}, {:?}) => {mutant:?},",
            source.text
        );
    }
}

fn contains(outer: &Range<usize>, inner: &Range<usize>) -> bool {
    outer.start <= inner.start && inner.end <= outer.end
}

/// What may become a choice: the bodies of functions that are not `const`, and `async` blocks.
/// Closures belong to the function around them, and a body with `$` is one of a macro.
fn regions(source: &Source) -> Vec<Range<usize>> {
    if source.language != Language::Rust {
        return Vec::new();
    }
    let tokens = lexer::lex(&source.text, Language::Rust);
    let closes = lexer::brackets(&tokens);
    let text = |at: usize| tokens.get(at).map_or("", |token| token.text);
    let is_const = |at: usize| {
        let before = (0..at).rev().map(text);
        let mut modifiers = before.take_while(|word| {
            matches!(*word, "const" | "async" | "unsafe" | "extern") || word.starts_with('"')
        });
        modifiers.any(|word| word == "const")
    };
    let opens = |at: usize| match (text(at), text(at + 1), text(at + 2)) {
        ("async", "{", _) => Some(at + 1),
        ("async", "move", "{") => Some(at + 2),
        ("fn", name, _) if name != "(" && !is_const(at) => anchor::body(&tokens, &closes, at),
        _ => None,
    };
    let region = |open: usize| {
        let close = closes[open]?;
        let of_macro = tokens[open..close].iter().any(|token| token.text == "$");
        (!of_macro).then(|| tokens[open].end()..tokens[close].start)
    };
    (0..tokens.len())
        .filter_map(opens)
        .filter_map(region)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::anchor::Index;
    use crate::mutant::Edit;

    fn source(path: &str, text: &str) -> Source {
        Source {
            path: path.to_owned(),
            text: text.to_owned(),
            language: Language::of(path).expect("a language"),
        }
    }

    fn mutants(sources: &[Source], edits: &[&[(&str, &str)]]) -> Vec<Vec<Change>> {
        let index = Index::new(sources);
        let change = |(original, replacement): &(&str, &str)| {
            let edit = Edit {
                within: None,
                original: (*original).to_owned(),
                replacement: (*replacement).to_owned(),
            };
            index.find(&edit).expect("one place")
        };
        edits
            .iter()
            .map(|edits| edits.iter().map(change).collect())
            .collect()
    }

    /// The file's tokens, joined by spaces.
    fn tokens(text: &str) -> String {
        let tokens = lexer::lex(text, Language::Rust);
        let texts: Vec<_> = tokens.iter().map(|token| token.text).collect();
        texts.join(" ")
    }

    #[test]
    fn a_body_becomes_a_choice() {
        let sources = [source(
            "src/a.rs",
            "async fn a<T>(x: [u8; 2]) -> T where T: B { one(|| two) }",
        )];
        let mutants = mutants(&sources, &[&[("two", "three")], &[("one", "four")]]);
        let chosen = fitting(&sources, &mutants);
        assert_eq!(chosen, BTreeSet::from([0, 1]));
        let schema = Schema::new(&sources, &mutants, &chosen);
        let expected = "async fn a<T>(x: [u8; 2]) -> T where T: B { \
            if crate::mutant_switch::is(0) { one(|| three) } \
            else if crate::mutant_switch::is(1) { four(|| two) } else { one(|| two) } }";
        let text = &schema.files["src/a.rs"];
        assert_eq!(tokens(text), tokens(expected));
        let at = |needle: &str| {
            let byte = text.find(needle).expect(needle);
            schema.mutants_of(&[("src/a.rs".to_owned(), byte)])
        };
        assert_eq!(at("three"), BTreeSet::from([0]));
        assert_eq!(at("four"), BTreeSet::from([1]));
        assert_eq!(at("one(|| two)"), BTreeSet::from([0, 1]));
        assert_eq!(at("where"), BTreeSet::new());
    }

    #[test]
    fn a_body_within_a_body_has_its_own_choice() {
        let sources = [source("src/a.rs", "fn a() { x; async move { y }; z }")];
        let mutants = mutants(
            &sources,
            &[&[("x", "p")], &[("y", "q")], &[("y", "r"), ("z", "s")]],
        );
        let schema = Schema::new(&sources, &mutants, &fitting(&sources, &mutants));
        let expected = "fn a() { if crate::mutant_switch::is(0) { p; async move { y }; z } \
            else if crate::mutant_switch::is(2) { x; async move { r }; s } \
            else { x; async move { if crate::mutant_switch::is(1) { q } else { y } }; z } }";
        assert_eq!(tokens(&schema.files["src/a.rs"]), tokens(expected));
    }

    #[test]
    fn what_no_body_holds_does_not_fit() {
        let text = "const A: u8 = 1; const fn b() { two } type C = fn(u8) -> three; \
            macro_rules! m { ($x:expr) => { fn d() { $x; four } } } \
            fn e(five: u8) {} fn f() { six }";
        let sources = [
            source("src/a.rs", text),
            source("derive/src/a.rs", "fn g() { seven }"),
        ];
        let edits: Vec<_> = ["1", "two", "three", "four", "five", "six", "seven"]
            .map(|original| [(original, "x")])
            .into();
        let edits: Vec<&[_]> = edits.iter().map(|edit| &edit[..]).collect();
        assert_eq!(
            fitting(&sources, &mutants(&sources, &edits)),
            BTreeSet::from([5])
        );
    }

    #[test]
    fn a_script_is_chosen_where_it_is_included() {
        let code = "#![doc = include_str!(\"a.md\")]\nfn a() { include_str!(\"a.lua\") }\n";
        let sources = [
            source("src/lib.rs", code),
            source("src/a.lua", "return 'x'\n"),
        ];
        let mutants = mutants(&sources, &[&[("return 'x'", "return '\\1'")]]);
        let schema = Schema::new(&sources, &mutants, &fitting(&sources, &mutants));
        let text = &schema.files["src/lib.rs"];
        assert!(text.contains("#![doc = include_str!"));
        assert!(text.contains("{ crate::mutant_switch::script(include_str!(\"a.lua\")) }"));
        assert!(
            text.contains(r#"(0, "return 'x'\n") => "return  '\\1' \n","#),
            "{text}"
        );
    }
}
