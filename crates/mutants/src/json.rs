//! As much of JSON as cargo's messages need.

use std::str::Chars;

#[derive(Debug, Default, PartialEq)]
pub(crate) enum Json {
    /// Also `true`, `false` and what is not there.
    #[default]
    Null,
    Number(usize),
    Text(String),
    List(Vec<Json>),
    Object(Vec<(String, Json)>),
}

static NULL: Json = Json::Null;

impl Json {
    /// What follows the first value is not looked at, and what is no JSON is `Null`.
    pub(crate) fn parse(text: &str) -> Self {
        value(&mut text.chars()).unwrap_or_default()
    }

    pub(crate) fn get(&self, name: &str) -> &Self {
        let fields = match self {
            Self::Object(fields) => &fields[..],
            _ => &[],
        };
        let field = fields.iter().find(|(field, _)| field == name);
        field.map_or(&NULL, |(_, value)| value)
    }

    pub(crate) fn list(&self) -> &[Self] {
        match self {
            Self::List(list) => list,
            _ => &[],
        }
    }

    pub(crate) fn text(&self) -> &str {
        match self {
            Self::Text(text) => text,
            _ => "",
        }
    }

    pub(crate) fn number(&self) -> usize {
        match self {
            Self::Number(number) => *number,
            _ => 0,
        }
    }
}

fn peek(chars: &mut Chars<'_>) -> Option<char> {
    let rest = chars.as_str().trim_start();
    *chars = rest.chars();
    rest.chars().next()
}

fn value(chars: &mut Chars<'_>) -> Option<Json> {
    match peek(chars)? {
        '"' => string(chars).map(Json::Text),
        '[' => {
            let mut list = Vec::new();
            items(chars, ']', |chars| {
                list.push(value(chars)?);
                Some(())
            })?;
            Some(Json::List(list))
        }
        '{' => {
            let mut fields = Vec::new();
            items(chars, '}', |chars| {
                peek(chars)?;
                let name = string(chars)?;
                peek(chars).filter(|char| *char == ':')?;
                chars.next();
                fields.push((name, value(chars)?));
                Some(())
            })?;
            Some(Json::Object(fields))
        }
        _ => {
            let rest = chars.as_str();
            let end = rest.find([',', ']', '}']).unwrap_or(rest.len());
            *chars = rest[end..].chars();
            Some(rest[..end].trim().parse().map_or(Json::Null, Json::Number))
        }
    }
}

fn items(
    chars: &mut Chars<'_>,
    end: char,
    mut item: impl FnMut(&mut Chars<'_>) -> Option<()>,
) -> Option<()> {
    chars.next();
    loop {
        match peek(chars)? {
            next if next == end => {
                chars.next();
                return Some(());
            }
            ',' => {
                chars.next();
            }
            _ => item(chars)?,
        }
    }
}

fn string(chars: &mut Chars<'_>) -> Option<String> {
    chars.next().filter(|char| *char == '"')?;
    let mut text = String::new();
    loop {
        match chars.next()? {
            '"' => return Some(text),
            '\\' => match chars.next()? {
                'n' => text.push('\n'),
                't' => text.push('\t'),
                // Of no use here: a character outside of ASCII comes as it is, one of control does
                // not matter.
                'u' => text.push(chars.nth(3).map(|_| '?')?),
                other => text.push(other),
            },
            other => text.push(other),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_is_read() {
        let line =
            r#"{"reason":"x \"y\"\n","spans":[{"at":12,"main":true},{"at":null}], "none":{}}"#;
        let message = Json::parse(line);
        assert_eq!(message.get("reason").text(), "x \"y\"\n");
        let spans = message.get("spans").list();
        assert_eq!(spans.len(), 2);
        assert_eq!(spans[0].get("at").number(), 12);
        assert_eq!(spans[1].get("at"), &Json::Null);
        assert_eq!(Json::parse("Compiling"), Json::Null);
    }
}
