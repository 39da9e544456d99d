//! The errors of the API and their HTTP status.
//!
//! A failure of Redis is not one of them: look-ups go on without it, and a committed write is a
//! success.

use axum::Json;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde_json::json;
use tidegate::{Error, WriteError};

#[derive(Debug, thiserror::Error)]
pub(crate) enum ApiError {
    #[error("there is no such {0}")]
    NotFound(&'static str),
    #[error("{0}")]
    BadRequest(String),
    /// The client may try again after a second.
    #[error("the service is busy")]
    Busy,
    #[error("the database did not answer in time")]
    Late,
    #[error("the database has a problem")]
    Broken,
}

impl From<Error<sqlx::Error>> for ApiError {
    fn from(error: Error<sqlx::Error>) -> Self {
        match error {
            Error::Overloaded | Error::Closed => Self::Busy,
            Error::LoadTimedOut(_) => Self::Late,
            Error::Load(cause) => {
                eprintln!("a query failed: {cause}");
                Self::Broken
            }
            // The process that ran the load has logged the cause.
            Error::LoadFailedElsewhere => Self::Broken,
            other => {
                eprintln!("a look-up failed: {other}");
                Self::Broken
            }
        }
    }
}

impl ApiError {
    /// Converts the error of a write that went through a cache. `Ok(())` means that the write is
    /// committed, and that only the invalidation is still to be delivered.
    pub(crate) fn of_write(error: WriteError<sqlx::Error>) -> Result<(), Self> {
        match error {
            WriteError::Remote(cause) if cause.is_closed() => Err(Self::Busy),
            WriteError::Remote(_) => Ok(()),
            other => {
                let cause = std::error::Error::source(&other).map(ToString::to_string);
                eprintln!("{other}: {}", cause.unwrap_or_default());
                Err(Self::Broken)
            }
        }
    }

    fn status(&self) -> StatusCode {
        match self {
            Self::NotFound(_) => StatusCode::NOT_FOUND,
            Self::BadRequest(_) => StatusCode::BAD_REQUEST,
            Self::Busy => StatusCode::SERVICE_UNAVAILABLE,
            Self::Late => StatusCode::GATEWAY_TIMEOUT,
            Self::Broken => StatusCode::INTERNAL_SERVER_ERROR,
        }
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let body = Json(json!({ "error": self.to_string() }));
        let mut response = (self.status(), body).into_response();
        if matches!(self, Self::Busy) {
            let headers = response.headers_mut();
            headers.insert(header::RETRY_AFTER, header::HeaderValue::from_static("1"));
        }
        response
    }
}
