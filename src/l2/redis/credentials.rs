//! Credentials on the connections of the bus, quoted for `HELLO`.
//!
//! fred sends `HELLO` as a line of words, with the credentials as they are. A space or a quotation
//! mark in a password would make it a wrong one, and a line end would begin another command. Redis
//! accepts a word in quotation marks, with escapes.

use fred::types::config::Config;

pub(super) fn quote(config: &mut Config) {
    for words in [&mut config.username, &mut config.password] {
        *words = words.take().map(word);
    }
}

/// Whether a text is one word without quotation marks.
pub(super) fn is_plain(text: &str) -> bool {
    let plain = |byte: u8| byte.is_ascii_graphic() && !matches!(byte, b'"' | b'\'' | b'\\');
    text.bytes().all(plain)
}

fn word(text: String) -> String {
    if is_plain(&text) {
        return text;
    }
    let mut quoted = String::with_capacity(4 * text.len() + 2);
    quoted.push('"');
    for byte in text.bytes() {
        match byte {
            byte if byte.is_ascii_alphanumeric() => quoted.push(char::from(byte)),
            byte => quoted.push_str(&format!("\\x{byte:02x}")),
        }
    }
    quoted.push('"');
    quoted
}

#[cfg(test)]
mod tests {
    use super::word;

    #[test]
    fn what_would_not_be_one_word_is_quoted() {
        let word = |text: &str| word(text.to_owned());
        assert_eq!(word("p@ss:#1"), "p@ss:#1");
        assert_eq!(word("a b"), r#""a\x20b""#);
        assert_eq!(word("a\r\nFLUSHALL"), r#""a\x0d\x0aFLUSHALL""#);
        assert_eq!(word(r#"'"\ä"#), r#""\x27\x22\x5c\xc3\xa4""#);
    }
}
