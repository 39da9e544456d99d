//! The failures of a command, with their exit codes and with messages that hold no secret.

use std::error::Error as _;
use std::fmt::Write as _;
use std::process::ExitCode;

use tidegate::fred::error::{Error as FredError, ErrorKind};
use tidegate::inspect::InvalidKey;
use tidegate::{BuildError, RemoteError};

/// Why a command failed.
#[derive(Debug)]
pub(crate) enum Failure {
    /// The command line makes no sense.
    Usage(String),
    /// Redis cannot be reached, or refuses a command.
    Redis(String),
}

impl Failure {
    pub(crate) fn text(&self) -> &str {
        let (Self::Usage(text) | Self::Redis(text)) = self;
        text
    }

    pub(crate) fn code(&self) -> ExitCode {
        match self {
            Self::Usage(_) => ExitCode::from(2),
            Self::Redis(_) => ExitCode::from(3),
        }
    }
}

impl From<FredError> for Failure {
    fn from(error: FredError) -> Self {
        let what = match error.kind() {
            ErrorKind::IO | ErrorKind::Canceled | ErrorKind::Routing | ErrorKind::Sentinel => {
                "Redis cannot be reached"
            }
            ErrorKind::Timeout => "Redis does not answer",
            _ => "Redis refuses",
        };
        Self::Redis(format!("{what}: {}", error.details()))
    }
}

impl From<RemoteError> for Failure {
    fn from(error: RemoteError) -> Self {
        let mut text = error.to_string();
        let mut source = error.source();
        while let Some(cause) = source {
            // Writing to a String cannot fail.
            let _ = write!(text, ": {cause}");
            source = cause.source();
        }
        Self::Redis(text)
    }
}

impl From<BuildError> for Failure {
    fn from(error: BuildError) -> Self {
        Self::Usage(error.to_string())
    }
}

impl From<InvalidKey> for Failure {
    fn from(error: InvalidKey) -> Self {
        Self::Usage(format!("{error}; with --part it is encoded for you"))
    }
}

/// Removes users, passwords and parameters from all URLs in a text. Hosts and paths stay.
pub(crate) fn redacted(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find("://") {
        let (before, url) = rest.split_at(at + 3);
        out.push_str(before);
        let end = url.find(|c: char| c.is_whitespace() || "'\"`".contains(c));
        let (url, after) = url.split_at(end.unwrap_or(url.len()));
        let host = url.rfind('@').map_or(0, |at| at + 1);
        if host > 0 {
            out.push_str("…@");
        }
        let place = url[host..].split('?').next().unwrap_or_default();
        out.push_str(place);
        if place.len() < url.len() - host {
            out.push_str("?…");
        }
        rest = after;
    }
    out + rest
}

#[cfg(test)]
mod tests {
    use super::redacted;

    #[test]
    fn urls_are_shown_without_their_secrets() {
        for (text, shown) in [
            ("nothing", "nothing"),
            (
                "redis://127.0.0.1:6379 is silent",
                "redis://127.0.0.1:6379 is silent",
            ),
            ("'redis://u:p@h:1/0'", "'redis://…@h:1/0'"),
            ("rediss://:p@ss/w@h x", "rediss://…@h x"),
            (
                "a://u:p@h?sentinelPassword=s b://:q@i.",
                "a://…@h?… b://…@i.",
            ),
        ] {
            assert_eq!(redacted(text), shown);
        }
    }
}
