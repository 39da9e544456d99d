//! The search for an edit's original text in the sources, by tokens.
//!
//! Whitespace, line breaks, comments and commas before a closing bracket do not matter, and neither
//! does the file: the text must occur exactly once in all of them.

use std::ops::Range;

use crate::lexer::{self, Language, Token};
use crate::mutant::Edit;

/// A source file.
#[derive(Debug)]
pub(crate) struct Source {
    /// From the root of the repository, with slashes.
    pub(crate) path: String,
    pub(crate) text: String,
    pub(crate) language: Language,
}

/// Bytes of a source file, and what takes their place.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Change {
    pub(crate) file: usize,
    pub(crate) range: Range<usize>,
    pub(crate) text: String,
}

/// The sources with their tokens.
#[derive(Debug)]
pub(crate) struct Index<'a> {
    files: Vec<File<'a>>,
}

#[derive(Debug)]
struct File<'a> {
    source: &'a Source,
    tokens: Vec<Token<'a>>,
    /// The tokens that count.
    counted: Vec<usize>,
}

impl<'a> Index<'a> {
    pub(crate) fn new(sources: &'a [Source]) -> Self {
        let file = |source: &'a Source| {
            let tokens = lexer::lex(&source.text, source.language);
            let counted = counted(&tokens);
            File {
                source,
                tokens,
                counted,
            }
        };
        Self {
            files: sources.iter().map(file).collect(),
        }
    }

    /// The change that the edit makes. The error says where its original text is, if not in one
    /// place.
    pub(crate) fn find(&self, edit: &Edit) -> Result<Change, String> {
        let mut found = Vec::new();
        for (index, file) in self.files.iter().enumerate() {
            let places = file.find(edit);
            found.extend(places.into_iter().map(|place| (index, place)));
        }
        match &found[..] {
            [(index, place)] => Ok(self.files[*index].change(*index, place, &edit.replacement)),
            [] => Err(format!("nowhere: {}", first_line(&edit.original))),
            _ => {
                let places: Vec<_> = found
                    .iter()
                    .map(|(index, place)| self.files[*index].position(place.start))
                    .collect();
                Err(format!("in {} places: {}", found.len(), places.join(", ")))
            }
        }
    }
}

impl File<'_> {
    /// The tokens of each place where the edit's original text stands.
    fn find(&self, edit: &Edit) -> Vec<Range<usize>> {
        let anchor = lexer::lex(&edit.original, self.source.language);
        let mut wanted: Vec<_> = counted(&anchor)
            .into_iter()
            .map(|at| anchor[at].text)
            .collect();
        // Its last comma may stand before a bracket that the edit does not show.
        let comma = wanted.last() == Some(&",");
        if comma {
            wanted.pop();
        }
        if wanted.is_empty() {
            return Vec::new();
        }
        let scopes = self.scopes(edit.within.as_deref());
        self.counted
            .windows(wanted.len())
            .filter(|places| {
                let texts = places.iter().map(|at| self.tokens[*at].text);
                texts.eq(wanted.iter().copied())
            })
            .filter_map(|places| {
                let (first, last) = (*places.first()?, *places.last()?);
                let next = self.tokens.get(last + 1);
                let end = match next {
                    Some(next) if comma && next.text == "," => last + 2,
                    Some(next) if comma && !next.is_closing() => return None,
                    _ => last + 1,
                };
                let within = |scope: &Range<usize>| scope.start <= first && end <= scope.end;
                scopes.iter().any(within).then_some(first..end)
            })
            .collect()
    }

    /// The parts of the file that an `in:` line means, as tokens.
    fn scopes(&self, within: Option<&str>) -> Vec<Range<usize>> {
        let everything = 0..self.tokens.len();
        let Some(within) = within else {
            return vec![everything];
        };
        if Language::of(within).is_some() {
            let here = self.source.path.ends_with(within);
            return here.then_some(everything).into_iter().collect();
        }
        let wanted: Vec<_> = lexer::lex(within, Language::Rust)
            .iter()
            .map(|token| token.text)
            .collect();
        let Some((keyword, name)) = wanted.split_first() else {
            return Vec::new();
        };
        let closes = lexer::brackets(&self.tokens);
        let item = |start: usize| {
            let open = body(&self.tokens, &closes, start)?;
            let named = self.tokens[start + 1..open]
                .windows(name.len().max(1))
                .any(|head| head.iter().map(|token| token.text).eq(name.iter().copied()));
            named.then_some(start..closes[open]? + 1)
        };
        (0..self.tokens.len())
            .filter(|at| self.tokens[*at].text == *keyword)
            .filter_map(item)
            .collect()
    }

    /// What differs between the tokens there and the replacement, without what they begin and end
    /// with.
    fn change(&self, file: usize, place: &Range<usize>, replacement: &str) -> Change {
        let old = &self.tokens[place.clone()];
        let new = lexer::lex(replacement, self.source.language);
        let same = |(one, other): &(&Token<'_>, &Token<'_>)| one.text == other.text;
        let mut before = old.iter().zip(&new).take_while(same).count();
        // An operator of several characters is several tokens, and is not taken apart.
        while is_one(old, before) || is_one(&new, before) {
            before -= 1;
        }
        let (old_rest, new_rest) = (&old[before..], &new[before..]);
        let pairs = old_rest.iter().rev().zip(new_rest.iter().rev());
        let mut after = pairs.take_while(same).count();
        while is_one(old, old.len() - after) || is_one(&new, new.len() - after) {
            after -= 1;
        }
        let taken = &old_rest[..old_rest.len() - after];
        let put = &new_rest[..new_rest.len() - after];
        let range = if taken.is_empty() {
            let at = match before.checked_sub(1) {
                Some(last) => old[last].end(),
                None => old[0].start,
            };
            at..at
        } else {
            lexer::bytes(taken)
        };
        Change {
            file,
            range,
            text: replacement[lexer::bytes(put)].to_owned(),
        }
    }

    fn position(&self, token: usize) -> String {
        let start = self.tokens[token].start;
        let line = self.source.text[..start].matches('\n').count() + 1;
        format!("{}:{line}", self.source.path)
    }
}

/// The brace that opens the body of the item whose keyword is at `start`.
pub(crate) fn body(tokens: &[Token<'_>], closes: &[Option<usize>], start: usize) -> Option<usize> {
    let mut at = start;
    loop {
        match tokens.get(at)?.text {
            "{" => return Some(at),
            ";" | "}" | ")" | "]" => return None,
            "(" | "[" => at = closes[at]? + 1,
            _ => at += 1,
        }
    }
}

/// Applies changes that do not overlap to a part of a text.
pub(crate) fn apply(text: &str, part: Range<usize>, changes: &[&Change]) -> String {
    let mut sorted = changes.to_vec();
    sorted.sort_by_key(|change| change.range.start);
    let mut result = String::with_capacity(part.len());
    let mut at = part.start;
    for change in sorted {
        result.push_str(&text[at..change.range.start]);
        result.push(' ');
        result.push_str(&change.text);
        result.push(' ');
        at = change.range.end;
    }
    result.push_str(&text[at..part.end]);
    result
}

/// Whether the token there and the one before it are punctuation without a space between.
fn is_one(tokens: &[Token<'_>], at: usize) -> bool {
    let is_punctuation = |token: &Token<'_>| {
        token.text.len() == 1
            && token
                .text
                .starts_with(|char: char| char.is_ascii_punctuation())
    };
    match (
        at.checked_sub(1).map(|before| tokens[before]),
        tokens.get(at),
    ) {
        (Some(before), Some(token)) => {
            before.end() == token.start && is_punctuation(&before) && is_punctuation(token)
        }
        _ => false,
    }
}

/// All but the commas before a closing bracket.
fn counted(tokens: &[Token<'_>]) -> Vec<usize> {
    let trails =
        |at: usize| tokens[at].text == "," && tokens.get(at + 1).is_some_and(Token::is_closing);
    (0..tokens.len()).filter(|at| !trails(*at)).collect()
}

fn first_line(text: &str) -> &str {
    text.trim().lines().next().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    const FENCE: &str = "impl Fence {
        fn bump(&self) { self.set(1, &two); }
        fn clear(&self) { self.set(0, &two); }
    }";

    fn source(path: &str, text: &str) -> Source {
        Source {
            path: path.to_owned(),
            text: text.to_owned(),
            language: Language::of(path).expect("a language"),
        }
    }

    /// The tokens of the file that the edit changes, afterwards.
    fn edited(sources: &[Source], edit: &Edit) -> Result<String, String> {
        let change = Index::new(sources).find(edit)?;
        let source = &sources[change.file];
        let text = apply(&source.text, 0..source.text.len(), &[&change]);
        let tokens = lexer::lex(&text, source.language);
        let texts: Vec<_> = tokens.iter().map(|token| token.text).collect();
        Ok(texts.join(" "))
    }

    fn edit(within: Option<&str>, original: &str, replacement: &str) -> Edit {
        Edit {
            within: within.map(str::to_owned),
            original: original.to_owned(),
            replacement: replacement.to_owned(),
        }
    }

    #[test]
    fn line_breaks_comments_and_trailing_commas_do_not_matter() {
        let sources = [
            source("src/a.rs", "fn a() {}"),
            source("src/b.rs", "f(\n    1,\n    // Later.\n    &two,\n);\n"),
        ];
        let found = edited(&sources, &edit(None, "f(1, &two);", "f(2, &two);"));
        assert_eq!(found.expect("one place"), "f ( 2 , & two ) ;");
    }

    #[test]
    fn what_is_nowhere_or_twice_is_refused() {
        let sources = [source("src/fence.rs", FENCE)];
        let nowhere = edited(&sources, &edit(None, "self.set(3", "")).expect_err("nowhere");
        assert_eq!(nowhere, "nowhere: self.set(3");
        let twice = edited(&sources, &edit(None, ", &two)", ")")).expect_err("twice");
        assert_eq!(twice, "in 2 places: src/fence.rs:2, src/fence.rs:3");
    }

    #[test]
    fn a_scope_narrows_the_search() {
        let sources = [
            source("src/fence.rs", FENCE),
            source(
                "src/other.rs",
                "impl Other { fn clear() { self.set(0, &two); } }",
            ),
        ];
        let within = |within| edited(&sources, &edit(Some(within), "self.set(0, &two);", ""));
        assert!(
            within("fn clear")
                .expect_err("two functions")
                .contains("2 places")
        );
        assert!(
            within("fn bump")
                .expect_err("another function")
                .contains("nowhere")
        );
        assert!(within("impl Fence").is_ok());
        assert!(within("src/fence.rs").is_ok());
    }

    #[test]
    fn a_last_comma_goes_with_what_it_ends() {
        let arms = "match a {\n    1 => x,\n    2 => y,\n}";
        let without = edited(&[source("src/a.rs", arms)], &edit(None, "2 => y,", ""));
        assert_eq!(without.expect("one place"), "match a { 1 = > x , }");
        let last = edited(&[source("src/a.rs", "f(a, b)")], &edit(None, "b,", "c, d,"));
        assert_eq!(last.expect("one place"), "f ( a , c , d , )");
    }

    #[test]
    fn an_operator_stays_whole() {
        let sources = [source("src/a.rs", "a == b && c || d")];
        for replacement in ["a <= b && c || d", "a == b || d", "a == b && c && e || d"] {
            let change = Index::new(&sources).find(&edit(None, "a == b && c || d", replacement));
            let text = apply(&sources[0].text, 0..16, &[&change.expect("one place")]);
            let words: Vec<_> = text.split_whitespace().collect();
            assert_eq!(words.join(" "), replacement);
        }
    }

    #[test]
    fn what_is_only_put_in_stays_beside_its_context() {
        let sources = [source("src/a.lua", "-- do\nlocal a = 1\nreturn a\n")];
        let after = edit(None, "local a = 1", "local a = 1\na = 2");
        let found = edited(&sources, &after).expect("one place");
        assert_eq!(found, "local a = 1 a = 2 return a");
        let before = edit(None, "return a", "a = 2\nreturn a");
        let found = edited(&sources, &before).expect("one place");
        assert_eq!(found, "local a = 1 a = 2 return a");
    }
}
