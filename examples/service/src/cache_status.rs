//! The response field `Cache-Status` (RFC 9211): one member for each cache that a request asked.

use axum::http::HeaderValue;
use axum::http::header::HeaderName;
use axum::response::{IntoResponseParts, ResponseParts};
use tidegate::Entry;

const CACHE_STATUS: HeaderName = HeaderName::from_static("cache-status");

/// The members of the field. A handler returns it in front of the body:
/// `(CacheStatus::new().entry("users", &entry), Json(user))`.
#[derive(Clone, Debug, Default)]
pub(crate) struct CacheStatus(Vec<String>);

impl CacheStatus {
    pub(crate) fn new() -> Self {
        Self::default()
    }

    /// Adds the result of one look-up. A missing row has no entry, so it has no member.
    pub(crate) fn entry<V>(mut self, cache: &str, entry: &Entry<V>) -> Self {
        self.0.push(entry.cache_status(cache));
        self
    }

    /// Adds one member for many look-ups of one cache: how many of them were hits.
    pub(crate) fn entries<'e, V: 'e>(
        mut self,
        cache: &str,
        entries: impl IntoIterator<Item = &'e Entry<V>>,
    ) -> Self {
        let (mut hits, mut all) = (0, 0);
        for entry in entries {
            hits += usize::from(entry.cache_status(cache).contains("; hit"));
            all += 1;
        }
        let how = match hits {
            0 => "fwd=miss",
            _ if hits == all => "hit",
            _ => "fwd=partial",
        };
        self.0
            .push(format!("{cache}; {how}; detail=\"{hits} of {all}\""));
        self
    }
}

impl IntoResponseParts for CacheStatus {
    type Error = std::convert::Infallible;

    fn into_response_parts(self, mut parts: ResponseParts) -> Result<ResponseParts, Self::Error> {
        // Members are ASCII, so the conversion never fails.
        if let (false, Ok(value)) = (self.0.is_empty(), HeaderValue::from_str(&self.0.join(", "))) {
            parts.headers_mut().insert(CACHE_STATUS, value);
        }
        Ok(parts)
    }
}
