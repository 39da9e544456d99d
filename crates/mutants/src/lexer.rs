//! The lexer: splits Rust or Lua into tokens, without whitespace and comments.
//!
//! It never fails: what is not closed ends with the text.

use std::ops::Range;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Language {
    Rust,
    Lua,
}

impl Language {
    /// By the file name's extension.
    pub(crate) fn of(path: &str) -> Option<Self> {
        match path.rsplit_once('.')?.1 {
            "rs" => Some(Self::Rust),
            "lua" => Some(Self::Lua),
            _ => None,
        }
    }
}

/// A word, a number, a literal or one character of punctuation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Token<'a> {
    pub(crate) text: &'a str,
    pub(crate) start: usize,
}

impl Token<'_> {
    pub(crate) fn end(&self) -> usize {
        self.start + self.text.len()
    }

    pub(crate) fn is_closing(&self) -> bool {
        matches!(self.text, ")" | "]" | "}")
    }
}

pub(crate) fn lex(source: &str, language: Language) -> Vec<Token<'_>> {
    let mut tokens = Vec::new();
    let mut at = 0;
    while let Some(next) = source[at..].chars().next() {
        let rest = &source[at..];
        let length = if next.is_whitespace() {
            next.len_utf8()
        } else if let Some(length) = comment(rest, language) {
            length
        } else {
            let length = literal(rest, language).unwrap_or_else(|| plain(rest, next));
            tokens.push(Token {
                text: &rest[..length],
                start: at,
            });
            length
        };
        at += length;
    }
    tokens
}

/// For each opening bracket the index of the one that closes it. Others have none.
pub(crate) fn brackets(tokens: &[Token<'_>]) -> Vec<Option<usize>> {
    let mut closes = vec![None; tokens.len()];
    let mut open = Vec::new();
    for (index, token) in tokens.iter().enumerate() {
        match token.text {
            "(" | "[" | "{" => open.push(index),
            ")" | "]" | "}" => {
                if let Some(opening) = open.pop() {
                    closes[opening] = Some(index);
                }
            }
            _ => {}
        }
    }
    closes
}

/// The bytes that some tokens take in their source.
pub(crate) fn bytes(tokens: &[Token<'_>]) -> Range<usize> {
    match tokens {
        [] => 0..0,
        [first, .., last] => first.start..last.end(),
        [only] => only.start..only.end(),
    }
}

fn comment(rest: &str, language: Language) -> Option<usize> {
    match language {
        Language::Rust if rest.starts_with("/*") => Some(block_comment(rest)),
        Language::Rust if rest.starts_with("//") => Some(line(rest)),
        Language::Lua if rest.starts_with("--") => {
            Some(long_bracket(&rest[2..]).map_or_else(|| line(rest), |length| length + 2))
        }
        _ => None,
    }
}

fn line(rest: &str) -> usize {
    rest.find('\n').unwrap_or(rest.len())
}

/// In Rust, comments nest.
fn block_comment(rest: &str) -> usize {
    let mut depth = 0_usize;
    let mut at = 0;
    while at < rest.len() {
        let pair = rest.as_bytes().get(at..at + 2);
        match pair {
            Some(b"/*") => depth += 1,
            Some(b"*/") => depth -= 1,
            _ => {
                at += 1;
                continue;
            }
        }
        at += 2;
        if depth == 0 {
            return at;
        }
    }
    rest.len()
}

fn literal(rest: &str, language: Language) -> Option<usize> {
    match language {
        Language::Rust => rust_literal(rest),
        Language::Lua if rest.starts_with(['\'', '"']) => quoted(rest, 0),
        Language::Lua => long_bracket(rest),
    }
}

fn rust_literal(rest: &str) -> Option<usize> {
    let prefix = ["br", "cr", "r", "b", "c", ""]
        .into_iter()
        .find(|prefix| rest.starts_with(prefix))?;
    let after = &rest[prefix.len()..];
    let hashes = after.len() - after.trim_start_matches('#').len();
    if prefix.ends_with('r') && after[hashes..].starts_with('"') {
        let end = format!("\"{}", &after[..hashes]);
        let from = prefix.len() + hashes + 1;
        let length = rest[from..].find(&end).map(|at| from + at + end.len());
        return Some(length.unwrap_or(rest.len()));
    }
    match after.chars().next()? {
        '"' if !prefix.ends_with('r') => quoted(rest, prefix.len()),
        '\'' if matches!(prefix, "" | "b") => {
            let mut chars = after[1..].chars();
            let (first, second) = (chars.next()?, chars.next());
            if first == '\\' || second == Some('\'') {
                quoted(rest, prefix.len())
            } else {
                // A lifetime or a label.
                Some(1 + word(&after[1..]))
            }
        }
        _ => None,
    }
}

/// From the quote at `from` to the next one like it that no backslash escapes.
fn quoted(rest: &str, from: usize) -> Option<usize> {
    let quote = rest[from..].chars().next()?;
    let mut escaped = false;
    for (at, char) in rest[from..].char_indices().skip(1) {
        match char {
            _ if escaped => escaped = false,
            '\\' => escaped = true,
            _ if char == quote => return Some(from + at + 1),
            _ => {}
        }
    }
    Some(rest.len())
}

/// `[[ ]]`, `[=[ ]=]` and so on.
fn long_bracket(rest: &str) -> Option<usize> {
    let after = rest.strip_prefix('[')?;
    let equals = after.len() - after.trim_start_matches('=').len();
    after[equals..].strip_prefix('[')?;
    let end = format!("]{}]", &after[..equals]);
    Some(rest.find(&end).map_or(rest.len(), |at| at + end.len()))
}

fn plain(rest: &str, first: char) -> usize {
    if first.is_ascii_digit() {
        number(rest)
    } else if first.is_alphabetic() || first == '_' {
        word(rest)
    } else {
        first.len_utf8()
    }
}

fn word(rest: &str) -> usize {
    rest.find(|char: char| !char.is_alphanumeric() && char != '_')
        .unwrap_or(rest.len())
}

/// A dot belongs to a number only where a digit follows: not in `0..9` and `1.max(2)`.
fn number(rest: &str) -> usize {
    let whole = word(rest);
    let fraction = rest[whole..].strip_prefix('.').unwrap_or_default();
    if fraction.starts_with(|char: char| char.is_ascii_digit()) {
        whole + 1 + word(fraction)
    } else {
        whole
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn texts(source: &str, language: Language) -> Vec<&str> {
        lex(source, language)
            .iter()
            .map(|token| token.text)
            .collect()
    }

    #[test]
    fn a_char_is_no_lifetime() {
        let source = r"let c: &'a u8 = b'\''; 'x' '{' 'outer: loop";
        let expected = [
            "let", "c", ":", "&", "'a", "u8", "=", r"b'\''", ";", "'x'", "'{'", "'outer", ":",
            "loop",
        ];
        assert_eq!(texts(source, Language::Rust), expected);
    }

    #[test]
    fn brackets_in_strings_and_comments_are_none() {
        let source = "a(r#\"}\"{\"#, \"\\\"}\", /* } /* { */ } */ b\"]\" // )\n)";
        let expected = [
            "a",
            "(",
            "r#\"}\"{\"#",
            ",",
            "\"\\\"}\"",
            ",",
            "b\"]\"",
            ")",
        ];
        assert_eq!(texts(source, Language::Rust), expected);
    }

    #[test]
    fn numbers_end_before_ranges_and_methods() {
        let source = "1_000.5f64 0..9 1.max(2)";
        let expected = [
            "1_000.5f64",
            "0",
            ".",
            ".",
            "9",
            "1",
            ".",
            "max",
            "(",
            "2",
            ")",
        ];
        assert_eq!(texts(source, Language::Rust), expected);
    }

    #[test]
    fn lua_has_its_own_comments_and_strings() {
        let source = "-- one\nx = '\\3' --[[ two\nlines ]] .. [=[ a ]] b ]=]";
        let expected = ["x", "=", "'\\3'", ".", ".", "[=[ a ]] b ]=]"];
        assert_eq!(texts(source, Language::Lua), expected);
    }

    #[test]
    fn brackets_find_their_ends() {
        let tokens = lex("f(a, [b]) { }", Language::Rust);
        let closes = brackets(&tokens);
        let pairs: Vec<_> = closes
            .iter()
            .enumerate()
            .filter_map(|(opening, closing)| Some((opening, (*closing)?)))
            .collect();
        assert_eq!(pairs, [(1, 7), (4, 6), (8, 9)]);
    }
}
