//! fred's errors, and the errors of this crate that they become.

use fred::error::{Error as FredError, ErrorKind};
use fred::types::config::{Config, ServerConfig};

use crate::error::{RemoteError, RemoteKind};

pub(super) fn remote_error(operation: &'static str, error: FredError) -> RemoteError {
    let error = redact(error);
    let kind = match error.kind() {
        _ if is_denial(error.details()) => RemoteKind::Denied,
        _ if is_tls_error(&error) => RemoteKind::Tls,
        ErrorKind::Timeout => RemoteKind::Timeout,
        ErrorKind::IO
        | ErrorKind::Canceled
        | ErrorKind::Routing
        | ErrorKind::Sentinel
        | ErrorKind::Backpressure
        | ErrorKind::Config
        | ErrorKind::Url => RemoteKind::Unreachable,
        _ => RemoteKind::Refused,
    };
    RemoteError::because(kind, operation, error)
}

/// The error for a reply of another form than the command has.
pub(super) fn unexpected_reply(operation: &'static str) -> RemoteError {
    RemoteError::because(RemoteKind::Refused, operation, "unexpected reply")
}

/// Removes what the server repeats of a command that it does not know, which may be `AUTH`.
fn redact(error: FredError) -> FredError {
    match error.details().split_once(", with args beginning with") {
        Some((before, _)) => FredError::new(error.kind().clone(), before.to_owned()),
        None => error,
    }
}

#[cfg(feature = "tls")]
fn is_tls_error(error: &FredError) -> bool {
    // rustls passes its errors to readers and writers in this form.
    const RUSTLS_PREFIX: &str = "Custom { kind: InvalidData, error: ";
    let is_io = *error.kind() == ErrorKind::IO;
    *error.kind() == ErrorKind::Tls || (is_io && error.details().starts_with(RUSTLS_PREFIX))
}

#[cfg(not(feature = "tls"))]
fn is_tls_error(_: &FredError) -> bool {
    false
}

/// Whether there was no answer. An error that the server answered is an answer.
pub(super) fn is_no_answer(error: &RemoteError) -> bool {
    error.is_timeout() || error.is_unreachable()
}

/// Whether an error is the server's denial of something to this user.
pub(super) fn is_denial(details: &str) -> bool {
    let begins = ["NOPERM", "WRONGPASS", "NOAUTH"];
    begins.iter().any(|word| details.starts_with(word))
        // These are about a command in a script: in 6.0, up to 7.0, and from 7.2 on.
        || details.contains("NOPERM")
        || details.contains("executing the script can't")
        || details.contains("ACL failure in script")
}

/// Whether the server refused to select the database.
pub(super) fn is_database_error(error: &FredError) -> bool {
    let details = error.details();
    details.contains("DB index") || details.contains("SELECT is not allowed")
}

/// Adds what the server may have expected, if the error does not say so. TLS fails without an
/// answer, or with the end of the connection.
pub(super) fn with_hint(error: FredError, config: &Config) -> FredError {
    #[cfg(feature = "tls")]
    let tls = config.tls.is_some();
    #[cfg(not(feature = "tls"))]
    let tls = false;
    let has_ended = *error.kind() == ErrorKind::Canceled
        || ["ConnectionReset", "BrokenPipe", "UnexpectedEof", "closed"]
            .iter()
            .any(|end| error.details().contains(end));
    let question = match (error.kind(), tls) {
        // Redis takes the first bytes of TLS for the beginning of a command, and waits for the
        // rest.
        (ErrorKind::Timeout, true) => "is there TLS at this port?",
        (_, true) if has_ended => "is a client certificate expected (`Tls::client_certificate`)?",
        _ if has_ended && !matches!(config.server, ServerConfig::Unix { .. }) => {
            "is TLS expected (rediss://)?"
        }
        _ => return error,
    };
    let details = error.details().trim_end_matches('.');
    FredError::new(error.kind().clone(), format!("{details}; {question}"))
}
